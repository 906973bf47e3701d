//! A host as its administrators see it: facts, checks, and how these changed.

use std::time::Duration;

use muster_core::{
    host::{self, Context, Facts, Link},
    model::{CheckResult, Outcome, Severity, Transition},
};
use muster_proto::{border::timestamp, v1};
use tonic::Status;

use super::{fleet::FleetEdge, stalled, store_failed};
use crate::{
    registry::{Cell, SessionWord},
    store::{decode, keys},
};

/// Entries of a journal that flips are read out of: a check that flips every ten minutes shows its
/// last day and a half, and reading them takes milliseconds.
const FLIPS_OUT_OF: usize = 200;
/// How long a host may take to say how old its results are now. An agent answers within
/// milliseconds; one that is stuck shall not keep a person waiting.
const FRESH_WITHIN: Duration = Duration::from_secs(1);
/// How long an entry that is queued for the journal is waited for.
const QUEUED_WITHIN: Duration = Duration::from_secs(2);

impl FleetEdge {
    /// One host with the findings and flips of its checks.
    pub(super) async fn whole_detail(&self, cell: &Cell) -> Result<v1::HostDetail, Status> {
        let mut journal = self.journal(cell, FLIPS_OUT_OF).await?;
        journal.reverse();
        let mut flips = host::flips(&journal);
        let mut detail = self.detail_with(cell, true)?;
        for check in &mut detail.checks {
            let name = check.result.as_ref().map(|result| result.name.as_str());
            let flips = name.and_then(|name| flips.remove(name)).unwrap_or_default();
            check.flips = flips.iter().map(Into::into).collect();
        }
        Ok(detail)
    }

    /// One host of many: without findings and flips.
    pub(super) fn detail(&self, cell: &Cell) -> Result<v1::HostDetail, Status> {
        self.detail_with(cell, false)
    }

    fn detail_with(&self, cell: &Cell, findings: bool) -> Result<v1::HostDetail, Status> {
        let verdict = self.verdict(cell)?;
        let question = self
            .registry
            .question(cell)
            .map_err(|error| stalled(&self.registry, error))?;
        let (context, facts) = (question.context(), &question.published.snapshot.facts);
        let checks = host::judged(facts, &context)
            .into_iter()
            .map(|judged| check_detail(facts, &context, judged, findings))
            .collect();
        let last_beat = match facts.link {
            Link::Heard(heard) => Some(context.now.wall_at(heard.last_beat)),
            Link::NeverSeen | Link::Loaded { .. } | Link::Lost { .. } => None,
        };
        Ok(v1::HostDetail {
            verdict: Some(verdict),
            enrolled_at: Some(timestamp(facts.identity.enrolled_at)),
            agent_version: facts.about.agent_version.to_string(),
            os: facts.about.os.to_string(),
            addresses: facts.about.addresses.clone(),
            peer_address: facts.about.peer_address.to_string(),
            checks,
            drains: facts.admin.drains.iter().map(Into::into).collect(),
            power: Some(announced::power(facts)),
            upgrade: Some(announced::upgrade(facts)),
            boot_id: facts.about.boot_id.to_string(),
            policy_revision: facts.about.policy_revision.to_string(),
            epoch: facts
                .session
                .as_ref()
                .map_or(0, |session| session.epoch.get()),
            last_beat_at: last_beat.map(timestamp),
            cloud: facts.about.cloud.as_ref().map(Into::into),
        })
    }

    /// The newest entries of a host's journal, newest first.
    pub(super) async fn journal(
        &self,
        cell: &Cell,
        limit: usize,
    ) -> Result<Vec<Transition>, Status> {
        let id = cell.published().snapshot.facts.identity.id;
        // What was queued before the question is part of the answer. While the store fails, what
        // is durable must do.
        let queued = self.registry.queue().put([]);
        let _ = tokio::time::timeout(QUEUED_WITHIN, self.registry.queue().durable(queued)).await;
        let store = self.store.clone();
        let read = move || {
            let entries = store.scan(&keys::journal(id), limit, true)?.into_iter();
            entries
                .map(|(key, value)| decode::<Transition>(&key, &value))
                .collect::<Result<Vec<_>, _>>()
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(|_| store_failed(&self.registry))?
            .map_err(|error| {
                tracing::error!(error = %muster_runtime::explain::explain(&error), "journal unreadable");
                store_failed(&self.registry)
            })
    }

    /// Asks the agent for a report, so that ages are those of now: what finds the same again is
    /// reported only on demand.
    pub(super) async fn freshen(&self, cell: &Cell) {
        let reported = cell.reported().notified();
        if cell.say(SessionWord::Resync("shown to an administrator")) {
            // A host that does not answer is shown as it was last heard.
            let _ = tokio::time::timeout(FRESH_WITHIN, reported).await;
        }
    }
}

fn check_detail(
    facts: &Facts,
    context: &Context<'_>,
    (mut result, outcome, severity): (CheckResult, Outcome, Severity),
    findings: bool,
) -> v1::CheckDetail {
    if !findings {
        result.findings.clear();
    }
    let held = facts.health.get(&result.name);
    let last_run_at = held.and_then(|held| held.finished_at);
    result.age = last_run_at.map(|at| {
        let age = context.now.wall.duration_since(at);
        Duration::try_from(age).unwrap_or_default()
    });
    v1::CheckDetail {
        judged_outcome: v1::CheckOutcome::from(outcome).into(),
        severity: v1::Severity::from(severity).into(),
        last_run_at: last_run_at.map(timestamp),
        since: held.map(|held| timestamp(held.since)),
        flips: Vec::new(),
        result: Some(result.into()),
    }
}

/// Facts as the host announced them.
mod announced {
    use muster_core::{
        host::{Facts, Power, Upgrade},
        model::{PowerAnnouncement, UpgradeAnnouncement},
    };
    use muster_proto::v1;

    pub(super) fn power(facts: &Facts) -> v1::PowerState {
        match facts.power {
            Power::Running => PowerAnnouncement::Running,
            Power::Leaving { how, .. } => PowerAnnouncement::Leaving {
                how,
                back_within: None,
            },
        }
        .into()
    }

    pub(super) fn upgrade(facts: &Facts) -> v1::UpgradeState {
        match &facts.upgrade {
            Upgrade::None => UpgradeAnnouncement::Silent,
            Upgrade::InProgress(upgrade) => UpgradeAnnouncement::InProgress {
                attempt: upgrade.attempt.clone(),
                within: None,
            },
            Upgrade::Failed(failed) => UpgradeAnnouncement::Failed {
                attempt: failed.attempt.clone(),
                error: failed.error.clone(),
            },
        }
        .into()
    }
}
