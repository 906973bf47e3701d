//! Taking a report's results into the facts.

use std::sync::Arc;

use super::{Facts, Held, limits};
use crate::model::{CheckResult, MAX_CHECKS, Now, Outcome, UnknownCause};

/// Replaces the results by those of a report, and says whether any outcome changed.
///
/// A check that has not run yet in the agent's new process does not wipe out what the same boot
/// found before: that result is carried until it goes stale.
pub(super) fn take_results(
    facts: &mut Facts,
    checks: Vec<CheckResult>,
    valid: std::time::Duration,
    now: Now,
) {
    let before = facts.health.held.clone();
    let before_valid_until = facts.health.valid_until;
    let valid_until = now.mono + valid.min(limits::RESULTS_VALID_MAX);
    let mut held: Vec<Held> = Vec::with_capacity(checks.len().min(MAX_CHECKS));
    for result in checks.into_iter().take(MAX_CHECKS) {
        let old = before
            .binary_search_by(|held| held.result.name.cmp(&result.name))
            .ok()
            .and_then(|at| before.get(at));
        let not_run = result.outcome == Outcome::Unknown(UnknownCause::NotYetRun);
        if let Some(old) = old.filter(|old| not_run && old.has_run()) {
            let carried_until = old.valid_until(before_valid_until);
            if now.mono < carried_until {
                held.push(Held {
                    carried_until: Some(carried_until),
                    ..old.clone()
                });
                continue;
            }
        }
        let since = match old {
            Some(old) if old.result.outcome == result.outcome => old.since,
            Some(_) | None => now.wall,
        };
        let finished = result.age.map(|age| now.mono.back(age));
        held.push(Held {
            since,
            began: finished.map(|finished| finished.back(result.duration)),
            finished,
            finished_at: finished.map(|finished| now.wall_at(finished)),
            carried_until: None,
            result: Arc::new(result),
        });
    }
    held.sort_by(|a, b| a.result.name.cmp(&b.result.name));
    held.dedup_by(|b, a| a.result.name == b.result.name);
    facts.health.held = held.into();
    facts.health.valid_until = valid_until;
}

/// Marks every result as one of an earlier session, so that it goes stale on its own time.
pub(super) fn carry_results(facts: &mut Facts) {
    let valid_until = facts.health.valid_until;
    facts.health.held = facts
        .health
        .held
        .iter()
        .map(|held| Held {
            carried_until: Some(held.valid_until(valid_until)),
            ..held.clone()
        })
        .collect();
    facts.health.state_hash = None;
}
