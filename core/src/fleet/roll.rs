//! The rules that need to see many hosts: mass loss, flapping, probes, what front ends met.
//!
//! A host tells the roll how it stands, on change and never per beat
//! ([`Fleet::handle_standing`]). The roll answers with commands for single hosts
//! ([`Fleet::poll_command`]), each of which is a fact with an end of its own. It knows no host's
//! facts, takes no lock and can be late by seconds: holds begin when hosts fall silent, well
//! before their leases are over.
//!
//! Invariants: no rule here takes a pool's last connectable host, or (but for what dials convict)
//! more than a tenth of it (one host at least); holds of a pool last ten minutes of any hour at most; who was let out of a hold
//! begins no other; a refused probe convicts nobody while a mass of hosts is silent and none of
//! them answers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use super::{
    census::{Census, Count, Mark},
    flap::{Losses, hold_down},
    hold::{ENOUGH_PERCENT, HoldEnd, HoldView, HoldsRecord, Open, Spent},
    outside::{self, Outside},
    probes::{Dial, DialOutcome, Finding, Probes},
};
use crate::{
    host::{Conviction, Gone, HeldDown, Here, Hold, HoldAnswers, Imposed, OutsideView, Standing},
    model::{HostId, Mono, Now, PoolName},
};

/// An answer of a held host's listener, or of a front end, counts for this long.
pub(super) const ANSWER_COUNTS: Duration = Duration::from_secs(60);

/// What the rules want of one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// This is imposed from now on, and nothing else.
    Impose(Arc<Imposed>),
    /// The broker's dials found nobody there.
    Convict(Conviction),
}

/// Something that a person should know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Alert {
    /// A hold began.
    HoldBegan {
        /// The pool.
        pool: PoolName,
        /// Hosts missing.
        missing: usize,
        /// Of so many.
        of: usize,
    },
    /// A mass of hosts is missing, and the pool's holds of this hour are spent.
    HoldSpent {
        /// The pool.
        pool: PoolName,
        /// Hosts missing.
        missing: usize,
        /// Of so many.
        of: usize,
    },
    /// A hold ended.
    HoldEnded {
        /// The pool.
        pool: PoolName,
        /// Why.
        why: HoldEnd,
        /// Hosts that are believed no longer.
        let_out: usize,
    },
    /// A host is held down.
    HeldDown {
        /// The host.
        id: HostId,
        /// Losses that count.
        losses: u32,
        /// For how long.
        lasts: Duration,
    },
    /// A front end fails on so many hosts that its word does not count.
    FrontEndDiscounted {
        /// Its name.
        name: Arc<str>,
    },
    /// Front ends and the broker's own dial cannot connect to a host.
    Barred {
        /// The host.
        id: HostId,
    },
}

/// What the roll knows of one host.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) standing: Standing,
    /// Its silence was believed for long enough: it begins no other hold.
    let_out: bool,
    /// Missing at the end of the restart window.
    not_back: bool,
    held: bool,
    /// Its listener answered while it was silent.
    answered_at: Option<Mono>,
    /// A front end connected to it.
    pub(super) ok_at: Option<Mono>,
    /// Its listener refused, and nobody else of the mass has answered yet.
    refused: bool,
    losses: Losses,
    held_down: Option<HeldDown>,
    pub(super) outside: Outside,
    pub(super) barred: Option<OutsideView>,
    told: Arc<Imposed>,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    overdue: BTreeSet<HostId>,
    hold: Option<Open>,
    spent: Spent,
    /// Hosts that a rule keeps from new sessions: at most a tenth.
    pub(super) taken: BTreeSet<HostId>,
    /// It was said that no hold is left.
    spent_told: bool,
}

