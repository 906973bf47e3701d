//! What survives the broker's end, and what nobody notices of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{
    GetHostHistoryRequest, HostStatus, PowerKind, UpgradeKind, UpgradePhase, UpgradeState,
};
use muster_tests::{
    broker::{Broker, describe},
    fleet::Fleet,
    session::{Session, plain_hello, plain_report},
    wait,
};

use crate::support::{Watch, has_reason};

#[tokio::test]
async fn an_acknowledged_goodbye_survives_a_kill() -> Result<()> {
    let mut broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    let (mut session, _) = Session::hello(host.connect().await?, plain_hello("boot")).await?;
    session.report(plain_report(&[])).await?;
    session.leave(PowerKind::Poweroff).await?;
    broker.kill().await?;
    drop(session);

    broker.start_again().await?;
    let verdict = broker.verdict("host-1").await?;
    ensure!(
        verdict.status() == HostStatus::Shutdown && has_reason(&verdict, "LEAVING_POWEROFF"),
        "{}",
        describe(&verdict)
    );
    // And it stays so when the window after the restart is over.
    let window = broker.settings.lease() + broker.settings.reconnect_window;
    let mut watch = Watch::start(&broker).await?;
    watch.listen_for(window + Duration::from_secs(2)).await?;
    for verdict in &watch.told {
        ensure!(
            verdict.status() == HostStatus::Shutdown,
            "{}",
            describe(verdict)
        );
    }
    Ok(())
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() -> Result<()> {
    let mut broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 2).await?;
    let token = broker.token("default", None, 1).await?;
    broker.way_in().enrol(&token, "once").await?;
    ensure!(
        broker
            .cli(&["drain", "host-0", "--reason", "disks"])
            .await?
            .code
            == Some(0)
    );
    let failed = UpgradeState {
        kind: UpgradeKind::Failed.into(),
        phase: UpgradePhase::Switch.into(),
        attempt_id: "attempt-1".to_owned(),
        from_version: "0.1.0".to_owned(),
        to_version: "9.9.9".to_owned(),
        error: "no space".to_owned(),
        ..UpgradeState::default()
    };
    fleet.agents[1].upgrade(failed).await?;
    broker.kill().await?;
    broker.start_again().await?;

    let drained = broker.verdict("host-0").await?;
    ensure!(
        has_reason(&drained, "DRAINED") && !drained.connectable_new,
        "{}",
        describe(&drained)
    );
    let failed = broker.verdict("host-1").await?;
    ensure!(
        failed.status() == HostStatus::UpgradeFailed,
        "{}",
        describe(&failed)
    );
    let Err(again) = broker.way_in().enrol(&token, "twice").await else {
        anyhow::bail!("a used token enrolled again");
    };
    ensure!(format!("{again:#}").contains("token"), "{again:#}");
    Ok(())
}

/// No word that front ends were told may say that a live host is not there.
fn never_unavailable(watch: &Watch) -> Result<()> {
    for verdict in &watch.told {
        ensure!(
            verdict.status() == HostStatus::Available && verdict.connectable_new,
            "{}",
            describe(verdict)
        );
    }
    Ok(())
}

async fn no_journal_says_unavailable(broker: &Broker, names: &[String]) -> Result<()> {
    for name in names {
        let request = GetHostHistoryRequest {
            name: name.clone(),
            ..GetHostHistoryRequest::default()
        };
        let history = broker.operator().await?.get_host_history(request).await?;
        let transitions = history.into_inner().transitions;
        // Newest first; at its first report the host becomes Available, and nothing follows.
        let first = transitions
            .iter()
            .position(|transition| transition.to() == HostStatus::Available)
            .with_context(|| format!("{name} never became Available"))?;
        ensure!(first == 0, "{name}: {transitions:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_is_unavailable_when_the_broker_restarts_under_ten_agents() -> Result<()> {
    let mut broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 10).await?;
    for hard in [true, false] {
        if hard {
            broker.kill().await?;
        } else {
            broker.stop().await?;
        }
        broker.start_again().await?;
        let mut watch = Watch::start(&broker).await?;
        ensure!(watch.told.len() == 10, "{} hosts", watch.told.len());
        for agent in &fleet.agents {
            agent.reported().await?;
        }
        // Past the window after the restart, when those who are missing are given up.
        let window = broker.settings.lease() + broker.settings.reconnect_window;
        watch.listen_for(window + Duration::from_secs(1)).await?;
        never_unavailable(&watch)?;
    }
    no_journal_says_unavailable(&broker, &fleet.names()).await
}

#[tokio::test]
async fn nobody_is_unavailable_when_streams_break_and_come_back() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 10).await?;
    let mut watch = Watch::start(&broker).await?;
    let before: Vec<u64> = fleet
        .agents
        .iter()
        .map(|agent| agent.state().epoch)
        .collect();
    for _ in 0..3 {
        for agent in &fleet.agents {
            agent.break_stream().await?;
        }
    }
    for (agent, before) in fleet.agents.iter().zip(before) {
        ensure!(
            agent.state().epoch > before,
            "{}: no higher epoch",
            agent.name
        );
    }
    watch
        .listen_for(broker.settings.lease() + Duration::from_secs(1))
        .await?;
    never_unavailable(&watch)?;
    no_journal_says_unavailable(&broker, &fleet.names()).await
}

#[tokio::test]
async fn who_does_not_come_back_after_a_restart_is_given_up_at_the_end_of_the_window() -> Result<()>
{
    let mut broker = Broker::start().await?;
    let mut fleet = Fleet::start(&broker, "default", "host", 2).await?;
    broker.kill().await?;
    fleet.agents.remove(0).kill().await;
    broker.start_again().await?;
    let at_first = broker.verdict("host-0").await?;
    ensure!(
        at_first.connectable_new,
        "answered as last stored: {}",
        describe(&at_first)
    );
    let gone = broker
        .verdict_until("host-0", "given up", |verdict| {
            verdict.status() == HostStatus::Unavailable
        })
        .await?;
    ensure!(
        has_reason(&gone, "NOT_BACK_AFTER_RESTART"),
        "{}",
        describe(&gone)
    );
    let other = broker.verdict("host-1").await?;
    ensure!(
        other.status() == HostStatus::Available,
        "{}",
        describe(&other)
    );
    Ok(())
}

#[tokio::test]
async fn a_watch_resumed_after_a_restart_is_told_to_resync() -> Result<()> {
    use muster_proto::v1::{WatchHostsRequest, watch_hosts_response::Event};
    let mut broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let mut stream = broker.front_end().await?.watch().await?;
    let position = loop {
        let message = wait::within("a snapshot", wait::PATIENCE, stream.message()).await??;
        if let Some(Event::SnapshotEnd(end)) = message.and_then(|message| message.event) {
            break end.position;
        }
    };
    broker.kill().await?;
    broker.start_again().await?;
    let request = WatchHostsRequest {
        position,
        ..WatchHostsRequest::default()
    };
    let mut front_end = broker.front_end().await?;
    let mut stream = front_end.service().watch_hosts(request).await?.into_inner();
    let first = wait::within("a word", wait::PATIENCE, stream.message()).await??;
    let event = first.and_then(|message| message.event);
    ensure!(matches!(event, Some(Event::Resync(_))), "{event:?}");
    Ok(())
}
