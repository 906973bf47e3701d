//! Copies of a machine, and machines that come and go.

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{GetHostRequest, HostStatus, Verdict};
use muster_tests::{
    agent::Agent,
    apart,
    broker::{Broker, describe},
    fleet::{LightAgent, Traits},
    session::{plain_hello, plain_report},
    wait,
};
use tonic::Code;

use super::{
    Desk, Judge, evidence, is_lost, is_well, knock, light, quick, state, state_until, status_text,
};
use crate::support::{assert_refused, has_reason};

/// The epoch of the session of desk-1.
async fn epoch(broker: &Broker) -> Result<u64> {
    let name = "desk-1".to_owned();
    let mut operator = broker.operator().await?;
    let host = operator.get_host(GetHostRequest { name }).await?;
    Ok(host.into_inner().host.context("no host")?.epoch)
}

fn in_conflict(verdict: &Verdict) -> bool {
    has_reason(verdict, "IDENTITY_CONFLICT")
}

#[tokio::test]
async fn the_copy_of_a_machine_is_refused_and_shown_with_both_addresses() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let mut desk = Desk::start(&broker, "desk-1").await?;
    let judge = Judge::start(&broker).await?;
    let settings = format!(
        "name = \"desk-1\"\n[check.session_listener]\n{}",
        desk.listener.as_session_listener()
    );
    let copy = Agent::of_this_machine(broker.folder().path(), "copy", &settings)?;
    let (from, to) = (desk.agent.data(), copy.data());
    apart::sh(&format!("cp -a {} {}", from.display(), to.display())).await?;
    // The original goes on, with another session than the one that was copied.
    let copied = epoch(&broker).await?;
    desk.process.kill().await?;
    desk.process = desk.agent.run()?;
    let incumbent = wait::until("a new session", wait::PATIENCE, || async {
        let epoch = epoch(&broker).await?;
        ensure!(epoch > copied, "{epoch}");
        Ok(epoch)
    })
    .await?;
    let heard = |verdict: &Verdict| verdict.connectable_new && verdict.confidence_reason.is_empty();
    broker.verdict_until("desk-1", "heard again", heard).await?;

    let cloned = copy.run()?;
    is_shown(&broker, &judge).await?;
    // The copy itself says what it is, and what to do.
    wait::until("the copy to say so", wait::PATIENCE, || async {
        let log = cloned.log()?;
        ensure!(
            log.contains("IDENTITY_CONFLICT") && log.contains("generalize"),
            "{log}"
        );
        Ok(())
    })
    .await?;

    let trusted = broker.cli(&["trust", "desk-1"]).await?;
    ensure!(trusted.code == Some(0), "{trusted:?}");
    judge
        .told("desk-1", "decided", |verdict| {
            verdict.status() == HostStatus::Available && !in_conflict(verdict)
        })
        .await?;
    ensure!(state(&broker).await?.conflicts.is_empty());
    let again = broker.cli(&["trust", "desk-1"]).await?;
    ensure!(
        again.code != Some(0) && again.stderr.contains("CONFLICT_UNKNOWN"),
        "{again:?}"
    );
    ensure!(epoch(&broker).await? == incumbent, "the incumbent stays");
    judge.verdict().await
}

/// The conflict is told to front ends, to operators, and counted.
async fn is_shown(broker: &Broker, judge: &Judge) -> Result<()> {
    let conflict = judge.told("desk-1", "in conflict", in_conflict).await?;
    ensure!(
        conflict.status() == HostStatus::NeedsAssistance && conflict.connectable_new,
        "{}",
        describe(&conflict)
    );
    let seen = evidence(&conflict, "IDENTITY_CONFLICT")?;
    let addresses: Vec<&str> = seen
        .lines()
        .filter_map(|line| line.split("127.0.0.1:").nth(1))
        .collect();
    ensure!(
        matches!(addresses[..], [first, second] if first != second)
            && seen.contains("heard from")
            && seen.contains("refused"),
        "{seen}"
    );
    let reason = conflict
        .reasons
        .iter()
        .find(|it| it.code == "IDENTITY_CONFLICT");
    let remedy = reason
        .and_then(|reason| reason.remedy.clone())
        .context("no remedy")?;
    ensure!(
        remedy
            .commands
            .iter()
            .any(|it| it == "muster-broker trust desk-1"),
        "{remedy:?}"
    );
    ensure!(state(broker).await?.conflicts == ["desk-1"]);
    let text = status_text(broker).await?;
    ensure!(text.contains("IDENTITY_CONFLICT about desk-1"), "{text}");
    ensure!(broker.metric("muster_identity_conflicts_total ").await? > 0);
    Ok(())
}

