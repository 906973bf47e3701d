//! The life of a host, told as stories.

use super::*;

#[test]
fn a_host_enrols_connects_reports_and_is_available() {
    let mut world = World::enrolled();
    assert_eq!(world.codes(), ["NEVER_SEEN"]);
    assert_eq!(
        world.assess().presence,
        Presence::Absent(AbsentWhy::NeverSeen)
    );
    let effects = world.open();
    assert_eq!(effects.transition.unwrap().trigger, "hello");
    assert_eq!(world.codes(), ["STARTING"]);
    let effects = world.report(&[("urls", Outcome::Unknown(UnknownCause::NotYetRun))]);
    let transition = effects.transition.unwrap();
    assert_eq!(
        (transition.from, transition.to),
        (Some(Status::Unavailable), Status::Available)
    );
    assert_eq!(transition.sequence, 3);
    assert!(effects.persist && effects.tell && effects.resync.is_none());
    assert!(world.assess().connectable_new);
}

#[test]
fn silent_host_is_not_connectable_after_its_lease() {
    let mut world = World::available();
    world.pass(secs(18));
    assert_eq!(world.assess().presence, Presence::Confirmed);
    world.pass(secs(1));
    assert_eq!(
        world.assess().presence,
        Presence::Suspect(SuspectWhy::Silent)
    );
    assert!(world.assess().connectable_new);
    world.pass(secs(15));
    // No event, no tick: the answer comes from the lease at the instant of the question.
    assert_eq!(world.status(), Status::Unavailable);
    assert!(!world.assess().connectable_new && !world.assess().connectable_reconnect);
    assert_eq!(world.codes(), ["LEASE_OVER"]);
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition.unwrap().to, Status::Unavailable);
    assert_eq!(effects.close, Some(world.live()));
    let _ = world.stream_ends();
    assert_eq!(world.codes(), ["LEASE_OVER"]);
}

#[test]
fn a_broken_stream_is_suspect_at_once_and_believed_until_the_lease_ends() {
    let mut world = World::available();
    let effects = world.stream_ends();
    assert!(effects.tell, "watchers see the doubt");
    assert_eq!(effects.transition, None, "doubt alone is no transition");
    assert!(!effects.persist, "and is not stored");
    assert_eq!(
        world.assess().presence,
        Presence::Suspect(SuspectWhy::StreamEnded)
    );
    world.pass(secs(33));
    assert!(world.assess().connectable_new);
    world.pass(secs(1));
    assert!(!world.assess().connectable_new);
    assert_eq!(
        world.assess().presence,
        Presence::Absent(AbsentWhy::LeaseOver)
    );
}

#[test]
fn a_stream_that_comes_back_within_the_lease_shows_no_change_of_status() {
    let mut world = World::available();
    let before = world.host.told().sequence;
    for _ in 0..5 {
        let _ = world.stream_ends();
        world.pass(secs(20));
        let _ = world.open();
        assert!(world.assess().connectable_new, "a hello takes nothing away");
        let _ = world.report(&[
            (
                "session_listener",
                Outcome::Unknown(UnknownCause::NotYetRun),
            ),
            ("domain", Outcome::Unknown(UnknownCause::NotYetRun)),
        ]);
        assert_eq!(world.status(), Status::Available);
        assert_eq!(world.assess().presence, Presence::Confirmed);
        world.pass(secs(1));
        let _ = world.report(&[]);
    }
    assert_eq!(world.host.told().sequence, before, "no transition");
}

#[test]
fn hellos_alone_extend_no_lease() {
    let mut world = World::available();
    for _ in 0..10 {
        let _ = world.stream_ends();
        world.pass(secs(5));
        let _ = world.open();
    }
    assert!(!world.assess().connectable_new);
    assert_eq!(
        world.assess().presence,
        Presence::Absent(AbsentWhy::LeaseOver)
    );
}

