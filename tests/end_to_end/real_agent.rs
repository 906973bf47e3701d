//! The real agent's process against a real broker: checks, announcements, goodbyes, a kill.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{Confidence, HostStatus, Verdict};
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    process::Process,
    targets::Target,
    wait,
};

use crate::support::{Watch, has_reason};

/// One enrolled machine whose listener and URL belong to the test.
struct Machine {
    agent: Agent,
    process: Process,
    url: Target,
    listener: Target,
}

impl Machine {
    async fn start(broker: &Broker, name: &str) -> Result<Self> {
        let (listener, url) = (Target::listener().await?, Target::web_server().await?);
        let checks = format!(
            "[check.session_listener]\ninterval = \"300ms\"\nfall = 1\n{}\
             [check.urls]\ninterval = \"300ms\"\nfall = 1\n\
             required = [{{ url = \"{}\", role = \"custom\" }}]\n",
            listener.as_session_listener(),
            url.url()
        );
        let agent = Agent::new(broker.folder().path(), name, &checks)?;
        let token = broker.token("default", Some(name), 1).await?;
        agent.enrol(&broker.endpoints.grpc, &token).await?;
        let process = agent.run()?;
        Ok(Self {
            agent,
            process,
            url,
            listener,
        })
    }
}

async fn becomes(broker: &Broker, name: &str, status: HostStatus) -> Result<Verdict> {
    let what = status.as_str_name();
    broker
        .verdict_until(name, what, |verdict| verdict.status() == status)
        .await
}

#[tokio::test]
async fn a_host_comes_up_fails_recovers_and_says_goodbye() -> Result<()> {
    let broker = Broker::start().await?;
    let mut machine = Machine::start(&broker, "desk-1").await?;
    let up = broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    ensure!(
        up.confidence() == Confidence::Confirmed,
        "{}",
        describe(&up)
    );
    ensure!(!up.listeners.is_empty(), "no listener is told: {up:?}");

    machine.url.answer_with(503);
    let assisted = becomes(&broker, "desk-1", HostStatus::NeedsAssistance).await?;
    let reason = assisted
        .reasons
        .iter()
        .find(|reason| reason.subject == "urls")
        .with_context(|| describe(&assisted))?;
    ensure!(
        assisted.connectable_new && reason.code == "CHECK_FAILED",
        "{reason:?}"
    );
    ensure!(
        reason.remedy.is_some() && !reason.message.is_empty(),
        "{reason:?}"
    );
    machine.url.answer_with(200);
    broker
        .verdict_until("desk-1", "without the failed URL", |verdict| {
            !has_reason(verdict, "CHECK_FAILED")
        })
        .await?;

    drop(machine.listener);
    let broken = becomes(&broker, "desk-1", HostStatus::Unavailable).await?;
    ensure!(
        has_reason(&broken, "FATAL_CHECK_FAILED"),
        "{}",
        describe(&broken)
    );

    let status = machine.process.terminate(wait::PATIENCE).await?;
    ensure!(status.success(), "the agent ended with {status}");
    let stopped = broker.verdict("desk-1").await?;
    ensure!(
        stopped.status() == HostStatus::Unavailable && has_reason(&stopped, "AGENT_STOPPED"),
        "{}",
        describe(&stopped)
    );
    Ok(())
}

