//! The broker's side: a configuration that can be exchanged under a running accept loop.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as RustlsError, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{ALPN_H2, Peer, TlsError, TlsVersions, peer::Judge, provider, root_store};
use crate::identity::LocalIdentity;

/// What the accept loop needs for TLS. [`ServerTls::replace`] exchanges it as a whole: new
/// handshakes use the new one, live connections stay as they are.
pub struct ServerTls {
    current: ArcSwap<Session>,
}

/// The configuration of one handshake and the judgement that belongs to it.
#[derive(Debug)]
pub struct Session {
    config: Arc<ServerConfig>,
    judge: Judge,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trust_domain = self.current.load().judge.trust_domain.clone();
        f.debug_struct("ServerTls")
            .field("trust_domain", &trust_domain)
            .finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server with this identity, whose roots sign its clients. The roots are sent with the
    /// chain, so that a joining host finds the one that it was given the pin of.
    ///
    /// # Errors
    /// If certificate, key or roots cannot be used.
    pub fn new(identity: &LocalIdentity, versions: TlsVersions) -> Result<Self, TlsError> {
        Ok(Self {
            current: ArcSwap::from_pointee(Session::new(identity, versions)?),
        })
    }

    /// From now on handshakes are made with this.
    ///
    /// # Errors
    /// As [`ServerTls::new`]; then all stays as it is.
    pub fn replace(&self, identity: &LocalIdentity, versions: TlsVersions) -> Result<(), TlsError> {
        let session = Session::new(identity, versions)?;
        self.current.store(Arc::new(session));
        Ok(())
    }

    /// What a handshake that begins now uses from its start to its judgement.
    #[must_use]
    pub fn current(&self) -> Arc<Session> {
        self.current.load_full()
    }
}

impl Session {
    fn new(identity: &LocalIdentity, versions: TlsVersions) -> Result<Self, TlsError> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            root_store(&identity.roots)?,
            Arc::clone(&provider),
        )
        .build()?;
        let mut chain = identity.chain.clone();
        for root in &identity.roots {
            if !chain.contains(root) {
                chain.push(root.clone());
            }
        }
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions.list())
            .map_err(TlsError::Identity)?
            .with_client_cert_verifier(Arc::new(ProofOnly {
                verifier: Arc::clone(&verifier),
            }))
            .with_single_cert(chain, identity.key.clone_key())
            .map_err(TlsError::Identity)?;
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A resumed session would not be judged again; a ticket also costs memory per connection.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self {
            config: Arc::new(config),
            judge: Judge {
                verifier,
                trust_domain: identity.info.identity.trust_domain.clone(),
            },
        })
    }

    /// The configuration for the handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Who presented `certificates`, having proven the key of the first.
    #[must_use]
    pub fn judge(&self, certificates: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Peer {
        self.judge.judge(certificates, now)
    }
}

/// Accepts any certificate whose key the client proves; [`Judge`] says what it is worth.
#[derive(Debug)]
struct ProofOnly {
    verifier: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for ProofOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: a client with the certificate of another CA presents it and learns why it does
    /// not count, instead of presenting none.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
