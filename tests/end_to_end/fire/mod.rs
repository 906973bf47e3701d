//! The shell under fire: the real broker and real processes under what networks, kernels, disks and
//! copies do to them, judged by a front end from outside.
//!
//! | file | what goes wrong |
//! | --- | --- |
//! | `network` | black holes, lost packets, slow and half-open lines |
//! | `stalls` | processes that are stopped, killed, or crash again and again |
//! | `disk` | a full disk |
//! | `probes` | machines that die, and ways to them that only look so |
//! | `mass_loss` | many at once |
//! | `clones` | copies of a machine, and machines that come and go |
//! | `outcomes` | what front ends say that they met |
//! | `limits` | who asks for too much |

mod clones;
mod disk;
mod judge;
mod limits;
mod mass_loss;
mod network;
mod outcomes;
mod probes;
mod stalls;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{BrokerStatus, GetBrokerStatusRequest, Hello, Verdict};
use muster_tests::{
    agent::Agent,
    broker::{Broker, Settings},
    clients::Credentials,
    fleet::{LightAgent, ListenerKind, Speaks, Traits},
    process::Process,
    session::Session,
    targets::Target,
    wait,
};
use tonic::Status;

use self::judge::Judge;

/// Port of the session listeners of light agents, beyond those that the system gives away.
const PORT: u16 = 7022;

/// A lease of 3 s: short beside a test's patience, long beside what a busy machine delays.
fn quick() -> Settings {
    Settings {
        interval: Duration::from_millis(300),
        lease_beats: 3,
        lease_grace: Duration::from_millis(2100),
        reconnect_window: Duration::from_secs(2),
        more: String::new(),
    }
}

/// A lease that no test sees the end of: what is told before it was told for another reason.
fn long_lease() -> Settings {
    Settings {
        lease_grace: Duration::from_secs(60),
        ..quick()
    }
}

/// The session listener of a light agent.
const LISTENER: Option<ListenerKind> = Some(ListenerKind {
    speaks: Speaks::Ssh,
    port: PORT,
});

/// A light agent at this address, with a session listener.
fn with_listener(address: IpAddr) -> Traits {
    Traits {
        address: Some(address),
        listener: LISTENER,
        ..Traits::default()
    }
}

/// A block of loopback addresses of the test's own.
struct Block([u8; 2]);

impl Block {
    fn new() -> Self {
        // Brokers of tests are anywhere in 127/8, on ports that the system gives away.
        Self(rand::random())
    }

    fn address(&self, number: u8) -> IpAddr {
        let Self([a, b]) = self;
        Ipv4Addr::new(127, *a, *b, number.clamp(1, 254)).into()
    }
}

/// Enrols a host and starts a light agent for it, which has reported.
async fn light(broker: &Broker, pool: &str, name: &str, traits: Traits) -> Result<LightAgent> {
    let token = broker.token(pool, Some(name), 1).await?;
    let enrolled = broker.way_in().enrol(&token, name).await?;
    let agent = LightAgent::start_with(enrolled, traits)?;
    agent.reported().await?;
    Ok(agent)
}

/// Opens a session by hand.
async fn knock(host: &Credentials, hello: &Hello) -> Result<Session, Status> {
    let channel = host.connect().await;
    let channel = channel.map_err(|error| Status::unknown(format!("{error:#}")))?;
    let (session, _) = Session::hello(channel, hello.clone()).await?;
    Ok(session)
}

/// So many light agents `PREFIX-1`... with session listeners at addresses of a block.
async fn lights(
    broker: &Broker,
    pool: &str,
    prefix: &str,
    block: &Block,
    count: u8,
) -> Result<Vec<LightAgent>> {
    let mut agents = Vec::new();
    for number in 1..=count {
        let traits = with_listener(block.address(number));
        agents.push(light(broker, pool, &format!("{prefix}-{number}"), traits).await?);
    }
    Ok(agents)
}

