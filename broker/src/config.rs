//! The broker's configuration: `broker.toml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use muster_core::host::Terms;
use muster_runtime::{
    accept::AcceptOptions,
    config::{ConfigError, HumanDuration, invalid_value},
    telemetry::LogFormat,
};
use serde::Deserialize;

use crate::registry::Pace;

/// All keys of `broker.toml`, with their defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where everything is kept that must outlive the process.
    pub data_dir: PathBuf,
    /// The operators' Unix socket.
    pub operator_socket: PathBuf,
    /// Group that may use the operators' socket.
    pub operator_group: String,
    /// Listeners.
    pub listen: Listen,
    /// TLS.
    pub tls: Tls,
    /// Beats, leases and the restart window.
    pub liveness: Liveness,
    /// What one peer, and all together, may ask for.
    pub limits: Limits,
    /// Logging.
    pub log: Log,
}

/// Where the broker listens. Port 0 takes any free one.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// gRPC, TLS always.
    pub grpc: SocketAddr,
    /// Metrics and health, plain text, loopback only.
    pub http: SocketAddr,
}

/// TLS of the broker.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// DNS names and addresses under which clients reach the broker, beside its host name and
    /// loopback. Agents do not need them: they know the broker by its CA.
    pub names: Vec<String>,
}

/// Beats, leases and the restart window.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Liveness {
    /// Time between two beats.
    pub interval: HumanDuration,
    /// A lease is this many beats and the grace.
    pub lease_beats: u32,
    /// Added to the beats of a lease.
    pub lease_grace: HumanDuration,
    /// After a restart hosts have a lease and this to come back.
    pub reconnect_window: HumanDuration,
}

/// What one peer, and all together, may ask for. Whoever asks for more is refused by name.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Live sessions of agents: twice the fleet that was measured on one broker.
    pub sessions: usize,
    /// Messages of one session in a second, in the long run. An agent says one in ten seconds; an
    /// interval of 100 ms is ten a second.
    pub messages_per_second: u32,
    /// Connections open at once; more wait in the kernel.
    pub connections: usize,
    /// TLS handshakes under way at once, at most half of them from one address.
    pub handshakes: usize,
    /// A handshake that takes longer is ended.
    pub handshake_timeout: HumanDuration,
}

/// Seconds whose messages a session may say at once.
const BURST_SECONDS: u32 = 5;

impl Limits {
    /// Messages that a session may say at once.
    #[must_use]
    pub const fn messages_burst(&self) -> u32 {
        self.messages_per_second.saturating_mul(BURST_SECONDS)
    }
}

impl Default for Limits {
    fn default() -> Self {
        let accept = AcceptOptions::default();
        Self {
            sessions: 30_000,
            messages_per_second: 20,
            connections: accept.connections,
            handshakes: accept.handshakes,
            handshake_timeout: HumanDuration(accept.handshake_timeout),
        }
    }
}

/// Logging.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `human` or `json`.
    pub format: LogFormat,
    /// What is logged, such as `info` or `muster_broker=debug`.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/muster-broker".into(),
            operator_socket: "/run/muster-broker/operator.sock".into(),
            operator_group: "muster".to_owned(),
            listen: Listen::default(),
            tls: Tls::default(),
            liveness: Liveness::default(),
            limits: Limits::default(),
            log: Log::default(),
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 7443)),
            http: SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 7480)),
        }
    }
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            interval: HumanDuration(Duration::from_secs(10)),
            lease_beats: 3,
            lease_grace: HumanDuration(Duration::from_secs(5)),
            reconnect_window: HumanDuration(Duration::from_secs(60)),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
        }
    }
}

