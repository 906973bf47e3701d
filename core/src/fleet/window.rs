//! The restart window: how long a restarted broker believes what it knew before.

use std::time::Duration;

use crate::model::Mono;

/// The window never lasts longer, however slowly hosts come back.
const AT_MOST: Duration = Duration::from_secs(600);
/// The window goes on while hosts have come back within this time.
const QUIET: Duration = Duration::from_secs(5);

/// An open restart window. Every host loaded from the store is believed until it ends, or until
/// its own word, whichever is first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestartWindow {
    opened: Mono,
    ends: Mono,
    last_arrival: Option<Mono>,
}

impl RestartWindow {
    /// Opens a window: a lease, so that every host had its time to notice, and `reconnect`, so
    /// that all can come back.
    #[must_use]
    pub fn open(now: Mono, lease: Duration, reconnect: Duration) -> Self {
        let length = lease.saturating_add(reconnect).min(AT_MOST);
        Self {
            opened: now,
            ends: now + length,
            last_arrival: None,
        }
    }

    /// A host known from before came back.
    pub fn handle_arrival(&mut self, now: Mono) {
        self.last_arrival = Some(now);
    }

    /// When the window ends. At its end it is prolonged while hosts still arrive or handshakes
    /// queue, and never past its limit.
    pub fn poll_end(&mut self, now: Mono, handshakes_queue: bool) -> Mono {
        let arriving = self.last_arrival.is_some_and(|at| now.since(at) < QUIET);
        // Once over it stays over: hosts have been given up.
        let is_open = now < self.ends;
        if is_open && now + QUIET >= self.ends && (arriving || handshakes_queue) {
            self.ends = (now + QUIET + QUIET)
                .min(self.opened + AT_MOST)
                .max(self.ends);
        }
        self.ends
    }

    /// When it was opened.
    #[must_use]
    pub const fn opened(&self) -> Mono {
        self.opened
    }

    /// When the window ends as things stand.
    #[must_use]
    pub const fn ends(&self) -> Mono {
        self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn the_window_is_a_lease_and_the_time_to_come_back() {
        let mut window =
            RestartWindow::open(at(100), Duration::from_secs(35), Duration::from_secs(60));
        assert_eq!(window.poll_end(at(150), false), at(195));
        assert_eq!(window.poll_end(at(194), false), at(195));
    }

    #[test]
    fn a_window_that_is_over_is_not_opened_again_by_who_comes_late() {
        let mut window =
            RestartWindow::open(at(100), Duration::from_secs(35), Duration::from_secs(60));
        window.handle_arrival(at(195));
        assert_eq!(window.poll_end(at(195), true), at(195));
    }

    #[test]
    fn hosts_that_still_arrive_prolong_the_window_ten_minutes_at_most() {
        let mut window =
            RestartWindow::open(at(0), Duration::from_secs(35), Duration::from_secs(60));
        for second in 0..2000 {
            window.handle_arrival(at(second));
            let ends = window.poll_end(at(second), true);
            assert!(ends <= at(600));
            assert!(ends > at(second) || second >= 600);
        }
    }
}
