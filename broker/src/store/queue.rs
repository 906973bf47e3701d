//! The one writer: a thread that drains what has gathered into one transaction.
//!
//! Two kinds of writes. Unconditional ones (records of hosts, journal entries) are merged by key,
//! so that what waits is bounded by what is stored; they are never refused, and are tried again
//! while the store fails. Conditional batches (a token's use, a name) are few and bounded; when
//! the store fails they fail. Whoever must not speak before a write is durable waits for its
//! [`Ticket`].

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::{Applied, Batch, Store, StoreError, keys};
use crate::metrics::Metrics;

/// Conditional batches that may wait: enrolments and operators' words, all of people's making.
const CONDITIONAL_MAX: usize = 1024;
/// Unconditional keys that may wait while the store fails: some hundred MiB. Beyond it, entries of
/// journals are left out and counted; records of hosts, which are what must not be lost, never.
const PENDING_MAX: usize = 200_000;
/// Between two tries while the store fails.
const RETRY: Duration = Duration::from_secs(1);

/// A place in the order of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub struct Ticket(u64);

/// Hands writes to the writer. Cheap to clone.
#[derive(Clone)]
pub struct WriteQueue {
    inner: Arc<Inner>,
}

struct Inner {
    pending: Mutex<Pending>,
    wake: Condvar,
    /// All tickets up to this one are durable.
    durable: watch::Sender<u64>,
    /// The last commit failed.
    failing: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Pending {
    /// Latest value by key; none to delete.
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    conditional: Vec<(Batch, oneshot::Sender<Result<Applied, ()>>)>,
    ticket: u64,
    stopping: bool,
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").finish_non_exhaustive()
    }
}

impl WriteQueue {
    /// Starts the writer. It ends, with everything written, after [`WriteQueue::stop`].
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, thread::JoinHandle<()>)> {
        let inner = Arc::new(Inner {
            pending: Mutex::default(),
            wake: Condvar::new(),
            durable: watch::Sender::new(0),
            failing: watch::Sender::new(false),
            metrics,
        });
        let queue = Self {
            inner: inner.clone(),
        };
        let writer = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(&inner, store.as_ref()))?;
        Ok((queue, writer))
    }

    /// Queues writes; they are durable when the ticket is.
    pub fn put(&self, writes: impl IntoIterator<Item = (Vec<u8>, Option<Vec<u8>>)>) -> Ticket {
        let mut pending = self.inner.pending.lock();
        for (key, value) in writes {
            let full = pending.writes.len() >= PENDING_MAX;
            if full && key.starts_with(keys::JOURNALS) && !pending.writes.contains_key(&key) {
                self.inner.metrics.store_dropped.inc();
                continue;
            }
            pending.writes.insert(key, value);
        }
        pending.ticket += 1;
        let ticket = Ticket(pending.ticket);
        drop(pending);
        self.inner.wake.notify_one();
        ticket
    }

    /// Waits until everything up to `ticket` is durable. Waits on while the store fails: whoever
    /// cannot, bounds it.
    pub async fn durable(&self, ticket: Ticket) {
        let mut durable = self.inner.durable.subscribe();
        // The sender lives as long as `self`.
        let _ = durable.wait_for(|durable| *durable >= ticket.0).await;
    }

    /// Writes a batch with requirements.
    ///
    /// # Errors
    /// If too many wait, or the store fails: then nothing of it was written.
    pub async fn commit(&self, batch: Batch) -> Result<Applied, StoreError> {
        let (done, result) = oneshot::channel();
        {
            let mut pending = self.inner.pending.lock();
            if pending.stopping || pending.conditional.len() >= CONDITIONAL_MAX {
                return Err(StoreError::Overloaded);
            }
            pending.conditional.push((batch, done));
        }
        self.inner.wake.notify_one();
        match result.await {
            Ok(Ok(applied)) => Ok(applied),
            Ok(Err(())) | Err(_) => Err(StoreError::Overloaded),
        }
    }

    /// Tells whether the store fails just now.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        *self.inner.failing.borrow()
    }

    /// Lets the writer end once all is written, or cannot be.
    pub fn stop(&self) {
        self.inner.pending.lock().stopping = true;
        self.inner.wake.notify_one();
    }
}

