//! What is told: who speaks, and how the host is at an instant.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::{
    agent::{HostPolicy, ResultSet, state_hash},
    host::{Beat, Hello, Report},
    model::{Mono, Now, SessionCounts},
};

use crate::announce::Announced;

/// Who speaks: what does not change while the process runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct About {
    /// Version of the agent.
    pub version: Arc<str>,
    /// The machine's boot.
    pub boot_id: Arc<str>,
    /// Random per process.
    pub instance_id: Arc<str>,
    /// Operating system, for people.
    pub os: Arc<str>,
    /// Addresses as the host sees them.
    pub addresses: Vec<String>,
}

/// How the host is, as far as it is told.
#[derive(Clone, Debug)]
pub struct Board {
    /// Results of the checks.
    pub results: Arc<ResultSet>,
    /// What is announced.
    pub announced: Announced,
    /// People's sessions.
    pub sessions: SessionCounts,
    /// The policy that is applied.
    pub policy: Arc<HostPolicy>,
}

impl Board {
    /// First word of a session.
    #[must_use]
    pub fn hello(&self, about: &About, now: Timestamp) -> Hello {
        Hello {
            agent_version: Arc::clone(&about.version),
            boot_id: Arc::clone(&about.boot_id),
            instance_id: Arc::clone(&about.instance_id),
            // The session's, not the host's: put in where it is known.
            resume_token: None,
            os: Arc::clone(&about.os),
            addresses: about.addresses.clone(),
            policy_revision: self.policy.revision.as_str().into(),
            power: self.announced.power(now),
            upgrade: self.announced.upgrade(now),
        }
    }

    /// Everything.
    #[must_use]
    pub fn report(&self, sequence: u64, now: Now) -> Report {
        let checks = self.results.results(now.mono);
        let listeners = self.results.listeners();
        let power = self.announced.power(now.wall);
        let upgrade = self.announced.upgrade(now.wall);
        Report {
            sequence,
            state_hash: state_hash(&checks, &listeners, self.results.cloud(), &power, &upgrade),
            results_valid: self.results_valid(now.mono),
            checks,
            listeners,
            cloud: self.results.cloud().cloned(),
            sessions: self.sessions,
            policy_revision: self.policy.revision.as_str().into(),
            power,
            upgrade,
        }
    }

    /// Still here.
    #[must_use]
    pub fn beat(&self, sequence: u64, now: Now) -> Beat {
        Beat {
            sequence,
            state_hash: self.state_hash(now),
            results_valid: self.results_valid(now.mono),
            sessions: self.sessions,
        }
    }

    /// Changes when a new report is owed.
    #[must_use]
    pub fn state_hash(&self, now: Now) -> u64 {
        state_hash(
            &self.results.results(now.mono),
            &self.results.listeners(),
            self.results.cloud(),
            &self.announced.power(now.wall),
            &self.announced.upgrade(now.wall),
        )
    }

    fn results_valid(&self, now: Mono) -> Duration {
        self.results.results_valid(now)
    }
}
