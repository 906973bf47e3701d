use proptest::prelude::*;

use super::*;
use crate::model::{CloudInstance, Finding, Listener};

const PACE: CheckPace = CheckPace {
    interval: Duration::from_secs(30),
    timeout: Duration::from_secs(10),
    rise: 1,
    fall: 2,
    lives: None,
};
const TTL: u64 = 100;

fn at(seconds: u64) -> Mono {
    Mono::from_origin(Duration::from_secs(seconds))
}

fn name(text: &str) -> CheckName {
    CheckName::new(text).unwrap()
}

fn spec(text: &str) -> CheckSpec {
    CheckSpec {
        name: name(text),
        kind: text.into(),
        pace: PACE,
        supported: true,
    }
}

fn schedule(names: &[&str]) -> Schedule {
    let mut schedule = Schedule::default();
    let left_out = schedule.set_checks(names.iter().map(|text| spec(text)).collect(), at(0));
    assert!(left_out.is_empty());
    schedule
}

fn start(schedule: &mut Schedule, second: u64) -> Vec<Start> {
    schedule.start_due(at(second), || Random(0))
}

fn finish(schedule: &mut Schedule, start: &Start, outcome: Outcome, second: u64) {
    let seen = Observation::new(outcome, outcome.to_string());
    assert!(schedule.handle_finished(&start.name, start.run, seen, at(second)));
}

/// Runs the only check at `second` to that outcome.
fn run(schedule: &mut Schedule, outcome: Outcome, second: u64) {
    let starts = start(schedule, second);
    assert_eq!(
        starts.len(),
        1,
        "due at {second}: {:?}",
        schedule.next_wake()
    );
    finish(schedule, &starts[0], outcome, second);
}

fn outcome(schedule: &Schedule, second: u64) -> Outcome {
    schedule.result_set().results(at(second))[0].outcome
}

#[test]
fn first_runs_are_due_at_once_and_a_check_never_overlaps_itself() {
    let mut schedule = schedule(&["a", "b"]);
    assert_eq!(schedule.next_wake(), Some(at(0)));
    let starts = start(&mut schedule, 0);
    assert_eq!(
        starts.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(start(&mut schedule, 500).is_empty(), "both still run");
    assert_eq!(schedule.next_wake(), None);
    finish(&mut schedule, &starts[0], Outcome::Pass, 500);
    assert_eq!(schedule.next_wake(), Some(at(500)), "overdue: at once");
}

#[test]
fn on_waking_all_run_at_once_and_what_was_under_way_says_nothing() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Pass, 0);
    let before = start(&mut schedule, 30);
    // Asleep for an hour: the result is long over its time, whatever the run that was under way says.
    assert_eq!(
        outcome(&schedule, 3630),
        Outcome::Unknown(UnknownCause::Stale)
    );
    assert_eq!(schedule.handle_wake(at(3630)), [before[0].run]);
    let late = Observation::new(Outcome::Fail, "a time limit that ran out in the sleep");
    assert!(!schedule.handle_finished(&before[0].name, before[0].run, late, at(3630)));
    assert_eq!(
        outcome(&schedule, 3630),
        Outcome::Unknown(UnknownCause::Stale)
    );
    run(&mut schedule, Outcome::Pass, 3630);
    assert_eq!(outcome(&schedule, 3630), Outcome::Pass);
    assert_eq!(schedule.next_wake(), Some(at(3660)), "and then at its pace");
    assert!(
        schedule.handle_wake(at(3640)).is_empty(),
        "an idle one has no run to drop"
    );
    assert_eq!(schedule.next_wake(), Some(at(3640)));
}

#[test]
fn a_short_sleep_leaves_fresh_results_as_they_are() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Pass, 0);
    let _ = schedule.handle_wake(at(60));
    assert_eq!(outcome(&schedule, 60), Outcome::Pass);
    assert_eq!(schedule.next_wake(), Some(at(60)));
}

#[test]
fn runs_follow_from_start_to_start() {
    let mut schedule = schedule(&["a"]);
    let starts = start(&mut schedule, 0);
    finish(&mut schedule, &starts[0], Outcome::Pass, 7);
    assert_eq!(schedule.next_wake(), Some(at(30)));
}

