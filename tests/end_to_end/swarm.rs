//! The load generator: each of its scripts in short, and that it can say no.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    process::{self, Output, Process, Signal},
    wait,
};
use serde_json::Value;
use tokio::process::Command;

use crate::support::nothing_is_left;

/// How long a run may take: seconds, and a build if somebody edits meanwhile.
const LIMIT: Duration = Duration::from_secs(150);

/// A small fleet with a lease of 3 s.
const SHORT: &str = "--agents 40 --interval 500ms --lease-grace 1500ms --window 2s";

fn swarm(temporary: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-swarm"));
    command
        .args(arguments.split_whitespace())
        .args(SHORT.split_whitespace())
        .env("TMPDIR", temporary);
    command
}

/// Plays a script to its end and gives what the command said, with its report.
async fn play(arguments: &str) -> Result<(Output, Value)> {
    let (temporary, folder) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let file = folder.path().join("report.json");
    let mut command = swarm(temporary.path(), arguments);
    command.arg("--json").arg(&file);
    let output = process::run(command, LIMIT).await?;
    nothing_is_left(temporary.path())?;
    let json = std::fs::read_to_string(&file).with_context(|| format!("{output:?}"))?;
    let report: Value = serde_json::from_str(&json)?;
    ensure!(
        report["false_unavailable"] == 0 && report["false_not_connectable"] == 0,
        "{output:?}"
    );
    ensure!(output.stdout.contains("commit"), "{}", output.stdout);
    Ok((output, report))
}

/// The front end was told of every host that was harmed, and there were so many.
fn told_of_all(report: &Value, count: u64) -> Result<()> {
    let harmed = report["harmed"].as_array().context("nobody was harmed")?;
    for harmed in harmed {
        ensure!(harmed["told"]["count"] == count, "{report}");
        ensure!(harmed["untold"] == serde_json::json!([]), "{report}");
    }
    Ok(())
}

/// All agents came back, and all hosts were Confirmed again, each time.
fn came_back(report: &Value, times: usize) -> Result<()> {
    let returns = report["returns"].as_array().context("nothing went away")?;
    ensure!(returns.len() == times, "{report}");
    for back in returns {
        ensure!(
            back["agents_back_ms"].is_u64() && back["confirmed_ms"].is_u64(),
            "{report}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_steady_swarm_costs_what_its_report_says() -> Result<()> {
    let (output, report) = play("steady --for 3s").await?;
    ensure!(output.code == Some(0), "{output:?}");
    let steady = &report["steady"];
    let beats = steady["beats"].as_u64().context("no beats")?;
    // 40 agents beat twice a second; a machine that is busy may take longer over three of them.
    ensure!(beats >= 100, "{report}");
    ensure!(
        report["memory"]["per_agent_kib"].as_f64() > Some(1.0),
        "{report}"
    );
    ensure!(
        report["agents"] == 40 && report["processes"] == 1,
        "{report}"
    );
    Ok(())
}

#[tokio::test]
async fn a_front_end_is_told_of_killed_agents_light_and_real() -> Result<()> {
    let arguments = "kill --listeners --real 1 --processes 2 --count 4 --per-minute 120 \
                     --told-p99 1ms";
    let (output, report) = play(arguments).await?;
    told_of_all(&report, 4)?;
    ensure!(
        report["processes"] == 2 && report["real_agents"] == 1,
        "{report}"
    );
    // Nobody is told within a millisecond: what is demanded and does not come is said.
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(output.stdout.contains("FAILED"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_front_end_is_told_of_agents_that_fell_silent() -> Result<()> {
    let (_, report) = play("black-hole --count 3 --per-minute 120").await?;
    told_of_all(&report, 3)
}

#[tokio::test]
async fn a_front_end_is_told_of_agents_whose_packets_are_lost() -> Result<()> {
    let (_, report) = play("black-hole --drop --loss 2 --count 3 --per-minute 120").await?;
    told_of_all(&report, 3)?;
    ensure!(report["loss_percent"] == 2, "{report}");
    Ok(())
}

#[tokio::test]
async fn all_come_back_from_a_storm() -> Result<()> {
    let (_, report) = play("storm --times 2").await?;
    came_back(&report, 2)
}

#[tokio::test]
async fn a_stopped_broker_is_told_of_who_died_meanwhile() -> Result<()> {
    let (_, report) = play("stop --for 2s --kill 2").await?;
    told_of_all(&report, 2)?;
    came_back(&report, 1)
}

#[tokio::test]
async fn all_come_back_to_a_broker_that_was_killed() -> Result<()> {
    let (_, report) = play("reconnect").await?;
    came_back(&report, 1)
}

#[tokio::test]
async fn the_broker_is_held_against_a_bare_server() -> Result<()> {
    let (_, report) = play("beside --sizes 20 --for 2s").await?;
    let compared = report["compared"].as_array().context("nothing compared")?;
    ensure!(compared.len() == 1, "{report}");
    for compared in compared {
        let costs = compared["costs"].as_array().context("no costs")?;
        let servers: Vec<_> = costs.iter().map(|cost| &cost["server"]).collect();
        ensure!(servers == ["broker", "bare"], "{report}");
        for cost in costs {
            ensure!(cost["steady"]["beats"].as_u64() > Some(10), "{report}");
            ensure!(
                cost["memory"]["per_agent_kib"].as_f64() > Some(1.0),
                "{report}"
            );
        }
        ensure!(compared["memory_ratio"].as_f64() > Some(0.0), "{report}");
    }
    Ok(())
}

#[tokio::test]
async fn questions_are_held_against_a_rpc_that_does_nothing() -> Result<()> {
    let (_, report) = play("questions --for 1s --rounds 1").await?;
    let asked = report["asked"].as_array().context("nothing asked")?;
    ensure!(asked.len() == 2, "{report}");
    for asked in asked {
        ensure!(asked["time"]["count"].as_u64() > Some(10), "{report}");
    }
    ensure!(report["asked_ratio"].as_f64() > Some(0.0), "{report}");
    Ok(())
}

#[tokio::test]
async fn an_interrupted_swarm_leaves_nothing() -> Result<()> {
    let (temporary, logs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let log = logs.path().join("swarm.log");
    let command = swarm(temporary.path(), "steady --for 1h --processes 2 --real 1");
    let mut process = Process::spawn("muster-swarm", command, &log)?;
    wait::until("the script to begin", LIMIT, || {
        let shown = process.log();
        async move {
            ensure!(shown?.contains("] steady"), "not yet");
            Ok(())
        }
    })
    .await?;
    process.signal(Signal::INT)?;
    let status = process.ended(wait::PATIENCE).await?;
    ensure!(status.code() == Some(1), "{status}");
    wait::until("all that it started to end", wait::PATIENCE, || {
        let left = nothing_is_left(temporary.path());
        async move { left }
    })
    .await
}
