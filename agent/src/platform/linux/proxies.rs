//! Proxy settings of the whole machine: the environment, files that set it, and apt.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::machine::read_small;

/// Files of one folder that are read: a system has a dozen.
const MAX_FILES: usize = 64;

/// A place that sends HTTP through a proxy, and does not except an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Catching {
    /// Where: `/etc/environment line 3`, or the agent's environment.
    pub place: String,
    /// What is set there, without its value, which may hold a password.
    pub setting: String,
    /// The line that makes the exception, and the file where it belongs.
    pub line: String,
    /// That file.
    pub file: String,
}

/// Places that would send requests for `address` to a proxy. `root` is `/` outside of tests. Blocks
/// for a few small files.
#[must_use]
pub fn catching(
    root: &Path,
    environment: &BTreeMap<String, String>,
    address: IpAddr,
) -> Vec<Catching> {
    let mut found = Vec::new();
    let own: Vec<_> = environment
        .iter()
        .map(|(key, value)| (0, key.clone(), value.clone()))
        .collect();
    found.extend(judge_variables(
        &own,
        address,
        |_| "the agent's environment".to_owned(),
        "/etc/environment",
        "",
    ));
    let mut files = vec![PathBuf::from("/etc/environment")];
    files.extend(folder(root, "/etc/profile.d", "sh"));
    for file in &files {
        let text = read_small(&below(root, file)).unwrap_or_default();
        let set: Vec<_> = (1..).zip(text.lines()).filter_map(assignment).collect();
        let name = file.display().to_string();
        let prefix = if name.ends_with(".sh") { "export " } else { "" };
        let place = |line| format!("{name} line {line}");
        found.extend(judge_variables(&set, address, place, &name, prefix));
    }
    found.extend(apt(root, address));
    found
}

fn judge_variables(
    set: &[(usize, String, String)],
    address: IpAddr,
    place: impl Fn(usize) -> String,
    file: &str,
    prefix: &str,
) -> Option<Catching> {
    // The last one wins, as in a shell.
    let last = |wanted: &[&str]| {
        let mut those = set.iter().rev();
        those.find(|(_, key, value)| wanted.contains(&key.as_str()) && !value.is_empty())
    };
    let (line, key, _) = last(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?;
    let except = last(&["no_proxy", "NO_PROXY"]).map_or("", |(_, _, value)| value.as_str());
    if is_excepted(except, address) {
        return None;
    }
    let comma = if except.is_empty() { "" } else { "," };
    Some(Catching {
        place: place(*line),
        setting: key.clone(),
        line: format!("{prefix}no_proxy={except}{comma}{address}"),
        file: file.to_owned(),
    })
}

/// `NAME=VALUE`, also exported and quoted.
fn assignment((number, line): (usize, &str)) -> Option<(usize, String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (key, value) = line.split_once('=')?;
    let value = value.trim().trim_matches(['"', '\'']);
    Some((number, key.trim().to_owned(), value.to_owned()))
}

/// Is `address` in this list of `no_proxy`? Addresses, networks, and `*` are understood.
fn is_excepted(list: &str, address: IpAddr) -> bool {
    let entries = list.split([',', ' ']).map(str::trim);
    entries.filter(|entry| !entry.is_empty()).any(|entry| {
        entry == "*"
            || entry.parse() == Ok(address)
            || entry
                .split_once('/')
                .is_some_and(|(net, bits)| contains(net, bits, address))
    })
}

fn contains(net: &str, bits: &str, address: IpAddr) -> bool {
    let (Ok(IpAddr::V4(net)), Ok(bits), IpAddr::V4(address)) =
        (net.parse(), bits.parse::<u32>(), address)
    else {
        return false;
    };
    let mask = u32::MAX
        .checked_shl(32_u32.saturating_sub(bits))
        .unwrap_or(0);
    net.to_bits() & mask == address.to_bits() & mask
}

/// `Acquire::http::Proxy "..."` without `Acquire::http::Proxy::ADDRESS "DIRECT"`.
fn apt(root: &Path, address: IpAddr) -> Option<Catching> {
    const KEY: &str = "acquire::http::proxy";
    let mut files = vec![PathBuf::from("/etc/apt/apt.conf")];
    files.extend(folder(root, "/etc/apt/apt.conf.d", ""));
    let mut proxy = None;
    for file in &files {
        let text = read_small(&below(root, file)).unwrap_or_default();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim().to_lowercase();
            let Some(rest) = line.strip_prefix(KEY) else {
                continue;
            };
            if let Some(rest) = rest.strip_prefix("::") {
                if rest.starts_with(&address.to_string()) && rest.contains("direct") {
                    return None;
                }
            } else {
                let value = rest.trim().trim_matches(['"', ';']);
                proxy = (!value.is_empty() && value != "direct" && value != "false")
                    .then(|| format!("{} line {number}", file.display()));
            }
        }
    }
    Some(Catching {
        place: proxy?,
        setting: "Acquire::http::Proxy".to_owned(),
        line: format!("Acquire::http::Proxy::{address} \"DIRECT\";"),
        file: "/etc/apt/apt.conf.d/99metadata".to_owned(),
    })
}