#[test]
fn after_a_loss_results_from_before_it_do_not_count() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(40));
    let effects = world.open();
    assert!(effects.recheck, "the agent must look anew");
    // The report carries a listener result whose run began before the lease ended.
    world.sequence += 1;
    let mut old = result("session_listener", Outcome::Pass);
    old.age = Some(secs(30));
    let report = Report {
        sequence: 1,
        state_hash: 1,
        results_valid: VALID,
        checks: vec![old.clone(), result("domain", Outcome::NotApplicable)],
        listeners: vec![],
        cloud: None,
        sessions: SessionCounts::default(),
        policy_revision: "default-1".into(),
        power: PowerAnnouncement::Running,
        upgrade: UpgradeAnnouncement::Silent,
    };
    let epoch = world.live();
    let _ = world.handle(Event::Report(epoch, report.clone()));
    assert_eq!(
        (world.status(), world.codes()),
        (Status::Unavailable, vec!["STARTING".into()])
    );
    old.age = Some(secs(1));
    let report = Report {
        sequence: 2,
        checks: vec![old, report.checks[1].clone()],
        ..report
    };
    let _ = world.handle(Event::Report(epoch, report));
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn what_an_agent_found_before_its_hello_counts() {
    let mut world = World::enrolled();
    world.pass(secs(60));
    let _ = world.open();
    world.sequence += 1;
    let epoch = world.live();
    let mut checks: Vec<CheckResult> = ALL_CHECKS
        .iter()
        .map(|check| result(check, Outcome::Pass))
        .collect();
    for check in &mut checks {
        check.age = Some(secs(20));
    }
    let report = Report {
        sequence: 1,
        state_hash: 1,
        results_valid: VALID,
        checks,
        listeners: vec![],
        cloud: None,
        sessions: SessionCounts::default(),
        policy_revision: "default-1".into(),
        power: PowerAnnouncement::Running,
        upgrade: UpgradeAnnouncement::Silent,
    };
    let _ = world.handle(Event::Report(epoch, report));
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn an_unsettled_host_is_asked_again_because_a_like_result_changes_no_hash() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(40));
    let _ = world.open();
    let not_run = Outcome::Unknown(UnknownCause::NotYetRun);
    let _ = world.report(&[("session_listener", not_run)]);
    assert_eq!(world.status(), Status::Unavailable);
    assert_eq!(world.beat().resync, Some("not settled yet"));
    let _ = world.report(&[]);
    assert_eq!(world.beat().resync, None);
}

