//! Fleets of light agents inside one process: real enrolment, certificates and streams over mTLS,
//! no checks. What a test or a load generator wants a thousand hosts for.
//!
//! A light agent is one task. It connects, says Hello, reports, beats at the interval that Welcome
//! dictates, and connects again when its stream ends, until it is killed, silenced or told to leave.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{
    CheckOutcome, PowerKind, Report, UpgradeState, agent_message::Body, broker_message,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tonic::Status;

use crate::{
    broker::Broker,
    clients::Credentials,
    session::{Session, plain_hello, plain_report},
    wait,
};

/// Between two tries to connect: short, because tests wait for it; agents proper back off.
const RECONNECT_AFTER: Duration = Duration::from_millis(50);

/// Orders under way to a light agent: a test gives one and waits for its end.
const ORDERS: usize = 4;

/// Enrolments at once: enough to keep two cores busy with keys and signatures.
const ENROLMENTS: usize = 8;

/// What a light agent shows of itself.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its full report is acknowledged in the present session.
    pub reported: bool,
    /// Epoch of the last session.
    pub epoch: u64,
    /// Sessions there have been.
    pub sessions: u64,
    /// Beats sent in all.
    pub beats: u64,
    /// The last refusal.
    pub refused: Option<Status>,
}

enum Order {
    Report(Box<Report>, oneshot::Sender<Result<()>>),
    Leave(PowerKind, oneshot::Sender<Result<()>>),
    Upgrade(UpgradeState, oneshot::Sender<Result<()>>),
    /// Keeps the stream open and says nothing more.
    Silence,
    /// Drops the connection and connects again.
    Reconnect,
}

/// One light agent.
#[derive(Debug)]
pub struct LightAgent {
    /// Name of the host.
    pub name: String,
    /// Id of the host.
    pub host_id: String,
    /// What it proves itself with.
    pub credentials: Credentials,
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
}

/// Many light agents.
#[derive(Debug)]
pub struct Fleet {
    /// The agents, by number.
    pub agents: Vec<LightAgent>,
}

impl Fleet {
    /// Enrols `count` hosts `PREFIX-0`, `PREFIX-1`... in `pool`, starts them and waits until each
    /// has reported that all is well.
    ///
    /// # Errors
    /// When one cannot enrol or report.
    pub async fn start(broker: &Broker, pool: &str, prefix: &str, count: u32) -> Result<Self> {
        let token = broker.token(pool, None, count).await?;
        let mut agents = Vec::new();
        let mut next = 0;
        while next < count {
            let batch = (next..count).take(ENROLMENTS).map(|number| {
                let name = format!("{prefix}-{number}");
                let (broker, token) = (broker.way_in(), token.clone());
                tokio::spawn(async move { broker.enrol(&token, &name).await })
            });
            for enrolment in batch.collect::<Vec<_>>() {
                let enrolled = enrolment.await.context("an enrolment panicked")??;
                agents.push(LightAgent::start(enrolled));
                next += 1;
            }
        }
        let fleet = Self { agents };
        for agent in &fleet.agents {
            agent.reported().await?;
        }
        Ok(fleet)
    }

    /// Names of all hosts.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.agents.iter().map(|agent| agent.name.clone()).collect()
    }
}

impl LightAgent {
    /// Starts an agent for an enrolled host.
    #[must_use]
    pub fn start(credentials: Credentials) -> Self {
        let (orders, order_rx) = mpsc::channel(ORDERS);
        let (state_tx, state) = watch::channel(State::default());
        let runner = Runner {
            credentials: credentials.clone(),
            boot_id: uuid::Uuid::from_u128(rand::random()).to_string(),
            report: plain_report(&[]),
            orders: order_rx,
            state: state_tx,
        };
        Self {
            name: credentials.name.clone(),
            host_id: credentials.host_id.clone(),
            credentials,
            orders,
            state,
            task: tokio::spawn(runner.run()),
        }
    }

    /// What it shows of itself now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until its report is acknowledged in a session that is open.
    ///
    /// # Errors
    /// When that does not come in time, with the last refusal.
    pub async fn reported(&self) -> Result<State> {
        self.until("its report to be acknowledged", |state| state.reported)
            .await
    }

