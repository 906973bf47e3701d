//! The status function, row by row and pair by pair.

use super::*;

/// Facts that change independently of each other; two conditions of one axis exclude each other.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Axis {
    Admin,
    Power,
    Upgrade,
    Link,
    Settled,
    Fatal,
    Other,
}

struct Condition {
    row: usize,
    axis: Axis,
    name: &'static str,
    set: fn(&mut World),
}

const STATUS_OF_ROW: [Status; 8] = [
    Status::Unavailable,
    Status::Shutdown,
    Status::Upgrading,
    Status::Unavailable,
    Status::Unavailable,
    Status::UpgradeFailed,
    Status::NeedsAssistance,
    Status::Available,
];

fn set_power(world: &mut World, how: Leave, back_in: i64) {
    let (since, now) = (world.now.wall, world.now.mono);
    let back_by = if back_in < 0 {
        now.back(Duration::from_secs(back_in.unsigned_abs()))
    } else {
        now + Duration::from_secs(back_in.unsigned_abs())
    };
    with_facts(world, |facts| {
        facts.power = Power::Leaving {
            how,
            since,
            back_by,
        }
    });
}

fn set_upgrade(world: &mut World, phase: UpgradePhase, ends_in: i64) {
    let now = world.now;
    let ends = if ends_in <= 0 {
        now.mono.back(Duration::from_secs(ends_in.unsigned_abs()))
    } else {
        now.mono + Duration::from_secs(ends_in.unsigned_abs())
    };
    with_facts(world, |facts| {
        facts.last_word = Some(now.mono);
        facts.upgrade = Upgrade::InProgress(Arc::new(InProgress {
            attempt: attempt("a", "0.2.0", phase),
            since: now.wall,
            ends,
            switch_ends: phase.is_switching().then_some(ends),
            passed_before: Arc::new([]),
        }));
    });
}

fn lost(world: &mut World, why: AbsentWhy) {
    let at = world.now.wall;
    with_facts(world, |facts| facts.link = Link::Lost { why, at });
}

fn fatal(world: &mut World, check: &str, outcome: Outcome) {
    with_facts(world, |facts| set_outcome(facts, check, outcome));
}

macro_rules! conditions {
    ($($row:literal $axis:ident $name:literal: $set:expr;)*) => {
        vec![$(Condition { row: $row, axis: Axis::$axis, name: $name, set: $set },)*]
    };
}

fn conditions() -> Vec<Condition> {
    conditions! {
        0 Admin "banned": |w| with_facts(w, |f| f.admin = Arc::new(Admin {
            banned_since: Some(f.identity.enrolled_at), ..Admin::default() }));
        0 Admin "awaits approval": |w| with_facts(w, |f| f.admin = Arc::new(Admin {
            approval_awaited_since: Some(f.identity.enrolled_at), ..Admin::default() }));
        1 Power "powers off": |w| set_power(w, Leave::Poweroff, 600);
        1 Power "powered off long ago": |w| set_power(w, Leave::Poweroff, -99_999);
        1 Power "suspends": |w| set_power(w, Leave::Suspend, -99_999);
        1 Power "reboots": |w| set_power(w, Leave::Reboot, 1);
        2 Upgrade "switching": |w| set_upgrade(w, UpgradePhase::Switch, 1);
        2 Upgrade "in probation": |w| set_upgrade(w, UpgradePhase::Probation, 1);
        2 Upgrade "rolling back": |w| set_upgrade(w, UpgradePhase::Rollback, 1);
        3 Power "reboot overdue": |w| set_power(w, Leave::Reboot, 0);
        3 Power "agent stopped": |w| set_power(w, Leave::AgentStop, 600);
        3 Link "never seen": |w| with_facts(w, |f| f.link = Link::NeverSeen);
        3 Link "lease over": |w| with_facts(w, |f| {
            let Link::Heard(heard) = &mut f.link else { unreachable!() };
            heard.lease = secs(1); });
        3 Link "lost by its lease": |w| lost(w, AbsentWhy::LeaseOver);
        3 Link "lost by a probe": |w| lost(w, AbsentWhy::ProbeRefused);
        3 Link "lost by a restart": |w| lost(w, AbsentWhy::NotBackAfterRestart);
        3 Link "window over": |w| with_facts(w, |f| f.link = Link::Loaded { lease_ends: None });
        3 Link "suspect at the stop, lease over":
            |w| { let now = w.now.mono;
                  with_facts(w, |f| f.link = Link::Loaded { lease_ends: Some(now) }); };
        3 Settled "not settled since a loss":
            |w| { let now = w.now.mono; with_facts(w, |f| f.health.barrier = now); };
        4 Fatal "domain fails": |w| fatal(w, "domain", Outcome::Fail);
        4 Fatal "listener fails": |w| fatal(w, "session_listener", Outcome::Fail);
        4 Fatal "listener timed out":
            |w| fatal(w, "session_listener", Outcome::Unknown(UnknownCause::TimedOut));
        4 Fatal "listener cannot run":
            |w| fatal(w, "session_listener", Outcome::Unknown(UnknownCause::CannotRun));
        4 Fatal "results stale":
            |w| { let now = w.now.mono; with_facts(w, |f| f.health.valid_until = now); };
        5 Upgrade "upgrade failed": |w| { let at = w.now.wall; with_facts(w, |f| {
            f.upgrade = Upgrade::Failed(Arc::new(FailedUpgrade {
                attempt: attempt("a", "0.2.0", UpgradePhase::Verify),
                error: "bad signature".into(), since: at, timed_out: false })); }); };
        5 Upgrade "switch timed out": |w| set_upgrade(w, UpgradePhase::Switch, 0);
        5 Upgrade "download timed out": |w| set_upgrade(w, UpgradePhase::Download, 0);
        6 Other "urls fail": |w| fatal(w, "urls", Outcome::Fail);
        6 Other "urls timed out":
            |w| fatal(w, "urls", Outcome::Unknown(UnknownCause::TimedOut));
        6 Other "fatal check unsupported": |w| {
            w.policy.severities.insert(name("urls"), Severity::Fatal);
            fatal(w, "urls", Outcome::Unknown(UnknownCause::Unsupported)); };
        7 Other "nothing": |_| {};
        7 Other "urls warn": |w| fatal(w, "urls", Outcome::Warn);
        7 Fatal "domain warns": |w| fatal(w, "domain", Outcome::Warn);
        7 Fatal "domain does not apply": |w| fatal(w, "domain", Outcome::NotApplicable);
        7 Other "urls not yet run":
            |w| fatal(w, "urls", Outcome::Unknown(UnknownCause::NotYetRun));
        7 Other "reported only": |w| {
            w.policy.severities.insert(name("urls"), Severity::ReportOnly);
            fatal(w, "urls", Outcome::Fail); };
        7 Upgrade "upgrade pending": |w| set_upgrade(w, UpgradePhase::Download, 1);
    }
}