#[test]
fn a_new_boot_discards_what_the_old_one_found() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.boot = 2;
    world.pass(secs(8));
    let _ = world.open();
    assert_eq!(
        (world.status(), world.codes()),
        (Status::Unavailable, vec!["STARTING".into()])
    );
    let _ = world.report(&[("domain", Outcome::Unknown(UnknownCause::NotYetRun))]);
    assert_eq!(
        world.status(),
        Status::Unavailable,
        "not every fatal check has run"
    );
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_wedged_check_loop_shows_while_beats_arrive() {
    let mut world = World::available();
    let epoch = world.live();
    let beat = |sequence, left| Beat {
        sequence,
        state_hash: 1,
        results_valid: secs(left),
        sessions: SessionCounts::default(),
    };
    let _ = world.handle(Event::Beat(epoch, beat(10, 8)));
    assert_eq!(world.status(), Status::Available);
    world.pass(secs(8));
    assert_eq!(world.status(), Status::Unavailable);
    assert_eq!(world.codes()[0], "FATAL_CHECK_UNKNOWN");
    // Doubt about its presence does not make stale results fresh again.
    let _ = world.stream_ends();
    world.pass(secs(5));
    assert_eq!(world.status(), Status::Unavailable);
    // Results that were fresh when the stream broke stand until presence decides.
    let mut world = World::available();
    let epoch = world.live();
    let _ = world.handle(Event::Beat(epoch, beat(10, 8)));
    world.pass(secs(7));
    let _ = world.stream_ends();
    world.pass(secs(20));
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn an_announced_shutdown_survives_silence_and_a_hello() {
    for how in [Leave::Poweroff, Leave::Reboot, Leave::Suspend] {
        let mut world = World::available();
        let effects = world.leave(how);
        assert!(effects.persist, "acknowledged only when durable");
        assert_eq!(world.status(), Status::Shutdown);
        assert!(!world.assess().connectable_reconnect);
        let _ = world.stream_ends();
        let before = world.host.told().sequence;
        world.pass(secs(120));
        let effects = world.handle(Event::Deadline);
        assert_eq!(
            effects.transition, None,
            "silence after a goodbye is no news"
        );
        assert!(effects.tell, "but confidence is");
        assert_eq!(
            (world.status(), world.host.told().sequence),
            (Status::Shutdown, before)
        );
        world.boot += 1;
        let _ = world.open();
        assert_eq!(
            world.status(),
            Status::Shutdown,
            "a hello alone ends nothing"
        );
        assert!(world.codes().contains(&"STARTING".to_owned()));
        let _ = world.report(&[("domain", Outcome::Unknown(UnknownCause::NotYetRun))]);
        assert_eq!(
            world.status(),
            Status::Shutdown,
            "nor does a report that settles nothing"
        );
        let _ = world.report(&[]);
        assert_eq!(world.status(), Status::Available);
    }
}

#[test]
fn a_shutdown_that_is_cancelled_is_withdrawn_by_the_next_report() {
    let mut world = World::available();
    let _ = world.leave(Leave::Poweroff);
    world.pass(secs(3));
    let _ = world.beat();
    assert_eq!(world.status(), Status::Shutdown);
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_reboot_that_takes_too_long_is_unavailable_and_says_so() {
    let mut world = World::available();
    let _ = world.leave(Leave::Reboot);
    let _ = world.stream_ends();
    world.pass(secs(599));
    assert_eq!(world.status(), Status::Shutdown);
    world.pass(secs(1));
    assert_eq!(
        (world.status(), world.codes()[0].as_str()),
        (Status::Unavailable, "REBOOT_OVERDUE")
    );
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition.unwrap().to, Status::Unavailable);
}

#[test]
fn a_stopped_agent_is_unavailable_and_needs_fresh_checks_to_come_back() {
    let mut world = World::available();
    let _ = world.leave(Leave::AgentStop);
    assert_eq!(
        (world.status(), world.codes()),
        (Status::Unavailable, vec!["AGENT_STOPPED".into()])
    );
    let _ = world.stream_ends();
    world.pass(secs(60));
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition, None);
    let _ = world.open();
    assert_eq!(world.status(), Status::Unavailable);
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn an_agent_restart_is_only_a_doubt() {
    let mut world = World::available();
    let effects = world.leave(Leave::AgentRestart);
    assert_eq!(effects.transition, None);
    let _ = world.stream_ends();
    assert_eq!(
        world.assess().presence,
        Presence::Suspect(SuspectWhy::AgentRestarting)
    );
    assert!(world.assess().connectable_new);
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(world.assess().presence, Presence::Confirmed);
}

#[test]
fn an_upgrade_ends_with_the_new_version_and_a_good_report() {
    let mut world = World::available();
    let epoch = world.live();
    let pending = UpgradeAnnouncement::InProgress {
        attempt: attempt("a", "0.2.0", UpgradePhase::Download),
        within: None,
    };
    let effects = world.handle(Event::Upgrade(epoch, pending));
    assert!(effects.persist);
    assert_eq!(
        (world.status(), world.codes()),
        (Status::Available, vec!["UPGRADE_PENDING".into()])
    );
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    assert_eq!(world.status(), Status::Upgrading);
    assert!(
        !world.assess().connectable_reconnect,
        "none is the default, as the seed says"
    );
    let _ = world.stream_ends();
    world.pass(secs(60));
    let _ = world.handle(Event::Deadline);
    assert_eq!(
        world.status(),
        Status::Upgrading,
        "its silence is hidden for three minutes"
    );
    world.version = "0.2.0";
    world.upgrade = upgrading("a", "0.2.0");
    let _ = world.open();
    assert_eq!(world.status(), Status::Upgrading);
    let _ = world.report(&[("session_listener", Outcome::Fail)]);
    assert_eq!(
        world.status(),
        Status::Upgrading,
        "a fatal check fails that passed before"
    );
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
    // Restating the attempt that ended does not begin it again.
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_fatal_check_that_failed_before_the_upgrade_does_not_fail_it() {
    let mut world = World::available();
    let _ = world.report(&[("domain", Outcome::Fail)]);
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    let _ = world.stream_ends();
    world.version = "0.2.0";
    let _ = world.open();
    let _ = world.report(&[("domain", Outcome::Fail)]);
    assert_eq!(
        (world.status(), world.codes()[0].as_str()),
        (Status::Unavailable, "FATAL_CHECK_FAILED")
    );
    assert_eq!(world.host.facts().upgrade, Upgrade::None);
}

#[test]
fn an_upgrade_ends_only_with_a_settled_report() {
    let mut world = World::available();
    let _ = world.report(&[
        ("domain", Outcome::Fail),
        ("session_listener", Outcome::Fail),
    ]);
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    let _ = world.stream_ends();
    (world.version, world.boot) = ("0.2.0", 2);
    let _ = world.open();
    let _ = world.report(&[(
        "session_listener",
        Outcome::Unknown(UnknownCause::NotYetRun),
    )]);
    assert_eq!(
        world.status(),
        Status::Upgrading,
        "nothing passed before, and nothing is known yet"
    );
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_result_is_carried_only_until_it_goes_stale() {
    let mut world = World::available();
    let epoch = world.live();
    let beat = Beat {
        sequence: 10,
        state_hash: 1,
        results_valid: secs(5),
        sessions: SessionCounts::default(),
    };
    let _ = world.handle(Event::Beat(epoch, beat));
    let _ = world.stream_ends();
    world.pass(secs(6));
    let _ = world.open();
    let _ = world.report(&[(
        "session_listener",
        Outcome::Unknown(UnknownCause::NotYetRun),
    )]);
    assert_eq!(
        (world.status(), world.codes()),
        (Status::Unavailable, vec!["STARTING".into()])
    );
}

#[test]
fn an_upgrade_without_an_end_fails_by_its_deadline() {
    let mut world = World::available();
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    for _ in 0..29 {
        world.pass(secs(10));
        // Restating it moves no deadline.
        let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
        let _ = world.beat();
    }
    assert_eq!(world.status(), Status::Upgrading);
    world.pass(secs(10));
    assert_eq!(
        world.status(),
        Status::UpgradeFailed,
        "at the question, without any event"
    );
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition.unwrap().to, Status::UpgradeFailed);
    assert!(effects.persist);
    assert!(matches!(&world.host.facts().upgrade, Upgrade::Failed(failed) if failed.timed_out));
    assert_eq!(world.codes(), ["UPGRADE_TIMED_OUT"]);
    assert!(world.assess().connectable_new, "the old version works on");
    // The same attempt, restated, stays failed; a new one begins anew; a version ends it.
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    assert_eq!(world.status(), Status::UpgradeFailed);
    let _ = world.handle(Event::Upgrade(epoch, upgrading("b", "0.2.0")));
    assert_eq!(world.status(), Status::Upgrading);
}

#[test]
fn a_host_silent_during_its_switch_is_out_after_three_minutes() {
    let mut world = World::available();
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "0.2.0")));
    let _ = world.stream_ends();
    world.pass(secs(179));
    assert_eq!(world.status(), Status::Upgrading);
    world.pass(secs(1));
    assert_eq!(world.status(), Status::Unavailable);
    assert_eq!(world.codes(), ["UPGRADE_TIMED_OUT", "LEASE_OVER"]);
}

