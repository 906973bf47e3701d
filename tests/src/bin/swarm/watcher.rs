//! A front end that watches: what it was told of each host, when, and what it should not have been.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use muster_proto::v1::{Confidence, HostStatus, Verdict, watch_hosts_response::Event};
use muster_tests::{
    broker::describe,
    clients::{Connections, Credentials},
};
use tokio::task::JoinHandle;

use crate::worker::now;

/// Between two tries to reach a broker that is away.
const AGAIN: Duration = Duration::from_millis(50);
/// A try to reach the broker takes at most this long.
const CONNECT: Duration = Duration::from_secs(10);
/// Wrong words that are kept to be shown.
const EXAMPLES: usize = 10;

/// A watch that goes on through restarts of the broker.
pub(crate) struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// What the watch was told.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Snapshots that were completed.
    pub(crate) snapshots: u64,
    hosts: HashMap<String, Shown>,
    confirmed: usize,
    harmed: HashMap<String, Option<u64>>,
    judges: bool,
    /// Hosts told Unavailable that nobody harmed.
    pub(crate) false_unavailable: HashSet<String>,
    /// Hosts told not connectable that nobody harmed.
    pub(crate) false_not_connectable: HashSet<String>,
    /// Some of the words that were wrong.
    pub(crate) examples: Vec<String>,
    /// The longest time without a word while it judged, nanoseconds.
    pub(crate) longest_silence: u64,
    last_word: u64,
}

#[derive(Clone, Copy, Debug)]
struct Shown {
    confirmed: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins to watch with a front end's certificate.
    pub(crate) fn start(credentials: Credentials) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let task = tokio::spawn(watch(credentials, Arc::clone(&seen)));
        Self { seen, task }
    }

    /// What it was told up to now.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// From here on a word against a host that nobody harmed is wrong.
    pub(crate) fn judge(&mut self) {
        self.judges = true;
        self.last_word = now();
    }

    /// Hosts that nobody harmed and that are shown as Confirmed now.
    pub(crate) fn confirmed(&self) -> usize {
        self.confirmed
    }

    /// The host is about to be harmed: what is told against it is right.
    pub(crate) fn will_be_harmed(&mut self, name: &str) {
        if self.harmed.insert(name.to_owned(), None).is_none() {
            let confirmed = self.hosts.get(name).is_some_and(|shown| shown.confirmed);
            self.confirmed -= usize::from(confirmed);
        }
    }

    /// When it was told first that this harmed host is not connectable, as [`now`] tells it.
    pub(crate) fn told(&self, name: &str) -> Option<u64> {
        self.harmed.get(name).copied().flatten()
    }

    fn handle_word(&mut self) {
        let now = now();
        if self.judges {
            let silence = now.saturating_sub(self.last_word);
            self.longest_silence = self.longest_silence.max(silence);
        }
        self.last_word = now;
    }

    fn forget_hosts(&mut self) {
        self.hosts.clear();
        self.confirmed = 0;
    }

    fn handle_event(&mut self, event: Event) {
        self.handle_word();
        match event {
            Event::SnapshotChunk(chunk) => {
                for verdict in &chunk.verdicts {
                    self.handle_verdict(verdict);
                }
            }
            Event::SnapshotEnd(_) => self.snapshots += 1,
            Event::Changed(changed) => {
                if let Some(verdict) = &changed.verdict {
                    self.handle_verdict(verdict);
                }
            }
            Event::Removed(removed) => self.show(&removed.name, None),
            Event::Resync(_) => self.forget_hosts(),
            Event::Progress(_) => {}
        }
    }

    fn handle_verdict(&mut self, verdict: &Verdict) {
        let confirmed = verdict.confidence() == Confidence::Confirmed;
        self.show(&verdict.name, Some(Shown { confirmed }));
        let unavailable = verdict.status() == HostStatus::Unavailable;
        if verdict.connectable_new && !unavailable {
            return;
        }
        if let Some(told) = self.harmed.get_mut(&verdict.name) {
            told.get_or_insert_with(now);
        } else if self.judges {
            if unavailable {
                self.false_unavailable.insert(verdict.name.clone());
            }
            if !verdict.connectable_new {
                self.false_not_connectable.insert(verdict.name.clone());
            }
            if self.examples.len() < EXAMPLES {
                self.examples.push(describe(verdict));
            }
        }
    }

    fn show(&mut self, name: &str, shown: Option<Shown>) {
        let before = match shown {
            Some(shown) => self.hosts.insert(name.to_owned(), shown),
            None => self.hosts.remove(name),
        };
        if self.harmed.contains_key(name) {
            return;
        }
        self.confirmed += usize::from(shown.is_some_and(|shown| shown.confirmed));
        self.confirmed -= usize::from(before.is_some_and(|before| before.confirmed));
    }
}

async fn watch(credentials: Credentials, seen: Arc<Mutex<Seen>>) {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // Why it ended does not matter: a broker that was killed says nothing.
        drop(watch_once(&credentials, &seen).await);
        lock().forget_hosts();
        tokio::time::sleep(AGAIN).await;
    }
}

async fn watch_once(credentials: &Credentials, seen: &Mutex<Seen>) -> Result<()> {
    let opened = tokio::time::timeout(CONNECT, async {
        let mut connections = Connections::new(credentials.connect().await?);
        anyhow::Ok(connections.watch().await?)
    });
    let mut stream = opened.await.context("no answer")??;
    loop {
        let Some(message) = stream.message().await? else {
            bail!("the watch has ended");
        };
        if let Some(event) = message.event {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .handle_event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::HostChanged;

    use super::*;

    fn changed(name: &str, status: HostStatus, connectable: bool) -> Event {
        let verdict = Verdict {
            name: name.to_owned(),
            status: status.into(),
            connectable_new: connectable,
            confidence: Confidence::Confirmed.into(),
            ..Verdict::default()
        };
        Event::Changed(HostChanged {
            verdict: Some(verdict),
            ..HostChanged::default()
        })
    }

    #[test]
    fn a_word_against_a_host_is_wrong_unless_it_was_harmed() {
        let mut seen = Seen::default();
        seen.handle_event(changed("early", HostStatus::Unavailable, false));
        seen.judge();
        seen.will_be_harmed("dead");
        seen.handle_event(changed("dead", HostStatus::Unavailable, false));
        seen.handle_event(changed("well", HostStatus::Available, true));
        assert!(seen.examples.is_empty() && seen.told("dead").is_some());
        seen.handle_event(changed("well", HostStatus::Available, false));
        assert_eq!(
            (
                seen.false_unavailable.len(),
                seen.false_not_connectable.len()
            ),
            (0, 1)
        );
        seen.handle_event(changed("well", HostStatus::Unavailable, false));
        assert_eq!(
            (
                seen.false_unavailable.len(),
                seen.false_not_connectable.len()
            ),
            (1, 1)
        );
        assert_eq!((seen.confirmed(), seen.examples.len()), (2, 2));
    }

    #[test]
    fn who_is_confirmed_is_counted_through_changes_and_a_new_snapshot() {
        let mut seen = Seen::default();
        seen.handle_event(changed("a", HostStatus::Available, true));
        seen.handle_event(changed("a", HostStatus::Available, true));
        assert_eq!(seen.confirmed(), 1);
        seen.will_be_harmed("a");
        assert_eq!(seen.confirmed(), 0, "only those that must be well count");
        seen.handle_event(changed("b", HostStatus::Available, true));
        assert_eq!(seen.confirmed(), 1);
        seen.forget_hosts();
        assert_eq!(seen.confirmed(), 0);
    }
}
