//! The rules of the fleet, each as a story.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;

use super::*;
use crate::{
    host::{Gone, Here, HoldAnswers, Imposed, Standing},
    model::{HostId, Mono, Now, PoolName},
};

const LEASE: Duration = Duration::from_secs(35);

/// A fleet, and what each host was last told.
struct World {
    fleet: Fleet,
    now: Now,
    versions: BTreeMap<u8, u64>,
    here: BTreeMap<u8, Here>,
    connectable: BTreeMap<u8, bool>,
    imposed: BTreeMap<u8, Arc<Imposed>>,
    convicted: Vec<u8>,
    alerts: Vec<Alert>,
    dials: Vec<Dial>,
    targets: BTreeMap<u8, SocketAddr>,
}

fn id(number: u8) -> HostId {
    HostId::from_random([number; 16])
}

fn number(found: HostId) -> u8 {
    (0..=250).find(|number| id(*number) == found).unwrap()
}

fn pool_of(number: u8) -> PoolName {
    PoolName::new(if number < 100 { "a" } else { "b" }).unwrap()
}

const LOST: Here = Here::Gone(Gone::Lost);

impl World {
    fn new() -> Self {
        let now = Now {
            mono: Mono::from_origin(Duration::from_secs(100_000)),
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        Self {
            fleet: Fleet::new(LEASE, now.mono),
            now,
            versions: BTreeMap::new(),
            here: BTreeMap::new(),
            connectable: BTreeMap::new(),
            imposed: BTreeMap::new(),
            convicted: Vec::new(),
            alerts: Vec::new(),
            dials: Vec::new(),
            targets: BTreeMap::new(),
        }
    }

    /// Hosts that have been heard for longer than a lease.
    fn steady(numbers: std::ops::Range<u8>) -> Self {
        let mut world = Self::new();
        for number in numbers {
            world.stands(number, Here::Confirmed);
        }
        world.pass(60);
        assert!(world.alerts.is_empty() && world.imposed.is_empty());
        world
    }

    /// As `steady`, each with a target of its own that has answered.
    fn calibrated(numbers: std::ops::Range<u8>) -> Self {
        let mut world = Self::new();
        for number in numbers.clone() {
            let target = format!("10.0.0.{number}:22").parse().unwrap();
            world.targets.insert(number, target);
            world.stands(number, Here::Confirmed);
        }
        world.pass(60);
        for dial in std::mem::take(&mut world.dials) {
            assert_eq!(dial.purpose, Purpose::Calibrate);
            world.dialled(dial, DialOutcome::Answered);
        }
        assert_eq!(world.fleet.probes(world.now.mono), (0, numbers.len()));
        world
    }

    fn stands(&mut self, number: u8, here: Here) {
        self.here.insert(number, here);
        self.tell(number);
    }

    fn all(&mut self, numbers: impl IntoIterator<Item = u8>, here: Here) {
        for number in numbers {
            self.stands(number, here);
        }
    }

    /// Tells the fleet how the host stands, as the host itself would.
    fn tell(&mut self, number: u8) {
        let version = self.versions.entry(number).or_default();
        *version += 1;
        let here = self.here[&number];
        let imposed = self.imposed.get(&number).cloned().unwrap_or_default();
        let connectable_new = here.is_present()
            && imposed.held_down_at(self.now.mono).is_none()
            && imposed
                .outside_at(self.now.mono)
                .is_none_or(|view| !view.refuses_new);
        self.connectable.insert(number, connectable_new);
        let standing = Standing {
            pool: pool_of(number),
            version: *version,
            here,
            connectable_new,
            target: self.targets.get(&number).copied(),
        };
        self.fleet.handle_standing(id(number), &standing, self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some((found, command)) = self.fleet.poll_command() {
            let number = number(found);
            match command {
                Command::Impose(imposed) => {
                    self.imposed.insert(number, imposed);
                    self.tell(number);
                }
                Command::Convict(_) => {
                    self.convicted.push(number);
                    self.stands(number, LOST);
                }
            }
        }
        while let Some(alert) = self.fleet.poll_alert() {
            self.alerts.push(alert);
        }
        while let Some(dial) = self.fleet.poll_dial(self.now.mono) {
            self.dials.push(dial);
        }
    }

    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            let second = Duration::from_secs(1);
            self.now.mono = self.now.mono + second;
            self.now.wall = self.now.wall.checked_add(second).unwrap();
            self.fleet.tick(false, self.now);
            self.drain();
        }
    }

