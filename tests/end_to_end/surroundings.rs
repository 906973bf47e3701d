//! What surrounds a real agent: a name with many addresses, a wall clock that jumps by hours.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::HostStatus;
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    process::Process,
    targets::Target,
    wait,
};
use tokio::process::Command;

use crate::support::Watch;

/// Waits until the agent's log says this, and gives the line.
async fn logged(process: &Process, words: &[&str]) -> Result<String> {
    let what = format!("{words:?} in the log");
    wait::until(&what, wait::PATIENCE, || async {
        let log = process.log()?;
        let mut lines = log.lines();
        let found = lines.find(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned).context("not yet")
    })
    .await
}

/// The command in a mount namespace of its own, where these are the known hosts.
fn with_hosts(command: &Command, hosts: &Path) -> Command {
    let inner = command.as_std();
    let mut outer = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        outer.arg("--map-root-user");
    }
    outer
        .args(["--mount", "sh", "-ec"])
        .arg("mount --bind \"$1\" /etc/hosts; shift; exec \"$@\"")
        .arg("sh")
        .arg(hosts)
        .arg(inner.get_program())
        .args(inner.get_args());
    outer
}

#[tokio::test]
async fn every_address_of_a_brokers_name_is_tried_and_what_each_met_is_told() -> Result<()> {
    let mut broker = Broker::start().await?;
    let (ip, port) = broker.endpoints.grpc.rsplit_once(':').context("a port")?;
    let name = format!("brokers.test:{port}");
    let addresses = [
        format!("127.77.0.1:{port}"),
        format!("[::1]:{port}"),
        broker.endpoints.grpc.clone(),
    ];
    let hosts = broker.folder().path().join("hosts");
    let lines = format!(
        "127.0.0.1 localhost\n127.77.0.1 brokers.test\n::1 brokers.test\n{ip} brokers.test\n"
    );
    fs::write(&hosts, lines)?;
    let settings = format!("brokers = [{name:?}]\n");
    let agent = Agent::new(broker.folder().path(), "desk-1", &settings)?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let command = with_hosts(&agent.command(&["run"])?, &hosts);
    let process = Process::spawn("muster-agent among hosts", command, &agent.log())?;
    let told = format!("broker.address={}", broker.endpoints.grpc);
    logged(&process, &["session is open", &name, &told]).await?;
    let doctor = agent
        .cli(&["doctor", "--check", "session_listener"])
        .await?;
    let session = format!(
        "the session with {name} ({}) is open",
        broker.endpoints.grpc
    );
    ensure!(doctor.stdout.contains(&session), "{}", doctor.stdout);

    broker.kill().await?;
    let mut words = vec!["no session", "leads to the broker"];
    words.extend(addresses.iter().map(String::as_str));
    logged(&process, &words).await?;
    let doctor = agent
        .cli(&["doctor", "--check", "session_listener"])
        .await?;
    for address in &addresses {
        ensure!(doctor.stdout.contains(address), "{}", doctor.stdout);
    }
    broker.start_again().await?;
    broker
        .verdict_until("desk-1", "heard again", |verdict| {
            verdict.confidence() == muster_proto::v1::Confidence::Confirmed
        })
        .await
        .map(drop)
}

/// Where the package `faketime` has its library.
fn faketime() -> Result<PathBuf> {
    let found = fs::read_dir("/usr/lib")?.filter_map(|entry| {
        let library = entry.ok()?.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found
        .last()
        .context("libfaketime is not there: run `tests/run --install` once")
}

#[tokio::test]
async fn a_wall_clock_that_jumps_by_hours_changes_nothing_but_the_times_in_the_log() -> Result<()> {
    let mut broker = Broker::start().await?;
    let listener = Target::listener().await?;
    let checks = format!(
        "[check.session_listener]\ninterval = \"300ms\"\n{}",
        listener.as_session_listener()
    );
    let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let clock = broker.folder().path().join("clock");
    fs::write(&clock, "+0\n")?;
    let mut command = agent.command(&["run", "--log-filter", "muster_agent=debug"])?;
    command
        .env("LD_PRELOAD", faketime()?)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let process = Process::spawn("muster-agent out of time", command, &agent.log())?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    let mut watch = Watch::start(&broker).await?;
    for jump in [5, -7] {
        fs::write(&clock, format!("{jump:+}h\n"))?;
        // A line of the log shows that the agent's wall clock has jumped.
        let there = jiff::Timestamp::now() + jiff::Span::new().hours(jump);
        let hour = there.to_string()[..13].to_owned();
        logged(&process, &[&hour, "check ran"]).await?;
        watch.listen_for(broker.settings.lease() * 2).await?;
        for verdict in &watch.told {
            ensure!(
                verdict.status() == HostStatus::Available && verdict.connectable_new,
                "{}",
                describe(verdict)
            );
        }
        let log = process.log()?;
        ensure!(log.matches("session is open").count() == 1, "{log}");
        ensure!(!log.contains("awake again"), "{log}");
    }
    // Seven hours behind, it still believes its broker.
    broker.kill().await?;
    broker.start_again().await?;
    broker
        .verdict_until("desk-1", "heard again", |verdict| {
            verdict.confidence() == muster_proto::v1::Confidence::Confirmed
        })
        .await
        .map(drop)
}

#[tokio::test]
async fn days_that_a_machine_slept_before_the_agent_started_are_nothing_to_it() -> Result<()> {
    let broker = Broker::start().await?;
    let listener = Target::listener().await?;
    let checks = format!(
        "[check.session_listener]\n{}",
        listener.as_session_listener()
    );
    let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    // Its boot-time clock is ahead of the one that stands still in a suspend, and stays so.
    let inner = agent.command(&["run"])?;
    let inner = inner.as_std();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--time", "--boottime", "1000000", "--fork", "--kill-child"])
        .arg(inner.get_program())
        .args(inner.get_args());
    let process = Process::spawn("muster-agent, long asleep", command, &agent.log())?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    let log = process.log()?;
    ensure!(log.matches("session is open").count() == 1, "{log}");
    ensure!(!log.contains("awake again"), "{log}");
    Ok(())
}
