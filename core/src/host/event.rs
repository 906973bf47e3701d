//! What happens to a host, as the core hears it.

use std::{sync::Arc, time::Duration};

use crate::model::{CheckResult, Listener, PowerAnnouncement, SessionCounts, UpgradeAnnouncement};

/// First word of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Version of the agent.
    pub agent_version: Arc<str>,
    /// The machine's boot, opaque.
    pub boot_id: Arc<str>,
    /// Random per process of the agent.
    pub instance_id: Arc<str>,
    /// Operating system, for people.
    pub os: Arc<str>,
    /// Addresses as the host sees them.
    pub addresses: Vec<String>,
    /// Policy that the agent applies.
    pub policy_revision: Arc<str>,
    /// Power, restated.
    pub power: PowerAnnouncement,
    /// Upgrade, restated.
    pub upgrade: UpgradeAnnouncement,
}

/// Still here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Counts up within a session.
    pub sequence: u64,
    /// Hash of the agent's state, opaque.
    pub state_hash: u64,
    /// The least time left over all check results.
    pub results_valid: Duration,
    /// Sessions as counted now.
    pub sessions: SessionCounts,
}

/// Everything the host knows about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Counts with the beats.
    pub sequence: u64,
    /// Hash of the agent's state, opaque.
    pub state_hash: u64,
    /// The least time left over all check results.
    pub results_valid: Duration,
    /// Results of all checks, each name once.
    pub checks: Vec<CheckResult>,
    /// Where the host takes connections.
    pub listeners: Vec<Listener>,
    /// Sessions as counted now.
    pub sessions: SessionCounts,
    /// Policy that the agent applies.
    pub policy_revision: Arc<str>,
    /// Power, restated.
    pub power: PowerAnnouncement,
    /// Upgrade, restated.
    pub upgrade: UpgradeAnnouncement,
}