    fn dialled(&mut self, dial: Dial, outcome: DialOutcome) {
        self.fleet.handle_dialled(&dial, outcome, self.now);
        self.drain();
    }

    /// Lets every dial that waits come to this, and those that follow from it.
    fn dials_meet(&mut self, outcome: impl Fn(u8) -> DialOutcome) {
        for _ in 0..3 {
            for dial in std::mem::take(&mut self.dials) {
                let outcome = outcome(number(dial.id));
                self.dialled(dial, outcome);
            }
            self.pass(1);
        }
    }

    fn hold(&self, number: u8) -> Option<HoldAnswers> {
        let imposed = self.imposed.get(&number)?;
        imposed.hold_at(self.now.mono).map(|hold| hold.answers)
    }

    fn held(&self) -> Vec<u8> {
        let held = self.imposed.keys().copied();
        held.filter(|number| self.hold(*number).is_some()).collect()
    }

    fn take_alerts(&mut self) -> Vec<Alert> {
        std::mem::take(&mut self.alerts)
    }
}

#[test]
fn most_of_a_pool_silent_at_once_is_held_and_no_hold_outlives_ten_minutes() {
    let mut world = World::steady(0..10);
    world.all(0..5, Here::Overdue);
    assert!(world.held().is_empty(), "half of ten is no mass");
    world.stands(5, Here::Overdue);
    assert_eq!(world.held(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        world.take_alerts(),
        [Alert::HoldBegan {
            pool: pool_of(0),
            missing: 6,
            of: 10
        }]
    );
    // Enough others are heard: new sessions go there.
    assert_eq!(world.hold(0), Some(HoldAnswers::ReconnectOnly));
    // One more falls silent: it is of the same mass.
    world.stands(6, Here::Overdue);
    assert_eq!(world.held(), [0, 1, 2, 3, 4, 5, 6]);
    world.stands(7, Here::Overdue);
    world.pass(1);
    assert_eq!(
        world.hold(0),
        Some(HoldAnswers::AsBefore),
        "two of ten are too few"
    );
    // One comes back.
    world.stands(0, Here::Confirmed);
    world.pass(1);
    assert_eq!(world.hold(0), None);
    assert_eq!(world.hold(1), Some(HoldAnswers::ReconnectOnly));
    world.pass(597);
    assert_eq!(world.hold(1), Some(HoldAnswers::ReconnectOnly));
    world.pass(2);
    assert!(world.held().is_empty());
    assert_eq!(
        world.take_alerts(),
        [Alert::HoldEnded {
            pool: pool_of(0),
            why: HoldEnd::TimeOver,
            let_out: 7
        }]
    );
    // Who was let out begins no other hold, and the hour's ten minutes are spent.
    world.all(1..8, LOST);
    world.all(1..8, Here::Confirmed);
    assert!(
        world.imposed[&1].held_down.is_none(),
        "a hold is no loss of its own"
    );
    world.pass(60);
    world.all(0..8, Here::Overdue);
    assert!(world.held().is_empty());
    assert_eq!(
        world.take_alerts(),
        [Alert::HoldSpent {
            pool: pool_of(0),
            missing: 6,
            of: 10
        }]
    );
}

#[test]
fn fifteen_of_a_hundred_are_a_mass_of_the_fleet_and_two_hosts_never() {
    let mut world = World::steady(0..120);
    world.all(100..117, Here::Overdue);
    assert_eq!(world.held().len(), 17, "85 of a pool of 20");
    let mut world = World::steady(0..120);
    world.all(0..17, Here::Overdue);
    assert!(world.held().is_empty());
    world.stands(118, Here::Overdue);
    assert_eq!(world.held().len(), 18, "eighteen of 120, in whatever pool");
    assert_eq!(world.fleet.holds(world.now).len(), 2);
    let mut small = World::steady(0..2);
    small.all(0..2, Here::Overdue);
    small.pass(40);
    assert!(small.held().is_empty() && small.alerts.is_empty());
}

#[test]
fn hosts_that_fail_one_after_another_are_no_mass() {
    let mut world = World::steady(0..10);
    for number in 0..9 {
        world.stands(number, Here::Overdue);
        world.pass(15);
        world.stands(number, LOST);
        world.pass(40);
    }
    assert!(world.held().is_empty() && world.alerts.is_empty());
    // The expected number follows the live set: of the two that are left none is a mass.
    assert_eq!(world.fleet.present(), 1);
}

#[test]
fn a_few_old_hands_are_no_mass_beside_a_fleet_that_has_just_come() {
    let mut world = World::steady(0..5);
    world.all(10..100, Here::Confirmed);
    world.all(0..3, Here::Overdue);
    assert!(world.held().is_empty() && world.alerts.is_empty());
}

#[test]
fn a_host_that_flaps_between_two_rounds_is_calibrated_in_the_next() {
    let mut world = World::calibrated(0..3);
    world.pass(300);
    world.stands(1, Here::Overdue);
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Refused);
    world.stands(1, Here::Confirmed);
    world.dials.clear();
    world.pass(300);
    assert!(world.dials.iter().any(|dial| dial.id == id(1)));
}