#[tokio::test]
async fn announcements_become_statuses_and_are_withdrawn() -> Result<()> {
    let broker = Broker::start().await?;
    let machine = Machine::start(&broker, "desk-1").await?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    let agent = &machine.agent;
    agent
        .announce(&["upgrading", "--to", "9.9.9", "--for", "10m"])
        .await?;
    becomes(&broker, "desk-1", HostStatus::Upgrading).await?;
    agent
        .announce(&["upgrade-failed", "--error", "no space left"])
        .await?;
    let failed = becomes(&broker, "desk-1", HostStatus::UpgradeFailed).await?;
    ensure!(failed.connectable_new, "{}", describe(&failed));
    agent.announce(&["shutdown", "--kind", "reboot"]).await?;
    let leaving = becomes(&broker, "desk-1", HostStatus::Shutdown).await?;
    ensure!(
        has_reason(&leaving, "LEAVING_REBOOT"),
        "{}",
        describe(&leaving)
    );
    agent.announce(&["running"]).await?;
    broker
        .verdict_until("desk-1", "no Shutdown", |verdict| {
            verdict.status() != HostStatus::Shutdown
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_killed_agent_is_suspect_then_unavailable_and_comes_back() -> Result<()> {
    let broker = Broker::start().await?;
    let mut machine = Machine::start(&broker, "desk-1").await?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    let mut watch = Watch::start(&broker).await?;
    machine.process.kill().await?;
    watch
        .until("desk-1", "suspect", |verdict| {
            verdict.confidence() == Confidence::Suspect
        })
        .await?;
    let gone = watch
        .until("desk-1", "unavailable", |verdict| {
            verdict.status() == HostStatus::Unavailable
        })
        .await?;
    ensure!(has_reason(&gone, "LEASE_OVER"), "{}", describe(&gone));
    machine.process = machine.agent.run()?;
    watch
        .until("desk-1", "back", |verdict| verdict.connectable_new)
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_agent_finds_its_broker_again_after_a_restart() -> Result<()> {
    let mut broker = Broker::start().await?;
    let _machine = Machine::start(&broker, "desk-1").await?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    broker.kill().await?;
    broker.start_again().await?;
    let mut watch = Watch::start(&broker).await?;
    let back = broker
        .verdict_until("desk-1", "confirmed", |verdict| {
            verdict.confidence() == Confidence::Confirmed
        })
        .await?;
    ensure!(back.connectable_new, "{}", describe(&back));
    watch.listen_for(Duration::from_secs(1)).await?;
    for verdict in &watch.told {
        ensure!(
            verdict.status() != HostStatus::Unavailable,
            "{}",
            describe(verdict)
        );
    }
    Ok(())
}

#[tokio::test]
async fn enroll_tells_its_user_the_reason() -> Result<()> {
    let broker = Broker::start().await?;
    let agent = Agent::new(broker.folder().path(), "desk-1", "")?;
    let good = broker.token("default", Some("desk-1"), 1).await?;
    let endpoint = &broker.endpoints.grpc;

    let mut wrong = good.clone();
    wrong.token.push('x');
    let output = agent.try_enrol(endpoint, &wrong).await?;
    ensure!(output.code.is_some_and(|code| code != 0), "{output:?}");
    ensure!(output.stderr.contains("TOKEN_UNKNOWN"), "{output:?}");

    let mut wrong = good.clone();
    wrong.ca_pin = format!("sha256:{}", "0".repeat(64));
    let output = agent.try_enrol(endpoint, &wrong).await?;
    ensure!(output.code.is_some_and(|code| code != 0), "{output:?}");
    ensure!(output.stderr.contains(&good.ca_pin), "{output:?}");

    let output = agent.try_enrol("127.0.0.1:1", &good).await?;
    ensure!(output.stderr.contains("127.0.0.1:1"), "{output:?}");
    ensure!(output.stderr.contains("refused"), "{output:?}");

    agent.enrol(endpoint, &good).await?;
    let secret = &good.token;
    let log = broker.process.log()?;
    ensure!(!log.contains(secret), "the broker logs a token");
    Ok(())
}

#[tokio::test]
async fn doctor_works_alone_and_says_how_bad_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (listener, url) = (Target::listener().await?, Target::web_server().await?);
    let required = format!("[check.urls]\nrequired = [{{ url = \"{}\" }}]\n", url.url());
    let listen = format!(
        "[check.session_listener]\n{}",
        listener.as_session_listener()
    );
    let well = Agent::new(folder.path(), "well", &format!("{listen}{required}"))?;
    let output = well.cli(&["doctor"]).await?;
    ensure!(output.code == Some(0), "{output:?}");

    url.answer_with(503);
    let output = well.cli(&["doctor"]).await?;
    ensure!(output.code == Some(1), "{output:?}");

    let deaf = "[check.session_listener]\nlisteners = [{ protocol = \"tcp\", port = 1, address = \"127.0.0.1\" }]\nallow_loopback = true\n";
    let deaf = Agent::new(folder.path(), "deaf", deaf)?;
    let output = deaf.cli(&["doctor", "--output", "json"]).await?;
    ensure!(output.code == Some(2), "{output:?}");
    let _: serde_json::Value = serde_json::from_str(&output.stdout)?;
    Ok(())
}

#[tokio::test]
async fn an_unknown_check_is_named_with_those_that_are() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let agent = Agent::new(folder.path(), "desk-1", "")?;
    let output = agent.cli(&["doctor", "--check", "session_listner"]).await?;
    ensure!(output.code == Some(64), "{output:?}");
    for part in ["session_listner", "session_listener", "urls"] {
        ensure!(output.stderr.contains(part), "{part}: {output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_typo_in_the_configuration_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let agent = Agent::new(
        folder.path(),
        "desk-1",
        "[check.urls]\nintervall = \"3s\"\n",
    )?;
    let output = agent.cli(&["doctor"]).await?;
    ensure!(output.code == Some(78), "{output:?}");
    let place = format!("{}:5", agent.config().display());
    for part in [&*place, "`intervall`", "`interval`"] {
        ensure!(output.stderr.contains(part), "{part}: {output:?}");
    }
    let unknown = Agent::new(folder.path(), "desk-2", "[check.url]\ninterval = \"3s\"\n")?;
    let output = unknown.cli(&["doctor"]).await?;
    ensure!(output.stderr.contains("`urls`"), "{output:?}");
    Ok(())
}
