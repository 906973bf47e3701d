//! Amounts as people write them: `10%` of something, or bytes such as `512MiB`.

use serde::{Deserialize, de};

/// A share of the whole, or a number of bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Amount {
    /// Percent.
    Share(u8),
    /// Bytes.
    Bytes(u64),
}

impl Amount {
    /// In bytes, of a whole of `total`.
    pub(super) fn of(self, total: u64) -> u64 {
        match self {
            Self::Share(percent) => {
                let part = u128::from(total) * u128::from(percent) / 100;
                u64::try_from(part).unwrap_or(u64::MAX)
            }
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Share(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => f.write_str(&shown(*bytes)),
        }
    }
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Bytes in the largest unit of which there is one.
pub(super) fn shown(bytes: u64) -> String {
    let (unit, size) = UNITS
        .into_iter()
        .find(|(_, size)| bytes >= *size)
        .unwrap_or(("B", 1));
    let tenths = u128::from(bytes) * 10 / u128::from(size);
    if tenths % 10 == 0 || size == 1 {
        format!("{} {unit}", tenths / 10)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

fn parse(text: &str) -> Option<Amount> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.trim().parse().ok()?;
        return (percent <= 100).then_some(Amount::Share(percent));
    }
    let (unit, size) = UNITS.into_iter().find(|(unit, _)| text.ends_with(unit))?;
    let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
    number.checked_mul(size).map(Amount::Bytes)
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| {
            let shown = muster_core::model::clean_text(&text, 40);
            de::Error::custom(format!(
                "{shown:?} is no amount; write it as \"10%\", \"512MiB\", \"5GiB\" or \"1TiB\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_as_they_are_written() {
        assert_eq!(parse("10%"), Some(Amount::Share(10)));
        assert_eq!(parse("512MiB"), Some(Amount::Bytes(512 << 20)));
        assert_eq!(parse("5 GiB"), Some(Amount::Bytes(5 << 30)));
        for text in [
            "",
            "10",
            "%",
            "101%",
            "-1%",
            "5GB",
            "1.5GiB",
            "99999999999TiB",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(Amount::Share(10).of(u64::MAX), u64::MAX / 10);
        assert_eq!(shown(1536 << 20), "1.5 GiB");
        assert_eq!(shown(0), "0 B");
    }
}
