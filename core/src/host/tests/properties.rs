//! Properties over random histories of one host.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the steps of a history are no state machine"
)]

use proptest::prelude::*;

use super::*;

/// One step of a history.
#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Open {
        new_boot: bool,
    },
    Report(Vec<(usize, Outcome)>, u64),
    Beat {
        valid: u64,
        hash: u64,
    },
    StreamEnds,
    Leave(Leave),
    Upgrade {
        id: u8,
        switching: bool,
        failed: bool,
    },
    Drain(Option<u64>),
    Undrain,
    Deadline,
    OldBeat,
    RestartBroker {
        clean: bool,
    },
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Pass),
        1 => Just(Outcome::Warn),
        1 => Just(Outcome::Fail),
        1 => Just(Outcome::NotApplicable),
        1 => Just(Outcome::Unknown(UnknownCause::NotYetRun)),
        1 => Just(Outcome::Unknown(UnknownCause::TimedOut)),
    ]
}

fn leave() -> impl Strategy<Value = Leave> {
    prop_oneof![
        Just(Leave::Poweroff),
        Just(Leave::Reboot),
        Just(Leave::Suspend),
        Just(Leave::AgentStop),
        Just(Leave::AgentRestart),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..50_000).prop_map(Step::Pass),
        3 => any::<bool>().prop_map(|new_boot| Step::Open { new_boot }),
        6 => (prop::collection::vec((0usize..5, outcome()), 0..3), 0u64..100_000)
            .prop_map(|(but, valid)| Step::Report(but, valid)),
        6 => (0u64..100_000, 0u64..3).prop_map(|(valid, hash)| Step::Beat { valid, hash }),
        2 => Just(Step::StreamEnds),
        1 => leave().prop_map(Step::Leave),
        1 => (0u8..3, any::<bool>(), any::<bool>())
            .prop_map(|(id, switching, failed)| Step::Upgrade { id, switching, failed }),
        1 => proptest::option::of(0u64..60_000).prop_map(Step::Drain),
        1 => Just(Step::Undrain),
        3 => Just(Step::Deadline),
        1 => Just(Step::OldBeat),
        1 => any::<bool>().prop_map(|clean| Step::RestartBroker { clean }),
    ]
}

/// What an outsider knows of the host: enough to say when *yes* is certainly wrong.
#[derive(Default)]
struct Oracle {
    /// Receive time of the last word that may extend the lease.
    last_word: Option<Mono>,
    /// Everything said before is believed at most until here, after a restart.
    window: Option<Mono>,
    /// Outcomes of the fatal checks in the last report that was taken.
    fatal_bad: bool,
}

impl World {
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn event(&self, step: &Step, valid_ms: u64) -> Option<Event> {
        let epoch = self.live();
        let valid = Duration::from_millis(valid_ms);
        Some(match step {
            Step::Report(but, _) => {
                let mut checks: Vec<CheckResult> = ALL_CHECKS
                    .iter()
                    .map(|check| result(check, Outcome::Pass))
                    .collect();
                for (at, outcome) in but {
                    checks[*at] = result(ALL_CHECKS[*at], *outcome);
                }
                Event::Report(
                    epoch,
                    Report {
                        sequence: self.sequence,
                        state_hash: 1,
                        results_valid: valid,
                        checks,
                        listeners: vec![],
                        cloud: None,
                        sessions: SessionCounts::default(),
                        policy_revision: "p".into(),
                        power: PowerAnnouncement::Running,
                        upgrade: UpgradeAnnouncement::Silent,
                    },
                )
            }
            Step::Beat { hash, .. } => Event::Beat(
                epoch,
                Beat {
                    sequence: self.sequence,
                    state_hash: *hash,
                    results_valid: valid,
                    sessions: SessionCounts::default(),
                },
            ),
            Step::OldBeat => Event::Beat(
                Epoch::new(0, 1),
                Beat {
                    sequence: u64::MAX,
                    state_hash: 1,
                    results_valid: valid,
                    sessions: SessionCounts::default(),
                },
            ),
            Step::StreamEnds => Event::StreamEnded(epoch),
            Step::Leave(how) => Event::Leaving(epoch, leaving(*how)),
            Step::Upgrade {
                id,
                switching,
                failed,
            } => {
                let phase = if *switching {
                    UpgradePhase::Switch
                } else {
                    UpgradePhase::Download
                };
                let attempt = attempt(&format!("u{id}"), "9.0.0", phase);
                Event::Upgrade(
                    epoch,
                    if *failed {
                        UpgradeAnnouncement::Failed {
                            attempt,
                            error: "e".into(),
                        }
                    } else {
                        UpgradeAnnouncement::InProgress {
                            attempt,
                            within: None,
                        }
                    },
                )
            }
            Step::Drain(until) => Event::Drain(drain(
                "ann",
                until.map(|ms| {
                    self.now
                        .wall
                        .checked_add(Duration::from_millis(ms))
                        .unwrap()
                }),
            )),
            Step::Undrain => Event::Undrain(Undrain::All),
            Step::Deadline => Event::Deadline,
            Step::Pass(_) | Step::Open { .. } | Step::RestartBroker { .. } => return None,
        })
    }

