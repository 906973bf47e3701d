//! The change log: what watchers are told, in order, without holes.
//!
//! A ring of the latest changes. Who reads too slowly finds its place gone and is told to start
//! anew; nobody is waited for.

use std::{collections::VecDeque, sync::Arc};

use muster_core::model::{HostId, HostName, PoolName, Verdict};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::journal::detail;

/// Changes that are kept: a mass loss of 10,000 hosts and their return fit in.
const KEPT: usize = 32_768;
/// And bytes: verdicts of hosts whose checks fail are long.
const KEPT_BYTES: usize = 128 << 20;
/// Bytes of a change beside its texts: names, ids, times, the ring's own.
const CHANGE_BYTES: usize = 512;

/// One change.
#[derive(Debug)]
pub struct Change {
    /// Counts up by one, without holes.
    pub revision: u64,
    /// Pool of the host.
    pub pool: PoolName,
    /// What happened.
    pub what: What,
}

/// What happened to a host.
#[derive(Debug)]
pub enum What {
    /// Its verdict for a new session, as of the change.
    Changed(Box<Verdict>),
    /// It was removed.
    Removed {
        /// The name it had.
        name: HostName,
        /// Its id.
        id: HostId,
    },
}

/// The ring of changes.
#[derive(Debug)]
pub struct ChangeLog {
    ring: Mutex<Ring>,
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    last: u64,
}

impl Ring {
    fn push(&mut self, change: Change) {
        self.bytes += size(&change);
        self.changes.push_back(Arc::new(change));
        while (self.changes.len() > KEPT || self.bytes > KEPT_BYTES) && self.changes.len() > 1 {
            if let Some(oldest) = self.changes.pop_front() {
                self.bytes -= size(&oldest);
            }
        }
    }
}

/// What a change takes, about.
fn size(change: &Change) -> usize {
    let texts = match &change.what {
        What::Removed { .. } => 0,
        What::Changed(verdict) => verdict
            .reasons
            .iter()
            .map(|reason| CHANGE_BYTES + reason.message.len() + detail(reason))
            .sum(),
    };
    CHANGE_BYTES + texts
}

/// The place asked for is not in the ring any more, or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl Default for ChangeLog {
    fn default() -> Self {
        Self {
            ring: Mutex::default(),
            latest: watch::Sender::new(0),
        }
    }
}

impl ChangeLog {
    /// Adds a change and gives its revision. Called under the lock of the host's cell, so that
    /// the order of a host's changes is the order of their revisions. `publish` puts the new facts
    /// where questions read them, before anybody can know of the revision: whoever was told it is
    /// never answered by what was before.
    pub fn append(&self, pool: PoolName, what: What, publish: impl FnOnce(u64)) -> u64 {
        let mut ring = self.ring.lock();
        ring.last += 1;
        let revision = ring.last;
        ring.push(Change {
            revision,
            pool,
            what,
        });
        publish(revision);
        // Under the lock, so that no watcher is told a revision before an earlier one.
        self.latest.send_replace(revision);
        revision
    }

    /// The revision of the latest change; 0 before the first.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.ring.lock().last
    }

    /// Wakes whenever a change is added.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// At most `limit` changes after `revision`.
    ///
    /// # Errors
    /// [`Gone`] if some of them are not kept any more, or `revision` lies ahead.
    pub fn after(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Change>>, Gone> {
        let ring = self.ring.lock();
        if revision > ring.last {
            return Err(Gone);
        }
        let missing = ring.last - revision;
        let kept = u64::try_from(ring.changes.len()).unwrap_or(u64::MAX);
        if missing > kept {
            return Err(Gone);
        }
        let skip = usize::try_from(kept - missing).unwrap_or(usize::MAX);
        Ok(ring
            .changes
            .iter()
            .skip(skip)
            .take(limit)
            .cloned()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(log: &ChangeLog) -> u64 {
        let what = What::Removed {
            name: HostName::new("a").unwrap(),
            id: HostId::from_random([0; 16]),
        };
        log.append(PoolName::default_pool(), what, |_| {})
    }

    #[test]
    fn changes_come_in_order_without_holes() {
        let log = ChangeLog::default();
        for wanted in 1..=10 {
            assert_eq!(removed(&log), wanted);
        }
        let revisions = |after, limit| -> Vec<u64> {
            log.after(after, limit)
                .unwrap()
                .iter()
                .map(|change| change.revision)
                .collect()
        };
        assert_eq!(revisions(0, 3), [1, 2, 3]);
        assert_eq!(revisions(7, 100), [8, 9, 10]);
        assert_eq!(revisions(10, 100), Vec::<u64>::new());
        assert_eq!(log.after(11, 1).unwrap_err(), Gone);
    }

    #[test]
    fn who_is_too_slow_is_told_so() {
        let log = ChangeLog::default();
        for _ in 0..KEPT + 5 {
            removed(&log);
        }
        assert_eq!(log.after(4, 1).unwrap_err(), Gone);
        assert_eq!(log.after(5, 1).unwrap()[0].revision, 6);
    }
}
