//! Names that stand behind a wildcard such as `*.blob.example.net`: those that this machine has
//! been seen to use.
//!
//! A wildcard cannot be connected to. What can be tried are names under it that are real here:
//! entries of the hosts file, which somebody made for this machine; hosts of the other required
//! URLs, and those that redirects pointed to; and names in files that this machine's own
//! configuration gives, such as the query log of its resolver or the settings of a program that
//! uses the service. Of a file only names under the wildcard are taken, nothing else is told.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::probe::hosts_file;

/// Names that are tried for one wildcard: a service has a handful of names that a host uses, and
/// what blocks one mostly blocks all.
pub(super) const MAX_NAMES: usize = 4;
/// Names met by redirects that are remembered.
const MAX_MET: usize = 64;
/// How much of a file's end is looked at: some thousand lines of a query log.
const TAIL_BYTES: u64 = 256 << 10;

/// A name under a wildcard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name {
    /// The host.
    pub(super) host: String,
    /// Where it was seen.
    pub(super) place: String,
}

/// What has been seen so far.
#[derive(Debug, Default)]
pub(super) struct Observed {
    files: Vec<PathBuf>,
    met: Mutex<VecDeque<String>>,
}

impl Observed {
    /// Looks into these files; `met` are hosts that are required by themselves.
    pub(super) fn new(files: Vec<PathBuf>, met: impl Iterator<Item = String>) -> Self {
        let observed = Self {
            files,
            met: Mutex::default(),
        };
        met.for_each(|host| observed.meet(&host));
        observed
    }

    /// A redirect pointed there.
    pub(super) fn meet(&self, host: &str) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        met.retain(|known| known != host);
        met.push_front(host.to_owned());
        met.truncate(MAX_MET);
    }

    /// Names under `suffix`, such as `blob.example.net`, what is most likely in the way first.
    /// Blocks for small files.
    pub(super) fn names(&self, suffix: &str, hosts: &Path) -> Vec<Name> {
        let mut names: Vec<Name> = Vec::new();
        let mut add = |host: String, place: String| {
            if names.len() < MAX_NAMES && names.iter().all(|known| known.host != host) {
                names.push(Name { host, place });
            }
        };
        for (host, line) in hosts_file::names(hosts) {
            if is_under(&host, suffix) {
                add(host, format!("{} line {line}", hosts_file::PATH));
            }
        }
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        for host in met.iter().filter(|host| is_under(host, suffix)) {
            add(host.clone(), "another URL or a redirect".to_owned());
        }
        drop(met);
        for file in &self.files {
            for host in names_in(&tail(file), suffix) {
                add(host, file.display().to_string());
            }
        }
        names
    }
}

fn is_under(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix)
        .and_then(|rest| rest.strip_suffix('.'))
        .is_some_and(|rest| !rest.is_empty() && rest.split('.').all(is_label))
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.len() <= 63 && !label.starts_with('-') && !label.ends_with('-')
}

/// The end of a file. One that is not there has no names: that is for its own check to tell.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut text = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Names under `suffix` in a text, the last first.
fn names_in(text: &str, suffix: &str) -> Vec<String> {
    let words = text.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.'));
    words
        .map(|word| word.trim_end_matches('.').to_ascii_lowercase())
        .filter(|word| is_under(word, suffix))
        .take(MAX_NAMES * 64)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_come_from_hosts_file_redirects_and_the_end_of_files() {
        let folder = tempfile::tempdir().unwrap();
        let (hosts, log) = (folder.path().join("hosts"), folder.path().join("log"));
        fs::write(
            &hosts,
            "127.0.0.1 localhost\n0.0.0.0 A.blob.example.net blob.example.net other.net\n",
        )
        .unwrap();
        let padding = "x.blob.example.net gone\n".repeat(20_000);
        let log_end = "query[A] b.blob.example.net. from 127.0.0.1\n\
                       url=https://c.d.blob.example.net:443/p notblob.example.net -.blob.example.net\n\
                       query[A] b.blob.example.net from 127.0.0.1\n";
        fs::write(&log, format!("first.blob.example.net\n{padding}{log_end}")).unwrap();
        let required = ["r.blob.example.net".to_owned(), "web.example".to_owned()];
        let files = vec![folder.path().join("missing"), log];
        let observed = Observed::new(files, required.into_iter());
        let found = observed.names("blob.example.net", &hosts);
        let shown: Vec<_> = found.iter().map(|name| name.host.as_str()).collect();
        assert_eq!(
            shown,
            [
                "a.blob.example.net",
                "r.blob.example.net",
                "b.blob.example.net",
                "c.d.blob.example.net"
            ]
        );
        assert_eq!(found[0].place, "/etc/hosts line 2");
        assert!(observed.names("example.org", &hosts).is_empty());
    }

    #[test]
    fn what_redirects_point_to_is_remembered_within_bounds() {
        let observed = Observed::default();
        for at in 0..200 {
            observed.meet(&format!("n{at}.example.net"));
        }
        let names = observed.names("example.net", Path::new("/nonexistent"));
        assert_eq!(names.len(), MAX_NAMES);
        assert_eq!(names[0].host, "n199.example.net");
        assert_eq!(observed.met.lock().unwrap().len(), MAX_MET);
    }
}
