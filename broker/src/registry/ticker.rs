//! The tick: advances judged time, lets deadlines come up, ends the restart window.
//!
//! Answers do not wait for it: they are computed for the instant of the question. The tick only
//! decides when watchers are told what time alone has changed.

use std::{convert::Infallible, sync::Arc};

use jiff::Timestamp;
use muster_core::{
    fleet::{BUCKET, RestartWindow, TICK, Tick},
    host::{Event, Link},
    model::{HostId, Mono},
};
use muster_runtime::{clock, shutdown::Shutdown};
use tokio::time::{MissedTickBehavior, interval};

use super::{Cell, Registry};

/// Hosts that come up in one go before others may run: about a millisecond of work.
const DUE_AT_ONCE: usize = 500;

/// Up to when everything that was due has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The instant.
    pub as_of: Timestamp,
    /// The latest revision at that instant.
    pub revision: u64,
}

/// Ticks until shutdown. `handshakes` tells how many connections wait for a place to shake hands:
/// only then does the broker itself keep hosts waiting.
///
/// # Errors
/// Never.
pub async fn run_ticker(
    registry: Arc<Registry>,
    handshakes: impl Fn() -> usize,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    let mut ticks = interval(BUCKET);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = clock::boot();
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let boot = clock::boot();
        if boot.since(last) < TICK {
            // Between two ticks only deadlines come up: watchers are told within a bucket.
            while registry.due(registry.now().mono, DUE_AT_ONCE) == DUE_AT_ONCE {
                tokio::task::yield_now().await;
            }
            continue;
        }
        let late = boot.since(last).saturating_sub(TICK + BUCKET);
        registry.metrics().tick_late_seconds.set(late.as_secs_f64());
        last = boot;
        let tick = registry.advance(boot);
        if tick.behind {
            registry.look_at_wall_ends();
        }
        if tick.stalled {
            tracing::warn!(
                late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX),
                "the broker was stopped for a while; hosts are answered as last known"
            );
            registry.metrics().rules.stalls.inc();
            registry.restart_window();
        }
        registry.tick_rules();
        registry.poll_window(handshakes() > 0);
        registry.charge_unheard(registry.now().mono);
        loop {
            let as_of = registry.now();
            let due = registry.due(as_of.mono, DUE_AT_ONCE);
            let more = due == DUE_AT_ONCE;
            if !more {
                let revision = registry.log().latest();
                // The wheel is this much late at most.
                let as_of = as_of.wall.checked_sub(BUCKET).unwrap_or(as_of.wall);
                registry.progress.send_replace(Progress { as_of, revision });
                break;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Registry {
    /// Advances judged time; says what that found.
    fn advance(&self, boot: Mono) -> Tick {
        let mut judged = **self.clock.load();
        let tick = judged.tick(boot, clock::awake());
        self.clock.store(Arc::new(judged));
        let mut wall = **self.wall.load();
        if let Some(jump) = wall.tick(clock::now()) {
            tracing::error!(
                jump_s = jump.as_secs(),
                "the wall clock was set: deadlines go by the time before until the next start"
            );
        }
        self.wall.store(Arc::new(wall));
        let ahead = wall.ahead().as_secs();
        self.metrics().rules.wall_clock_ahead_seconds.set(ahead);
        tick
    }

    /// Judged time fell behind: hosts with an end by the wall clock, which did not wait, look at
    /// themselves anew.
    fn look_at_wall_ends(&self) {
        for cell in self.page(None, usize::MAX, |published| {
            !published.snapshot.facts.admin.drains.is_empty()
        }) {
            self.apply(&cell, Event::Deadline);
        }
    }

    /// Lets hosts whose deadline has come judge themselves anew; says how many.
    fn due(&self, now: Mono, limit: usize) -> usize {
        let due = self.wheel.lock().due(now, limit);
        let count = due.len();
        for id in due {
            let cell = self.by_id.pin().get(&id).cloned();
            if let Some(cell) = cell
                && !self.is_due_later(&cell, id)
            {
                self.apply(&cell, Event::Deadline);
            }
        }
        count
    }

    /// Beats moved the deadline of this host away: it is armed anew and judges nothing.
    fn is_due_later(&self, cell: &Cell, id: HostId) -> bool {
        let locked = cell.lock();
        let policy = cell.policy();
        let later = locked.due_later(&self.context(self.now(), &policy));
        // Under the host's lock, as all arming is.
        if let Some(at) = later
            && !cell.is_retired()
        {
            self.wheel.lock().arm(id, at);
        }
        later.is_some()
    }

    /// Nothing is known of the present: every host is answered as last known until it speaks.
    fn restart_window(&self) {
        let pace = self.pace();
        let unheard_until = self.window_end();
        let window = RestartWindow::open(self.now().mono, pace.terms.lease, pace.reconnect_window);
        self.set_window(Some(window));
        for cell in self.page(None, usize::MAX, |_| true) {
            self.apply(&cell, Event::BrokerStalled { unheard_until });
        }
    }

    fn poll_window(&self, handshakes_queue: bool) {
        let unverified = if self.window_end().is_some() {
            self.page(None, usize::MAX, |published| {
                matches!(published.snapshot.facts.link, Link::Loaded { .. })
            })
            .len()
        } else {
            0
        };
        self.metrics()
            .unverified
            .set(i64::try_from(unverified).unwrap_or(i64::MAX));
        let now = self.now().mono;
        let mut guard = self.window.lock();
        let Some(window) = guard.as_mut() else { return };
        if now < window.poll_end(now, handshakes_queue) {
            self.publish_window(*guard);
            return;
        }
        if unverified > 0 {
            tracing::warn!(
                hosts = unverified,
                "the restart window ends; some are not back"
            );
        } else {
            tracing::info!("the restart window ends; every host is back");
        }
        // Whoever is left was armed for this instant and comes up in the wheel.
        *guard = None;
        self.publish_window(None);
    }
}
