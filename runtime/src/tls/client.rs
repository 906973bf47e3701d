//! The client's side: a broker is believed for its CA and its role, never for a DNS name.

use std::{fmt, sync::Arc};

use muster_core::model::{Role, TrustDomain};
use rustls::{
    CertificateError as TlsCertificateError, ClientConfig, DigitallySignedStruct,
    Error as RustlsError, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{ALPN_H2, TlsError, provider, root_store};
use crate::{
    clock,
    explain::explain,
    identity::{CertificateInfo, LocalIdentity, Pin, from_certificate, pin_of},
};

/// Certificates of a server that are looked at: leaf, a root or two, and some to spare.
const MAX_CHAIN: usize = 8;

/// How a client trusts a broker, and what it shows of itself. Clones share it.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// For enrolment: the broker is the one whose CA has this pin; nothing is shown.
    ///
    /// # Errors
    /// If the cryptography provider cannot be used.
    pub fn pinned(pin: Pin) -> Result<Self, TlsError> {
        let config = builder(Trust::Pin(pin))?.with_no_client_auth();
        Ok(Self::finish(config))
    }

    /// With an identity of one's own: the broker is one of the same trust domain and CA.
    ///
    /// # Errors
    /// If certificate, key or roots cannot be used.
    pub fn mutual(identity: &LocalIdentity) -> Result<Self, TlsError> {
        let trust = Trust::Roots {
            roots: root_store(&identity.roots)?,
            trust_domain: identity.info.identity.trust_domain.clone(),
        };
        let config = builder(trust)?
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(TlsError::Identity)?;
        Ok(Self::finish(config))
    }

    fn finish(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // A resumed session would not be verified again, and its cache costs memory.
        config.resumption = Resumption::disabled();
        Self {
            config: Arc::new(config),
        }
    }

    /// The configuration for a handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

fn builder(
    trust: Trust,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let provider = provider();
    let verifier = BrokerVerifier {
        trust,
        provider: Arc::clone(&provider),
    };
    Ok(ClientConfig::builder_with_provider(provider)
        // Brokers of every version speak 1.3.
        .with_protocol_versions(super::TlsVersions::Tls13.list())
        .map_err(TlsError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

/// Why a server is not believed to be the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerProblem {
    /// Another CA.
    #[error(
        "the server's CA has another pin than the one given: wanted {wanted}, got {}; compare \
         with the pin that `muster-broker token create` printed: either it is of another fleet, \
         or somebody is in between",
        list(presented)
    )]
    WrongPin {
        /// The pin given.
        wanted: Pin,
        /// Pins of what the server sent beside its own certificate.
        presented: Vec<Pin>,
    },
    /// Not signed by our CA.
    #[error("the server's certificate was not issued by the CA that this program trusts")]
    UnknownCa,
    /// The dates do not fit this machine's clock.
    #[error(
        "the server's certificate is good from {} to {}, and this machine's clock says {now}: \
         set the clock, or renew the broker's certificate", info.not_before, info.not_after
    )]
    Dates {
        /// The certificate.
        info: Box<CertificateInfo>,
        /// This machine's clock.
        now: jiff::Timestamp,
    },
    /// Somebody of the fleet who is not the broker.
    #[error("the server is not a broker: its certificate is of {identity}")]
    NotBroker {
        /// Who it is.
        identity: String,
    },
    /// A broker of another fleet.
    #[error("the server is the broker of the fleet {found}, wanted is {wanted}")]
    OtherTrustDomain {
        /// Ours.
        wanted: TrustDomain,
        /// Its.
        found: TrustDomain,
    },
    /// Not a certificate of Muster.
    #[error("the server's certificate is not one of Muster: {problem}")]
    Malformed {
        /// What is wrong with it.
        problem: String,
    },
    /// Anything else that is wrong with the chain.
    #[error("the server's certificate cannot be used: {problem}")]
    Chain {
        /// What is wrong with it.
        problem: String,
    },
}

