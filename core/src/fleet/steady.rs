//! The wall clock as deadlines see it: it never jumps.
//!
//! Ends of drains and of announced upgrades are wall times, so that they outlive a restart. A wall
//! clock that is set an hour forward must not end them at once, and one that is set back must not
//! prolong them. So a running broker counts on from the time that it knew, follows small
//! corrections, and takes a jump over only when it is started again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::model::{Mono, Now};

/// Corrections up to this size are followed: time servers slew more slowly, and people set clocks
/// by more.
const FOLLOWED: Duration = Duration::from_secs(60);

/// The wall clock, without its jumps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SteadyWall {
    anchor: Now,
    /// What the wall clock is ahead of the steady one since its last jump.
    ahead: SignedDuration,
}

impl SteadyWall {
    /// A clock that agrees with the wall clock at `now`.
    #[must_use]
    pub const fn new(now: Now) -> Self {
        Self {
            anchor: now,
            ahead: SignedDuration::ZERO,
        }
    }

    /// The steady time at `mono`.
    #[must_use]
    pub fn at(&self, mono: Mono) -> Timestamp {
        self.anchor.wall_at(mono)
    }

    /// Compares with the wall clock, every second or so. Says by how much that jumped, if it did
    /// since the last call.
    pub fn tick(&mut self, now: Now) -> Option<SignedDuration> {
        let steady = self.at(now.mono);
        let ahead = now.wall.duration_since(steady);
        let jump = ahead - self.ahead;
        if jump.unsigned_abs() > FOLLOWED {
            self.ahead = ahead;
            self.anchor = Now {
                mono: now.mono,
                wall: steady,
            };
            return Some(jump);
        }
        // A small correction, on top of whatever jump there was.
        let corrected = steady.checked_add(jump).unwrap_or(steady);
        self.anchor = Now {
            mono: now.mono,
            wall: corrected,
        };
        None
    }

    /// By how much the wall clock is ahead since its jumps; zero if there were none.
    #[must_use]
    pub const fn ahead(&self) -> SignedDuration {
        self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(mono: u64, wall: i64) -> Now {
        Now {
            mono: Mono::from_origin(Duration::from_secs(mono)),
            wall: Timestamp::from_second(1_800_000_000 + wall).unwrap(),
        }
    }

    #[test]
    fn small_corrections_are_followed_and_jumps_are_not() {
        let mut clock = SteadyWall::new(now(100, 0));
        let steady = |clock: &SteadyWall, mono| {
            let at = clock.at(Mono::from_origin(Duration::from_secs(mono)));
            at.as_second() - 1_800_000_000
        };
        assert_eq!(clock.tick(now(110, 12)), None);
        assert_eq!(steady(&clock, 110), 12);
        let jumped = clock.tick(now(111, 3613)).unwrap();
        assert_eq!(jumped.as_secs(), 3600);
        assert_eq!(steady(&clock, 111), 13);
        assert_eq!(clock.tick(now(121, 3624)), None, "told once");
        assert_eq!(steady(&clock, 121), 24, "a second of correction");
        let back = clock.tick(now(122, 25)).unwrap();
        assert_eq!(back.as_secs(), -3600);
        assert_eq!(
            (steady(&clock, 122), clock.ahead()),
            (25, SignedDuration::ZERO)
        );
    }
}
