//! What this host announces of itself: its power and its upgrade.
//!
//! Two voices speak of power: the system (logind), which is asked again after every restart and
//! not kept on disk, and the administrator (`muster-agent announce`), whose word is kept until it
//! is withdrawn or the machine boots anew. The system wins while it says that the machine leaves.
//! An upgrade is the administrator's word alone and survives reboots; it is over once this agent
//! itself is at or above the version.
//!
//! A word is on disk before it is told, and told to whoever waits for it only once the broker has
//! acknowledged it.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::model::{
    Leave, PowerAnnouncement, UpgradeAnnouncement, UpgradeAttempt, UpgradePhase, clean_text,
};
use muster_runtime::files::FileError;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::store::{ANNOUNCEMENTS, DataDir};

/// Longest error text of a failed upgrade, as the contract has it.
const MAX_ERROR_BYTES: usize = 512;
/// Words that may wait for a session at once. Each has a person or a system waiting for it.
pub const MAX_DELIVERIES: usize = 16;

/// The administrator's words, as kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Announced {
    /// The boot in which power was announced: a later boot withdraws it.
    boot_id: String,
    power: PowerAnnouncement,
    power_until: Option<Timestamp>,
    upgrade: UpgradeAnnouncement,
    upgrade_until: Option<Timestamp>,
    /// What the system says of power; not kept.
    #[serde(skip)]
    system: PowerAnnouncement,
}

impl Announced {
    /// What was kept, as far as it still holds in this boot and for an agent of this version.
    #[must_use]
    pub fn restored(kept: Option<Self>, boot_id: &str, version: &str) -> Self {
        let mut kept = kept.unwrap_or_default();
        if kept.boot_id != boot_id {
            kept.power = PowerAnnouncement::Running;
            kept.power_until = None;
        }
        boot_id.clone_into(&mut kept.boot_id);
        let attempt = match &kept.upgrade {
            UpgradeAnnouncement::InProgress { attempt, .. }
            | UpgradeAnnouncement::Failed { attempt, .. } => Some(attempt),
            UpgradeAnnouncement::Silent | UpgradeAnnouncement::Cleared { .. } => None,
        };
        if attempt.is_some_and(|attempt| attempt.is_seen_in(version)) {
            // The version that reports says it all.
            kept.upgrade = UpgradeAnnouncement::Silent;
            kept.upgrade_until = None;
        }
        kept
    }

    /// Power as it is to be told at `now`.
    #[must_use]
    pub fn power(&self, now: Timestamp) -> PowerAnnouncement {
        match (self.system, self.power) {
            (leaving @ PowerAnnouncement::Leaving { .. }, _) => leaving,
            (PowerAnnouncement::Running, PowerAnnouncement::Leaving { how, .. }) => {
                PowerAnnouncement::Leaving {
                    how,
                    back_within: self.power_until.map(|until| left(until, now)),
                }
            }
            (PowerAnnouncement::Running, PowerAnnouncement::Running) => PowerAnnouncement::Running,
        }
    }

    /// The upgrade as it is to be told at `now`.
    #[must_use]
    pub fn upgrade(&self, now: Timestamp) -> UpgradeAnnouncement {
        match &self.upgrade {
            UpgradeAnnouncement::InProgress { attempt, .. } => UpgradeAnnouncement::InProgress {
                attempt: attempt.clone(),
                within: self.upgrade_until.map(|until| left(until, now)),
            },
            other => other.clone(),
        }
    }
}

/// Time left, never zero: on the wire zero means that nothing was said.
fn left(until: Timestamp, now: Timestamp) -> Duration {
    let left = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    left.max(Duration::from_millis(1))
}

/// What an administrator announces.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "announce", deny_unknown_fields)]
pub enum Announcement {
    /// An upgrade has begun that others perform.
    Upgrading {
        /// Version wanted.
        to: String,
        /// It takes at most this long.
        within: Option<Duration>,
    },
    /// It failed.
    UpgradeFailed {
        /// Version wanted, where no upgrade was announced before.
        to: Option<String>,
        /// What went wrong.
        error: String,
    },
    /// The machine is about to leave.
    Shutdown {
        /// How.
        kind: Leave,
        /// Back within this time.
        back_within: Option<Duration>,
    },
    /// Nothing of the above any more.
    Running,
}

/// One word for the session to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Word {
    /// Power, whole.
    Power(PowerAnnouncement),
    /// The upgrade, whole.
    Upgrade(UpgradeAnnouncement),
}

/// A word and who waits for its acknowledgement.
#[derive(Debug)]
pub struct Delivery {
    /// The word.
    pub word: Word,
    /// Sent when the broker has acknowledged it; dropped when it cannot be told now.
    pub acknowledged: oneshot::Sender<()>,
}

/// What became of a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivered {
    /// The broker has it for good.
    Acknowledged,
    /// There is no session now; the next one begins with it.
    NoSession,
    /// It was told and is not acknowledged yet; it will be told again.
    NotAcknowledged,
}

/// Where words are kept and handed to the session. Clones are the same.
#[derive(Clone, Debug)]
pub struct Announcer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data: DataDir,
    version: String,
    /// One change after the other: each is on disk before the next is made.
    change: Mutex<()>,
    state: watch::Sender<Announced>,
    deliveries: mpsc::Sender<Delivery>,
}

