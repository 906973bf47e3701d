//! How many are there, were there a lease ago, and are missing.
//!
//! Who has just come counts after a lease, and who has just gone counts for another: so the
//! number that losses are measured by is that of one lease ago, and follows the live set. Where a
//! fleet has just come, those who are there now count as well: three of five old hands are no mass
//! beside a thousand who are heard.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::model::{HostId, Mono, PoolName};

/// Fewer are no mass, whatever their share: three machines fail together by chance once in a
/// while, two do every day.
const MASS_AT_LEAST: usize = 3;
/// This share of a pool or of the fleet is a mass.
const MASS_PERCENT: usize = 55;
/// In a fleet of this size ...
const LARGE: usize = 100;
/// ... already this share is.
const MASS_PERCENT_OF_LARGE: usize = 15;

/// Counts of one pool, or of the fleet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Count {
    /// Were there a lease ago.
    pub(super) base: usize,
    /// Of these: overdue now, or lost within the last lease.
    pub(super) missing: usize,
    /// Heard now.
    pub(super) confirmed: usize,
    /// There now.
    pub(super) present: usize,
    /// Take new sessions now.
    pub(super) connectable: usize,
}

impl Count {
    /// So many are missing at once that a common cause is the likelier one.
    pub(super) fn is_mass(self) -> bool {
        self.missing >= MASS_AT_LEAST && self.missing * 100 >= self.whole() * MASS_PERCENT
    }

    /// What losses are measured by.
    pub(super) fn whole(self) -> usize {
        self.base.max(self.present)
    }

    /// As [`Count::is_mass`], for the whole fleet.
    pub(super) fn is_mass_of_fleet(self) -> bool {
        self.is_mass()
            || self.whole() >= LARGE
                && self.missing >= MASS_AT_LEAST
                && self.missing * 100 >= self.whole() * MASS_PERCENT_OF_LARGE
    }
}

/// What is counted of one host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Mark {
    /// Is there.
    pub(super) present: bool,
    /// Heard.
    pub(super) confirmed: bool,
    /// Missing, and not let out of a hold.
    pub(super) missing: bool,
    /// Takes new sessions.
    pub(super) connectable: bool,
}

#[derive(Debug, Default)]
struct Counted {
    mark: Mark,
    /// Was there a lease ago.
    graduated: bool,
    /// Counts its stays.
    stay: u32,
}

#[derive(Debug)]
struct Departure {
    at: Mono,
    pool: PoolName,
    missing: bool,
}

/// The counts of all pools and of the fleet.
#[derive(Debug)]
pub(super) struct Census {
    lease: Duration,
    hosts: BTreeMap<HostId, Counted>,
    pools: BTreeMap<PoolName, Count>,
    fleet: Count,
    /// Who came within the last lease: at most one entry per stay.
    newcomers: VecDeque<(Mono, HostId, u32, PoolName)>,
    /// Who went within the last lease.
    departures: VecDeque<Departure>,
}

impl Census {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            lease,
            hosts: BTreeMap::new(),
            pools: BTreeMap::new(),
            fleet: Count::default(),
            newcomers: VecDeque::new(),
            departures: VecDeque::new(),
        }
    }

    pub(super) fn pool(&self, pool: &PoolName) -> Count {
        self.pools.get(pool).copied().unwrap_or_default()
    }

    pub(super) fn fleet(&self) -> Count {
        self.fleet
    }

    /// A host as it is now. `old_hand` was there a lease ago although it was not counted: it is
    /// known from before the broker's start. `lost` says that it goes as a loss that counts.
    pub(super) fn set(
        &mut self,
        id: HostId,
        pool: &PoolName,
        mark: Mark,
        old_hand: bool,
        lost: bool,
        now: Mono,
    ) {
        self.tick(now);
        let host = self.hosts.entry(id).or_default();
        let before = host.mark;
        let was_graduated = host.graduated;
        host.mark = mark;
        if mark.present && !before.present {
            host.stay += 1;
            host.graduated = old_hand;
            if !old_hand {
                self.newcomers.push_back((now, id, host.stay, pool.clone()));
            }
        } else if !mark.present {
            host.graduated = false;
        }
        let graduated = host.graduated;
        for count in [&mut self.fleet, self.pools.entry(pool.clone()).or_default()] {
            shift(&mut count.present, before.present, mark.present);
            shift(&mut count.confirmed, before.confirmed, mark.confirmed);
            shift(&mut count.connectable, before.connectable, mark.connectable);
            shift(
                &mut count.missing,
                before.missing && was_graduated,
                mark.missing && graduated,
            );
            shift(&mut count.base, was_graduated, graduated);
            if was_graduated && !mark.present {
                // Counts for another lease.
                count.base += 1;
                count.missing += usize::from(lost);
            }
        }
        if was_graduated && !mark.present {
            self.departures.push_back(Departure {
                at: now,
                pool: pool.clone(),
                missing: lost,
            });
        }
    }

    pub(super) fn remove(&mut self, id: HostId, pool: &PoolName, now: Mono) {
        self.set(id, pool, Mark::default(), false, false, now);
        self.hosts.remove(&id);
    }

    /// Lets those count who came a lease ago, and forgets those who went.
    pub(super) fn tick(&mut self, now: Mono) {
        while let Some((at, ..)) = self.newcomers.front()
            && now.since(*at) >= self.lease
        {
            let Some((_, id, stay, pool)) = self.newcomers.pop_front() else {
                break;
            };
            if let Some(host) = self.hosts.get_mut(&id)
                && host.stay == stay
                && host.mark.present
                && !host.graduated
            {
                host.graduated = true;
                let missing = usize::from(host.mark.missing);
                for count in [&mut self.fleet, self.pools.entry(pool).or_default()] {
                    count.base += 1;
                    count.missing += missing;
                }
            }
        }
        while let Some(departure) = self.departures.front()
            && now.since(departure.at) >= self.lease
        {
            let Some(departure) = self.departures.pop_front() else {
                break;
            };
            for count in [
                &mut self.fleet,
                self.pools.entry(departure.pool).or_default(),
            ] {
                count.base = count.base.saturating_sub(1);
                count.missing = count.missing.saturating_sub(usize::from(departure.missing));
            }
        }
    }

    /// Pools in which anybody is.
    pub(super) fn pools(&self) -> BTreeSet<PoolName> {
        self.pools.keys().cloned().collect()
    }
}

fn shift(count: &mut usize, before: bool, after: bool) {
    match (before, after) {
        (false, true) => *count += 1,
        (true, false) => *count = count.saturating_sub(1),
        (true, true) | (false, false) => {}
    }
}
