//! What the simulation found: each story as short as it can be told.

use super::*;
use crate::host::{Hold, HoldAnswers, Imposed};

fn fresh_then_old(world: &mut World, age: Duration) -> Effects {
    world.sequence += 1;
    let checks = ALL_CHECKS.map(|check| CheckResult {
        age: Some(age),
        ..result(check, Outcome::Pass)
    });
    let report = Report {
        sequence: world.sequence,
        state_hash: 1,
        results_valid: VALID,
        checks: checks.into(),
        listeners: vec![],
        sessions: SessionCounts::default(),
        cloud: None,
        policy_revision: "default-1".into(),
        power: world.power,
        upgrade: world.upgrade.clone(),
    };
    let epoch = world.live();
    world.handle(Event::Report(epoch, report))
}

/// A beat of a host whose check loop hangs: nothing is left of its results.
fn wedge(world: &mut World) {
    world.sequence += 1;
    let wedged = Beat {
        sequence: world.sequence,
        state_hash: 1,
        results_valid: Duration::ZERO,
        sessions: SessionCounts::default(),
    };
    let epoch = world.live();
    let _ = world.handle(Event::Beat(epoch, wedged));
}

#[test]
fn results_that_had_gone_stale_are_not_fresh_again_for_a_restarted_broker() {
    let mut world = World::available();
    // The check loop is wedged: beats go on, and say that nothing is left of the results.
    wedge(&mut world);
    assert_eq!(world.status(), Status::Unavailable);
    world.restart_broker(secs(5), false);
    assert_eq!(world.status(), Status::Unavailable);
    assert!(!world.assess().connectable_reconnect);
}

#[test]
fn a_wall_clock_that_was_set_back_does_not_unsettle_hosts_at_a_restart() {
    let mut world = World::available();
    world.pass(secs(30));
    let _ = world.beat();
    world.now.wall = world.now.wall.checked_sub(secs(1200)).unwrap();
    world.restart_broker(secs(5), false);
    let _ = world.open();
    let _ = fresh_then_old(&mut world, secs(20));
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_wall_clock_that_was_set_forward_does_not_settle_a_lost_host_by_old_runs() {
    let mut world = World::available();
    world.pass(secs(40));
    let _ = world.handle(Event::Deadline);
    assert_eq!(world.status(), Status::Unavailable);
    world.now.wall = world.now.wall.checked_add(secs(3600)).unwrap();
    world.restart_broker(secs(1), false);
    let _ = world.open();
    let _ = fresh_then_old(&mut world, secs(20));
    assert_eq!(world.status(), Status::Unavailable);
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_host_that_suspends_before_its_report_and_wakes_is_asked_how_it_is() {
    let mut world = World::available();
    let _ = world.leave(Leave::Suspend);
    assert_eq!(world.status(), Status::Shutdown);
    // Awake again: its state is that of its last report, and nothing else tells of the goodbye.
    world.pass(secs(14));
    let effects = world.beat();
    assert!(effects.resync.is_some());
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_clean_stop_in_a_mass_loss_does_not_throw_out_who_is_held() {
    let mut world = World::available();
    let hold = Hold {
        since: world.now.wall,
        until: world.now.mono + secs(600),
        answers: HoldAnswers::AsBefore,
        evidence: "all fell silent".into(),
    };
    let imposed = Imposed {
        hold: Some(hold),
        ..Imposed::default()
    };
    let _ = world.handle(Event::Imposed(imposed.into()));
    world.pass(secs(60));
    let _ = world.handle(Event::Deadline);
    assert!(world.assess().connectable_reconnect);
    world.restart_broker(secs(5), true);
    assert!(
        world.assess().connectable_reconnect,
        "the window is for it too"
    );
    world.pass(LEASE + secs(60));
    world.window_ends = None;
    assert_eq!(world.status(), Status::Unavailable);
}

#[test]
fn an_agents_stop_that_only_a_hello_tells_unsettles_as_a_goodbye_does() {
    let mut world = World::available();
    world.power = leaving(Leave::AgentStop);
    let _ = world.open();
    assert_eq!(world.status(), Status::Unavailable);
    world.pass(secs(60));
    world.power = PowerAnnouncement::Running;
    world.restart_broker(secs(1), false);
    let _ = world.open();
    assert_eq!(
        world.status(),
        Status::Unavailable,
        "nobody has checked since"
    );
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn results_that_had_gone_stale_are_not_fresh_again_after_a_stall() {
    let mut world = World::available();
    wedge(&mut world);
    world.window_ends = Some(world.now.mono + secs(95));
    let _ = world.handle(Event::BrokerStalled {
        unheard_until: None,
    });
    assert_eq!(world.status(), Status::Unavailable);
}

#[test]
fn a_loss_that_changes_no_answer_is_stored_all_the_same() {
    let mut world = World::available();
    let _ = world.leave(Leave::Suspend);
    let _ = world.stream_ends();
    world.pass(LEASE);
    let effects = world.handle(Event::Deadline);
    assert_eq!(world.status(), Status::Shutdown);
    assert!(effects.persist);
    world.restart_broker(secs(1), false);
    let _ = world.open();
    let _ = fresh_then_old(&mut world, secs(20));
    assert_eq!(
        world.status(),
        Status::Shutdown,
        "they began before the loss"
    );
}

#[test]
fn a_beat_that_says_that_the_checks_go_on_again_is_judged() {
    let mut world = World::available();
    world.sequence += 1;
    let epoch = world.live();
    let ends = Beat {
        sequence: world.sequence,
        state_hash: 1,
        results_valid: secs(5),
        sessions: world.host.facts().sessions,
    };
    let _ = world.handle(Event::Beat(epoch, ends));
    world.pass(secs(6));
    let _ = world.handle(Event::Deadline);
    assert_eq!(world.host.told().status, Status::Unavailable);
    world.pass(secs(3));
    let effects = world.beat();
    assert_eq!(world.status(), Status::Available);
    assert!(effects.transition.is_some(), "watchers must be told");
}
