//! What several test modules say to each other.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{HostStatus, Verdict, watch_hosts_response::Event};
use muster_runtime::refusal::Refusal;
use muster_tests::{
    broker::{Broker, describe},
    wait,
};
use tonic::{Code, Status, Streaming};

/// Asserts that this is the broker's refusal with this code and reason.
pub(crate) fn assert_refused(status: &Status, code: Code, reason: &str) -> Result<()> {
    let refusal = Refusal::from_status(status)
        .with_context(|| format!("not a refusal of the broker: {status:?}"))?;
    ensure!(
        (refusal.code, &*refusal.reason) == (code, reason),
        "wanted {code:?} {reason}, got {:?} {}: {}",
        refusal.code,
        refusal.reason,
        refusal.message
    );
    ensure!(!refusal.message.is_empty(), "{reason} without a word");
    Ok(())
}

/// The status inside an error.
pub(crate) fn status_of<T: std::fmt::Debug>(result: Result<T>) -> Result<Status> {
    match result {
        Ok(value) => anyhow::bail!("not refused: {value:?}"),
        Err(error) => error.downcast::<Status>().context("not a gRPC status"),
    }
}

/// Asserts that the broker answers and that a new host can join: it goes on.
pub(crate) async fn assert_goes_on(broker: &Broker) -> Result<()> {
    let name = format!("after-{:08x}", rand::random::<u32>());
    let token = broker.token("default", None, 1).await?;
    let enrolled = broker.way_in().enrol(&token, &name).await?;
    let agent = muster_tests::fleet::LightAgent::start(enrolled);
    agent.reported().await?;
    let verdict = broker.verdict(&name).await?;
    ensure!(
        verdict.status() == HostStatus::Available,
        "{}",
        describe(&verdict)
    );
    agent.kill().await;
    Ok(())
}

/// Has the verdict a reason with this code?
pub(crate) fn has_reason(verdict: &Verdict, code: &str) -> bool {
    verdict.reasons.iter().any(|reason| reason.code == code)
}

/// A front end's watch: all verdicts of a host in the order told.
pub(crate) struct Watch {
    stream: Streaming<muster_proto::v1::WatchHostsResponse>,
    /// Every verdict told so far.
    pub(crate) told: Vec<Verdict>,
}

impl Watch {
    /// Begins to watch and reads the snapshot.
    pub(crate) async fn start(broker: &Broker) -> Result<Self> {
        let stream = broker.front_end().await?.watch().await?;
        let mut watch = Self {
            stream,
            told: Vec::new(),
        };
        loop {
            match watch.next().await? {
                Event::SnapshotChunk(chunk) => watch.told.extend(chunk.verdicts),
                Event::SnapshotEnd(_) => return Ok(watch),
                other => anyhow::bail!("in the snapshot: {other:?}"),
            }
        }
    }

    /// The next event, whatever it is.
    pub(crate) async fn next(&mut self) -> Result<Event> {
        let message = wait::within("a word of the watch", wait::PATIENCE, self.stream.message());
        let message = message.await??.context("the watch has ended")?;
        message.event.context("an empty event")
    }

    /// Reads on until the broker ends the watch, and gives the status that it ends with.
    pub(crate) async fn refused(&mut self) -> Result<Status> {
        wait::within("the end of the watch", wait::PATIENCE, async {
            loop {
                match self.stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => anyhow::bail!("the watch ended without a status"),
                    Err(status) => return Ok(status),
                }
            }
        })
        .await?
    }

    /// Reads on until `wanted` says yes to a verdict of this host, and gives it.
    pub(crate) async fn until(
        &mut self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Verdict) -> bool,
    ) -> Result<Verdict> {
        let found = wait::within(what, wait::PATIENCE, async {
            loop {
                let Event::Changed(changed) = self.next().await? else {
                    continue;
                };
                let verdict = changed.verdict.context("a change without verdict")?;
                self.told.push(verdict.clone());
                if verdict.name == name && wanted(&verdict) {
                    return anyhow::Ok(verdict);
                }
            }
        });
        let found = found.await;
        let told: Vec<String> = self.told.iter().map(describe).collect();
        found
            .and_then(|found| found)
            .with_context(|| format!("{name}: {what}; told so far: {told:#?}"))
    }

    /// Everything told in `within` from now on is taken in.
    pub(crate) async fn listen_for(&mut self, within: std::time::Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + within;
        while let Ok(event) = tokio::time::timeout_at(end, self.next()).await {
            if let Event::Changed(changed) = event? {
                self.told.extend(changed.verdict);
            }
        }
        Ok(())
    }
}

/// Asserts that no file is left in this folder, and no process that works in it.
pub(crate) fn nothing_is_left(temporary: &Path) -> Result<()> {
    let files: Vec<_> = fs::read_dir(temporary)?.collect();
    ensure!(files.is_empty(), "left: {files:?}");
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Those of others cannot be read, and some end meanwhile.
        if let Ok(folder) = fs::read_link(process.join("cwd")) {
            ensure!(
                !folder.starts_with(temporary),
                "{} is left",
                process.display()
            );
        }
    }
    Ok(())
}