fn list(pins: &[Pin]) -> String {
    if pins.is_empty() {
        return "no CA certificate at all".to_owned();
    }
    let pins: Vec<_> = pins.iter().map(Pin::to_string).collect();
    pins.join(", ")
}

impl From<BrokerProblem> for RustlsError {
    fn from(problem: BrokerProblem) -> Self {
        Self::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(problem))))
    }
}

#[derive(Debug)]
enum Trust {
    Pin(Pin),
    Roots {
        roots: Arc<RootCertStore>,
        trust_domain: TrustDomain,
    },
}

#[derive(Debug)]
struct BrokerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl BrokerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), BrokerProblem> {
        let rest = &rest[..rest.len().min(MAX_CHAIN)];
        match &self.trust {
            Trust::Pin(pin) => {
                let root = pinned(*pin, rest)?;
                let roots = root_store(std::slice::from_ref(root)).map_err(|error| {
                    BrokerProblem::Chain {
                        problem: explain(&error),
                    }
                })?;
                self.verify_chain(leaf, rest, &roots, now)?;
                broker(leaf).map(|_| ())
            }
            Trust::Roots {
                roots,
                trust_domain,
            } => {
                self.verify_chain(leaf, rest, roots, now)?;
                let info = broker(leaf)?;
                if info.identity.trust_domain == *trust_domain {
                    Ok(())
                } else {
                    Err(BrokerProblem::OtherTrustDomain {
                        wanted: trust_domain.clone(),
                        found: info.identity.trust_domain,
                    })
                }
            }
        }
    }

    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now: UnixTime,
    ) -> Result<(), BrokerProblem> {
        use TlsCertificateError as E;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verified = ParsedCertificate::try_from(leaf).and_then(|parsed| {
            verify_server_cert_signed_by_trust_anchor(&parsed, roots, rest, now, algorithms)
        });
        let Err(error) = verified else { return Ok(()) };
        Err(match (error, from_certificate(leaf)) {
            (RustlsError::InvalidCertificate(E::UnknownIssuer | E::BadSignature), _) => {
                BrokerProblem::UnknownCa
            }
            (
                RustlsError::InvalidCertificate(
                    E::Expired
                    | E::ExpiredContext { .. }
                    | E::NotValidYet
                    | E::NotValidYetContext { .. },
                ),
                Ok(info),
            ) => BrokerProblem::Dates {
                info: Box::new(info),
                now: clock::now().wall,
            },
            // A host's certificate is not made for servers: say who it is, not which bit is amiss.
            (RustlsError::InvalidCertificate(E::InvalidPurposeContext { .. }), Ok(info)) => {
                BrokerProblem::NotBroker {
                    identity: info.identity.to_string(),
                }
            }
            (error, _) => BrokerProblem::Chain {
                problem: error.to_string(),
            },
        })
    }
}

/// The certificate with that pin among those that the server sent.
fn pinned<'a>(
    pin: Pin,
    sent: &'a [CertificateDer<'a>],
) -> Result<&'a CertificateDer<'a>, BrokerProblem> {
    let mut presented = Vec::new();
    for certificate in sent {
        match pin_of(certificate) {
            Ok(found) if found == pin => return Ok(certificate),
            Ok(found) => presented.push(found),
            // Not a certificate: certainly not the pinned one.
            Err(_) => {}
        }
    }
    Err(BrokerProblem::WrongPin {
        wanted: pin,
        presented,
    })
}

fn broker(leaf: &CertificateDer<'_>) -> Result<CertificateInfo, BrokerProblem> {
    let info = from_certificate(leaf).map_err(|error| BrokerProblem::Malformed {
        problem: explain(&error),
    })?;
    // Certificates without any purpose pass the chain's check; a broker's has its purpose.
    if info.identity.role == Role::Broker && info.for_servers {
        Ok(info)
    } else {
        Err(BrokerProblem::NotBroker {
            identity: info.identity.to_string(),
        })
    }
}

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
