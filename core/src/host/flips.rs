//! How a host's checks flipped, read out of its journal.
//!
//! The journal has an entry for every change of the set of reasons, and a check that does not pass
//! is a reason, so nothing more needs to be kept. What an entry says of a check that it does not
//! name depends on the entry:
//!
//! | entry | a check that it names | one that it does not name |
//! |---|---|---|
//! | the host is absent or said goodbye | none is named | not known: as before |
//! | it is starting or not settled | as named | not known: as before |
//! | otherwise | as named | passes |
//!
//! A check that is fatal nowhere may not have run yet when a host is settled: if it does not pass
//! within [`FIRST_RESULT_WITHIN`] of that, it is taken to have been so all the time.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use serde::Serialize;

use crate::model::{Confidence, Reason, ReasonCode, Transition};

/// Flips of one check that are told, the newest: a screen's worth.
pub const FLIPS_MAX: usize = 10;
/// Longest time from settled until a check that is not fatal has a first result: two default
/// intervals and a timeout.
const FIRST_RESULT_WITHIN: Duration = Duration::from_secs(70);

/// How a check stands, as far as a journal tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckStanding {
    /// Nothing against it: it passes or does not apply.
    Pass,
    /// Worth a look.
    Warn,
    /// Broken.
    Fail,
    /// Could not be told.
    Unknown,
}

impl CheckStanding {
    /// The word as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// One change of how a check stands.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Flip {
    /// When, by the broker's clock.
    pub at: Timestamp,
    /// Before; none for a first result.
    pub from: Option<CheckStanding>,
    /// After.
    pub to: CheckStanding,
    /// What the check said; empty where it passes.
    pub message: String,
}

/// The flips of each check, newest first, at most [`FLIPS_MAX`] of each. `journal` is a part of a
/// host's journal up to now, oldest entry first.
#[must_use]
pub fn flips(journal: &[Transition]) -> BTreeMap<String, Vec<Flip>> {
    let mut reader = Reader {
        // Of a journal whose beginning is gone, the first entry only says how things stood.
        from_enrolment: journal.first().is_none_or(|first| first.from.is_none()),
        ..Reader::default()
    };
    for entry in journal {
        reader.read(entry);
    }
    let told = reader.checks.into_iter().map(|(name, check)| {
        let newest = check.flips.into_iter().rev().take(FLIPS_MAX);
        (name, newest.collect::<Vec<_>>())
    });
    told.filter(|(_, flips)| !flips.is_empty()).collect()
}

#[derive(Default)]
struct Reader {
    checks: BTreeMap<String, Known>,
    from_enrolment: bool,
    begun: bool,
    /// When the host was settled, since it was last away.
    settled_at: Option<Timestamp>,
    was_settled_before: bool,
}

/// What has been read of one check.
#[derive(Default)]
struct Known {
    standing: Option<CheckStanding>,
    flips: Vec<Flip>,
}

impl Reader {
    fn read(&mut self, entry: &Transition) {
        self.was_settled_before |= self.is_past_first_results(entry.at);
        let tells_nothing = entry.confidence == Confidence::Absent
            || has(
                entry,
                &[
                    ReasonCode::LEAVING_POWEROFF,
                    ReasonCode::LEAVING_REBOOT,
                    ReasonCode::LEAVING_SUSPEND,
                    ReasonCode::AGENT_STOPPED,
                ],
            );
        if tells_nothing {
            self.settled_at = None;
            return;
        }
        if !self.begun && !self.from_enrolment {
            self.seed(entry);
            return;
        }
        self.begun = true;
        for reason in &entry.reasons {
            if let Some(said) = said(reason) {
                self.take(reason, said, entry.at);
            }
        }
        if has(entry, &[ReasonCode::STARTING, ReasonCode::NOT_SETTLED]) {
            self.settled_at = None;
            return;
        }
        self.settled_at.get_or_insert(entry.at);
        for (name, check) in &mut self.checks {
            let named = entry
                .reasons
                .iter()
                .any(|reason| reason.subject == *name && said(reason).is_some());
            if !named && check.standing.is_some_and(|at| at != CheckStanding::Pass) {
                check.flip(CheckStanding::Pass, entry.at, "");
            }
        }
    }

    fn seed(&mut self, entry: &Transition) {
        self.begun = true;
        self.was_settled_before = true;
        for reason in &entry.reasons {
            if let Some(said) = said(reason) {
                let check = self.checks.entry(reason.subject.clone()).or_default();
                check.standing = Some(said.after(None));
            }
        }
    }

    fn is_past_first_results(&self, at: Timestamp) -> bool {
        self.settled_at
            .is_some_and(|settled| at.duration_since(settled).unsigned_abs() > FIRST_RESULT_WITHIN)
    }

    /// An entry names the check.
    fn take(&mut self, reason: &Reason, said: Said, at: Timestamp) {
        let early = !self.is_past_first_results(at);
        let settled_at = self.settled_at;
        let never_away = self.was_settled_before;
        let check = self.checks.entry(reason.subject.clone()).or_default();
        // It seemed to pass because it had not run yet.
        if early
            && let Some(last) = check.flips.last()
            && last.to == CheckStanding::Pass
            && settled_at == Some(last.at)
        {
            check.standing = last.from;
            check.flips.pop();
        }
        if check.standing.is_none() && (never_away || !early) {
            check.standing = Some(CheckStanding::Pass);
        }
        let stands = said.after(check.standing);
        if check.standing != Some(stands) {
            check.flip(stands, at, &reason.message);
        }
    }
}

impl Known {
    fn flip(&mut self, to: CheckStanding, at: Timestamp, message: &str) {
        let flip = Flip {
            at,
            from: self.standing,
            to,
            message: message.to_owned(),
        };
        self.standing = Some(to);
        self.flips.push(flip);
    }
}

/// What a reason says of the check that it is about.
#[derive(Clone, Copy)]
enum Said {
    Stands(CheckStanding),
    /// It fails or cannot be told, and is only reported.
    DoesNotPass,
}

impl Said {
    fn after(self, before: Option<CheckStanding>) -> CheckStanding {
        match (self, before) {
            (Self::Stands(standing), _) => standing,
            (Self::DoesNotPass, Some(CheckStanding::Unknown)) => CheckStanding::Unknown,
            (
                Self::DoesNotPass,
                Some(CheckStanding::Pass | CheckStanding::Warn | CheckStanding::Fail) | None,
            ) => CheckStanding::Fail,
        }
    }
}

fn said(reason: &Reason) -> Option<Said> {
    let table = [
        (ReasonCode::CHECK_WARN, Said::Stands(CheckStanding::Warn)),
        (ReasonCode::CHECK_FAILED, Said::Stands(CheckStanding::Fail)),
        (
            ReasonCode::FATAL_CHECK_FAILED,
            Said::Stands(CheckStanding::Fail),
        ),
        (
            ReasonCode::CHECK_UNKNOWN,
            Said::Stands(CheckStanding::Unknown),
        ),
        (
            ReasonCode::FATAL_CHECK_UNKNOWN,
            Said::Stands(CheckStanding::Unknown),
        ),
        (ReasonCode::CHECK_REPORTED, Said::DoesNotPass),
    ];
    let found = table.into_iter().find(|(code, _)| *code == reason.code);
    found.map(|(_, said)| said)
}

fn has(entry: &Transition, codes: &[ReasonCode]) -> bool {
    entry
        .reasons
        .iter()
        .any(|reason| codes.contains(&reason.code))
}
