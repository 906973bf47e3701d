//! What a pool wants of its hosts.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CheckName, Severity};

/// Which connections a host that is Upgrading takes. The default is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpgradingAccepts {
    /// None.
    #[default]
    None,
    /// People coming back to their sessions.
    Reconnect,
    /// All.
    All,
}

/// A URL that hosts must reach.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequiredUrl {
    /// The URL, http or https. A `*` in place of its host's first label stands for every name there
    /// that a host has been seen to use.
    pub url: String,
    /// What it is for: token, broker, diagnostics, blob, custom.
    #[serde(default = "custom_role")]
    pub role: String,
}

/// The `*` in a URL's host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wildcard<'a> {
    /// There is none.
    None,
    /// It stands for everything under this domain: `blob.example.net` of `*.blob.example.net`.
    Under(&'a str),
    /// It stands where it means nothing, or for a whole top-level domain.
    Misplaced,
}

impl RequiredUrl {
    /// The wildcard in the URL's host.
    #[must_use]
    pub fn wildcard(&self) -> Wildcard<'_> {
        let rest = self.url.split_once("://").map_or("", |(_, rest)| rest);
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end]
            .rsplit_once(':')
            .map_or(&rest[..end], |(host, _)| host);
        match host.strip_prefix("*.") {
            None if host.contains('*') => Wildcard::Misplaced,
            None => Wildcard::None,
            Some(under) if under.contains('*') || !under.contains('.') => Wildcard::Misplaced,
            Some(under) => Wildcard::Under(under),
        }
    }
}

fn custom_role() -> String {
    "custom".to_owned()
}

/// Pace of one check. The defaults are those of every check without a policy of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckPace {
    /// Time between the starts of two runs.
    pub interval: Duration,
    /// A run is ended after this time.
    pub timeout: Duration,
    /// Passing runs in a row that end a failure.
    pub rise: u32,
    /// Failing runs in a row that make a failure.
    pub fall: u32,
    /// How long a result lives; none for the usual time.
    pub lives: Option<Duration>,
}

impl Default for CheckPace {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            rise: 1,
            fall: 2,
            lives: None,
        }
    }
}

impl CheckPace {
    /// How long a result lives: three intervals and a timeout unless set, so that two runs may be
    /// lost; never so short that the next run comes too late.
    #[must_use]
    pub fn time_to_live(self) -> Duration {
        let usual = self.interval.saturating_mul(3).saturating_add(self.timeout);
        let least = self.interval.saturating_add(self.timeout);
        self.lives.unwrap_or(usual).max(least)
    }
}

/// Ports that session listeners are dialled at unless a pool names others: SSH, RDP, VNC, and the
/// web gateways of DCV and its like.
pub const PROBE_PORTS: [(u16, u16); 4] = [(22, 22), (3389, 3389), (5900, 5999), (8443, 8443)];

/// How the broker itself looks whether a silent host's session listener answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbePolicy {
    /// Networks in which advertised addresses are dialled. Without any, only the address that a
    /// host is heard from, if the host names it as its own.
    pub networks: Vec<IpNet>,
    /// Ports that may be dialled, from and to.
    pub ports: Vec<(u16, u16)>,
}

impl Default for ProbePolicy {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            ports: PROBE_PORTS.to_vec(),
        }
    }
}

impl ProbePolicy {
    /// The address lies in one of the networks.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The port may be dialled.
    #[must_use]
    pub fn allows_port(&self, port: u16) -> bool {
        self.ports
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&port))
    }
}

/// What a pool makes of its hosts' facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolPolicy {
    /// Names this policy; agents report it back.
    pub revision: String,
    /// Severities that differ from the default.
    pub severities: BTreeMap<CheckName, Severity>,
    /// Sessions that a host takes; none for no limit.
    pub max_sessions: Option<u32>,
    /// Which connections a host that is Upgrading takes.
    pub upgrading_accepts: UpgradingAccepts,
    /// Connectable hosts that the pool needs to serve; no rollout goes below.
    pub min_available: u32,
    /// Paces that differ from the hosts' own configuration.
    pub paces: BTreeMap<CheckName, CheckPace>,
    /// URLs that hosts must reach.
    pub urls: Vec<RequiredUrl>,
    /// Domain that hosts must be joined to; none where the pool expects none.
    pub expected_domain: Option<String>,
    /// Whether and how the broker dials silent hosts itself; none where it does not.
    pub probe: Option<ProbePolicy>,
    /// Checks that became fatal with this policy: a host without a result counts as settled until
    /// then, so that a change never throws out a pool before it could answer.
    pub newly_fatal: BTreeMap<CheckName, Timestamp>,
}

