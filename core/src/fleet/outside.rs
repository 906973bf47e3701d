//! What front ends met when they followed our answers: a view from outside, and only a view.
//!
//! Three failures in a row, without a success in between, make the broker look itself. Only if its
//! own dial fails too, at a target that used to answer, does the host take no new sessions;
//! otherwise the failures stand as a reason. Nobody can talk a fleet down: a front end that fails
//! on most of its hosts is itself the likelier culprit, and where a pool has two, both must have
//! failed.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    Fleet,
    roll::{ANSWER_COUNTS, Alert},
};
use crate::{
    host::{Here, OutsideView},
    model::{HostId, Mono, Now, PoolName},
};

/// The view is forgotten after this time without another failure.
const LASTS: Duration = Duration::from_secs(5 * 60);
/// Of one front end and host, one failure counts in this time.
const ONE_IN: Duration = Duration::from_secs(10);
/// So many in a row start a look.
const IN_A_ROW: usize = 3;
/// Failures that are kept of one host, as evidence.
const KEPT: usize = 8;
/// Front ends that are remembered: a fleet has a handful.
const FRONT_ENDS_MAX: usize = 256;
/// Hosts that are remembered of one front end.
const HOSTS_MAX: usize = 20_000;
/// A front end that fails on fewer hosts than this is not judged by its share.
const DISCOUNT_AT_LEAST: usize = 2;

/// What a front end met.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Met {
    /// It connected.
    Ok,
    /// The connection was refused.
    Refused,
    /// Nothing came back.
    TimedOut,
    /// Something answered, and not as it should. Counts neither way.
    ProtocolError,
}

impl Met {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::ProtocolError => "protocol error",
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Counted {
    /// It counts.
    Yes,
    /// It is of a kind that does not count against a host.
    NotThisKind,
    /// This front end has just reported on this host.
    TooSoon,
    /// This front end fails on most of its hosts.
    Discounted,
    /// No such host is there.
    NoHost,
}

#[derive(Debug, Default)]
struct FrontEnd {
    /// Last outcome by host: failed or not.
    hosts: HashMap<HostId, (Mono, bool)>,
    pools: HashMap<PoolName, Mono>,
    discounted: bool,
}

/// All front ends that report.
#[derive(Debug, Default)]
pub(super) struct FrontEnds {
    by_name: HashMap<Arc<str>, FrontEnd>,
}

impl FrontEnds {
    fn note(&mut self, name: &Arc<str>, id: HostId, pool: &PoolName, bad: bool, now: Mono) -> bool {
        if self.by_name.len() >= FRONT_ENDS_MAX && !self.by_name.contains_key(name) {
            return false;
        }
        let front_end = self.by_name.entry(name.clone()).or_default();
        if front_end.hosts.len() < HOSTS_MAX || front_end.hosts.contains_key(&id) {
            front_end.hosts.insert(id, (now, bad));
        }
        front_end.pools.insert(pool.clone(), now);
        true
    }

    /// True if this front end fails on over half of its hosts; beside it, if that is news.
    fn is_discounted(&mut self, name: &str, now: Mono) -> (bool, bool) {
        let Some(front_end) = self.by_name.get_mut(name) else {
            return (true, false);
        };
        front_end.hosts.retain(|_, (at, _)| now.since(*at) < LASTS);
        let bad = front_end.hosts.values().filter(|(_, bad)| *bad).count();
        let discounted = bad >= DISCOUNT_AT_LEAST && bad * 2 > front_end.hosts.len();
        let news = discounted && !front_end.discounted;
        front_end.discounted = discounted;
        (discounted, news)
    }

    /// Front ends that reported on hosts of a pool lately.
    fn of_pool(&self, pool: &PoolName, now: Mono) -> usize {
        self.by_name
            .values()
            .filter(|front_end| {
                front_end
                    .pools
                    .get(pool)
                    .is_some_and(|at| now.since(*at) < LASTS)
            })
            .count()
    }

