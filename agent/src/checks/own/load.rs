//! Reads `checks.d`: only what root (or who runs the agent) wrote, and nobody else can write.
//!
//! One bad file is an error for all: a check that silently is not there would be missed only on
//! the day when it should have spoken.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use muster_core::model::{CheckName, MAX_CHECKS};
use muster_runtime::config::{self, ConfigError};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Common, KINDS, OwnCheck, OwnChecks, Read, Wrong};
use crate::{checks, config::MIN_INTERVAL, platform::plugin::own_user};

/// Definitions are written by people.
const MAX_BYTES: u64 = 1 << 20;
/// Files in the folder, editors' leftovers included.
const MAX_FILES: usize = 256;
/// Labels of one check: they are shown with each finding.
const MAX_LABELS: usize = 8;

/// Why own checks cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file says something that is not understood.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system said no.
    #[error("own checks: cannot read {}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Somebody else could have written it.
    #[error(
        "own checks: {} belongs to user {owner} and has mode {mode:04o}: it must belong to \
         {allowed} and not be writable by group or others, because it says which programs run; \
         look at what it says, then: chown {allowed} {} && chmod go-w {}",
        path.display(), path.display(), path.display()
    )]
    Exposed {
        /// The file or folder.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// Its permission bits.
        mode: u32,
        /// Who may own it.
        allowed: String,
    },
    /// Too much of it.
    #[error("own checks: {} {problem}", path.display())]
    TooMuch {
        /// The file or folder.
        path: PathBuf,
        /// What is too much.
        problem: String,
    },
}

/// Reads all definitions in `folder`, in the order of the files' names. No folder, no checks.
///
/// # Errors
/// [`LoadError`] names the file, and the line where it is about one.
pub fn load(folder: &Path) -> Result<OwnChecks, LoadError> {
    let failed = |source| LoadError::Io {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OwnChecks::default()),
        Err(error) => return Err(failed(error)),
    };
    // Who can write in the folder can put another file in the place of one.
    trusted(folder, &fs::metadata(folder).map_err(failed)?)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !is_hidden
            && path
                .extension()
                .is_some_and(|extension| extension == "toml")
        {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(too_much(folder, format!("has over {MAX_FILES} files")));
        }
    }
    files.sort();
    let mut own = OwnChecks::default();
    for path in files {
        let text = read(&path)?;
        add(&path, &text, &mut own)?;
    }
    Ok(own)
}

fn too_much(path: &Path, problem: String) -> LoadError {
    LoadError::TooMuch {
        path: path.to_owned(),
        problem,
    }
}

fn trusted(path: &Path, metadata: &fs::Metadata) -> Result<(), LoadError> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let me = own_user();
    if (owner == 0 || owner == me) && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(LoadError::Exposed {
        path: path.to_owned(),
        owner,
        mode,
        allowed: if me == 0 {
            "root".to_owned()
        } else {
            me.to_string()
        },
    })
}