    /// Plays one step and checks what must hold of every event.
    fn play(&mut self, step: &Step, oracle: &mut Oracle) {
        match step {
            Step::Pass(ms) => return self.pass(Duration::from_millis(*ms)),
            Step::RestartBroker { clean } => {
                self.restart_broker(secs(3), *clean);
                oracle.window = self.window_ends;
                oracle.last_word = None;
                return;
            }
            Step::Open { new_boot } => {
                self.boot += u32::from(*new_boot);
                let before = self.clone();
                let effects = self.open();
                return self.check(&before, &effects, oracle);
            }
            Step::Report(_, _)
            | Step::Beat { .. }
            | Step::StreamEnds
            | Step::Leave(_)
            | Step::Upgrade { .. }
            | Step::Drain(_)
            | Step::Undrain
            | Step::Deadline
            | Step::OldBeat => {}
        }
        self.sequence += 1;
        let valid = match step {
            Step::Report(_, valid) | Step::Beat { valid, .. } => *valid,
            _ => 0,
        };
        let event = self.event(step, valid).unwrap();
        let before = self.clone();
        let effects = self.handle(event.clone());
        let mut twin = before.clone();
        assert_eq!(twin.handle(event.clone()), effects, "deterministic");
        assert_eq!(twin.host, self.host, "deterministic");
        if !effects.stale {
            match &event {
                Event::Report(_, report) => {
                    oracle.last_word = Some(self.now.mono);
                    oracle.fatal_bad = report.checks.iter().any(|check| {
                        self.policy.severity(&check.name) == Severity::Fatal
                            && check.outcome.is_bad()
                            && check.outcome != Outcome::Unknown(UnknownCause::NotYetRun)
                    });
                }
                Event::Beat(..) => oracle.last_word = Some(self.now.mono),
                _ => {}
            }
        }
        self.check(&before, &effects, oracle);
    }

    fn check(&self, before: &Self, effects: &Effects, oracle: &Oracle) {
        let (told_before, told) = (before.host.told(), self.host.told());
        let changed = (
            told_before.status,
            told_before.connectable_new,
            told_before.connectable_reconnect,
            &told_before.reasons,
        ) != (
            told.status,
            told.connectable_new,
            told.connectable_reconnect,
            &told.reasons,
        );
        assert_eq!(
            effects.transition.is_some(),
            changed,
            "one transition per change"
        );
        assert_eq!(
            told.sequence,
            told_before.sequence + u64::from(changed),
            "no holes"
        );
        if let Some(transition) = &effects.transition {
            assert_eq!(transition.from, Some(told_before.status));
            assert_eq!(
                (transition.to, transition.sequence),
                (told.status, told.sequence)
            );
            assert!(effects.persist && effects.tell);
        }
        if let Some(deadline) = effects.next_deadline {
            assert!(deadline > self.now.mono, "a deadline lies ahead");
        }
        if !effects.stale {
            self.check_answer(oracle);
        }
    }

