//! What a run showed, as JSON; `text` has it for people.

use std::{process::Command, time::Duration};

use muster_tests::binaries::repository;
use serde::{Deserialize, Serialize};

/// Everything that a run showed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The script.
    pub(crate) script: String,
    /// How to repeat it.
    pub(crate) command: String,
    /// When it began, RFC 3339.
    pub(crate) date: String,
    /// Commit that was measured; `+` for changes on top of it.
    pub(crate) commit: String,
    /// `release` or `debug`.
    pub(crate) profile: String,
    /// Processors of the machine.
    pub(crate) processors: usize,
    /// Light agents.
    pub(crate) agents: usize,
    /// Real agents beside them.
    pub(crate) real_agents: usize,
    /// Processes that the light agents lived in.
    pub(crate) processes: usize,
    /// Each light agent had a session listener of its own.
    pub(crate) listeners: bool,
    /// Percent of the packets from and to light agents that were lost.
    pub(crate) loss_percent: u32,
    /// The broker probed.
    pub(crate) probe: bool,
    /// Time between two beats, milliseconds.
    pub(crate) interval_ms: u64,
    /// Lease, milliseconds.
    pub(crate) lease_ms: u64,
    /// Restart window, milliseconds.
    pub(crate) window_ms: u64,
    /// Hosts enrolled in this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) enrolled: Option<Amount>,
    /// Agents connected at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connected: Option<Amount>,
    /// The steady state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) steady: Option<Steady>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
    /// Hosts that were harmed, and when the front end was told.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) harmed: Vec<Harmed>,
    /// Times that all connections or the broker went away.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) returns: Vec<Return>,
    /// The broker beside the bare server, at each size.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) compared: Vec<Compared>,
    /// Questions that were asked, round by round.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) asked: Vec<Asked>,
    /// Throughput of `CheckHost` beside that of the rpc that does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked_ratio: Option<f64>,
    /// The broker's processor time of a `CheckHost` beside that of the rpc that does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked_cpu_ratio: Option<f64>,
    /// Hosts told Unavailable that nobody had harmed.
    pub(crate) false_unavailable: usize,
    /// Hosts told not connectable for new sessions that nobody had harmed.
    pub(crate) false_not_connectable: usize,
    /// Some of those words.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) examples: Vec<String>,
    /// The longest time in which the front end heard nothing at all, milliseconds.
    pub(crate) longest_watch_silence_ms: u64,
    /// What did not come out as it must.
    pub(crate) failures: Vec<String>,
}

/// How many in what time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub(crate) count: usize,
    pub(crate) seconds: f64,
}

/// A time in which agents did nothing but beat.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Steady {
    pub(crate) seconds: f64,
    pub(crate) beats: u64,
    pub(crate) beats_per_second: f64,
    /// Processor time of the server for each beat, user and system, microseconds.
    pub(crate) server_us_per_beat: f64,
    /// Processor time of the server, percent of one processor.
    pub(crate) server_cpu_percent: f64,
    /// Processor time of the swarm for each beat, microseconds.
    pub(crate) swarm_us_per_beat: f64,
}

/// Memory of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Resident, KiB, of a server without hosts.
    pub(crate) empty_kib: u64,
    /// Resident, KiB, with all agents connected.
    pub(crate) connected_kib: u64,
    /// Proportional share, KiB, with all agents connected.
    pub(crate) connected_pss_kib: u64,
    /// Resident, KiB, for each agent.
    pub(crate) per_agent_kib: f64,
}

/// Hosts that were harmed in one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Harmed {
    pub(crate) what: String,
    pub(crate) count: usize,
    /// Time until the front end was told; none where it never was.
    pub(crate) told: Option<Latency>,
    /// Hosts of which it was never told.
    pub(crate) untold: Vec<String>,
}

/// Times, milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) count: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

/// How all came back after something went away.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Return {
    pub(crate) what: String,
    /// How long the broker was away, milliseconds.
    pub(crate) broker_away_ms: u64,
    /// From its return until the last agent had its report acknowledged; none if that never came.
    pub(crate) agents_back_ms: Option<u64>,
    /// From its return until the front end saw all hosts Confirmed; none if that never came.
    pub(crate) confirmed_ms: Option<u64>,
}

