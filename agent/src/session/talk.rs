//! A session from Welcome to its end.
//!
//! One task. What happens is named by a `select!`; what follows is decided by handlers that do not
//! wait. Messages go out through a bounded channel: what a broker that hangs does not take stays
//! owed and is told from the then present state.

use std::{collections::BTreeMap, time::Duration};

use muster_core::{
    agent::{BeatClock, Pulse},
    model::{CheckName, Leave, Mono, PowerAnnouncement},
};
use muster_proto::v1::{
    self, AgentMessage, BrokerMessage, ack, agent_message::Body, broker_message, directive,
};
use muster_runtime::{clock, shutdown::Shutdown};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tonic::{Status, Streaming};

use super::{Context, Ended, open::Opened, pace::MAX_SLEEP};
use crate::{
    announce::{Delivery, MAX_DELIVERIES, Word, new_id},
    platform,
    scheduler::{Order, draw},
};

/// Reports are at least so far apart, so that checks that finish together are told together.
const REPORT_GAP: Duration = Duration::from_millis(200);
/// Longest wait for the acknowledgement of the goodbye.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);
/// Longest wait for the system manager to say whether it is stopping the machine.
const STOPPING_WITHIN: Duration = Duration::from_secs(1);

/// What happened.
enum Event {
    Stop,
    Tick,
    Message(Result<Option<BrokerMessage>, Status>),
    Deliver(Delivery),
}

struct Talk<'a> {
    context: &'a Context,
    outbox: mpsc::Sender<AgentMessage>,
    beats: BeatClock,
    /// Hash of the last report; none while one is owed whatever the state.
    reported: Option<u64>,
    /// Revision of the policy in the last report.
    reported_policy: String,
    /// Welcome. The broker may count only runs that began after it has lost or met this host, so
    /// every session has a report of such runs, whether their outcomes are new or not.
    since: Mono,
    reported_fresh: bool,
    /// The last report knew how many sessions there are. The first count often comes after it, and
    /// waiting for a beat would leave the host's limit unknown.
    reported_count: bool,
    next_report: Mono,
    waiting: BTreeMap<String, oneshot::Sender<()>>,
}

/// Talks until the session ends.
pub(super) async fn talk(
    context: &Context,
    opened: Opened,
    deliveries: &mut mpsc::Receiver<Delivery>,
    shutdown: &Shutdown,
) -> Ended {
    let Opened {
        welcome,
        outbox,
        mut inbox,
        ..
    } = opened;
    let now = clock::boot();
    let mut talk = Talk {
        context,
        outbox,
        beats: welcome.beats(now, draw()),
        reported: None,
        reported_policy: String::new(),
        since: now,
        reported_fresh: false,
        reported_count: false,
        next_report: now,
        waiting: BTreeMap::new(),
    };
    // Others that wait are rechecks too.
    let _ = context.orders.try_send(Order::Recheck(Vec::new()));
    let mut results = context.results.clone();
    let mut announced = context.announced.clone();
    let mut policy = context.policy.subscribe();
    let mut counts = context.sessions.clone();
    let stop = shutdown.requested();
    tokio::pin!(stop);
    let mut pulse = Pulse::new(MAX_SLEEP);
    let _ = pulse.turn(now, clock::awake());
    loop {
        context.mark.turn();
        let nap = talk.tell_what_is_due();
        let event = tokio::select! {
            () = &mut stop => Event::Stop,
            message = inbox.message() => Event::Message(message),
            Some(delivery) = deliveries.recv() => Event::Deliver(delivery),
            Ok(()) = results.changed() => Event::Tick,
            Ok(()) = announced.changed() => Event::Tick,
            Ok(()) = policy.changed() => Event::Tick,
            Ok(()) = counts.changed() => Event::Tick,
            () = sleep(nap) => Event::Tick,
        };
        // Before anything else: what waited in a session that was slept through is of no use.
        let gap = pulse.turn(clock::boot(), clock::awake());
        if gap.total > welcome.lease {
            return Ended::Slept(gap.total);
        }
        let ended = match event {
            Event::Tick => None,
            Event::Stop => {
                talk.say_goodbye(&mut inbox).await;
                Some(Ended::Stopped)
            }
            Event::Message(Err(status)) => Some(Ended::Status(Box::new(status), true)),
            Event::Message(Ok(None)) => Some(Ended::Closed(true)),
            Event::Message(Ok(Some(message))) => talk.handle_message(message),
            Event::Deliver(delivery) => {
                talk.handle_delivery(delivery);
                None
            }
        };
        if let Some(ended) = ended {
            return ended;
        }
    }
}