/// The open file is asked who may write it, not the path: what is checked is what is read.
fn read(path: &Path) -> Result<String, LoadError> {
    let failed = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    trusted(path, &file.metadata().map_err(failed)?)?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(too_much(path, format!("is larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

/// Only to have the file's other mistakes told as those of every configuration file are.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Skeleton {
    #[serde(default, rename = "check")]
    _checks: Vec<serde::de::IgnoredAny>,
}

fn add(path: &Path, text: &str, own: &mut OwnChecks) -> Result<(), LoadError> {
    let _skeleton: Skeleton = config::parse(path, text)?;
    let document = DeTable::parse(text).map_err(|error| config::explain(path, text, &error))?;
    let Some(checks) = document.get_ref().get("check") else {
        return Ok(());
    };
    let DeValue::Array(tables) = checks.get_ref() else {
        return Ok(());
    };
    for (at, table) in tables.iter().enumerate() {
        let place = Place {
            path,
            text,
            at: at + 1,
            table,
        };
        let found = place.read()?;
        place.sound(&found, own)?;
        own.0.push(found.own);
    }
    Ok(())
}

/// One `[[check]]` of a file.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
    /// Its number, from 1.
    at: usize,
    table: &'a Spanned<DeValue<'a>>,
}

impl Place<'_> {
    fn read(&self) -> Result<Read, LoadError> {
        let kind = self.value("kind").and_then(|kind| kind.as_str());
        let known = KINDS.iter().find(|known| Some(known.name) == kind);
        let Some(known) = known else {
            let found = kind.map_or_else(
                || "has no kind".to_owned(),
                |kind| format!("there is no kind {kind:?}{}", nearest(kind)),
            );
            let names: Vec<_> = super::kinds().collect();
            let problem = format!("{found}; allowed: {}", names.join(", "));
            return Err(self.error("kind", problem));
        };
        (known.read)(self.table.clone())
            .map_err(|error| config::explain(self.path, self.text, &error).into())
    }

    /// What no type can say.
    fn sound(&self, found: &Read, own: &OwnChecks) -> Result<(), LoadError> {
        let Common { name, pace, labels } = &found.own.common;
        let not_allowed = |(key, value, allowed): Wrong| {
            self.error(key, format!("{value} is not allowed; allowed: {allowed}"))
        };
        if let Some(problem) = taken(name, own) {
            return Err(self.error("name", problem));
        }
        if own.0.len() + checks::names().len() >= MAX_CHECKS {
            let problem = format!(
                "is one too many: a host has at most {MAX_CHECKS} checks, the {} of every agent \
                 among them",
                checks::names().len()
            );
            return Err(self.error("name", problem));
        }
        if let Some((key, value, allowed)) = pace.wrong(MIN_INTERVAL) {
            return Err(not_allowed((key, value, allowed.to_owned())));
        }
        let is_short = |text: &str| text.len() <= 64;
        if labels.len() > MAX_LABELS
            || !labels
                .iter()
                .all(|(key, value)| is_short(key) && is_short(value))
        {
            let allowed = format!("{MAX_LABELS} labels, keys and values of up to 64 bytes");
            return Err(not_allowed(("labels", "this".to_owned(), allowed)));
        }
        found
            .wrong
            .clone()
            .map_or(Ok(()), |wrong| Err(not_allowed(wrong)))
    }

    fn value(&self, key: &str) -> Option<&DeValue<'_>> {
        let (_, value) = self.entry(key)?;
        Some(value.get_ref())
    }

    fn entry(&self, key: &str) -> Option<(usize, &Spanned<DeValue<'_>>)> {
        let DeValue::Table(table) = self.table.get_ref() else {
            return None;
        };
        let found = table.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((found.0.span().start, found.1))
    }

    fn error(&self, key: &str, problem: String) -> LoadError {
        let start = self
            .entry(key)
            .map_or_else(|| self.table.span().start, |(start, _)| start);
        let before = self.text.get(..start).unwrap_or_default();
        LoadError::Config(ConfigError::Value {
            file: self.path.to_owned(),
            line: Some(before.matches('\n').count() + 1),
            key: format!("check.{}.{key}", self.at),
            problem,
        })
    }
}

fn taken(name: &CheckName, own: &OwnChecks) -> Option<String> {
    if checks::names().contains(&name.as_str()) {
        return Some(format!(
            "{name} is a check that every agent has; give yours another name"
        ));
    }
    let earlier = |known: &&OwnCheck| known.common.name == *name;
    own.iter()
        .find(earlier)
        .map(|_| format!("there is a check {name} already; names are unique on a host"))
}