/// Has the broker probe the hosts of a pool in these networks.
async fn let_probe(broker: &Broker, pool: &str, networks: &str, ports: &str) -> Result<()> {
    let file = broker.folder().path().join("probe.toml");
    let text = format!("[probe]\nenabled = true\nnetworks = [{networks}]\nports = [{ports}]\n");
    fs::write(&file, text)?;
    let file = file.to_str().context("a path in UTF-8")?;
    let set = broker.cli(&["pool", "set", pool, file]).await?;
    ensure!(set.code == Some(0), "{set:?}");
    Ok(())
}

/// The broker's own state.
async fn state(broker: &Broker) -> Result<BrokerStatus> {
    let request = GetBrokerStatusRequest {};
    let answer = broker.operator().await?.get_broker_status(request).await?;
    answer.into_inner().status.context("no state")
}

/// Waits until the broker's own state is as wanted.
async fn state_until(
    broker: &Broker,
    what: &str,
    wanted: impl Fn(&BrokerStatus) -> bool,
) -> Result<BrokerStatus> {
    let wanted = &wanted;
    wait::until(what, wait::PATIENCE, || async move {
        let state = state(broker).await?;
        ensure!(wanted(&state), "{state:#?}");
        Ok(state)
    })
    .await
}

/// Waits until a dial could convict so many hosts.
async fn calibrated(broker: &Broker, count: u64) -> Result<()> {
    let found = |state: &BrokerStatus| state.probes.is_some_and(|it| it.calibrated == count);
    let what = format!("{count} hosts to be calibrated");
    state_until(broker, &what, found).await.map(drop)
}

/// What `muster-broker status` prints.
async fn status_text(broker: &Broker) -> Result<String> {
    let output = broker.cli(&["status"]).await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(output.stdout)
}

/// Asserts that a verdict has a reason, and gives its evidence.
fn evidence(verdict: &Verdict, code: &str) -> Result<String> {
    let reason = verdict.reasons.iter().find(|reason| reason.code == code);
    let reason = reason
        .with_context(|| format!("no {code}: {}", muster_tests::broker::describe(verdict)))?;
    Ok(reason.evidence.join("\n"))
}

/// A real agent on this machine, whose session listener belongs to the test.
struct Desk {
    agent: Agent,
    process: Process,
    listener: Target,
}

impl Desk {
    /// Enrols it and waits until it is connectable.
    async fn start(broker: &Broker, name: &str) -> Result<Self> {
        let listener = Target::listener().await?;
        // No check of what the test does to it: a broken listener is for the broker to find.
        let checks = format!(
            "[check.session_listener]\ninterval = \"60s\"\n{}",
            listener.as_session_listener()
        );
        let agent = Agent::new(broker.folder().path(), name, &checks)?;
        let token = broker.token("default", Some(name), 1).await?;
        agent.enrol(&broker.endpoints.grpc, &token).await?;
        let process = agent.run()?;
        broker
            .verdict_until(name, "connectable", |verdict| verdict.connectable_new)
            .await?;
        Ok(Self {
            agent,
            process,
            listener,
        })
    }
}

/// Waits until every agent has beaten so many times more.
async fn beats(agents: &[LightAgent], more: u64) -> Result<()> {
    let before: Vec<u64> = agents.iter().map(|agent| agent.state().beats).collect();
    for (agent, before) in agents.iter().zip(before) {
        agent
            .until("more beats", |state| state.beats >= before + more)
            .await?;
    }
    Ok(())
}

/// How old the last beat was when this was said.
fn age(verdict: &Verdict) -> Result<Duration> {
    let age = verdict.last_beat_age_ms.context("no beat is known")?;
    Ok(Duration::from_millis(age))
}

/// Is this verdict's host lost?
fn is_lost(verdict: &Verdict) -> bool {
    !verdict.connectable_reconnect
}

/// Is this verdict's host well?
fn is_well(verdict: &Verdict) -> bool {
    verdict.connectable_new
}