#[test]
fn every_row_gives_its_status() {
    for condition in conditions() {
        let mut world = World::available();
        (condition.set)(&mut world);
        assert_eq!(
            world.status(),
            STATUS_OF_ROW[condition.row],
            "{}",
            condition.name
        );
    }
}

#[test]
fn of_every_pair_the_earlier_row_wins() {
    let conditions = conditions();
    let mut pairs = 0;
    for first in &conditions {
        for second in &conditions {
            if first.row >= second.row || first.axis == second.axis {
                continue;
            }
            for swapped in [false, true] {
                let mut world = World::available();
                let order = if swapped {
                    [second, first]
                } else {
                    [first, second]
                };
                for condition in order {
                    (condition.set)(&mut world);
                }
                assert_eq!(
                    world.status(),
                    STATUS_OF_ROW[first.row],
                    "{} before {}",
                    first.name,
                    second.name
                );
            }
            pairs += 1;
        }
    }
    assert!(pairs > 300, "only {pairs} pairs");
}

#[test]
fn connectable_is_a_conjunction_and_not_the_label() {
    for accepts in [
        UpgradingAccepts::None,
        UpgradingAccepts::Reconnect,
        UpgradingAccepts::All,
    ] {
        for first in conditions() {
            for second in conditions() {
                if first.axis == second.axis {
                    continue;
                }
                let mut world = World::available();
                world.policy.upgrading_accepts = accepts;
                (first.set)(&mut world);
                (second.set)(&mut world);
                let rows = [first.row, second.row];
                let barred = rows.iter().any(|row| [0, 1, 3, 4].contains(row));
                let switching = rows.contains(&2);
                let reconnect = !(barred || switching && accepts == UpgradingAccepts::None);
                let new = !(barred || switching && accepts != UpgradingAccepts::All);
                let assessed = world.assess();
                assert_eq!(
                    (assessed.connectable_new, assessed.connectable_reconnect),
                    (new, reconnect),
                    "{} and {} with {accepts:?}",
                    first.name,
                    second.name
                );
            }
        }
    }
}

#[test]
fn a_new_session_also_needs_no_drain_and_room() {
    type Case = (fn(&mut World), bool, &'static [&'static str]);
    let cases: &[Case] = &[
        (|_| {}, true, &[]),
        (
            |w| {
                let _ = w.handle(Event::Drain(drain("ann", None)));
            },
            false,
            &["DRAINED"],
        ),
        (|w| w.policy.max_sessions = Some(2), true, &[]),
        (
            |w| w.policy.max_sessions = Some(1),
            false,
            &["SESSION_LIMIT"],
        ),
        (
            |w| {
                w.policy.max_sessions = Some(1);
                with_facts(w, |facts| facts.sessions.disconnected = None);
            },
            true,
            &["SESSION_COUNT_UNKNOWN"],
        ),
    ];
    for (set, new, codes) in cases {
        let mut world = World::available();
        set(&mut world);
        let assessed = world.assess();
        assert_eq!(assessed.connectable_new, *new, "{codes:?}");
        assert!(assessed.connectable_reconnect, "{codes:?}");
        assert_eq!(assessed.status, Status::Available, "{codes:?}");
        assert_eq!(world.codes(), *codes);
    }
}

#[test]
fn every_no_has_a_reason_and_reasons_come_worst_first() {
    for first in conditions() {
        for second in conditions() {
            if first.axis == second.axis {
                continue;
            }
            let mut world = World::available();
            (first.set)(&mut world);
            (second.set)(&mut world);
            let assessed = world.assess();
            let why = format!("{} and {}", first.name, second.name);
            assert!(
                assessed.connectable_new || !assessed.reasons.is_empty(),
                "{why}"
            );
            assert!(
                assessed
                    .reasons
                    .is_sorted_by_key(|reason| reason.code.rank()),
                "{why}"
            );
            if assessed.status == Status::Available {
                continue;
            }
            for reason in &assessed.reasons {
                assert!(!reason.message.is_empty(), "{why}");
            }
        }
    }
}
