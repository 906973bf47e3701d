//! The one JSON shape of hosts, journals and changes: for the command line, and for whatever else
//! shows them. snake_case, RFC 3339 times, durations in milliseconds.

use jiff::Timestamp;
use muster_core::{
    host::{Drain, Flip},
    model::{
        CheckResult, CloudInstance, Outcome, PowerAnnouncement, Severity, UpgradeAnnouncement,
        Verdict,
    },
};
use muster_proto::{
    border::{self, BorderError, Word as _},
    v1,
};
use serde::Serialize;

/// A host as its administrators see it.
#[derive(Clone, Debug, Serialize)]
pub struct HostView {
    /// The answer for a new session, with all reasons.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// When it was enrolled.
    pub enrolled_at: Option<Timestamp>,
    /// Version of its agent.
    pub agent_version: String,
    /// Operating system.
    pub os: String,
    /// Addresses, as the host sees them.
    pub addresses: Vec<String>,
    /// Address of its session, as the broker sees it.
    pub peer_address: String,
    /// Which machine of a cloud it is; none where it told of none.
    pub cloud: Option<CloudInstance>,
    /// Its checks.
    pub checks: Vec<CheckView>,
    /// Drains in force.
    pub drains: Vec<Drain>,
    /// Power, as announced.
    pub power: PowerAnnouncement,
    /// Upgrade, as announced.
    pub upgrade: UpgradeAnnouncement,
    /// Its boot, opaque.
    pub boot_id: String,
    /// Policy that its agent applies.
    pub policy_revision: String,
    /// Last beat or report.
    pub last_beat_at: Option<Timestamp>,
}

/// A check with what the pool makes of it.
#[derive(Clone, Debug, Serialize)]
pub struct CheckView {
    /// What the agent reported.
    #[serde(flatten)]
    pub result: CheckResult,
    /// What a failure means in this pool.
    pub severity: Severity,
    /// Outcome as judged by the broker.
    pub judged_outcome: &'static str,
    /// When its last finished run ended.
    pub last_run_at: Option<Timestamp>,
    /// Since when it has had this outcome.
    pub since: Option<Timestamp>,
    /// How it changed, newest first; not in lists of hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<Flip>,
}

impl TryFrom<v1::HostDetail> for HostView {
    type Error = BorderError;

    fn try_from(detail: v1::HostDetail) -> Result<Self, BorderError> {
        Ok(Self {
            verdict: detail.verdict.unwrap_or_default().try_into()?,
            enrolled_at: border::optional_instant("enrolled_at", detail.enrolled_at)?,
            agent_version: detail.agent_version,
            os: detail.os,
            addresses: detail.addresses,
            peer_address: detail.peer_address,
            cloud: border::cloud(detail.cloud),
            checks: detail
                .checks
                .into_iter()
                .map(CheckView::try_from)
                .collect::<Result<_, _>>()?,
            drains: detail
                .drains
                .into_iter()
                .map(Drain::try_from)
                .collect::<Result<_, _>>()?,
            power: border::power(detail.power),
            upgrade: detail.upgrade.unwrap_or_default().try_into()?,
            boot_id: detail.boot_id,
            policy_revision: detail.policy_revision,
            last_beat_at: border::optional_instant("last_beat_at", detail.last_beat_at)?,
        })
    }
}

impl TryFrom<v1::CheckDetail> for CheckView {
    type Error = BorderError;

    fn try_from(detail: v1::CheckDetail) -> Result<Self, BorderError> {
        let judged: Outcome = border::outcome(detail.judged_outcome, 0);
        Ok(Self {
            result: detail.result.unwrap_or_default().try_into()?,
            severity: Severity::from_wire(detail.severity).unwrap_or(Severity::NonFatal),
            judged_outcome: judged.as_str(),
            last_run_at: border::optional_instant("last_run_at", detail.last_run_at)?,
            since: border::optional_instant("since", detail.since)?,
            flips: detail
                .flips
                .into_iter()
                .map(Flip::try_from)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// One event of a watch.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum WatchView {
    /// A host as it was when the watch began.
    Snapshot {
        /// Its verdict.
        verdict: Box<Verdict>,
    },
    /// The snapshot is complete.
    SnapshotEnd {
        /// Its revision.
        revision: u64,
    },
    /// A host changed or is new.
    Changed {
        /// Its verdict.
        verdict: Box<Verdict>,
        /// Revision of the change.
        revision: u64,
    },
    /// A host was removed.
    Removed {
        /// The name it had.
        name: String,
        /// Its id.
        host_id: String,
        /// Revision of the change.
        revision: u64,
    },
    /// What is held must be dropped; a snapshot follows.
    Resync {
        /// Why.
        reason: String,
    },
    /// Nothing new up to this instant.
    Progress {
        /// The instant.
        as_of: Option<Timestamp>,
        /// Revision at that instant.
        revision: u64,
    },
}
