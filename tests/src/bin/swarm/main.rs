//! `muster-swarm`: thousands of simulated agents over real mTLS, with scripts and a report.
//!
//! It starts a broker, enrols hosts through the real rpc, lets light agents of the harness speak
//! for them, and watches as a front end does. A script harms broker or agents; the report says
//! what the front end was told, when, what it should not have been told, and what it all cost.
//!
//! Agents live in this process; where they need more open files than one process may have, in
//! children of it (`worker`). Whatever it starts ends with it.

mod bare;
mod beside;
mod crew;
mod identities;
mod meter;
mod network;
mod options;
mod progress;
mod questions;
mod real;
mod report;
mod scripts;
mod stage;
mod text;
mod watcher;
mod worker;

use std::{fs, process::ExitCode, thread};

use anyhow::{Context, Result, bail};
use clap::Parser as _;
use muster_runtime::{accept, tls};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    options::{Arguments, Common, Script},
    progress::Progress,
    report::Report,
    stage::Stage,
};

/// Exit code of a command line that is not understood.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a terminal that has gone.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    if arguments.script.loses_packets()
        && let Err(error) = network::enter().and_then(|()| network::lose(loss(&arguments)))
    {
        eprintln!("muster-swarm: {error:#}");
        return ExitCode::FAILURE;
    }
    tls::install_provider();
    accept::raise_open_files();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("muster-swarm: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments.script)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nmuster-swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn loss(arguments: &Arguments) -> u32 {
    arguments.script.common().map_or(0, |common| common.loss)
}

/// Plays the script to its end, or until somebody ends it. All as it must be?
async fn run(script: &Script) -> Result<bool> {
    match script {
        Script::Worker => worker::serve_parent().await?,
        Script::Bare(arguments) => bare::serve(arguments).await?,
        _ => {}
    }
    let Some(common) = script.common() else {
        return Ok(true);
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let report = tokio::select! {
        report = perform(script, common) => report?,
        // What was started ends when it is dropped.
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    };
    print!("{}", text::text(&report));
    if let Some(file) = &common.json {
        let json = serde_json::to_vec_pretty(&report)?;
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report.failures.is_empty())
}

async fn perform(script: &Script, common: &Common) -> Result<Report> {
    let progress = Progress::new();
    if let Script::Beside(beside) = script {
        return beside::run(beside, begin(script, common), &progress).await;
    }
    let mut stage = Stage::set_up(common, begin(script, common), &progress).await?;
    progress.say(script.name());
    scripts::play(script, &mut stage).await?;
    stage.take_down().await
}

/// What is known before anything happens.
fn begin(script: &Script, common: &Common) -> Report {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let settings = common.settings();
    Report {
        script: script.name().to_owned(),
        command: format!("cargo swarm {}", arguments.join(" ")),
        date: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
        commit: report::commit(),
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        }
        .to_owned(),
        processors: thread::available_parallelism().map_or(0, usize::from),
        agents: common.agents,
        real_agents: common.real,
        listeners: common.listeners.is_some(),
        loss_percent: common.loss,
        probe: common.probe,
        interval_ms: millis(settings.interval),
        lease_ms: millis(settings.lease()),
        window_ms: millis(settings.reconnect_window),
        ..Report::default()
    }
}
