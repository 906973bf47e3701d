//! Many hosts that fall silent at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use muster_proto::v1::Verdict;
use muster_tests::{
    apart,
    broker::{Broker, describe},
    fleet::LightAgent,
    wait,
};

use super::{
    Block, Judge, PORT, calibrated, evidence, is_lost, is_well, let_probe, lights, quick,
    state_until, status_text,
};
use crate::support::has_reason;

/// Holds last at most this long, in any hour.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Ten hosts with listeners that the broker has found.
async fn ten(broker: &Broker, block: &Block) -> Result<Vec<LightAgent>> {
    let_probe(broker, "desks", "\"127.0.0.0/8\"", &PORT.to_string()).await?;
    let agents = lights(broker, "desks", "desk", block, 10).await?;
    calibrated(broker, 10).await?;
    Ok(agents)
}

fn is_held(verdict: &Verdict) -> bool {
    has_reason(verdict, "MASS_LOSS") && verdict.connectable_reconnect
}

async fn partition(block: &Block, numbers: std::ops::RangeInclusive<u8>) -> Result<()> {
    let rules: Vec<String> = numbers
        .flat_map(|number| {
            let address = block.address(number);
            [
                format!("ip saddr {address} drop"),
                format!("ip daddr {address} drop"),
            ]
        })
        .collect();
    let rules: Vec<(&str, &str)> = rules.iter().map(|rule| ("in", rule.as_str())).collect();
    apart::rules(&rules).await
}

/// Operators see the hold, with its reason and its end, and monitoring counts it.
async fn is_shown(broker: &Broker) -> Result<()> {
    let text = status_text(broker).await?;
    for word in [
        "MASS_LOSS in pool desks",
        "7 held",
        "reconnecting only",
        "hold end --pool desks",
    ] {
        ensure!(text.contains(word), "{word}: {text}");
    }
    let json = broker.json(&["status"]).await?;
    let at = |key: &str| -> Result<Timestamp> {
        Ok(json["holds"][0][key].as_str().context("no time")?.parse()?)
    };
    let lasts = Duration::try_from(at("until")?.duration_since(at("since")?))?;
    // Both are told in wall time, each by a look at the clock of its own.
    let off = lasts.abs_diff(HOLD_MAX);
    ensure!(off < Duration::from_secs(1), "{json:#}");
    for (metric, value) in [
        ("muster_holds ", 1),
        ("muster_holds_begun_total ", 1),
        ("muster_hosts_held ", 7),
    ] {
        ensure!(broker.metric(metric).await? == value, "{metric}");
    }

    Ok(())
}

#[test]
fn a_partition_is_held_until_an_operator_ends_the_hold() -> Result<()> {
    let name = "a_partition_is_held_until_an_operator_ends_the_hold";
    apart::run(module_path!(), name, async {
        let broker = Broker::start_with(quick()).await?;
        let block = Block::new();
        let _agents = ten(&broker, &block).await?;
        let judge = Judge::start(&broker).await?;
        judge.allow(HOLD_MAX);
        let cut_off: Vec<String> = (1..=8).map(|number| format!("desk-{number}")).collect();

        for name in &cut_off[..7] {
            judge.harm(name);
        }
        partition(&block, 1..=7).await?;
        // Three of ten are heard: new sessions go there, people may come back to the others.
        for name in &cut_off[..7] {
            let held = judge.told(name, "held, for reconnecting only", |verdict| {
                is_held(verdict) && !verdict.connectable_new
            });
            let held = evidence(&held.await?, "MASS_LOSS")?;
            ensure!(held.contains("of 10 hosts of the"), "{held}");
        }
        let shown = state_until(&broker, "seven to be held", |state| {
            state.holds.first().is_some_and(|hold| hold.hosts == 7)
        });
        ensure!(shown.await?.holds[0].reconnect_only, "enough are left");
        is_shown(&broker).await?;

        // Two of ten are too few to do without the others.
        judge.harm("desk-8");
        partition(&block, 1..=8).await?;
        for name in &cut_off {
            judge
                .told(name, "answered as before", |verdict| {
                    is_held(verdict) && is_well(verdict)
                })
                .await?;
            let told = judge.all_told(name);
            ensure!(
                !told.iter().any(is_lost),
                "{name} was told lost in the hold"
            );
        }

        let ended = broker.cli(&["hold", "end", "--pool", "desks"]).await?;
        ensure!(ended.code == Some(0), "{ended:?}");
        for name in &cut_off {
            let lost = judge.told(name, "lost", is_lost).await?;
            ensure!(has_reason(&lost, "LEASE_OVER"), "{}", describe(&lost));
        }
        // Who was let out begins no other hold.
        wait::until("no hold to be counted", wait::PATIENCE, || async {
            let holds = broker.metric("muster_holds ").await?;
            ensure!(holds == 0, "{holds}");
            Ok(())
        })
        .await?;
        ensure!(broker.metric("muster_holds_begun_total ").await? == 1);
        for name in &cut_off {
            judge.mend(name);
        }
        apart::rules(&[]).await?;
        for name in &cut_off {
            judge.told(name, "well again", is_well).await?;
        }
        judge.verdict().await
    })
}

#[tokio::test]
async fn refusals_are_believed_in_a_hold_once_one_held_host_answers() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let mut agents = ten(&broker, &Block::new()).await?;
    let judge = Judge::start(&broker).await?;
    judge.allow(HOLD_MAX);
    let mut dead: Vec<LightAgent> = agents.drain(..6).collect();
    // Before their streams end: one that still answered the first dial would speak for all.
    for agent in &mut dead {
        agent.close_listener().await;
    }
    let names: Vec<String> = dead.iter().map(|agent| agent.name.clone()).collect();
    for name in &names {
        judge.harm(name);
    }
    futures_util::future::join_all(dead.into_iter().map(LightAgent::kill)).await;
    // All of them refuse, which a firewall would do, too.
    for name in &names {
        judge.told(name, "held", is_held).await?;
        let told = judge.all_told(name);
        ensure!(!told.iter().any(is_lost), "{name} was told lost");
    }
    // One more falls silent, and its listener answers: the way there is open.
    let answering = &agents[0];
    judge.harm(&answering.name);
    answering.silence().await?;
    for name in &names {
        let lost = judge.told(name, "found dead", is_lost).await?;
        ensure!(has_reason(&lost, "PROBE_REFUSED"), "{}", describe(&lost));
    }
    let held = judge.told(&answering.name, "answered as before", |verdict| {
        is_held(verdict) && is_well(verdict)
    });
    let held = evidence(&held.await?, "MASS_LOSS")?;
    ensure!(held.contains("its listener answers"), "{held}");
    judge.verdict().await
}
