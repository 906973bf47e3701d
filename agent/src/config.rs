//! `agent.toml`: what this machine's own administrator says.
//!
//! What stands here wins over what the pool's policy says, because it is the machine's own word.
//! Limits that need more than one key are checked when the file is read.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use muster_core::model::{CheckPace, HostName, RequiredUrl, Wildcard};
use muster_runtime::{
    channel::BrokerAddress,
    config::{self, ConfigError, HumanDuration},
    telemetry::LogFormat,
};
use serde::Deserialize;

use crate::checks::monitoring_agent::profile;

use crate::checks::own::{self, LoadError, OwnChecks};

/// Where the configuration is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/muster/agent.toml";
/// Brokers of one fleet: a handful at most.
const MAX_BROKERS: usize = 16;
/// Listeners that can be named; a report carries 32.
const MAX_LISTENERS: usize = 32;
/// Monitoring agents of one machine.
const MAX_MONITORS: usize = 8;
/// URLs that can be required in the file; a run of the check has to get through them in time.
const MAX_URLS: usize = 32;
/// Files with names behind wildcards: the end of each is read in every run.
const MAX_OBSERVED_IN: usize = 4;
/// Shortest interval of a check: below it checks are the load.
pub(crate) const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name wanted at enrolment; the lower-cased hostname unless set.
    pub name: Option<HostName>,
    /// Brokers to try in turn, `host:port`; unset for those known from the enrolment.
    pub brokers: Vec<String>,
    /// Where identity, cached policy and announcements are kept.
    pub data_dir: PathBuf,
    /// Socket of `muster-agent announce`.
    pub control_socket: PathBuf,
    /// Folder of this machine's own checks.
    pub checks_dir: PathBuf,
    /// Logs.
    pub log: LogConfig,
    /// The checks.
    pub check: CheckConfigs,
    /// The own checks, once they are read from their folder.
    #[serde(skip)]
    pub own: Arc<OwnChecks>,
    /// The program that keeps plugins: the agent's own.
    #[serde(skip)]
    pub keeper: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            brokers: Vec::new(),
            data_dir: "/var/lib/muster-agent".into(),
            control_socket: "/run/muster-agent/control.sock".into(),
            checks_dir: "/etc/muster/checks.d".into(),
            log: LogConfig::default(),
            check: CheckConfigs::default(),
            own: Arc::default(),
            // Stays right when an upgrade has replaced the file.
            keeper: "/proc/self/exe".into(),
        }
    }
}

/// Logs; they go to standard error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `human` or `json`.
    pub format: LogFormat,
    /// What is logged, such as `info` or `info,muster_agent=debug`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            filter: "info".to_owned(),
        }
    }
}

/// Pace of a check as far as the file sets it.
#[derive(Clone, Copy, Debug, Default)]
pub struct PaceConfig {
    /// Time between the starts of two runs.
    pub interval: Option<Duration>,
    /// A run is ended after this time.
    pub timeout: Option<Duration>,
    /// Passing runs in a row that end a failure.
    pub rise: Option<u32>,
    /// Failing runs in a row that make a failure.
    pub fall: Option<u32>,
    /// How long a result lives.
    pub time_to_live: Option<Duration>,
}

impl PaceConfig {
    /// `base` with what is set here.
    #[must_use]
    pub fn over(self, base: CheckPace) -> CheckPace {
        CheckPace {
            interval: self.interval.unwrap_or(base.interval),
            timeout: self.timeout.unwrap_or(base.timeout),
            rise: self.rise.unwrap_or(base.rise),
            fall: self.fall.unwrap_or(base.fall),
            lives: self.time_to_live.or(base.lives),
        }
    }

    /// The first value that is not allowed: its key, itself, and what is allowed.
    pub(crate) fn wrong(self, min: Duration) -> Option<(&'static str, String, &'static str)> {
        if let Some(interval) = self.interval.filter(|interval| *interval < min) {
            return Some(("interval", format!("{interval:?}"), "at least 100ms"));
        }
        if self.timeout == Some(Duration::ZERO) {
            return Some(("timeout", "0".to_owned(), "more than 0"));
        }
        let counts = [("rise", self.rise), ("fall", self.fall)];
        let zero = counts.into_iter().find(|(_, count)| *count == Some(0))?;
        Some((zero.0, "0".to_owned(), "at least 1"))
    }
}

