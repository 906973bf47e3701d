//! Processes that are stopped, killed, or crash again and again.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use muster_proto::v1::{Confidence, Verdict};
use muster_tests::{
    broker::{Broker, Settings, describe},
    fleet::Fleet,
    process::Signal,
    wait,
};

use super::{Desk, Judge, age, beats, is_lost, is_well, judge, quick};
use crate::support::has_reason;

/// A window goes on for so long while hosts still arrive.
const PROLONGED: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_stopped_broker_convicts_nobody_and_finds_who_died_meanwhile() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let lease = broker.settings.lease();
    let mut fleet = Fleet::start(&broker, "default", "host", 8).await?;
    let judge = Judge::start(&broker).await?;
    let stopped = Instant::now();
    broker.process.signal(Signal::STOP)?;
    let dead = fleet.agents.remove(0);
    judge.harm(&dead.name);
    dead.kill().await;
    // Two leases, by the agents' own pace.
    beats(&fleet.agents, 20).await?;
    judge.allow(stopped.elapsed());
    ensure!(stopped.elapsed() > lease, "too short to show anything");
    let woken = Timestamp::now();
    broker.process.signal(Signal::CONT)?;

    let lost = judge.told("host-0", "lost", is_lost).await?;
    let after = Duration::try_from(judge::as_of(&lost)?.duration_since(woken))?;
    println!("told {after:?} after the wake, with a lease of {lease:?}");
    ensure!(
        has_reason(&lost, "LEASE_OVER") && after < lease * 2,
        "{after:?}: {}",
        describe(&lost)
    );
    judge.verdict().await
}

#[tokio::test]
async fn a_stopped_agent_is_lost_after_its_lease_and_is_back_when_it_goes_on() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let lease = broker.settings.lease();
    let desk = Desk::start(&broker, "desk-1").await?;
    let _others = Fleet::start(&broker, "default", "host", 3).await?;
    let judge = Judge::start(&broker).await?;
    judge.harm("desk-1");
    desk.process.signal(Signal::STOP)?;
    let lost = judge.told("desk-1", "lost", is_lost).await?;
    ensure!(
        has_reason(&lost, "LEASE_OVER") && age(&lost)? >= lease,
        "{}",
        describe(&lost)
    );
    let told = judge.all_told("desk-1");
    let suspect = told
        .iter()
        .find(|told| told.confidence() == Confidence::Suspect);
    let suspect = suspect.context("never suspect")?;
    ensure!(
        suspect.confidence_reason == "SILENT" && age(suspect)? < lease,
        "{}",
        describe(suspect)
    );
    judge.mend("desk-1");
    desk.process.signal(Signal::CONT)?;
    judge.told("desk-1", "well again", is_well).await?;
    judge.verdict().await
}

#[tokio::test]
async fn a_broker_and_an_agent_that_are_killed_together_take_nobody_with_them() -> Result<()> {
    let mut broker = Broker::start_with(quick()).await?;
    let window = broker.settings.lease() + broker.settings.reconnect_window;
    let mut dead = Desk::start(&broker, "desk-1").await?;
    let _alive = Desk::start(&broker, "desk-2").await?;
    let judge = Judge::start(&broker).await?;
    judge.allow(window + PROLONGED);
    judge.harm("desk-1");
    broker.kill().await?;
    dead.process.kill().await?;
    broker.start_again().await?;

    let lost = judge.told("desk-1", "lost", is_lost).await?;
    ensure!(
        has_reason(&lost, "NOT_BACK_AFTER_RESTART"),
        "{}",
        describe(&lost)
    );
    judge.mend("desk-1");
    dead.process = dead.agent.run()?;
    judge.told("desk-1", "well again", is_well).await?;
    judge.verdict().await
}

#[tokio::test]
async fn a_dead_host_is_out_within_a_window_of_a_broker_that_crashes_again_and_again() -> Result<()>
{
    let mut broker = Broker::start_with(Settings {
        reconnect_window: Duration::from_secs(7),
        ..quick()
    })
    .await?;
    let window = broker.settings.lease() + broker.settings.reconnect_window;
    let mut fleet = Fleet::start(&broker, "default", "host", 2).await?;
    let judge = Judge::start(&broker).await?;
    judge.allow(window * 2);
    judge.harm("host-0");
    broker.kill().await?;
    fleet.agents.remove(0).kill().await;
    // Each life is shorter than the window: none of them sees its end. What counts is how long the
    // dead host is believed in all of them together.
    let mut believed = Duration::ZERO;
    let mut lives = 0;
    loop {
        broker.start_again().await?;
        lives += 1;
        let verdict = one_life(&broker, window / 4, &mut believed).await?;
        ensure!(
            believed <= window,
            "believed for {believed:?} in {lives} lives, with a window of {window:?}"
        );
        if is_lost(&verdict) {
            ensure!(
                has_reason(&verdict, "NOT_BACK_AFTER_RESTART"),
                "{}",
                describe(&verdict)
            );
            break;
        }
        broker.kill().await?;
    }
    ensure!(lives > 1, "it saw the end of its window");
    println!("out after {lives} lives and {believed:?} of {window:?}");
    judge.told("host-0", "lost", is_lost).await?;
    judge.told("host-1", "well", is_well).await?;
    judge.verdict().await
}

/// Asks about the dead host until it is lost or this life of the broker is over, and adds the time
/// for which it was believed.
async fn one_life(broker: &Broker, life: Duration, believed: &mut Duration) -> Result<Verdict> {
    let born = Instant::now();
    let last_yes = Cell::new(Duration::ZERO);
    let verdict = wait::until("the end of a life", wait::PATIENCE, || async {
        let verdict = broker.verdict("host-0").await?;
        if !is_lost(&verdict) {
            last_yes.set(born.elapsed());
            ensure!(born.elapsed() >= life, "it is believed");
        }
        Ok(verdict)
    })
    .await?;
    *believed += last_yes.get();
    Ok(verdict)
}
