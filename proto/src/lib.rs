//! The gRPC contract: generated code in [`v1`], checked conversions in [`border`]. Generated types
//! stop at the gRPC edge of agent and broker; inside, the types of `muster-core` are used.

pub mod border;
pub mod codec;

/// Generated from `proto/muster/v1`.
#[expect(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated"
)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}

/// The contract as a descriptor set, for reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
