//! Processes that are stuck, stopped or woken: the first ends itself, the others go on.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_proto::v1::{HostStatus, Verdict};
use muster_runtime::watchdog::WEDGED;
use muster_tests::{
    agent::Agent,
    binaries::repository,
    broker::{Broker, Folder, Settings, describe},
    process::{Process, Signal},
    targets::Target,
    wait,
};
use tokio::process::Command;

/// The agent's loops are called stuck after 30 s without a turn.
const AGENT_ENDS_WITHIN: Duration = Duration::from_secs(60);

/// The same command, run by a program that stops all of its threads but the watchdog at SIGUSR1.
fn freezable(command: &Command) -> Command {
    let inner = command.as_std();
    let mut outer = Command::new("python3");
    outer
        .arg(repository().join("tests/python/freeze.py"))
        .arg("watchdog")
        .arg(inner.get_program())
        .args(inner.get_args());
    if let Some(folder) = inner.get_current_dir() {
        outer.current_dir(folder);
    }
    outer
}

async fn is_up(process: &Process, line: &str) -> Result<()> {
    wait::until(line, wait::PATIENCE, || async {
        let log = process.log()?;
        ensure!(log.contains(line), "{log}");
        Ok(())
    })
    .await
}

fn ended_itself(process: &Process, code: Option<i32>, stuck: &str) -> Result<()> {
    ensure!(code == Some(WEDGED), "ended with {code:?}");
    let log = process.log()?;
    ensure!(
        log.contains("a part of this process is stuck") && log.contains(stuck),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_broker_whose_ticker_is_stuck_ends_itself_with_a_code_of_its_own() -> Result<()> {
    let folder = Folder::temporary()?;
    folder.write_config(&Settings::default(), "127.0.0.1:0", "127.0.0.1:0")?;
    let command = freezable(&folder.command(&["serve"])?);
    let mut process = Process::spawn("muster-broker, to be frozen", command, &folder.log())?;
    is_up(&process, "the broker serves").await?;
    process.signal(Signal::USR1)?;
    let status = process.ended(wait::PATIENCE).await?;
    ended_itself(&process, status.code(), "ticker")
}

#[tokio::test]
async fn an_agent_whose_loops_are_stuck_ends_itself_with_a_code_of_its_own() -> Result<()> {
    let broker = Broker::start().await?;
    let agent = Agent::new(broker.folder().path(), "desk-1", "")?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let command = freezable(&agent.command(&["run"])?);
    let mut process = Process::spawn("muster-agent, to be frozen", command, &agent.log())?;
    is_up(&process, "session is open").await?;
    process.signal(Signal::USR1)?;
    let status = process.ended(AGENT_ENDS_WITHIN).await?;
    ended_itself(&process, status.code(), "check scheduler")
}

/// A host whose agent runs, with a listener that works.
struct Host {
    process: Process,
    _listener: Target,
}

impl Host {
    async fn start(broker: &Broker) -> Result<Self> {
        let listener = Target::listener().await?;
        let checks = format!(
            "[check.session_listener]\ninterval = \"300ms\"\n{}",
            listener.as_session_listener()
        );
        let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
        let token = broker.token("default", Some("desk-1"), 1).await?;
        agent.enrol(&broker.endpoints.grpc, &token).await?;
        let process = agent.run()?;
        becomes(broker, "connectable", |verdict| verdict.connectable_new).await?;
        Ok(Self {
            process,
            _listener: listener,
        })
    }
}

async fn becomes(broker: &Broker, what: &str, wanted: fn(&Verdict) -> bool) -> Result<()> {
    broker.verdict_until("desk-1", what, wanted).await.map(drop)
}

/// Waits until a process has been stopped for this long, by the clock of this test.
async fn stopped_for(limit: Duration) -> Result<()> {
    let begun = std::time::Instant::now();
    wait::until("the stop to be long enough", limit * 2, || async {
        ensure!(begun.elapsed() > limit, "{:?}", begun.elapsed());
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_agent_that_was_stopped_for_longer_than_its_lease_is_back_at_once() -> Result<()> {
    let broker = Broker::start().await?;
    let host = Host::start(&broker).await?;
    host.process.signal(Signal::STOP)?;
    // Longer than the lease, and than what a busy machine explains: a turn of 5 s and 10 s more.
    stopped_for(Duration::from_secs(17)).await?;
    becomes(&broker, "given up", |verdict| {
        verdict.status() == HostStatus::Unavailable
    })
    .await?;
    host.process.signal(Signal::CONT)?;
    becomes(&broker, "connectable again", |verdict| {
        verdict.connectable_new
    })
    .await?;
    let log = host.process.log()?;
    // Not after the spread, as after a loss, but because it knows that it slept.
    ensure!(log.contains("this process was stopped for"), "{log}");
    ensure!(log.contains("awake again: all checks run"), "{log}");
    ensure!(log.matches("session is open").count() == 2, "{log}");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_was_stopped_for_longer_than_a_lease_goes_on() -> Result<()> {
    let mut broker = Broker::start().await?;
    let _host = Host::start(&broker).await?;
    let before = broker.verdict("desk-1").await?;
    broker.process.signal(Signal::STOP)?;
    // Longer than its watchdog lets the ticker be late.
    let limit = broker.settings.lease().max(Duration::from_secs(5));
    stopped_for(limit + Duration::from_secs(2)).await?;
    broker.process.signal(Signal::CONT)?;
    becomes(&broker, "connectable", |verdict| verdict.connectable_new).await?;
    let after = broker.verdict("desk-1").await?;
    ensure!(after.status() == before.status(), "{}", describe(&after));
    ensure!(
        broker.process.has_ended()?.is_none(),
        "the broker has ended"
    );
    Ok(())
}
