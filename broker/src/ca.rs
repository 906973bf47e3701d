//! The fleet's certificate authority: a key in one file, and what it signs.
//!
//! Of a certificate request only the public key and the proof of its possession are used: names,
//! usages and validity are set here. The key is written 0600 and refused if others may read it.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use muster_core::model::{HostName, Role, TrustDomain};
use muster_runtime::{
    files::{self, FileError},
    identity::{
        CertificateError, Identity, LocalIdentity, Pin, certificates_from_pem, certificates_to_pem,
        from_certificate, pin_of,
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};

/// How long the root lasts: rotation with overlap takes its place well before.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a host's certificate lasts.
pub const HOST_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// How long the broker's own certificate lasts; it is renewed in memory long before.
pub const BROKER_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// Certificates begin before they are made: a host whose clock was set back by hours must still
/// believe its broker.
const BACKDATE: Duration = Duration::from_secs(86_400);
/// A P-256 or Ed25519 request has some 300 bytes, an RSA-4096 one some 1,700.
pub const CSR_MAX_BYTES: usize = 8 * 1024;

/// Why the CA cannot be used, or a request not be signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file is wrong.
    #[error("the fleet's CA cannot be read or written")]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{file} does not hold a usable {what}: {problem}")]
    Content {
        /// The file.
        file: String,
        /// What it should hold.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The request cannot be used.
    #[error("the certificate request cannot be used: {problem}")]
    Request {
        /// What is wrong.
        problem: String,
    },
    /// Making a key or a signature failed.
    #[error("cannot make a key or a signature")]
    Crypto(#[from] rcgen::Error),
    /// What was signed cannot be read back.
    #[error("the CA's own certificate cannot be read")]
    Certificate(#[from] CertificateError),
}

/// What a certificate is for.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Whose it is.
    pub identity: Identity,
    /// How long it lasts.
    pub lifetime: Duration,
    /// DNS names and addresses under which clients reach it; brokers only.
    pub server_names: &'a [String],
}

/// A certificate that was signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, DER.
    pub der: CertificateDer<'static>,
    /// Its serial number, lower-case hex.
    pub serial_hex: String,
    /// When it ends.
    pub not_after: Timestamp,
}

/// The certificate authority.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    pin: Pin,
    trust_domain: TrustDomain,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca")
            .field("pin", &self.pin)
            .finish_non_exhaustive()
    }
}

impl Ca {
    /// Makes a new CA in `folder`: `ca.key` (0600) and `ca.pem`.
    ///
    /// # Errors
    /// If no key can be made or a file not be written.
    pub fn create(folder: &Path, domain: &TrustDomain, now: Timestamp) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.distinguished_name = name_of(&format!("Muster CA {domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        set_validity(&mut params, now, ROOT_LIFETIME);
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        let pem = certificates_to_pem(&[issuer.der()]);
        // The certificate first: a key without its certificate could not be told from a lost one.
        files::write_atomic(&folder.join("ca.pem"), pem.as_bytes(), files::PUBLIC_MODE)?;
        files::write_atomic(
            &folder.join("ca.key"),
            key_pem.as_bytes(),
            files::SECRET_MODE,
        )?;
        Self::load(folder, domain)
    }

    /// Reads the CA from `folder`.
    ///
    /// # Errors
    /// If a file is missing, readable by others, or does not hold what it should.
    pub fn load(folder: &Path, domain: &TrustDomain) -> Result<Self, CaError> {
        let (key_file, root_file) = (folder.join("ca.key"), folder.join("ca.pem"));
        let content = |file: &Path, what, problem: String| CaError::Content {
            file: file.display().to_string(),
            what,
            problem,
        };
        let key = files::read_secret(&key_file, 64 * 1024)?;
        let key = KeyPair::from_pem(&key)
            .map_err(|error| content(&key_file, "private key", error.to_string()))?;
        let roots = certificates_from_pem(&files::read_text(&root_file, 1024 * 1024)?)
            .map_err(|problem| content(&root_file, "certificate", problem))?;
        let root = roots
            .into_iter()
            .next()
            .ok_or_else(|| content(&root_file, "certificate", "it is empty".to_owned()))?;
        let public = key.subject_public_key_info();
        let matches = x509_parser::parse_x509_certificate(&root)
            .is_ok_and(|(_, root)| root.public_key().raw == public);
        if !matches {
            let problem = format!("it does not belong to the key in {}", key_file.display());
            return Err(content(&root_file, "certificate", problem));
        }
        let pin = pin_of(&root)?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self {
            issuer,
            root,
            pin,
            trust_domain: domain.clone(),
        })
    }

    /// The root certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root's pin.
    #[must_use]
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// The fleet.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs a request for `subject`.
    ///
    /// # Errors
    /// [`CaError::Request`] if the request cannot be used.
    pub fn sign(
        &self,
        csr: &[u8],
        subject: &Subject<'_>,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        let request = |problem: String| CaError::Request { problem };
        if csr.len() > CSR_MAX_BYTES {
            let length = csr.len();
            return Err(request(format!(
                "it has {length} bytes; at most {CSR_MAX_BYTES} are allowed"
            )));
        }
        let der = CertificateSigningRequestDer::from(csr);
        let asked = CertificateSigningRequestParams::from_der(&der)
            .map_err(|error| request(error.to_string()))?;
        let (params, serial_hex, not_after) = params_for(subject, now)?;
        let certificate = params.signed_by(&asked.public_key, &self.issuer)?;
        Ok(Issued {
            der: certificate.der().clone(),
            serial_hex,
            not_after,
        })
    }

