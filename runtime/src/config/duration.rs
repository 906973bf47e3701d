//! Durations as people write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const FORMS: &str = "\"500ms\", \"10s\", \"5m\", \"1h\" or \"30d\"";
/// Longest first; milliseconds each.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// A duration written as `500ms`, `10s`, `5m`, `1h`, `30d` or several of these, as in `1h30m`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct HumanDuration(pub Duration);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a duration; write it as {FORMS}")]
pub struct DurationError {
    found: String,
}

impl FromStr for HumanDuration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        milliseconds(text)
            .map(|total| Self(Duration::from_millis(total)))
            .ok_or_else(|| DurationError {
                found: muster_core::model::clean_text(text, 40),
            })
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text.trim();
    let mut total = 0_u64;
    // At least one part; each unit once, longest first, so that a slip is no surprise.
    let mut units = UNITS.as_slice();
    loop {
        let digits = rest.find(|found: char| !found.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest
            .find(|found: char| found.is_ascii_digit())
            .unwrap_or(rest.len());
        let at = units
            .iter()
            .position(|(unit, _)| *unit == &rest[..letters])?;
        total = total.checked_add(number.checked_mul(units[at].1)?)?;
        units = &units[at + 1..];
        rest = &rest[letters..];
        if rest.is_empty() {
            return Some(total);
        }
    }
}

impl fmt::Display for HumanDuration {
    /// In the longest unit that divides it; below a millisecond is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, size) = UNITS
            .into_iter()
            .find(|(_, size)| total != 0 && total % size == 0)
            .unwrap_or(("s", 1000));
        f.pad(&format!("{}{unit}", total / size))
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = HumanDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a duration such as {FORMS}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("10s", 10_000),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("30d", 2_592_000_000),
        ] {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.0, Duration::from_millis(millis));
            assert_eq!(duration.to_string(), text);
        }
        let mixed: HumanDuration = "1h30m".parse().unwrap();
        assert_eq!(mixed.to_string(), "90m");
        assert_eq!("0ms".parse::<HumanDuration>().unwrap().to_string(), "0s");
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "1.5s",
            "-1s",
            "10S",
            "10sec",
            "10s5",
            "10ss",
            "5m1h",
            "1s1s",
            "99999999999999999999s",
            "18446744073709551615d",
            "\u{661}s",
        ] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text:?}");
        }
        let error = "x".repeat(5000).parse::<HumanDuration>().unwrap_err();
        assert!(error.to_string().len() < 150);
    }
}