#[test]
fn a_suspected_failure_is_confirmed_after_five_seconds() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Pass, 0);
    run(&mut schedule, Outcome::Fail, 30);
    assert_eq!(outcome(&schedule, 30), Outcome::Pass);
    assert_eq!(schedule.result_set().results(at(30))[0].raw, Outcome::Fail);
    assert_eq!(schedule.next_wake(), Some(at(35)));
    run(&mut schedule, Outcome::Fail, 35);
    assert_eq!(outcome(&schedule, 35), Outcome::Fail);
    assert_eq!(schedule.next_wake(), Some(at(65)));
}

#[test]
fn the_message_explains_the_settled_outcome_not_the_suspicion() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Pass, 0);
    run(&mut schedule, Outcome::Fail, 30);
    assert_eq!(schedule.result_set().results(at(30))[0].message, "pass");
    run(&mut schedule, Outcome::Fail, 35);
    assert_eq!(schedule.result_set().results(at(35))[0].message, "fail");
}

#[test]
fn timed_out_runs_count_as_failures() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Pass, 0);
    for second in [30, 35] {
        let starts = start(&mut schedule, second);
        let seen = Observation::timed_out(PACE.timeout);
        assert!(schedule.handle_finished(&starts[0].name, starts[0].run, seen, at(second)));
    }
    assert_eq!(
        outcome(&schedule, 35),
        Outcome::Unknown(UnknownCause::TimedOut)
    );
}

#[test]
fn a_result_turns_stale_when_its_time_is_over() {
    let mut schedule = schedule(&["a"]);
    assert_eq!(
        outcome(&schedule, 0),
        Outcome::Unknown(UnknownCause::NotYetRun)
    );
    assert_eq!(schedule.result_set().next_stale(at(0)), None);
    run(&mut schedule, Outcome::Pass, 0);
    let set = schedule.result_set();
    assert_eq!(set.results_valid(at(40)), Duration::from_secs(TTL - 40));
    assert_eq!(set.next_stale(at(40)), Some(at(TTL)));
    assert_eq!(outcome(&schedule, TTL - 1), Outcome::Pass);
    assert_eq!(
        outcome(&schedule, TTL),
        Outcome::Unknown(UnknownCause::Stale)
    );
    assert_eq!(set.results_valid(at(TTL + 5)), Duration::ZERO);
    assert_eq!(set.next_stale(at(TTL)), None);
}

#[test]
fn a_check_that_never_finishes_its_first_run_uses_up_the_time_left() {
    let mut schedule = schedule(&["a", "b"]);
    let starts = start(&mut schedule, 0);
    finish(&mut schedule, &starts[0], Outcome::Pass, 90);
    let set = schedule.result_set();
    assert!(!set.all_begun_since(at(0)));
    assert_eq!(set.results_valid(at(95)), Duration::from_secs(5));
    assert_eq!(set.results(at(95))[1].age, None);
}

#[test]
fn runs_count_from_when_they_began() {
    let mut schedule = schedule(&["a"]);
    let begun = start(&mut schedule, 5).remove(0);
    assert!(!schedule.result_set().all_begun_since(at(0)));
    finish(&mut schedule, &begun, Outcome::Pass, 9);
    assert!(schedule.result_set().all_begun_since(at(5)));
    assert!(!schedule.result_set().all_begun_since(at(6)));
}

#[test]
fn a_late_word_of_an_older_run_changes_nothing() {
    let mut schedule = schedule(&["a"]);
    let old = start(&mut schedule, 0).remove(0);
    schedule.set_checks(Vec::new(), at(1));
    schedule.set_checks(vec![spec("a")], at(2));
    let new = start(&mut schedule, 2).remove(0);
    let seen = Observation::new(Outcome::Fail, "old");
    assert!(!schedule.handle_finished(&old.name, old.run, seen.clone(), at(3)));
    assert!(!schedule.handle_finished(&name("gone"), new.run, seen, at(3)));
    finish(&mut schedule, &new, Outcome::Pass, 3);
    assert_eq!(outcome(&schedule, 3), Outcome::Pass);
}

