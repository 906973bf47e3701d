//! What the rules of the whole fleet impose on one host, and what it makes of it.
//!
//! A host is judged by its own facts; three rules need to see many hosts at once, and live in
//! [`fleet`](crate::fleet): the hold in a mass loss, the hold-down of a host that flaps, and what
//! front ends met. Each comes as a fact with an end of its own, so that a rule whose owner falls
//! silent ends by itself.

use std::sync::Arc;

use jiff::Timestamp;

use crate::model::Mono;

/// All that is imposed on a host; told whole each time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Imposed {
    /// It fell silent together with many others.
    pub hold: Option<Hold>,
    /// It came and went too often.
    pub held_down: Option<HeldDown>,
    /// Front ends could not connect to it.
    pub outside: Option<OutsideView>,
}

/// A host whose lease is over is believed on, because many fell silent at once: then the broker's
/// own side is the likelier culprit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Since when.
    pub since: Timestamp,
    /// The hold ends by itself.
    pub until: Mono,
    /// What is answered meanwhile.
    pub answers: HoldAnswers,
    /// What stands for the host, or against it: one sentence.
    pub evidence: Arc<str>,
}

/// What is answered about a held host once its lease is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldAnswers {
    /// As before: its listener answers, or too few of the pool are left to do without it.
    AsBefore,
    /// People may come back to their sessions; new ones go to hosts that are heard.
    ReconnectOnly,
}

/// No new sessions for a host that came and went, until it has been steady for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldDown {
    /// Since when.
    pub since: Timestamp,
    /// It ends by itself.
    pub until: Mono,
    /// Losses that count.
    pub losses: u32,
}

/// What front ends met when they followed our answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutsideView {
    /// Since when.
    pub since: Timestamp,
    /// It is forgotten by itself.
    pub until: Mono,
    /// The broker's own probe agrees: no new sessions.
    pub refuses_new: bool,
    /// What was met, by whom: one sentence each.
    pub evidence: Arc<[String]>,
}

impl Imposed {
    /// The hold, while it lasts.
    #[must_use]
    pub fn hold_at(&self, now: Mono) -> Option<&Hold> {
        self.hold.as_ref().filter(|hold| now < hold.until)
    }

    /// The hold-down, while it lasts.
    #[must_use]
    pub fn held_down_at(&self, now: Mono) -> Option<HeldDown> {
        self.held_down.filter(|held| now < held.until)
    }

    /// The outside view, while it is fresh.
    #[must_use]
    pub fn outside_at(&self, now: Mono) -> Option<&OutsideView> {
        self.outside.as_ref().filter(|view| now < view.until)
    }

    /// When each part ends by itself.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Mono> {
        [
            self.hold.as_ref().map(|hold| hold.until),
            self.held_down.map(|held| held.until),
            self.outside.as_ref().map(|view| view.until),
        ]
        .into_iter()
        .flatten()
    }

    /// Lets go of what is over; true if anything was.
    pub(super) fn expired(&self, now: Mono) -> Option<Self> {
        let kept = Self {
            hold: self.hold_at(now).cloned(),
            held_down: self.held_down_at(now),
            outside: self.outside_at(now).cloned(),
        };
        (kept != *self).then_some(kept)
    }
}
