//! What a pool wants of one host, as the host's agent holds it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{CheckName, CheckPace, RequiredUrl, Severity};

/// Pace and weight of one check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckPolicy {
    /// Name of the check.
    pub name: CheckName,
    /// Time between the starts of two runs.
    pub interval: Duration,
    /// A run is ended after this time.
    pub timeout: Duration,
    /// Passing runs in a row that end a failure.
    pub rise: u32,
    /// Failing runs in a row that make a failure.
    pub fall: u32,
    /// What a failure means in the pool. The agent uses it for `doctor` alone.
    pub severity: Severity,
}

impl CheckPolicy {
    /// The pace alone.
    #[must_use]
    pub fn pace(&self) -> CheckPace {
        CheckPace {
            interval: self.interval,
            timeout: self.timeout,
            rise: self.rise,
            fall: self.fall,
            // How long a host's results live is the host's own affair.
            lives: None,
        }
    }
}

/// What a pool wants of its hosts: only what an agent needs to know.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HostPolicy {
    /// Names this policy; empty for the built-in defaults.
    pub revision: String,
    /// Checks to run.
    pub checks: Vec<CheckPolicy>,
    /// URLs that must be reachable.
    pub urls: Vec<RequiredUrl>,
    /// Domain that the host must be joined to; none where the pool expects none.
    pub expected_domain: Option<String>,
}

impl HostPolicy {
    /// What the pool says of this check.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&CheckPolicy> {
        self.checks.iter().find(|check| check.name.as_str() == name)
    }
}
