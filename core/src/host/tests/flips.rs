//! Flips of checks, read out of journals that the machine itself wrote.

use super::*;

/// A world that keeps its journal, as the store does.
struct Kept {
    world: World,
    journal: Vec<Transition>,
}

impl Kept {
    fn enrolled() -> Self {
        let world = World::enrolled();
        let identity = world.host.facts().identity.clone();
        let (_, enrolment) = Host::enrolled(identity, Admin::default(), &world.context());
        Self {
            world,
            journal: enrolment.transition.into_iter().collect(),
        }
    }

    fn did(&mut self, effects: Effects) {
        self.journal.extend(effects.transition);
    }

    fn open(&mut self) {
        let effects = self.world.open();
        self.did(effects);
    }

    fn report(&mut self, but: &[(&str, Outcome)]) {
        let effects = self.world.report(but);
        self.did(effects);
    }

    /// Silent for so long that its lease is over.
    fn is_lost(&mut self) {
        let effects = self.world.stream_ends();
        self.did(effects);
        self.world.pass(secs(40));
        let effects = self.world.handle(Event::Deadline);
        self.did(effects);
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(secs(seconds));
    }

    /// From and to of the check's flips, oldest first.
    fn flips(&self, check: &str) -> Vec<(Option<CheckStanding>, CheckStanding)> {
        let mut all = flips(&self.journal);
        let flips = all.remove(check).unwrap_or_default();
        assert!(flips.is_sorted_by(|newer, older| newer.at >= older.at));
        flips
            .iter()
            .rev()
            .map(|flip| (flip.from, flip.to))
            .collect()
    }
}

const URLS: &str = "urls";
const FAILS: &[(&str, Outcome)] = &[(URLS, Outcome::Fail)];
use CheckStanding::{Fail, Pass, Unknown, Warn};

#[test]
fn every_change_of_a_check_is_told_once_with_what_it_said() {
    let mut host = Kept::enrolled();
    host.open();
    host.report(&[]);
    host.pass(600);
    host.report(&[(URLS, Outcome::Warn)]);
    host.report(FAILS);
    // What others do is no flip of this one.
    host.report(&[FAILS[0], ("monitoring_agent", Outcome::Fail)]);
    host.report(&[(URLS, Outcome::Unknown(UnknownCause::TimedOut))]);
    host.report(&[]);
    assert_eq!(
        host.flips(URLS),
        [
            (Some(Pass), Warn),
            (Some(Warn), Fail),
            (Some(Fail), Unknown),
            (Some(Unknown), Pass)
        ]
    );
    let all = flips(&host.journal);
    assert_eq!(all[URLS][1].message, "urls says unknown (timed_out)");
    assert_eq!(all[URLS][0].message, "");
    assert_eq!(all.keys().collect::<Vec<_>>(), ["monitoring_agent", URLS]);
}

#[test]
fn a_check_that_never_passed_has_a_first_result_and_no_flip_before_it() {
    let mut host = Kept::enrolled();
    host.open();
    host.report(FAILS);
    assert_eq!(host.flips(URLS), [(None, Fail)]);
    let mut later = Kept::enrolled();
    later.open();
    later.report(&[(URLS, Outcome::Unknown(UnknownCause::NotYetRun))]);
    later.pass(5);
    later.report(FAILS);
    assert_eq!(later.flips(URLS), [(None, Fail)]);
}

#[test]
fn a_host_that_goes_and_comes_back_as_it_was_has_no_flips() {
    let mut host = Kept::enrolled();
    host.open();
    host.report(FAILS);
    host.pass(600);
    host.is_lost();
    host.pass(600);
    host.world.boot += 1;
    host.open();
    // The fatal checks are there first: it is settled, and nothing is said against the URLs.
    host.report(&[(URLS, Outcome::Unknown(UnknownCause::NotYetRun))]);
    host.pass(8);
    host.report(FAILS);
    assert_eq!(host.flips(URLS), [(None, Fail)]);
    // Mended while nobody looked: told when it is seen.
    host.is_lost();
    host.world.boot += 1;
    host.open();
    host.report(&[]);
    assert_eq!(host.flips(URLS), [(None, Fail), (Some(Fail), Pass)]);
    // And broken while nobody looked, after a time in which it passed.
    host.pass(600);
    host.is_lost();
    host.world.boot += 1;
    host.open();
    host.report(FAILS);
    assert_eq!(host.flips(URLS)[2..], [(Some(Pass), Fail)]);
}

#[test]
fn a_goodbye_and_an_agent_that_stops_are_no_flips() {
    for how in [Leave::Poweroff, Leave::Reboot, Leave::AgentStop] {
        let mut host = Kept::enrolled();
        host.open();
        host.report(FAILS);
        host.pass(600);
        let epoch = host.world.live();
        let leaving = PowerAnnouncement::Leaving {
            how,
            back_within: None,
        };
        let effects = host.world.handle(Event::Leaving(epoch, leaving));
        host.did(effects);
        let effects = host.world.stream_ends();
        host.did(effects);
        host.pass(60);
        host.open();
        host.report(FAILS);
        assert_eq!(host.flips(URLS), [(None, Fail)], "{how:?}");
    }
}

#[test]
fn another_severity_is_no_flip() {
    let mut host = Kept::enrolled();
    host.open();
    host.report(&[(URLS, Outcome::Unknown(UnknownCause::CannotRun))]);
    for severity in [Severity::ReportOnly, Severity::Fatal, Severity::NonFatal] {
        host.world.policy.severities.insert(name(URLS), severity);
        let effects = host.world.handle(Event::PolicyChanged);
        assert!(effects.transition.is_some());
        host.did(effects);
    }
    assert_eq!(host.flips(URLS), [(None, Unknown)]);
}

#[test]
fn a_journal_whose_beginning_is_gone_tells_only_what_it_has() {
    let mut host = Kept::enrolled();
    host.open();
    host.report(FAILS);
    host.pass(600);
    host.report(&[]);
    host.pass(600);
    host.report(FAILS);
    let at = host.journal.len();
    host.pass(600);
    host.report(&[]);
    host.journal.drain(..at - 1);
    assert_eq!(host.flips(URLS), [(Some(Fail), Pass)]);
}

#[test]
fn of_a_check_that_flips_on_and_on_the_newest_are_told() {
    let mut host = Kept::enrolled();
    host.open();
    for _ in 0..50 {
        host.report(FAILS);
        host.pass(100);
        host.report(&[]);
        host.pass(100);
    }
    let told = host.flips(URLS);
    assert_eq!(told.len(), FLIPS_MAX);
    assert_eq!(told.last(), Some(&(Some(Fail), Pass)));
}