/// A table `[check.NAME]` with the pace that all of them have. (Serde cannot both flatten a shared
/// part and refuse unknown keys.)
macro_rules! check_tables {
    ($($(#[$doc:meta])* $table:ident $name:ident {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub struct $table {
                interval: Option<HumanDuration>,
                timeout: Option<HumanDuration>,
                rise: Option<u32>,
                fall: Option<u32>,
                time_to_live: Option<HumanDuration>,
                $($(#[$field_doc])* pub $field: $type,)*
            }
        )*

        /// The tables `[check.NAME]`.
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct CheckConfigs {
            $($(#[$doc])* pub $name: $table,)*
        }

        impl CheckConfigs {
            /// Every check's pace as far as it is set.
            #[must_use]
            pub fn paces(&self) -> Vec<(&'static str, PaceConfig)> {
                vec![$((stringify!($name), PaceConfig {
                    interval: self.$name.interval.map(|duration| duration.0),
                    timeout: self.$name.timeout.map(|duration| duration.0),
                    rise: self.$name.rise,
                    fall: self.$name.fall,
                    time_to_live: self.$name.time_to_live.map(|duration| duration.0),
                }),)*]
            }
        }
    };
}

check_tables! {
    /// `[check.session_listener]`: where people connect.
    SessionListenerConfig session_listener {
        /// Listeners that must be there; unset to find the known ones.
        listeners: Vec<ListenerConfig>,
        /// Must all listeners work, or any one of them?
        require: Require,
        /// A listener on loopback alone is good enough, as behind a local gateway.
        allow_loopback: bool,
    }
    /// `[check.domain]`: membership in a domain.
    DomainConfig domain {
        /// Domain that the machine must be joined to; unset for the pool's, else the one found.
        expected: Option<String>,
    }
    /// `[check.domain_reachable]`: a controller of the domain answers.
    DomainReachableConfig domain_reachable {}
    /// `[check.monitoring_agent]`: somebody watches this machine.
    MonitoringAgentConfig monitoring_agent {
        /// Service that must run; unset to find a known one.
        service: Option<String>,
        /// Program that must run, where it is no service.
        process: Option<String>,
        /// Several, each in full.
        agents: Vec<MonitorConfig>,
    }
    /// `[check.metadata_service]`: the cloud's metadata service.
    MetadataServiceConfig metadata_service {
        /// Provider, such as `azure`; unset to ask the firmware.
        provider: Option<String>,
        /// Base URL in place of the provider's own, such as `http://127.0.0.1:8080`.
        endpoint: Option<String>,
    }
    /// `[check.urls]`: what must be reachable beside the brokers.
    UrlsConfig urls {
        /// URLs, http or https.
        required: Vec<RequiredUrl>,
        /// Files in which names under a required wildcard are looked for.
        observed_in: Vec<PathBuf>,
    }
}

/// A monitoring agent that must be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// A known one, such as `node_exporter`.
    pub profile: Option<String>,
    /// Its service.
    pub service: Option<String>,
    /// Name of its program among the processes.
    pub process: Option<String>,
    /// Its program's file.
    pub executable: Option<PathBuf>,
    /// URL of its own health or metrics, asked without proxy; any answer below 400 is good.
    pub health: Option<String>,
    /// A file that it writes.
    pub file: Option<PathBuf>,
    /// How old that file may be.
    pub fresh_within: Option<HumanDuration>,
}

/// How many of the listeners must work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Require {
    /// Every one.
    #[default]
    All,
    /// One: the others are a spare that is missing.
    Any,
}

/// A listener that must be there.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `ssh`, `rdp`, `vnc`, `https`, `tls` or `tcp`: what is spoken beyond a TCP connection.
    pub protocol: String,
    /// TCP port.
    pub port: u16,
    /// Address to connect to; unset for the one that is listened on.
    pub address: Option<IpAddr>,
}

/// Protocols of listeners.
pub const PROTOCOLS: [&str; 6] = ["ssh", "rdp", "vnc", "https", "tls", "tcp"];

impl Config {
    /// Reads and checks the file. One that is missing is the default unless `required`.
    ///
    /// # Errors
    /// [`ConfigError`] names file, line, key, value and what is allowed.
    pub fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        let config: Self = config::load(path, required)?;
        match config.problem() {
            None => Ok(config),
            Some((key, value, allowed)) => Err(config::invalid_value(path, &key, &value, allowed)),
        }
    }

    /// Reads this machine's own checks.
    ///
    /// # Errors
    /// [`LoadError`] names the file that cannot be used.
    pub fn load_own_checks(&mut self) -> Result<(), LoadError> {
        self.own = Arc::new(own::load(&self.checks_dir)?);
        Ok(())
    }

    /// The first value that is not allowed: its key, itself, and what is allowed.
    fn problem(&self) -> Option<(String, String, &'static str)> {
        let wrong = |key: &str, value: String, allowed| Some((key.to_owned(), value, allowed));
        if self.brokers.len() > MAX_BROKERS {
            return wrong(
                "brokers",
                self.brokers.len().to_string(),
                "at most 16 brokers",
            );
        }
        if let Some(bad) = self
            .brokers
            .iter()
            .find(|broker| broker.parse::<BrokerAddress>().is_err())
        {
            return wrong("brokers", format!("{bad:?}"), "HOST:PORT or [IPv6]:PORT");
        }
        for (check, pace) in self.check.paces() {
            let key = |key: &str| format!("check.{check}.{key}");
            if let Some((name, value, allowed)) = pace.wrong(MIN_INTERVAL) {
                return wrong(&key(name), value, allowed);
            }
        }
        self.check_problem()
    }

    fn check_problem(&self) -> Option<(String, String, &'static str)> {
        let wrong = |key: &str, value: String, allowed| Some((key.to_owned(), value, allowed));
        let listeners = &self.check.session_listener.listeners;
        let key = "check.session_listener.listeners";
        if listeners.len() > MAX_LISTENERS {
            return wrong(key, listeners.len().to_string(), "at most 32 listeners");
        }
        for listener in listeners {
            if !PROTOCOLS.contains(&listener.protocol.as_str()) {
                let value = format!("protocol {:?}", listener.protocol);
                return wrong(key, value, "protocols ssh, rdp, vnc, https, tls, tcp");
            }
            if listener.port == 0 {
                return wrong(key, "port 0".into(), "ports 1 to 65535");
            }
        }
        let urls = &self.check.urls.required;
        if urls.len() > MAX_URLS {
            return wrong(
                "check.urls.required",
                urls.len().to_string(),
                "at most 32 URLs",
            );
        }
        if let Some(bad) = urls.iter().find(|required| !is_url(&required.url)) {
            return wrong("check.urls.required", format!("{:?}", bad.url), URL_ALLOWED);
        }
        if let Some(bad) = urls
            .iter()
            .find(|required| required.wildcard() == Wildcard::Misplaced)
        {
            let value = format!("{:?}", bad.url);
            return wrong("check.urls.required", value, WILDCARD_ALLOWED);
        }
        let files = &self.check.urls.observed_in;
        if files.len() > MAX_OBSERVED_IN || files.iter().any(|file| !file.is_absolute()) {
            let value = format!("{files:?}");
            return wrong("check.urls.observed_in", value, OBSERVED_IN_ALLOWED);
        }
        if let Some(problem) = self.monitors_problem() {
            return Some(problem);
        }
        let metadata = &self.check.metadata_service;
        if let Some(bad) = metadata.endpoint.as_ref().filter(|url| !is_url(url)) {
            return wrong(
                "check.metadata_service.endpoint",
                format!("{bad:?}"),
                URL_ALLOWED,
            );
        }
        let known = crate::checks::metadata_service::provider_names();
        if let Some(bad) = metadata
            .provider
            .as_ref()
            .filter(|name| !known.contains(&name.as_str()))
        {
            return wrong(
                "check.metadata_service.provider",
                format!("{bad:?}"),
                PROVIDERS_ALLOWED,
            );
        }
        None
    }
}