#[test]
fn a_recheck_runs_soon_but_not_more_than_once_a_second() {
    let mut schedule = schedule(&["a", "b"]);
    for begun in start(&mut schedule, 0) {
        finish(&mut schedule, &begun, Outcome::Pass, 0);
    }
    let names = [name("a"), name("nosuch")];
    assert_eq!(schedule.recheck(&names, at(0)), [&names[1]]);
    assert_eq!(schedule.next_wake(), Some(at(1)));
    assert_eq!(start(&mut schedule, 10).len(), 1, "only the one named");
    assert!(schedule.recheck(&[], at(10)).is_empty());
    assert_eq!(
        start(&mut schedule, 10).len(),
        1,
        "the other one; the first still runs"
    );
}

#[test]
fn a_recheck_during_a_run_runs_once_more_after_it() {
    let mut schedule = schedule(&["a"]);
    let begun = start(&mut schedule, 0).remove(0);
    schedule.recheck(&[], at(3));
    assert_eq!(schedule.next_wake(), None);
    finish(&mut schedule, &begun, Outcome::Pass, 4);
    assert_eq!(schedule.next_wake(), Some(at(4)));
}

#[test]
fn an_unsupported_check_says_so_and_never_runs_or_ages() {
    let mut schedule = Schedule::default();
    let unknown = CheckSpec {
        supported: false,
        ..spec("gpu")
    };
    schedule.set_checks(vec![unknown], at(0));
    assert_eq!(schedule.next_wake(), None);
    assert!(start(&mut schedule, 0).is_empty());
    assert_eq!(
        outcome(&schedule, 9999),
        Outcome::Unknown(UnknownCause::Unsupported)
    );
    assert_eq!(schedule.result_set().results_valid(at(9999)), Duration::MAX);
    assert!(schedule.result_set().all_begun_since(at(9999)));
}

#[test]
fn a_new_pace_keeps_the_result_and_counts_from_the_last_start() {
    let mut schedule = schedule(&["a"]);
    run(&mut schedule, Outcome::Warn, 0);
    let fast = CheckSpec {
        pace: CheckPace {
            interval: Duration::from_secs(4),
            ..PACE
        },
        ..spec("a")
    };
    schedule.set_checks(vec![fast, spec("b")], at(1));
    assert_eq!(outcome(&schedule, 1), Outcome::Warn);
    assert_eq!(start(&mut schedule, 1)[0].name, name("b"));
    assert_eq!(schedule.next_wake(), Some(at(4)));
}

#[test]
fn checks_over_the_limit_and_doubles_are_left_out_by_name() {
    let mut specs: Vec<_> = (0..MAX_CHECKS + 2)
        .map(|n| spec(&format!("c{n}")))
        .collect();
    specs.insert(1, spec("c0"));
    let mut schedule = Schedule::default();
    let left_out = schedule.set_checks(specs, at(0));
    assert_eq!(left_out, [name("c0"), name("c64"), name("c65")]);
    assert_eq!(schedule.result_set().results(at(0)).len(), MAX_CHECKS);
}

#[test]
fn huge_output_is_bounded_and_listeners_outlive_a_timeout() {
    let mut schedule = schedule(&["a"]);
    let begun = start(&mut schedule, 0).remove(0);
    let ssh = Listener {
        protocol: "ssh".into(),
        addresses: Vec::new(),
        port: 22,
    };
    let mut seen = Observation::new(Outcome::Pass, "x".repeat(10 << 20)).with(Finding {
        message: "y".repeat(10 << 20),
        ..Finding::default()
    });
    seen.listeners = Some(vec![ssh.clone(), ssh.clone()]);
    assert!(schedule.handle_finished(&begun.name, begun.run, seen, at(1)));
    let result = schedule.result_set().results(at(1)).remove(0);
    assert!(result.truncated && result.message.len() <= 256);
    let begun = start(&mut schedule, 40).remove(0);
    let late = Observation::timed_out(PACE.timeout);
    assert!(schedule.handle_finished(&begun.name, begun.run, late, at(50)));
    assert_eq!(schedule.result_set().listeners(), [ssh]);
}