#[test]
fn a_failed_upgrade_survives_a_reboot_and_ends_with_the_version() {
    let mut world = World::available();
    let failed = UpgradeAnnouncement::Failed {
        attempt: attempt("a", "0.2.0", UpgradePhase::Verify),
        error: "bad signature".to_owned(),
    };
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, failed));
    assert_eq!(world.status(), Status::UpgradeFailed);
    assert!(world.assess().connectable_new);
    let _ = world.stream_ends();
    world.boot += 1;
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::UpgradeFailed);
    world.restart_broker(secs(5), false);
    assert_eq!(world.status(), Status::UpgradeFailed);
    world.version = "0.3.0";
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn the_hosts_administrator_may_declare_an_attempt_over() {
    let mut world = World::available();
    let epoch = world.live();
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "9.0.0")));
    let other = UpgradeAnnouncement::Cleared { id: "b".into() };
    let _ = world.handle(Event::Upgrade(epoch, other));
    assert_eq!(world.status(), Status::Upgrading);
    let _ = world.handle(Event::Upgrade(
        epoch,
        UpgradeAnnouncement::Cleared { id: "a".into() },
    ));
    assert_eq!(world.status(), Status::Available);
    let _ = world.handle(Event::Upgrade(epoch, upgrading("a", "9.0.0")));
    assert_eq!(
        world.status(),
        Status::Available,
        "an old word does not begin it again"
    );
}

