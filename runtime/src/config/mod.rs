//! Configuration files: TOML, read once, every error with its place and what is allowed.
//!
//! The types that are read use `#[serde(default, deny_unknown_fields)]`, without `flatten`: it
//! would hide unknown keys. Limits that concern several keys are checked by their owner, who
//! reports them with [`invalid_value`].

mod duration;
mod place;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use duration::{DurationError, HumanDuration};

use crate::files::{self, FileError};

/// A configuration is written by people.
const MAX_BYTES: u64 = 1024 * 1024;
/// An unknown key is shown so far: a whole paste must not fill the screen.
const MAX_SHOWN: usize = 80;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration: {0}")]
    File(
        #[from]
        #[source]
        FileError,
    ),
    /// The file is not TOML.
    #[error("{}:{line}:{column}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A key that does not exist, most often misspelt.
    #[error("{}:{line}: unknown key `{key}` {}{}", file.display(), in_table(table), advice)]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// Dotted path of the table that it stands in; empty at the top level.
        table: String,
        /// The allowed key that looks most like it, and all that are allowed.
        advice: String,
    },
    /// A value that is not allowed.
    #[error("{}{}: {}{problem}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default(), quoted(key))]
    Value {
        /// The file.
        file: PathBuf,
        /// Line, from 1, where the key stands in the file.
        line: Option<usize>,
        /// Dotted path of the key, as far as known.
        key: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

/// Reads `path`. A file that is not there is the default, unless it is `required`.
///
/// # Errors
/// [`ConfigError`] names file, line, key and what is allowed.
pub fn load<T>(path: &Path, required: bool) -> Result<T, ConfigError>
where
    T: DeserializeOwned + Default,
{
    match files::read_text(path, MAX_BYTES) {
        Ok(text) => parse(path, &text),
        Err(error) if error.is_not_found() && !required => Ok(T::default()),
        Err(error) => Err(error.into()),
    }
}

/// Reads the text of the file `path`.
///
/// # Errors
/// As [`load`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| explain(path, text, &error))
}

/// What TOML says of the text of the file `path`, with its place: for who reads parts of it alone.
#[must_use]
pub fn explain(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    place::explain(path, text, error)
}

/// The error for a value that its type allows and its owner does not: names file, line, key,
/// value and what is allowed. `key` is dotted, such as `liveness.interval`.
#[must_use]
pub fn invalid_value(path: &Path, key: &str, value: &str, allowed: &str) -> ConfigError {
    // Where the value is a default, there is no line to name.
    let line = files::read_text(path, MAX_BYTES)
        .ok()
        .and_then(|text| place::line_of_key(&text, key));
    ConfigError::Value {
        file: path.to_owned(),
        line,
        key: key.to_owned(),
        problem: format!("{value} is not allowed; allowed: {allowed}"),
    }
}

fn in_table(table: &str) -> String {
    if table.is_empty() {
        "at the top level".to_owned()
    } else {
        format!("in [{table}]")
    }
}

fn quoted(key: &str) -> String {
    if key.is_empty() {
        String::new()
    } else {
        format!("`{key}`: ")
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        data_dir: Option<PathBuf>,
        log: Log,
        liveness: Liveness,
        url: Vec<Url>,
        severity: BTreeMap<String, String>,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Log {
        #[default]
        Human,
        Json,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Liveness {
        interval: HumanDuration,
        lease_beats: u32,
    }

    impl Default for Liveness {
        fn default() -> Self {
            Self {
                interval: HumanDuration(Duration::from_secs(10)),
                lease_beats: 3,
            }
        }
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Url {
        url: String,
        #[serde(default)]
        role: String,
    }

    fn error(text: &str) -> String {
        parse::<Sample>(Path::new("broker.toml"), text)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_typo_is_answered_with_file_line_table_and_the_nearest_key() {
        assert_eq!(
            error("data_dir = '/x'\n\n[liveness]\n# why\nintervall = \"5s\"\n"),
            "broker.toml:5: unknown key `intervall` in [liveness]; did you mean `interval`? \
             allowed: interval, lease_beats"
        );
        assert_eq!(
            error("[livenes]\ninterval = \"5s\"\n"),
            "broker.toml:1: unknown key `livenes` at the top level; did you mean `liveness`? \
             allowed: data_dir, log, liveness, url, severity"
        );
        assert_eq!(
            error("[[url]]\nurl = 'a'\n[[url]]\nurl = 'b'\nrol = 'x'\n"),
            "broker.toml:5: unknown key `rol` in [url.2]; did you mean `role`? allowed: url, role"
        );
        assert_eq!(
            error("liveness.zzz = 1\n"),
            "broker.toml:1: unknown key `zzz` in [liveness]; allowed: interval, lease_beats"
        );
    }

    #[test]
    fn a_wrong_value_is_answered_with_its_key_and_what_is_allowed() {
        assert_eq!(
            error("[liveness]\n\ninterval = 10\n"),
            "broker.toml:3: `liveness.interval`: invalid type: integer `10`, expected a duration \
             such as \"500ms\", \"10s\", \"5m\", \"1h\" or \"30d\""
        );
        assert_eq!(
            error("[liveness]\ninterval = '10 parsecs'\n"),
            "broker.toml:2: `liveness.interval`: \"10 parsecs\" is not a duration; write it as \
             \"500ms\", \"10s\", \"5m\", \"1h\" or \"30d\""
        );
        assert_eq!(
            error("[liveness]\nlease_beats = -1\n"),
            "broker.toml:2: `liveness.lease_beats`: invalid value: integer `-1`, expected u32"
        );
        assert_eq!(
            error("\nlog = 'jsn'\n"),
            "broker.toml:2: `log`: unknown variant `jsn`, expected `human` or `json`"
        );
        assert_eq!(
            error("\n[[url]]\nrole = 'x'\n"),
            "broker.toml:2: `url.1`: missing field `url`"
        );
    }

    #[test]
    fn a_file_that_is_no_toml_is_answered_with_line_and_column() {
        let text = error("[liveness]\ninterval = \n");
        assert!(text.starts_with("broker.toml:2:12: "), "{text}");
        let text = error("a = 1\na = 2\n");
        assert!(text.starts_with("broker.toml:2:1: "), "{text}");
        assert!(text.contains("duplicate key"), "{text}");
        let text = error(&"x".repeat(5000));
        assert!(text.len() < 300, "{text}");
    }

    #[test]
    fn a_missing_file_is_the_default_unless_it_is_required() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.toml");
        assert_eq!(load::<Sample>(&path, false).unwrap(), Sample::default());
        let error = load::<Sample>(&path, true).unwrap_err();
        let text = crate::explain::explain(&error);
        assert!(text.contains("broker.toml: No such file"), "{text}");
    }

    #[test]
    fn an_invalid_value_is_found_in_the_file_or_said_to_be_a_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.toml");
        std::fs::write(&path, "[liveness]\nlease_beats = 4\ninterval = '1ms'\n").unwrap();
        let error = invalid_value(&path, "liveness.interval", "1ms", "at least 100ms");
        let text = error.to_string();
        let wanted = "b.toml:3: `liveness.interval`: 1ms is not allowed; allowed: at least 100ms";
        assert!(text.ends_with(wanted), "{text}");
        let error = invalid_value(&path, "liveness.lease_grace", "5s", "at most 1s");
        let text = error.to_string();
        let wanted = "b.toml: `liveness.lease_grace`: 5s is not allowed; allowed: at most 1s";
        assert!(text.ends_with(wanted), "{text}");
    }
}
