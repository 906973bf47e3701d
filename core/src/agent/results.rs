//! What the results of all checks are worth at an instant.
//!
//! A [`ResultSet`] is a copy that the schedule publishes. Ages, staleness and the time left are
//! worked out when it is read, so a check loop that is wedged shows in the next beat although it
//! publishes nothing any more.

use std::{sync::Arc, time::Duration};

use crate::model::{
    CheckName, CheckPace, CheckResult, CloudInstance, Finding, Listener, Mono, Outcome,
    SessionCounts, UnknownCause,
};

/// Listeners that a host may report. A desktop server with a listener per user has perhaps ten.
const MAX_LISTENERS: usize = 32;

/// What one run of a check saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// What it comes to.
    pub outcome: Outcome,
    /// One line for a person.
    pub message: String,
    /// What was found, worst first.
    pub findings: Vec<Finding>,
    /// Where the host takes connections, from a check that looks for that.
    pub listeners: Option<Vec<Listener>>,
    /// Which machine of a cloud this is, from a check that was told.
    pub cloud: Option<CloudInstance>,
    /// People's sessions, from a check that counts them.
    pub sessions: Option<SessionCounts>,
}

impl Observation {
    /// An outcome with one line and nothing else.
    #[must_use]
    pub fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self {
            outcome,
            message: message.into(),
            findings: Vec::new(),
            listeners: None,
            cloud: None,
            sessions: None,
        }
    }

    /// The same with one finding more.
    #[must_use]
    pub fn with(mut self, finding: Finding) -> Self {
        self.findings.push(finding);
        self
    }

    /// The run was ended at its time limit.
    #[must_use]
    pub fn timed_out(limit: Duration) -> Self {
        Self::new(
            Outcome::Unknown(UnknownCause::TimedOut),
            format!("the run was ended after its limit of {limit:?}"),
        )
    }
}

/// The last finished run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Finished {
    pub(super) at: Mono,
    pub(super) took: Duration,
    pub(super) raw: Outcome,
}

/// What is known of one check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) name: CheckName,
    pub(super) kind: Arc<str>,
    pub(super) pace: CheckPace,
    pub(super) supported: bool,
    /// When the check came to be: it must have a result within a result's time to live.
    pub(super) since: Mono,
    pub(super) settled: Option<Outcome>,
    pub(super) finished: Option<Finished>,
    /// What explains the settled outcome.
    pub(super) message: String,
    pub(super) findings: Vec<Finding>,
    pub(super) truncated: bool,
    pub(super) listeners: Vec<Listener>,
    pub(super) cloud: Option<CloudInstance>,
    pub(super) sessions: Option<SessionCounts>,
}

impl Entry {
    /// When the result ends; none for a check that this agent does not have.
    fn ends(&self) -> Option<Mono> {
        let from = self.finished.map_or(self.since, |run| run.at);
        self.supported.then(|| from + self.pace.time_to_live())
    }

    fn outcome(&self, now: Mono) -> Outcome {
        if !self.supported {
            return Outcome::Unknown(UnknownCause::Unsupported);
        }
        match self.settled {
            None => Outcome::Unknown(UnknownCause::NotYetRun),
            Some(_) if self.ends().is_some_and(|end| end <= now) => {
                Outcome::Unknown(UnknownCause::Stale)
            }
            Some(settled) => settled,
        }
    }

    fn result(&self, now: Mono) -> CheckResult {
        let outcome = self.outcome(now);
        let message = match outcome.cause() {
            Some(UnknownCause::Unsupported) => "this agent has no such check".to_owned(),
            Some(UnknownCause::NotYetRun) => "no run has finished yet".to_owned(),
            Some(UnknownCause::Stale) => format!(
                "no run has finished for {:.0?}; the last one said: {}",
                self.finished.map_or(Duration::ZERO, |run| now - run.at),
                self.message
            ),
            Some(UnknownCause::TimedOut | UnknownCause::CannotRun) | None => self.message.clone(),
        };
        CheckResult {
            name: self.name.clone(),
            kind: Arc::clone(&self.kind),
            outcome,
            raw: self.finished.map_or(outcome, |run| run.raw),
            age: self.finished.map(|run| now - run.at),
            duration: self.finished.map_or(Duration::ZERO, |run| run.took),
            message,
            findings: self.findings.clone(),
            truncated: self.truncated,
        }
        .bounded()
    }
}

/// What is known of all checks, to be read at any later instant.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ResultSet {
    pub(super) entries: Vec<Entry>,
}

impl ResultSet {
    /// The results as they stand at `now`, within all bounds.
    #[must_use]
    pub fn results(&self, now: Mono) -> Vec<CheckResult> {
        self.entries.iter().map(|entry| entry.result(now)).collect()
    }

    /// The least time left over all results, and over the waits for those that are not there yet.
    /// Zero means that the check loop does not keep its pace. Without checks it never ends.
    #[must_use]
    pub fn results_valid(&self, now: Mono) -> Duration {
        self.entries
            .iter()
            .filter_map(Entry::ends)
            .map(|end| end.since(now))
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// When a result turns stale next, if no run comes first.
    #[must_use]
    pub fn next_stale(&self, now: Mono) -> Option<Mono> {
        self.entries
            .iter()
            .filter(|entry| entry.settled.is_some())
            .filter_map(Entry::ends)
            .filter(|end| *end > now)
            .min()
    }

    /// Where the host takes connections, as the last runs saw it.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        let mut all = Vec::new();
        for listener in self.entries.iter().flat_map(|entry| &entry.listeners) {
            if all.len() < MAX_LISTENERS && !all.contains(listener) {
                all.push(listener.clone());
            }
        }
        all
    }

    /// Which machine of a cloud this is, as last told to a check.
    #[must_use]
    pub fn cloud(&self) -> Option<&CloudInstance> {
        self.entries.iter().find_map(|entry| entry.cloud.as_ref())
    }

    /// People's sessions, where a check counts them. What it has not told of late is unknown.
    #[must_use]
    pub fn sessions(&self, now: Mono) -> Option<SessionCounts> {
        let counter = self.entries.iter().find(|entry| entry.sessions.is_some())?;
        let stale = counter.ends().is_some_and(|end| end <= now);
        counter
            .sessions
            .filter(|_| !stale)
            .or(Some(SessionCounts::default()))
    }

    /// Every check that can run has finished a run that began at or after `at`.
    #[must_use]
    pub fn all_begun_since(&self, at: Mono) -> bool {
        self.entries.iter().all(|entry| {
            let begun = entry.finished.map(|run| run.at.back(run.took));
            !entry.supported || begun.is_some_and(|begun| begun >= at)
        })
    }
}
