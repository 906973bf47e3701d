//! Is the host there? Judged first, from the link alone.
//!
//! ```text
//! NeverSeen --report--> Heard --2 beats silent or stream ended--> (suspect) --lease over--> Lost
//!     Loaded --report--> Heard          ^------- beat, report ----------'                    |
//!       '--window over--> Lost          '---------------------- report ----------------------'
//! ```
//! Suspect is not a state but a reading of `Heard` at an instant: a verdict can never rest on a
//! flag that somebody forgot to sweep.

use super::{AbsentWhy, Facts, Link, Power, imposed::Hold};
use crate::model::{Confidence, Leave, Mono, Now, PoolPolicy};

/// What a judgement needs beside the facts.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The judged instant.
    pub now: Now,
    /// Policy of the host's pool.
    pub policy: &'a PoolPolicy,
    /// End of the restart window, while it is open.
    pub window_ends: Option<Mono>,
    /// The broker's own clock tick is late: answers are the last known ones.
    pub broker_late: bool,
}

/// How well the broker knows that the host is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Beats arrive.
    Confirmed,
    /// Doubtful, still believed.
    Suspect(SuspectWhy),
    /// Known from before this broker's start, not heard yet.
    Unverified,
    /// Not there.
    Absent(AbsentWhy),
}

/// Why a host is suspect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SuspectWhy {
    /// The stream ended without a goodbye.
    StreamEnded,
    /// Two beats are missing.
    Silent,
    /// The agent said that it restarts.
    AgentRestarting,
    /// The broker itself is late.
    BrokerLate,
    /// Its lease is over, and it is believed on because many fell silent at once.
    MassLoss,
}

impl Presence {
    /// The confidence that front ends are told.
    #[must_use]
    pub const fn confidence(self) -> Confidence {
        match self {
            Self::Confirmed => Confidence::Confirmed,
            Self::Suspect(_) => Confidence::Suspect,
            Self::Unverified => Confidence::Unverified,
            Self::Absent(_) => Confidence::Absent,
        }
    }

    /// Stable code of why it is not Confirmed.
    #[must_use]
    pub const fn why(self) -> &'static str {
        match self {
            Self::Confirmed => "",
            Self::Suspect(SuspectWhy::StreamEnded) => "STREAM_ENDED",
            Self::Suspect(SuspectWhy::Silent) => "SILENT",
            Self::Suspect(SuspectWhy::AgentRestarting) => "AGENT_RESTARTING",
            Self::Suspect(SuspectWhy::BrokerLate) => "BROKER_LATE",
            Self::Suspect(SuspectWhy::MassLoss) => "MASS_LOSS",
            Self::Unverified => "RESTART_WINDOW",
            Self::Absent(AbsentWhy::NeverSeen) => "NEVER_SEEN",
            Self::Absent(AbsentWhy::LeaseOver) => "LEASE_OVER",
            Self::Absent(AbsentWhy::ProbeRefused) => "PROBE_REFUSED",
            Self::Absent(AbsentWhy::NotBackAfterRestart) => "NOT_BACK_AFTER_RESTART",
        }
    }

    /// Absent, on whatever evidence.
    #[must_use]
    pub const fn is_absent(self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

/// Judges the presence of a host at the context's instant.
#[must_use]
pub fn presence(facts: &Facts, context: &Context<'_>) -> Presence {
    let now = context.now.mono;
    match facts.link {
        Link::NeverSeen => Presence::Absent(AbsentWhy::NeverSeen),
        Link::Loaded { .. } => match loaded_until(&facts.link, context) {
            Some(ends) if now < ends => Presence::Unverified,
            _ if facts.imposed.hold_at(now).is_some() => Presence::Suspect(SuspectWhy::MassLoss),
            _ => Presence::Absent(AbsentWhy::NotBackAfterRestart),
        },
        Link::Lost { why, .. } => Presence::Absent(why),
        Link::Heard(heard) => {
            if now >= heard.lease_ends() {
                if facts.imposed.hold_at(now).is_some() {
                    Presence::Suspect(SuspectWhy::MassLoss)
                } else {
                    Presence::Absent(AbsentWhy::LeaseOver)
                }
            } else if heard.ended.is_some() {
                let restarting = matches!(
                    facts.power,
                    Power::Leaving {
                        how: Leave::AgentRestart,
                        ..
                    }
                );
                Presence::Suspect(if restarting {
                    SuspectWhy::AgentRestarting
                } else {
                    SuspectWhy::StreamEnded
                })
            } else if now >= heard.confirmed_until() {
                Presence::Suspect(SuspectWhy::Silent)
            } else if context.broker_late {
                Presence::Suspect(SuspectWhy::BrokerLate)
            } else {
                Presence::Confirmed
            }
        }
    }
}

/// The hold that alone keeps the host from being absent, if it does.
pub(super) fn hold_in_force<'a>(facts: &'a Facts, context: &Context<'_>) -> Option<&'a Hold> {
    (presence(facts, context) == Presence::Suspect(SuspectWhy::MassLoss))
        .then(|| facts.imposed.hold_at(context.now.mono))
        .flatten()
}

/// When a host's silence counts as a loss: what it was believed for is over, any hold included.
/// None while it is believed, and for a host that never was.
pub(super) fn lost_since(facts: &Facts, context: &Context<'_>) -> Option<(AbsentWhy, Mono)> {
    let now = context.now.mono;
    if facts.imposed.hold_at(now).is_some() {
        return None;
    }
    let (why, ends) = match facts.link {
        Link::Heard(heard) => (AbsentWhy::LeaseOver, heard.lease_ends()),
        Link::Loaded { .. } => (
            AbsentWhy::NotBackAfterRestart,
            loaded_until(&facts.link, context).unwrap_or(now),
        ),
        Link::NeverSeen | Link::Lost { .. } => return None,
    };
    let held_until = facts.imposed.hold.as_ref().map(|hold| hold.until);
    let ends = ends.max(held_until.unwrap_or(ends));
    (now >= ends).then_some((why, ends))
}

/// Until when a host known from before the start is believed without a word.
pub(super) fn loaded_until(link: &Link, context: &Context<'_>) -> Option<Mono> {
    match *link {
        Link::Loaded {
            lease_ends: Some(ends),
        } => Some(ends),
        Link::Loaded { lease_ends: None } => context.window_ends,
        Link::NeverSeen | Link::Heard(_) | Link::Lost { .. } => None,
    }
}

impl AbsentWhy {
    /// What the conviction is called.
    pub(super) fn code(self) -> crate::model::ReasonCode {
        use crate::model::ReasonCode;
        match self {
            Self::NeverSeen => ReasonCode::NEVER_SEEN,
            Self::LeaseOver => ReasonCode::LEASE_OVER,
            Self::ProbeRefused => ReasonCode::PROBE_REFUSED,
            Self::NotBackAfterRestart => ReasonCode::NOT_BACK_AFTER_RESTART,
        }
    }

    pub(super) fn message(self) -> &'static str {
        match self {
            Self::NeverSeen => "enrolled, and has never reported",
            Self::LeaseOver => "silent for longer than its lease",
            Self::ProbeRefused => "silent, and its session listener refuses connections",
            Self::NotBackAfterRestart => "did not report since the broker's restart",
        }
    }
}
