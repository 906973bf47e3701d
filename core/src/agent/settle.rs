//! Rise and fall: how many runs in a row it takes until an outcome counts.
//!
//! | settled \ raw | good | bad |
//! |---|---|---|
//! | nothing yet | at once | at once |
//! | good | at once | after `fall` runs in a row |
//! | bad | after `rise` runs in a row | at once |
//!
//! Good is Pass, Warn and `NotApplicable`; bad is Fail and Unknown, so a run that was ended at its
//! time limit counts as one Fail.

use crate::model::{CheckPace, Outcome};

/// The settled outcome of one check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settle {
    settled: Option<Outcome>,
    against: u32,
}

/// What one run did to the settled outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Settled {
    /// The outcome that counts now.
    pub outcome: Outcome,
    /// The run speaks for that outcome: its message and findings explain it.
    pub agrees: bool,
    /// A failure is suspected: run again soon to confirm it or clear it.
    pub confirm_soon: bool,
}

impl Settle {
    /// The outcome that counts; none before the first run.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.settled
    }

    /// A run has finished with this outcome.
    pub fn handle_run(&mut self, raw: Outcome, pace: CheckPace) -> Settled {
        let needed = match self.settled {
            None => 1,
            Some(before) => match (before.is_bad(), raw.is_bad()) {
                (false, true) => pace.fall.max(1),
                (true, false) => pace.rise.max(1),
                (false, false) | (true, true) => 1,
            },
        };
        self.against += 1;
        match self.settled {
            Some(before) if self.against < needed => Settled {
                outcome: before,
                agrees: false,
                confirm_soon: raw.is_bad(),
            },
            _ => {
                self.settled = Some(raw);
                self.against = 0;
                Settled {
                    outcome: raw,
                    agrees: true,
                    confirm_soon: false,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::UnknownCause;

    const PASS: Outcome = Outcome::Pass;
    const WARN: Outcome = Outcome::Warn;
    const FAIL: Outcome = Outcome::Fail;
    const NONE: Outcome = Outcome::NotApplicable;
    const TIMED_OUT: Outcome = Outcome::Unknown(UnknownCause::TimedOut);

    fn settle(pace: CheckPace, runs: &[Outcome]) -> Vec<Outcome> {
        let mut settle = Settle::default();
        runs.iter()
            .map(|raw| settle.handle_run(*raw, pace).outcome)
            .collect()
    }

    #[test]
    fn every_change_settles_as_the_table_says() {
        let pace = CheckPace {
            rise: 2,
            fall: 3,
            ..CheckPace::default()
        };
        let table: &[(&str, &[Outcome], &[Outcome])] = &[
            ("first good", &[PASS], &[PASS]),
            ("first bad", &[FAIL], &[FAIL]),
            ("first timed out", &[TIMED_OUT], &[TIMED_OUT]),
            ("good to good", &[PASS, WARN, NONE], &[PASS, WARN, NONE]),
            (
                "bad to bad",
                &[FAIL, TIMED_OUT, FAIL],
                &[FAIL, TIMED_OUT, FAIL],
            ),
            (
                "falls",
                &[PASS, FAIL, FAIL, FAIL],
                &[PASS, PASS, PASS, FAIL],
            ),
            (
                "timeouts fall too",
                &[PASS, TIMED_OUT, FAIL, TIMED_OUT],
                &[PASS, PASS, PASS, TIMED_OUT],
            ),
            (
                "a good run starts anew",
                &[PASS, FAIL, FAIL, PASS, FAIL, FAIL],
                &[PASS; 6],
            ),
            ("rises", &[FAIL, PASS, PASS], &[FAIL, FAIL, PASS]),
            (
                "a bad run starts anew",
                &[FAIL, PASS, FAIL, PASS],
                &[FAIL; 4],
            ),
        ];
        for (name, runs, settled) in table {
            assert_eq!(settle(pace, runs), *settled, "{name}");
        }
    }

    #[test]
    fn by_default_two_failures_break_and_one_pass_mends() {
        let mut settle = Settle::default();
        let pace = CheckPace::default();
        assert!(!settle.handle_run(PASS, pace).confirm_soon);
        let suspected = settle.handle_run(FAIL, pace);
        assert_eq!(
            suspected,
            Settled {
                outcome: PASS,
                agrees: false,
                confirm_soon: true
            }
        );
        assert_eq!(settle.handle_run(FAIL, pace).outcome, FAIL);
        assert_eq!(settle.handle_run(PASS, pace).outcome, PASS);
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(PASS),
            Just(WARN),
            Just(FAIL),
            Just(NONE),
            Just(TIMED_OUT)
        ]
    }

    proptest! {
        #[test]
        fn a_steady_outcome_always_settles(
            runs in proptest::collection::vec(any_outcome(), 0..20),
            last in any_outcome(),
            rise in 0_u32..5,
            fall in 0_u32..5,
        ) {
            let pace = CheckPace { rise, fall, ..CheckPace::default() };
            let mut settle = Settle::default();
            for raw in runs {
                let _ = settle.handle_run(raw, pace);
            }
            for _ in 0..rise.max(fall).max(1) {
                let _ = settle.handle_run(last, pace);
            }
            prop_assert_eq!(settle.outcome(), Some(last));
        }
    }
}
