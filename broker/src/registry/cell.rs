//! One host's cell: its state behind a short lock, and what questions read beside it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use muster_core::{
    host::{Host, Snapshot},
    model::Epoch,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// What answers are computed from.
#[derive(Debug)]
pub struct Published {
    /// The facts, and the status as last told.
    pub snapshot: Snapshot,
    /// The revision that they are at least as new as.
    pub revision: u64,
}

/// Why the broker ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// A newer session of the same host took over.
    Replaced,
    /// Nothing was heard for a whole lease.
    LeaseOver,
    /// The host was removed.
    Removed,
    /// An operator banned it.
    Banned,
    /// The broker shuts down.
    Stopping,
}

struct Handle {
    epoch: Epoch,
    end: oneshot::Sender<SessionEnd>,
}

/// One host.
pub struct Cell {
    host: Mutex<Host>,
    published: ArcSwap<Published>,
    session: Mutex<Option<Handle>>,
    retired: AtomicBool,
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let published = self.published.load();
        f.debug_tuple("Cell")
            .field(&published.snapshot.facts.identity.name)
            .finish()
    }
}

impl Cell {
    /// A cell for `host`.
    #[must_use]
    pub fn new(host: Host, revision: u64) -> Self {
        let published = ArcSwap::from_pointee(Published {
            snapshot: host.snapshot(),
            revision,
        });
        Self {
            host: Mutex::new(host),
            published,
            session: Mutex::default(),
            retired: AtomicBool::new(false),
        }
    }

    /// The facts as last published: no lock.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Host> {
        self.host.lock()
    }

    pub(super) fn publish(&self, snapshot: Snapshot, revision: u64) {
        self.published
            .store(Arc::new(Published { snapshot, revision }));
    }

    /// The host was removed: words that are still on their way change nothing.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Registers the session that now speaks for the host; the one before it ends. None if a
    /// newer one speaks already.
    pub fn adopt(&self, epoch: Epoch) -> Option<oneshot::Receiver<SessionEnd>> {
        let (end, ended) = oneshot::channel();
        let mut session = self.session.lock();
        if session.as_ref().is_some_and(|handle| handle.epoch > epoch) {
            return None;
        }
        if let Some(before) = session.replace(Handle { epoch, end }) {
            let _ = before.end.send(SessionEnd::Replaced);
        }
        Some(ended)
    }

    /// Ends the session of that epoch, if it is still the one that speaks.
    pub fn close(&self, epoch: Epoch, why: SessionEnd) {
        let mut session = self.session.lock();
        if session.as_ref().is_some_and(|handle| handle.epoch == epoch)
            && let Some(handle) = session.take()
        {
            let _ = handle.end.send(why);
        }
    }

    /// Ends whatever session speaks for the host.
    pub fn end_session(&self, why: SessionEnd) {
        if let Some(handle) = self.session.lock().take() {
            let _ = handle.end.send(why);
        }
    }
}