    /// The answer at this instant, whether or not anything happened.
    fn check_answer(&self, oracle: &Oracle) {
        let assessed = self.assess();
        assert!(assessed.connectable_reconnect || !assessed.connectable_new);
        // What a deadline would tell is what a question reads.
        let mut swept = self.clone();
        let _ = swept.handle(Event::Deadline);
        let later = swept.assess();
        assert_eq!(
            (
                assessed.status,
                assessed.connectable_new,
                assessed.connectable_reconnect
            ),
            (
                later.status,
                later.connectable_new,
                later.connectable_reconnect
            ),
            "read and sweep agree"
        );
        let told = swept.host.told();
        assert_eq!(
            (
                told.status,
                told.connectable_new,
                told.connectable_reconnect
            ),
            (
                assessed.status,
                assessed.connectable_new,
                assessed.connectable_reconnect
            )
        );
        if !assessed.connectable_reconnect {
            return;
        }
        let believed = oracle.last_word.map(|word| word + LEASE).max(oracle.window);
        assert!(
            believed.is_some_and(|until| self.now.mono < until),
            "connectable beyond the lease: {believed:?} at {:?}",
            self.now.mono
        );
        assert!(!oracle.fatal_bad, "connectable with a fatal check failing");
        assert!(
            !matches!(self.host.facts().power, Power::Leaving { how, .. }
                if how != Leave::AgentRestart),
            "connectable after a goodbye"
        );
        if assessed.presence == Presence::Confirmed {
            let health = &self.host.facts().health;
            for check in self.policy.fatal_checks() {
                let held = health.get(check).unwrap();
                assert!(
                    self.now.mono < held.valid_until(health.valid_until),
                    "expired"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Total, deterministic, one transition per change, no *yes* for a host whose lease is over
    /// or whose fatal check fails or expired, and a question reads what a sweep would tell.
    #[test]
    fn whatever_happens_the_answers_are_lawful(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::enrolled();
        let mut oracle = Oracle::default();
        for step in &steps {
            world.play(step, &mut oracle);
            world.check_answer(&oracle);
        }
    }

    /// No *no* for a healthy host: beats within the lease, streams that break and come back,
    /// agents and brokers that restart. A broker that always says no is broken too.
    #[test]
    fn a_healthy_host_is_never_refused(
        steps in prop::collection::vec((0u8..6, 0u64..9_500), 1..80)
    ) {
        let mut world = World::available();
        let told = world.host.told().sequence;
        for (what, ms) in steps {
            // Never more than a lease without a word.
            world.pass(Duration::from_millis(ms));
            prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
            match what {
                0 => { let _ = world.stream_ends(); let _ = world.open(); let _ = world.report(&[]); }
                1 => {
                    // The agent restarts: it has run nothing yet, and then it has.
                    let _ = world.leave(Leave::AgentRestart);
                    let _ = world.stream_ends();
                    world.pass(secs(2));
                    let _ = world.open();
                    let nothing = ALL_CHECKS.map(|c| (c, Outcome::Unknown(UnknownCause::NotYetRun)));
                    let _ = world.report(&nothing);
                    prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
                    let _ = world.report(&[]);
                }
                2 => {
                    world.restart_broker(secs(20), ms % 2 == 0);
                    prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
                    world.pass(secs(30));
                    prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
                    let _ = world.open();
                    prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
                    let _ = world.report(&[]);
                }
                3 => { let _ = world.report(&[]); }
                4 => { let _ = world.handle(Event::Deadline); let _ = world.beat(); }
                _ => { let _ = world.beat(); }
            }
            prop_assert!(world.assess().connectable_new, "{:?}", world.codes());
            prop_assert_eq!(world.host.told().sequence, told, "and nothing to write down");
        }
    }
}
