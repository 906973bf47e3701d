//! The hold in a mass loss: whose silence is not believed at once, how long, and on what evidence.
//!
//! When most of a pool, or much of a large fleet, falls silent at once, the likeliest cause is
//! common: a switch, a firewall, the broker's own side. Throwing all of them out would turn a
//! hiccup into an outage. So they are believed on, for ten minutes of any hour at most.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::{HostId, Mono, Now, PoolName};

/// The most that holds of one pool last in any hour.
pub const HOLD_MAX: Duration = Duration::from_secs(10 * 60);
const HOUR: Duration = Duration::from_secs(3600);
/// While this share of a pool is heard, new sessions go there and not to silent hosts.
pub(super) const ENOUGH_PERCENT: usize = 30;
/// Spans that are remembered of one pool; more of one hour are merged, to the pool's cost.
const SPANS: usize = 64;

/// A hold in force.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) began: Mono,
    pub(super) since: Timestamp,
    pub(super) ends: Mono,
    /// Who is held; who is heard again, or convicted, leaves.
    pub(super) held: BTreeSet<HostId>,
    /// Everybody who was.
    pub(super) ever: usize,
    /// One held host answered: then refusals tell something.
    pub(super) answered: bool,
    /// Enough of the pool is heard for silent hosts to be spared new sessions.
    pub(super) enough_left: bool,
    pub(super) evidence: Arc<str>,
}

/// Why a hold ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldEnd {
    /// Every held host is heard again, or was convicted.
    Settled,
    /// Its time was over.
    TimeOver,
    /// An operator ended it.
    Operator,
}

/// A hold in force, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldView {
    /// The pool.
    pub pool: PoolName,
    /// Since when.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
    /// Hosts that are held.
    pub held: usize,
    /// What began it.
    pub evidence: Arc<str>,
    /// A held host's listener answers: refusals of others convict.
    pub answered: bool,
    /// Silent hosts get no new sessions, because enough others are heard.
    pub reconnect_only: bool,
}

/// Time that holds of each pool took, as it is stored: an open hold ends with the hold's maximum.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HoldsRecord {
    /// From and to, by pool.
    pub pools: BTreeMap<PoolName, Vec<(Timestamp, Timestamp)>>,
}

/// Time that holds of one pool took.
#[derive(Debug, Default)]
pub(super) struct Spent {
    spans: VecDeque<Span>,
}

/// Time that one hold took. Kept as ages: it may have been before the boot-time clock's origin.
#[derive(Clone, Copy, Debug)]
struct Span {
    length: Duration,
    /// How long ago it ended ...
    age: Duration,
    /// ... at this instant.
    at: Mono,
}

impl Span {
    fn age(&self, now: Mono) -> Duration {
        self.age.saturating_add(now.since(self.at))
    }
}

impl Spent {
    pub(super) fn add(&mut self, from: Mono, to: Mono) {
        if self.spans.len() == SPANS
            && let Some(first) = self.spans.pop_front()
            && let Some(second) = self.spans.front_mut()
        {
            let began = first.age(to) + first.length;
            second.length = began.saturating_sub(second.age(to));
        }
        self.spans.push_back(Span {
            length: to.since(from),
            age: Duration::ZERO,
            at: to,
        });
    }

    /// What is left for a hold that begins at `now`, in the hour before it.
    pub(super) fn left(&mut self, now: Mono) -> Duration {
        self.spans.retain(|span| span.age(now) < HOUR);
        let spent: Duration = self
            .spans
            .iter()
            .map(|span| span.length.min(HOUR.saturating_sub(span.age(now))))
            .sum();
        HOLD_MAX.saturating_sub(spent)
    }

    pub(super) fn record(&self, now: Now) -> Vec<(Timestamp, Timestamp)> {
        let ago = |age: Duration| now.wall.checked_sub(age).unwrap_or(Timestamp::MIN);
        self.spans
            .iter()
            .map(|span| {
                let age = span.age(now.mono);
                (ago(age.saturating_add(span.length)), ago(age))
            })
            .collect()
    }

    /// What a record says, for a broker that starts at `now`: a hold that was open goes on to
    /// count until now. A clock that was set back gives nothing for free.
    pub(super) fn restore(spans: &[(Timestamp, Timestamp)], now: Now) -> Self {
        let spans = spans
            .iter()
            .map(|(from, to)| {
                let length = Duration::try_from(to.duration_since(*from)).unwrap_or_default();
                Span {
                    length: length.min(HOLD_MAX),
                    // Still to come: it counts from now.
                    age: Duration::try_from(now.wall.duration_since(*to)).unwrap_or_default(),
                    at: now.mono,
                }
            })
            .collect();
        Self { spans }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(100_000 + seconds))
    }

    #[test]
    fn ten_minutes_in_any_hour_and_no_more() {
        let mut spent = Spent::default();
        assert_eq!(spent.left(at(0)), HOLD_MAX);
        spent.add(at(0), at(400));
        assert_eq!(spent.left(at(400)), Duration::from_secs(200));
        spent.add(at(500), at(700));
        assert_eq!(spent.left(at(700)), Duration::ZERO);
        assert_eq!(
            spent.left(at(3700)),
            Duration::from_secs(100),
            "the first slides out"
        );
        assert_eq!(spent.left(at(4300)), HOLD_MAX);
    }

    #[test]
    fn what_was_spent_outlives_a_restart() {
        let mut spent = Spent::default();
        spent.add(at(0), at(300));
        let now = Now {
            mono: at(300),
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let record = spent.record(now);
        let after = Now {
            mono: Mono::from_origin(Duration::from_secs(5000)),
            wall: Timestamp::from_second(1_800_000_060).unwrap(),
        };
        let mut spent = Spent::restore(&record, after);
        assert_eq!(spent.left(after.mono), Duration::from_secs(300));
    }

    #[test]
    fn what_was_spent_outlives_a_boot_of_the_brokers_machine() {
        let mut spent = Spent::default();
        spent.add(at(0), at(400));
        let now = Now {
            mono: at(400),
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let record = spent.record(now);
        // Its clock began anew after the hold.
        let after = Now {
            mono: Mono::from_origin(Duration::from_secs(20)),
            wall: Timestamp::from_second(1_800_000_060).unwrap(),
        };
        let mut spent = Spent::restore(&record, after);
        assert_eq!(spent.left(after.mono), Duration::from_secs(200));
        assert_eq!(spent.record(after), record);
        let later = after.mono + Duration::from_secs(3600);
        assert_eq!(spent.left(later), HOLD_MAX);
    }
}
