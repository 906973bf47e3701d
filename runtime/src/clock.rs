//! The two clocks, read. Everything that decides gets a [`Now`] and never asks for one.

use std::time::Duration;

use jiff::Timestamp;
use muster_core::model::{Mono, Now};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Both clocks at this instant.
#[must_use]
pub fn now() -> Now {
    Now {
        mono: boot(),
        wall: Timestamp::now(),
    }
}

/// The boot-time clock: counts from the machine's start and runs on through a suspend.
#[must_use]
pub fn boot() -> Mono {
    Mono::from_origin(duration(clock_gettime(ClockId::Boottime)))
}

/// Time that the machine was awake since its start: stands still in a suspend, so that [`boot`]
/// running ahead of it shows one.
#[must_use]
pub fn awake() -> Duration {
    duration(clock_gettime(ClockId::Monotonic))
}

fn duration(time: Timespec) -> Duration {
    // Both clocks count up from the machine's start, so neither is ever negative.
    Duration::try_from(time).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_never_run_backwards_and_boot_time_is_not_behind_awake_time() {
        let (awake_before, first) = (awake(), now());
        let second = now();
        assert!(second.mono >= first.mono);
        assert!(first.mono.since_origin() >= awake_before);
        assert!(awake_before > Duration::ZERO);
    }
}
