//! A host as it is stored, and as it comes back after a restart of the broker.
//!
//! The record holds what a verdict rests on, so that a restarted broker gives the answer that the
//! stopped one gave last. It is written with every transition and never for a beat. Instants of
//! the boot-time clock do not outlive the process and are stored as wall time.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    About, AbsentWhy, Admin, Context, Facts, FailedUpgrade, Health, Held, Host, Identity,
    InProgress, Link, Power, Presence, Resume, SuspectWhy, Told, Upgrade, assess::judged_outcomes,
    limits, presence::presence,
};
use crate::model::{
    CheckName, CheckResult, Leave, Listener, Mono, Now, SessionCounts, UpgradeAttempt,
};

/// The stored form of a host; what operators decided is stored beside it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    identity: Identity,
    about: About,
    link: StoredLink,
    checks: Vec<StoredCheck>,
    unsettled_since: Timestamp,
    /// Every fatal check had a run that counted.
    #[serde(default)]
    settled: bool,
    power: StoredPower,
    upgrade: StoredUpgrade,
    #[serde(default)]
    cleared_attempts: Vec<Arc<str>>,
    #[serde(default)]
    listeners: Vec<Listener>,
    #[serde(default)]
    sessions: SessionCounts,
    sessions_since: Timestamp,
    #[serde(default)]
    lost_evidence: Vec<String>,
    told: Told,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredLink {
    NeverSeen,
    Known {
        last_seen: Option<Timestamp>,
        /// What was left of a suspect host's lease at a clean stop.
        lease_left_ms: Option<u64>,
    },
    Lost {
        why: AbsentWhy,
        at: Timestamp,
    },
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct StoredCheck {
    #[serde(flatten)]
    result: CheckResult,
    since: Timestamp,
    #[serde(default)]
    finished_at: Option<Timestamp>,
    /// A run had finished that counted towards "settled".
    counted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredPower {
    Running,
    Leaving {
        how: Leave,
        since: Timestamp,
        back_by: Timestamp,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredUpgrade {
    None,
    InProgress {
        attempt: UpgradeAttempt,
        since: Timestamp,
        ends: Timestamp,
        switch_ends: Option<Timestamp>,
        passed_before: Vec<CheckName>,
    },
    Failed(FailedUpgrade),
}

impl HostRecord {
    /// The record of a host as it is. `clean_stop` also keeps what is left of a suspect host's
    /// lease: after a crash that is not known, and the host gets the whole restart window.
    #[must_use]
    pub fn of(host: &Host, context: &Context<'_>, clean_stop: bool) -> Self {
        let facts = &host.facts;
        let now = context.now;
        Self {
            identity: facts.identity.clone(),
            about: (*facts.about).clone(),
            link: stored_link(facts, context, clean_stop),
            checks: facts
                .health
                .held
                .iter()
                .zip(judged_outcomes(facts, context))
                .map(|(held, outcome)| StoredCheck {
                    // What has gone stale is not fresh again for a restarted broker.
                    result: CheckResult {
                        outcome,
                        ..(*held.result).clone()
                    },
                    since: held.since,
                    finished_at: held.finished_at,
                    counted: held
                        .began
                        .is_some_and(|began| began >= facts.health.barrier),
                })
                .collect(),
            unsettled_since: facts.health.unsettled_since,
            settled: facts.health.is_settled(context.policy, now.wall),
            power: match facts.power {
                Power::Running => StoredPower::Running,
                Power::Leaving {
                    how,
                    since,
                    back_by,
                } => StoredPower::Leaving {
                    how,
                    since,
                    back_by: now.wall_at(back_by),
                },
            },
            upgrade: match &facts.upgrade {
                Upgrade::None => StoredUpgrade::None,
                Upgrade::InProgress(upgrade) => StoredUpgrade::InProgress {
                    attempt: upgrade.attempt.clone(),
                    since: upgrade.since,
                    ends: now.wall_at(upgrade.ends),
                    switch_ends: upgrade.switch_ends.map(|ends| now.wall_at(ends)),
                    passed_before: upgrade.passed_before.to_vec(),
                },
                Upgrade::Failed(failed) => StoredUpgrade::Failed((**failed).clone()),
            },
            cleared_attempts: facts.cleared_attempts.to_vec(),
            listeners: facts.listeners.to_vec(),
            sessions: facts.sessions,
            sessions_since: facts.sessions_since,
            lost_evidence: facts.lost_evidence.to_vec(),
            told: host.told.clone(),
        }
    }

    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The host as a restarted broker knows it: not heard yet, and answered as last stored.
    #[must_use]
    pub fn restore(self, admin: Admin, now: Now) -> Host {
        // No wall clock says which runs count. Where those count that are stored, whatever runs
        // later does too; where not, only what begins from now on.
        let lost = matches!(self.link, StoredLink::Lost { .. });
        let barrier = if self.settled && !lost {
            Mono::ZERO
        } else {
            now.mono
        };
        let held: Vec<Held> = self
            .checks
            .into_iter()
            .map(|check| Held {
                since: check.since,
                began: check.counted.then_some(now.mono),
                finished: check.result.age.map(|age| now.mono.back(age)),
                finished_at: check.finished_at,
                carried_until: Some(now.mono + limits::LOADED_RESULTS_VALID),
                result: Arc::new(check.result),
            })
            .collect();
        let link = match self.link {
            StoredLink::NeverSeen => Link::NeverSeen,
            StoredLink::Known { lease_left_ms, .. } => Link::Loaded {
                lease_ends: lease_left_ms.map(|left| now.mono + Duration::from_millis(left)),
            },
            StoredLink::Lost { why, at } => Link::Lost { why, at },
        };
        let facts = Facts {
            identity: self.identity,
            about: Arc::new(self.about),
            link,
            session: None,
            resume: Resume::default(),
            conflict: None,
            imposed: Arc::default(),
            lost_evidence: self.lost_evidence.into(),
            last_word: Some(now.mono),
            health: Health {
                held: held.into(),
                valid_until: now.mono + limits::LOADED_RESULTS_VALID,
                barrier,
                unsettled_since: self.unsettled_since,
                state_hash: None,
            },
            power: match self.power {
                StoredPower::Running => Power::Running,
                StoredPower::Leaving {
                    how,
                    since,
                    back_by,
                } => Power::Leaving {
                    how,
                    since,
                    back_by: bounded(now, back_by, limits::REBOOT_BACK_WITHIN_MAX),
                },
            },
            upgrade: restore_upgrade(self.upgrade, now),
            cleared_attempts: self.cleared_attempts.into(),
            admin: Arc::new(admin),
            listeners: self.listeners.into(),
            sessions: self.sessions,
            sessions_since: self.sessions_since,
        };
        Host {
            facts,
            told: self.told,
            calm_until: None,
            version: 0,
            stood: None,
            target: None,
        }
    }
}

fn stored_link(facts: &Facts, context: &Context<'_>, clean_stop: bool) -> StoredLink {
    let now = context.now;
    match facts.link {
        Link::NeverSeen => StoredLink::NeverSeen,
        Link::Lost { why, at } => StoredLink::Lost { why, at },
        Link::Loaded { lease_ends } => StoredLink::Known {
            last_seen: None,
            lease_left_ms: lease_ends.map(|ends| millis(ends.since(now.mono))),
        },
        Link::Heard(heard) => {
            // Who is held in a mass loss has nothing left, and is missed with all others at the
            // end of the restart window.
            let suspect = match presence(facts, context) {
                Presence::Suspect(why) => why != SuspectWhy::MassLoss,
                Presence::Confirmed | Presence::Unverified | Presence::Absent(_) => false,
            };
            StoredLink::Known {
                last_seen: Some(now.wall_at(heard.last_beat)),
                lease_left_ms: (clean_stop && suspect)
                    .then(|| millis(heard.lease_ends().since(now.mono))),
            }
        }
    }
}

fn restore_upgrade(stored: StoredUpgrade, now: Now) -> Upgrade {
    match stored {
        StoredUpgrade::None => Upgrade::None,
        StoredUpgrade::InProgress {
            attempt,
            since,
            ends,
            switch_ends,
            passed_before,
        } => Upgrade::InProgress(Arc::new(InProgress {
            attempt,
            since,
            ends: bounded(now, ends, limits::UPGRADE_ANNOUNCED_MAX),
            switch_ends: switch_ends.map(|ends| bounded(now, ends, limits::UPGRADE_ANNOUNCED_MAX)),
            passed_before: passed_before.into(),
        })),
        StoredUpgrade::Failed(failed) => Upgrade::Failed(Arc::new(failed)),
    }
}

/// A stored deadline on the new boot-time clock: a wall clock that jumped back cannot push it
/// further away than it could ever have been.
fn bounded(now: Now, at: Timestamp, at_most: Duration) -> Mono {
    now.mono_at(at).min(now.mono + at_most)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
