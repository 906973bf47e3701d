//! The invariants of pools: holds end, and no rule of ours takes more than its share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::{
    fleet::Alert,
    host::{self, Imposed},
    model::{Mono, PoolName},
};

use super::{HOLD_MAX, Oracle, judge::context};
use crate::{
    agent::Machine,
    broker::{Broker, Clocks, Note},
};

/// For so long a pool may have nobody because a rule has not given back yet.
const GIVE_BACK_WITHIN: u8 = 3;

#[derive(Debug, Default)]
struct Pool {
    hold_since: Option<Mono>,
    /// A held host's listener has answered.
    answered: bool,
    /// Holds that ended, in judged time of this start.
    spent: Vec<(Mono, Mono)>,
    /// Counts at which a rule stood between the pool and its last host.
    starved: u8,
}

/// All pools.
#[derive(Debug)]
pub(super) struct Pools {
    of: Vec<PoolName>,
    pools: BTreeMap<PoolName, Pool>,
}

impl Pools {
    pub(super) fn new(of: Vec<PoolName>) -> Self {
        let pools = of
            .iter()
            .map(|name| (name.clone(), Pool::default()))
            .collect();
        Self { of, pools }
    }

    pub(super) fn broker_started(&mut self, _wall: Timestamp) {
        for pool in self.pools.values_mut() {
            *pool = Pool::default();
        }
    }

    /// Somebody imposed something on this host within the last event.
    pub(super) fn imposed_just_now(&self, notes: &[Note], host: usize) -> bool {
        notes
            .iter()
            .any(|note| matches!(note, Note::Imposed(of, _) | Note::Convicted(of) if *of == host))
    }

    /// A rule imposed something. Says what is wrong with that.
    pub(super) fn imposed(
        &mut self,
        host: usize,
        imposed: &Arc<Imposed>,
        broker: &Broker,
        clocks: Clocks,
    ) -> Option<String> {
        let now = broker.now(clocks).mono;
        let takes = imposed.held_down_at(now).is_some()
            || imposed.outside_at(now).is_some_and(|view| view.refuses_new);
        if !takes {
            return None;
        }
        let name = &self.of[host];
        let in_pool = |number: &usize| self.of[*number] == *name;
        let (mut present, mut taken) = (0, 0);
        for (_, cell) in broker.cells.iter().enumerate().filter(|(n, _)| in_pool(n)) {
            let Some(cell) = cell else { continue };
            let facts = cell.host.facts();
            let so = host::assess(facts, &context(cell, broker, now, clocks));
            present += usize::from(!so.presence.is_absent());
            taken += usize::from(
                facts.imposed.held_down_at(now).is_some()
                    || facts
                        .imposed
                        .outside_at(now)
                        .is_some_and(|view| view.refuses_new),
            );
        }
        let most = (present / 10).max(1);
        (taken > most).then(|| format!("rules take {taken} of {present} hosts of {name}"))
    }

    /// A held host's listener answers the broker.
    pub(super) fn answered(&mut self, host: usize) {
        self.pools
            .entry(self.of[host].clone())
            .or_default()
            .answered = true;
    }

    /// Somebody of its pool has, in this hold.
    pub(super) fn has_answered(&self, host: usize) -> bool {
        self.pools
            .get(&self.of[host])
            .is_some_and(|pool| pool.answered)
    }

    /// Nobody else of the host's pool takes new sessions.
    pub(super) fn nobody_is_left(&self, host: usize, broker: &Broker, clocks: Clocks) -> bool {
        let now = broker.now(clocks).mono;
        !broker.cells.iter().enumerate().any(|(number, cell)| {
            let Some(cell) = cell else { return false };
            self.of[number] == self.of[host]
                && number != host
                && host::assess(cell.host.facts(), &context(cell, broker, now, clocks))
                    .connectable_new
        })
    }

    /// Holds begin and end. Says what is wrong with that.
    pub(super) fn alert(&mut self, alert: &Alert, judged: Mono) -> Option<String> {
        match alert {
            Alert::HoldBegan { pool, .. } => {
                let pool = self.pools.entry(pool.clone()).or_default();
                pool.hold_since = Some(judged);
                pool.answered = false;
                None
            }
            Alert::HoldEnded { pool, .. } => {
                let pool = self.pools.entry(pool.clone()).or_default();
                if let Some(since) = pool.hold_since.take() {
                    pool.spent.push((since, judged));
                }
                pool.too_long(judged)
            }
            _ => None,
        }
    }
}

impl Pool {
    fn too_long(&self, judged: Mono) -> Option<String> {
        let hour_ago = judged.back(Duration::from_secs(3600));
        let open = self.hold_since.map(|since| (since, judged));
        let total: Duration = self
            .spent
            .iter()
            .chain(&open)
            .filter(|(_, to)| *to > hour_ago)
            .map(|(from, to)| to.since((*from).max(hour_ago)))
            .sum();
        (total > HOLD_MAX + Duration::from_secs(3))
            .then(|| format!("holds of {:.0} s within an hour", total.as_secs_f64()))
    }
}

impl Oracle {
    /// 7 and 13.
    pub(super) fn judge_pools(&mut self, broker: &Broker, _machines: &[Machine], clocks: Clocks) {
        let judged = self.clock.read(clocks.boot);
        let mut counts: BTreeMap<PoolName, (usize, usize)> = BTreeMap::new();
        for (number, cell) in broker.cells.iter().enumerate() {
            let Some(cell) = cell else { continue };
            let facts = cell.host.facts();
            let context = context(cell, broker, judged, clocks);
            let so = host::assess(facts, &context);
            let count = counts.entry(self.pools.of[number].clone()).or_default();
            count.0 += usize::from(so.connectable_new);
            if so.connectable_new || !so.connectable_reconnect {
                continue;
            }
            // What it would be without the rules that take.
            let mut without = facts.clone();
            without.imposed = Arc::new(Imposed {
                held_down: None,
                outside: None,
                ..(*facts.imposed).clone()
            });
            count.1 += usize::from(host::assess(&without, &context).connectable_new);
        }
        let mut problems = Vec::new();
        for (name, (connectable, taken)) in counts {
            let pool = self.pools.pools.entry(name.clone()).or_default();
            if connectable == 0 && taken > 0 {
                pool.starved += 1;
                if pool.starved >= GIVE_BACK_WITHIN {
                    problems.push((13, format!("rules stand between {name} and its last host")));
                }
            } else {
                pool.starved = 0;
            }
            if let Some(what) = pool.too_long(judged) {
                problems.push((7, what));
            }
        }
        for (invariant, what) in problems {
            self.problem(invariant, None, what);
        }
    }
}
