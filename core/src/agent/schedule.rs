//! Which check runs when.
//!
//! ```text
//!            start_due                 handle_finished
//!   Idle(due) ---------> Running(run) ----------------> Idle(due)
//! ```
//!
//! After a sleep of the machine (`handle_wake`) all are idle and due, whatever they were.
//!
//! A check never overlaps itself; a late word of an older run changes nothing. The first run is
//! due at once, a suspected failure is confirmed after [`CONFIRM_AFTER`], and jitter only shortens
//! the interval, so that results never age past their time to live for its sake.

use std::{sync::Arc, time::Duration};

use super::{
    Observation, Random, ResultSet, Settle,
    results::{Entry, Finished},
};
use crate::model::{
    CheckName, CheckPace, CheckResult, MAX_CHECKS, Mono, Outcome, SessionCounts, UnknownCause,
};

/// A suspected failure is looked at again after this time: long enough for a service that restarts
/// to listen again, short enough that a broken host is known before its next regular run.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);
/// Shortest interval: below it the checks themselves become the load.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two starts when runs are asked for: session listeners take many short
/// connections for an attack.
const MIN_RECHECK_GAP: Duration = Duration::from_secs(1);

/// One check that is to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckSpec {
    /// Name of the check.
    pub name: CheckName,
    /// Kind of the check.
    pub kind: Arc<str>,
    /// Its pace.
    pub pace: CheckPace,
    /// This agent has such a check.
    pub supported: bool,
}

/// Names one run, so that a late word of an older one is told apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RunId(u64);

/// A run to be started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Start {
    /// The check.
    pub name: CheckName,
    /// The run.
    pub run: RunId,
    /// End it after this time.
    pub timeout: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Idle { due: Mono },
    Running { run: RunId, next: Mono, again: bool },
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Slot {
    entry: Entry,
    settle: Settle,
    state: State,
    started: Option<Mono>,
}

/// The schedule of all checks of a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Schedule {
    slots: Vec<Slot>,
    runs: u64,
}

impl Schedule {
    /// These checks and no others from now on. One that stays keeps its result and its pace is
    /// changed; a new one is due at once. At most [`MAX_CHECKS`] are taken; the names of those
    /// left out are returned.
    pub fn set_checks(&mut self, specs: Vec<CheckSpec>, now: Mono) -> Vec<CheckName> {
        let mut left_out = Vec::new();
        let mut slots: Vec<Slot> = Vec::new();
        for mut spec in specs {
            if slots.len() == MAX_CHECKS || slots.iter().any(|slot| slot.entry.name == spec.name) {
                left_out.push(spec.name);
                continue;
            }
            spec.pace.interval = spec.pace.interval.max(MIN_INTERVAL);
            let old = self.slots.iter().position(|slot| {
                slot.entry.name == spec.name
                    && slot.entry.kind == spec.kind
                    && slot.entry.supported == spec.supported
            });
            slots.push(match old {
                Some(at) => self.slots.swap_remove(at).with_pace(spec.pace),
                None => Slot::new(spec, now),
            });
        }
        self.slots = slots;
        left_out
    }

    /// The runs that are to start now; each must be answered by [`Self::handle_finished`].
    /// `random` is drawn once for each, for the jitter of the run after it.
    #[must_use]
    pub fn start_due(&mut self, now: Mono, mut random: impl FnMut() -> Random) -> Vec<Start> {
        let mut starts = Vec::new();
        for slot in &mut self.slots {
            let State::Idle { due } = slot.state else {
                continue;
            };
            if due > now || !slot.entry.supported {
                continue;
            }
            self.runs += 1;
            let run = RunId(self.runs);
            let interval = slot.entry.pace.interval;
            slot.state = State::Running {
                run,
                next: now + interval.saturating_sub(random().within(interval / 10)),
                again: false,
            };
            slot.started = Some(now);
            starts.push(Start {
                name: slot.entry.name.clone(),
                run,
                timeout: slot.entry.pace.timeout,
            });
        }
        starts
    }

