//! What is told of a run: a hash over everything, and readable lines when somebody wants them.

use std::{
    collections::VecDeque,
    fmt,
    hash::{DefaultHasher, Hasher as _},
};

use muster_core::model::Mono;

use muster_core::fleet::Met;

use crate::{
    agent::{AckOf, Down, Up},
    world::{BEGIN, Ev},
};

/// Lines that are kept of a run that is told.
const KEPT: usize = 4000;

/// The trace of a run.
#[derive(Debug, Default)]
pub struct Trace {
    tells: bool,
    prints: bool,
    hash: DefaultHasher,
    /// The last lines.
    pub lines: VecDeque<String>,
}

impl Trace {
    /// Only a hash.
    #[must_use]
    pub fn quiet() -> Self {
        Self::default()
    }

    /// Keeps the last lines, and prints all if asked to.
    #[must_use]
    pub fn telling(prints: bool) -> Self {
        Self {
            tells: true,
            prints,
            ..Self::default()
        }
    }

    /// Somebody reads the lines.
    #[must_use]
    pub fn tells(&self) -> bool {
        self.tells
    }

    /// An event.
    pub fn event(&mut self, at: Mono, ev: &Ev) {
        self.hash.write_u128(at.since_origin().as_nanos());
        self.hash.write_u8(kind(ev));
        if self.tells
            && let Some(text) = told(ev)
        {
            self.line(at, format_args!("{text}"));
        }
    }

    /// A readable line.
    pub fn line(&mut self, at: Mono, text: fmt::Arguments<'_>) {
        if !self.tells {
            return;
        }
        let line = format!("{:10.4}  {text}", at.since(BEGIN).as_secs_f64());
        if self.prints {
            println!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Counts in the hash.
    pub fn number(&mut self, number: u64) {
        self.hash.write_u64(number);
    }

    /// Hash over all that happened.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }
}

/// An event in words; none for those that nobody wants to read.
fn told(ev: &Ev) -> Option<String> {
    Some(match ev {
        Ev::Tick(_)
        | Ev::Look(_)
        | Ev::Wake(_)
        | Ev::Ask
        | Ev::Critical(_)
        | Ev::Watch(_)
        | Ev::Ran(..)
        | Ev::Commit(_)
        | Ev::FrontEnd(_)
        | Ev::Outcome(_, _, Met::Ok)
        | Ev::Down(_, Down::Ack(AckOf::Report))
        | Ev::Fault(..) => return None,
        Ev::Up(conn, up) => format!("broker <- {conn}: {}", up_word(up)),
        Ev::Replay(host, epoch, up) => {
            format!(
                "broker <- adversary for host {host}, epoch {}: {}",
                epoch.get(),
                up_word(up)
            )
        }
        Ev::Down(conn, down) => format!("agent <- {conn}: {down:?}"),
        Ev::Dialled(dial) => format!("dial {:?} arrives at {}", dial.purpose, dial.target),
        Ev::DialDone(dial, outcome) => {
            format!(
                "dial {:?} of {}: {}",
                dial.purpose,
                dial.target,
                outcome.as_str()
            )
        }
        Ev::Retry(_)
        | Ev::Start
        | Ev::Arrive(_)
        | Ev::AgentLost(_)
        | Ev::BrokerLost(_)
        | Ev::UpTimeout(_)
        | Ev::DownTimeout(_)
        | Ev::NoWelcome(_)
        | Ev::Gone(..)
        | Ev::Outcome(..) => format!("{ev:?}"),
    })
}

fn up_word(up: &Up) -> String {
    match up {
        Up::Beat(beat) => format!(
            "Beat {} (results valid {:.1} s)",
            beat.sequence,
            beat.results_valid.as_secs_f64()
        ),
        Up::Report(report) => {
            let checks: Vec<String> = report
                .checks
                .iter()
                .map(|check| {
                    let age = check.age.map_or(-1.0, |age| age.as_secs_f64());
                    format!("{} {} {age:.1}", check.name, check.outcome)
                })
                .collect();
            format!(
                "Report {} (valid {:.1} s, {:?}): {}",
                report.sequence,
                report.results_valid.as_secs_f64(),
                report.power,
                checks.join("; ")
            )
        }
        Up::Leaving(power) => format!("Leaving {power:?}"),
        Up::Upgrade(upgrade) => format!("Upgrade {upgrade:?}"),
    }
}

fn kind(ev: &Ev) -> u8 {
    match ev {
        Ev::Tick(_) => 0,
        Ev::Look(_) => 1,
        Ev::Commit(_) => 2,
        Ev::Retry(_) => 3,
        Ev::Arrive(_) => 4,
        Ev::Up(..) => 5,
        Ev::Replay(..) => 6,
        Ev::Down(..) => 7,
        Ev::AgentLost(_) => 8,
        Ev::BrokerLost(_) => 9,
        Ev::UpTimeout(_) => 10,
        Ev::DownTimeout(_) => 11,
        Ev::NoWelcome(_) => 12,
        Ev::Wake(_) => 13,
        Ev::Ran(..) => 14,
        Ev::Gone(..) => 15,
        Ev::Fault(..) => 16,
        Ev::Dialled(_) => 17,
        Ev::DialDone(..) => 18,
        Ev::Watch(_) => 19,
        Ev::Ask => 20,
        Ev::Critical(_) => 21,
        Ev::FrontEnd(_) => 22,
        Ev::Outcome(..) => 23,
        Ev::Start => 24,
    }
}
