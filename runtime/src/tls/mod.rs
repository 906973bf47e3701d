//! TLS on both sides, with Muster's own rules of trust.
//!
//! The broker's side ([`ServerTls`]) lets every client through that proves its key, and judges
//! the certificate afterwards ([`Peer`]): a service can then refuse by name, where a failed
//! handshake would only say `transport error`. The client's side ([`ClientTls`]) trusts a broker
//! by its CA and by the role in its certificate, never by a DNS name.
//!
//! Invariants: TLS 1.3 unless configured otherwise; no session is resumed, so every connection
//! is judged by the roots of its day; what is not [`Peer::Known`] or [`Peer::Local`] has no
//! identity that counts.

mod client;
mod peer;
mod server;

use std::sync::Arc;

use rustls::{
    SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    version::{TLS12, TLS13},
};
use serde::{Deserialize, Serialize};

pub use client::{BrokerProblem, ClientTls};
pub use peer::{Peer, RefusedPeer};
pub use server::{ServerTls, Session};

/// gRPC is HTTP/2 and nothing else.
const ALPN_H2: &[u8] = b"h2";

/// Versions of TLS that are spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum TlsVersions {
    /// 1.3 alone.
    #[default]
    #[serde(rename = "1.3")]
    Tls13,
    /// 1.2 too, for front ends that know no better.
    #[serde(rename = "1.2")]
    Tls12AndTls13,
}

impl TlsVersions {
    fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls13 => &VERSIONS[..1],
            Self::Tls12AndTls13 => &VERSIONS,
        }
    }
}

/// TLS cannot be set up with this identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A root certificate cannot be used.
    #[error("a root certificate cannot be used")]
    Root(#[source] rustls::Error),
    /// No roots.
    #[error("there is no root certificate")]
    NoRoots,
    /// The client certificates cannot be verified with these roots.
    #[error("the root certificates cannot be used to verify clients")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// Certificate and key cannot be used.
    #[error("the certificate and its key cannot be used")]
    Identity(#[source] rustls::Error),
}

/// Makes the one cryptography provider the process's default. First in `main`; again is harmless.
pub fn install_provider() {
    // An error says that there is one already: this one, as there is no other in the graph.
    let _ = aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    match CryptoProvider::get_default() {
        Some(provider) => Arc::clone(provider),
        None => Arc::new(aws_lc_rs::default_provider()),
    }
}

fn root_store(
    roots: &[rustls_pki_types::CertificateDer<'_>],
) -> Result<Arc<rustls::RootCertStore>, TlsError> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone().into_owned())
            .map_err(TlsError::Root)?;
    }
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(Arc::new(store))
}
