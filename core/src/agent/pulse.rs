//! Did time pass that this process did not see?
//!
//! A loop that turns at least every so often tells its [`Pulse`] both clocks at each turn. The
//! boot-time clock running ahead of the one that stands still in a suspend shows that the machine
//! slept; a turn that comes far too late shows that the process was stopped. The wall clock has no
//! say: it may jump by hours and nothing was missed.

use std::time::Duration;

use crate::model::Mono;

/// The clocks are read one after the other, so they never differ by exactly the same. A second is
/// far more than that, and far less than any suspend.
const SLEPT: Duration = Duration::from_secs(1);
/// A turn so late is a stop of the process, not a busy machine: checks are run anew for it.
const STOPPED: Duration = Duration::from_secs(10);

/// The turns of one loop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pulse {
    longest: Duration,
    last: Option<(Mono, Duration)>,
}

/// What lies between two turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gap {
    /// Boot time between the turns, asleep or awake.
    pub total: Duration,
    /// Of that, for so long the machine slept; zero if it did not.
    pub slept: Duration,
    /// Of that, for so long the process did not run although the machine was awake; zero unless
    /// that was longer than a busy machine explains.
    pub stopped: Duration,
}

impl Gap {
    /// The machine slept or the process was stopped: what was under way then says nothing now.
    #[must_use]
    pub fn is_wake(&self) -> bool {
        !self.slept.is_zero() || !self.stopped.is_zero()
    }
}

impl Pulse {
    /// A loop whose turns are at most `longest` apart when all is well.
    #[must_use]
    pub fn new(longest: Duration) -> Self {
        Self {
            longest,
            last: None,
        }
    }

    /// The loop turns: `boot` is the boot-time clock, `awake` the one that stands still while the
    /// machine is suspended.
    pub fn turn(&mut self, boot: Mono, awake: Duration) -> Gap {
        let Some((last_boot, last_awake)) = self.last.replace((boot, awake)) else {
            return Gap::default();
        };
        let total = boot.since(last_boot);
        let ran = awake.saturating_sub(last_awake);
        let ahead = total.saturating_sub(ran);
        let late = ran.saturating_sub(self.longest);
        let counts = |gap: Duration, from: Duration| if gap > from { gap } else { Duration::ZERO };
        Gap {
            total,
            slept: counts(ahead, SLEPT),
            stopped: counts(late, STOPPED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(5);

    /// Boot time and awake time of a turn, in milliseconds; then what it must come to: asleep,
    /// stopped.
    type Turn = (u64, u64, u64, u64);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn told(turns: &[Turn]) {
        let mut pulse = Pulse::new(LONGEST);
        let first = pulse.turn(Mono::from_origin(ms(100_000)), ms(40_000));
        assert_eq!(first, Gap::default(), "a first turn has nothing behind it");
        let (mut boot, mut awake) = (100_000, 40_000);
        for (at, (boot_by, awake_by, slept, stopped)) in turns.iter().enumerate() {
            boot += boot_by;
            awake += awake_by;
            let gap = pulse.turn(Mono::from_origin(ms(boot)), ms(awake));
            let wanted = Gap {
                total: ms(*boot_by),
                slept: ms(*slept),
                stopped: ms(*stopped),
            };
            assert_eq!(gap, wanted, "turn {at}");
            assert_eq!(gap.is_wake(), *slept > 0 || *stopped > 0, "turn {at}");
        }
    }

    #[test]
    fn turns_that_come_in_time_are_no_wake_even_on_a_busy_machine() {
        told(&[
            (0, 0, 0, 0),
            (5_000, 5_000, 0, 0),
            (5_001, 5_000, 0, 0),
            (6_000, 5_000, 0, 0),
            (15_000, 15_000, 0, 0),
        ]);
    }

    #[test]
    fn a_suspend_shows_by_boot_time_running_ahead_however_short_it_was() {
        told(&[
            (3_000, 1_500, 1_500, 0),
            // Hibernated over the weekend, woke within one turn.
            (200_000_000, 700, 199_999_300, 0),
            (5_000, 5_000, 0, 0),
        ]);
    }

    #[test]
    fn a_stopped_process_shows_by_its_late_turn() {
        told(&[
            (15_001, 15_001, 0, 10_001),
            (300_000, 300_000, 0, 295_000),
            (5_000, 5_000, 0, 0),
        ]);
    }

    #[test]
    fn a_process_that_was_stopped_while_the_machine_slept_shows_both() {
        told(&[(100_000, 40_000, 60_000, 35_000)]);
    }

    #[test]
    fn clocks_that_run_backwards_are_no_wake() {
        let mut pulse = Pulse::new(LONGEST);
        let _ = pulse.turn(Mono::from_origin(ms(9_000)), ms(9_000));
        let gap = pulse.turn(Mono::from_origin(ms(1_000)), ms(1_000));
        assert_eq!(gap, Gap::default());
    }
}