fn below(root: &Path, file: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").unwrap_or(file))
}

fn folder(root: &Path, folder: &str, ending: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(below(root, Path::new(folder)));
    let names = listed.into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<_> = names
        .map(|entry| Path::new(folder).join(entry.file_name()))
        .filter(|file| ending.is_empty() || file.extension().is_some_and(|it| it == ending))
        .take(MAX_FILES)
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 169, 254));

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn each_place_is_named_with_the_line_that_mends_it() {
        let root = root_with(&[
            (
                "etc/environment",
                "LANG=C\nhttp_proxy=http://u:secret@proxy:3128\nno_proxy=localhost\n",
            ),
            (
                "etc/profile.d/proxy.sh",
                "export ALL_PROXY='http://proxy'\n",
            ),
            (
                "etc/apt/apt.conf.d/01proxy",
                "Acquire::http::Proxy \"http://proxy:3128\";\n",
            ),
        ]);
        let found = catching(root.path(), &BTreeMap::new(), METADATA);
        let shown: Vec<_> = found.iter().map(|one| (&*one.place, &*one.line)).collect();
        assert_eq!(
            shown,
            [
                (
                    "/etc/environment line 2",
                    "no_proxy=localhost,169.254.169.254"
                ),
                (
                    "/etc/profile.d/proxy.sh line 1",
                    "export no_proxy=169.254.169.254"
                ),
                (
                    "/etc/apt/apt.conf.d/01proxy line 1",
                    "Acquire::http::Proxy::169.254.169.254 \"DIRECT\";"
                ),
            ]
        );
        assert!(!format!("{found:?}").contains("secret"));
        let own = BTreeMap::from([("HTTP_PROXY".to_owned(), "http://p".to_owned())]);
        let found = catching(Path::new("/nonexistent"), &own, METADATA);
        assert_eq!(found[0].place, "the agent's environment");
    }

    #[test]
    fn exceptions_are_understood_as_programs_do() {
        for list in [
            "*",
            "a,169.254.169.254",
            "10.0.0.0/8, 169.254.0.0/16",
            "0.0.0.0/0",
        ] {
            assert!(is_excepted(list, METADATA), "{list}");
        }
        for list in [
            "",
            "localhost",
            "169.254.169.25",
            "169.254.0.0/33x",
            "10.0.0.0/8",
        ] {
            assert!(!is_excepted(list, METADATA), "{list}");
        }
        let root = root_with(&[(
            "etc/apt/apt.conf",
            "Acquire::http::Proxy \"http://p\";\nAcquire::http::Proxy::169.254.169.254 \"DIRECT\";\n",
        )]);
        assert!(catching(root.path(), &BTreeMap::new(), METADATA).is_empty());
    }
}
