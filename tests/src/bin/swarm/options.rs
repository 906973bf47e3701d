//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use muster_runtime::config::HumanDuration;
use muster_tests::broker::Settings;

/// Thousands of simulated agents over real mTLS against a broker that it starts, and what they and
/// a watching front end see of it.
#[derive(Debug, Parser)]
#[command(
    name = "muster-swarm",
    after_help = "Examples:\n  \
    cargo swarm steady --agents 1000 --for 60s\n  \
    cargo swarm kill --agents 1000 --real 50 --count 200 --per-minute 60\n  \
    cargo swarm reconnect --agents 10000 --json reconnect.json\n\n\
    The report goes to standard output, progress to standard error. Exits 0 when all came out as \
    it must, 1 when it did not, 64 on a wrong command line. docs/swarm.md says more."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) script: Script,
}

/// What is played.
#[derive(Debug, Subcommand)]
pub(crate) enum Script {
    /// Agents beat and nothing happens.
    Steady(Steady),
    /// All connections break at once, and all agents connect again at once.
    Storm(Storm),
    /// Agents are killed: their sockets close, their listeners refuse.
    Kill(Harm),
    /// Agents fall silent while their connections stay open.
    BlackHole(BlackHole),
    /// The broker is stopped with SIGSTOP for a time and continued.
    Stop(Stop),
    /// The broker is killed with SIGKILL and started again.
    Reconnect(Reconnect),
    /// The broker is killed and started again and again beside a dead host.
    CrashLoop(CrashLoop),
    /// The broker beside a bare stream server: processor time of a beat, memory of an agent.
    Beside(Beside),
    /// `CheckHost` beside a rpc that does nothing.
    Questions(Questions),
    /// Takes a share of the agents; started by the others.
    #[command(hide = true)]
    Worker,
    /// The bare stream server; started by `beside`.
    #[command(hide = true)]
    Bare(Bare),
}

/// What every script has.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Light agents.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub(crate) agents: usize,
    /// Real `muster-agent` processes beside them.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) real: usize,
    /// Gives each light agent a session listener of its own on this port.
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "3389")]
    pub(crate) listeners: Option<u16>,
    /// The listeners speak SSH and not RDP.
    #[arg(long)]
    pub(crate) ssh: bool,
    /// Sets a pool policy by which the broker probes the listeners.
    #[arg(long)]
    pub(crate) probe: bool,
    /// Time between two beats.
    #[arg(long, default_value = "10s", value_name = "TIME")]
    pub(crate) interval: HumanDuration,
    /// Beats in a lease.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) lease_beats: u32,
    /// Added to the beats of a lease.
    #[arg(long, default_value = "5s", value_name = "TIME")]
    pub(crate) lease_grace: HumanDuration,
    /// Added to the lease for the window after a restart.
    #[arg(long, default_value = "1m", value_name = "TIME")]
    pub(crate) window: HumanDuration,
    /// Agents that connect in a second at first.
    #[arg(long, default_value_t = 300, value_name = "N")]
    pub(crate) per_second: u32,
    /// Processes that light agents live in; as many as the limit of open files asks for if not
    /// given.
    #[arg(long, value_name = "N")]
    pub(crate) processes: Option<usize>,
    /// Measures the steady state for this time before the script begins.
    #[arg(long, default_value = "0s", value_name = "TIME")]
    pub(crate) steady: HumanDuration,
    /// Percent of the packets from and to light agents that are lost, in a network of the swarm's
    /// own (needs root).
    #[arg(long, default_value_t = 0, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=50))]
    pub(crate) loss: u32,
    /// Keeps the broker's data and all identities in this folder, and goes on with what is there.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// The broker's binary; built from the sources if not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) broker: Option<PathBuf>,
    /// Writes the report as JSON into this file too.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Steady {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long.
    #[arg(long = "for", default_value = "1m", value_name = "TIME")]
    pub(crate) length: HumanDuration,
}

#[derive(Debug, Args)]
pub(crate) struct Storm {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) times: u32,
    /// All must be Confirmed again within this time.
    #[arg(long, default_value = "1m", value_name = "TIME")]
    pub(crate) within: HumanDuration,
}

#[derive(Debug, Args)]
pub(crate) struct Harm {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How many hosts; real agents are among them first.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) count: usize,
    /// How many in a minute. A broker takes 15 % of a fleet of 100 and more that are lost within a
    /// lease for a mass loss, which it treats with care.
    #[arg(long, default_value_t = 60, value_name = "N")]
    pub(crate) per_minute: u32,
    /// The front end must be told of 99 % within this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) told_p99: Option<HumanDuration>,
}

