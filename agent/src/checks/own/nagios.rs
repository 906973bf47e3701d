//! What a plugin says by the protocol of Nagios: the exit code, the first line, performance data.

use muster_core::model::{Outcome, SessionCounts, UnknownCause};

/// Lines of a plugin that are shown beside the first.
const MAX_LINES: usize = 8;

/// What a plugin said.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The first line, without performance data.
    pub(super) first: String,
    /// The other lines, and the performance data as it was.
    pub(super) more: Vec<String>,
}

const DATA: &str = "perfdata: ";

impl Said {
    /// The sessions in the performance data: `active`, `disconnected` and `pending`. What is not
    /// there, or is no number, is unknown.
    pub(super) fn sessions(&self) -> SessionCounts {
        let data = self.more.iter().find_map(|line| line.strip_prefix(DATA));
        let count = |wanted: &str| {
            let mut measured = data.unwrap_or_default().split_whitespace();
            measured.find_map(|item| {
                let (label, value) = item.split_once('=')?;
                let value = value.split(';').next()?;
                let is_it = label.trim_matches('\'') == wanted;
                is_it.then(|| value.parse().ok()).flatten()
            })
        };
        SessionCounts {
            active: count("active"),
            disconnected: count("disconnected"),
            pending: count("pending"),
        }
    }
}

/// Takes a plugin's output apart.
pub(super) fn read(output: &str) -> Said {
    let mut said = Said {
        first: String::new(),
        more: Vec::new(),
    };
    let mut data = Vec::new();
    for (at, line) in output.lines().enumerate() {
        let (text, measured) = line.split_once('|').unwrap_or((line, ""));
        let (text, measured) = (text.trim(), measured.trim());
        if at == 0 {
            text.clone_into(&mut said.first);
        } else if !text.is_empty() && said.more.len() < MAX_LINES {
            said.more.push(text.to_owned());
        }
        if !measured.is_empty() {
            data.push(measured);
        }
    }
    if !data.is_empty() {
        said.more.push(format!("{DATA}{}", data.join(" ")));
    }
    said
}

/// What an exit code comes to; none for one that the protocol does not have.
pub(super) fn outcome(code: i32) -> Option<Outcome> {
    match code {
        0 => Some(Outcome::Pass),
        1 => Some(Outcome::Warn),
        2 => Some(Outcome::Fail),
        3 => Some(Outcome::Unknown(UnknownCause::CannotRun)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_taken_apart_as_the_guidelines_say() {
        let said =
            read("DISK OK - free: 3326 MB | /=2643MB;5948\n/ 15272 MB\n/boot 68 MB|/boot=68MB\n");
        assert_eq!(said.first, "DISK OK - free: 3326 MB");
        assert_eq!(
            said.more,
            [
                "/ 15272 MB",
                "/boot 68 MB",
                "perfdata: /=2643MB;5948 /boot=68MB"
            ]
        );
        assert_eq!(
            read(""),
            Said {
                first: String::new(),
                more: Vec::new()
            }
        );
        assert_eq!(read(&"x\n".repeat(1000)).more.len(), MAX_LINES);
    }

    #[test]
    fn sessions_are_those_that_the_data_says_and_nothing_is_made_up() {
        let of = |output: &str| {
            let counts = read(output).sessions();
            (counts.active, counts.disconnected, counts.pending)
        };
        assert_eq!(
            of("12 sessions | active=10;20;30;0 'disconnected'=2"),
            (Some(10), Some(2), None)
        );
        assert_eq!(
            of("1 | active=1\nmore | pending=4"),
            (Some(1), None, Some(4))
        );
        assert_eq!(of("nobody | active=U disconnected=-1"), (None, None, None));
        assert_eq!(of("active=3"), (None, None, None));
    }

    #[test]
    fn only_four_exit_codes_mean_something() {
        assert_eq!(outcome(0), Some(Outcome::Pass));
        assert_eq!(outcome(2), Some(Outcome::Fail));
        assert_eq!(outcome(4), None);
        assert_eq!(outcome(127), None);
    }
}