fn run(inner: &Inner, store: &dyn Store) {
    let metrics = &inner.metrics;
    loop {
        let (writes, conditional, ticket, stopping) = {
            let mut pending = inner.pending.lock();
            while pending.writes.is_empty() && pending.conditional.is_empty() {
                if pending.stopping {
                    return;
                }
                if *inner.durable.borrow() < pending.ticket {
                    // Nothing to write for these tickets: their keys went with earlier ones.
                    inner.durable.send_replace(pending.ticket);
                }
                inner.wake.wait(&mut pending);
            }
            (
                std::mem::take(&mut pending.writes),
                std::mem::take(&mut pending.conditional),
                pending.ticket,
                pending.stopping,
            )
        };
        let keys = writes.len();
        let unconditional = Batch {
            require: Vec::new(),
            write: writes.into_iter().collect(),
        };
        let mut batches: Vec<Batch> = vec![unconditional];
        let mut waiters = Vec::with_capacity(conditional.len());
        for (batch, done) in conditional {
            batches.push(batch);
            waiters.push(done);
        }
        match store.commit(&batches) {
            Ok(applied) => {
                metrics.store_commits.inc();
                metrics
                    .store_writes
                    .inc_by(u64::try_from(keys + waiters.len()).unwrap_or(0));
                if inner.failing.send_replace(false) {
                    tracing::info!("the store works again");
                }
                for (done, applied) in waiters.into_iter().zip(applied.into_iter().skip(1)) {
                    let _ = done.send(Ok(applied));
                }
                inner.durable.send_if_modified(|durable| {
                    let later = ticket > *durable;
                    *durable = ticket.max(*durable);
                    later
                });
            }
            Err(error) => {
                metrics.store_failures.inc();
                if !inner.failing.send_replace(true) {
                    tracing::error!(
                        error = %muster_runtime::explain::explain(&error),
                        "the store cannot be written; nothing is acknowledged until it can"
                    );
                }
                for done in waiters {
                    let _ = done.send(Err(()));
                }
                let mut pending = inner.pending.lock();
                let again = batches.swap_remove(0).write;
                for (key, value) in again {
                    // What was queued meanwhile is newer.
                    pending.writes.entry(key).or_insert(value);
                }
                if stopping {
                    return;
                }
                drop(pending);
                // Not woken by what comes meanwhile: a full disk is not asked in a hurry.
                thread::sleep(RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::{super::EmbeddedStore, *};

    /// A real store behind a valve, as a full disk is.
    struct Valve {
        store: EmbeddedStore,
        shut: AtomicBool,
        tries: AtomicUsize,
    }

    impl Store for Valve {
        fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(key)
        }
        fn scan(&self, p: &[u8], l: usize, r: bool) -> Result<Vec<super::super::Pair>, StoreError> {
            self.store.scan(p, l, r)
        }
        fn commit(&self, batches: &[Batch]) -> Result<Vec<Applied>, StoreError> {
            self.tries.fetch_add(1, Ordering::SeqCst);
            if self.shut.load(Ordering::SeqCst) {
                return Err(StoreError::Overloaded);
            }
            self.store.commit(batches)
        }
    }

    fn valve(folder: &std::path::Path) -> Arc<Valve> {
        let store = EmbeddedStore::create(&folder.join("s")).unwrap();
        Arc::new(Valve {
            store,
            shut: AtomicBool::new(false),
            tries: AtomicUsize::new(0),
        })
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = valve(folder.path());
        let (queue, writer) = WriteQueue::start(store.clone(), Metrics::for_tests()).unwrap();
        let tickets: Vec<Ticket> = (0..200u8)
            .map(|number| queue.put([(vec![b'x', number], Some(vec![number]))]))
            .collect();
        for (number, ticket) in (0..200u8).zip(tickets) {
            queue.durable(ticket).await;
            assert_eq!(store.get(&[b'x', number]).unwrap(), Some(vec![number]));
        }
        queue.stop();
        writer.join().unwrap();
        assert!(
            store.tries.load(Ordering::SeqCst) < 200,
            "writes are grouped"
        );
    }

    #[tokio::test]
    async fn while_the_store_fails_nothing_is_acknowledged_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let store = valve(folder.path());
        store.shut.store(true, Ordering::SeqCst);
        let (queue, writer) = WriteQueue::start(store.clone(), Metrics::for_tests()).unwrap();
        let ticket = queue.put([(b"a".to_vec(), Some(b"1".to_vec()))]);
        let batch = Batch {
            require: vec![],
            write: vec![(b"b".to_vec(), Some(b"2".to_vec()))],
        };
        assert!(
            queue.commit(batch).await.is_err(),
            "a conditional batch fails at once"
        );
        assert!(queue.is_failing());
        assert_eq!(*queue.inner.durable.borrow(), 0);
        let later = queue.put([(b"a".to_vec(), Some(b"newer".to_vec()))]);
        store.shut.store(false, Ordering::SeqCst);
        queue.durable(ticket).await;
        queue.durable(later).await;
        assert_eq!(store.get(b"a").unwrap().unwrap(), b"newer");
        assert!(!queue.is_failing());
        queue.stop();
        writer.join().unwrap();
    }

    #[tokio::test]
    async fn of_fifty_racers_for_one_key_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let (queue, writer) =
            WriteQueue::start(valve(folder.path()), Metrics::for_tests()).unwrap();
        let racers = (0..50u8).map(|number| {
            let queue = queue.clone();
            async move {
                let batch = Batch {
                    require: vec![(b"name".to_vec(), None)],
                    write: vec![(b"name".to_vec(), Some(vec![number]))],
                };
                queue.commit(batch).await.unwrap() == Applied::Yes
            }
        });
        let won = futures_util::future::join_all(racers).await;
        assert_eq!(won.into_iter().filter(|won| *won).count(), 1);
        queue.stop();
        writer.join().unwrap();
    }
}
