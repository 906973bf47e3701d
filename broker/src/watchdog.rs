//! Restarts a broker whose ticker is stuck: it would answer nothing any more.
//!
//! Once it is late by over a lease every answer is refused, so nothing is lost by a new start. The
//! lateness is counted in looks of the watchdog's own thread: a broker that was stopped as a whole,
//! or whose machine slept, is not suspected for that, and goes on when it wakes.

use std::{io, time::Duration};

use muster_core::fleet::TICK;
use muster_runtime::{
    shutdown::Shutdown,
    watchdog::{Guard, Watchdog},
};

use crate::registry::Registry;

/// With very short leases a busy machine alone would make the ticker late by one.
const LIMIT_MIN: Duration = Duration::from_secs(5);

/// Watches the registry's ticker until the guard is dropped.
///
/// # Errors
/// If there can be no thread.
pub(crate) fn start(registry: &Registry, shutdown: Shutdown) -> io::Result<Guard> {
    let mut progress = registry.progress();
    let mut turns = 0;
    let mut watchdog = Watchdog::new();
    watchdog.watch("ticker", limit(registry.pace().terms.lease), move || {
        // A sender that is gone has no progress either.
        if progress.has_changed().unwrap_or(false) {
            progress.mark_unchanged();
            turns += 1;
        }
        turns
    });
    watchdog.start(shutdown)
}

/// One lease, and the tick that is late.
fn limit(lease: Duration) -> Duration {
    lease.max(LIMIT_MIN) + TICK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ticker_may_be_late_by_a_lease_and_never_by_less_than_a_busy_machine_is() {
        for (lease, most) in [(300, 6_000), (35_000, 36_000), (305_000, 306_000)] {
            let lease = Duration::from_millis(lease);
            assert_eq!(limit(lease), Duration::from_millis(most), "{lease:?}");
        }
    }
}
