//! What a light agent does: one session after the other.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_core::agent::{Failure, Random, Reconnect};
use muster_proto::v1::{
    self, Ack, Hello, PowerKind, Report, UpgradeState, Welcome, ack, agent_message::Body,
    broker_message, directive,
};
use muster_runtime::refusal::Refusal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use tonic::Status;

use super::{
    Manner, State,
    wire::{Wire, dial},
};
use crate::{clients::Credentials, session::Session};

/// Between two tries of an agent in a hurry: short, because tests wait for it.
const RECONNECT_AFTER: Duration = Duration::from_millis(50);

/// Beats come a little early, on average: the jitter only shortens.
const BEAT_SHARE: f64 = 13.0 / 14.0;

/// What was asked of a light agent, with who waits for its end.
pub(super) type Done = oneshot::Sender<anyhow::Result<()>>;

/// What a light agent can be told to do.
pub(super) enum Order {
    Report(Box<Report>, Done),
    Leave(PowerKind, Done),
    Upgrade(UpgradeState, Done),
    /// Keeps the stream open and says nothing more.
    Silence,
    /// Drops the connection and connects again at once.
    Reconnect,
}

/// The wire in use, for whoever cuts it.
pub(super) type CurrentWire = Arc<Mutex<Arc<Wire>>>;

/// One light agent at work.
pub(super) struct Runner {
    pub(super) credentials: Credentials,
    pub(super) address: Option<IpAddr>,
    pub(super) manner: Manner,
    pub(super) hello: Hello,
    pub(super) report: Report,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) state: watch::Sender<State>,
    pub(super) wire: CurrentWire,
}

enum Event {
    Beat,
    Order(Option<Box<Order>>),
    Word(Box<Result<broker_message::Body, Status>>),
}

/// How a session ended.
enum Ended {
    /// It was told to connect again at once.
    Told,
    /// The broker sent it away, to come back within this time.
    SentAway(Duration),
    /// Nobody gives orders any more.
    Alone,
    Failed(Failure, Status),
}

impl Runner {
    pub(super) async fn run(mut self) {
        let endpoint = Arc::from(self.credentials.endpoint.as_str());
        let mut reconnect = Reconnect::new(vec![endpoint]);
        loop {
            let ended = self.session(&mut reconnect).await;
            self.state.send_modify(|state| state.reported = false);
            let wait = match ended {
                Ended::Alone => return,
                Ended::Told => Duration::ZERO,
                Ended::SentAway(within) => {
                    self.state.send_modify(|state| state.sent_away += 1);
                    within.mul_f64(rand::random())
                }
                Ended::Failed(failure, status) => {
                    self.state.send_modify(|state| state.refused = Some(status));
                    let next = reconnect.handle_failure(failure, Random(rand::random()));
                    match (self.manner, next) {
                        (Manner::AsAgents, Some(next)) => next.after,
                        _ => RECONNECT_AFTER,
                    }
                }
            };
            if self.orders.is_closed() {
                return;
            }
            sleep(wait).await;
        }
    }

