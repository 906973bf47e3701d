//! Where a program keeps its own identity: a folder with `key.pem` (0600), `cert.pem`, `ca.pem`.
//!
//! The key is written before a certificate is asked for, so that a lost reply is asked for again
//! with the same key. Certificate and roots follow; `cert.pem` is the last, so that where it is,
//! the identity is whole.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use super::{CertificateError, CertificateInfo, KeyPem, from_certificate};
use crate::files::{self, FileError, PUBLIC_MODE, SECRET_MODE};

/// A chain or bundle has two or three certificates of about 1 KiB.
const MAX_PEM_BYTES: u64 = 256 * 1024;
/// Certificates in one file; more is a mistake.
const MAX_CERTIFICATES: usize = 16;

/// The folder.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    directory: PathBuf,
}

/// An identity of one's own, ready for TLS.
#[derive(Debug)]
pub struct LocalIdentity {
    /// What the first certificate says.
    pub info: CertificateInfo,
    /// The certificate, and what it was signed by.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The roots that the other side is verified with.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why an identity cannot be loaded or stored.
#[derive(Debug, thiserror::Error)]
pub enum LocalIdentityError {
    /// A file cannot be read, written or trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file does not hold what it should.
    #[error("{} has no usable {wanted}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What should be there.
        wanted: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The certificate is not for Muster.
    #[error("{} is not a certificate of Muster", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CertificateError,
    },
    /// Key and certificate are not of one pair.
    #[error(
        "{} does not belong to {}: one of them was replaced alone; put both back or enrol again",
        key.display(), certificate.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
}

impl LocalIdentityError {
    /// There is no such file, so nothing was enrolled or issued here yet.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::File(error) if error.is_not_found())
    }
}