#[test]
fn words_of_an_older_session_change_nothing() {
    let mut world = World::available();
    let old = world.live();
    let _ = world.open();
    let _ = world.report(&[]);
    let before = world.host.clone();
    let beat = Beat {
        sequence: 99,
        state_hash: 5,
        results_valid: Duration::ZERO,
        sessions: SessionCounts::default(),
    };
    for event in [
        Event::Beat(old, beat),
        Event::Leaving(old, leaving(Leave::Poweroff)),
        Event::Upgrade(old, upgrading("a", "2")),
        Event::StreamEnded(old),
    ] {
        assert!(world.handle(event).stale || world.host == before);
        assert_eq!(world.host, before);
    }
    let hello = Event::Opened {
        epoch: old,
        hello: Hello {
            agent_version: "0".into(),
            boot_id: "x".into(),
            instance_id: "x".into(),
            resume_token: None,
            os: "x".into(),
            addresses: vec![],
            policy_revision: "".into(),
            power: leaving(Leave::Poweroff),
            upgrade: UpgradeAnnouncement::Silent,
        },
        terms: Terms {
            interval: INTERVAL,
            lease: LEASE,
        },
        peer_address: "".into(),
        is_local: false,
        token: ResumeToken::new([0; 16]),
    };
    assert!(world.handle(hello).stale);
    assert_eq!(world.host, before);
}

#[test]
fn repeated_and_reordered_words_are_harmless() {
    let mut world = World::available();
    let epoch = world.live();
    let beat = |sequence| Beat {
        sequence,
        state_hash: 1,
        results_valid: VALID,
        sessions: SessionCounts::default(),
    };
    let _ = world.handle(Event::Beat(epoch, beat(50)));
    world.pass(secs(30));
    let before = world.host.clone();
    let _ = world.handle(Event::Beat(epoch, beat(50)));
    let _ = world.handle(Event::Beat(epoch, beat(49)));
    assert_eq!(
        world.host.facts().link,
        before.facts().link,
        "no lease from a repetition"
    );
}

#[test]
fn a_beat_whose_hash_differs_asks_for_a_report() {
    let mut world = World::available();
    let epoch = world.live();
    let beat = Beat {
        sequence: 7,
        state_hash: 2,
        results_valid: VALID,
        sessions: SessionCounts::default(),
    };
    let effects = world.handle(Event::Beat(epoch, beat));
    assert_eq!(effects.resync, Some("state differs"));
    assert_eq!(effects.transition, None);
    assert!(!effects.persist);
}

