//! Logs: to standard error, one event per line, for people or as JSON.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, fmt as format, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people; coloured where standard error is a terminal.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error(
        "the log filter {filter:?} is wrong; write a level (error, warn, info, debug, trace) \
         or a list such as `info,muster_broker=debug`"
    )]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody set it up before.
    #[error("logging is set up already")]
    Again(#[from] tracing_subscriber::util::TryInitError),
}

/// Not a log format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no log format; allowed: human, json")]
pub struct LogFormatError {
    found: String,
}

impl FromStr for LogFormat {
    type Err = LogFormatError;

    fn from_str(text: &str) -> Result<Self, LogFormatError> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(LogFormatError {
                found: muster_core::model::clean_text(other, 40),
            }),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// Starts logging for the whole process.
///
/// # Errors
/// If the filter is wrong, or logging was started before.
pub fn init(log_format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse_filter(filter)?;
    let layer = match log_format {
        LogFormat::Human => format::layer::<Registry>()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        LogFormat::Json => format::layer::<Registry>()
            .json()
            .flatten_event(true)
            .with_writer(io::stderr)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(())
}

fn parse_filter(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter {
        filter: muster_core::model::clean_text(filter, 120),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_formats_read_as_they_are_written() {
        for known in [LogFormat::Human, LogFormat::Json] {
            assert_eq!(known.to_string().parse(), Ok(known));
        }
        let error = "xml".parse::<LogFormat>().unwrap_err().to_string();
        assert_eq!(error, "\"xml\" is no log format; allowed: human, json");
    }

    #[test]
    fn a_wrong_filter_is_answered_with_what_is_allowed() {
        for good in ["info", "info,muster_broker=debug", "warn,h2=off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        let error = parse_filter("muster=loud").unwrap_err().to_string();
        assert!(error.contains("info,muster_broker=debug"), "{error}");
    }
}