impl Talk<'_> {
    /// Sends the report and the beat that are due, and says how long nothing more is.
    fn tell_what_is_due(&mut self) -> Duration {
        let now = clock::now();
        let board = self.context.board();
        let fresh = board.results.all_begun_since(self.since);
        let mut owes = self.reported != Some(board.state_hash(now))
            || self.reported_policy != board.policy.revision
            || fresh && !self.reported_fresh
            || board.sessions.active.is_some() && !self.reported_count;
        if owes
            && self.next_report <= now.mono
            && let Ok(slot) = self.outbox.try_reserve()
        {
            let report = board.report(self.beats.next_sequence(), now);
            self.reported = Some(report.state_hash);
            self.reported_policy.clone_from(&board.policy.revision);
            self.reported_fresh |= fresh;
            self.reported_count = board.sessions.active.is_some();
            self.next_report = now.mono + REPORT_GAP;
            owes = false;
            slot.send(message(Body::Report(report.into())));
        }
        if self.beats.due() <= now.mono
            && let Ok(slot) = self.outbox.try_reserve()
        {
            let beat = board.beat(self.beats.next_sequence(), now);
            self.beats.handle_sent(now.mono, draw());
            slot.send(message(Body::Beat(beat.into())));
        }
        let mut next = self.beats.due();
        if owes {
            next = next.min(self.next_report);
        }
        if let Some(stale) = board.results.next_stale(now.mono) {
            next = next.min(stale);
        }
        let nap = next.since(now.mono).min(MAX_SLEEP);
        // What a full outbox did not take is tried again soon, not at once.
        if self.outbox.capacity() == 0 {
            nap.max(REPORT_GAP)
        } else {
            nap
        }
    }

    fn handle_message(&mut self, message: BrokerMessage) -> Option<Ended> {
        match message.body {
            Some(broker_message::Body::Ack(ack)) => {
                self.handle_ack(ack);
                None
            }
            Some(broker_message::Body::Resync(resync)) => {
                tracing::info!(why = resync.reason, "the broker asks for a full report");
                self.reported = None;
                None
            }
            Some(broker_message::Body::Directive(directive)) => self.handle_directive(directive),
            Some(broker_message::Body::Welcome(_)) => {
                Some(Ended::Contract("it says Welcome twice".to_owned()))
            }
            // A word of a newer broker.
            None => None,
        }
    }

    fn handle_ack(&mut self, ack: v1::Ack) {
        match ack.of {
            Some(ack::Of::LeavingId(id) | ack::Of::UpgradeProgressId(id)) => {
                if let Some(waiting) = self.waiting.remove(&id) {
                    // Whoever waited may have given up.
                    let _ = waiting.send(());
                }
            }
            Some(ack::Of::ReportSequence(_)) | None => {}
        }
    }

    fn handle_directive(&mut self, directive: v1::Directive) -> Option<Ended> {
        match directive.action {
            Some(directive::Action::Recheck(recheck)) => {
                let names = recheck
                    .checks
                    .iter()
                    .filter_map(|name| CheckName::new(name).ok());
                let order = Order::Recheck(names.take(muster_core::model::MAX_CHECKS).collect());
                if self.context.orders.try_send(order).is_err() {
                    tracing::warn!("a recheck is left out: others are waiting");
                }
                None
            }
            Some(directive::Action::ApplyPolicy(policy)) => {
                self.context.apply_policy(Some(policy));
                None
            }
            Some(directive::Action::Reconnect(reconnect)) => Some(Ended::SentAway {
                within: muster_proto::border::duration(reconnect.within_ms),
                endpoints: reconnect
                    .endpoints
                    .iter()
                    .take(16)
                    .map(|e| e.as_str().into())
                    .collect(),
            }),
            Some(directive::Action::Upgrade(_)) => {
                tracing::warn!("asked to upgrade, which this version does not do by itself");
                None
            }
            // A directive of a newer broker.
            None => None,
        }
    }

    fn handle_delivery(&mut self, delivery: Delivery) {
        // Words whose senders have given up make room.
        self.waiting.retain(|_, waiting| !waiting.is_closed());
        if self.waiting.len() >= MAX_DELIVERIES {
            return;
        }
        let id = new_id();
        let body = match delivery.word {
            Word::Power(power) => leaving(&id, power),
            Word::Upgrade(upgrade) => Body::UpgradeProgress(v1::UpgradeProgress {
                id: id.clone(),
                upgrade: Some((&upgrade).into()),
            }),
        };
        if self.outbox.try_send(message(body)).is_ok() {
            self.waiting.insert(id, delivery.acknowledged);
        }
    }

    /// Says goodbye and waits for its acknowledgement, not for ever.
    async fn say_goodbye(&mut self, inbox: &mut Streaming<BrokerMessage>) {
        let power = last_power(self.context).await;
        let id = new_id();
        let said = timeout(GOODBYE_WITHIN, async {
            let body = leaving(&id, power);
            if self.outbox.send(message(body)).await.is_err() {
                return false;
            }
            while let Ok(Some(received)) = inbox.message().await {
                if let Some(broker_message::Body::Ack(ack)) = received.body {
                    if ack.of == Some(ack::Of::LeavingId(id.clone())) {
                        return true;
                    }
                    self.handle_ack(ack);
                }
            }
            false
        })
        .await;
        match said {
            Ok(true) => tracing::info!("said goodbye"),
            Ok(false) | Err(_) => tracing::warn!("the broker did not acknowledge the goodbye"),
        }
    }
}

fn message(body: Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

fn leaving(id: &str, power: PowerAnnouncement) -> Body {
    Body::Leaving(v1::Leaving {
        id: id.to_owned(),
        power: Some(power.into()),
    })
}

/// How the host leaves when this process is told to end: as announced, or as the system manager
/// says, else the agent alone.
async fn last_power(context: &Context) -> PowerAnnouncement {
    let announced = context.announced.borrow().power(clock::now().wall);
    if let PowerAnnouncement::Leaving { how, .. } = announced
        && matches!(how, Leave::Poweroff | Leave::Reboot | Leave::Suspend)
    {
        return announced;
    }
    let stopping = timeout(STOPPING_WITHIN, platform::power::system_is_stopping()).await;
    PowerAnnouncement::Leaving {
        how: stopping.ok().flatten().unwrap_or(Leave::AgentStop),
        back_within: None,
    }
}
