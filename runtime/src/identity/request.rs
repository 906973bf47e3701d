//! Keys and certificate requests. A private key is made where it is used and never leaves.

use std::fmt;

use muster_core::model::HostName;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};

/// A key could not be made or read, or a request not be signed with it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct RequestError {
    action: &'static str,
    #[source]
    source: rcgen::Error,
}

fn failed(action: &'static str) -> impl FnOnce(rcgen::Error) -> RequestError {
    move |source| RequestError { action, source }
}

/// A private key as PEM text; never shown by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPem(String);

impl KeyPem {
    /// Takes over a key as it stands in a file.
    #[must_use]
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    /// The secret itself, to be written to a file that only its owner may read.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(secret)")
    }
}

/// A new private key and a PKCS #10 request (DER) for it. P-256, because every TLS library that
/// front ends use knows it.
///
/// # Errors
/// If the system's randomness fails.
pub fn new_key_and_csr(name: &HostName) -> Result<(KeyPem, Vec<u8>), RequestError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed("make a key"))?;
    let csr = sign(name, &key)?;
    Ok((KeyPem(key.serialize_pem()), csr))
}

/// A request for a key that exists: to ask again after a lost reply, or to renew.
///
/// # Errors
/// If `key` is no private key.
pub fn csr_for_key(name: &HostName, key: &KeyPem) -> Result<Vec<u8>, RequestError> {
    let key = KeyPair::from_pem(key.as_str()).map_err(failed("read the private key"))?;
    sign(name, &key)
}

/// The name is for people: whoever signs takes the public key alone.
fn sign(name: &HostName, key: &KeyPair) -> Result<Vec<u8>, RequestError> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name(name));
    let request = params
        .serialize_request(key)
        .map_err(failed("sign the certificate request"))?;
    Ok(request.der().to_vec())
}

/// X.520 allows 64 characters there; a name may have 253.
fn common_name(name: &HostName) -> &str {
    let name = name.as_str();
    &name[..name.len().min(64)]
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateSigningRequestParams;

    use super::*;

    #[test]
    fn a_request_can_be_made_again_for_the_same_key() {
        let name = HostName::new(&"n".repeat(253)).unwrap();
        let (key, first) = new_key_and_csr(&name).unwrap();
        let second = csr_for_key(&name, &key).unwrap();
        let public = |der: &[u8]| {
            let request = CertificateSigningRequestParams::from_der(&der.into()).unwrap();
            rcgen::PublicKeyData::subject_public_key_info(&request.public_key)
        };
        assert_eq!(public(&first), public(&second));
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let name = HostName::new("vdi-01").unwrap();
        let key = KeyPem::new("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n".into());
        let error = csr_for_key(&name, &key).unwrap_err();
        let text = crate::explain::explain(&error);
        assert!(text.starts_with("cannot read the private key"), "{text}");
        assert!(!text.contains("c2Vj") && !text.contains("secret"), "{text}");
    }
}
