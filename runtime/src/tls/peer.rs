//! Who is at the other end, and how that is judged.

use std::sync::Arc;

use muster_core::model::TrustDomain;
use rustls::{
    CertificateError as TlsCertificateError, Error as TlsError, server::danger::ClientCertVerifier,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    identity::{CertificateInfo, Identity, from_certificate},
    refusal,
};

/// Who is at the other end of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Peer {
    /// No certificate. Only enrolment is open to it.
    Anonymous,
    /// A process of this machine, over a Unix socket: the socket's permissions are its authority.
    Local {
        /// User of the process.
        uid: u32,
    },
    /// A certificate of this fleet, good at the time of the handshake, and its serial in hex.
    Known(Identity, Arc<str>),
    /// A certificate that does not count. Services refuse it by this reason.
    Refused(RefusedPeer),
}

/// Why a certificate does not count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusedPeer {
    /// One of the `CERTIFICATE_*` reasons of [`crate::refusal`].
    pub reason: &'static str,
    /// What is wrong, for a person.
    pub detail: String,
    /// Who it was, where all but the dates is proven; never for an untrusted certificate.
    pub identity: Option<Identity>,
    /// Serial of the certificate, with the identity.
    pub serial_hex: Option<Arc<str>>,
}

impl Peer {
    /// The identity that counts.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Known(identity, _) => Some(identity),
            Self::Anonymous | Self::Local { .. } | Self::Refused(_) => None,
        }
    }
}

/// Judges the certificates that clients presented.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) trust_domain: TrustDomain,
}

impl Judge {
    /// The peer that presented `certificates` and has proven the key of the first.
    pub(super) fn judge(&self, certificates: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Peer {
        let Some([leaf, rest @ ..]) = certificates else {
            return Peer::Anonymous;
        };
        match self.verify(leaf, rest, now) {
            Ok(info) => Peer::Known(info.identity, info.serial_hex.into()),
            Err(refused) => Peer::Refused(refused),
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<CertificateInfo, RefusedPeer> {
        let chain = self.verifier.verify_client_cert(leaf, rest, now);
        let info = match from_certificate(leaf) {
            Ok(info) => info,
            // Of our own CA it is malformed; any other certificate is simply not ours.
            Err(error) if chain.is_ok() => {
                let detail = crate::explain::explain(&error);
                return Err(refused(refusal::CERTIFICATE_MALFORMED, detail));
            }
            Err(_) => {
                let detail = "the certificate was not issued by this fleet's CA";
                return Err(refused(refusal::CERTIFICATE_UNTRUSTED, detail));
            }
        };
        if info.identity.trust_domain != self.trust_domain {
            let detail = format!(
                "the certificate is of the fleet {}, this is {}",
                info.identity.trust_domain, self.trust_domain
            );
            return Err(refused(refusal::CERTIFICATE_OTHER_TRUST_DOMAIN, detail));
        }
        let Err(error) = chain else { return Ok(info) };
        Err(self.explain(error, info, leaf, rest))
    }

    fn explain(
        &self,
        error: TlsError,
        info: CertificateInfo,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> RefusedPeer {
        use TlsCertificateError as E;
        let (reason, inside, detail) = match error {
            TlsError::InvalidCertificate(E::Expired | E::ExpiredContext { .. }) => (
                refusal::CERTIFICATE_EXPIRED,
                info.not_after,
                format!("the certificate ended at {}", info.not_after),
            ),
            TlsError::InvalidCertificate(E::NotValidYet | E::NotValidYetContext { .. }) => (
                refusal::CERTIFICATE_NOT_YET_VALID,
                info.not_before,
                format!(
                    "the certificate begins at {}, which is in the future by the broker's clock",
                    info.not_before
                ),
            ),
            other => return untrusted(&info, &other),
        };
        // Only the dates are wrong if the chain was good at an instant inside them.
        let seconds = u64::try_from(inside.as_second()).unwrap_or(0);
        let instant = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        match self.verifier.verify_client_cert(leaf, rest, instant) {
            Ok(_) => RefusedPeer {
                identity: Some(info.identity),
                serial_hex: Some(info.serial_hex.into()),
                ..refused(reason, detail)
            },
            Err(other) => untrusted(&info, &other),
        }
    }
}

fn untrusted(info: &CertificateInfo, error: &TlsError) -> RefusedPeer {
    let problem = match error {
        TlsError::InvalidCertificate(
            TlsCertificateError::UnknownIssuer | TlsCertificateError::BadSignature,
        ) => "it was not issued by this fleet's CA".to_owned(),
        other => other.to_string(),
    };
    let detail = format!(
        "the certificate for {} does not count: {problem}",
        info.identity
    );
    refused(refusal::CERTIFICATE_UNTRUSTED, detail)
}

fn refused(reason: &'static str, detail: impl Into<String>) -> RefusedPeer {
    RefusedPeer {
        reason,
        detail: detail.into(),
        identity: None,
        serial_hex: None,
    }
}
