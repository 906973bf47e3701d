//! Policies of pools: the TOML that administrators write, and how it is stored.

use std::{collections::BTreeMap, path::Path, time::Duration};

use jiff::Timestamp;
use muster_core::model::{
    CheckName, CheckPace, MAX_CHECKS, PoolPolicy, ProbePolicy, RequiredUrl, Severity,
    UpgradingAccepts, Wildcard,
};
use muster_runtime::config::{self, ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

/// Bytes of a policy: 64 checks and 64 URLs with comments.
pub const POLICY_MAX_BYTES: usize = 64 * 1024;
/// Networks and ports of one probe policy: a site's few.
const NETWORKS_MAX: usize = 32;
const PORTS_MAX: usize = 32;
/// URLs of one policy.
const URLS_MAX: usize = 64;
/// Bounds of a check's pace: a broker cannot make a host spin, and a result must not outlive days.
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(86_400));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));
/// Runs in a row.
const STREAK_MAX: u32 = 100;

/// All keys of a pool's policy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    /// Sessions that a host takes.
    max_sessions: Option<u32>,
    /// Connectable hosts that the pool needs to serve.
    min_available: Option<u32>,
    /// Which connections a host that is Upgrading takes.
    upgrading_accepts: UpgradingAccepts,
    /// What a failure of a check means.
    severity: BTreeMap<String, Severity>,
    /// URLs that hosts must reach.
    url: Vec<RequiredUrl>,
    /// The domain that hosts must be joined to.
    domain: DomainTable,
    /// The broker's own dials.
    probe: ProbeTable,
    /// Pace of checks.
    check: Vec<CheckTable>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct DomainTable {
    /// Name of the domain.
    expected: Option<String>,
}

/// Whether and how the broker itself looks whether a silent host's session listener answers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProbeTable {
    /// It does.
    enabled: bool,
    /// Networks in which advertised addresses are dialled, and loopback or the broker's own.
    networks: Vec<String>,
    /// Ports that may be dialled: numbers, or ranges such as "5900-5999".
    ports: Option<Vec<PortRange>>,
}

/// A port, or a range of ports.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum PortRange {
    One(u16),
    Range(String),
}

/// A check by name: one of every agent, or one of the hosts' own configuration. What it runs, and
/// with what, only the host's own configuration says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckTable {
    /// Name of the check.
    name: String,
    /// Time between the starts of two runs.
    interval: Option<HumanDuration>,
    /// A run is ended after this time.
    timeout: Option<HumanDuration>,
    /// Passing runs in a row that end a failure.
    rise: Option<u32>,
    /// Failing runs in a row that make a failure.
    fall: Option<u32>,
    /// What a failure means; the same as in `[severity]`.
    severity: Option<Severity>,
}

/// A pool's policy as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// The text, as it was set.
    pub toml: String,
    /// Counts the policies of the pool.
    pub number: u32,
    /// When it was set.
    pub set_at: Timestamp,
    /// Who set it.
    pub set_by: String,
    /// Checks that became fatal with it, and until when they are excused.
    #[serde(default)]
    pub newly_fatal: BTreeMap<CheckName, Timestamp>,
}

impl PolicyRecord {
    /// The policy that the record holds.
    ///
    /// # Errors
    /// If a newer program wrote what this one does not allow.
    pub fn policy(&self, pool: &str) -> Result<PoolPolicy, ConfigError> {
        let mut policy = parse(Path::new(pool), &self.toml)?;
        policy.revision = self.revision(pool);
        policy.newly_fatal.clone_from(&self.newly_fatal);
        Ok(policy)
    }

    /// Names the policy.
    #[must_use]
    pub fn revision(&self, pool: &str) -> String {
        // An id that agents report back: of a bounded length, whatever the pool is called.
        format!("{}-{}", pool.get(..64).unwrap_or(pool), self.number)
    }
}

