//! A share of the swarm: the light agents that live in one process.
//!
//! One worker lives in the process that was started; more are children of it that take orders from
//! their standard input and answer on their standard output, a line of JSON each.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use muster_runtime::clock;
use muster_tests::fleet::{LightAgent, ListenerKind, Manner, Speaks, Traits};
use serde::{Deserialize, Serialize};
use tokio::{task::JoinHandle, time::MissedTickBehavior};

use crate::identities::Identities;

/// Between two portions of agents that are started.
const PORTION: Duration = Duration::from_millis(50);

/// What a worker is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Starts the agents with these numbers.
    Start(Start),
    /// Tells how things stand.
    Totals,
    /// Closes the sockets of these agents as a killed process's are.
    Kill(Vec<usize>),
    /// These agents hang: all stays open and nothing is said.
    Freeze(Vec<usize>),
    /// All connections break, and all agents connect again at once.
    BreakAll,
    /// All agents end.
    Clear,
}

/// Which agents are started, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// The file of identities.
    pub(crate) identities: PathBuf,
    /// Number of the first agent.
    pub(crate) first: usize,
    /// Number after the last agent.
    pub(crate) end: usize,
    /// The server, `host:port`.
    pub(crate) endpoint: String,
    /// How many are started in a second.
    pub(crate) per_second: u32,
    /// Address of agent 0; the others follow.
    pub(crate) addresses: Ipv4Addr,
    /// Port of the session listeners; none for no listeners.
    pub(crate) listeners: Option<u16>,
    /// They speak SSH and not RDP.
    pub(crate) ssh: bool,
}

/// What a worker answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// How things stand.
    Totals(Totals),
    /// When each agent was harmed, as [`now`] tells it.
    Harmed(Vec<(usize, u64)>),
    /// It could not be done.
    Failed(String),
}

/// How things stand with some agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Agents that were started and not killed.
    pub(crate) agents: u64,
    /// Of them, those whose report is acknowledged in the present session.
    pub(crate) reported: u64,
    /// Sessions there have been.
    pub(crate) sessions: u64,
    /// Beats sent.
    pub(crate) beats: u64,
    /// When the last report was acknowledged, as [`now`] tells it.
    pub(crate) last_reported: u64,
    /// Last refusals of agents that have no session, some of them.
    pub(crate) refusals: Vec<String>,
}

impl Totals {
    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.agents += other.agents;
        self.reported += other.reported;
        self.sessions += other.sessions;
        self.beats += other.beats;
        self.last_reported = self.last_reported.max(other.last_reported);
        self.refusals.extend(other.refusals);
        self.refusals.truncate(REFUSALS);
        self
    }
}

/// Refusals that are shown: the rest say the same.
const REFUSALS: usize = 3;

