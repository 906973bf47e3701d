//! Waits that a suspended machine and a watchdog can live with.

use std::time::Duration;

use muster_core::{agent::Pulse, model::Mono};
use muster_runtime::{clock, watchdog::Mark};
use tokio::time::sleep;

/// Longest sleep of the session's loop: timers stand still while the machine is suspended, and
/// what has come due meanwhile shall be seen soon after it wakes.
pub(super) const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Waits until the boot-time clock says `due`.
pub(super) async fn until(due: Mono, mark: &Mark) {
    loop {
        mark.turn();
        let left = due.since(clock::boot());
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_SLEEP)).await;
    }
}

/// Waits until time passed that this process did not see, more than `lease` at once, and says how
/// much.
pub(super) async fn slept_through(lease: Duration, mark: &Mark) -> Duration {
    let mut pulse = Pulse::new(MAX_SLEEP);
    loop {
        mark.turn();
        let gap = pulse.turn(clock::boot(), clock::awake());
        if gap.total > lease + MAX_SLEEP {
            return gap.total;
        }
        sleep(MAX_SLEEP).await;
    }
}