#[test]
fn newcomers_and_goodbyes_do_not_count() {
    let mut world = World::steady(0..3);
    // Ten more have just come and go silent at once: they were not there a lease ago.
    world.all(10..20, Here::Confirmed);
    world.all(10..20, Here::Overdue);
    assert!(world.held().is_empty());
    // Shut down in order: nobody is missing.
    let mut world = World::steady(0..10);
    world.all(0..9, Here::Gone(Gone::Otherwise));
    world.pass(100);
    assert!(world.held().is_empty() && world.alerts.is_empty());
}

#[test]
fn a_stream_that_breaks_for_all_and_comes_back_costs_its_seconds_only() {
    let mut world = World::steady(0..10);
    for _ in 0..20 {
        world.all(0..10, Here::Overdue);
        assert_eq!(world.held().len(), 10);
        world.pass(5);
        world.all(0..10, Here::Confirmed);
        assert!(world.held().is_empty());
        world.pass(5);
    }
    let ends = world.take_alerts();
    assert_eq!(ends.len(), 40);
    // Twenty times six seconds were spent, of six hundred.
    world.all(0..10, Here::Overdue);
    let until = world.fleet.holds(world.now)[0].until;
    let left = until.duration_since(world.now.wall).as_secs();
    assert!((470..=500).contains(&left), "{left}");
}

#[test]
fn a_dead_host_is_convicted_by_two_refusals_at_a_target_that_answered_before() {
    let mut world = World::calibrated(0..10);
    world.stands(3, Here::Overdue);
    let first = world.dials.pop().unwrap();
    assert_eq!(
        (first.purpose, first.target.to_string()),
        (Purpose::Arbitrate, "10.0.0.3:22".to_owned())
    );
    world.dialled(first, DialOutcome::Refused);
    assert!(
        world.convicted.is_empty() && world.dials.is_empty(),
        "once is chance"
    );
    world.now.mono = world.now.mono + Duration::from_millis(500);
    world.drain();
    let second = world.dials.pop().unwrap();
    world.dialled(second, DialOutcome::Refused);
    assert_eq!(world.convicted, [3]);
    // Unreachable needs no second look; an answer and silence convict nobody.
    world.stands(4, Here::Overdue);
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Unreachable);
    assert_eq!(world.convicted, [3, 4]);
    for (number, outcome) in [(5, DialOutcome::Answered), (6, DialOutcome::Silent)] {
        world.stands(number, Here::Overdue);
        let dial = world.dials.pop().unwrap();
        world.dialled(dial, outcome);
        world.pass(3);
        world.stands(number, Here::Confirmed);
    }
    assert_eq!(world.convicted, [3, 4]);
}

#[test]
fn the_last_host_of_a_pool_keeps_its_lease_whatever_dials_meet() {
    let mut world = World::calibrated(0..2);
    world.stands(0, Here::Overdue);
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Unreachable);
    assert_eq!(world.convicted, [0], "another one serves");
    world.stands(1, Here::Overdue);
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Unreachable);
    assert_eq!(world.convicted, [0]);
}

#[test]
fn a_host_that_spoke_meanwhile_is_not_convicted_by_an_older_dial() {
    let mut world = World::calibrated(0..10);
    world.stands(3, Here::Overdue);
    let dial = world.dials.pop().unwrap();
    world.stands(3, Here::Confirmed);
    world.stands(3, Here::Overdue);
    world.dialled(dial, DialOutcome::Unreachable);
    assert!(world.convicted.is_empty());
    // And is asked anew.
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Unreachable);
    assert_eq!(world.convicted, [3]);
}

