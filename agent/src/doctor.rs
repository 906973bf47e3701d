//! `doctor`: runs every check once, here and now, and says what to do.
//!
//! It needs no broker and no enrolment. Severities are those of the policy that was last told,
//! else the defaults. The exit code is the worst: 0 nothing worse than Warn, 1 a check that is not
//! fatal fails, 2 a fatal one does.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use muster_core::{
    agent::{HostPolicy, Observation},
    model::{CheckName, CheckResult, Outcome, PoolPolicy, Severity, UnknownCause},
};
use muster_runtime::clock;
use serde::Serialize;
use tokio::{sync::watch, time::interval};

use crate::{
    checks::{self, Planned},
    config::Config,
    control::{self, Answer, Request},
    scheduler::run_bounded,
    session::LinkState,
    store::{DataDir, POLICY},
};

/// How often the progress is told at least: the seconds shall be seen to pass.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// A check that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("there is no check {name:?}{nearest}; the checks are {known}")]
pub struct UnknownCheck {
    name: String,
    nearest: String,
    known: String,
}

/// What one check came to.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What a failure of it means.
    pub severity: Severity,
    /// The result.
    #[serde(flatten)]
    pub result: CheckResult,
}

/// What the doctor says.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// Name of the host, where it is enrolled.
    pub name: Option<String>,
    /// Pool of the host, as told at enrolment.
    pub pool: Option<String>,
    /// Revision of the policy that was applied; empty for the defaults.
    pub policy_revision: String,
    /// How the session of the agent that runs fares; none where none runs.
    pub session: Option<LinkState>,
    /// The checks, worst first.
    pub checks: Vec<Finding>,
    /// The exit code.
    pub exit_code: u8,
}

/// The policy that applies without a broker.
#[must_use]
pub fn last_policy(data: &DataDir) -> HostPolicy {
    data.read(POLICY).unwrap_or_default()
}

/// How far an examination is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Checks in all.
    pub total: usize,
    /// Those that still run.
    pub waiting: Vec<CheckName>,
    /// Since the start.
    pub elapsed: Duration,
}

/// Runs the named checks, or all, once and at the same time. `progress` is told at the start, after
/// each check that ends, and now and then between.
///
/// # Errors
/// If a name is none of a check.
pub async fn examine(
    config: &Config,
    only: &[String],
    progress: impl FnMut(&Progress),
) -> Result<Diagnosis, UnknownCheck> {
    let data = DataDir::new(&config.data_dir);
    let policy = last_policy(&data);
    let enrolment = data.enrolment();
    let session = running_session(config).await;
    let link = link_for_checks(config, &data, session.as_ref());
    let (_sender, link) = watch::channel(link);
    let mut planned = checks::plan(config, &policy, &link);
    for name in only {
        if !planned.iter().any(|known| known.spec.name.as_str() == name) {
            return Err(unknown(name, &planned));
        }
    }
    if !only.is_empty() {
        planned.retain(|known| only.iter().any(|name| known.spec.name.as_str() == name));
    }
    let results = examine_all(planned, progress).await;
    let mut checks: Vec<Finding> = results
        .into_iter()
        .map(|result| Finding {
            severity: severity(&policy, &result),
            result,
        })
        .collect();
    checks.sort_by_key(|check| std::cmp::Reverse(gravity(check)));
    let exit_code = checks.iter().map(exit_code).max().unwrap_or(0);
    Ok(Diagnosis {
        name: enrolment
            .as_ref()
            .map(|enrolment| enrolment.name.to_string()),
        pool: enrolment.map(|enrolment| enrolment.pool.to_string()),
        policy_revision: policy.revision,
        session,
        checks,
        exit_code,
    })
}

