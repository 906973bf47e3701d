//! The data folder: what the agent must know after a restart.
//!
//! | file | what |
//! |---|---|
//! | `identity/` | key, certificate, roots |
//! | `pending/` | the key of an enrolment whose answer has not come yet |
//! | `enrolment.json` | name, pool, brokers, as the enrolment said them |
//! | `session.json` | resume token and pace of the last session (only the owner may read it) |
//! | `policy.json` | the pool's policy as last told |
//! | `announcements.json` | what `muster-agent announce` said |

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use muster_core::model::{HostId, HostName, PoolName, TrustDomain};
use muster_runtime::{
    explain::explain,
    files::{self, FileError, SECRET_MODE},
    identity::IdentityFiles,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The largest of these files is a policy of 64 checks and URLs: far below this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The data folder.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
}

/// What the enrolment said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Enrolment {
    /// Name of the host.
    pub name: HostName,
    /// Its id.
    pub host_id: HostId,
    /// Its pool at that time.
    pub pool: PoolName,
    /// Its fleet.
    pub trust_domain: TrustDomain,
    /// The broker that it enrolled at.
    pub brokers: Vec<String>,
    /// When its certificate ends.
    pub not_after: Timestamp,
}

/// What the last session left behind.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LastSession {
    /// To be presented in the next Hello. A secret.
    pub resume_token: Vec<u8>,
    /// How long the broker believes this host after a beat.
    pub lease: Option<Duration>,
    /// Brokers as the last Welcome named them; empty for those of the configuration.
    pub endpoints: Vec<Arc<str>>,
}

impl DataDir {
    /// The folder at `root`, whether it exists or not.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Key, certificate and roots.
    #[must_use]
    pub fn identity(&self) -> IdentityFiles {
        IdentityFiles::new(self.root.join("identity"))
    }

    /// The key of an enrolment that is under way.
    #[must_use]
    pub fn pending(&self) -> IdentityFiles {
        IdentityFiles::new(self.root.join("pending"))
    }

    /// Makes sure that the folder exists and can be written.
    ///
    /// # Errors
    /// If not.
    pub fn prepare(&self) -> Result<(), FileError> {
        files::create_private_directory(&self.root)?;
        let probe = self.root.join(".writable");
        files::write_atomic(&probe, b"", SECRET_MODE)?;
        // It has served; if it stays it harms nothing.
        let _ = fs::remove_file(probe);
        Ok(())
    }

    /// What the enrolment said.
    #[must_use]
    pub fn enrolment(&self) -> Option<Enrolment> {
        self.read(ENROLMENT)
    }

    /// What the last session left behind.
    #[must_use]
    pub fn last_session(&self) -> Option<LastSession> {
        self.read(SESSION)
    }

    /// A file of this folder. One that is damaged counts as missing: all of them can be had again,
    /// and a host must not stay away for the sake of a cache.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self, name: FileName) -> Option<T> {
        let path = self.root.join(name.0);
        let text = match files::read_text(&path, MAX_FILE_BYTES) {
            Ok(text) => text,
            Err(error) => {
                if !error.is_not_found() {
                    tracing::warn!(error = explain(&error), "a file cannot be read");
                }
                return None;
            }
        };
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a damaged file is left out");
                None
            }
        }
    }

    /// Replaces a file of this folder for good.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write<T: Serialize>(&self, name: FileName, value: &T) -> Result<(), FileError> {
        files::create_private_directory(&self.root)?;
        let path = self.root.join(name.0);
        let text = serde_json::to_vec_pretty(value).map_err(|source| FileError::Io {
            action: "write",
            path: path.clone(),
            source: source.into(),
        })?;
        files::write_atomic(&path, &text, SECRET_MODE)
    }

    /// Forgets what belonged to an earlier enrolment.
    pub fn forget_session(&self) {
        for name in [SESSION, POLICY, ANNOUNCEMENTS] {
            let path = self.root.join(name.0);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %path.display(), %error, "cannot be removed");
                }
                _ => {}
            }
        }
    }
}

/// Name of a file in the data folder.
#[derive(Clone, Copy, Debug)]
pub struct FileName(&'static str);

/// What the enrolment said.
pub const ENROLMENT: FileName = FileName("enrolment.json");
/// What the last session left behind.
pub const SESSION: FileName = FileName("session.json");
/// The pool's policy as last told.
pub const POLICY: FileName = FileName("policy.json");
/// What was announced.
pub const ANNOUNCEMENTS: FileName = FileName("announcements.json");

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_counts_as_missing() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(folder.path().join("deep/data"));
        assert!(data.last_session().is_none());
        let session = LastSession {
            resume_token: vec![1, 2, 3],
            lease: Some(Duration::from_secs(35)),
            endpoints: vec!["b:1".into()],
        };
        data.write(SESSION, &session).unwrap();
        assert!(data.last_session() == Some(session));
        // The resume token is a secret.
        let file = fs::metadata(data.path().join("session.json")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        fs::write(data.path().join("session.json"), "{\"resume").unwrap();
        assert!(data.last_session().is_none());
        data.forget_session();
        assert!(!data.path().join("session.json").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        assert!(DataDir::new("/proc/nowhere").prepare().is_err());
        let folder = tempfile::tempdir().unwrap();
        DataDir::new(folder.path().join("new")).prepare().unwrap();
    }
}
