//! The broker's own state: what it holds back, why, until when; and the operators' words on it.

use std::collections::BTreeMap;

use muster_core::{
    fleet::{HoldView, Lateness},
    host::Event,
    model::{PoolName, Status as HostStatus},
};
use muster_proto::{border::timestamp, v1};
use muster_runtime::refusal::{self, Refusal};
use tonic::Status;

use super::{FleetEdge, access::Caller, connection::pool_of, find, refuse};
use crate::registry::Registry;

/// Conflicts that are named; each needs a person.
const CONFLICTS_MAX: usize = 100;

impl FleetEdge {
    /// The state at this instant.
    pub(super) fn state(&self) -> v1::BrokerStatus {
        let registry = &self.registry;
        let now = registry.now();
        let mut counts: BTreeMap<&'static str, (HostStatus, u64)> = BTreeMap::new();
        let mut conflicts = Vec::new();
        let mut unverified = 0;
        for cell in registry.page(None, usize::MAX, |_| true) {
            let published = cell.published();
            let snapshot = &published.snapshot;
            let status = snapshot.status;
            counts.entry(status.as_str()).or_insert((status, 0)).1 += 1;
            if matches!(snapshot.facts.link, muster_core::host::Link::Loaded { .. }) {
                unverified += 1;
            }
            if snapshot.facts.conflict.is_some() && conflicts.len() < CONFLICTS_MAX {
                conflicts.push(snapshot.facts.identity.name.to_string());
            }
        }
        let (present, under_way, calibrated) = registry.rules_in_numbers();
        let metrics = registry.metrics();
        v1::BrokerStatus {
            broker_id: registry.broker_id().to_owned(),
            trust_domain: self.trust_domain.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: u64::from(registry.incarnation()),
            started_at: Some(timestamp(registry.started_at())),
            as_of: Some(timestamp(now.wall)),
            hosts: counts
                .into_values()
                .map(|(status, count)| v1::StatusCount {
                    status: v1::HostStatus::from(status).into(),
                    count,
                })
                .collect(),
            sessions: count(metrics.sessions.get()),
            watchers: count(metrics.watchers.get()),
            restart_window: registry.window().map(|(since, until)| v1::RestartWindow {
                since: Some(timestamp(since)),
                until: Some(timestamp(until)),
                hosts: unverified,
            }),
            holds: registry.holds().iter().map(hold_message).collect(),
            held_down: registry
                .held_down()
                .into_iter()
                .map(|(name, held)| v1::HeldDownHost {
                    name: name.to_string(),
                    losses: held.losses,
                    until: Some(timestamp(now.wall_at(held.until))),
                })
                .collect(),
            conflicts,
            discounted_front_ends: registry
                .discounted()
                .iter()
                .map(ToString::to_string)
                .collect(),
            store_failing: registry.queue().is_failing(),
            tick_late_ms: late_ms(registry),
            stalls: metrics.rules.stalls.get(),
            wall_clock_ahead_ms: metrics
                .rules
                .wall_clock_ahead_seconds
                .get()
                .saturating_mul(1000),
            probes: Some(v1::ProbeState {
                calibrated: wide(calibrated),
                under_way: wide(under_way),
            }),
            hosts_present: wide(present),
        }
    }

    /// Ends holds; says how many there were.
    pub(super) fn end_hold(
        &self,
        caller: &Caller,
        request: &v1::EndHoldsRequest,
    ) -> Result<u32, Status> {
        let pool: Option<PoolName> = pool_of(&self.registry, &request.pool)?;
        let ended = self.registry.end_holds(pool.as_ref());
        let about = pool
            .as_ref()
            .map_or("all pools", muster_core::model::PoolName::as_str);
        self.log(caller, "hold end", about);
        Ok(u32::try_from(ended).unwrap_or(u32::MAX))
    }

    /// Decides an identity conflict.
    pub(super) fn trust(
        &self,
        caller: &Caller,
        request: &v1::TrustHostRequest,
    ) -> Result<v1::Verdict, Status> {
        let cell = find(&self.registry, &request.name)?;
        if cell.published().snapshot.facts.conflict.is_none() {
            let message = format!("no conflict about host {} is known", request.name);
            let refusal = Refusal::new(refusal::CONFLICT_UNKNOWN, message);
            return Err(refuse(&self.registry, refusal));
        }
        let newcomer = request.newcomer;
        let _ = self.registry.apply(&cell, Event::Trust { newcomer });
        let action = if newcomer {
            "trust newcomer"
        } else {
            "trust incumbent"
        };
        self.log(caller, action, &request.name);
        self.verdict(&cell)
    }
}

fn hold_message(hold: &HoldView) -> v1::Hold {
    v1::Hold {
        since: Some(timestamp(hold.since)),
        until: Some(timestamp(hold.until)),
        hosts: wide(hold.held),
        evidence: hold.evidence.to_string(),
        answered: hold.answered,
        reconnect_only: hold.reconnect_only,
        pool: hold.pool.to_string(),
    }
}

fn late_ms(registry: &Registry) -> u64 {
    let (late, lateness) = registry.lateness();
    match lateness {
        Lateness::OnTime => 0,
        Lateness::Late | Lateness::Stalled => u64::try_from(late.as_millis()).unwrap_or(u64::MAX),
    }
}

fn count(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or(0)
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
