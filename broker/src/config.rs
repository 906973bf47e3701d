//! The broker's configuration: `broker.toml`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use muster_core::host::Terms;
use muster_runtime::{
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
        if !self.listen.http.ip().is_loopback() {
            let value = self.listen.http.to_string();
            let allowed = "a loopback address: metrics are plain text";
            return Err(invalid_value(path, "listen.http", &value, allowed));
        }
        Ok(())
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
