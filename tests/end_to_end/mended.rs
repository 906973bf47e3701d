//! What went wrong once, each named after it.

use std::time::Duration;

use anyhow::{Result, ensure};
use muster_core::model::HostName;
use muster_proto::v1::{
    AgentMessage, EnrollRequest, HostStatus, UpgradeKind, UpgradePhase, UpgradeState,
    agent_message::Body, agent_service_client::AgentServiceClient,
};
use muster_runtime::identity::new_key_and_csr;
use muster_tests::{
    broker::{Broker, describe},
    fleet::Fleet,
    session::{Session, plain_hello},
    wait,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::{assert_goes_on, assert_refused};

#[tokio::test]
async fn a_host_whose_client_went_away_during_its_enrolment_was_locked_out() -> Result<()> {
    let broker = Broker::start().await?;
    for attempt in 0..20u32 {
        let name = format!("host-{attempt}");
        let token = broker.token("default", Some(&name), 1).await?;
        let (_key, csr) = new_key_and_csr(&HostName::new(&name)?)?;
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name: name.clone(),
            request_id: String::new(),
        };
        let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
        // Gone at a different point each time: before, during or after the host is written.
        let patience = Duration::from_micros(u64::from(attempt) * 300);
        let gone = tokio::time::timeout(patience, client.enroll(request.clone())).await;
        drop((gone, client));
        let mut client = broker.way_in().enrolment(&token.ca_pin).await?;
        let enrolled = client.enroll(request).await?.into_inner();
        ensure!(enrolled.name == name);
        ensure!(broker.cli(&["remove", &name]).await?.code == Some(0));
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_host_was_connectable_for_as_long_as_its_broker_crashed() -> Result<()> {
    let mut broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    for agent in fleet.agents {
        agent.kill().await;
    }
    // A lease of 3 s and a window of 5 s: every start serves it some of these 8 s, and is charged
    // for it before it crashes.
    for _ in 0..3 {
        broker.kill().await?;
        broker.start_again().await?;
    }
    let verdict = broker.verdict("host-0").await?;
    ensure!(!verdict.connectable_reconnect, "{}", describe(&verdict));
    Ok(())
}

#[tokio::test]
async fn a_host_removed_before_its_hello_was_welcomed_into_a_dead_cell() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    let (tx, messages) = mpsc::channel(4);
    let mut answers = AgentServiceClient::new(host.connect().await?)
        .session(ReceiverStream::new(messages))
        .await?
        .into_inner();
    ensure!(broker.cli(&["remove", "host-1"]).await?.code == Some(0));
    let hello = Some(Body::Hello(plain_hello("boot")));
    tx.send(AgentMessage { body: hello }).await?;
    let refused = wait::within("a refusal", wait::PATIENCE, answers.message()).await?;
    match refused {
        Err(status) => assert_refused(&status, Code::NotFound, "HOST_UNKNOWN")?,
        Ok(answer) => anyhow::bail!("a removed host was answered: {answer:?}"),
    }
    assert_goes_on(&broker).await
}

#[tokio::test]
async fn a_stream_that_somebody_kept_open_made_a_clean_stop_fail() -> Result<()> {
    let mut broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    // A session that never says Hello is waited for far longer than a stop may take.
    let (_tx, messages) = mpsc::channel::<AgentMessage>(4);
    let _open = AgentServiceClient::new(host.connect().await?)
        .session(ReceiverStream::new(messages))
        .await?;
    broker.stop().await
}

#[tokio::test]
async fn a_failed_upgrade_without_a_version_was_acknowledged_and_dropped() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let upgrade = |kind: UpgradeKind, to: &str| UpgradeState {
        kind: kind.into(),
        attempt_id: format!("by-hand-{to}"),
        from_version: env!("CARGO_PKG_VERSION").to_owned(),
        to_version: to.to_owned(),
        phase: UpgradePhase::Switch.into(),
        error: "dpkg broke".to_owned(),
        ..UpgradeState::default()
    };
    for to in ["unknown", "security-2026-11"] {
        fleet.agents[0]
            .upgrade(upgrade(UpgradeKind::Failed, to))
            .await?;
        let verdict = broker.verdict("host-0").await?;
        ensure!(
            verdict.status() == HostStatus::UpgradeFailed,
            "{}",
            describe(&verdict)
        );
        fleet.agents[0]
            .upgrade(upgrade(UpgradeKind::InProgress, &format!("{to}-2")))
            .await?;
        let verdict = broker.verdict("host-0").await?;
        ensure!(
            verdict.status() == HostStatus::Upgrading,
            "{}",
            describe(&verdict)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_session_that_was_replaced_is_told_so() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    let (mut old, _) = Session::hello(host.connect().await?, plain_hello("boot")).await?;
    let (_new, _) = Session::hello(host.connect().await?, plain_hello("boot")).await?;
    let status = old.refused().await?;
    assert_refused(&status, Code::Aborted, "SESSION_REPLACED")
}

#[tokio::test]
async fn one_host_could_fill_the_broker_with_streams_that_say_nothing() -> Result<()> {
    let broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    let channel = host.connect().await?;
    let mut open = Vec::new();
    let refused = loop {
        let (tx, messages) = mpsc::channel::<AgentMessage>(4);
        let mut client = AgentServiceClient::new(channel.clone());
        match client.session(ReceiverStream::new(messages)).await {
            Ok(answers) => open.push((tx, answers)),
            Err(status) => break status,
        }
        ensure!(open.len() <= 4, "{} silent streams", open.len());
    };
    assert_refused(&refused, Code::ResourceExhausted, "BROKER_BUSY")?;
    drop(open);
    // And the host gets in again once they are gone.
    wait::until("a place to be free", wait::PATIENCE, || {
        let channel = channel.clone();
        async move {
            Session::hello(channel, plain_hello("boot")).await?;
            Ok(())
        }
    })
    .await
}
