//! The checked border between the contract and the domain.
//!
//! What goes out is a plain `From`. What comes in is a `TryFrom` that bounds and cleans: names and
//! ids must be right as they are, and counts within their limits, or the message is refused with
//! the field's name; text for people is cleaned and cut. An enum value that this version does not
//! know is never an error and never healthy: see [`Word`].

mod check;
mod host;
mod policy;
mod time;
mod verdict;
mod words;

#[cfg(test)]
mod tests;

use std::{fmt::Display, sync::Arc};

pub use host::{MAX_ADDRESSES, MAX_LISTENERS, MAX_RESUME_TOKEN_BYTES, cloud, power};
pub use policy::{MIN_CHECK_INTERVAL, host_policy};
pub use time::{MAX_DURATION, duration, instant, millis, optional_instant, timestamp};
pub use words::{Word, outcome};

/// Bytes of an id that somebody else made: boots, instances, attempts, revisions. A UUID has 36.
const MAX_ID_BYTES: usize = 128;
/// Bytes of a version.
const MAX_VERSION_BYTES: usize = 64;

/// A message that breaks the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BorderError {
    /// Path of the field, such as `checks[3].name`.
    pub field: String,
    /// What is wrong with it and what is allowed.
    pub problem: String,
}

impl BorderError {
    /// The field is wrong.
    #[must_use]
    pub fn new(field: &str, problem: impl Display) -> Self {
        Self {
            field: field.to_owned(),
            problem: problem.to_string(),
        }
    }

    /// The same, seen from the message that holds it in `field`.
    #[must_use]
    pub fn inside(self, field: &str) -> Self {
        Self {
            field: format!("{field}.{}", self.field),
            problem: self.problem,
        }
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }
}

/// Converts the elements of a list of at most `max`, and names the one that is wrong.
fn all<T, U>(field: &str, max: usize, list: Vec<T>) -> Result<Vec<U>, BorderError>
where
    U: TryFrom<T, Error = BorderError>,
{
    if list.len() > max {
        let problem = format!("has {} elements; at most {max} are allowed", list.len());
        return Err(BorderError::new(field, problem));
    }
    list.into_iter()
        .enumerate()
        .map(|(at, item)| {
            U::try_from(item).map_err(|error| error.inside(&format!("{field}[{at}]")))
        })
        .collect()
}

/// An id of others: kept as it is or refused, because a cut id would be another one.
fn id(field: &str, text: &str) -> Result<Arc<str>, BorderError> {
    if text.len() > MAX_ID_BYTES {
        let problem = format!(
            "has {} bytes; at most {MAX_ID_BYTES} are allowed",
            text.len()
        );
        return Err(BorderError::new(field, problem));
    }
    if let Some(found) = text.chars().find(|found| !found.is_ascii_graphic()) {
        let problem = format!("has {found:?}; allowed are printable ASCII characters, no spaces");
        return Err(BorderError::new(field, problem));
    }
    Ok(text.into())
}

fn required_id(field: &str, text: &str) -> Result<Arc<str>, BorderError> {
    if text.is_empty() {
        return Err(BorderError::missing(field));
    }
    id(field, text)
}

/// Conversions by value for those by reference.
macro_rules! by_value {
    ($($core:ty => $wire:ty),* $(,)?) => {
        $(impl From<$core> for $wire {
            fn from(value: $core) -> Self {
                (&value).into()
            }
        })*
    };
}
use by_value;