#[test]
fn a_drain_ends_at_its_time_and_each_owner_lifts_its_own() {
    let mut world = World::available();
    let until = world.now.wall.checked_add(secs(20)).unwrap();
    let effects = world.handle(Event::Drain(drain("ann", Some(until))));
    assert!(effects.persist_admin);
    let _ = world.handle(Event::Drain(drain("bob", None)));
    let _ = world.handle(Event::Undrain(Undrain::Owner("bob".into())));
    assert!(!world.assess().connectable_new, "ann's drain stands");
    world.pass(secs(18));
    let effects = world.beat();
    assert_eq!(
        effects.next_deadline, None,
        "a plain beat judges nothing; the host is armed for the drain's end already"
    );
    let due = world.host.due_later(&world.context());
    assert_eq!(due, Some(world.now.mono + secs(2)));
    world.pass(secs(2));
    assert!(world.assess().connectable_new, "at the question");
    let effects = world.handle(Event::Deadline);
    assert!(effects.persist_admin && world.host.facts().admin.drains.is_empty());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_restarted_broker_answers_as_it_did_until_the_host_speaks() {
    type Set = fn(&mut World);
    let states: &[(Set, Status)] = &[
        (|_| {}, Status::Available),
        (
            |w| {
                let _ = w.report(&[("urls", Outcome::Fail)]);
            },
            Status::NeedsAssistance,
        ),
        (
            |w| {
                let _ = w.report(&[("domain", Outcome::Fail)]);
            },
            Status::Unavailable,
        ),
        (
            |w| {
                let _ = w.leave(Leave::Poweroff);
            },
            Status::Shutdown,
        ),
        (
            |w| {
                let _ = w.leave(Leave::AgentStop);
            },
            Status::Unavailable,
        ),
        (
            |w| {
                let e = w.live();
                let _ = w.handle(Event::Upgrade(e, upgrading("a", "2")));
            },
            Status::Upgrading,
        ),
        (
            |w| {
                let _ = w.handle(Event::Drain(drain("ann", None)));
            },
            Status::Available,
        ),
        (
            |w| {
                w.pass(secs(50));
                let _ = w.handle(Event::Deadline);
                let _ = w.stream_ends();
            },
            Status::Unavailable,
        ),
    ];
    for (set, status) in states {
        let mut world = World::available();
        set(&mut world);
        let before = world.assess();
        let codes = world.codes();
        world.restart_broker(secs(7), false);
        let after = world.assess();
        assert_eq!(after.status, *status);
        assert_eq!(
            (
                after.status,
                after.connectable_new,
                after.connectable_reconnect,
                world.codes()
            ),
            (
                before.status,
                before.connectable_new,
                before.connectable_reconnect,
                codes
            )
        );
        let told = world.host.told().sequence;
        let effects = world.handle(Event::Deadline);
        assert_eq!(
            effects.transition, None,
            "{status:?}: a restart is no transition"
        );
        assert_eq!(world.host.told().sequence, told);
        if before.connectable_new {
            assert_eq!(after.presence, Presence::Unverified);
            // The agent comes back with nothing run since, as after its own restart.
            let _ = world.open();
            let not_run = Outcome::Unknown(UnknownCause::NotYetRun);
            let _ = world.report(&[("session_listener", not_run), ("urls", not_run)]);
            assert_eq!(world.status(), *status);
            assert_eq!(world.assess().presence, Presence::Confirmed);
        }
    }
}

#[test]
fn runs_from_before_the_brokers_restart_count_after_it() {
    let mut world = World::available();
    world.pass(secs(30));
    let _ = world.beat();
    world.restart_broker(secs(2), false);
    let _ = world.open();
    let epoch = world.live();
    let checks = ALL_CHECKS.map(|check| CheckResult {
        age: Some(secs(25)),
        ..result(check, Outcome::Pass)
    });
    let report = Report {
        sequence: 1,
        state_hash: 1,
        results_valid: VALID,
        checks: checks.to_vec(),
        listeners: vec![],
        cloud: None,
        sessions: SessionCounts::default(),
        policy_revision: "default-1".into(),
        power: PowerAnnouncement::Running,
        upgrade: UpgradeAnnouncement::Silent,
    };
    let _ = world.handle(Event::Report(epoch, report));
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_host_not_back_by_the_end_of_the_window_is_out() {
    let mut world = World::available();
    world.restart_broker(secs(1), false);
    world.pass(secs(94));
    assert!(world.assess().connectable_new);
    world.pass(secs(1));
    assert!(!world.assess().connectable_new);
    assert_eq!(world.codes(), ["NOT_BACK_AFTER_RESTART"]);
    let _ = world.handle(Event::Deadline);
    assert_eq!(world.status(), Status::Unavailable);
}

#[test]
fn a_suspect_host_keeps_what_was_left_of_its_lease_over_a_clean_stop() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(24));
    world.restart_broker(secs(1), true);
    world.pass(secs(9));
    assert!(world.assess().connectable_new);
    world.pass(secs(1));
    assert!(
        !world.assess().connectable_new,
        "35 s in all, not a whole window"
    );
}