/// The clock that all processes of the swarm share, in nanoseconds.
pub(crate) fn now() -> u64 {
    nanos(clock::awake())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The agents of one process.
#[derive(Default)]
pub(crate) struct Worker {
    agents: Arc<Mutex<BTreeMap<usize, LightAgent>>>,
    /// Of agents that are gone.
    gone: Totals,
    starting: Option<JoinHandle<Result<()>>>,
}

impl Worker {
    /// Carries out an order.
    pub(crate) async fn handle(&mut self, order: Order) -> Answer {
        let result = match order {
            Order::Start(start) => {
                self.start(start);
                Ok(Answer::Done)
            }
            Order::Totals => self.totals().await.map(Answer::Totals),
            Order::Kill(numbers) => Ok(Answer::Harmed(self.kill(&numbers).await)),
            Order::Freeze(numbers) => Ok(Answer::Harmed(self.freeze(&numbers))),
            Order::BreakAll => {
                self.all().values().for_each(LightAgent::break_wire);
                Ok(Answer::Done)
            }
            Order::Clear => {
                self.clear().await;
                Ok(Answer::Done)
            }
        };
        result.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<usize, LightAgent>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&mut self, start: Start) {
        let agents = Arc::clone(&self.agents);
        self.starting = Some(tokio::spawn(start_all(start, agents)));
    }

    async fn totals(&mut self) -> Result<Totals> {
        if self.starting.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(starting) = self.starting.take()
        {
            starting.await.context("starting agents panicked")??;
        }
        let mut totals = self.gone.clone();
        for agent in self.all().values() {
            add(&mut totals, agent);
        }
        Ok(totals)
    }

    async fn kill(&mut self, numbers: &[usize]) -> Vec<(usize, u64)> {
        let mut killed = Vec::with_capacity(numbers.len());
        for number in numbers {
            let agent = self.all().remove(number);
            if let Some(agent) = agent {
                self.count_gone(&agent);
                killed.push((*number, now()));
                agent.kill().await;
            }
        }
        killed
    }

    fn freeze(&self, numbers: &[usize]) -> Vec<(usize, u64)> {
        let agents = self.all();
        let found = numbers
            .iter()
            .filter_map(|number| Some((number, agents.get(number)?)));
        found
            .map(|(number, agent)| {
                let at = now();
                agent.freeze();
                (*number, at)
            })
            .collect()
    }

    fn count_gone(&mut self, agent: &LightAgent) {
        let state = agent.state();
        self.gone.beats += state.beats;
        self.gone.sessions += state.sessions;
    }

    async fn clear(&mut self) {
        if let Some(starting) = self.starting.take() {
            starting.abort();
            // An aborted task gives an error, which is what was asked for.
            drop(starting.await);
        }
        let agents = std::mem::take(&mut *self.all());
        for agent in agents.into_values() {
            agent.kill().await;
        }
        self.gone = Totals::default();
    }
}

fn add(totals: &mut Totals, agent: &LightAgent) {
    let state = agent.state();
    totals.agents += 1;
    totals.beats += state.beats;
    totals.sessions += state.sessions;
    if state.reported {
        totals.reported += 1;
    } else if totals.refusals.len() < REFUSALS {
        let refused = state.refused.map(|status| status.message().to_owned());
        totals.refusals.extend(refused);
    }
    if let Some(at) = state.reported_at {
        let ago = nanos(at.elapsed());
        totals.last_reported = totals.last_reported.max(now().saturating_sub(ago));
    }
}

async fn start_all(start: Start, agents: Arc<Mutex<BTreeMap<usize, LightAgent>>>) -> Result<()> {
    let identities = Identities::at(start.identities.clone());
    let numbers = start.first..start.end;
    // Keys and certificates are parsed by the thousand: not where others wait.
    let endpoint = start.endpoint.clone();
    let loaded = tokio::task::spawn_blocking(move || identities.load(numbers, &endpoint));
    let mut waiting = (start.first..).zip(loaded.await??);
    let portion = f64::from(start.per_second) * PORTION.as_secs_f64();
    let mut ticks = tokio::time::interval(PORTION);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due = 0.0;
    loop {
        ticks.tick().await;
        due += portion;
        while due >= 1.0 {
            due -= 1.0;
            let Some((number, credentials)) = waiting.next() else {
                return Ok(());
            };
            let agent = LightAgent::start_with(credentials, traits(&start, number)?)?;
            let mut agents = agents.lock().unwrap_or_else(PoisonError::into_inner);
            agents.insert(number, agent);
        }
    }
}

fn traits(start: &Start, number: usize) -> Result<Traits> {
    let speaks = if start.ssh { Speaks::Ssh } else { Speaks::Rdp };
    Ok(Traits {
        address: Some(address(start.addresses, number)?),
        listener: start.listeners.map(|port| ListenerKind { speaks, port }),
        manner: Manner::AsAgents,
        ..Traits::default()
    })
}

/// The address of the host with this number.
pub(crate) fn address(first: Ipv4Addr, number: usize) -> Result<IpAddr> {
    let bits = first.to_bits().checked_add(u32::try_from(number)?);
    Ok(Ipv4Addr::from_bits(bits.context("no more addresses")?).into())
}

/// A child: orders in, answers out, until the parent closes the pipe or ends.
pub(crate) async fn serve_parent() -> Result<()> {
    let mut worker = Worker::default();
    loop {
        // The standard input of a child is a pipe: reading it blocks a thread.
        let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await?;
        let Some(line) = line else {
            return Ok(());
        };
        let order: Order = serde_json::from_str(&line?).context("not an order")?;
        let mut answer = serde_json::to_vec(&worker.handle(order).await)?;
        answer.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&answer)?;
        out.flush()?;
    }
}
