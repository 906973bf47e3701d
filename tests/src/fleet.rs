//! Fleets of light agents inside one process: real enrolment, certificates and streams over mTLS,
//! no checks. What a test or a load generator wants a thousand hosts for.
//!
//! A light agent is one task. It connects, says Hello, reports, beats at the interval that Welcome
//! dictates, and connects again when its stream ends, until it is killed, silenced or told to leave.

mod listener;
mod runner;
mod wire;

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{CheckOutcome, PowerKind, UpgradeState};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tonic::Status;

pub use self::listener::{ListenerKind, SessionListener, Speaks};
use self::{
    runner::{CurrentWire, Done, Order, Runner},
    wire::Wire,
};
use crate::{
    broker::Broker,
    clients::Credentials,
    session::{plain_hello, plain_report},
    wait,
};

/// Orders under way to a light agent: a test gives one and waits for its end.
const ORDERS: usize = 4;

/// Enrolments at once: enough to keep two cores busy with keys and signatures.
const ENROLMENTS: usize = 8;

/// What a light agent shows of itself.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its full report is acknowledged in the present session.
    pub reported: bool,
    /// When it last came to be so.
    pub reported_at: Option<Instant>,
    /// Epoch of the last session.
    pub epoch: u64,
    /// Sessions there have been.
    pub sessions: u64,
    /// Beats sent in all.
    pub beats: u64,
    /// The last refusal.
    pub refused: Option<Status>,
    /// Times that the broker sent it away by a directive.
    pub sent_away: u64,
}

/// How a light agent comes back when a session has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// At once, again and again: for tests that wait for it.
    #[default]
    Hurried,
    /// As agents proper do: spread at random, then with growing pauses.
    AsAgents,
}

/// What a light agent is like beside its identity.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traits {
    /// Address that it connects from and has its listener on; none for whatever the system takes.
    pub address: Option<IpAddr>,
    /// Its session listener; needs an address.
    pub listener: Option<ListenerKind>,
    /// Address that it names as its own; none for the one that it connects from.
    pub named: Option<IpAddr>,
    /// Its session listener is announced, and nobody listens.
    pub closed: bool,
    /// How it comes back.
    pub manner: Manner,
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
    wire: CurrentWire,
    listener: Option<SessionListener>,
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
        Self::launch(credentials, Traits::default(), None)
    }

    /// Starts an agent with traits of its own for an enrolled host.
    ///
    /// # Errors
    /// When its session listener cannot be opened.
    pub fn start_with(credentials: Credentials, traits: Traits) -> Result<Self> {
        let listener = match (traits.address, traits.listener) {
            (None, Some(_)) => anyhow::bail!("a session listener needs an address"),
            (Some(address), Some(kind)) if !traits.closed => {
                Some(SessionListener::open(address, kind)?)
            }
            (_, Some(_) | None) => None,
        };
        Ok(Self::launch(credentials, traits, listener))
    }

    fn launch(credentials: Credentials, traits: Traits, listener: Option<SessionListener>) -> Self {
        let (orders, order_rx) = mpsc::channel(ORDERS);
        let (state_tx, state) = watch::channel(State::default());
        let wire: CurrentWire = Arc::new(Mutex::new(Arc::new(Wire::default())));
        let mut report = plain_report(&[]);
        let mut hello = plain_hello(&uuid::Uuid::from_u128(rand::random()).to_string());
        if let Some(address) = traits.named.or(traits.address) {
            hello.addresses = vec![address.to_string()];
            if let Some(kind) = traits.listener {
                report.listeners = vec![kind.announced(address)];
            }
        }
        let runner = Runner {
            credentials: credentials.clone(),
            address: traits.address,
            manner: traits.manner,
            hello,
            report,
            orders: order_rx,
            state: state_tx,
            wire: Arc::clone(&wire),
        };
        Self {
            name: credentials.name.clone(),
            host_id: credentials.host_id.clone(),
            credentials,
            orders,
            state,
            wire,
            listener,
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

    /// Reports that all is well, and how many sessions are active; none where it does not know.
    ///
    /// # Errors
    /// When it is not acknowledged.
    pub async fn count_sessions(&self, active: Option<u32>) -> Result<()> {
        let mut report = plain_report(&[]);
        if let Some(sessions) = &mut report.sessions {
            sessions.active = active;
        }
        self.order(|done| Order::Report(Box::new(report), done))
            .await
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

    /// Breaks the connection and has it connect again at once, without waiting for that.
    pub fn break_wire(&self) {
        // An agent that is between two sessions has no connection to break.
        drop(self.orders.try_send(Order::Reconnect));
    }

    /// Keeps stream and listener open, but neither reads nor writes nor takes a connection from
    /// here on: a process that hangs.
    pub fn freeze(&self) {
        self.current_wire().freeze();
        if let Some(listener) = &self.listener {
            listener.freeze();
        }
    }

    /// Closes its session listener; the agent goes on.
    pub async fn close_listener(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.close().await;
        }
    }

    /// Closes its sockets without a word, for ever: a process that was killed.
    pub async fn kill(self) {
        self.current_wire().cut();
        self.task.abort();
        if let Some(listener) = self.listener {
            listener.close().await;
        }
        // An aborted task gives an error, which is what was asked for.
        drop(self.task.await);
        // It may have been about to connect.
        let wire = self.wire.lock().unwrap_or_else(PoisonError::into_inner);
        wire.cut();
    }

    fn current_wire(&self) -> Arc<Wire> {
        Arc::clone(&self.wire.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn order(&self, order: impl FnOnce(Done) -> Order) -> Result<()> {
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
