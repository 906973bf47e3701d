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

/// Every name in the file at `path` with its line, in lower case. Blocks for one small file.
#[must_use]
pub fn names(path: &Path) -> Vec<(String, usize)> {
    let text = read(path).unwrap_or_default();
    let mut names = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut words = without_comment(line).split_whitespace();
        if words
            .next()
            .is_some_and(|word| word.parse::<IpAddr>().is_ok())
        {
            names.extend(words.map(|name| (name.to_ascii_lowercase(), at + 1)));
        }
    }
    names
}

fn read(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    fs::File::open(path)
        .ok()?
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn without_comment(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// The first entry for `host` in the file at `path`. Blocks for one small file.
#[must_use]
pub fn entry(path: &Path, host: &str) -> Option<Entry> {
    let text = read(path)?;
    for (at, line) in text.lines().enumerate() {
        let line = without_comment(line);
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
        let named = names(&path);
        assert_eq!(named[0], ("localhost".to_owned(), 1));
        assert_eq!(named[2], ("blocked.example.org".to_owned(), 4));
        assert_eq!(named.len(), 3);
        assert_eq!(entry(Path::new("/nonexistent"), "x"), None);
    }
}