fn nearest(kind: &str) -> String {
    super::kinds()
        .map(|known| (strsim::damerau_levenshtein(kind, known), known))
        .min()
        // Further away it is a guess that misleads.
        .filter(|(distance, known)| *distance <= known.len() / 2)
        .map_or_else(String::new, |(_, known)| {
            format!(", did you mean {known:?}?")
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
        folder
    }

    fn error(text: &str) -> String {
        let folder = folder(&[("a.toml", text)]);
        let error = load(folder.path()).unwrap_err();
        muster_runtime::explain::explain(&error)
    }

    const DISK: &str = "[[check]]\nname = 'root_disk'\nkind = 'disk'\npath = '/'\n";

    #[test]
    fn files_are_read_in_order_and_others_are_left_alone() {
        let second = DISK.replace("root_disk", "b");
        let folder = folder(&[
            ("b.toml", &second),
            ("a.toml", DISK),
            (".a.toml.swp", "?"),
            ("README", "?"),
        ]);
        let own = load(folder.path()).unwrap();
        let names: Vec<_> = own.iter().map(|own| own.common.name.as_str()).collect();
        assert_eq!(names, ["root_disk", "b"]);
        assert!(
            load(Path::new("/nonexistent"))
                .unwrap()
                .iter()
                .next()
                .is_none()
        );
    }

    #[test]
    fn what_others_can_write_is_refused_by_name_and_mode() {
        let folder = folder(&[("a.toml", DISK)]);
        let path = folder.path().join("a.toml");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        for mode in [0o666, 0o664, 0o646] {
            set(&path, mode);
            let error = load(folder.path()).unwrap_err().to_string();
            let says = format!("mode {mode:04o}");
            assert!(error.contains("a.toml") && error.contains(&says), "{error}");
            assert!(error.contains("chmod go-w"), "{error}");
        }
        set(&path, 0o644);
        set(folder.path(), 0o777);
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("mode 0777"), "{error}");
        set(folder.path(), 0o755);
        assert!(load(folder.path()).is_ok());
        if own_user() == 0 {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            let error = load(folder.path()).unwrap_err().to_string();
            assert!(error.contains("belongs to user 65534"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_told_with_file_line_and_the_nearest_key() {
        let table = [
            (
                format!("{DISK}intervall = '1m'\n"),
                &["a.toml:5", "`intervall`", "`interval`", "min_free"][..],
            ),
            (
                format!("{DISK}\n[[chek]]\n"),
                &["a.toml:6", "`chek`", "`check`"],
            ),
            (
                DISK.replace("'disk'", "'dsik'"),
                &[
                    "a.toml:3",
                    "check.1.kind",
                    "\"dsik\"",
                    "did you mean \"disk\"",
                    "file_fresh",
                ],
            ),
            (
                DISK.replace("kind = 'disk'\n", ""),
                &["a.toml:1", "has no kind", "exec"],
            ),
            (
                DISK.replace("path = '/'\n", ""),
                &["a.toml:1", "missing field `path`"],
            ),
            (DISK.replace("root_disk", "Root"), &["a.toml:2", "'R'"]),
            (
                format!("{DISK}{DISK}"),
                &["a.toml:6", "check.2.name", "already"],
            ),
            (
                DISK.replace("root_disk", "urls"),
                &["a.toml:2", "every agent has"],
            ),
            (
                format!("{DISK}interval = '1ms'\n"),
                &["a.toml:5", "check.1.interval", "at least 100ms"],
            ),
            (
                format!("{DISK}timeout = '0s'\n"),
                &["check.1.timeout", "more than 0"],
            ),
            (format!("{DISK}rise = 0\n"), &["check.1.rise", "at least 1"]),
            (
                DISK.replace("'/'", "'tmp'"),
                &["a.toml:4", "check.1.path", "absolute"],
            ),
            (
                format!("{DISK}labels = {{ a = '{}' }}", "x".repeat(65)),
                &["check.1.labels", "64 bytes"],
            ),
            ("check = 1".to_owned(), &["a.toml:1"]),
            ("[[check]".to_owned(), &["a.toml:1"]),
        ];
        for (text, says) in table {
            let error = error(&text);
            for part in says {
                assert!(error.contains(part), "{part} in: {error}\n{text}");
            }
        }
    }

    #[test]
    fn a_host_has_no_more_checks_than_a_report_carries() {
        let many: String = (0..MAX_CHECKS)
            .map(|at| DISK.replace("root_disk", &format!("disk_{at}")))
            .collect();
        assert!(error(&many).contains("at most 64 checks"));
    }

    #[test]
    fn arguments_of_plugins_never_show_in_debug() {
        let text =
            "[[check]]\nname = 'a'\nkind = 'exec'\ncommand = '/bin/true'\nargs = ['hunter2']";
        let folder = folder(&[("a.toml", text)]);
        let own = load(folder.path()).unwrap();
        assert!(!format!("{own:?}").contains("hunter2"));
    }
}