impl IdentityFiles {
    /// The identity kept in `directory`, whether it exists or not.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The private key's file.
    #[must_use]
    pub fn key_path(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    /// The certificate's file.
    #[must_use]
    pub fn certificate_path(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    /// The roots' file.
    #[must_use]
    pub fn roots_path(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Is a whole identity here?
    #[must_use]
    pub fn exists(&self) -> bool {
        self.certificate_path().exists()
    }

    /// The private key, if one was made.
    ///
    /// # Errors
    /// If it cannot be read, or others may read it.
    pub fn load_key(&self) -> Result<Option<KeyPem>, LocalIdentityError> {
        match files::read_secret(&self.key_path(), MAX_PEM_BYTES) {
            Ok(pem) => Ok(Some(KeyPem::new(pem))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps a private key, before a certificate is asked for.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn store_key(&self, key: &KeyPem) -> Result<(), LocalIdentityError> {
        files::create_private_directory(&self.directory)?;
        files::write_atomic(&self.key_path(), key.as_str().as_bytes(), SECRET_MODE)?;
        Ok(())
    }

    /// Keeps the certificate chain (own certificate first) and the roots, both DER.
    ///
    /// # Errors
    /// If they are not usable, or cannot be written.
    pub fn store_certificates<C: AsRef<[u8]>>(
        &self,
        chain: &[C],
        roots: &[C],
    ) -> Result<CertificateInfo, LocalIdentityError> {
        let path = self.certificate_path();
        let first = chain.first().map_or(&[][..], AsRef::as_ref);
        let info = from_certificate(first).map_err(|source| LocalIdentityError::Certificate {
            path: path.clone(),
            source,
        })?;
        files::create_private_directory(&self.directory)?;
        let roots = certificates_to_pem(roots);
        files::write_atomic(&self.roots_path(), roots.as_bytes(), PUBLIC_MODE)?;
        let chain = certificates_to_pem(chain);
        files::write_atomic(&path, chain.as_bytes(), PUBLIC_MODE)?;
        Ok(info)
    }

    /// The identity kept here.
    ///
    /// # Errors
    /// If a file is missing, unusable or exposed, or key and certificate are no pair.
    pub fn load(&self) -> Result<LocalIdentity, LocalIdentityError> {
        LocalIdentity::load(
            &self.certificate_path(),
            &self.key_path(),
            &self.roots_path(),
        )
    }

    /// Forgets the identity: what an image must not carry.
    ///
    /// # Errors
    /// If a file that is there cannot be removed.
    pub fn remove(&self) -> Result<(), LocalIdentityError> {
        for path in [self.certificate_path(), self.roots_path(), self.key_path()] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let action = "remove";
                    return Err(FileError::Io {
                        action,
                        path,
                        source,
                    }
                    .into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl LocalIdentity {
    /// The identity in these three files.
    ///
    /// # Errors
    /// As [`IdentityFiles::load`].
    pub fn load(certificate: &Path, key: &Path, roots: &Path) -> Result<Self, LocalIdentityError> {
        let chain = read_certificates(certificate)?;
        let roots = read_certificates(roots)?;
        let pem = files::read_secret(key, MAX_PEM_BYTES)?;
        let secret = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| {
            LocalIdentityError::Content {
                path: key.to_owned(),
                wanted: "private key",
                problem: error.to_string(),
            }
        })?;
        let info =
            from_certificate(&chain[0]).map_err(|source| LocalIdentityError::Certificate {
                path: certificate.to_owned(),
                source,
            })?;
        let provider = aws_lc_rs::default_provider();
        match CertifiedKey::from_der(chain.clone(), secret.clone_key(), &provider) {
            Ok(_) => Ok(Self {
                info,
                chain,
                key: secret,
                roots,
            }),
            Err(rustls::Error::InconsistentKeys(_)) => Err(LocalIdentityError::Mismatch {
                key: key.to_owned(),
                certificate: certificate.to_owned(),
            }),
            Err(error) => Err(LocalIdentityError::Content {
                path: key.to_owned(),
                wanted: "private key",
                problem: error.to_string(),
            }),
        }
    }
}

/// All certificates of a PEM text, DER; what else is in it is skipped.
///
/// # Errors
/// In words, if a block is damaged, or there are none or too many.
pub fn certificates_from_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| error.to_string())?;
    match certificates.len() {
        0 => Err("there is no BEGIN CERTIFICATE in it".to_owned()),
        count if count > MAX_CERTIFICATES => {
            Err(format!("it has more than {MAX_CERTIFICATES} certificates"))
        }
        _ => Ok(certificates),
    }
}

/// Certificates in DER as one PEM text.
#[must_use]
pub fn certificates_to_pem<C: AsRef<[u8]>>(certificates: &[C]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    certificates
        .iter()
        .map(|der| pem::encode_config(&pem::Pem::new("CERTIFICATE", der.as_ref()), config))
        .collect()
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LocalIdentityError> {
    let text = files::read_text(path, MAX_PEM_BYTES)?;
    certificates_from_pem(&text).map_err(|problem| LocalIdentityError::Content {
        path: path.to_owned(),
        wanted: "certificate",
        problem,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use rustls_pki_types::PrivatePkcs8KeyDer;

    use super::*;
    use crate::testing::Ca;

    fn key_pem(identity: &LocalIdentity) -> KeyPem {
        let key = PrivatePkcs8KeyDer::from(identity.key.secret_der());
        KeyPem::new(rcgen::KeyPair::try_from(&key).unwrap().serialize_pem())
    }

    fn stored(ca: &Ca, folder: &Path) -> (IdentityFiles, LocalIdentity) {
        let files = IdentityFiles::new(folder.join("identity"));
        let identity = ca.host();
        files.store_key(&key_pem(&identity)).unwrap();
        files
            .store_certificates(&identity.chain, &identity.roots)
            .unwrap();
        (files, identity)
    }

    #[test]
    fn an_identity_is_loaded_as_it_was_stored_and_forgotten_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (files, identity) = stored(&Ca::new(), folder.path());
        assert!(files.exists());
        let loaded = files.load().unwrap();
        assert_eq!(loaded.info, identity.info);
        assert_eq!(loaded.chain, identity.chain);
        assert_eq!(loaded.roots, identity.roots);
        assert_eq!(loaded.key, identity.key);
        assert!(!format!("{loaded:?}").contains("BEGIN"));
        let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(files.key_path()), 0o600);
        assert_eq!(mode(files.key_path().parent().unwrap().to_owned()), 0o700);
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(!files.exists());
        assert!(files.load().unwrap_err().is_not_found());
        assert_eq!(files.load_key().unwrap(), None);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (files, _) = stored(&Ca::new(), folder.path());
        fs::set_permissions(files.key_path(), fs::Permissions::from_mode(0o640)).unwrap();
        for error in [files.load().unwrap_err(), files.load_key().unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("chmod 600"), "{text}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let (files, _) = stored(&ca, folder.path());
        files.store_key(&key_pem(&ca.host())).unwrap();
        let error = files.load().unwrap_err();
        assert!(
            matches!(error, LocalIdentityError::Mismatch { .. }),
            "{error}"
        );
    }

    #[test]
    fn damaged_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (files, _) = stored(&Ca::new(), folder.path());
        for (path, wanted) in [
            (files.roots_path(), "certificate"),
            (files.certificate_path(), "certificate"),
            (files.key_path(), "private key"),
        ] {
            let before = fs::read(&path).unwrap();
            for damaged in [&b""[..], &before[..before.len() / 2], &[b'A'; 300]] {
                fs::write(&path, damaged).unwrap();
                let text = files.load().unwrap_err().to_string();
                let says = format!("{} has no usable {wanted}", path.display());
                assert!(text.starts_with(&says), "{text}");
            }
            fs::write(&path, before).unwrap();
        }
        files.load().unwrap();
    }

    #[test]
    fn what_is_no_host_certificate_is_not_stored() {
        let folder = tempfile::tempdir().unwrap();
        let files = IdentityFiles::new(folder.path());
        let root = Ca::new().root();
        for chain in [vec![], vec![root.clone()]] {
            let error = files
                .store_certificates(&chain, std::slice::from_ref(&root))
                .unwrap_err();
            assert!(
                matches!(error, LocalIdentityError::Certificate { .. }),
                "{error}"
            );
        }
        assert!(!files.exists());
    }
}