#[test]
fn what_never_answered_what_two_share_and_what_stopped_answering_convicts_nobody() {
    // A firewall that rejects the broker: the target never answered.
    let mut world = World::new();
    for number in 0..10 {
        let target = format!("10.0.0.{number}:22").parse().unwrap();
        world.targets.insert(number, target);
        world.stands(number, Here::Confirmed);
    }
    world.dials_meet(|_| DialOutcome::Refused);
    world.pass(60);
    world.dials_meet(|_| DialOutcome::Refused);
    world.stands(1, Here::Overdue);
    assert!(world.dials.is_empty());
    // Two hosts behind one address: what answers may be the other.
    let mut world = World::calibrated(0..10);
    world.targets.insert(2, "10.0.0.1:22".parse().unwrap());
    world.tell(2);
    world.stands(1, Here::Overdue);
    assert!(world.dials.is_empty());
    // A firewall that came later: the next calibration takes the evidence away.
    let mut world = World::calibrated(0..10);
    world.pass(600);
    world.dials_meet(|_| DialOutcome::Refused);
    world.stands(1, Here::Overdue);
    assert!(world.dials.is_empty());
    // A restart that was announced is no reason to dial.
    let mut world = World::calibrated(0..10);
    world.stands(1, Here::Restarting);
    assert!(world.dials.is_empty());
}

#[test]
fn a_healthy_host_is_dialled_once_in_ten_minutes_at_most() {
    let mut world = World::calibrated(0..1);
    for second in 0..3600 {
        world.pass(1);
        if second % 7 == 0 {
            // Whatever else changes.
            world.tell(0);
        }
        for dial in std::mem::take(&mut world.dials) {
            world.dialled(dial, DialOutcome::Answered);
            world.alerts.push(Alert::Barred { id: id(0) });
        }
    }
    assert!(
        (5..=6).contains(&world.alerts.len()),
        "{}",
        world.alerts.len()
    );
}

#[test]
fn a_host_that_names_another_listener_every_second_is_dialled_no_more_often() {
    let mut world = World::calibrated(0..1);
    let mut dialled = 0;
    for second in 0..1200u16 {
        let target = format!("10.0.0.0:{}", 5900 + second % 50).parse().unwrap();
        world.targets.insert(0, target);
        world.tell(0);
        world.pass(1);
        for dial in std::mem::take(&mut world.dials) {
            world.dialled(dial, DialOutcome::Answered);
            dialled += 1;
        }
    }
    assert!((1..=2).contains(&dialled), "{dialled}");
}

#[test]
fn in_a_mass_refusals_count_as_silence_until_somebody_answers() {
    let mut world = World::calibrated(0..10);
    world.all(0..8, Here::Overdue);
    // Everybody refuses: the broker's own way is closed.
    world.dials_meet(|_| DialOutcome::Refused);
    assert!(world.convicted.is_empty());
    assert_eq!(world.held().len(), 8);
    assert_eq!(
        world.hold(0),
        Some(HoldAnswers::AsBefore),
        "two of ten are left"
    );
    // One answers: those that refuse are gone indeed, the one is as before, the rest are silent.
    world.pass(31);
    world.dials_meet(|number| match number {
        0 => DialOutcome::Answered,
        1..5 => DialOutcome::Refused,
        _ => DialOutcome::Silent,
    });
    assert_eq!(world.convicted, [1, 2, 3, 4]);
    assert_eq!(world.held(), [0, 5, 6, 7]);
    assert_eq!(world.hold(0), Some(HoldAnswers::AsBefore));
}

#[test]
fn an_answer_keeps_a_held_host_as_it_was_while_others_serve() {
    let mut world = World::calibrated(0..10);
    world.all(0..6, Here::Overdue);
    world.dials_meet(|number| {
        if number == 2 {
            DialOutcome::Answered
        } else {
            DialOutcome::Silent
        }
    });
    assert_eq!(world.hold(2), Some(HoldAnswers::AsBefore));
    assert_eq!(world.hold(3), Some(HoldAnswers::ReconnectOnly));
    // A front end's word counts for a minute.
    let gateway: Arc<str> = "gw1".into();
    let counted = world
        .fleet
        .handle_outcome(id(3), &gateway, Met::Ok, world.now);
    world.drain();
    assert_eq!(counted, Counted::Yes);
    assert_eq!(world.hold(3), Some(HoldAnswers::AsBefore));
    world.pass(61);
    assert_eq!(world.hold(3), Some(HoldAnswers::ReconnectOnly));
}

