//! Protobuf messages with small buffers: what an open stream costs while nothing is said on it.
//!
//! tonic's own codec takes 8 KiB for each direction of each rpc before the first message. An agent's
//! stream is open for months and says a few dozen bytes every ten seconds; a fleet of 15,000 would
//! hold 240 MiB of empty buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Taken for each direction of each rpc: a beat takes 40 bytes. Longer messages grow it.
const BUFFER_BYTES: usize = 256;
/// Messages are collected up to this before they are sent: as tonic's own codec does.
const YIELD_BYTES: usize = 32 * 1024;

/// The codec of all services.
#[derive(Clone, Copy, Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }
}
