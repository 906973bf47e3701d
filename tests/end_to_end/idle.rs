//! A beat costs no store write: a steady fleet writes nothing to disk.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::HostStatus;
use muster_tests::{
    broker::{Broker, Settings, describe},
    fleet::Fleet,
};

/// Enough that one write per beat, per host or per interval would show.
const HOSTS: u32 = 1000;
/// Beats of each host that are looked at.
const INTERVALS: u32 = 5;

/// What a process has written to disk or to files, ever.
#[derive(PartialEq, Eq, Debug)]
struct Written {
    /// Bytes that it handed to the system in `write` calls.
    characters: u64,
    /// Size and last change of every file in its data folder.
    files: Vec<(String, u64, std::time::SystemTime)>,
}

fn written(process: u32, data: &Path) -> Result<Written> {
    let io = fs::read_to_string(format!("/proc/{process}/io"))?;
    let field = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok())
            .with_context(|| format!("no {name} in {io}"))
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        let told = entry.metadata()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        files.push((name, told.len(), told.modified()?));
    }
    files.sort();
    Ok(Written {
        characters: field("write_bytes:")?,
        files,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_agents_write_nothing() -> Result<()> {
    let settings = Settings {
        interval: Duration::from_secs(1),
        // Long, because a thousand handshakes share two cores with their broker.
        lease_beats: 10,
        lease_grace: Duration::from_secs(20),
        ..Settings::default()
    };
    let broker = Broker::start_with(settings).await?;
    let fleet = Fleet::start(&broker, "default", "idle", HOSTS).await?;
    let process = broker.process.id().context("the broker has ended")?;
    let data = broker.folder().data();
    let beats = || {
        fleet
            .agents
            .iter()
            .map(|agent| agent.state().beats)
            .sum::<u64>()
    };

    // The last report may still be on its way to the store.
    let mut before = written(process, &data)?;
    muster_tests::wait::until("the store to be quiet", Duration::from_secs(30), || {
        let now = written(process, &data);
        let same = now.as_ref().is_ok_and(|now| *now == before);
        if let Ok(now) = now {
            before = now;
        }
        async move {
            ensure!(same, "it is written to");
            Ok(())
        }
    })
    .await?;

    let (before, beats_before) = (written(process, &data)?, beats());
    let wanted = u64::from(HOSTS * INTERVALS);
    muster_tests::wait::until("five beats of each", Duration::from_secs(60), || {
        let more = beats() - beats_before;
        async move {
            ensure!(more >= wanted, "{more} of {wanted} beats");
            Ok(())
        }
    })
    .await?;
    let after = written(process, &data)?;
    ensure!(
        before == after,
        "{wanted} beats wrote: {before:?} -> {after:?}"
    );
    // What is looked at does show a write.
    let drained = broker.cli(&["drain", "idle-0"]).await?;
    ensure!(drained.code == Some(0), "{drained:?}");
    ensure!(written(process, &data)? != after, "a drain left no trace");
    ensure!(broker.cli(&["undrain", "idle-0"]).await?.code == Some(0));
    let verdict = broker.verdict("idle-0").await?;
    ensure!(
        verdict.status() == HostStatus::Available,
        "{}",
        describe(&verdict)
    );
    Ok(())
}
