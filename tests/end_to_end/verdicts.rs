//! What front ends are told of hosts that live, fail, fall silent, die and leave.

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{
    CheckHostsRequest, CheckOutcome, Confidence, HostStatus, Intent, ListHostsRequest, PowerKind,
    UpgradeKind, UpgradePhase, UpgradeState, Verdict, watch_hosts_response::Event,
};
use muster_tests::{
    broker::{Broker, describe},
    clients::Connections,
    fleet::Fleet,
};

use crate::support::{Watch, has_reason};

#[tokio::test]
async fn check_exits_0_1_or_2_and_prints_the_whole_verdict() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 2).await?;
    let failing = [
        ("session_listener", CheckOutcome::Fail),
        ("urls", CheckOutcome::Fail),
    ];
    fleet.agents[1].report(&failing).await?;

    let yes = broker.cli(&["check", "host-0"]).await?;
    ensure!(yes.code == Some(0), "{yes:?}");
    let no = broker.cli(&["check", "host-1"]).await?;
    ensure!(no.code == Some(1), "{no:?}");
    let unknown = broker.cli(&["check", "no-such-host"]).await?;
    ensure!(unknown.code == Some(2), "{unknown:?}");
    ensure!(unknown.stderr.contains("no-such-host"), "{unknown:?}");

    let output = broker.cli(&["check", "host-1", "--output", "json"]).await?;
    ensure!(output.code == Some(1), "{output:?}");
    let verdict: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let expected = serde_json::json!({
        "name": "host-1",
        "status": "unavailable",
        "connectable": false,
        "connectable_new": false,
        "connectable_reconnect": false,
        "intent": "new",
        "confidence": "confirmed",
        "pool": "default",
    });
    for (key, value) in expected.as_object().context("no object")? {
        ensure!(verdict[key] == *value, "{key}: {verdict:#}");
    }
    let reasons = verdict["reasons"].as_array().context("no reasons")?;
    let codes: Vec<_> = reasons.iter().map(|reason| &reason["code"]).collect();
    ensure!(
        codes == ["FATAL_CHECK_FAILED", "CHECK_FAILED"],
        "not worst first: {verdict:#}"
    );
    ensure!(reasons[0]["subject"] == "session_listener", "{verdict:#}");
    let since = reasons[0]["since"].as_str().context("no since")?;
    ensure!(
        since.ends_with('Z') && since.contains('T'),
        "not RFC 3339: {since}"
    );
    Ok(())
}

#[tokio::test]
async fn check_cannot_tell_when_the_broker_is_not_there() -> Result<()> {
    let mut broker = Broker::start().await?;
    broker.kill().await?;
    let output = broker.cli(&["check", "host-0"]).await?;
    ensure!(output.code == Some(2), "{output:?}");
    ensure!(
        output.stdout.is_empty() && !output.stderr.is_empty(),
        "{output:?}"
    );
    Ok(())
}

#[tokio::test]
async fn reconnecting_is_asked_for_by_intent() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let drained = broker
        .cli(&["drain", "host-0", "--reason", "new disks"])
        .await?;
    ensure!(drained.code == Some(0), "{drained:?}");
    let new = broker.cli(&["check", "host-0", "--intent", "new"]).await?;
    let back = broker
        .cli(&["check", "host-0", "--intent", "reconnect"])
        .await?;
    ensure!(
        (new.code, back.code) == (Some(1), Some(0)),
        "{new:?} {back:?}"
    );
    ensure!(
        new.stdout.contains("DRAINED") && new.stdout.contains("new disks"),
        "{new:?}"
    );
    let undrained = broker.cli(&["undrain", "host-0"]).await?;
    ensure!(undrained.code == Some(0), "{undrained:?}");
    ensure!(broker.cli(&["check", "host-0"]).await?.code == Some(0));
    drop(fleet);
    Ok(())
}

#[tokio::test]
async fn a_dead_agent_is_suspect_at_once_and_unavailable_when_its_lease_ends() -> Result<()> {
    let broker = Broker::start().await?;
    let mut fleet = Fleet::start(&broker, "default", "host", 2).await?;
    let mut watch = Watch::start(&broker).await?;
    let lease = broker.settings.lease();
    let begun = std::time::Instant::now();
    let victim = fleet.agents.remove(0);
    victim.kill().await;

    let suspect = watch
        .until("host-0", "suspect", |verdict| {
            verdict.confidence() == Confidence::Suspect
        })
        .await?;
    ensure!(
        begun.elapsed() < lease / 2,
        "suspect only after {:?}",
        begun.elapsed()
    );
    ensure!(
        suspect.status() == HostStatus::Available && suspect.connectable_new,
        "still answered from its lease: {}",
        describe(&suspect)
    );
    let gone = watch
        .until("host-0", "unavailable", |verdict| {
            verdict.status() == HostStatus::Unavailable
        })
        .await?;
    // The last beat came up to an interval before the death.
    let least = lease.saturating_sub(broker.settings.interval);
    ensure!(
        begun.elapsed() >= least,
        "unavailable after {:?}",
        begun.elapsed()
    );
    ensure!(
        gone.confidence() == Confidence::Absent,
        "{}",
        describe(&gone)
    );
    ensure!(
        has_reason(&gone, "LEASE_OVER") && !gone.connectable_new && !gone.connectable_reconnect
    );
    let other = broker.verdict("host-1").await?;
    ensure!(
        other.status() == HostStatus::Available,
        "{}",
        describe(&other)
    );
    Ok(())
}