impl Config {
    /// Reads `path` and checks what its types cannot.
    ///
    /// # Errors
    /// [`ConfigError`] names file, line, key and what is allowed.
    pub fn load(path: &std::path::Path, required: bool) -> Result<Self, ConfigError> {
        let config: Self = muster_runtime::config::load(path, required)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &std::path::Path) -> Result<(), ConfigError> {
        let liveness = &self.liveness;
        let within = |key: &str, value: HumanDuration, least: Duration, most: Duration| {
            if (least..=most).contains(&value.0) {
                return Ok(());
            }
            let allowed = format!("{} to {}", HumanDuration(least), HumanDuration(most));
            Err(invalid_value(path, key, &value.to_string(), &allowed))
        };
        let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
        within(
            "liveness.interval",
            liveness.interval,
            millis(100),
            seconds(300),
        )?;
        within(
            "liveness.lease_grace",
            liveness.lease_grace,
            millis(0),
            seconds(300),
        )?;
        within(
            "liveness.reconnect_window",
            liveness.reconnect_window,
            millis(0),
            seconds(600),
        )?;
        if !(2..=10).contains(&liveness.lease_beats) {
            let value = liveness.lease_beats.to_string();
            return Err(invalid_value(
                path,
                "liveness.lease_beats",
                &value,
                "2 to 10",
            ));
        }
        let limits = &self.limits;
        within(
            "limits.handshake_timeout",
            limits.handshake_timeout,
            millis(100),
            seconds(60),
        )?;
        for (key, value, least, most) in [
            ("limits.sessions", limits.sessions, 1, 1_000_000),
            ("limits.connections", limits.connections, 16, 1_000_000),
            ("limits.handshakes", limits.handshakes, 2, 65_536),
            (
                "limits.messages_per_second",
                usize::try_from(limits.messages_per_second).unwrap_or(usize::MAX),
                2,
                10_000,
            ),
        ] {
            if !(least..=most).contains(&value) {
                let allowed = format!("{least} to {most}");
                return Err(invalid_value(path, key, &value.to_string(), &allowed));
            }
        }
        if !self.listen.http.ip().is_loopback() {
            let value = self.listen.http.to_string();
            let allowed = "a loopback address: metrics are plain text";
            return Err(invalid_value(path, "listen.http", &value, allowed));
        }
        Ok(())
    }

    /// What the listener of gRPC takes.
    #[must_use]
    pub fn accept_options(&self) -> AcceptOptions {
        AcceptOptions {
            handshakes: self.limits.handshakes,
            handshake_timeout: self.limits.handshake_timeout.0,
            connections: self.limits.connections,
            user_timeout: self.pace().terms.lease,
            ..AcceptOptions::default()
        }
    }

    /// What sessions are told.
    #[must_use]
    pub fn pace(&self) -> Pace {
        let interval = self.liveness.interval.0;
        let lease = interval
            .saturating_mul(self.liveness.lease_beats)
            .saturating_add(self.liveness.lease_grace.0);
        Pace {
            terms: Terms { interval, lease },
            reconnect_window: self.liveness.reconnect_window.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.toml");
        std::fs::write(&path, text).unwrap();
        let shown = path.display().to_string();
        Config::load(&path, true).map_err(|error| error.to_string().replace(&shown, "FILE"))
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let pace = load("").unwrap().pace();
        assert_eq!(pace.terms.interval, Duration::from_secs(10));
        assert_eq!(pace.terms.lease, Duration::from_secs(35));
        assert_eq!(pace.reconnect_window, Duration::from_secs(60));
    }

    #[test]
    fn a_typing_error_is_named_with_its_line_and_the_nearest_key() {
        let error = load("[listen]\n\n[liveness]\nintervall = \"1s\"\n").unwrap_err();
        assert!(
            error.starts_with("FILE:4: unknown key `intervall` in [liveness]"),
            "{error}"
        );
        assert!(error.contains("`interval`"), "{error}");
    }

    #[test]
    fn values_out_of_bounds_name_what_is_allowed() {
        for (text, says) in [
            ("[liveness]\ninterval = \"10ms\"", "100ms to 5m"),
            ("[liveness]\nlease_beats = 1", "2 to 10"),
            ("[limits]\nsessions = 0", "1 to 1000000"),
            ("[limits]\nmessages_per_second = 1", "2 to 10000"),
            ("[limits]\nhandshake_timeout = \"2m\"", "100ms to 1m"),
            ("[listen]\nhttp = \"0.0.0.0:7480\"", "loopback"),
            ("[liveness]\ninterval = \"soon\"", "soon"),
        ] {
            let error = load(text).unwrap_err();
            assert!(
                error.starts_with("FILE:2") && error.contains(says),
                "{error}"
            );
        }
    }
}