#[derive(Debug, Args)]
pub(crate) struct BlackHole {
    #[command(flatten)]
    pub(crate) harm: Harm,
    /// Their packets are lost, in a network of the swarm's own (needs root); without it their
    /// processes hang.
    #[arg(long)]
    pub(crate) drop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long the broker is stopped; several for several stops.
    #[arg(
        long = "for",
        default_value = "20s",
        value_name = "TIME",
        value_delimiter = ','
    )]
    pub(crate) lengths: Vec<HumanDuration>,
    /// Agents that are killed during each stop.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) kill: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Reconnect {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How often.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) times: u32,
    /// Time from the broker's end to its next start.
    #[arg(long, default_value = "0s", value_name = "TIME")]
    pub(crate) away: HumanDuration,
    /// All must be Confirmed again within this time after the start.
    #[arg(long, default_value = "1m", value_name = "TIME")]
    pub(crate) within: HumanDuration,
}

#[derive(Debug, Args)]
pub(crate) struct CrashLoop {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Time between two kills of the broker.
    #[arg(long, default_value = "90s", value_name = "TIME")]
    pub(crate) every: HumanDuration,
    /// The dead host must be told lost within this time; the window and ten minutes of hold if not
    /// given.
    #[arg(long, value_name = "TIME")]
    pub(crate) within: Option<HumanDuration>,
}

#[derive(Debug, Args)]
pub(crate) struct Beside {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Numbers of agents, instead of `--agents`.
    #[arg(long, default_value = "1000", value_name = "N", value_delimiter = ',')]
    pub(crate) sizes: Vec<usize>,
    /// How long beats are counted, each time.
    #[arg(long = "for", default_value = "1m", value_name = "TIME")]
    pub(crate) length: HumanDuration,
    /// How often each is measured, in turns.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) rounds: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Questions {
    #[command(flatten)]
    pub(crate) common: Common,
    /// How long each rpc is called, each time.
    #[arg(long = "for", default_value = "10s", value_name = "TIME")]
    pub(crate) length: HumanDuration,
    /// How often each is measured, in turns.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub(crate) rounds: u32,
    /// Connections that the callers share.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) connections: usize,
    /// Callers at once, each with one call under way.
    #[arg(long, default_value_t = 32, value_name = "N")]
    pub(crate) callers: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Bare {
    /// Data folder of the broker whose CA gives the certificate.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Trust domain of that CA.
    #[arg(long)]
    pub(crate) trust_domain: String,
    /// Interval that agents are told.
    #[arg(long)]
    pub(crate) interval_ms: u64,
    /// Lease that agents are told.
    #[arg(long)]
    pub(crate) lease_ms: u64,
}

impl Script {
    /// Its name on the command line.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Steady(_) => "steady",
            Self::Storm(_) => "storm",
            Self::Kill(_) => "kill",
            Self::BlackHole(_) => "black-hole",
            Self::Stop(_) => "stop",
            Self::Reconnect(_) => "reconnect",
            Self::CrashLoop(_) => "crash-loop",
            Self::Beside(_) => "beside",
            Self::Questions(_) => "questions",
            Self::Worker => "worker",
            Self::Bare(_) => "bare",
        }
    }

    /// Does it need a network of its own, where packets are lost?
    pub(crate) fn loses_packets(&self) -> bool {
        let swallows = matches!(self, Self::BlackHole(script) if script.drop);
        swallows || self.common().is_some_and(|common| common.loss > 0)
    }

    /// What every script has; children have nothing.
    pub(crate) fn common(&self) -> Option<&Common> {
        match self {
            Self::Steady(script) => Some(&script.common),
            Self::Storm(script) => Some(&script.common),
            Self::Kill(script) => Some(&script.common),
            Self::BlackHole(script) => Some(&script.harm.common),
            Self::Stop(script) => Some(&script.common),
            Self::Reconnect(script) => Some(&script.common),
            Self::CrashLoop(script) => Some(&script.common),
            Self::Beside(script) => Some(&script.common),
            Self::Questions(script) => Some(&script.common),
            Self::Worker | Self::Bare(_) => None,
        }
    }
}

impl Common {
    /// How the broker is started.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            interval: self.interval.0,
            lease_beats: self.lease_beats,
            lease_grace: self.lease_grace.0,
            reconnect_window: self.window.0,
            more: String::new(),
        }
    }

    /// Hosts in all.
    pub(crate) fn hosts(&self) -> usize {
        self.agents + self.real
    }

    /// The window after a restart.
    pub(crate) fn restart_window(&self) -> Duration {
        self.settings().lease() + self.window.0
    }
}
