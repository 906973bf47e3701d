//! What a host announces of itself: its power and its upgrades.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::version::{at_or_above, is_version};

/// How a host leaves.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leave {
    /// The machine powers off.
    Poweroff,
    /// The machine reboots.
    Reboot,
    /// The machine suspends or hibernates.
    Suspend,
    /// Only the agent stops.
    AgentStop,
    /// Only the agent restarts, and is back within seconds.
    AgentRestart,
}

impl Leave {
    /// The word for it in JSON and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Suspend => "suspend",
            Self::AgentStop => "agent_stop",
            Self::AgentRestart => "agent_restart",
        }
    }
}

/// A host's power as it says it, whole each time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum PowerAnnouncement {
    /// Up and staying: withdraws an earlier announcement.
    #[default]
    Running,
    /// On its way out.
    Leaving {
        /// How.
        how: Leave,
        /// Back within this time, as announced; none for the broker's default.
        back_within: Option<Duration>,
    },
}

/// Phases of an upgrade, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradePhase {
    /// Checking that the upgrade can be done.
    Preflight,
    /// Fetching the artefact.
    Download,
    /// Checking its signature and checksum.
    Verify,
    /// Waiting for sessions to end.
    Wait,
    /// Changing over.
    Switch,
    /// The new version runs and must prove itself.
    Probation,
    /// Done.
    Commit,
    /// Going back to the old version.
    Rollback,
}

impl UpgradePhase {
    /// Between switch and commit: the host is Upgrading.
    #[must_use]
    pub const fn is_switching(self) -> bool {
        match self {
            Self::Preflight | Self::Download | Self::Verify | Self::Wait | Self::Commit => false,
            Self::Switch | Self::Probation | Self::Rollback => true,
        }
    }

    /// The word for it in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Download => "download",
            Self::Verify => "verify",
            Self::Wait => "wait",
            Self::Switch => "switch",
            Self::Probation => "probation",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}

/// One attempt at an upgrade.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpgradeAttempt {
    /// Names the attempt; survives restarts and rollbacks.
    pub id: Arc<str>,
    /// Version before.
    pub from: Arc<str>,
    /// Version wanted.
    pub to: Arc<str>,
    /// How far it is, or where it failed.
    pub phase: UpgradePhase,
}

impl UpgradeAttempt {
    /// Is `version`, as a host reports it, the end of this attempt? Only a wanted version that is
    /// one, and above the one before, can be seen: words such as `security-2026-11` are not.
    #[must_use]
    pub fn is_seen_in(&self, version: &str) -> bool {
        is_version(&self.to) && !at_or_above(&self.from, &self.to) && at_or_above(version, &self.to)
    }
}

/// A host's upgrade as it says it, whole each time.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum UpgradeAnnouncement {
    /// Says nothing: forgetting an attempt does not end it.
    #[default]
    Silent,
    /// The attempt of this id is over by the word of the host's administrator.
    Cleared {
        /// Id of the attempt.
        id: Arc<str>,
    },
    /// Under way.
    InProgress {
        /// The attempt.
        attempt: UpgradeAttempt,
        /// Takes at most this long from now, as announced; none for the broker's default.
        within: Option<Duration>,
    },
    /// Failed.
    Failed {
        /// The attempt.
        attempt: UpgradeAttempt,
        /// What went wrong.
        error: String,
    },
}