/// Reads a policy; `file` names it in errors.
///
/// # Errors
/// [`ConfigError`] names line, key and what is allowed.
pub fn parse(file: &Path, text: &str) -> Result<PoolPolicy, ConfigError> {
    let wrong =
        |key: &str, value: &str, allowed: &str| config::invalid_value(file, key, value, allowed);
    if text.len() > POLICY_MAX_BYTES {
        let value = format!("{} bytes", text.len());
        return Err(wrong(
            "policy",
            &value,
            &format!("at most {POLICY_MAX_BYTES} bytes"),
        ));
    }
    let parsed: PolicyFile = config::parse(file, text)?;
    let default = PoolPolicy::default();
    if parsed.max_sessions == Some(0) {
        return Err(wrong(
            "max_sessions",
            "0",
            "1 or more; drain hosts that shall take nobody",
        ));
    }
    let mut severities = default.severities.clone();
    for (name, severity) in &parsed.severity {
        severities.insert(check_name(file, "severity", name)?, *severity);
    }
    let mut paces = BTreeMap::new();
    for check in &parsed.check {
        let name = check_name(file, "check.name", &check.name)?;
        if let Some(severity) = check.severity {
            if parsed.severity.contains_key(&check.name) {
                let allowed = "its severity once, here or in [severity]";
                return Err(wrong("check.severity", &check.name, allowed));
            }
            severities.insert(name.clone(), severity);
        }
        if let Some(pace) = pace(file, check)?
            && paces.insert(name, pace).is_some()
        {
            return Err(wrong("check.name", &check.name, "each check once"));
        }
    }
    if severities.len() > MAX_CHECKS || paces.len() > MAX_CHECKS {
        let value = severities.len().max(paces.len()).to_string();
        return Err(wrong(
            "check",
            &value,
            &format!("at most {MAX_CHECKS} checks"),
        ));
    }
    if parsed.url.len() > URLS_MAX {
        let value = parsed.url.len().to_string();
        return Err(wrong("url", &value, &format!("at most {URLS_MAX} URLs")));
    }
    for url in &parsed.url {
        if !(url.url.starts_with("https://") || url.url.starts_with("http://")) {
            return Err(wrong(
                "url.url",
                &url.url,
                "a URL that begins with https:// or http://",
            ));
        }
        if url.wildcard() == Wildcard::Misplaced {
            let allowed = "a * for the first label under a domain, such as *.blob.example.net";
            return Err(wrong("url.url", &url.url, allowed));
        }
    }
    Ok(PoolPolicy {
        severities,
        max_sessions: parsed.max_sessions,
        min_available: parsed.min_available.unwrap_or(default.min_available),
        upgrading_accepts: parsed.upgrading_accepts,
        paces,
        urls: parsed.url,
        probe: probe(file, &parsed.probe)?,
        expected_domain: parsed.domain.expected.filter(|domain| !domain.is_empty()),
        ..default
    })
}

fn probe(file: &Path, table: &ProbeTable) -> Result<Option<ProbePolicy>, ConfigError> {
    let wrong =
        |key: &str, value: &str, allowed: &str| config::invalid_value(file, key, value, allowed);
    let count = table.networks.len();
    if count > NETWORKS_MAX {
        let allowed = format!("at most {NETWORKS_MAX} networks");
        return Err(wrong("probe.networks", &count.to_string(), &allowed));
    }
    let mut policy = ProbePolicy::default();
    for text in &table.networks {
        let network = text.parse().map_err(|_| {
            let allowed = "a network such as 10.1.0.0/16 or 2001:db8::/48";
            wrong("probe.networks", text, allowed)
        })?;
        policy.networks.push(network);
    }
    if let Some(ports) = &table.ports {
        if ports.is_empty() || ports.len() > PORTS_MAX {
            let allowed = format!("1 to {PORTS_MAX} ports or ranges");
            return Err(wrong("probe.ports", &ports.len().to_string(), &allowed));
        }
        policy.ports.clear();
        for port in ports {
            let (range, shown) = match port {
                PortRange::One(port) => (Some((*port, *port)), port.to_string()),
                PortRange::Range(text) => (
                    text.split_once('-').and_then(|(from, to)| {
                        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
                    }),
                    text.clone(),
                ),
            };
            match range {
                Some((from, to)) if from >= 1 && from <= to => policy.ports.push((from, to)),
                Some(_) | None => {
                    let allowed = "a port from 1 to 65535, or a range such as \"5900-5999\"";
                    return Err(wrong("probe.ports", &shown, allowed));
                }
            }
        }
    }
    Ok(table.enabled.then_some(policy))
}

fn check_name(file: &Path, key: &str, name: &str) -> Result<CheckName, ConfigError> {
    CheckName::new(name).map_err(|error| {
        config::invalid_value(file, key, name, &format!("a check's name: {error}"))
    })
}