#[test]
fn an_operator_ends_a_hold() {
    let mut world = World::steady(0..10);
    world.all(0..9, Here::Overdue);
    let record = world.fleet.take_record(world.now).unwrap();
    assert_eq!(record.pools.len(), 1);
    assert!(
        world.fleet.take_record(world.now).is_none(),
        "none in steady state"
    );
    assert_eq!(world.fleet.end_holds(Some(&pool_of(200)), world.now), 0);
    assert_eq!(world.fleet.end_holds(None, world.now), 1);
    world.drain();
    assert!(world.held().is_empty());
    world.pass(60);
    assert!(world.held().is_empty(), "and it does not begin again");
}

#[test]
fn who_is_not_back_at_the_windows_end_is_one_mass_that_began_at_the_start() {
    let mut world = World::new();
    let opened = world.now.mono;
    world.all(0..10, Here::Unverified);
    for number in 0..2 {
        world.stands(number, Here::Confirmed);
    }
    world.pass(94);
    world.fleet.handle_window_end(opened, world.now);
    world.drain();
    assert_eq!(world.held(), [2, 3, 4, 5, 6, 7, 8, 9]);
    let until = world.imposed[&2].hold.as_ref().unwrap().until;
    assert_eq!(until, opened + HOLD_MAX);
    // Two of ten missing are no mass.
    let mut world = World::new();
    world.all(0..10, Here::Unverified);
    world.all(0..8, Here::Confirmed);
    world.pass(94);
    world.fleet.handle_window_end(opened, world.now);
    world.drain();
    assert!(world.held().is_empty());
}

#[test]
fn a_host_that_comes_and_goes_rests_and_never_the_last_one() {
    let mut world = World::steady(0..10);
    let flap = |world: &mut World, number| {
        world.stands(number, Here::Overdue);
        world.pass(15);
        world.stands(number, LOST);
        world.pass(60);
        world.stands(number, Here::Confirmed);
        world.pass(5);
    };
    for _ in 0..2 {
        flap(&mut world, 0);
    }
    assert!(world.imposed.is_empty());
    flap(&mut world, 0);
    let held = world.imposed[&0].held_down.unwrap();
    assert_eq!(
        (held.losses, held.until.since(world.now.mono).as_secs()),
        (3, 25)
    );
    assert!(!world.connectable[&0]);
    // A tenth of ten is one: the next that flaps goes on.
    for _ in 0..3 {
        world.stands(1, LOST);
        world.stands(1, Here::Confirmed);
    }
    assert!(world.connectable[&1]);
    // All others go: the one that rests is needed.
    world.all(1..10, Here::Gone(Gone::Otherwise));
    assert!(world.connectable[&0]);
    assert!(world.imposed[&0].held_down.is_none());
    // The only host of a pool never rests.
    let mut world = World::steady(0..1);
    for _ in 0..5 {
        flap(&mut world, 0);
    }
    assert!(world.connectable[&0]);
}

fn fails(world: &mut World, host: u8, by: &str, met: Met) -> Counted {
    let by: Arc<str> = by.into();
    let counted = world.fleet.handle_outcome(id(host), &by, met, world.now);
    world.drain();
    counted
}