    /// One session, to its end.
    async fn session(&mut self, reconnect: &mut Reconnect) -> Ended {
        let wire = Arc::new(Wire::default());
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&wire);
        let channel = match dial(&self.credentials, self.address, wire).await {
            Ok(channel) => channel,
            Err(error) => {
                let status = Status::unavailable(format!("{error:#}"));
                return Ended::Failed(Failure::Unreachable, status);
            }
        };
        let (mut session, welcome) = match Session::hello(channel, self.hello.clone()).await {
            Ok(opened) => opened,
            Err(status) => return Ended::Failed(refused(&status), status),
        };
        let millis = Duration::from_millis;
        reconnect.handle_welcome(
            millis(welcome.reconnect_spread_ms),
            millis(welcome.reconnect_cap_ms),
        );
        self.hello.resume_token = welcome.resume_token.clone();
        self.state.send_modify(|state| {
            state.epoch = welcome.epoch;
            state.sessions += 1;
        });
        match self.talk(&mut session, &welcome).await {
            Ok(ended) => ended,
            Err(status) => Ended::Failed(refused_or_lost(&status), status),
        }
    }

    async fn talk(&mut self, session: &mut Session, welcome: &Welcome) -> Result<Ended, Status> {
        let first = self.say_report(session).await?;
        let pace = Duration::from_millis(welcome.interval_ms.max(1));
        // The first beat at random within the interval, so that a fleet does not beat in step.
        let begin = Instant::now() + pace.mul_f64(rand::random::<f64>());
        let mut beats = interval_at(begin, pace.mul_f64(BEAT_SHARE));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = false;
        loop {
            let event = tokio::select! {
                _ = beats.tick() => Event::Beat,
                order = self.orders.recv() => Event::Order(order.map(Box::new)),
                word = session.next() => Event::Word(Box::new(word)),
            };
            match event {
                Event::Beat if silent => {}
                Event::Beat => {
                    let beat = session.beat(&self.report);
                    if session.say_if_free(Body::Beat(beat)) {
                        self.state.send_modify(|state| state.beats += 1);
                    }
                }
                Event::Order(None) => return Ok(Ended::Alone),
                Event::Order(Some(order)) => match *order {
                    Order::Reconnect => {
                        self.wire
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .cut();
                        return Ok(Ended::Told);
                    }
                    Order::Silence => silent = true,
                    order => self.carry_out(session, order).await,
                },
                Event::Word(word) => match (*word)? {
                    broker_message::Body::Ack(Ack {
                        of: Some(ack::Of::ReportSequence(of)),
                    }) if of >= first => self.note_reported(),
                    broker_message::Body::Resync(_) => {
                        self.say_report(session).await?;
                    }
                    broker_message::Body::Directive(v1::Directive {
                        action: Some(directive::Action::Reconnect(reconnect)),
                        ..
                    }) => return Ok(Ended::SentAway(Duration::from_millis(reconnect.within_ms))),
                    // A light agent has one policy and runs no checks.
                    broker_message::Body::Welcome(_)
                    | broker_message::Body::Ack(_)
                    | broker_message::Body::Directive(_) => {}
                },
            }
        }
    }

    fn note_reported(&self) {
        self.state.send_if_modified(|state| {
            let new = !state.reported;
            if new {
                state.reported = true;
                state.reported_at = Some(Instant::now());
            }
            new
        });
    }

    /// Sends the full report and gives its number. A slow answer ends no session.
    async fn say_report(&self, session: &mut Session) -> Result<u64, Status> {
        let sequence = session.next_sequence();
        let report = Report {
            sequence,
            ..self.report.clone()
        };
        session.say(Body::Report(report)).await.map_err(failed)?;
        Ok(sequence)
    }

    async fn carry_out(&mut self, session: &mut Session, order: Order) {
        let (result, done) = match order {
            Order::Report(report, done) => {
                self.report = *report;
                let result = session.report(self.report.clone()).await;
                if result.is_ok() {
                    self.note_reported();
                }
                (result, done)
            }
            Order::Leave(kind, done) => {
                self.report.power = Some(crate::session::power(kind));
                (session.leave(kind).await, done)
            }
            Order::Upgrade(upgrade, done) => {
                self.report.upgrade = Some(upgrade.clone());
                (session.upgrade(upgrade).await, done)
            }
            Order::Silence | Order::Reconnect => return,
        };
        // Who gave the order may have given up waiting.
        drop(done.send(result));
    }
}

fn refused(status: &Status) -> Failure {
    match Refusal::from_status(status) {
        Some(refusal) => Failure::Refused(refusal.retry_after),
        None => Failure::Unreachable,
    }
}

fn refused_or_lost(status: &Status) -> Failure {
    match Refusal::from_status(status).and_then(|refusal| refusal.retry_after) {
        Some(after) => Failure::Refused(Some(after)),
        None => Failure::Lost,
    }
}

/// Keeps a refusal's code and details if the error is one.
fn failed(error: anyhow::Error) -> Status {
    match error.downcast::<Status>() {
        Ok(status) => status,
        Err(error) => Status::unavailable(format!("{error:#}")),
    }
}