/// All hosts of one broker, as the rules of the fleet see them.
#[derive(Debug)]
pub struct Fleet {
    /// In order, so that the same words lead to the same commands in the same order.
    pub(super) members: BTreeMap<HostId, Member>,
    pub(super) pools: BTreeMap<PoolName, Pool>,
    pub(super) census: Census,
    pub(super) probes: Probes,
    pub(super) front_ends: outside::FrontEnds,
    /// At most a few per host; drained after every call.
    commands: VecDeque<(HostId, Command)>,
    pub(super) alerts: VecDeque<Alert>,
    /// Losses within the restart window do not count as flapping.
    window_open: bool,
    record_changed: bool,
}

impl Fleet {
    /// Nobody yet. `lease` is the lease that sessions are told.
    #[must_use]
    pub fn new(lease: Duration, now: Mono) -> Self {
        Self {
            members: BTreeMap::new(),
            pools: BTreeMap::new(),
            census: Census::new(lease),
            probes: Probes::new(now),
            front_ends: outside::FrontEnds::default(),
            commands: VecDeque::new(),
            alerts: VecDeque::new(),
            window_open: false,
            record_changed: false,
        }
    }

    /// What holds of an earlier start took counts on.
    pub fn restore(&mut self, record: &HoldsRecord, now: Now) {
        for (pool, spans) in &record.pools {
            self.pools.entry(pool.clone()).or_default().spent = Spent::restore(spans, now);
        }
    }

    /// The record to store, if holds changed since the last call. An open hold counts whole until
    /// it ends: a crash gives nothing for free.
    pub fn take_record(&mut self, now: Now) -> Option<HoldsRecord> {
        if !std::mem::take(&mut self.record_changed) {
            return None;
        }
        let mut record = HoldsRecord::default();
        for (name, pool) in &mut self.pools {
            // Forgets what slid out of the hour.
            pool.spent.left(now.mono);
            let mut spans = pool.spent.record(now);
            if let Some(hold) = &pool.hold {
                spans.push((now.wall_at(hold.began), now.wall_at(hold.ends)));
            }
            if !spans.is_empty() {
                record.pools.insert(name.clone(), spans);
            }
        }
        Some(record)
    }

    /// The next command; to be drained after every call that takes something in.
    pub fn poll_command(&mut self) -> Option<(HostId, Command)> {
        self.commands.pop_front()
    }

    /// A command waits.
    #[must_use]
    pub fn has_commands(&self) -> bool {
        !self.commands.is_empty()
    }

    /// The next thing that a person should know.
    pub fn poll_alert(&mut self) -> Option<Alert> {
        self.alerts.pop_front()
    }

    /// A host stands otherwise than before.
    pub fn handle_standing(&mut self, id: HostId, standing: &Standing, now: Now) {
        let before = match self.members.get_mut(&id) {
            Some(member) if member.standing.version >= standing.version => return,
            Some(member) => {
                let before = member.standing.here;
                member.standing = standing.clone();
                before
            }
            None => {
                let member = Member::new(standing.clone());
                self.members.insert(id, member);
                Here::Gone(Gone::Otherwise)
            }
        };
        self.probes.handle_standing(id, standing, now.mono);
        self.follow(id, before, now);
        self.count(id, before, now);
        if before == Here::Gone(Gone::Lost) && standing.here == Here::Confirmed {
            self.hold_down(id, now);
        }
        self.poll_mass_loss(&standing.pool, now);
        self.give_back(&standing.pool, now);
    }

    /// A host was removed.
    pub fn handle_removed(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        let name = member.standing.pool;
        self.probes.handle_removed(id);
        self.census.remove(id, &name, now.mono);
        if let Some(pool) = self.pools.get_mut(&name) {
            pool.overdue.remove(&id);
            pool.taken.remove(&id);
            if let Some(hold) = &mut pool.hold {
                hold.held.remove(&id);
            }
        }
        self.end_settled_hold(&name, now);
        self.give_back(&name, now);
    }

