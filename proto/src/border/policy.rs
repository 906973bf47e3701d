//! What a pool wants of a host, as the broker tells its agent.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use muster_core::{
    agent::{CheckPolicy, HostPolicy},
    model::{
        CheckName, CheckPace, MAX_CHECKS, PoolPolicy, RequiredUrl, Severity, clean_text,
        default_check_names,
    },
};

use super::{BorderError, Word as _, all, by_value, id, millis, time::optional_duration};
use crate::v1;

/// Shortest time between two runs of a check: a broker cannot make a host spin.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// URLs of one pool. The seed has four.
const MAX_URLS: usize = 64;
/// Bytes of a URL, as browsers take them.
const MAX_URL_BYTES: usize = 2048;
/// Bytes of a domain's name.
const MAX_DOMAIN_BYTES: usize = 253;

by_value!(
    HostPolicy => v1::HostPolicy,
    CheckPolicy => v1::CheckPolicy,
    RequiredUrl => v1::RequiredUrl,
);

/// What an agent needs to know of its pool's policy: the checks that every agent has and those
/// that the pool names, with their severities.
#[must_use]
pub fn host_policy(pool: &PoolPolicy) -> v1::HostPolicy {
    let own = default_check_names().into_iter().flat_map(CheckName::new);
    let named = pool.severities.keys().chain(pool.paces.keys()).cloned();
    let names: BTreeSet<_> = own.chain(named).collect();
    let checks = names.into_iter().take(MAX_CHECKS).map(|name| {
        let CheckPace {
            interval,
            timeout,
            rise,
            fall,
            lives: _,
        } = pool.paces.get(&name).copied().unwrap_or_default();
        CheckPolicy {
            severity: pool.severity(&name),
            name,
            interval,
            timeout,
            rise,
            fall,
        }
    });
    v1::HostPolicy::from(HostPolicy {
        revision: pool.revision.clone(),
        checks: checks.collect(),
        urls: pool.urls.clone(),
        expected_domain: pool.expected_domain.clone(),
    })
}

impl From<&HostPolicy> for v1::HostPolicy {
    fn from(policy: &HostPolicy) -> Self {
        Self {
            revision: policy.revision.clone(),
            checks: policy.checks.iter().map(Into::into).collect(),
            urls: policy.urls.iter().map(Into::into).collect(),
            expected_domain: policy.expected_domain.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::HostPolicy> for HostPolicy {
    type Error = BorderError;

    fn try_from(wire: v1::HostPolicy) -> Result<Self, BorderError> {
        let checks: Vec<CheckPolicy> = all("checks", MAX_CHECKS, wire.checks)?;
        let mut names = HashSet::with_capacity(checks.len());
        for (at, check) in checks.iter().enumerate() {
            if !names.insert(&check.name) {
                let problem = format!("{:?} stands there twice", check.name.as_str());
                return Err(BorderError::new(&format!("checks[{at}].name"), problem));
            }
        }
        let domain = clean_text(&wire.expected_domain, MAX_DOMAIN_BYTES);
        Ok(Self {
            revision: id("revision", &wire.revision)?.to_string(),
            checks,
            urls: all("urls", MAX_URLS, wire.urls)?,
            expected_domain: (!domain.is_empty()).then_some(domain),
        })
    }
}

impl From<&CheckPolicy> for v1::CheckPolicy {
    fn from(policy: &CheckPolicy) -> Self {
        Self {
            name: policy.name.to_string(),
            interval_ms: millis(policy.interval),
            timeout_ms: millis(policy.timeout),
            rise: policy.rise,
            fall: policy.fall,
            severity: policy.severity.to_wire(),
        }
    }
}

/// What is zero is not said, and has the default.
impl TryFrom<v1::CheckPolicy> for CheckPolicy {
    type Error = BorderError;

    fn try_from(wire: v1::CheckPolicy) -> Result<Self, BorderError> {
        let default = CheckPace::default();
        let count = |count, default| if count == 0 { default } else { count };
        let interval = optional_duration(wire.interval_ms).unwrap_or(default.interval);
        if interval < MIN_CHECK_INTERVAL {
            let least = millis(MIN_CHECK_INTERVAL);
            let problem = format!("is {}; at least {least} is allowed", wire.interval_ms);
            return Err(BorderError::new("interval_ms", problem));
        }
        Ok(Self {
            name: CheckName::new(&wire.name).map_err(|error| BorderError::new("name", error))?,
            interval,
            timeout: optional_duration(wire.timeout_ms).unwrap_or(default.timeout),
            rise: count(wire.rise, default.rise),
            fall: count(wire.fall, default.fall),
            // Only `doctor` asks for it; the broker judges by its own.
            severity: Severity::from_wire(wire.severity).unwrap_or(Severity::NonFatal),
        })
    }
}

impl From<&RequiredUrl> for v1::RequiredUrl {
    fn from(url: &RequiredUrl) -> Self {
        Self {
            url: url.url.clone(),
            role: url.role.clone(),
        }
    }
}

impl TryFrom<v1::RequiredUrl> for RequiredUrl {
    type Error = BorderError;

    fn try_from(wire: v1::RequiredUrl) -> Result<Self, BorderError> {
        if wire.url.is_empty() || wire.url.len() > MAX_URL_BYTES {
            let problem = format!(
                "has {} bytes; allowed are 1 to {MAX_URL_BYTES}",
                wire.url.len()
            );
            return Err(BorderError::new("url", problem));
        }
        if clean_text(&wire.url, MAX_URL_BYTES) != wire.url {
            return Err(BorderError::new("url", "has control characters"));
        }
        let role = match wire.role.as_str() {
            "" => "custom".to_owned(),
            role => clean_text(role, 64),
        };
        Ok(Self {
            url: wire.url,
            role,
        })
    }
}