    fn forget(&mut self, now: Mono) {
        self.by_name.retain(|_, front_end| {
            front_end.pools.retain(|_, at| now.since(*at) < LASTS);
            !front_end.pools.is_empty()
        });
    }
}

/// What front ends met at one host.
#[derive(Debug, Default)]
pub(super) struct Outside {
    failures: VecDeque<(Arc<str>, Met, Now)>,
}

impl Fleet {
    /// Front ends whose word does not count just now.
    #[must_use]
    pub fn discounted(&self) -> Vec<Arc<str>> {
        self.front_ends
            .by_name
            .iter()
            .filter(|(_, front_end)| front_end.discounted)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// A front end followed an answer of ours that said *connectable*, and met this.
    pub fn handle_outcome(
        &mut self,
        id: HostId,
        front_end: &Arc<str>,
        met: Met,
        now: Now,
    ) -> Counted {
        let Some(member) = self.members.get_mut(&id) else {
            return Counted::NoHost;
        };
        let pool = member.standing.pool.clone();
        let bad = match met {
            Met::Ok => false,
            Met::Refused | Met::TimedOut => true,
            Met::ProtocolError => return Counted::NotThisKind,
        };
        let soon = member
            .outside
            .failures
            .iter()
            .any(|(by, _, at)| by == front_end && now.mono.since(at.mono) < ONE_IN);
        if bad && soon {
            return Counted::TooSoon;
        }
        if !self.front_ends.note(front_end, id, &pool, bad, now.mono) {
            return Counted::Discounted;
        }
        if !bad {
            member.outside.failures.clear();
            member.ok_at = Some(now.mono);
            member.barred = None;
            if let Some(pool) = self.pools.get_mut(&pool)
                && member.standing.here == Here::Confirmed
            {
                pool.taken.remove(&id);
            }
            self.tell(id, now);
            return Counted::Yes;
        }
        let (discounted, news) = self.front_ends.is_discounted(front_end, now.mono);
        if news {
            self.alerts.push_back(Alert::FrontEndDiscounted {
                name: front_end.clone(),
            });
        }
        if discounted {
            return Counted::Discounted;
        }
        if member.outside.failures.len() == KEPT {
            member.outside.failures.pop_front();
        }
        member
            .outside
            .failures
            .push_back((front_end.clone(), met, now));
        let by: BTreeSet<&Arc<str>> = member.outside.failures.iter().map(|(by, ..)| by).collect();
        let wanted = self.front_ends.of_pool(&pool, now.mono).min(2);
        if member.outside.failures.len() >= IN_A_ROW && by.len() >= wanted {
            self.see_outside(id, now);
        }
        Counted::Yes
    }

    /// Enough failures: they are a reason from now on, and the broker looks itself.
    fn see_outside(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let evidence: Vec<String> = member
            .outside
            .failures
            .iter()
            .map(|(by, met, at)| format!("{by} at {}: {}", at.wall, met.as_str()))
            .collect();
        let before = member.barred.take();
        member.barred = Some(OutsideView {
            since: before.as_ref().map_or(now.wall, |before| before.since),
            until: now.mono + LASTS,
            refuses_new: before.as_ref().is_some_and(|before| before.refuses_new),
            evidence: evidence.into(),
        });
        self.probes.look(id, now.mono);
        self.tell(id, now);
    }

    /// The broker has looked at a host that is heard: `against` is what its dials met.
    pub(super) fn judge_outside(&mut self, id: HostId, against: Option<&[String]>, now: Now) {
        let may_take = self.may_take(id);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(view) = &mut member.barred else {
            return;
        };
        let mut evidence = view.evidence.to_vec();
        match against {
            None => {
                evidence.push(format!("the broker itself connected at {}", now.wall));
                view.refuses_new = false;
            }
            Some(against) => {
                evidence.extend(against.iter().cloned());
                if may_take {
                    view.refuses_new = true;
                } else {
                    evidence.push("too few of its pool are left to do without it".to_owned());
                }
            }
        }
        view.evidence = evidence.into();
        let barred = view.refuses_new;
        let name = member.standing.pool.clone();
        if barred {
            self.pools.entry(name).or_default().taken.insert(id);
            self.alerts.push_back(Alert::Barred { id });
        }
        self.tell(id, now);
    }

    /// Views grow old.
    pub(super) fn poll_outside(&mut self, now: Now) {
        self.front_ends.forget(now.mono);
        let over: Vec<HostId> = self
            .members
            .iter()
            .filter(|(_, member)| {
                let view = member.barred.as_ref();
                view.is_some_and(|view| now.mono >= view.until)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            if let Some(member) = self.members.get_mut(&id) {
                member.barred = None;
                member.outside.failures.clear();
            }
            self.tell(id, now);
        }
        for member in self.members.values_mut() {
            member
                .outside
                .failures
                .retain(|(.., at)| now.mono.since(at.mono) < LASTS);
            member.ok_at = member
                .ok_at
                .filter(|at| now.mono.since(*at) < ANSWER_COUNTS);
        }
    }
}