/// The pace of a check; none if the policy leaves it to the host.
fn pace(file: &Path, check: &CheckTable) -> Result<Option<CheckPace>, ConfigError> {
    let within = |key: &str, value: Option<HumanDuration>, usual: Duration, (least, most)| {
        let value = value.map_or(usual, |value| value.0);
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        let allowed = format!("{} to {}", HumanDuration(least), HumanDuration(most));
        let shown = format!("{} of {}", HumanDuration(value), check.name);
        Err(config::invalid_value(file, key, &shown, &allowed))
    };
    let streak = |key: &str, value: Option<u32>, usual: u32| match value.unwrap_or(usual) {
        value @ 1..=STREAK_MAX => Ok(value),
        value => {
            let allowed = format!("1 to {STREAK_MAX}");
            Err(config::invalid_value(
                file,
                key,
                &format!("{value} of {}", check.name),
                &allowed,
            ))
        }
    };
    if check.interval.is_none()
        && check.timeout.is_none()
        && check.rise.is_none()
        && check.fall.is_none()
    {
        return Ok(None);
    }
    let usual = CheckPace::default();
    Ok(Some(CheckPace {
        interval: within("check.interval", check.interval, usual.interval, INTERVAL)?,
        timeout: within("check.timeout", check.timeout, usual.timeout, TIMEOUT)?,
        rise: streak("check.rise", check.rise, usual.rise)?,
        fall: streak("check.fall", check.fall, usual.fall)?,
        lives: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        parse(Path::new("vdi.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_policy_is_read() {
        let text = r#"
            max_sessions = 12
            min_available = 2
            upgrading_accepts = "reconnect"
            [severity]
            urls = "fatal"
            domain = "report_only"
            [[url]]
            url = "https://login.example.org/"
            role = "token"
            [domain]
            expected = "corp.example.org"
            [[check]]
            name = "gpu"
            interval = "1m"
            severity = "fatal"
        "#;
        let policy = parse(Path::new("vdi.toml"), text).unwrap();
        let name = |text: &str| CheckName::new(text).unwrap();
        assert_eq!(policy.max_sessions, Some(12));
        assert_eq!(policy.severity(&name("urls")), Severity::Fatal);
        assert_eq!(policy.severity(&name("domain")), Severity::ReportOnly);
        assert_eq!(
            policy.severity(&name("session_listener")),
            Severity::Fatal,
            "the default stays"
        );
        assert_eq!(policy.severity(&name("gpu")), Severity::Fatal);
        assert_eq!(policy.severity(&name("other")), Severity::NonFatal);
        assert_eq!(policy.paces[&name("gpu")].interval, Duration::from_secs(60));
        assert_eq!(policy.paces[&name("gpu")].fall, 2);
        assert_eq!(policy.upgrading_accepts, UpgradingAccepts::Reconnect);
        assert_eq!(policy.expected_domain.as_deref(), Some("corp.example.org"));
        assert_eq!(parse(Path::new("x"), "").unwrap(), PoolPolicy::default());
    }

    #[test]
    fn the_sample_policy_is_one() {
        let sample = include_str!("../../deploy/pools/desks.toml");
        let policy = parse(Path::new("desks.toml"), sample).unwrap();
        assert_eq!(
            (policy.max_sessions, policy.urls.len(), policy.paces.len()),
            (Some(12), 1, 1)
        );
        let probe = policy.probe.unwrap();
        assert!(probe.allows("10.20.3.4".parse().unwrap()) && probe.allows_port(5903));
        assert!(!probe.allows_port(80));
    }

    #[test]
    fn errors_name_the_line_the_key_and_what_is_allowed() {
        let error = wrong("max_sesions = 1");
        assert!(
            error.contains("vdi.toml:1") && error.contains("max_sessions"),
            "{error}"
        );
        let error = wrong("[severity]\nurls = \"deadly\"");
        assert!(
            error.contains("vdi.toml:2") && error.contains("non_fatal"),
            "{error}"
        );
        let error = wrong("[[check]]\nname = \"gpu\"\ncommand = \"/bin/sh\"");
        assert!(
            error.contains("unknown key `command`"),
            "no command from the broker: {error}"
        );
        for (text, says) in [
            ("max_sessions = 0", "1 or more"),
            ("[[check]]\nname = \"gpu\"\ninterval = \"10ms\"", "1s to 1d"),
            ("[[check]]\nname = \"GPU\"", "a-z"),
            ("[[check]]\nname = \"a\"\nfall = 0", "1 to 100"),
            ("[probe]\nnetworks = [\"10.0.0.0/40\"]", "10.1.0.0/16"),
            ("[probe]\nports = [0]", "1 to 65535"),
            ("[probe]\nports = [\"9-3\"]", "5900-5999"),
            ("[probe]\nports = []", "1 to 32"),
            ("[[url]]\nurl = \"ftp://x\"", "https://"),
            ("[[url]]\nurl = \"https://*.net/\"", "*.blob.example.net"),
            (
                "[[check]]\nname = \"a\"\nseverity = \"fatal\"\n[severity]\na = \"fatal\"",
                "once",
            ),
        ] {
            let error = wrong(text);
            assert!(error.contains(says), "{text}: {error}");
        }
        assert!(wrong(&"#".repeat(POLICY_MAX_BYTES + 1)).contains("at most 65536 bytes"));
    }

    #[test]
    fn a_stored_policy_comes_back_with_its_name_and_its_grace() {
        let record = PolicyRecord {
            toml: "max_sessions = 3".to_owned(),
            number: 7,
            set_at: Timestamp::UNIX_EPOCH,
            set_by: "ann".to_owned(),
            newly_fatal: BTreeMap::from([(CheckName::new("gpu").unwrap(), Timestamp::MAX)]),
        };
        let policy = record.policy("vdi").unwrap();
        assert_eq!(
            (policy.revision.as_str(), policy.max_sessions),
            ("vdi-7", Some(3))
        );
        assert_eq!(policy.newly_fatal, record.newly_fatal);
    }
}