#[test]
fn safe_to_power_off_has_three_values() {
    let asked = || Asked {
        intent: Intent::New,
        observed_by: "b",
    };
    let cases = [
        (Some(0), Some(0), SafeToPowerOff::Yes),
        (Some(0), None, SafeToPowerOff::Unknown),
        (None, Some(0), SafeToPowerOff::Unknown),
        (Some(0), Some(1), SafeToPowerOff::No),
        (Some(2), Some(0), SafeToPowerOff::No),
    ];
    for (active, disconnected, says) in cases {
        let mut world = World::available();
        with_facts(&mut world, |facts| {
            facts.sessions = SessionCounts {
                active,
                disconnected,
                pending: None,
            };
        });
        let verdict = verdict(&world.host.snapshot(), &world.context(), asked());
        assert_eq!(verdict.safe_to_power_off, says);
        // Whoever is doubted is not powered off, and sessions that were there may be there still.
        let _ = world.stream_ends();
        let verdict = super::verdict(&world.host.snapshot(), &world.context(), asked());
        assert_ne!(verdict.safe_to_power_off, SafeToPowerOff::Yes);
    }
}

#[test]
fn a_verdict_is_valid_only_until_time_alone_may_change_it() {
    let mut world = World::available();
    let asked = || Asked {
        intent: Intent::New,
        observed_by: "b",
    };
    let fresh = verdict(&world.host.snapshot(), &world.context(), asked());
    assert_eq!((fresh.valid_for, fresh.retry_after), (secs(10), None));
    assert_eq!(fresh.last_beat_age, Some(secs(1)));
    let _ = world.stream_ends();
    world.pass(secs(30));
    let doubted = verdict(&world.host.snapshot(), &world.context(), asked());
    assert!(doubted.connectable);
    assert_eq!(doubted.valid_for, secs(4), "the rest of the lease");
    world.pass(secs(4));
    let over = verdict(&world.host.snapshot(), &world.context(), asked());
    assert!(!over.connectable);
    assert_eq!(over.reasons[0].code, ReasonCode::LEASE_OVER);
    assert!(over.reasons[0].remedy.is_some());
}

#[test]
fn a_stalled_broker_trusts_what_it_knew_and_not_its_clock() {
    let mut world = World::available();
    world.window_ends = Some(world.now.mono + secs(95));
    let effects = world.handle(Event::BrokerStalled {
        unheard_until: None,
    });
    assert_eq!(effects.transition, None);
    world.pass(secs(60));
    assert_eq!(world.assess().presence, Presence::Unverified);
    assert!(world.assess().connectable_new);
    let _ = world.report(&[]);
    assert_eq!(world.assess().presence, Presence::Confirmed);
}

#[test]
fn a_newly_required_check_counts_after_its_first_result_or_its_grace() {
    let stricter = |world: &World| {
        let mut policy = PoolPolicy::default();
        policy.severities.insert(name("gpu"), Severity::Fatal);
        policy.taking_over(&world.policy, world.now.wall)
    };
    let mut world = World::available();
    let before = world.host.told().sequence;
    world.policy = stricter(&world);
    let effects = world.handle(Event::PolicyChanged);
    assert_eq!(effects.transition, None, "nobody is thrown out by a change");
    for _ in 0..6 {
        world.pass(secs(10));
        let _ = world.beat();
    }
    assert_eq!(world.host.told().sequence, before);
    world.pass(secs(10));
    let effects = world.beat();
    assert_eq!(
        effects.transition.unwrap().to,
        Status::Unavailable,
        "2 x 30 s + 10 s are over"
    );
    assert_eq!(effects.resync, Some("not settled yet"));

    let mut world = World::available();
    world.policy = stricter(&world);
    let _ = world.report(&[("gpu", Outcome::Fail)]);
    assert_eq!(
        world.codes()[0],
        "FATAL_CHECK_FAILED",
        "its first result counts at once"
    );
    let _ = world.report(&[("gpu", Outcome::Unknown(UnknownCause::Unsupported))]);
    assert_eq!(
        world.status(),
        Status::NeedsAssistance,
        "unsupported is never fatal"
    );
    // A change that follows does not begin the grace anew.
    let again = stricter(&world);
    assert_eq!(again.newly_fatal, world.policy.newly_fatal);
}