#[tokio::test]
async fn a_silent_host_is_not_connectable_after_its_lease() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    fleet.agents[0].silence().await?;
    // Its stream stays open: only the lease can tell.
    let gone = broker
        .verdict_until("host-0", "unavailable", |verdict| !verdict.connectable_new)
        .await?;
    ensure!(
        gone.status() == HostStatus::Unavailable && has_reason(&gone, "LEASE_OVER"),
        "{}",
        describe(&gone)
    );
    Ok(())
}

/// A host, its status, the answer for a new session, and a reason.
type Expected = (&'static str, HostStatus, bool, Option<&'static str>);

const EVERY_STATUS: [Expected; 6] = [
    ("host-0", HostStatus::Available, true, None),
    (
        "host-1",
        HostStatus::NeedsAssistance,
        true,
        Some("CHECK_FAILED"),
    ),
    (
        "host-2",
        HostStatus::Unavailable,
        false,
        Some("FATAL_CHECK_UNKNOWN"),
    ),
    (
        "host-3",
        HostStatus::Shutdown,
        false,
        Some("LEAVING_POWEROFF"),
    ),
    ("host-4", HostStatus::Upgrading, false, Some("UPGRADING")),
    (
        "host-5",
        HostStatus::UpgradeFailed,
        true,
        Some("UPGRADE_FAILED"),
    ),
];

/// Leads a fleet of six to the statuses of [`EVERY_STATUS`].
async fn every_status(fleet: &Fleet) -> Result<()> {
    let upgrade = |kind: UpgradeKind, phase: UpgradePhase| UpgradeState {
        kind: kind.into(),
        phase: phase.into(),
        attempt_id: "attempt-1".to_owned(),
        from_version: "0.1.0".to_owned(),
        to_version: "9.9.9".to_owned(),
        error: "disk full".to_owned(),
        ..UpgradeState::default()
    };
    let [_, assisted, failing, leaving, upgrading, failed] = &fleet.agents[..] else {
        anyhow::bail!("six agents");
    };
    assisted.report(&[("urls", CheckOutcome::Fail)]).await?;
    failing.report(&[("domain", CheckOutcome::Unknown)]).await?;
    leaving.leave(PowerKind::Poweroff).await?;
    let switch = upgrade(UpgradeKind::InProgress, UpgradePhase::Switch);
    upgrading.upgrade(switch).await?;
    let rollback = upgrade(UpgradeKind::Failed, UpgradePhase::Rollback);
    failed.upgrade(rollback).await
}

/// All verdicts by `ListHosts`, in two pages.
async fn listed(front_end: &mut Connections) -> Result<Vec<Verdict>> {
    let request = ListHostsRequest {
        page_size: 4,
        ..ListHostsRequest::default()
    };
    let first = front_end
        .service()
        .list_hosts(request.clone())
        .await?
        .into_inner();
    ensure!(
        first.verdicts.len() == 4,
        "{} on the first page",
        first.verdicts.len()
    );
    let request = ListHostsRequest {
        page_token: first.next_page_token,
        ..request
    };
    let second = front_end.service().list_hosts(request).await?.into_inner();
    ensure!(second.next_page_token.is_empty(), "a third page");
    Ok(first.verdicts.into_iter().chain(second.verdicts).collect())
}

#[tokio::test]
async fn every_status_is_told_to_every_face_alike() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 6).await?;
    every_status(&fleet).await?;

    let mut front_end = broker.front_end().await?;
    let request = CheckHostsRequest {
        names: fleet
            .names()
            .into_iter()
            .chain(["nobody".to_owned()])
            .collect(),
        intent: Intent::New.into(),
    };
    let checked = front_end
        .service()
        .check_hosts(request)
        .await?
        .into_inner()
        .results;
    ensure!(
        checked.len() == 7 && checked[6].verdict.is_none(),
        "{checked:?}"
    );
    let listed = listed(&mut front_end).await?;
    let watched = Watch::start(&broker).await?.told;
    let table = broker.json(&["hosts"]).await?;
    let table = table.as_array().context("hosts is no list")?;

    for (at, (name, status, connectable, reason)) in EVERY_STATUS.into_iter().enumerate() {
        let one = front_end.check(name).await?;
        let batch = checked[at].verdict.as_ref().context("no verdict")?;
        let watched = watched.iter().find(|verdict| verdict.name == name);
        for verdict in [&one, batch, &listed[at], watched.context("not watched")?] {
            let line = describe(verdict);
            ensure!(verdict.name == name && verdict.status() == status, "{line}");
            ensure!(verdict.connectable == connectable, "{line}");
            ensure!(
                reason.is_none_or(|code| has_reason(verdict, code)),
                "{line}"
            );
        }
        let row = table.iter().find(|row| row["name"] == name);
        let row = row.with_context(|| format!("no {name} in {table:?}"))?;
        ensure!(row["connectable_new"] == connectable, "{row:#}");
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_tells_removals_and_progress() -> Result<()> {
    let broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let mut watch = Watch::start(&broker).await?;
    let removed = broker.cli(&["remove", "host-0"]).await?;
    ensure!(removed.code == Some(0), "{removed:?}");
    let (mut saw_removal, mut saw_progress) = (false, false);
    while !(saw_removal && saw_progress) {
        match watch.next().await? {
            Event::Removed(removed) => {
                ensure!(removed.name == "host-0");
                saw_removal = true;
            }
            Event::Progress(progress) => {
                ensure!(progress.as_of.is_some() && !progress.position.is_empty());
                saw_progress = true;
            }
            _ => {}
        }
    }
    Ok(())
}