    /// A fresh key and certificate for the broker itself.
    ///
    /// # Errors
    /// If no key or signature can be made.
    pub fn broker_identity(
        &self,
        broker_id: &HostName,
        server_names: &[String],
        now: Timestamp,
    ) -> Result<LocalIdentity, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let identity = Identity {
            role: Role::Broker,
            trust_domain: self.trust_domain.clone(),
            name: broker_id.clone(),
            host_id: None,
        };
        let subject = Subject {
            identity,
            lifetime: BROKER_LIFETIME,
            server_names,
        };
        let (params, _, _) = params_for(&subject, now)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(LocalIdentity {
            info: from_certificate(certificate.der())?,
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            roots: vec![self.root.clone()],
        })
    }
}

/// SHA-256 of the public key in a request, hex: the same key asks again, whatever the request.
///
/// # Errors
/// [`CaError::Request`] if the request cannot be used.
pub fn csr_key_sha256(csr: &[u8]) -> Result<String, CaError> {
    let request = |problem: String| CaError::Request { problem };
    if csr.len() > CSR_MAX_BYTES {
        let length = csr.len();
        return Err(request(format!(
            "it has {length} bytes; at most {CSR_MAX_BYTES} are allowed"
        )));
    }
    let asked = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| request(error.to_string()))?;
    Ok(sha256_hex(&asked.public_key.subject_public_key_info()))
}

/// SHA-256, hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    hex(hash.as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn params_for(
    subject: &Subject<'_>,
    now: Timestamp,
) -> Result<(CertificateParams, String, Timestamp), CaError> {
    let mut params = CertificateParams::new(subject.server_names)?;
    params
        .subject_alt_names
        .push(SanType::URI(subject.identity.to_string().try_into()?));
    let name = subject.identity.name.as_str();
    // X.520 allows 64 characters there; the identity is the URI, this is for people.
    params.distinguished_name = name_of(name.get(..64).unwrap_or(name));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![if subject.identity.role == Role::Broker {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    params.use_authority_key_identifier_extension = true;
    let serial = serial();
    let serial_hex = hex(serial.as_ref());
    params.serial_number = Some(serial);
    set_validity(&mut params, now, subject.lifetime);
    let not_after = now.checked_add(subject.lifetime).unwrap_or(Timestamp::MAX);
    Ok((params, serial_hex, not_after))
}

fn name_of(common_name: &str) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// 16 random bytes, positive and of one length.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + lifetime;
}

#[cfg(test)]
mod tests {
    use muster_runtime::identity::new_key_and_csr;

    use super::*;

    fn ca(folder: &Path) -> Ca {
        Ca::create(folder, &TrustDomain::from_random([1, 2, 3, 4]), now()).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    fn subject(role: Role) -> Subject<'static> {
        let host_id =
            (role == Role::Host).then(|| muster_core::model::HostId::from_random([9; 16]));
        let identity = Identity {
            role,
            trust_domain: TrustDomain::from_random([1, 2, 3, 4]),
            name: HostName::new("vdi-01").unwrap(),
            host_id,
        };
        Subject {
            identity,
            lifetime: HOST_LIFETIME,
            server_names: &[],
        }
    }

    #[test]
    fn what_a_request_asks_for_is_ignored_but_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let ca = ca(folder.path());
        let key = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["broker.example".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.subject_alt_names.push(SanType::URI(
            "muster://muster-01020304/operator/root"
                .to_owned()
                .try_into()
                .unwrap(),
        ));
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let csr = greedy.serialize_request(&key).unwrap();
        let issued = ca.sign(csr.der(), &subject(Role::Host), now()).unwrap();
        let info = from_certificate(&issued.der).unwrap();
        assert_eq!(info.identity, subject(Role::Host).identity);
        assert!(!info.for_servers);
        let (_, parsed) = x509_parser::parse_x509_certificate(&issued.der).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(
            parsed.key_usage().unwrap().unwrap().value.flags,
            1,
            "signatures only"
        );
        let names = &parsed
            .subject_alternative_name()
            .unwrap()
            .unwrap()
            .value
            .general_names;
        assert_eq!(names.len(), 1);
        assert_eq!(info.serial_hex, issued.serial_hex);
        assert_eq!(info.not_after, issued.not_after);
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    }

    #[test]
    fn a_request_that_proves_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = ca(folder.path());
        let (_, good) = new_key_and_csr(&HostName::new("a").unwrap()).unwrap();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        for bad in [forged, good[..40].to_vec(), vec![], vec![0x30; 9000]] {
            let error = ca.sign(&bad, &subject(Role::Host), now()).unwrap_err();
            assert!(matches!(error, CaError::Request { .. }), "{error:?}");
        }
        ca.sign(&good, &subject(Role::Host), now()).unwrap();
    }

    #[test]
    fn the_key_is_private_and_belongs_to_the_root() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let domain = TrustDomain::from_random([1, 2, 3, 4]);
        let pin = ca(folder.path()).pin();
        let key = folder.path().join("ca.key");
        assert_eq!(
            std::fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Ca::load(folder.path(), &domain).unwrap().pin(), pin);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            Ca::load(folder.path(), &domain),
            Err(CaError::File(_))
        ));
        let other = tempfile::tempdir().unwrap();
        let _ = ca(other.path());
        std::fs::copy(other.path().join("ca.pem"), folder.path().join("ca.pem")).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Ca::load(folder.path(), &domain),
            Err(CaError::Content { .. })
        ));
    }
}