#[test]
fn a_stall_gives_a_doubted_host_no_more_than_it_had() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(20));
    world.window_ends = Some(world.now.mono + secs(95));
    let _ = world.handle(Event::BrokerStalled {
        unheard_until: None,
    });
    world.pass(secs(13));
    assert!(world.assess().connectable_new);
    world.pass(secs(1));
    assert!(!world.assess().connectable_new, "35 s since its last beat");
}

#[test]
fn a_second_stall_prolongs_nothing_for_who_was_not_heard_since_the_first() {
    let mut world = World::available();
    let first = world.now.mono + secs(95);
    world.window_ends = Some(first);
    let _ = world.handle(Event::BrokerStalled {
        unheard_until: None,
    });
    world.pass(secs(90));
    world.window_ends = Some(world.now.mono + secs(95));
    let _ = world.handle(Event::BrokerStalled {
        unheard_until: Some(first),
    });
    world.pass(secs(5));
    assert!(!world.assess().connectable_new);
}

#[test]
fn a_wanted_version_that_is_none_is_never_seen() {
    for to in ["unknown", "security-2026-11", "", "0.1.0", "0.0.9"] {
        let mut world = World::available();
        let epoch = world.live();
        let _ = world.handle(Event::Upgrade(epoch, upgrading("a", to)));
        assert_eq!(world.status(), Status::Upgrading, "{to:?}");
        let failed = UpgradeAnnouncement::Failed {
            attempt: attempt("a", to, UpgradePhase::Switch),
            error: "dpkg broke".to_owned(),
        };
        let _ = world.handle(Event::Upgrade(epoch, failed));
        assert_eq!(world.status(), Status::UpgradeFailed, "{to:?}");
        let _ = world.report(&[]);
        assert_eq!(world.status(), Status::UpgradeFailed, "{to:?}");
    }
}

#[test]
fn runs_from_before_a_loss_do_not_count_after_a_restart_either() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(40));
    let _ = world.open();
    let not_run = Outcome::Unknown(UnknownCause::NotYetRun);
    let _ = world.report(&[("session_listener", not_run)]);
    assert_eq!(world.status(), Status::Unavailable);
    world.pass(secs(1));
    world.restart_broker(secs(1), false);
    let _ = world.open();
    let epoch = world.live();
    let checks = ALL_CHECKS.map(|check| CheckResult {
        age: Some(secs(30)),
        ..result(check, Outcome::Pass)
    });
    let report = Report {
        sequence: 1,
        state_hash: 1,
        results_valid: VALID,
        checks: checks.to_vec(),
        listeners: vec![],
        cloud: None,
        sessions: SessionCounts::default(),
        policy_revision: "default-1".into(),
        power: PowerAnnouncement::Running,
        upgrade: UpgradeAnnouncement::Silent,
    };
    let _ = world.handle(Event::Report(epoch, report));
    assert_eq!(
        world.status(),
        Status::Unavailable,
        "they began before the lease ended"
    );
}

#[test]
fn a_listener_that_moves_is_told_and_kept() {
    let mut world = World::available();
    let report = |world: &mut World, port: Option<u16>, outcome| {
        world.sequence += 1;
        let listener = |port| Listener {
            protocol: "rdp".into(),
            addresses: vec![],
            port,
        };
        let report = Report {
            sequence: world.sequence,
            state_hash: 1,
            results_valid: VALID,
            checks: ALL_CHECKS.map(|check| result(check, outcome)).to_vec(),
            listeners: port.map(listener).into_iter().collect(),
            cloud: None,
            sessions: world.host.facts().sessions,
            policy_revision: "default-1".into(),
            power: PowerAnnouncement::Running,
            upgrade: UpgradeAnnouncement::Silent,
        };
        let epoch = world.live();
        world.handle(Event::Report(epoch, report))
    };
    let effects = report(&mut world, Some(3390), Outcome::Pass);
    assert!(effects.tell && effects.persist && effects.transition.is_none());
    let _ = world.stream_ends();
    let _ = world.open();
    let not_run = Outcome::Unknown(UnknownCause::NotYetRun);
    let _ = report(&mut world, None, not_run);
    assert_eq!(
        world.host.facts().listeners[0].port,
        3390,
        "nobody has looked yet"
    );
    let _ = report(&mut world, None, Outcome::Pass);
    assert!(world.host.facts().listeners.is_empty());
}
