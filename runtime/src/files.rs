//! Files that survive a crash, and secrets that nobody else may read.
//!
//! A write goes to a new file beside its target, is synced, and takes the target's place by a
//! rename that is synced too: a reader sees the old content or the new, never a part.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Mode of a file that only its owner may read.
pub const SECRET_MODE: u32 = 0o600;
/// Mode of a file that everybody may read.
pub const PUBLIC_MODE: u32 = 0o644;

/// A file that could not be read or written, or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was to be done: read, write, create.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Not a file as small as it should be.
    #[error("{} is larger than the {limit} bytes that are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes allowed.
        limit: u64,
    },
    /// Not text.
    #[error("{} is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// A secret that others may read.
    #[error(
        "{} may be read or changed by others than its owner (mode {mode:04o}); \
         see who had access, then: chmod 600 {}", path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl FileError {
    /// The file is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Makes `directory` and its parents; what is new, only the owner may enter.
///
/// # Errors
/// If that is not possible.
pub fn create_private_directory(directory: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("create", directory))
}

/// Replaces the content of `path` at once and for good; its mode is `mode` before the first byte.
///
/// # Errors
/// If any step fails; `path` is as it was then.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = beside(path);
    let written = write_new(&temporary, content, mode)
        .map_err(failed("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(failed("write", path)));
    if written.is_err() {
        // The write has failed already, and that is what is told.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    let directory = parent(path);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", directory))
}

/// Text of a file of at most `limit` bytes.
///
/// # Errors
/// If it cannot be read, is larger, or is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let file = File::open(path).map_err(failed("read", path))?;
    read_open(&file, path, limit)
}

/// Text of a secret file of at most `limit` bytes.
///
/// # Errors
/// As [`read_text`], and if anybody but its owner may read or change the file.
pub fn read_secret(path: &Path, limit: u64) -> Result<String, FileError> {
    let file = File::open(path).map_err(failed("read", path))?;
    // The open file is asked, not the path: what is checked is what is read.
    let mode = file.metadata().map_err(failed("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_open(&file, path, limit)
}

fn read_open(file: &File, path: &Path, limit: u64) -> Result<String, FileError> {
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(failed("read", path))?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    String::from_utf8(content).map_err(|_| FileError::NotText {
        path: path.to_owned(),
    })
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // What has this name is of a process that died here with the number that is ours now, as
    // every first process of a container has the same.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The process's umask may have taken bits away.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A path in the same directory that no other living process or thread uses.
pub(crate) fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}.{count}.tmp", std::process::id()));
    parent(path).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::explain;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        write_atomic(&path, b"a longer first content", PUBLIC_MODE).unwrap();
        write_atomic(&path, b"second", SECRET_MODE).unwrap();
        assert_eq!(read_secret(&path, 6).unwrap(), "second");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_crash_left_behind_blocks_no_later_write() {
        let folder = tempfile::tempdir().unwrap();
        let temporary = folder.path().join(".key.pem.1.0.tmp");
        fs::write(&temporary, "half of a k").unwrap();
        write_new(&temporary, b"key", SECRET_MODE).unwrap();
        assert_eq!(read_secret(&temporary, 3).unwrap(), "key");
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let error = write_atomic(&path, b"new", SECRET_MODE).unwrap_err();
        assert!(explain(&error).starts_with("cannot write "), "{error}");
        assert!(path.join("inside").is_dir());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused_with_the_command_that_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        for mode in [0o640, 0o604, 0o622, 0o644] {
            write_atomic(&path, b"secret", mode).unwrap();
            let error = read_secret(&path, 100).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn large_missing_and_binary_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(read_text(&path, 10).unwrap_err().is_not_found());
        write_atomic(&path, &[b'x'; 11], PUBLIC_MODE).unwrap();
        assert!(matches!(
            read_text(&path, 10),
            Err(FileError::TooLarge { limit: 10, .. })
        ));
        write_atomic(&path, &[0xff, 0xfe], PUBLIC_MODE).unwrap();
        assert!(matches!(
            read_text(&path, 10),
            Err(FileError::NotText { .. })
        ));
    }
}