impl Config {
    fn monitors_problem(&self) -> Option<(String, String, &'static str)> {
        let key = "check.monitoring_agent.agents";
        let monitors = &self.check.monitoring_agent.agents;
        let wrong = |value: String, allowed| Some((key.to_owned(), value, allowed));
        if monitors.len() > MAX_MONITORS {
            return wrong(monitors.len().to_string(), "at most 8 agents");
        }
        for monitor in monitors {
            if let Some(name) = monitor
                .profile
                .as_ref()
                .filter(|name| profile(name).is_none())
            {
                return wrong(format!("profile {name:?}"), PROFILES_ALLOWED);
            }
            let named = [&monitor.profile, &monitor.service, &monitor.process];
            if named.iter().all(|name| name.is_none()) && monitor.executable.is_none() {
                return wrong(
                    "an agent without a name".to_owned(),
                    "agents with profile, service, process or executable",
                );
            }
            if let Some(bad) = monitor.health.as_ref().filter(|url| !is_url(url)) {
                return wrong(format!("health {bad:?}"), URL_ALLOWED);
            }
            if monitor.file.is_some() != monitor.fresh_within.is_some() {
                return wrong("file".to_owned(), "file and fresh_within together");
            }
        }
        None
    }
}

const PROFILES_ALLOWED: &str = "profiles node_exporter, zabbix-agent2, collectd, telegraf, \
                                azuremonitoragent, fluent-bit, datadog-agent, otelcol";
