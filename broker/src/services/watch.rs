//! One watch: a snapshot in chunks, then every change in order.
//!
//! ```text
//! Snapshot(after) --last chunk--> Live(revision) --place gone--> Snapshot, behind a resync
//! ```
//! A position is (incarnation, revision): another incarnation's revisions say nothing here. Who
//! reads slowly holds nothing but its own place in the log.

use std::{collections::HashMap, collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, future::BoxFuture, stream};
use muster_core::{
    agent::Random,
    model::{HostId, HostName, Intent, PoolName, Verdict},
};
use muster_proto::{border::timestamp, v1};
use muster_runtime::{
    refusal::{self, Refusal},
    shutdown::Shutdown,
};
use prost::Message as _;
use tokio::{sync::watch, time::Interval};
use tonic::Status;

use super::{agent::reconnect_spread, invalid, refuse, stalled};
use crate::registry::{Change, Gone, Progress, Registry, What};

/// What tonic polls.
pub(super) type Outbound =
    Pin<Box<dyn Stream<Item = Result<v1::WatchHostsResponse, Status>> + Send>>;

/// Hosts in one chunk of a snapshot.
const CHUNK: usize = 500;
/// And bytes, well under the 4 MiB that gRPC clients take: in a mass failure verdicts are long.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// Changes taken from the log at once.
const CHANGES: usize = 100;
/// Progress is told a little more often than the five seconds that are promised.
const PROGRESS: Duration = Duration::from_secs(4);
/// Watches at once: some hundred gateways, each with a few.
const WATCHES_MAX: i64 = 5000;

/// A broker that stops is not back sooner.
const RETRY_MIN: Duration = Duration::from_millis(500);

/// A watch under way.
pub(super) struct Watch {
    registry: Arc<Registry>,
    stopping: BoxFuture<'static, ()>,
    pools: Vec<PoolName>,
    intent: Intent,
    phase: Phase,
    queue: VecDeque<v1::watch_hosts_response::Event>,
    changed: watch::Receiver<u64>,
    progress: watch::Receiver<Progress>,
    told: Option<jiff::Timestamp>,
    /// It is time to tell progress.
    owed: bool,
    ticks: Interval,
    over: bool,
}

enum Phase {
    Snapshot {
        /// The log's revision when the snapshot began: changes after it follow the snapshot.
        revision: u64,
        after: Option<HostName>,
        /// Hosts that the snapshot shows as of a later revision.
        ahead: HashMap<HostId, u64>,
    },
    Live {
        revision: u64,
        ahead: HashMap<HostId, u64>,
    },
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.registry.metrics().watchers.dec();
    }
}

impl Watch {
    /// Begins a watch at `position`, or with a snapshot.
    pub(super) fn begin(
        registry: Arc<Registry>,
        shutdown: &Shutdown,
        pools: Vec<PoolName>,
        intent: Intent,
        position: &[u8],
    ) -> Result<Self, Status> {
        if registry.metrics().watchers.get() >= WATCHES_MAX {
            let message = format!("this broker has {WATCHES_MAX} watches, and takes no more");
            let refusal = Refusal::new(refusal::BROKER_BUSY, message);
            return Err(refuse(
                &registry,
                refusal.retry_after(Duration::from_secs(30)),
            ));
        }
        let mut queue = VecDeque::new();
        let mut resync = |reason: &str| {
            registry.metrics().resyncs.inc();
            let resync = v1::WatchResync {
                reason: reason.to_owned(),
            };
            queue.push_back(v1::watch_hosts_response::Event::Resync(resync));
            snapshot(&registry)
        };
        let phase = match position {
            [] => snapshot(&registry),
            bytes => match read_position(bytes) {
                None => {
                    let problem = "the position is not one that this service told";
                    return Err(invalid(&registry, "position", problem));
                }
                Some((incarnation, _)) if incarnation != registry.incarnation() => {
                    resync("the broker was started anew")
                }
                Some((_, revision)) => match registry.log().after(revision, 0) {
                    Ok(_) => Phase::Live {
                        revision,
                        ahead: HashMap::new(),
                    },
                    Err(Gone) => resync("the position is too far behind"),
                },
            },
        };
        registry.metrics().watchers.inc();
        let mut ticks = tokio::time::interval(PROGRESS);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ok(Self {
            stopping: shutdown.requested().boxed(),
            changed: registry.log().subscribe(),
            progress: registry.progress(),
            registry,
            pools,
            intent,
            phase,
            queue,
            told: None,
            owed: false,
            ticks,
            over: false,
        })
    }

