//! Where in a TOML text an error is: line, column, and the path of the key.

use std::{ops::Range, path::Path};

use muster_core::model::clean_text;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{ConfigError, MAX_SHOWN};

/// The error with its place.
pub(super) fn explain(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let file = file.to_owned();
    let span = error.span().unwrap_or(0..0);
    let (line, column) = line_and_column(text, span.start);
    let problem = clean_text(error.message(), 4 * MAX_SHOWN);
    let Ok(document) = DeTable::parse(text) else {
        return ConfigError::Syntax {
            file,
            line,
            column,
            problem,
        };
    };
    let mut path = path_of(document.get_ref(), &span);
    match unknown_field(error.message()) {
        Some((key, allowed)) => {
            // The place is that of the key itself; what is wanted is its table.
            if path.last().is_some_and(|last| last == key) {
                path.pop();
            }
            ConfigError::UnknownKey {
                file,
                line,
                key: clean_text(key, MAX_SHOWN),
                table: clean_text(&path.join("."), MAX_SHOWN),
                advice: advice(key, &allowed),
            }
        }
        None => ConfigError::Value {
            file,
            line: Some(line),
            key: clean_text(&path.join("."), MAX_SHOWN),
            problem,
        },
    }
}

/// Line of the dotted `key`, from 1, if it stands in the text.
pub(super) fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let (found, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
        if parts.peek().is_none() {
            return Some(line_and_column(text, found.span().start).0);
        }
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return None,
        }
    }
    None
}

fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (line, before[start..].chars().count() + 1)
}

/// Keys on the way to what lies at `span`. Elements of arrays are counted from 1.
fn path_of(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    let mut best = (usize::MAX, Vec::new());
    in_table(table, span, &mut Vec::new(), &mut best);
    best.1
}

/// The smallest thing that holds `span` is the one that is meant; a table written with a header
/// spans that header alone, so every branch is looked at.
type Best = (usize, Vec<String>);

fn in_table(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>, best: &mut Best) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        offer(key.span(), span, path, best);
        in_value(value, span, path, best);
        path.pop();
    }
}

fn in_value(
    value: &Spanned<DeValue<'_>>,
    span: &Range<usize>,
    path: &mut Vec<String>,
    best: &mut Best,
) {
    offer(value.span(), span, path, best);
    match value.get_ref() {
        DeValue::Table(inner) => in_table(inner, span, path, best),
        DeValue::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                path.push((at + 1).to_string());
                in_value(item, span, path, best);
                path.pop();
            }
        }
        _ => {}
    }
}

fn offer(place: Range<usize>, span: &Range<usize>, path: &[String], best: &mut Best) {
    let holds = place.start <= span.start && span.end <= place.end;
    // At equal size the deeper one is the nearer one.
    if holds && place.len() <= best.0 {
        *best = (place.len(), path.to_vec());
    }
}

/// The key and the allowed keys in serde's message about an unknown field.
fn unknown_field(message: &str) -> Option<(&str, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    // The key may hold anything, the expected names are of our own making.
    let (key, expected) = rest.rsplit_once("`, ")?;
    let (key, expected) = match key.split_once("`, expected ") {
        Some((key, _)) => (key, &rest[key.len() + 1..]),
        None => (key, expected),
    };
    let allowed = expected
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    Some((key, allowed))
}

fn advice(key: &str, allowed: &[String]) -> String {
    if allowed.is_empty() {
        return "; no key is allowed there".to_owned();
    }
    let all = allowed.join(", ");
    match nearest(key, allowed) {
        Some(nearest) => format!("; did you mean `{nearest}`? allowed: {all}"),
        None => format!("; allowed: {all}"),
    }
}

fn nearest<'a>(key: &str, allowed: &'a [String]) -> Option<&'a str> {
    let wanted: String = key.to_ascii_lowercase().replace('-', "_");
    // A third of the letters may differ, two always may: `rol` is `role`, `zzz` is nothing.
    let most = (wanted.len() / 3).max(2);
    allowed
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, name), name))
        .filter(|(distance, name)| *distance <= most && *distance < name.len())
        .min()
        .map(|(_, name)| name.as_str())
}
