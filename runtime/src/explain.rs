//! Errors as people read them: with all their causes.

use std::error::Error;

/// Causes that are followed. Libraries nest five or six deep.
const MAX_DEPTH: usize = 16;

/// `error` and all its sources in one line, outermost first. What a source repeats of the text
/// so far is left out: many libraries print their source and offer it too.
#[must_use]
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    for _ in 0..MAX_DEPTH {
        let Some(cause) = next else { break };
        let words = cause.to_string();
        if !words.is_empty() && !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Layer {
        says: &'static str,
        source: io::Error,
    }

    #[test]
    fn the_whole_chain_is_told_without_repetition() {
        let with = |says| Layer {
            says,
            source: io::Error::other("disk full"),
        };
        assert_eq!(explain(&with("cannot write")), "cannot write: disk full");
        assert_eq!(explain(&with("oh: disk full")), "oh: disk full");
    }
}
