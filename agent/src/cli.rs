//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_core::model::HostName;
use muster_runtime::{config::HumanDuration, identity::Pin, telemetry::LogFormat};

const EXAMPLES: &str = "Examples:
  muster-agent enroll --broker broker.example.org:7443 --token-file token --ca-pin sha256:...
  muster-agent run
  muster-agent doctor
  muster-agent announce upgrading --to 1.5.0 --for 10m

Exit codes: 0 done, 1 failed, 64 the command line is wrong, 70 a part of the agent was stuck and
it ended itself, 78 the configuration is wrong; those of doctor and announce are told there.";

/// Runs this session host's checks and reports to the broker.
#[derive(Parser, Debug)]
#[command(name = "muster-agent", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) settings: Settings,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What all commands take. A flag wins over the configuration file.
#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Configuration file; the default one may be missing
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE",
          default_value = muster_agent::config::DEFAULT_PATH)]
    pub(crate) config: PathBuf,
    /// Folder of identity, cached policy and announcements
    #[arg(long, global = true, env = "MUSTER_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Socket between `run` and `announce`
    #[arg(
        long,
        global = true,
        env = "MUSTER_CONTROL_SOCKET",
        value_name = "PATH"
    )]
    pub(crate) control_socket: Option<PathBuf>,
    /// How log lines look: human or json
    #[arg(long, global = true, env = "MUSTER_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// What is logged, such as info or info,muster_agent=debug
    #[arg(long, global = true, env = "MUSTER_LOG_FILTER", value_name = "FILTER")]
    pub(crate) log_filter: Option<String>,
    /// How results are printed
    #[arg(
        long,
        global = true,
        env = "MUSTER_OUTPUT",
        value_enum,
        default_value = "table"
    )]
    pub(crate) output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// One JSON value.
    Json,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Runs the checks and keeps a session with the broker, until SIGTERM or SIGINT
    Run,
    /// Trades a join token for the identity of a host
    ///
    /// After a lost reply give the same command again: the broker answers as it did before.
    #[command(after_help = "Example:
  muster-agent enroll --broker broker.example.org:7443 --token-file token --ca-pin sha256:...")]
    Enroll(Enroll),
    /// Runs every check once, without a broker, and says what to do
    ///
    /// Exit codes: 0 nothing worse than Warn; 1 a check that is not fatal fails; 2 a fatal one does.
    #[command(after_help = "Examples:
  muster-agent doctor
  muster-agent doctor --check urls --output json")]
    Doctor(Doctor),
    /// Announces to the broker what this machine is about to do
    ///
    /// Exit codes: 0 the broker has it for good; 1 it is kept here and not acknowledged yet, or
    /// could not be kept.
    #[command(after_help = "Examples:
  muster-agent announce upgrading --to 1.5.0 --for 10m
  muster-agent announce upgrade-failed --error 'no space left'
  muster-agent announce shutdown --kind reboot --back-within 5m
  muster-agent announce running")]
    Announce {
        #[command(subcommand)]
        what: Announce,
    },
}

#[derive(Args)]
pub(crate) struct Enroll {
    /// Broker to enrol at; may be given several times
    #[arg(
        long,
        env = "MUSTER_BROKER",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub(crate) broker: Vec<muster_runtime::channel::BrokerAddress>,
    /// Join token, as printed by `muster-broker token create`
    #[arg(
        long,
        env = "MUSTER_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub(crate) token: Option<String>,
    /// File with the join token, so that it stands in no list of processes
    #[arg(long, env = "MUSTER_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Pin of the fleet's CA, as printed with the token
    #[arg(long, env = "MUSTER_CA_PIN", value_name = "sha256:HEX")]
    pub(crate) ca_pin: Pin,
    /// Name of the host; the lower-cased hostname unless given here or in the configuration
    #[arg(long, env = "MUSTER_NAME")]
    pub(crate) name: Option<HostName>,
    /// Replace the identity that this machine has
    #[arg(long, env = "MUSTER_AGAIN")]
    pub(crate) again: bool,
}

impl std::fmt::Debug for Enroll {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enroll")
            .field("broker", &self.broker)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(Args, Debug)]
pub(crate) struct Doctor {
    /// Only this check; may be given several times
    #[arg(long, env = "MUSTER_CHECK", value_name = "NAME", value_delimiter = ',')]
    pub(crate) check: Vec<String>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Announce {
    /// An upgrade has begun that others perform (apt, Ansible): the host is Upgrading
    Upgrading {
        /// Version wanted
        #[arg(long)]
        to: String,
        /// It takes at most this long, such as 10m
        #[arg(long = "for", value_name = "DURATION")]
        within: Option<HumanDuration>,
    },
    /// The upgrade failed: the host takes connections, and its status says so
    UpgradeFailed {
        /// What went wrong
        #[arg(long)]
        error: String,
        /// Version wanted, where no upgrade was announced before
        #[arg(long)]
        to: Option<String>,
    },
    /// The machine is about to power off or reboot
    Shutdown {
        /// poweroff or reboot
        #[arg(long, value_enum)]
        kind: ShutdownKind,
        /// A reboot is back within this time, such as 5m
        #[arg(long, value_name = "DURATION")]
        back_within: Option<HumanDuration>,
    },
    /// Nothing of the above: withdraws what was announced
    Running,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ShutdownKind {
    /// Powers off
    Poweroff,
    /// Reboots
    Reboot,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_hangs_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_may_follow_the_command() {
        let pin = format!("sha256:{}", "a".repeat(64));
        let cli = Cli::try_parse_from([
            "muster-agent",
            "enroll",
            "--broker",
            "b:1",
            "--token",
            "secret",
            "--ca-pin",
            &pin,
            "--config",
            "/x.toml",
            "--output",
            "json",
        ])
        .unwrap();
        assert_eq!(cli.settings.config, PathBuf::from("/x.toml"));
        assert_eq!(cli.settings.output, Output::Json);
        assert!(!format!("{cli:?}").contains("secret"));
    }

    #[test]
    fn names_that_are_not_allowed_are_refused_by_character() {
        let pin = format!("sha256:{}", "a".repeat(64));
        let long = "n".repeat(300);
        for (name, says) in [("VDI", "'V' at character 1"), (&*long, "300 characters")] {
            let parsed = Cli::try_parse_from([
                "muster-agent",
                "enroll",
                "--broker",
                "b:1",
                "--token",
                "t",
                "--ca-pin",
                &pin,
                "--name",
                name,
            ]);
            let error = parsed.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
