//! Order of versions as hosts report them.

use std::cmp::Ordering;

/// Is `version` at or above `wanted`?
///
/// Numbers between the separators `.`, `-`, `+`, `~`, `:` compare as numbers, other parts as text;
/// a part that is missing is below any other, but a pre-release (`1.2.0-rc1`) is below its
/// release. Good for semantic versions and for those of packages.
#[must_use]
pub fn at_or_above(version: &str, wanted: &str) -> bool {
    compare(version, wanted) != Ordering::Less
}

/// Does `text` begin as a version does: with a number, perhaps behind a `v`?
#[must_use]
pub(super) fn is_version(text: &str) -> bool {
    text.trim()
        .trim_start_matches('v')
        .starts_with(|first: char| first.is_ascii_digit())
}

fn compare(a: &str, b: &str) -> Ordering {
    let split = |text: &str| -> (Vec<Part>, Vec<Part>) {
        let text = text.trim().trim_start_matches('v');
        let text = text.split('+').next().unwrap_or_default();
        let (core, pre) = text.split_once('-').unwrap_or((text, ""));
        (parts(core), parts(pre))
    };
    let ((core_a, pre_a), (core_b, pre_b)) = (split(a), split(b));
    compare_parts(&core_a, &core_b).then_with(|| match (pre_a.is_empty(), pre_b.is_empty()) {
        (true, true) => Ordering::Equal,
        // A release is above its pre-releases.
        (true, false) => {
            if starts_with_letter(&pre_b) {
                Ordering::Greater
            } else {
                Ordering::Less
            }
        }
        (false, true) => {
            if starts_with_letter(&pre_a) {
                Ordering::Less
            } else {
                Ordering::Greater
            }
        }
        (false, false) => compare_parts(&pre_a, &pre_b),
    })
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Text(String),
    Number(u64),
}

fn starts_with_letter(parts: &[Part]) -> bool {
    matches!(parts.first(), Some(Part::Text(_)))
}

fn parts(text: &str) -> Vec<Part> {
    text.split(['.', '~', ':', '-'])
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .map_or_else(|_| Part::Text(part.to_owned()), Part::Number)
        })
        .collect()
}

fn compare_parts(a: &[Part], b: &[Part]) -> Ordering {
    let zero = Part::Number(0);
    for at in 0..a.len().max(b.len()) {
        let order = a.get(at).unwrap_or(&zero).cmp(b.get(at).unwrap_or(&zero));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_people_read_them() {
        let rising = [
            "0.9.0",
            "0.10.0-rc1",
            "0.10.0-rc2",
            "0.10.0",
            "0.10.1",
            "1.0",
            "1.0.0-2",
            "2",
        ];
        for (at, low) in rising.iter().enumerate() {
            for high in &rising[at + 1..] {
                assert!(at_or_above(high, low), "{high} >= {low}");
                assert!(!at_or_above(low, high), "{low} < {high}");
            }
            assert!(at_or_above(low, low));
        }
        assert!(at_or_above("v1.2.3+build5", "1.2.3"));
    }
}