#[test]
fn three_failures_of_front_ends_make_the_broker_look_and_only_its_look_convicts() {
    let mut world = World::calibrated(0..10);
    // Enough hosts that work, so that nobody is discounted.
    for host in 5..10 {
        for gateway in ["gw1", "gw2"] {
            assert_eq!(fails(&mut world, host, gateway, Met::Ok), Counted::Yes);
        }
    }
    assert_eq!(
        fails(&mut world, 0, "gw1", Met::ProtocolError),
        Counted::NotThisKind
    );
    assert_eq!(fails(&mut world, 0, "gw1", Met::Refused), Counted::Yes);
    assert_eq!(fails(&mut world, 0, "gw1", Met::Refused), Counted::TooSoon);
    for _ in 0..2 {
        world.pass(11);
        assert_eq!(fails(&mut world, 0, "gw1", Met::TimedOut), Counted::Yes);
    }
    assert!(
        world.imposed.is_empty(),
        "two front ends must agree where the pool has two"
    );
    assert_eq!(fails(&mut world, 0, "gw2", Met::TimedOut), Counted::Yes);
    let view = world.imposed[&0].outside.clone().unwrap();
    assert!(!view.refuses_new, "a reason, no more");
    assert_eq!(view.evidence.len(), 4);
    // The broker's own dial answers: it stays a reason.
    let dial = world.dials.pop().unwrap();
    assert_eq!(dial.purpose, Purpose::Arbitrate);
    world.dialled(dial, DialOutcome::Answered);
    assert!(world.connectable[&0]);
    // It fails as well: no new sessions.
    world.pass(11);
    fails(&mut world, 0, "gw1", Met::Refused);
    let dial = world.dials.pop().unwrap();
    world.dialled(dial, DialOutcome::Unreachable);
    assert!(!world.connectable[&0]);
    // One success clears it all.
    fails(&mut world, 0, "gw2", Met::Ok);
    assert!(world.connectable[&0] && world.imposed[&0].outside.is_none());
}

#[test]
fn a_view_from_outside_is_forgotten_after_five_minutes() {
    let mut world = World::calibrated(0..10);
    for host in 5..10 {
        fails(&mut world, host, "gw1", Met::Ok);
    }
    for _ in 0..3 {
        world.pass(11);
        fails(&mut world, 0, "gw1", Met::Refused);
    }
    assert!(world.imposed[&0].outside.is_some());
    world.dials_meet(|_| DialOutcome::Unreachable);
    assert!(!world.connectable[&0]);
    world.pass(300);
    assert!(world.imposed[&0].outside.is_none());
    assert!(world.connectable[&0]);
}

#[test]
fn a_front_end_that_fails_everywhere_is_discounted() {
    let mut world = World::calibrated(0..10);
    let mut counted = Vec::new();
    for _ in 0..4 {
        for host in 0..5 {
            counted.push(fails(&mut world, host, "gw1", Met::Refused));
        }
        world.pass(11);
    }
    assert_eq!(counted[0], Counted::Yes);
    assert!(
        counted[1..].iter().all(|c| *c == Counted::Discounted),
        "{counted:?}"
    );
    assert!(world.imposed.is_empty());
    assert!(
        world
            .alerts
            .contains(&Alert::FrontEndDiscounted { name: "gw1".into() })
    );
}

#[test]
fn failures_take_a_tenth_of_a_pool_at_most_and_never_the_last() {
    let mut world = World::calibrated(0..10);
    for host in 3..10 {
        fails(&mut world, host, "gw1", Met::Ok);
    }
    for _ in 0..3 {
        world.pass(11);
        for host in 0..3 {
            fails(&mut world, host, "gw1", Met::Refused);
        }
    }
    world.dials_meet(|_| DialOutcome::Unreachable);
    let taken: Vec<u8> = (0..10).filter(|host| !world.connectable[host]).collect();
    assert_eq!(taken.len(), 1, "{taken:?}");
}

#[test]
fn an_older_standing_that_comes_late_changes_nothing() {
    let mut world = World::steady(0..3);
    let late = Standing {
        pool: pool_of(0),
        version: 1,
        here: LOST,
        connectable_new: false,
        target: None,
    };
    world.fleet.handle_standing(id(0), &late, world.now);
    assert_eq!(world.fleet.present(), 3);
}

#[test]
fn a_removed_host_leaves_nothing_behind() {
    let mut world = World::calibrated(0..10);
    world.all(0..8, Here::Overdue);
    for number in 0..10 {
        world.fleet.handle_removed(id(number), world.now);
    }
    world.pass(40);
    assert_eq!(world.fleet.present(), 0);
    assert!(world.fleet.holds(world.now).is_empty());
    assert_eq!(world.fleet.probes(world.now.mono).1, 0);
}

#[test]
fn a_listener_that_closes_a_moment_after_its_agent_is_found_closed() {
    let mut world = World::calibrated(0..5);
    world.stands(0, Here::Overdue);
    world.pass(1);
    for outcome in [
        DialOutcome::Answered,
        DialOutcome::Refused,
        DialOutcome::Refused,
    ] {
        let dial = world.dials.pop().expect("it is dialled again");
        assert!(world.dials.is_empty() && world.convicted.is_empty());
        world.dialled(dial, outcome);
        world.pass(3);
    }
    assert_eq!(world.convicted, [0]);
}
