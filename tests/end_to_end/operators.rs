//! What operators do with the CLI.

use anyhow::{Context, Result, ensure};
use muster_proto::v1::CheckOutcome;
use muster_tests::{broker::Broker, fleet::Fleet};

#[tokio::test]
async fn the_history_tells_each_change_once_with_its_reasons() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    for outcome in [CheckOutcome::Fail, CheckOutcome::Fail, CheckOutcome::Pass] {
        fleet.agents[0]
            .report(&[("session_listener", outcome)])
            .await?;
    }
    let history = broker.json(&["history", "host-0"]).await?;
    let history = history.as_array().context("no list")?;
    let words: Vec<_> = history.iter().rev().map(|entry| &entry["to"]).collect();
    ensure!(
        words.ends_with(&[
            &"available".into(),
            &"unavailable".into(),
            &"available".into()
        ]),
        "{history:#?}"
    );
    let sequences: Vec<_> = history
        .iter()
        .rev()
        .map(|entry| entry["sequence"].as_u64())
        .collect();
    let holes = sequences
        .windows(2)
        .any(|pair| pair[1] != pair[0].map(|before| before + 1));
    ensure!(!holes, "holes in {sequences:?}");
    let entry = &history[1];
    ensure!(
        entry["reasons"][0]["code"] == "FATAL_CHECK_FAILED",
        "{entry:#}"
    );
    Ok(())
}

#[tokio::test]
async fn one_host_is_shown_with_its_checks() -> Result<()> {
    let broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "desks", "host", 1).await?;
    let host = broker.json(&["host", "host-0"]).await?;
    let checks = host["checks"].as_array().context("no checks")?;
    ensure!(checks.len() == 5, "{host:#}");
    ensure!(host["pool"] == "desks", "{host:#}");
    let table = broker.cli(&["host", "host-0"]).await?;
    for word in ["session_listener", "Available", "desks"] {
        ensure!(table.stdout.contains(word), "{word}: {}", table.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn a_drain_waits_until_the_host_is_known_to_be_empty() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "desks", "host", 1).await?;
    let agent = &fleet.agents[0];
    let drain = |within| ["drain", "host-0", "--until-empty", within];
    agent.count_sessions(Some(2)).await?;
    let busy = broker.cli(&drain("10ms")).await?;
    ensure!(
        busy.code == Some(1) && busy.stderr.contains("still has 2 sessions"),
        "{busy:?}"
    );
    // Unknown is not zero.
    agent.count_sessions(None).await?;
    let unknown = broker.cli(&drain("10ms")).await?;
    ensure!(
        unknown.code == Some(2) && unknown.stderr.contains("cannot be told"),
        "{unknown:?}"
    );
    // People leave while it waits.
    agent.count_sessions(Some(1)).await?;
    ensure!(broker.cli(&["undrain", "host-0", "--all"]).await?.code == Some(0));
    let patience = drain("1m");
    let (emptied, left) = tokio::join!(broker.cli(&patience), async {
        broker
            .verdict_until("host-0", "drained", |verdict| !verdict.connectable_new)
            .await?;
        agent.count_sessions(Some(0)).await
    });
    left?;
    let emptied = emptied?;
    ensure!(emptied.code == Some(0), "{emptied:?}");
    Ok(())
}

#[tokio::test]
async fn a_drain_ends_by_itself() -> Result<()> {
    let broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let drained = broker
        .cli(&["drain", "host-0", "--reason", "a moment", "--for", "1s"])
        .await?;
    ensure!(drained.code == Some(0), "{drained:?}");
    ensure!(!broker.verdict("host-0").await?.connectable_new);
    broker
        .verdict_until("host-0", "the drain to end", |verdict| {
            verdict.connectable_new
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_unknown_host_is_named() -> Result<()> {
    let broker = Broker::start().await?;
    for command in ["host", "history", "drain", "undrain", "remove"] {
        let output = broker.cli(&[command, "nobody"]).await?;
        ensure!(output.code == Some(1), "{command}: {output:?}");
        ensure!(
            output.stderr.contains("nobody") && output.stderr.contains("HOST_UNKNOWN"),
            "{command}: {output:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served_on_loopback() -> Result<()> {
    let broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "default", "host", 2).await?;
    let (code, _) = broker.get("/healthz").await?;
    ensure!(code == 200, "/healthz {code}");
    let (code, _) = broker.get("/readyz").await?;
    ensure!(code == 200, "/readyz {code}");
    let (code, metrics) = broker.get("/metrics").await?;
    ensure!(code == 200, "/metrics {code}");
    for name in ["muster_hosts{", "muster_beats_total"] {
        ensure!(metrics.contains(name), "{name} in {metrics}");
    }
    ensure!(
        !metrics.contains("host-0"),
        "a host's name as a label: {metrics}"
    );
    Ok(())
}