    /// A run has ended. False if it is not the one that is waited for: an older one, or one of a
    /// check that is gone.
    pub fn handle_finished(
        &mut self,
        name: &CheckName,
        run: RunId,
        observation: Observation,
        now: Mono,
    ) -> bool {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.entry.name == *name) else {
            return false;
        };
        let State::Running {
            run: current,
            next,
            again,
        } = slot.state
        else {
            return false;
        };
        if current != run {
            return false;
        }
        let settled = slot.settle.handle_run(observation.outcome, slot.entry.pace);
        let mut due = next.max(now);
        if settled.confirm_soon {
            due = due.min(now + CONFIRM_AFTER);
        }
        if again {
            due = due.min(slot.earliest_recheck(now));
        }
        slot.state = State::Idle { due };
        slot.take(observation, settled.agrees, now);
        true
    }

    /// Run the named checks soon, or all if none is named. Returns the names that are not known.
    pub fn recheck<'a>(&mut self, names: &'a [CheckName], now: Mono) -> Vec<&'a CheckName> {
        for slot in &mut self.slots {
            if !names.is_empty() && !names.contains(&slot.entry.name) {
                continue;
            }
            let soonest = slot.earliest_recheck(now);
            match &mut slot.state {
                State::Idle { due } => *due = soonest.min(*due),
                State::Running { again, .. } => *again = true,
            }
        }
        names
            .iter()
            .filter(|name| !self.slots.iter().any(|slot| slot.entry.name == **name))
            .collect()
    }

    /// The machine slept, or the process was stopped: every check runs at once. Runs that were
    /// under way say more of the sleep than of the host: these are to be dropped, and a late word
    /// of theirs changes nothing.
    #[must_use]
    pub fn handle_wake(&mut self, now: Mono) -> Vec<RunId> {
        let mut dropped = Vec::new();
        for slot in &mut self.slots {
            if let State::Running { run, .. } = slot.state {
                dropped.push(run);
            }
            slot.state = State::Idle { due: now };
        }
        dropped
    }

    /// When a run is due next. None while all are running, or there are none.
    #[must_use]
    pub fn next_wake(&self) -> Option<Mono> {
        self.slots
            .iter()
            .filter(|slot| slot.entry.supported)
            .filter_map(|slot| match slot.state {
                State::Idle { due } => Some(due),
                State::Running { .. } => None,
            })
            .min()
    }

    /// What is known of all checks, to be read at any later instant.
    #[must_use]
    pub fn result_set(&self) -> ResultSet {
        ResultSet {
            entries: self.slots.iter().map(|slot| slot.entry.clone()).collect(),
        }
    }
}

impl Slot {
    fn new(spec: CheckSpec, now: Mono) -> Self {
        Self {
            entry: Entry {
                name: spec.name,
                kind: spec.kind,
                pace: spec.pace,
                supported: spec.supported,
                since: now,
                settled: None,
                finished: None,
                message: String::new(),
                findings: Vec::new(),
                truncated: false,
                listeners: Vec::new(),
                cloud: None,
                sessions: None,
            },
            settle: Settle::default(),
            state: State::Idle { due: now },
            started: None,
        }
    }

    fn with_pace(mut self, pace: CheckPace) -> Self {
        self.entry.pace = pace;
        let latest = self.started.map(|started| started + pace.interval);
        if let (Some(latest), State::Idle { due } | State::Running { next: due, .. }) =
            (latest, &mut self.state)
        {
            *due = (*due).min(latest);
        }
        self
    }

    fn earliest_recheck(&self, now: Mono) -> Mono {
        self.started
            .map_or(now, |started| now.max(started + MIN_RECHECK_GAP))
    }

    /// Keeps what a run saw. A run that speaks against the settled outcome leaves that outcome's
    /// explanation in place.
    fn take(&mut self, observation: Observation, agrees: bool, now: Mono) {
        let Observation {
            outcome: raw,
            message,
            findings,
            listeners,
            cloud,
            sessions,
        } = observation;
        let took = self.started.map_or(Duration::ZERO, |started| now - started);
        self.entry.finished = Some(Finished { at: now, took, raw });
        self.entry.settled = self.settle.outcome();
        if agrees {
            let bounded = CheckResult {
                name: self.entry.name.clone(),
                kind: Arc::clone(&self.entry.kind),
                outcome: raw,
                raw,
                age: None,
                duration: took,
                message,
                findings,
                truncated: false,
            }
            .bounded();
            self.entry.message = bounded.message;
            self.entry.findings = bounded.findings;
            self.entry.truncated = bounded.truncated;
        }
        // A run that was cut short says nothing about listeners; one that saw none says so.
        if let Some(listeners) = listeners
            && raw != Outcome::Unknown(UnknownCause::TimedOut)
        {
            self.entry.listeners = listeners;
        }
        // A service that cannot be asked just now has not made another machine of this one.
        if cloud.is_some() || raw == Outcome::NotApplicable {
            self.entry.cloud = cloud;
        }
        // Who counts and was cut short does not know: that is not what it counted before.
        let unknown = self.entry.sessions.map(|_| SessionCounts::default());
        self.entry.sessions = sessions.or(unknown);
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