    /// What its new standing means for a member's own marks.
    fn follow(&mut self, id: HostId, before: Here, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let pool = self.pools.entry(member.standing.pool.clone()).or_default();
        match member.standing.here {
            Here::Confirmed => {
                member.let_out = false;
                member.not_back = false;
                member.refused = false;
                member.answered_at = None;
                pool.overdue.remove(&id);
                self.leave_hold(id, now);
            }
            Here::Overdue => {
                pool.overdue.insert(id);
                if !member.let_out && pool.hold.is_some() {
                    self.join_hold(id, now);
                }
            }
            Here::Restarting => {
                pool.overdue.remove(&id);
            }
            Here::Unverified => {}
            Here::Gone(gone) => {
                pool.overdue.remove(&id);
                // Losses in a hold, or in the restart window, are not the host's own doing.
                if gone == Gone::Lost
                    && before.is_present()
                    && !(member.let_out || member.held || self.window_open)
                {
                    member.losses.add(now.mono);
                }
                self.leave_hold(id, now);
            }
        }
    }

    fn count(&mut self, id: HostId, before: Here, now: Now) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let here = member.standing.here;
        let mark = Mark {
            present: here.is_present(),
            confirmed: here == Here::Confirmed,
            missing: (here == Here::Overdue || member.not_back) && !member.let_out,
            connectable: member.standing.connectable_new,
        };
        let lost = here == Here::Gone(Gone::Lost) && !member.let_out;
        let old_hand = here == Here::Unverified || before == Here::Unverified;
        let pool = member.standing.pool.clone();
        self.census.set(id, &pool, mark, old_hand, lost, now.mono);
    }

    /// Time passes: called every second or so. `window` is the restart window, if it is open.
    pub fn tick(&mut self, window_open: bool, now: Now) {
        self.window_open = window_open;
        self.census.tick(now.mono);
        let names = self.census.pools();
        for name in names {
            let Some(pool) = self.pools.get_mut(&name) else {
                continue;
            };
            let over = pool.hold.as_ref().is_some_and(|hold| now.mono >= hold.ends);
            if over {
                self.end_hold(&name, HoldEnd::TimeOver, now);
            }
            self.end_settled_hold(&name, now);
            self.retell_if_enough_changed(&name, now);
            self.expire_taken(&name, now);
        }
        self.poll_outside(now);
    }

    /// The restart window is about to end: who is not back now is one mass loss, which began when
    /// the window opened.
    pub fn handle_window_end(&mut self, opened: Mono, now: Now) {
        let missing: Vec<HostId> = self
            .members
            .iter()
            .filter(|(_, member)| {
                member.standing.here == Here::Unverified && !member.let_out && !member.not_back
            })
            .map(|(id, _)| *id)
            .collect();
        let mut pools = BTreeSet::new();
        for id in missing {
            if let Some(member) = self.members.get_mut(&id) {
                member.not_back = true;
                let name = member.standing.pool.clone();
                self.pools
                    .entry(name.clone())
                    .or_default()
                    .overdue
                    .insert(id);
                pools.insert(name);
            }
            self.count(id, Here::Unverified, now);
            self.join_hold(id, now);
        }
        for name in pools {
            self.poll_mass_loss_since(&name, opened, now);
        }
    }

    /// An operator ends holds: of one pool, or all. Says how many there were.
    pub fn end_holds(&mut self, pool: Option<&PoolName>, now: Now) -> usize {
        let names: Vec<PoolName> = self
            .pools
            .iter()
            .filter(|(name, state)| state.hold.is_some() && pool.is_none_or(|pool| pool == *name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &names {
            self.end_hold(name, HoldEnd::Operator, now);
        }
        names.len()
    }

    /// The holds in force.
    pub fn holds(&self, now: Now) -> Vec<HoldView> {
        self.pools
            .iter()
            .filter_map(|(name, pool)| {
                let hold = pool.hold.as_ref()?;
                Some(HoldView {
                    pool: name.clone(),
                    since: hold.since,
                    until: now.wall_at(hold.ends),
                    held: hold.held.len(),
                    evidence: hold.evidence.clone(),
                    answered: hold.answered,
                    reconnect_only: hold.enough_left,
                })
            })
            .collect()
    }

    /// Hosts that a rule keeps from new sessions, with the pool and the end of it.
    pub fn held_down(&self, now: Now) -> Vec<(HostId, HeldDown)> {
        self.members
            .iter()
            .filter_map(|(id, member)| {
                Some((*id, member.held_down.filter(|h| now.mono < h.until)?))
            })
            .collect()
    }

    /// Hosts that are there.
    #[must_use]
    pub fn present(&self) -> usize {
        self.census.fleet().present
    }

    /// Dials under way, and hosts that a dial could convict.
    #[must_use]
    pub fn probes(&self, now: Mono) -> (usize, usize) {
        (self.probes.under_way(), self.probes.calibrated(now))
    }

    /// The next dial to make.
    pub fn poll_dial(&mut self, now: Mono) -> Option<Dial> {
        self.probes.poll_dial(now)
    }

    /// What came of a dial.
    pub fn handle_dialled(&mut self, dial: &Dial, outcome: DialOutcome, now: Now) {
        let Some(finding) = self.probes.handle_dialled(dial, outcome, now) else {
            return;
        };
        let id = dial.id;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.standing.here == Here::Confirmed {
            let evidence = match finding {
                Finding::Answered => None,
                Finding::Silent => return,
                Finding::Gone(conviction) => Some(conviction.evidence),
            };
            self.judge_outside(id, evidence.as_deref(), now);
            return;
        }
        let name = member.standing.pool.clone();
        match finding {
            Finding::Silent => {
                member.answered_at = None;
                member.refused = false;
            }
            Finding::Answered => {
                member.answered_at = Some(now.mono);
                member.refused = false;
                if member.held {
                    self.believe_refusals(&name, now);
                    self.tell(id, now);
                }
            }
            Finding::Gone(conviction) => {
                member.answered_at = None;
                let hold = self.pools.get(&name).and_then(|pool| pool.hold.as_ref());
                let doubted = member.held && hold.is_some_and(|hold| !hold.answered);
                let last = member.standing.connectable_new && !self.others_serve(id);
                if doubted {
                    if let Some(member) = self.members.get_mut(&id) {
                        member.refused = true;
                    }
                    self.tell(id, now);
                } else if !last {
                    // The last of a pool has its lease: nobody would be served instead of it.
                    self.commands.push_back((id, Command::Convict(conviction)));
                }
            }
        }
    }

    /// Somebody of the mass answers: the way there is open, and refusals mean what they say from
    /// now on. Those from before are asked again.
    fn believe_refusals(&mut self, name: &PoolName, now: Now) {
        let Some(hold) = self.pools.get_mut(name).and_then(|pool| pool.hold.as_mut()) else {
            return;
        };
        if std::mem::replace(&mut hold.answered, true) {
            return;
        }
        for id in &hold.held {
            if let Some(member) = self.members.get_mut(id)
                && std::mem::take(&mut member.refused)
            {
                self.probes.ask_again(*id, now.mono);
            }
        }
    }

    fn poll_mass_loss(&mut self, name: &PoolName, now: Now) {
        self.poll_mass_loss_since(name, now.mono, now);
    }

    fn poll_mass_loss_since(&mut self, name: &PoolName, began: Mono, now: Now) {
        let fleet = self.census.fleet();
        if fleet.is_mass_of_fleet() {
            let names: Vec<PoolName> = self
                .pools
                .iter()
                .filter(|(_, pool)| pool.hold.is_none() && !pool.overdue.is_empty())
                .map(|(name, _)| name.clone())
                .collect();
            for name in names {
                self.begin_hold(&name, "the fleet", fleet, began, now);
            }
        } else {
            let count = self.census.pool(name);
            if count.is_mass() {
                self.begin_hold(name, "the pool", count, began, now);
            }
        }
    }

    fn begin_hold(&mut self, name: &PoolName, of_what: &str, count: Count, began: Mono, now: Now) {
        let enough_left = self.enough_left(name);
        let pool = self.pools.entry(name.clone()).or_default();
        if pool.hold.is_some() {
            // Who falls silent in a hold joins it; a mass must not be gone through for each.
            return;
        }
        let ends = began + pool.spent.left(began);
        if ends <= now.mono && pool.spent_told {
            return;
        }
        let joins: Vec<HostId> = pool
            .overdue
            .iter()
            .filter(|id| self.members.get(id).is_some_and(|member| !member.let_out))
            .copied()
            .collect();
        if joins.is_empty() {
            return;
        }
        if ends <= now.mono {
            pool.spent_told = true;
            self.alerts.push_back(Alert::HoldSpent {
                pool: name.clone(),
                missing: count.missing,
                of: count.whole(),
            });
            return;
        }
        let evidence = format!(
            "{} of {} hosts of {of_what} fell silent at once",
            count.missing,
            count.whole()
        );
        pool.spent_told = false;
        pool.hold = Some(Open {
            began,
            since: now.wall,
            ends,
            held: BTreeSet::new(),
            ever: 0,
            answered: false,
            enough_left,
            evidence: evidence.into(),
        });
        self.record_changed = true;
        self.alerts.push_back(Alert::HoldBegan {
            pool: name.clone(),
            missing: count.missing,
            of: count.whole(),
        });
        for id in joins {
            self.join_hold(id, now);
        }
    }

    fn join_hold(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let name = &member.standing.pool;
        let Some(hold) = self.pools.get_mut(name).and_then(|pool| pool.hold.as_mut()) else {
            return;
        };
        if !hold.held.insert(id) {
            return;
        }
        hold.ever += 1;
        member.held = true;
        self.probes.set_held(id, true, now.mono);
        self.tell(id, now);
    }

    fn leave_hold(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut member.held, false) {
            return;
        }
        let name = member.standing.pool.clone();
        self.probes.set_held(id, false, now.mono);
        if let Some(hold) = self.pools.get_mut(&name).and_then(|p| p.hold.as_mut()) {
            hold.held.remove(&id);
        }
        self.tell(id, now);
    }

    /// Nobody is left to be held. Looked at every tick, so that a mass that falls silent one by
    /// one is one hold.
    fn end_settled_hold(&mut self, name: &PoolName, now: Now) {
        let settled = self
            .pools
            .get(name)
            .and_then(|pool| pool.hold.as_ref())
            .is_some_and(|hold| hold.held.is_empty());
        if settled {
            self.end_hold(name, HoldEnd::Settled, now);
        }
    }

    fn end_hold(&mut self, name: &PoolName, why: HoldEnd, now: Now) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let Some(hold) = pool.hold.take() else {
            return;
        };
        pool.spent.add(hold.began, now.mono.max(hold.began));
        self.record_changed = true;
        self.alerts.push_back(Alert::HoldEnded {
            pool: name.clone(),
            why,
            let_out: hold.held.len(),
        });
        for id in hold.held {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.held = false;
            member.let_out = true;
            member.refused = false;
            let here = member.standing.here;
            self.probes.set_held(id, false, now.mono);
            self.count(id, here, now);
            self.tell(id, now);
        }
    }

    /// Enough of the pool is heard to spare its silent hosts new sessions.
    fn enough_left(&self, name: &PoolName) -> bool {
        let count = self.census.pool(name);
        count.confirmed > 0 && count.confirmed * 100 >= count.whole() * ENOUGH_PERCENT
    }

    fn retell_if_enough_changed(&mut self, name: &PoolName, now: Now) {
        let enough = self.enough_left(name);
        let Some(hold) = self.pools.get_mut(name).and_then(|pool| pool.hold.as_mut()) else {
            return;
        };
        // Answers grow old, too.
        hold.enough_left = enough;
        for id in hold.held.clone() {
            self.tell(id, now);
        }
    }

    /// A host that was lost and is back: if it comes and goes, it takes no new sessions for a
    /// while.
    fn hold_down(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some((losses, lasts)) = hold_down(&mut member.losses, now.mono) else {
            return;
        };
        if !self.may_take(id) {
            return;
        }
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.held_down = Some(HeldDown {
            since: now.wall,
            until: now.mono + lasts,
            losses,
        });
        let name = member.standing.pool.clone();
        self.pools.entry(name).or_default().taken.insert(id);
        self.alerts.push_back(Alert::HeldDown { id, losses, lasts });
        self.tell(id, now);
    }

    /// May a rule keep this host from new sessions? At most a tenth of a pool, one host at least,
    /// and never the last that takes any.
    pub(super) fn may_take(&self, id: HostId) -> bool {
        let Some(member) = self.members.get(&id) else {
            return false;
        };
        let name = &member.standing.pool;
        let count = self.census.pool(name);
        let taken = self.pools.get(name).map_or(0, |pool| {
            pool.taken.len() - usize::from(pool.taken.contains(&id))
        });
        taken < (count.present / 10).max(1) && self.others_serve(id)
    }

    /// Another host of the pool takes new sessions.
    fn others_serve(&self, id: HostId) -> bool {
        self.members.get(&id).is_some_and(|member| {
            let connectable = self.census.pool(&member.standing.pool).connectable;
            connectable > usize::from(member.standing.connectable_new)
        })
    }

    /// Nobody of the pool takes new sessions any more: then no rule of ours may stand in the way.
    fn give_back(&mut self, name: &PoolName, now: Now) {
        if self.census.pool(name).connectable > 0 {
            return;
        }
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        for id in std::mem::take(&mut pool.taken) {
            if let Some(member) = self.members.get_mut(&id) {
                member.held_down = None;
                if let Some(barred) = &mut member.barred {
                    barred.refuses_new = false;
                }
            }
            self.tell(id, now);
        }
    }

    fn expire_taken(&mut self, name: &PoolName, now: Now) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let members = &mut self.members;
        pool.taken.retain(|id| {
            let Some(member) = members.get_mut(id) else {
                return false;
            };
            member.held_down = member.held_down.filter(|held| now.mono < held.until);
            let barred = member
                .barred
                .as_ref()
                .is_some_and(|view| view.refuses_new && now.mono < view.until);
            member.held_down.is_some() || barred
        });
    }

    /// Tells a host what is imposed on it, if that is another thing than before.
    pub(super) fn tell(&mut self, id: HostId, now: Now) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let hold = self
            .pools
            .get(&member.standing.pool)
            .and_then(|pool| pool.hold.as_ref())
            .filter(|_| member.held);
        let imposed = Imposed {
            hold: hold.map(|hold| member.held_as(hold, now.mono)),
            held_down: member.held_down,
            outside: member.barred.clone(),
        };
        if *member.told != imposed {
            member.told = Arc::new(imposed);
            let command = Command::Impose(member.told.clone());
            self.commands.push_back((id, command));
        }
    }
}

impl Member {
    fn new(standing: Standing) -> Self {
        Self {
            standing,
            let_out: false,
            not_back: false,
            held: false,
            answered_at: None,
            ok_at: None,
            refused: false,
            losses: Losses::default(),
            held_down: None,
            outside: Outside::default(),
            barred: None,
            told: Arc::default(),
        }
    }

    fn held_as(&self, hold: &Open, now: Mono) -> Hold {
        let fresh = |at: Option<Mono>| at.is_some_and(|at| now.since(at) < ANSWER_COUNTS);
        let (answers, own) = if fresh(self.answered_at) {
            (HoldAnswers::AsBefore, "; its listener answers")
        } else if fresh(self.ok_at) {
            (HoldAnswers::AsBefore, "; a front end connected to it")
        } else if hold.enough_left {
            (HoldAnswers::ReconnectOnly, "")
        } else {
            (HoldAnswers::AsBefore, "")
        };
        Hold {
            since: hold.since,
            until: hold.ends,
            answers,
            evidence: format!("{}{own}", hold.evidence).into(),
        }
    }
}