    /// The stream that tonic polls.
    pub(super) fn into_stream(
        self,
    ) -> impl Stream<Item = Result<v1::WatchHostsResponse, Status>> + Send {
        stream::unfold(self, |mut watch| async move {
            watch.next().await.map(|item| (item, watch))
        })
    }

    async fn next(&mut self) -> Option<Result<v1::WatchHostsResponse, Status>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(v1::WatchHostsResponse { event: Some(event) }));
            }
            if let Err(status) = self.fill().await {
                self.over = true;
                return Some(Err(status));
            }
        }
    }

    /// Queues what comes next, waiting for it if need be.
    async fn fill(&mut self) -> Result<(), Status> {
        // Also where there is always more to tell.
        if (&mut self.stopping).now_or_never().is_some() {
            return Err(stopping(&self.registry));
        }
        match &mut self.phase {
            Phase::Snapshot { .. } => self.chunk(),
            Phase::Live { revision, ahead } => {
                let seen = *self.changed.borrow_and_update();
                match self.registry.log().after(*revision, CHANGES) {
                    Err(Gone) => {
                        self.registry.metrics().resyncs.inc();
                        let reason = "too far behind".to_owned();
                        self.queue
                            .push_back(v1::watch_hosts_response::Event::Resync(v1::WatchResync {
                                reason,
                            }));
                        self.phase = snapshot(&self.registry);
                    }
                    Ok(changes) if !changes.is_empty() => {
                        for change in changes {
                            *revision = change.revision;
                            let event =
                                tell(&self.registry, &self.pools, self.intent, ahead, &change);
                            self.queue.extend(event);
                        }
                    }
                    Ok(_) if seen > *revision => {}
                    Ok(_) => {
                        let revision = *revision;
                        self.idle(revision).await?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Queues the next chunk of the snapshot, and its end after the last.
    fn chunk(&mut self) -> Result<(), Status> {
        let Phase::Snapshot {
            revision,
            after,
            ahead,
        } = &mut self.phase
        else {
            return Ok(());
        };
        let pools = &self.pools;
        let cells = self.registry.page(after.as_ref(), CHUNK, |published| {
            pools.is_empty() || pools.contains(&published.snapshot.facts.identity.pool)
        });
        let mut verdicts = Vec::with_capacity(cells.len());
        let mut bytes = 0;
        for cell in &cells {
            // Revision and verdict from the same facts.
            let question = self
                .registry
                .question(cell)
                .map_err(|error| stalled(&self.registry, error))?;
            let shown = question.published.revision;
            let verdict = self.registry.answer(&question, self.intent);
            if shown > *revision {
                ahead.insert(verdict.host_id, shown);
            }
            *after = Some(verdict.name.clone());
            let verdict = v1::Verdict::from(verdict);
            bytes += verdict.encoded_len();
            verdicts.push(verdict);
            if bytes >= CHUNK_BYTES {
                break;
            }
        }
        let last = cells.len() < CHUNK && verdicts.len() == cells.len();
        if !verdicts.is_empty() {
            let chunk = v1::SnapshotChunk { verdicts };
            self.queue
                .push_back(v1::watch_hosts_response::Event::SnapshotChunk(chunk));
        }
        if last {
            let revision = *revision;
            let end = v1::SnapshotEnd {
                position: position(&self.registry, revision),
                revision,
            };
            self.queue
                .push_back(v1::watch_hosts_response::Event::SnapshotEnd(end));
            self.phase = Phase::Live {
                revision,
                ahead: std::mem::take(ahead),
            };
        }
        Ok(())
    }

    /// Waits for a change, or for the time to tell that there was none.
    async fn idle(&mut self, revision: u64) -> Result<(), Status> {
        tokio::select! {
            () = &mut self.stopping => return Err(stopping(&self.registry)),
            changed = self.changed.changed() => {
                if changed.is_err() {
                    self.over = true;
                }
            }
            _ = self.ticks.tick() => self.owed = true,
            Ok(()) = self.progress.changed(), if self.owed => {}
        }
        if self.owed {
            self.tell_progress(revision);
        }
        Ok(())
    }

    /// Only what is true: all that was due by then has been told here, and the clock that judges
    /// has moved since. What cannot be told yet is owed until it can.
    fn tell_progress(&mut self, revision: u64) {
        let progress = *self.progress.borrow_and_update();
        if progress.revision > revision || self.told == Some(progress.as_of) {
            return;
        }
        self.told = Some(progress.as_of);
        self.owed = false;
        let event = v1::WatchProgress {
            as_of: Some(timestamp(progress.as_of)),
            position: position(&self.registry, revision),
            revision,
        };
        self.queue
            .push_back(v1::watch_hosts_response::Event::Progress(event));
    }
}

/// Come again, not all at once: each watcher is told another time within the agents' spread.
fn stopping(registry: &Registry) -> Status {
    let jitter = Random(rand::random()).within(reconnect_spread(registry));
    let refusal = Refusal::new(refusal::BROKER_STOPPING, "the broker shuts down");
    refuse(registry, refusal.retry_after(RETRY_MIN + jitter))
}

fn snapshot(registry: &Registry) -> Phase {
    Phase::Snapshot {
        revision: registry.log().latest(),
        after: None,
        ahead: HashMap::new(),
    }
}

/// A change as this watch is told it; none if it does not concern it or was shown already.
fn tell(
    registry: &Registry,
    pools: &[PoolName],
    intent: Intent,
    ahead: &mut HashMap<HostId, u64>,
    change: &Change,
) -> Option<v1::watch_hosts_response::Event> {
    use v1::watch_hosts_response::Event;
    if !pools.is_empty() && !pools.contains(&change.pool) {
        return None;
    }
    let position = position(registry, change.revision);
    let revision = change.revision;
    match &change.what {
        What::Changed(verdict) => {
            if let Some(&shown) = ahead.get(&verdict.host_id) {
                if revision <= shown {
                    return None;
                }
                ahead.remove(&verdict.host_id);
            }
            let verdict = for_intent((**verdict).clone(), intent).into();
            Some(Event::Changed(v1::HostChanged {
                verdict: Some(verdict),
                position,
                revision,
            }))
        }
        What::Removed { name, id } => {
            ahead.remove(id);
            Some(Event::Removed(v1::HostRemoved {
                name: name.to_string(),
                host_id: id.to_string(),
                position,
                revision,
            }))
        }
    }
}

/// The log holds answers for a new session.
fn for_intent(mut verdict: Verdict, intent: Intent) -> Verdict {
    verdict.intent = intent;
    if intent == Intent::Reconnect {
        verdict.connectable = verdict.connectable_reconnect;
        if verdict.connectable {
            verdict.retry_after = None;
        }
    }
    verdict
}

fn position(registry: &Registry, revision: u64) -> tonic::codegen::Bytes {
    let mut bytes = registry.incarnation().to_be_bytes().to_vec();
    bytes.extend(revision.to_be_bytes());
    bytes.into()
}

fn read_position(bytes: &[u8]) -> Option<(u32, u64)> {
    let (incarnation, revision) = bytes.split_first_chunk::<4>()?;
    let revision: [u8; 8] = revision.try_into().ok()?;
    Some((
        u32::from_be_bytes(*incarnation),
        u64::from_be_bytes(revision),
    ))
}