impl Default for PoolPolicy {
    fn default() -> Self {
        let fatal = ["domain", "session_listener"];
        Self {
            // Not the name of any that was set: those count from 1.
            revision: "default-0".to_owned(),
            severities: fatal
                .into_iter()
                .filter_map(|name| Some((CheckName::new(name).ok()?, Severity::Fatal)))
                .collect(),
            max_sessions: None,
            upgrading_accepts: UpgradingAccepts::None,
            min_available: 1,
            paces: BTreeMap::new(),
            urls: Vec::new(),
            expected_domain: None,
            probe: None,
            newly_fatal: BTreeMap::new(),
        }
    }
}

impl PoolPolicy {
    /// What a failure of `check` means in this pool. What is not named is `NonFatal`.
    #[must_use]
    pub fn severity(&self, check: &CheckName) -> Severity {
        self.severities
            .get(check)
            .copied()
            .unwrap_or(Severity::NonFatal)
    }

    /// This policy as one that takes the place of `before` at `at`: a check that it makes fatal
    /// counts after its first result, or after two of its intervals and a timeout.
    #[must_use]
    pub fn taking_over(mut self, before: &Self, at: Timestamp) -> Self {
        let newly: Vec<CheckName> = self
            .fatal_checks()
            .filter(|name| before.severity(name) != Severity::Fatal)
            .cloned()
            .collect();
        let still = before
            .newly_fatal
            .iter()
            .filter(|(name, until)| self.severity(name) == Severity::Fatal && **until > at)
            .map(|(name, until)| (name.clone(), *until))
            .collect();
        self.newly_fatal = still;
        for name in newly {
            let pace = self.paces.get(&name).copied().unwrap_or_default();
            let grace = pace.interval.saturating_mul(2).saturating_add(pace.timeout);
            let until = at.checked_add(grace).unwrap_or(Timestamp::MAX);
            self.newly_fatal.insert(name, until);
        }
        self
    }

    /// The checks without which a host is not settled.
    pub fn fatal_checks(&self) -> impl Iterator<Item = &CheckName> {
        self.severities
            .iter()
            .filter(|(_, severity)| **severity == Severity::Fatal)
            .map(|(name, _)| name)
    }
}

/// The five checks that every agent has.
#[must_use]
pub fn default_check_names() -> [&'static str; 5] {
    [
        "session_listener",
        "domain",
        "monitoring_agent",
        "metadata_service",
        "urls",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_outlives_two_lost_runs_unless_set_and_always_one_run() {
        let seconds = Duration::from_secs;
        let lives = |lives| {
            CheckPace {
                lives,
                ..CheckPace::default()
            }
            .time_to_live()
        };
        assert_eq!(lives(None), seconds(100));
        assert_eq!(lives(Some(seconds(3600))), seconds(3600));
        assert_eq!(lives(Some(seconds(1))), seconds(40));
    }

    #[test]
    fn a_star_stands_for_the_first_label_under_a_domain_alone() {
        let table = [
            ("https://a.example.net/", Wildcard::None),
            ("https://a.example.net/*", Wildcard::None),
            (
                "https://*.blob.example.net/x",
                Wildcard::Under("blob.example.net"),
            ),
            (
                "http://*.blob.example.net:80",
                Wildcard::Under("blob.example.net"),
            ),
            ("https://*.net/", Wildcard::Misplaced),
            ("https://*/", Wildcard::Misplaced),
            ("https://a.*.example.net/", Wildcard::Misplaced),
            ("https://a*.example.net/", Wildcard::Misplaced),
            ("https://*.*.example.net/", Wildcard::Misplaced),
        ];
        for (url, wanted) in table {
            let role = custom_role();
            let url = url.to_owned();
            assert_eq!(
                RequiredUrl {
                    url: url.clone(),
                    role
                }
                .wildcard(),
                wanted,
                "{url}"
            );
        }
    }
}
