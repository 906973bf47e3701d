//! The quickstart as a newcomer runs it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_tests::{
    process::{self, Process, Signal},
    wait,
};
use tokio::process::Command;

use crate::support::nothing_is_left;

/// How long it may take: seconds, and a build if somebody edits meanwhile.
const LIMIT: Duration = Duration::from_secs(150);

fn quickstart(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.args(arguments).env("TMPDIR", temporary);
    command
}

#[tokio::test]
async fn once_shows_every_state_and_leaves_nothing() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let output = process::run(quickstart(temporary.path(), &["--once"]), LIMIT).await?;
    ensure!(output.code == Some(0), "{output:?}");
    let (_, table) = output
        .stdout
        .rsplit_once("HOST ")
        .with_context(|| format!("no table: {}", output.stdout))?;
    for (host, status) in [
        ("demo-assist", "Needs Assistance"),
        ("demo-upgrade", "Upgrade Failed"),
        ("demo-shutdown", "Shutdown"),
        ("demo-killed", "Unavailable"),
    ] {
        let row = table.lines().find(|row| row.trim().starts_with(host));
        ensure!(
            row.is_some_and(|row| row.contains(status)),
            "{host} is not {status}: {table}"
        );
        let journal = format!("journal of {host}");
        ensure!(output.stdout.contains(&journal), "no {journal}");
    }
    ensure!(
        output.stdout.contains("Upgrading"),
        "it never was Upgrading"
    );
    nothing_is_left(temporary.path())
}

#[tokio::test]
async fn ctrl_c_ends_all_cleanly() -> Result<()> {
    let (temporary, logs) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let log = logs.path().join("quickstart.log");
    let mut process = Process::spawn("quickstart", quickstart(temporary.path(), &[]), &log)?;
    wait::until("the live table", LIMIT, || {
        let shown = process.log();
        async move {
            ensure!(shown?.contains("Ctrl-C ends all"), "no table yet");
            Ok(())
        }
    })
    .await?;
    process.signal(Signal::INT)?;
    let status = process.ended(wait::PATIENCE).await?;
    ensure!(status.success(), "{status}");
    nothing_is_left(temporary.path())
}