#[test]
fn a_cloud_s_instance_outlives_a_failure_and_not_a_machine_in_no_cloud() {
    let mut schedule = schedule(&["a"]);
    let instance = CloudInstance {
        provider: "aws".into(),
        instance_id: "i-1".into(),
        region: String::new(),
        instance_type: String::new(),
    };
    let mut told = Observation::new(Outcome::Pass, "");
    told.cloud = Some(instance.clone());
    let failed = Observation::new(Outcome::Fail, "");
    let none = Observation::new(Outcome::NotApplicable, "");
    let runs = [
        (told, Some(&instance)),
        (failed, Some(&instance)),
        (none, None),
    ];
    for (seen, wanted) in runs {
        let now = schedule.next_wake().unwrap();
        let begun = schedule.start_due(now, || Random(0)).remove(0);
        assert!(schedule.handle_finished(&begun.name, begun.run, seen, now));
        assert_eq!(schedule.result_set().cloud(), wanted);
    }
}

#[test]
fn a_count_of_sessions_that_was_not_told_of_late_is_unknown_and_not_zero() {
    let mut schedule = schedule(&["a"]);
    let unknown = SessionCounts::default();
    let three = SessionCounts {
        active: Some(3),
        disconnected: Some(0),
        pending: None,
    };
    let sessions = |schedule: &Schedule, second| schedule.result_set().sessions(at(second));
    assert_eq!(sessions(&schedule, 0), None, "nobody counts");
    let mut counted = Observation::new(Outcome::Pass, "");
    counted.sessions = Some(three);
    let begun = start(&mut schedule, 0).remove(0);
    assert!(schedule.handle_finished(&begun.name, begun.run, counted, at(1)));
    assert_eq!(sessions(&schedule, TTL), Some(three));
    assert_eq!(sessions(&schedule, TTL + 1), Some(unknown), "it is stale");
    let begun = start(&mut schedule, 40).remove(0);
    let late = Observation::timed_out(PACE.timeout);
    assert!(schedule.handle_finished(&begun.name, begun.run, late, at(50)));
    assert_eq!(sessions(&schedule, 51), Some(unknown), "it timed out");
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u16),
    Finish(usize, u8),
    Recheck,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0_u16..40).prop_map(Step::Wait),
        (0_usize..4, 0_u8..3).prop_map(|(which, how)| Step::Finish(which, how)),
        Just(Step::Recheck),
    ];
    proptest::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn no_check_overlaps_none_is_forgotten_and_nothing_old_passes(steps in steps(), bits: u32) {
        let mut schedule = schedule(&["a", "b", "c"]);
        let mut running: Vec<Start> = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Wait(seconds) => now += u64::from(seconds),
                Step::Recheck => { let _ = schedule.recheck(&[], at(now)); }
                Step::Finish(which, how) if which < running.len() => {
                    let outcome = [Outcome::Pass, Outcome::Fail, Outcome::Warn][usize::from(how)];
                    let begun = running.swap_remove(which);
                    finish(&mut schedule, &begun, outcome, now);
                }
                Step::Finish(..) => {}
            }
            for begun in schedule.start_due(at(now), || Random(bits)) {
                prop_assert!(running.iter().all(|other| other.name != begun.name), "overlap");
                running.push(begun);
            }
            let idle = 3 - running.len();
            prop_assert_eq!(schedule.next_wake().is_some(), idle > 0);
            if let Some(wake) = schedule.next_wake() {
                prop_assert!(wake > at(now));
                prop_assert!(wake <= at(now) + PACE.interval);
            }
            let set = schedule.result_set();
            let left = set.results_valid(at(now));
            for result in set.results(at(now)) {
                let fresh = result.age.is_some_and(|age| age < PACE.time_to_live());
                prop_assert!(fresh || result.outcome.is_bad());
                if let Some(age) = result.age {
                    prop_assert!(left <= PACE.time_to_live().saturating_sub(age));
                }
            }
        }
    }
}