#[tokio::test]
async fn an_operator_can_believe_the_newcomer() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let incumbent = light(&broker, "default", "host-1", Traits::default()).await?;
    let judge = Judge::start(&broker).await?;
    let newcomer = incumbent.credentials.clone();
    let hello = plain_hello("another-boot");
    // A stranger waits until the incumbent has shown that it lives, and is a copy then.
    let Err(first) = knock(&newcomer, &hello).await else {
        anyhow::bail!("a stranger was let in");
    };
    assert_refused(&first, Code::Aborted, "IDENTITY_IN_USE")?;
    wait::until("a conflict", wait::PATIENCE, || async {
        match knock(&newcomer, &hello).await {
            Ok(_) => anyhow::bail!("a stranger was let in"),
            Err(refused) => assert_refused(&refused, Code::Aborted, "IDENTITY_CONFLICT"),
        }
    })
    .await?;
    judge.told("host-1", "in conflict", in_conflict).await?;
    let trusted = broker.cli(&["trust", "host-1", "--newcomer"]).await?;
    ensure!(trusted.code == Some(0), "{trusted:?}");
    // Another boot: nothing is known of its checks until it reports.
    judge.harm("host-1");
    let mut session = knock(&newcomer, &hello).await?;
    session.report(plain_report(&[])).await?;
    judge.mend("host-1");
    let refused = incumbent.until("the old one to be refused", |state| {
        let refused = state.refused.as_ref();
        refused.is_some_and(|status| {
            assert_refused(status, Code::Aborted, "IDENTITY_CONFLICT").is_ok()
        })
    });
    refused.await?;
    let verdict = broker.verdict("host-1").await?;
    ensure!(
        is_well(&verdict) && !in_conflict(&verdict),
        "{}",
        describe(&verdict)
    );
    judge.verdict().await
}

#[tokio::test]
async fn a_host_that_comes_and_goes_rests_and_the_last_of_a_pool_does_not() -> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let mut others = Vec::new();
    for number in 2..=5 {
        let name = format!("desk-{number}");
        others.push(light(&broker, "desks", &name, Traits::default()).await?);
    }
    let mut pair = Vec::new();
    for (pool, name) in [("desks", "desk-1"), ("lonely", "lone-1")] {
        pair.push(light(&broker, pool, name, Traits::default()).await?);
    }
    let judge = Judge::start(&broker).await?;
    for round in 1..=3 {
        let mut back = Vec::new();
        for agent in pair {
            judge.harm(&agent.name);
            back.push(agent.credentials.clone());
            agent.kill().await;
        }
        pair = Vec::new();
        for credentials in back {
            let name = credentials.name.clone();
            judge.told(&name, "lost", is_lost).await?;
            judge.mend(&name);
            pair.push(LightAgent::start(credentials));
            let rests = round == 3 && name == "desk-1";
            judge
                .told(&name, "back", |verdict| {
                    verdict.connectable_reconnect && verdict.connectable_new != rests
                })
                .await?;
        }
    }
    let resting = judge.told("desk-1", "held down", |verdict| {
        has_reason(verdict, "HELD_DOWN")
    });
    let resting = resting.await?;
    ensure!(
        resting.status() == HostStatus::Available
            && !resting.connectable_new
            && resting.connectable_reconnect,
        "{}",
        describe(&resting)
    );
    let shown = state_until(&broker, "a host to rest", |state| {
        !state.held_down.is_empty()
    })
    .await?;
    let [held] = &shown.held_down[..] else {
        anyhow::bail!("{shown:?}");
    };
    ensure!(held.name == "desk-1" && held.losses == 3, "{held:?}");
    let text = status_text(&broker).await?;
    ensure!(
        text.contains("HELD_DOWN: desk-1 was lost 3 times"),
        "{text}"
    );
    ensure!(broker.metric("muster_hold_downs_total ").await? == 1);
    let told = judge.all_told("lone-1");
    ensure!(!told.iter().any(|verdict| has_reason(verdict, "HELD_DOWN")));
    judge.verdict().await
}
