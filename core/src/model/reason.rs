//! Reasons: why a host has its status, worst first, each with what mends it.

use std::{borrow::Cow, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Remedy;

/// Stable code of a reason. An open set: a reader keeps and shows a code it does not know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReasonCode(Cow<'static, str>);

/// What is known of a code.
#[derive(Clone, Copy, Debug)]
pub struct ReasonInfo {
    /// The code.
    pub code: &'static str,
    /// What it means, as the documentation has it.
    pub meaning: &'static str,
    /// What mends it, where it is the same for every host.
    pub remedy: Option<&'static str>,
}

macro_rules! reasons {
    ($($name:ident: $meaning:literal $(=> $remedy:literal)?;)*) => {
        impl ReasonCode {
            $(#[doc = $meaning] pub const $name: Self = Self(Cow::Borrowed(stringify!($name)));)*

            /// All codes of this version, worst first.
            pub const ALL: &[ReasonInfo] = &[$(ReasonInfo {
                code: stringify!($name),
                meaning: $meaning,
                remedy: reasons!(@remedy $($remedy)?),
            },)*];
        }
    };
    (@remedy) => { None };
    (@remedy $remedy:literal) => { Some($remedy) };
}

reasons! {
    BANNED: "An operator banned the host."
        => "If the ban was an error, remove the host and enrol it again with a new token.";
    AWAITING_APPROVAL: "The host enrolled and an operator must approve it."
        => "Approve the host, or remove it.";
    LEAVING_POWEROFF: "The host announced that it powers off."
        => "Turn on the machine.";
    LEAVING_REBOOT: "The host announced that it reboots."
        => "Wait until the machine is back.";
    LEAVING_SUSPEND: "The host announced that it suspends or hibernates."
        => "Wake the machine.";
    REBOOT_OVERDUE: "The host announced a reboot and is not back within the announced time."
        => "Look at the machine's console: it may hang in its boot.";
    UPGRADING: "An upgrade is between its switch and its commit."
        => "Wait: an upgrade ends by its deadline, in success or in Upgrade Failed.";
    UPGRADE_TIMED_OUT: "An upgrade did not end within its deadline, or the host fell silent during it."
        => "Look at the agent's log: journalctl -u muster-agent";
    NEVER_SEEN: "The host enrolled and has never reported."
        => "Start the agent on the host: systemctl enable --now muster-agent";
    LEASE_OVER: "The host has been silent for longer than its lease."
        => "See whether the machine is on and reaches the broker; then the agent's log: journalctl -u muster-agent";
    PROBE_REFUSED: "The host fell silent and its session listener refused the broker's connections."
        => "See whether the machine is on.";
    NOT_BACK_AFTER_RESTART: "The broker restarted and the host did not report within the restart window."
        => "See whether the machine is on and reaches the broker; then the agent's log: journalctl -u muster-agent";
    AGENT_STOPPED: "The agent was stopped; the machine may be up, but nobody checks it."
        => "Start the agent on the host: systemctl start muster-agent";
    NOT_SETTLED: "Not every fatal check has finished a run since the host came up, enrolled, or was lost."
        => "Wait for the checks to finish; if they do not, look at the agent's log: journalctl -u muster-agent";
    FATAL_CHECK_FAILED: "A check that is fatal in this pool fails.";
    FATAL_CHECK_UNKNOWN: "A check that is fatal in this pool has no usable result.";
    UPGRADE_FAILED: "The last upgrade failed; the host runs the version it had before."
        => "Upgrade again once the cause is mended; the agent's log names it: journalctl -u muster-agent";
    CHECK_FAILED: "A check that is not fatal in this pool fails.";
    CHECK_UNKNOWN: "A check that is not fatal in this pool has no usable result.";
    IDENTITY_CONFLICT: "Two machines use this host's identity."
        => "Find the clone, and enrol it as a host of its own.";
    DRAINED: "An operator or a rollout drains the host: no new sessions."
        => "Lift the drain when the work is done.";
    MASS_LOSS: "The host's lease is over, and so many fell silent at once that the broker's own side is the likelier cause: it is believed for ten minutes at most."
        => "Look at the network between the broker and these hosts; `muster-broker hold end` ends the hold at once.";
    OUTSIDE_VIEW: "Front ends could not connect to the host within the last minutes."
        => "See whether the way from the front ends to the host's listener is open.";
    HELD_DOWN: "The host was lost several times within half an hour: no new sessions until it is steady."
        => "Look for what takes the host down again and again: `muster-broker history` has the times.";
    SESSION_LIMIT: "The host has as many sessions as its pool allows."
        => "Use another host, or raise max_sessions of the pool.";
    SESSION_COUNT_UNKNOWN: "The pool limits sessions and the host does not know how many it has.";
    STARTING: "The host is connected and has not reported all fatal checks yet."
        => "Wait for the first full report.";
    UPGRADE_PENDING: "An upgrade is being prepared; the host works as before.";
    CHECK_WARN: "A check warns; the status does not change.";
    CHECK_REPORTED: "A check that is only reported in this pool fails; the status does not change.";
}

impl ReasonCode {
    /// The code of that text.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match Self::ALL.iter().find(|info| info.code == text) {
            Some(info) => Self(Cow::Borrowed(info.code)),
            None => Self(Cow::Owned(super::clean_text(text, 64))),
        }
    }

    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What this version knows of the code.
    #[must_use]
    pub fn info(&self) -> Option<&'static ReasonInfo> {
        Self::ALL.iter().find(|info| info.code == self.0)
    }

    /// Place in the order of reasons: lower is worse. Unknown codes come last.
    #[must_use]
    pub fn rank(&self) -> usize {
        Self::ALL
            .iter()
            .position(|info| info.code == self.0)
            .unwrap_or(Self::ALL.len())
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One reason for a status or an answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reason {
    /// Stable code.
    pub code: ReasonCode,
    /// What it is about where the code alone does not say it: a check, a drain's owner.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// One sentence for a person.
    pub message: String,
    /// When it began to hold.
    pub since: Timestamp,
    /// What was observed, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// What mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

impl Reason {
    /// A reason with the code's own remedy.
    #[must_use]
    pub fn new(code: ReasonCode, message: impl Into<String>, since: Timestamp) -> Self {
        let remedy = code.info().and_then(|info| info.remedy).map(Remedy::text);
        Self {
            code,
            subject: String::new(),
            message: message.into(),
            since,
            evidence: Vec::new(),
            remedy,
        }
    }

    /// What makes two reasons the same one: a changed message alone is no transition.
    #[must_use]
    pub fn key(&self) -> (&ReasonCode, &str) {
        (&self.code, &self.subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_newer_version_is_kept_and_comes_last() {
        let newer = ReasonCode::from_text("GPU_LOST");
        assert_eq!(newer.as_str(), "GPU_LOST");
        assert!(newer.rank() > ReasonCode::CHECK_REPORTED.rank());
        assert_eq!(ReasonCode::from_text("LEASE_OVER"), ReasonCode::LEASE_OVER);
        assert!(ReasonCode::BANNED.rank() < ReasonCode::LEASE_OVER.rank());
    }
}
