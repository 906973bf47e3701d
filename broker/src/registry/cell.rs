//! One host's cell: its state behind a short lock, and what questions read beside it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use muster_core::{
    host::{Host, Snapshot},
    model::{CheckName, Epoch, PoolPolicy},
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

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

/// What the broker wants of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionWord {
    /// It is over.
    End(SessionEnd),
    /// The agent shall run these checks now; none for all.
    Recheck(Vec<CheckName>),
    /// The agent shall send a full report.
    Resync(&'static str),
    /// The pool's policy changed.
    Policy,
    /// The agent shall leave and connect again, within the spread.
    Reconnect,
}

/// Words that may wait for one session. What does not fit is left out but for the end: each is
/// said again by whoever needs it.
const WORDS_MAX: usize = 8;

/// The broker's words for one session.
#[derive(Debug, Default)]
pub struct Mailbox {
    words: Mutex<VecDeque<SessionWord>>,
    wake: Notify,
}

impl Mailbox {
    fn put(&self, word: SessionWord) {
        let mut words = self.words.lock();
        if matches!(word, SessionWord::End(_)) {
            words.clear();
        }
        if words.len() < WORDS_MAX {
            words.push_back(word);
        }
        drop(words);
        self.wake.notify_one();
    }

    /// The next word, waited for.
    pub async fn next(&self) -> SessionWord {
        loop {
            // Made before the look, so that a word put in between wakes it.
            let woken = self.wake.notified();
            if let Some(word) = self.words.lock().pop_front() {
                return word;
            }
            woken.await;
        }
    }
}

struct Handle {
    epoch: Epoch,
    mailbox: Arc<Mailbox>,
}

/// A place for a stream that has not said Hello; free again when it is dropped.
#[derive(Debug)]
pub struct Ungreeted(Arc<AtomicUsize>);

impl Drop for Ungreeted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One host.
pub struct Cell {
    host: Mutex<Host>,
    published: ArcSwap<Published>,
    session: Mutex<Option<Handle>>,
    policy: ArcSwap<PoolPolicy>,
    /// Wakes whoever waits for a report.
    reported: Notify,
    /// Streams that have not said Hello.
    ungreeted: Arc<AtomicUsize>,
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
    pub fn new(host: Host, revision: u64, policy: Arc<PoolPolicy>) -> Self {
        let published = ArcSwap::from_pointee(Published {
            snapshot: host.snapshot(),
            revision,
        });
        Self {
            host: Mutex::new(host),
            published,
            session: Mutex::default(),
            policy: ArcSwap::new(policy),
            reported: Notify::new(),
            ungreeted: Arc::default(),
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

    /// The host was removed.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// The policy that judges this host.
    #[must_use]
    pub fn policy(&self) -> Arc<PoolPolicy> {
        self.policy.load_full()
    }

    pub(super) fn set_policy(&self, policy: Arc<PoolPolicy>) {
        self.policy.store(policy);
    }

    /// Wakes when a report was taken, if it is waited for before.
    #[must_use]
    pub fn reported(&self) -> &Notify {
        &self.reported
    }

    /// A place for a stream that has not said Hello; none if the host has `most` of them.
    #[must_use]
    pub fn ungreeted(&self, most: usize) -> Option<Ungreeted> {
        // Counted first, so that of two at once one sees the other.
        let place = Ungreeted(self.ungreeted.clone());
        (self.ungreeted.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }

    /// Registers the session that now speaks for the host; the one before it ends. None if a
    /// newer one speaks already, or the host was removed.
    pub fn adopt(&self, epoch: Epoch) -> Option<Arc<Mailbox>> {
        let mailbox = Arc::new(Mailbox::default());
        let mut session = self.session.lock();
        // Under the session's lock: whoever removes the host retires it first and ends its session
        // then.
        if self.is_retired() || session.as_ref().is_some_and(|handle| handle.epoch > epoch) {
            return None;
        }
        let handle = Handle {
            epoch,
            mailbox: mailbox.clone(),
        };
        if let Some(before) = session.replace(handle) {
            before.mailbox.put(SessionWord::End(SessionEnd::Replaced));
        }
        Some(mailbox)
    }

    /// Ends the session of that epoch, if it is still the one that speaks.
    pub fn close(&self, epoch: Epoch, why: SessionEnd) {
        let mut session = self.session.lock();
        if session.as_ref().is_some_and(|handle| handle.epoch == epoch)
            && let Some(handle) = session.take()
        {
            handle.mailbox.put(SessionWord::End(why));
        }
    }

    /// Ends whatever session speaks for the host.
    pub fn end_session(&self, why: SessionEnd) {
        if let Some(handle) = self.session.lock().take() {
            handle.mailbox.put(SessionWord::End(why));
        }
    }

    /// A word for the session that speaks for the host; false if none does.
    pub fn say(&self, word: SessionWord) -> bool {
        match self.session.lock().as_ref() {
            Some(handle) => {
                handle.mailbox.put(word);
                true
            }
            None => false,
        }
    }

    /// The session of that epoch is gone.
    pub fn forget(&self, epoch: Epoch) {
        let mut session = self.session.lock();
        if session.as_ref().is_some_and(|handle| handle.epoch == epoch) {
            *session = None;
        }
    }
}
