//! Names and identities, each a type of its own.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing there.
    #[error("the {what} is empty")]
    Empty {
        /// What should have been named.
        what: &'static str,
    },
    /// Too long.
    #[error("the {what} has {len} characters; at most {max} are allowed")]
    TooLong {
        /// What was named.
        what: &'static str,
        /// Characters there are.
        len: usize,
        /// Characters allowed.
        max: usize,
    },
    /// A character that is not allowed, or not there.
    #[error("the {what} has {found:?} at character {position}; allowed are {allowed}")]
    Character {
        /// What was named.
        what: &'static str,
        /// The character.
        found: char,
        /// Where, counted from 1.
        position: usize,
        /// What is allowed, in words.
        allowed: &'static str,
    },
}

const HOST_ALLOWED: &str = "a-z, 0-9, and inside the name also '.' and '-'";
const CHECK_ALLOWED: &str = "a-z, 0-9, and inside the name also '_', '.' and '-'";

fn check(
    text: &str,
    what: &'static str,
    max: usize,
    inside: &[char],
    allowed: &'static str,
) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    let len = text.chars().count();
    if len > max {
        return Err(NameError::TooLong { what, len, max });
    }
    for (at, found) in text.chars().enumerate() {
        let plain = found.is_ascii_lowercase() || found.is_ascii_digit();
        let edge = at == 0 || at + 1 == len;
        if !(plain || !edge && inside.contains(&found)) {
            return Err(NameError::Character {
                what,
                found,
                position: at + 1,
                allowed,
            });
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $inside:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] says which character or length is wrong and what is allowed.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check(text, $what, $max, &$inside, $allowed)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name!(
    /// Name of a host, chosen at enrolment and unique in the fleet:
    /// `[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?`.
    HostName, "host name", 253, ['.', '-'], HOST_ALLOWED
);
name!(
    /// Name of a pool, formed as host names are. The pool `default` always exists.
    PoolName, "pool name", 253, ['.', '-'], HOST_ALLOWED
);
name!(
    /// Name of a check, unique on its host: as host names, with `_` too, at most 64 characters.
    CheckName, "check name", 64, ['_', '.', '-'], CHECK_ALLOWED
);

impl PoolName {
    /// The pool `default`.
    #[must_use]
    pub fn default_pool() -> Self {
        Self("default".into())
    }
}

/// Random id of an enrolled host. It is in the certificate with the name, so that a machine
/// removed and its successor of the same name are told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(Uuid);

impl HostId {
    /// The id made of these random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// The id's bytes, as the store keys hosts by.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for HostId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(Self)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Order of sessions of one host: first the broker's stored incarnation, then a counter within
/// it. No store write is needed for a session, and words of an older epoch are told apart.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(u64);

impl Epoch {
    /// The `counter`th session of the broker's start number `incarnation`.
    #[must_use]
    pub const fn new(incarnation: u32, counter: u32) -> Self {
        Self(((incarnation as u64) << 32) | counter as u64)
    }

    /// The epoch as one number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What an agent shows to go on as the one that was spoken to before: random, one per session. A
/// secret between both, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ResumeToken([u8; 16]);

impl ResumeToken {
    /// The token made of these random bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, for Welcome.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

/// The name of a fleet's root of trust: `muster-` and eight hex digits, fixed at the first start.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain made of four random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 4]) -> Self {
        Self(format!("muster-{:08x}", u32::from_be_bytes(bytes)).into())
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        check(text, "trust domain", 63, &['-'], "a-z, 0-9 and '-'")?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What the holder of a certificate may be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A session host's agent.
    Host,
    /// A gateway, load balancer or portal.
    Frontend,
    /// Somebody who may look.
    Viewer,
    /// Somebody who may act.
    Operator,
    /// The broker itself.
    Broker,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Host,
        Self::Frontend,
        Self::Viewer,
        Self::Operator,
        Self::Broker,
    ];

    /// The role as it stands in a certificate.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Frontend => "frontend",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Broker => "broker",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_follow_the_pattern() {
        for good in ["a", "0", "vdi-01", "vdi-01.example.org", &"a".repeat(253)] {
            assert_eq!(HostName::new(good).unwrap().as_str(), good);
        }
        let wrong = [
            ("", "the host name is empty"),
            ("A", "the host name has 'A' at character 1"),
            ("-a", "the host name has '-' at character 1"),
            ("a-", "the host name has '-' at character 2"),
            ("a_b", "the host name has '_' at character 2"),
            ("a/../b", "the host name has '/' at character 2"),
            ("a\u{1b}[31m", "the host name has '\\u{1b}' at character 2"),
        ];
        for (text, says) in wrong {
            let error = HostName::new(text).unwrap_err().to_string();
            assert!(error.starts_with(says), "{text:?} gave: {error}");
        }
        assert_eq!(
            HostName::new(&"a".repeat(300)).unwrap_err().to_string(),
            "the host name has 300 characters; at most 253 are allowed"
        );
    }

    #[test]
    fn a_later_incarnation_is_a_higher_epoch_whatever_its_counter() {
        assert!(Epoch::new(2, 0) > Epoch::new(1, u32::MAX));
        assert!(Epoch::new(1, 2) > Epoch::new(1, 1));
    }
}
