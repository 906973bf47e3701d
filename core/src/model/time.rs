//! Time as the core sees it: two clocks, both handed in.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use jiff::Timestamp;

/// An instant of the broker's boot-time clock (it runs on through a suspend), counted from an
/// arbitrary origin. Leases, holds and windows are measured with it and with nothing else.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(Duration);

impl Mono {
    /// The origin of the clock.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The instant `since_origin` after the origin.
    #[must_use]
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// Time since the origin.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        self.0
    }

    /// Time from `earlier` to this instant; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This instant less `by`, not before the origin.
    #[must_use]
    pub const fn back(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(by))
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    /// Saturates: "for ever" stays for ever.
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(by))
    }
}

impl Sub for Mono {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Debug for Mono {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:?}", self.0)
    }
}

/// The two clocks at one instant: `mono` judges, `wall` is for people and for what must outlive
/// a restart (ends of drains, tokens, certificates).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Judged boot time.
    pub mono: Mono,
    /// The broker's wall clock.
    pub wall: Timestamp,
}

impl Now {
    /// The wall time at which the boot-time clock showed `mono`, seen from now.
    #[must_use]
    pub fn wall_at(self, mono: Mono) -> Timestamp {
        if mono <= self.mono {
            self.wall
                .checked_sub(self.mono.since(mono))
                .unwrap_or(Timestamp::MIN)
        } else {
            self.wall
                .checked_add(mono.since(self.mono))
                .unwrap_or(Timestamp::MAX)
        }
    }

    /// The boot-time instant at which the wall clock will show `wall`, seen from now.
    #[must_use]
    pub fn mono_at(self, wall: Timestamp) -> Mono {
        match Duration::try_from(wall.duration_since(self.wall)) {
            Ok(ahead) => self.mono + ahead,
            Err(_) => self
                .mono
                .back(self.wall.duration_since(wall).unsigned_abs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_and_mono_convert_both_ways() {
        let now = Now {
            mono: Mono::from_origin(Duration::from_secs(100)),
            wall: Timestamp::from_second(1_000_000).unwrap(),
        };
        for second in [90, 100, 130] {
            let mono = Mono::from_origin(Duration::from_secs(second));
            assert_eq!(now.mono_at(now.wall_at(mono)), mono);
        }
        assert_eq!(
            now.wall_at(Mono::ZERO),
            Timestamp::from_second(999_900).unwrap()
        );
    }
}