    /// Waits until it shows what is wanted of it.
    ///
    /// # Errors
    /// When that does not come in time.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&State) -> bool) -> Result<State> {
        let mut state = self.state.clone();
        let found = wait::within(what, wait::PATIENCE, state.wait_for(wanted))
            .await
            .map(|found| found.map(|found| found.clone()));
        match found {
            Ok(found) => found.with_context(|| format!("{} has ended", self.name)),
            Err(error) => Err(error.context(format!("{}: {:?}", self.name, self.state()))),
        }
    }

    /// Reports these outcomes and Pass for all others.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn report(&self, differing: &[(&str, CheckOutcome)]) -> Result<()> {
        let report = Box::new(plain_report(differing));
        self.order(|done| Order::Report(report, done)).await
    }

    /// Announces how the host leaves and waits until that is durable. The stream stays open.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn leave(&self, kind: PowerKind) -> Result<()> {
        self.order(|done| Order::Leave(kind, done)).await
    }

    /// Tells how far an upgrade is and waits until that is durable.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn upgrade(&self, upgrade: UpgradeState) -> Result<()> {
        self.order(|done| Order::Upgrade(upgrade, done)).await
    }

    /// Keeps the stream open and says nothing more.
    ///
    /// # Errors
    /// When the agent has ended.
    pub async fn silence(&self) -> Result<()> {
        self.orders
            .send(Order::Silence)
            .await
            .context("the agent has ended")
    }

    /// Drops the connection without a word and connects again.
    ///
    /// # Errors
    /// When the agent has ended, or is not back in time.
    pub async fn break_stream(&self) -> Result<State> {
        let before = self.state().sessions;
        self.orders
            .send(Order::Reconnect)
            .await
            .context("the agent has ended")?;
        self.until("a new session", |state| {
            state.sessions > before && state.reported
        })
        .await
    }

    /// Drops the connection without a word, for ever: a machine that died.
    pub async fn kill(self) {
        self.task.abort();
        // An aborted task gives an error, which is what was asked for.
        drop(self.task.await);
    }

    async fn order(&self, order: impl FnOnce(oneshot::Sender<Result<()>>) -> Order) -> Result<()> {
        let (done, answer) = oneshot::channel();
        ensure!(
            self.orders.send(order(done)).await.is_ok(),
            "{} has ended",
            self.name
        );
        wait::within("an order to be carried out", wait::PATIENCE, answer)
            .await?
            .context("the session ended meanwhile")?
    }
}

struct Runner {
    credentials: Credentials,
    boot_id: String,
    report: Report,
    orders: mpsc::Receiver<Order>,
    state: watch::Sender<State>,
}

enum Event {
    Beat,
    Order(Option<Box<Order>>),
    Word(Box<Result<broker_message::Body, Status>>),
}

impl Runner {
    async fn run(mut self) {
        loop {
            let ended = self.session().await;
            self.state.send_modify(|state| {
                state.reported = false;
                if let Err(status) = ended {
                    state.refused = Some(status);
                }
            });
            if self.orders.is_closed() {
                return;
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    /// One session, to its end.
    async fn session(&mut self) -> Result<(), Status> {
        let channel = self.credentials.connect().await.map_err(failed)?;
        let hello = plain_hello(&self.boot_id);
        let (mut session, welcome) = Session::hello(channel, hello).await?;
        self.state.send_modify(|state| {
            state.epoch = welcome.epoch;
            state.sessions += 1;
        });
        session.report(self.report.clone()).await.map_err(failed)?;
        self.state.send_modify(|state| state.reported = true);

        let pace = Duration::from_millis(welcome.interval_ms.max(1));
        // The first beat at random within the interval, so that a fleet does not beat in step.
        let first = pace.mul_f64(rand::random::<f64>());
        let mut beats = interval_at(Instant::now() + first, pace.mul_f64(13.0 / 14.0));
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
                Event::Order(None) => return Ok(()),
                Event::Order(Some(order)) => match *order {
                    Order::Reconnect => return Ok(()),
                    Order::Silence => silent = true,
                    order => self.carry_out(&mut session, order).await,
                },
                Event::Word(word) => self.handle_word(&mut session, (*word)?).await?,
            }
        }
    }

    async fn carry_out(&mut self, session: &mut Session, order: Order) {
        let (result, done) = match order {
            Order::Report(report, done) => {
                self.report = *report;
                (session.report(self.report.clone()).await, done)
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

    async fn handle_word(
        &self,
        session: &mut Session,
        word: broker_message::Body,
    ) -> Result<(), Status> {
        match word {
            broker_message::Body::Resync(_) => {
                session.report(self.report.clone()).await.map_err(failed)
            }
            // A light agent has one policy and performs no directives.
            broker_message::Body::Welcome(_)
            | broker_message::Body::Ack(_)
            | broker_message::Body::Directive(_) => Ok(()),
        }
    }
}

/// Keeps a refusal's code and details if the error is one.
fn failed(error: anyhow::Error) -> Status {
    match error.downcast::<Status>() {
        Ok(status) => status,
        Err(error) => Status::unavailable(format!("{error:#}")),
    }
}