/// The results in the order of the plan.
async fn examine_all(
    planned: Vec<Planned>,
    mut progress: impl FnMut(&Progress),
) -> Vec<CheckResult> {
    let begun = clock::boot();
    let mut state = Progress {
        total: planned.len(),
        waiting: planned
            .iter()
            .map(|known| known.spec.name.clone())
            .collect(),
        elapsed: Duration::ZERO,
    };
    let runs = planned.into_iter().enumerate();
    let mut runs: FuturesUnordered<_> = runs
        .map(|(at, known)| async move { (at, examine_one(known).await) })
        .collect();
    let mut tick = interval(TELL_EVERY);
    let mut results = Vec::new();
    loop {
        tokio::select! {
            ended = runs.next() => match ended {
                Some((at, result)) => {
                    state.waiting.retain(|name| *name != result.name);
                    results.push((at, result));
                }
                None => break,
            },
            _ = tick.tick() => {}
        }
        state.elapsed = clock::boot() - begun;
        progress(&state);
    }
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

async fn examine_one(planned: Planned) -> CheckResult {
    let begun = clock::boot();
    let seen = match &planned.check {
        Some(check) => run_bounded(&**check, planned.spec.pace.timeout).await,
        None => Observation::new(
            Outcome::Unknown(UnknownCause::Unsupported),
            "this agent has no such check",
        ),
    };
    CheckResult {
        name: planned.spec.name,
        kind: planned.spec.kind,
        outcome: seen.outcome,
        raw: seen.outcome,
        age: Some(Duration::ZERO),
        duration: clock::boot() - begun,
        message: seen.message,
        findings: seen.findings,
        truncated: false,
    }
    .bounded()
}

async fn running_session(config: &Config) -> Option<LinkState> {
    match control::ask(&config.control_socket, &Request::Link).await {
        Ok(Answer::Link { link }) => Some(link),
        // That no agent runs is no finding: doctor is for that case too.
        Ok(Answer::Announced { .. } | Answer::Refused { .. }) | Err(_) => None,
    }
}

/// Brokers as the checks see them: those of the agent that runs, else of the files.
fn link_for_checks(config: &Config, data: &DataDir, session: Option<&LinkState>) -> LinkState {
    if let Some(session) = session {
        return session.clone();
    }
    LinkState {
        brokers: brokers(config, data),
        ..LinkState::default()
    }
}

/// Brokers of the configuration, else those of the enrolment.
#[must_use]
pub fn brokers(config: &Config, data: &DataDir) -> Vec<Arc<str>> {
    let named = if config.brokers.is_empty() {
        data.enrolment()
            .map(|enrolment| enrolment.brokers)
            .unwrap_or_default()
    } else {
        config.brokers.clone()
    };
    named.iter().map(|broker| broker.as_str().into()).collect()
}

fn severity(policy: &HostPolicy, result: &CheckResult) -> Severity {
    match policy.check(result.name.as_str()) {
        Some(check) => check.severity,
        None => PoolPolicy::default().severity(&result.name),
    }
}

fn exit_code(check: &Finding) -> u8 {
    // What this agent does not have is never fatal, as at the broker.
    let unsupported = check.result.outcome == Outcome::Unknown(UnknownCause::Unsupported);
    match check.severity {
        _ if !check.result.outcome.is_bad() => 0,
        Severity::ReportOnly => 0,
        Severity::Fatal if !unsupported => 2,
        Severity::Fatal | Severity::NonFatal => 1,
    }
}

fn gravity(check: &Finding) -> (u8, u8) {
    let outcome = match check.result.outcome {
        Outcome::Fail => 4,
        Outcome::Unknown(_) => 3,
        Outcome::Warn => 2,
        Outcome::Pass => 1,
        Outcome::NotApplicable => 0,
    };
    (exit_code(check), outcome)
}

fn unknown(name: &str, planned: &[Planned]) -> UnknownCheck {
    let known: Vec<_> = planned
        .iter()
        .map(|known| known.spec.name.as_str())
        .collect();
    let nearest = known
        .iter()
        .map(|other| (strsim::damerau_levenshtein(name, other), *other))
        .min()
        // Further away it is a guess that misleads.
        .filter(|(distance, other)| *distance <= other.len() / 2)
        .map_or_else(String::new, |(_, other)| {
            format!(" (did you mean {other:?}?)")
        });
    UnknownCheck {
        name: muster_core::model::clean_text(name, 64),
        nearest,
        known: known.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use muster_core::model::CheckName;

    use super::*;

    fn finding(outcome: Outcome, severity: Severity) -> Finding {
        Finding {
            severity,
            result: CheckResult {
                name: CheckName::new("a").unwrap(),
                kind: "a".into(),
                outcome,
                raw: outcome,
                age: None,
                duration: Duration::ZERO,
                message: String::new(),
                findings: Vec::new(),
                truncated: false,
            },
        }
    }

    #[test]
    fn the_exit_code_is_the_worst_that_counts() {
        use Severity::{Fatal, NonFatal, ReportOnly};
        let unknown = Outcome::Unknown(UnknownCause::TimedOut);
        let unsupported = Outcome::Unknown(UnknownCause::Unsupported);
        let table = [
            (Outcome::Pass, Fatal, 0),
            (Outcome::Warn, Fatal, 0),
            (Outcome::NotApplicable, Fatal, 0),
            (Outcome::Fail, Fatal, 2),
            (unknown, Fatal, 2),
            (unsupported, Fatal, 1),
            (Outcome::Fail, NonFatal, 1),
            (unknown, NonFatal, 1),
            (Outcome::Fail, ReportOnly, 0),
        ];
        for (outcome, severity, code) in table {
            assert_eq!(
                exit_code(&finding(outcome, severity)),
                code,
                "{outcome} {severity}"
            );
        }
    }

    fn config(folder: &std::path::Path) -> Config {
        muster_runtime::tls::install_provider();
        Config {
            data_dir: folder.join("data"),
            control_socket: folder.join("control.sock"),
            ..Config::default()
        }
    }

    #[tokio::test]
    async fn an_unknown_check_is_answered_with_the_nearest_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = examine(&config(folder.path()), &["url".to_owned()], |_| {})
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("did you mean \"urls\"?") && text.contains("domain"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_machine_that_is_not_enrolled_is_examined_too() {
        let folder = tempfile::tempdir().unwrap();
        let only = ["urls".to_owned(), "monitoring_agent".to_owned()];
        let mut told = Vec::new();
        let config = config(folder.path());
        let diagnosis = examine(&config, &only, |progress| told.push(progress.waiting.len()))
            .await
            .unwrap();
        assert!(told.is_sorted_by(|one, next| one >= next), "{told:?}");
        assert_eq!(told.last(), Some(&0));
        assert_eq!(diagnosis.checks.len(), 2);
        assert_eq!(diagnosis.name, None);
        let urls = diagnosis
            .checks
            .iter()
            .find(|check| check.result.name.as_str() == "urls");
        assert_eq!(urls.unwrap().result.outcome, Outcome::NotApplicable);
        let json = serde_json::to_value(&diagnosis).unwrap();
        assert_eq!(json["checks"][0]["severity"], "non_fatal");
    }
}
