//! Upgrades: what announcements do to the facts, and why an upgrade always ends.
//!
//! ```text
//! None --InProgress(new id)--> InProgress --version seen and a good report--> None
//!                                  |---------- deadline, Failed ------------> Failed
//! Failed --version at or above `to`, Cleared--> None;  --InProgress(new id)--> InProgress
//! ```
//! The deadlines are set once per attempt, by the broker; restating an attempt never moves them.

use std::sync::Arc;

use super::{Context, Facts, FailedUpgrade, InProgress, Upgrade, limits, reasons::timed_out_text};
use crate::model::{CheckName, Now, Outcome, PoolPolicy, UpgradeAnnouncement, UpgradeAttempt};

/// Takes an announcement into the facts. True if something changed that must be durable.
pub(super) fn announce(
    facts: &mut Facts,
    announced: &UpgradeAnnouncement,
    policy: &PoolPolicy,
    now: Now,
) -> bool {
    match announced {
        UpgradeAnnouncement::Silent => false,
        UpgradeAnnouncement::Cleared { id } => clear(facts, id),
        UpgradeAnnouncement::InProgress { attempt, within } => {
            if is_over(facts, attempt) {
                return false;
            }
            let within = within.map(|within| within.min(limits::UPGRADE_ANNOUNCED_MAX));
            let before = match &facts.upgrade {
                Upgrade::InProgress(upgrade) if upgrade.attempt.id == attempt.id => {
                    Some(upgrade.clone())
                }
                Upgrade::None | Upgrade::InProgress(_) | Upgrade::Failed(_) => None,
            };
            let upgrade = before.as_deref().cloned().unwrap_or_else(|| InProgress {
                attempt: attempt.clone(),
                since: now.wall,
                ends: now.mono + limits::UPGRADE_ATTEMPT.max(within.unwrap_or_default()),
                switch_ends: None,
                passed_before: passing_fatal(facts, policy),
            });
            let switch_ends = upgrade.switch_ends.or_else(|| {
                let switching = attempt.phase.is_switching();
                switching.then(|| now.mono + within.unwrap_or(limits::UPGRADE_SWITCH))
            });
            let upgrade = InProgress {
                attempt: attempt.clone(),
                switch_ends,
                ..upgrade
            };
            if before.as_deref() == Some(&upgrade) {
                return false;
            }
            facts.upgrade = Upgrade::InProgress(Arc::new(upgrade));
            true
        }
        UpgradeAnnouncement::Failed { attempt, error } => {
            let known = matches!(&facts.upgrade, Upgrade::Failed(failed)
                if failed.attempt.id == attempt.id);
            if known
                || facts.cleared_attempts.contains(&attempt.id)
                || version_is_seen(facts, attempt)
            {
                return false;
            }
            facts.upgrade = Upgrade::Failed(Arc::new(FailedUpgrade {
                attempt: attempt.clone(),
                error: crate::model::clean_text(error, crate::model::MAX_REMEDY_BYTES),
                since: now.wall,
                timed_out: false,
            }));
            true
        }
    }
}

/// Ends an upgrade whose version is seen: a failed one at once, one under way as soon as the host
/// is settled and nothing fatal fails that passed before.
pub(super) fn see_version(facts: &mut Facts, context: &Context<'_>, reported: bool) -> bool {
    let done = match &facts.upgrade {
        Upgrade::None => false,
        Upgrade::Failed(failed) => version_is_seen(facts, &failed.attempt),
        Upgrade::InProgress(upgrade) => {
            reported
                && version_is_seen(facts, &upgrade.attempt)
                && facts.health.is_settled(context.policy, context.now.wall)
                && upgrade.passed_before.iter().all(|name| {
                    facts
                        .health
                        .get(name)
                        .is_none_or(|held| !held.result.outcome.is_bad())
                })
        }
    };
    if done {
        facts.upgrade = Upgrade::None;
    }
    done
}

/// Turns an upgrade past its deadline into a failed one.
pub(super) fn expire(facts: &mut Facts, now: Now) -> bool {
    let Upgrade::InProgress(upgrade) = &facts.upgrade else {
        return false;
    };
    if now.mono < upgrade.deadline() {
        return false;
    }
    facts.upgrade = Upgrade::Failed(Arc::new(FailedUpgrade {
        attempt: upgrade.attempt.clone(),
        error: timed_out_text(&upgrade.attempt),
        since: now.wall_at(upgrade.deadline()),
        timed_out: true,
    }));
    true
}

/// Ends an attempt by somebody's word, and remembers that it is over.
pub(super) fn clear(facts: &mut Facts, id: &Arc<str>) -> bool {
    let current = match &facts.upgrade {
        Upgrade::None => None,
        Upgrade::InProgress(upgrade) => Some(&upgrade.attempt.id),
        Upgrade::Failed(failed) => Some(&failed.attempt.id),
    };
    if current != Some(id) {
        return false;
    }
    facts.upgrade = Upgrade::None;
    let mut cleared: Vec<Arc<str>> = facts.cleared_attempts.to_vec();
    cleared.push(id.clone());
    let from = cleared.len().saturating_sub(limits::CLEARED_ATTEMPTS);
    facts.cleared_attempts = cleared.split_off(from).into();
    true
}

/// The attempt has ended here already: restating it does not begin it again.
fn is_over(facts: &Facts, attempt: &UpgradeAttempt) -> bool {
    facts.cleared_attempts.contains(&attempt.id)
        || matches!(&facts.upgrade, Upgrade::Failed(failed) if failed.attempt.id == attempt.id)
        || matches!(&facts.upgrade, Upgrade::None) && version_is_seen(facts, attempt)
}

fn version_is_seen(facts: &Facts, attempt: &UpgradeAttempt) -> bool {
    attempt.is_seen_in(&facts.about.agent_version)
}

fn passing_fatal(facts: &Facts, policy: &PoolPolicy) -> Arc<[CheckName]> {
    policy
        .fatal_checks()
        .filter(|name| {
            facts
                .health
                .get(name)
                .is_some_and(|held| match held.result.outcome {
                    Outcome::Pass | Outcome::Warn | Outcome::NotApplicable => true,
                    Outcome::Fail | Outcome::Unknown(_) => false,
                })
        })
        .cloned()
        .collect()
}
