//! Judged time: the boot-time clock, less the broker's own stalls.
//!
//! A broker that was stopped for a minute has not heard anybody for a minute, and that is its own
//! fault. So leases are judged by a clock that a tick drives: each tick, and each question between
//! ticks, advances it by at most [`STEP_MAX`]. Who was not asked to wait is not convicted.

use std::time::Duration;

use crate::model::Mono;

/// Time between two ticks.
pub const TICK: Duration = Duration::from_secs(1);
/// The most that one tick or one question may advance judged time.
const STEP_MAX: Duration = Duration::from_secs(2);
/// A tick this much over time makes all answers "last known".
const LATE: Duration = Duration::from_secs(2);
/// A stall longer than this is a restart: nothing is known of the present.
const STALL: Duration = Duration::from_secs(60);

/// A machine that was suspended for longer than this has missed words that will not come again.
const SUSPENDED: Duration = Duration::from_secs(5);

/// How late the broker's own tick is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lateness {
    /// On time.
    OnTime,
    /// Answers are the last known ones, and no host is better than Suspect.
    Late,
    /// For longer than a lease: no answer is better than any.
    Stalled,
}

/// What a tick found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tick {
    /// Judged time after the tick.
    pub now: Mono,
    /// The broker was stopped for so long that it counts as restarted.
    pub stalled: bool,
    /// Judged time fell behind the wall clock: what ends by that is due earlier than was said.
    pub behind: bool,
}

/// The clock. A small value: the shell publishes a copy after each tick, questions read it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JudgedClock {
    judged: Mono,
    ticked: Mono,
    /// How far the boot-time clock ran ahead of the time awake at the last tick.
    slept: Duration,
}

impl JudgedClock {
    /// A clock that starts at `boot`, the boot-time clock's present instant, on a machine that was
    /// awake for `awake` since its start.
    #[must_use]
    pub const fn new(boot: Mono, awake: Duration) -> Self {
        Self {
            judged: boot,
            ticked: boot,
            slept: boot.since_origin().saturating_sub(awake),
        }
    }

    /// Advances the clock; called every [`TICK`] with the boot-time clock and the time awake.
    pub fn tick(&mut self, boot: Mono, awake: Duration) -> Tick {
        let slept = boot.since_origin().saturating_sub(awake);
        let suspended = slept.saturating_sub(self.slept);
        self.slept = slept;
        let gap = boot.since(self.ticked);
        self.judged = self.judged + gap.min(STEP_MAX);
        self.ticked = self.ticked.max(boot);
        Tick {
            now: self.judged,
            stalled: gap > STALL || suspended > SUSPENDED,
            behind: gap > STEP_MAX,
        }
    }

    /// Judged time at a question, without advancing the clock for others.
    #[must_use]
    pub fn read(&self, boot: Mono) -> Mono {
        self.judged + boot.since(self.ticked).min(STEP_MAX)
    }

    /// How long ago the next tick was due.
    #[must_use]
    pub fn late(&self, boot: Mono) -> Duration {
        boot.since(self.ticked).saturating_sub(TICK)
    }

    /// How late the tick is at a question.
    #[must_use]
    pub fn lateness(&self, boot: Mono, lease: Duration) -> Lateness {
        let over = self.late(boot);
        if over > lease {
            Lateness::Stalled
        } else if over > LATE {
            Lateness::Late
        } else {
            Lateness::OnTime
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_origin(Duration::from_millis(ms))
    }

    /// A tick of a machine that never slept.
    fn tick(clock: &mut JudgedClock, ms: u64) -> Tick {
        clock.tick(at(ms), Duration::from_millis(ms))
    }

    #[test]
    fn a_suspend_of_more_than_five_seconds_is_a_restart() {
        let mut clock = JudgedClock::new(at(1000), Duration::from_millis(900));
        assert!(!clock.tick(at(8000), Duration::from_millis(2900)).stalled);
        assert!(clock.tick(at(15_000), Duration::from_millis(3900)).stalled);
        assert!(!clock.tick(at(16_000), Duration::from_millis(4900)).stalled);
    }

    #[test]
    fn a_stall_advances_judged_time_by_two_seconds_at_most() {
        let mut clock = JudgedClock::new(at(10_000), Duration::from_secs(10));
        assert_eq!(tick(&mut clock, 11_000).now, at(11_000));
        assert_eq!(clock.read(at(11_500)), at(11_500));
        assert_eq!(clock.read(at(90_000)), at(13_000));
        let found = tick(&mut clock, 56_000);
        assert_eq!(
            found,
            Tick {
                now: at(13_000),
                stalled: false,
                behind: true,
            }
        );
        let found = tick(&mut clock, 117_000);
        assert_eq!(
            found,
            Tick {
                now: at(15_000),
                stalled: true,
                behind: true,
            }
        );
    }

    #[test]
    fn time_never_runs_backwards_and_never_ahead_of_the_real_clock() {
        let mut clock = JudgedClock::new(at(1000), Duration::from_secs(1));
        let mut before = clock.read(at(1000));
        for boot in [1001, 1500, 2600, 2000, 9000, 9001, 9500, 200_000, 200_001] {
            let now = clock.read(at(boot));
            assert!(now >= before || boot == 2000, "{now:?} after {before:?}");
            assert!(now <= at(boot.max(2600)));
            before = tick(&mut clock, boot).now;
        }
    }

    #[test]
    fn lateness_has_three_steps() {
        let clock = JudgedClock::new(at(0), Duration::ZERO);
        let lease = Duration::from_secs(35);
        assert_eq!(clock.lateness(at(3000), lease), Lateness::OnTime);
        assert_eq!(clock.lateness(at(3001), lease), Lateness::Late);
        assert_eq!(clock.lateness(at(36_000), lease), Lateness::Late);
        assert_eq!(clock.lateness(at(36_001), lease), Lateness::Stalled);
    }
}
