//! What a certificate says: read, not verified. Whoever believes it verifies the chain first.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

use super::{Identity, IdentityError};

/// What Muster reads in a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateInfo {
    /// Whose it is.
    pub identity: Identity,
    /// Serial number, lower-case hex.
    pub serial_hex: String,
    /// Good from this instant on.
    pub not_before: Timestamp,
    /// Good up to this instant.
    pub not_after: Timestamp,
    /// It may be used by a server.
    pub for_servers: bool,
}

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate.
    #[error("not an X.509 certificate in DER: {problem}")]
    Syntax {
        /// What the parser said.
        problem: String,
    },
    /// No identity in it, or more than one.
    #[error(
        "the certificate has {count} alternative names of the form muster://...; it must have one"
    )]
    Identities {
        /// How many.
        count: usize,
    },
    /// Its URI is no identity.
    #[error("the certificate's alternative name is wrong")]
    Identity(#[from] IdentityError),
}

/// Reads `der`.
///
/// # Errors
/// If it is no certificate, or does not carry exactly one identity.
pub fn from_certificate(der: &[u8]) -> Result<CertificateInfo, CertificateError> {
    let certificate = parse(der)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| syntax(&error))?;
    let mut uris = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) if is_ours(uri) => Some(*uri),
            _ => None,
        });
    let identity = match (uris.next(), uris.count()) {
        (Some(uri), 0) => uri.parse()?,
        (first, rest) => {
            return Err(CertificateError::Identities {
                count: usize::from(first.is_some()) + rest,
            });
        }
    };
    let usage = certificate
        .extended_key_usage()
        .map_err(|error| syntax(&error))?;
    let validity = certificate.validity();
    Ok(CertificateInfo {
        identity,
        serial_hex: hex(certificate.raw_serial()),
        not_before: timestamp(validity.not_before.timestamp()),
        not_after: timestamp(validity.not_after.timestamp()),
        for_servers: usage.is_some_and(|usage| usage.value.server_auth),
    })
}

/// Fingerprint of a CA: SHA-256 of its root's public key info, so that a root renewed with the
/// same key keeps its pin.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

/// Why a text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a pin is `sha256:` and 64 hex digits, as printed by `muster-broker token create`")]
pub struct PinError;

/// The pin of the CA with this root certificate.
///
/// # Errors
/// If `root_der` is no certificate.
pub fn pin_of(root_der: &[u8]) -> Result<Pin, CertificateError> {
    let certificate = parse(root_der)?;
    let hash = digest(&SHA256, certificate.public_key().raw);
    let bytes = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
    Ok(Pin(bytes))
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let digits = text.trim().strip_prefix("sha256:").ok_or(PinError)?;
        let mut bytes = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(PinError);
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| PinError)?;
        }
        Ok(Self(bytes))
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(CertificateError::Syntax {
            problem: format!("{} bytes follow it", rest.len()),
        }),
        Err(error) => Err(syntax(&error)),
    }
}

fn syntax(error: &impl fmt::Display) -> CertificateError {
    CertificateError::Syntax {
        problem: muster_core::model::clean_text(&error.to_string(), 120),
    }
}

/// Of our scheme, in whatever case: a second identity must not hide behind a capital letter.
fn is_ours(uri: &str) -> bool {
    uri.split_once(':')
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("muster"))
}

/// X.509 has years up to 9999, a timestamp nearly as many: what does not fit is "for ever".
fn timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::identity::new_key_and_csr;

    const HOST: &str = "muster://muster-0a1b2c3d/host/vdi-01/0e8a9d6a-3f0f-4d4c-9a55-0d6b3c1f2a77";

    fn with_uris(uris: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["vdi-01.example.org".into()]).unwrap();
        for uri in uris {
            let uri = (*uri).try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_identity_is_the_one_muster_uri() {
        let der = with_uris(&["https://example.org/", HOST]);
        let info = from_certificate(&der).unwrap();
        assert_eq!(info.identity, HOST.parse().unwrap());
        assert!(!info.serial_hex.is_empty());
        assert!(info.not_before < info.not_after);
    }

    #[test]
    fn no_identity_or_two_or_a_bad_one_is_refused() {
        let count = |uris: &[&str]| match from_certificate(&with_uris(uris)) {
            Err(CertificateError::Identities { count }) => count,
            other => panic!("{other:?}"),
        };
        assert_eq!(count(&[]), 0);
        assert_eq!(count(&[HOST, HOST]), 2);
        assert_eq!(count(&[HOST, "MUSTER://other/viewer/x"]), 2);
        assert!(matches!(
            from_certificate(&with_uris(&["muster://x/admin/y"])),
            Err(CertificateError::Identity(IdentityError::Role { .. }))
        ));
    }

    #[test]
    fn what_is_no_certificate_is_said_to_be_none() {
        let der = with_uris(&[HOST]);
        let mut longer = der.clone();
        longer.push(0);
        for wrong in [
            &[][..],
            b"-----BEGIN CERTIFICATE-----",
            &der[..100],
            &longer,
        ] {
            assert!(matches!(
                from_certificate(wrong),
                Err(CertificateError::Syntax { .. })
            ));
        }
    }

    #[test]
    fn a_renewed_root_with_the_same_key_keeps_its_pin() {
        let key = KeyPair::generate().unwrap();
        let root = |name: &str| {
            let params = CertificateParams::new(vec![name.into()]).unwrap();
            params.self_signed(&key).unwrap().der().to_vec()
        };
        let pin = pin_of(&root("first")).unwrap();
        assert_eq!(pin, pin_of(&root("second")).unwrap());
        assert_ne!(pin, pin_of(&with_uris(&[])).unwrap());
        assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
        assert_eq!(pin.to_string().len(), "sha256:".len() + 64);
    }

    #[test]
    fn a_pin_in_another_form_is_refused() {
        let digits = "ab".repeat(32);
        assert!(format!("sha256:{digits}\n").parse::<Pin>().is_ok());
        for wrong in [
            digits.clone(),
            format!("sha1:{digits}"),
            format!("sha256:{}", &digits[2..]),
            format!("sha256:{}+a", &digits[2..]),
            format!("sha256:{}\u{e4}", &digits[2..]),
        ] {
            assert_eq!(wrong.parse::<Pin>(), Err(PinError));
        }
    }

    #[test]
    fn keys_never_show_in_debug_output() {
        let (key, _) = new_key_and_csr(&"vdi-01".parse().unwrap()).unwrap();
        assert!(!format!("{key:?}").contains("BEGIN"));
    }
}
