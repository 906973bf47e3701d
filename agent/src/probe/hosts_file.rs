//! Entries of the hosts file: they win over DNS, and are forgotten there.

use std::{fs, io::Read as _, net::IpAddr, path::Path};

use muster_core::model::clean_text;

/// The file, unless a test has another.
pub const PATH: &str = "/etc/hosts";
/// Some block lists have a hundred thousand lines.
const MAX_BYTES: u64 = 8 << 20;
/// A line may name very many hosts.
const MAX_SHOWN: usize = 120;

/// An entry for a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Line, counted from 1.
    pub line: usize,
    /// Where it points.
    pub address: IpAddr,
    /// The line as it stands there, without a comment.
    pub text: String,
}

/// The first entry for `host` in the file at `path`. Blocks for one small file.
#[must_use]
pub fn entry(path: &Path, host: &str) -> Option<Entry> {
    let mut text = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .ok()?;
    let text = String::from_utf8_lossy(&text);
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else {
            continue;
        };
        if words.any(|name| name.eq_ignore_ascii_case(host)) {
            return Some(Entry {
                line: at + 1,
                address,
                text: clean_text(line, MAX_SHOWN),
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        let text = "127.0.0.1 localhost\n# 192.0.2.1 blocked.example.org\n\n\
                    0.0.0.0 other.example.org Blocked.example.org # since May\n";
        fs::write(&path, text).unwrap();
        let found = entry(&path, "blocked.example.org").unwrap();
        assert_eq!(
            found,
            Entry {
                line: 4,
                address: "0.0.0.0".parse().unwrap(),
                text: "0.0.0.0 other.example.org Blocked.example.org".to_owned(),
            }
        );
        assert_eq!(entry(&path, "free.example.org"), None);
        assert_eq!(entry(Path::new("/nonexistent"), "x"), None);
    }
}
