//! A full disk.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{CheckOutcome, DrainHostRequest, HostStatus};
use muster_tests::{
    apart,
    broker::{Broker, Folder, describe},
    fleet::Fleet,
    wait,
};
use tokio::time::timeout;
use tonic::Code;

use super::{Judge, quick, state_until, status_text};
use crate::support::{assert_refused, status_of};

/// What is durable is acknowledged within milliseconds.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(1);

/// Fills the file system of `folder` to the last byte.
fn fill(folder: &Path) -> Result<()> {
    use std::io::Write as _;
    let mut file = fs::File::create(folder.join("filler"))?;
    for size in [1 << 16, 1 << 9, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    Ok(())
}

/// Writes policies of pools, long ones and then short ones, until the broker cannot write a drain any
/// more: the store's file has room of its own, which must be used up as well.
async fn write_until_full(broker: &Broker, name: &str) -> Result<()> {
    let mut operator = broker.operator().await?;
    for round in 0u32.. {
        for size in [60_000, 6000, 600, 10] {
            let policy = format!("# {}\n", "x".repeat(size));
            for number in 0u32.. {
                let pool = format!("filler-{round}-{size}-{number}");
                if broker.set_policy(&pool, &policy).await.is_err() {
                    break;
                }
            }
        }
        let drain = DrainHostRequest {
            name: name.to_owned(),
            reason: format!("{round:0200}"),
            ..DrainHostRequest::default()
        };
        // Not acknowledged any more once nothing can be written.
        let drained = timeout(ACKNOWLEDGED_WITHIN, operator.drain_host(drain)).await;
        if !matches!(drained, Ok(Ok(_))) && super::state(broker).await?.store_failing {
            return Ok(());
        }
    }
    Ok(())
}

#[test]
fn a_broker_with_a_full_disk_answers_refuses_and_recovers() -> Result<()> {
    let name = "a_broker_with_a_full_disk_answers_refuses_and_recovers";
    apart::run(module_path!(), name, async {
        let disk = tempfile::tempdir()?;
        let shown = disk.path().display();
        apart::sh(&format!("mount -t tmpfs -o size=24m tmpfs {shown}")).await?;
        let folder = Folder::kept(&disk.path().join("broker"))?;
        let broker = Broker::start_in(folder, quick(), "127.0.0.1:0").await?;
        let fleet = Fleet::start(&broker, "default", "host", 3).await?;
        let token = broker.token("default", None, 1).await?;
        let policy = disk.path().join("policy.toml");
        fs::write(&policy, "max_sessions = 5\n")?;
        let judge = Judge::start(&broker).await?;
        ensure!(broker.get("/readyz").await?.0 == 200);

        fill(disk.path())?;
        wait::within(
            "the disk to be full",
            wait::PATIENCE,
            write_until_full(&broker, "host-2"),
        )
        .await??;
        let text = status_text(&broker).await?;
        ensure!(text.contains("STORE_FAILED"), "{text}");
        let (code, said) = broker.get("/readyz").await?;
        ensure!(code == 503 && said.contains("store"), "{code} {said}");
        ensure!(broker.get("/healthz").await?.0 == 200, "it lives");
        ensure!(broker.metric("muster_store_failures_total ").await? > 0);

        // Answers go on, and follow what hosts say.
        judge.harm("host-1");
        let failing = fleet.agents[1].report(&[("session_listener", CheckOutcome::Fail)]);
        let acknowledged = timeout(ACKNOWLEDGED_WITHIN, failing).await;
        ensure!(
            acknowledged.is_err(),
            "what is not durable was acknowledged"
        );
        let failed = broker.verdict("host-1").await?;
        ensure!(
            failed.status() == HostStatus::Unavailable,
            "{}",
            describe(&failed)
        );
        let well = broker.verdict("host-0").await?;
        ensure!(well.connectable_new, "{}", describe(&well));

        // What must be durable first is refused.
        let refused = status_of(broker.way_in().enrol(&token, "late").await)?;
        assert_refused(&refused, Code::Unavailable, "STORE_FAILED")?;
        let file = policy.to_str().context("a path in UTF-8")?;
        let refused = broker.cli(&["pool", "set", "default", file]).await?;
        ensure!(
            refused.code != Some(0) && refused.stderr.contains("STORE_FAILED"),
            "{refused:?}"
        );
        let pools = broker.json(&["pool", "show", "default"]).await?;
        ensure!(pools[0]["set_at"].is_null(), "{pools:#}");

        fs::remove_file(disk.path().join("filler"))?;
        state_until(&broker, "the store to work", |state| !state.store_failing).await?;
        ensure!(broker.get("/readyz").await?.0 == 200);
        broker.way_in().enrol(&token, "late").await?;
        let set = broker.cli(&["pool", "set", "default", file]).await?;
        ensure!(set.code == Some(0), "{set:?}");
        // What was said meanwhile is written now.
        let history = broker.json(&["history", "host-1"]).await?;
        ensure!(history[0]["to"] == "unavailable", "{history:#}");
        judge.verdict().await
    })
}