/// The broker beside the bare server with so many agents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) agents: usize,
    /// Each time that one was measured.
    pub(crate) costs: Vec<Cost>,
    /// Processor time of a beat, microseconds, as measured over all rounds.
    pub(crate) broker_us: f64,
    pub(crate) bare_us: f64,
    /// The broker's beside the bare server's.
    pub(crate) cpu_ratio: f64,
    /// Memory of an agent, KiB, mean of all rounds.
    pub(crate) broker_kib: f64,
    pub(crate) bare_kib: f64,
    /// The broker's beside the bare server's.
    pub(crate) memory_ratio: f64,
}

/// What a server cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// `broker` or `bare`.
    pub(crate) server: String,
    pub(crate) steady: Steady,
    pub(crate) memory: Memory,
}

/// One rpc, asked for a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) rpc: String,
    pub(crate) per_second: f64,
    /// Processor time of the broker for each call, microseconds.
    pub(crate) server_us_per_call: f64,
    pub(crate) time: Latency,
}

impl Compared {
    /// Of what both cost.
    pub(crate) fn of(agents: usize, costs: Vec<Cost>) -> Self {
        let mean = |server: &str, value: fn(&Cost) -> f64| {
            let of = || costs.iter().filter(|cost| cost.server == server);
            of().map(value).sum::<f64>() / as_f64(of().count() as u64).max(1.0)
        };
        let us = |cost: &Cost| cost.steady.server_us_per_beat;
        let kib = |cost: &Cost| cost.memory.per_agent_kib;
        let (broker_us, bare_us) = (mean("broker", us), mean("bare", us));
        let (broker_kib, bare_kib) = (mean("broker", kib), mean("bare", kib));
        Self {
            agents,
            broker_us,
            bare_us,
            cpu_ratio: ratio(broker_us, bare_us),
            broker_kib,
            bare_kib,
            memory_ratio: ratio(broker_kib, bare_kib),
            costs,
        }
    }
}

impl Latency {
    /// Of these times; none if there are none.
    pub(crate) fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        // The smallest time that so many hundredths of all do not exceed.
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).max(1) - 1;
            millis(times[index.min(last)])
        };
        Some(Self {
            count: times.len(),
            p50_ms: at(50),
            p99_ms: at(99),
            max_ms: millis(times[last]),
        })
    }
}

impl Steady {
    /// Of these beats in this time, with the processor time that server and swarm used for them.
    pub(crate) fn of(beats: u64, seconds: f64, server: Duration, swarm: Duration) -> Self {
        let count = as_f64(beats);
        let each = |used: Duration| used.as_secs_f64() * 1e6 / count.max(1.0);
        Self {
            seconds,
            beats,
            beats_per_second: count / seconds,
            server_us_per_beat: each(server),
            server_cpu_percent: server.as_secs_f64() / seconds * 100.0,
            swarm_us_per_beat: each(swarm),
        }
    }
}

/// One beside the other; 0 where a run was too short to measure the other.
fn ratio(one: f64, other: f64) -> f64 {
    if other > 0.0 { one / other } else { 0.0 }
}

/// Counts of a run are far below what 32 bits hold.
fn as_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

impl Report {
    /// Something did not come out as it must.
    pub(crate) fn fail(&mut self, why: impl Into<String>) {
        self.failures.push(why.into());
    }
}

/// The commit of the sources, short; `+` for changes on top of it; empty outside of git.
pub(crate) fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(arguments)
            .current_dir(repository())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if dirty.is_some_and(|changes| !changes.is_empty()) {
        "+"
    } else {
        ""
    };
    format!("{commit}{mark}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = |millis: &[u64]| {
            let times = millis.iter().copied().map(Duration::from_millis);
            Latency::of(times.collect())
        };
        assert_eq!(times(&[]), None);
        let one = times(&[7]).unwrap();
        assert!(one.p50_ms == 7.0 && one.p99_ms == 7.0 && one.max_ms == 7.0);
        let hundred: Vec<u64> = (1..=200).rev().collect();
        let told = times(&hundred).unwrap();
        assert!(
            told.p50_ms == 100.0 && told.p99_ms == 198.0 && told.max_ms == 200.0,
            "{told:?}"
        );
    }
}