impl Announcer {
    /// Begins with what was kept in `data`.
    #[must_use]
    pub fn new(data: DataDir, boot_id: &str, version: &str) -> (Self, mpsc::Receiver<Delivery>) {
        let (deliveries, inbox) = mpsc::channel(MAX_DELIVERIES);
        let kept = Announced::restored(data.read(ANNOUNCEMENTS), boot_id, version);
        let inner = Inner {
            data,
            version: version.to_owned(),
            change: Mutex::default(),
            state: watch::Sender::new(kept),
            deliveries,
        };
        (
            Self {
                inner: Arc::new(inner),
            },
            inbox,
        )
    }

    /// What is announced, and its changes.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Announced> {
        self.inner.state.subscribe()
    }

    /// Keeps an administrator's word, tells it, and waits at most `patience` until it is
    /// acknowledged.
    ///
    /// # Errors
    /// If it cannot be kept: it is not told then either.
    pub async fn announce(
        &self,
        announcement: &Announcement,
        now: Timestamp,
        patience: Duration,
    ) -> Result<Delivered, FileError> {
        let words = {
            let _one_at_a_time = self.inner.change.lock().await;
            let mut state = self.inner.state.borrow().clone();
            state.apply(announcement, &self.inner.version, now);
            let data = self.inner.data.clone();
            let kept = state.clone();
            // A short write; the agent has nothing else that waits for the disk.
            tokio::task::spawn_blocking(move || data.write(ANNOUNCEMENTS, &kept))
                .await
                .unwrap_or_else(|_| unreachable!("writing does not panic"))?;
            let words = state.words(announcement, now);
            self.inner.state.send_modify(|current| {
                // What the system said while this was written stands.
                let system = current.system;
                *current = state;
                current.system = system;
            });
            words
        };
        let mut worst = Delivered::Acknowledged;
        for word in words {
            match self.deliver(word, patience).await {
                Delivered::Acknowledged => {}
                other => worst = other,
            }
        }
        Ok(worst)
    }

    /// The system says that the machine leaves, or stays after all; told and waited for likewise.
    pub async fn system_power(&self, power: PowerAnnouncement, patience: Duration) -> Delivered {
        let now = muster_runtime::clock::now().wall;
        let mut told = power;
        self.inner.state.send_modify(|state| {
            state.system = power;
            told = state.power(now);
        });
        self.deliver(Word::Power(told), patience).await
    }

    async fn deliver(&self, word: Word, patience: Duration) -> Delivered {
        let (acknowledged, answer) = oneshot::channel();
        let delivery = Delivery { word, acknowledged };
        if self.inner.deliveries.try_send(delivery).is_err() {
            return Delivered::NoSession;
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(())) => Delivered::Acknowledged,
            Ok(Err(_)) => Delivered::NoSession,
            Err(_) => Delivered::NotAcknowledged,
        }
    }
}

impl Announced {
    fn apply(&mut self, announcement: &Announcement, version: &str, now: Timestamp) {
        let until = |within: Option<Duration>| {
            within.map(|within| now.checked_add(within).unwrap_or(Timestamp::MAX))
        };
        match announcement {
            Announcement::Upgrading { to, within } => {
                self.upgrade = UpgradeAnnouncement::InProgress {
                    attempt: new_attempt(version, to),
                    within: *within,
                };
                self.upgrade_until = until(*within);
            }
            Announcement::UpgradeFailed { to, error } => {
                let under_way = match &self.upgrade {
                    UpgradeAnnouncement::InProgress { attempt, .. } => Some(attempt.clone()),
                    UpgradeAnnouncement::Silent
                    | UpgradeAnnouncement::Cleared { .. }
                    | UpgradeAnnouncement::Failed { .. } => None,
                };
                let wanted = to.as_deref().unwrap_or("unknown");
                self.upgrade = UpgradeAnnouncement::Failed {
                    attempt: under_way.unwrap_or_else(|| new_attempt(version, wanted)),
                    error: clean_text(error, MAX_ERROR_BYTES),
                };
                self.upgrade_until = None;
            }
            Announcement::Shutdown { kind, back_within } => {
                self.power = PowerAnnouncement::Leaving {
                    how: *kind,
                    back_within: *back_within,
                };
                self.power_until = until(*back_within);
            }
            Announcement::Running => {
                self.power = PowerAnnouncement::Running;
                self.power_until = None;
                if let UpgradeAnnouncement::InProgress { attempt, .. }
                | UpgradeAnnouncement::Failed { attempt, .. } = &self.upgrade
                {
                    self.upgrade = UpgradeAnnouncement::Cleared {
                        id: Arc::clone(&attempt.id),
                    };
                }
                self.upgrade_until = None;
            }
        }
    }

    fn words(&self, announcement: &Announcement, now: Timestamp) -> Vec<Word> {
        let power = Word::Power(self.power(now));
        let upgrade = Word::Upgrade(self.upgrade(now));
        match announcement {
            Announcement::Upgrading { .. } | Announcement::UpgradeFailed { .. } => vec![upgrade],
            Announcement::Shutdown { .. } => vec![power],
            Announcement::Running if self.upgrade == UpgradeAnnouncement::Silent => vec![power],
            Announcement::Running => vec![power, upgrade],
        }
    }
}

fn new_attempt(version: &str, to: &str) -> UpgradeAttempt {
    UpgradeAttempt {
        id: new_id().into(),
        from: version.into(),
        to: clean_text(to, 64).into(),
        // Whoever announces it has begun: the host is Upgrading from here on.
        phase: UpgradePhase::Switch,
    }
}

/// A random id for an attempt or a message.
#[must_use]
pub fn new_id() -> String {
    uuid::Builder::from_random_bytes(rand::random())
        .into_uuid()
        .to_string()
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