const URL_ALLOWED: &str = "http:// and https:// URLs without user name and password";
const WILDCARD_ALLOWED: &str =
    "a * for the first label under a domain, such as https://*.blob.example.net/";
const OBSERVED_IN_ALLOWED: &str = "at most 4 absolute paths";
const PROVIDERS_ALLOWED: &str =
    "azure, aws, gcp, openstack, digitalocean, hetzner, alibaba, oracle";

/// An http or https URL that carries no credentials.
#[must_use]
pub fn is_url(text: &str) -> bool {
    reqwest::Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::load(&path, true).map_err(|error| {
            error
                .to_string()
                .replace(&*folder.path().to_string_lossy(), "")
        })
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = load(
            r#"
            name = "vdi-01"
            brokers = ["broker.example.org:7443", "[::1]:7443"]
            data_dir = "/tmp/d"
            control_socket = "/tmp/c.sock"
            log = { format = "json", filter = "debug" }
            [check.session_listener]
            interval = "500ms"
            fall = 1
            allow_loopback = true
            listeners = [{ protocol = "tcp", port = 4000, address = "127.0.0.1" }]
            [check.domain]
            expected = "example.org"
            [check.monitoring_agent]
            service = "telegraf"
            [check.metadata_service]
            provider = "azure"
            endpoint = "http://127.0.0.1:8080"
            [check.urls]
            timeout = "3s"
            required = [{ url = "http://127.0.0.1:1/", role = "custom" }]
            "#,
        )
        .unwrap();
        assert_eq!(config.brokers.len(), 2);
        let paces = config.check.paces();
        let listener = paces
            .iter()
            .find(|(name, _)| *name == "session_listener")
            .unwrap()
            .1;
        let pace = listener.over(CheckPace::default());
        assert_eq!(pace.interval, Duration::from_millis(500));
        assert_eq!((pace.fall, pace.rise), (1, 1));
        assert_eq!(pace.timeout, CheckPace::default().timeout);
    }

    #[test]
    fn a_typo_is_named_with_its_line_and_the_nearest_key() {
        let error = load("name = \"a\"\n\n[check.urls]\nintervall = \"3s\"\n").unwrap_err();
        for part in ["/agent.toml:4", "`intervall`", "`interval`", "required"] {
            assert!(error.contains(part), "{part} in: {error}");
        }
    }

    #[test]
    fn values_that_are_not_allowed_are_named_with_what_is() {
        let table = [
            ("brokers = [\"bro ker\"]", "brokers", "HOST:PORT"),
            ("brokers = [\"https://b:1\"]", "brokers", "HOST:PORT"),
            (
                "[check.urls]\ninterval = \"1ms\"",
                "check.urls.interval",
                "at least 100ms",
            ),
            ("[check.urls]\nfall = 0", "check.urls.fall", "at least 1"),
            (
                "[check.urls]\nrequired = [{ url = \"ftp://x\" }]",
                "check.urls.required",
                "http://",
            ),
            (
                "[check.urls]\nrequired = [{ url = \"https://*.net/\" }]",
                "check.urls.required",
                "*.blob.example.net",
            ),
            (
                "[check.urls]\nobserved_in = [\"log\"]",
                "check.urls.observed_in",
                "absolute",
            ),
            (
                "[check.urls]\nrequired = [{ url = \"http://u:p@x\" }]",
                "required",
                "without user",
            ),
            (
                "[check.session_listener]\nlisteners = [{ protocol = \"telnet\", port = 23 }]",
                "protocol \"telnet\"",
                "ssh, rdp, vnc",
            ),
            (
                "[check.monitoring_agent]\nagents = [{ profile = \"moon\" }]",
                "profile \"moon\"",
                "node_exporter",
            ),
            (
                "[check.monitoring_agent]\nagents = [{ service = \"x\", file = \"/x\" }]",
                "file",
                "fresh_within",
            ),
            (
                "[check.metadata_service]\nprovider = \"moon\"",
                "\"moon\"",
                "azure, aws",
            ),
        ];
        for (text, what, allowed) in table {
            let error = load(text).unwrap_err();
            assert!(
                error.contains(what) && error.contains(allowed),
                "{text:?} gave: {error}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_the_default_unless_it_was_asked_for() {
        let nowhere = Path::new("/nonexistent/agent.toml");
        assert!(Config::load(nowhere, false).is_ok());
        assert!(Config::load(nowhere, true).is_err());
    }

    #[test]
    fn allowed_providers_are_those_that_exist() {
        assert_eq!(
            crate::checks::metadata_service::provider_names().join(", "),
            PROVIDERS_ALLOWED
        );
    }
}
