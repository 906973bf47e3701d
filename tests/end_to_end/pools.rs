//! Policies of pools, and checks run on demand.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{CheckOutcome, HostStatus};
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    fleet::Fleet,
    targets::Target,
};

fn policy(broker: &Broker, text: &str) -> Result<String> {
    let path: PathBuf = broker.folder().path().join("policy.toml");
    std::fs::write(&path, text)?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

/// Three hosts of the pool `desks`, each with a URL that it does not reach.
async fn three_that_need_assistance(broker: &Broker) -> Result<Fleet> {
    let fleet = Fleet::start(broker, "desks", "desk", 3).await?;
    for agent in &fleet.agents {
        agent.report(&[("urls", CheckOutcome::Fail)]).await?;
    }
    Ok(fleet)
}

async fn statuses(broker: &Broker, fleet: &Fleet) -> Result<Vec<HostStatus>> {
    let mut statuses = Vec::new();
    for name in fleet.names() {
        statuses.push(broker.verdict(&name).await?.status());
    }
    Ok(statuses)
}

#[tokio::test]
async fn a_policy_decides_what_a_failure_means_at_once_and_after_a_restart() -> Result<()> {
    let mut broker = Broker::start().await?;
    let fleet = three_that_need_assistance(&broker).await?;
    ensure!(statuses(&broker, &fleet).await? == [HostStatus::NeedsAssistance; 3]);
    let file = policy(
        &broker,
        "max_sessions = 5\n[severity]\nurls = \"report_only\"\n",
    )?;
    let set = broker.cli(&["pool", "set", "desks", &file]).await?;
    ensure!(
        set.code == Some(0) && set.stdout.contains("desks-1"),
        "{set:?}"
    );
    ensure!(statuses(&broker, &fleet).await? == [HostStatus::Available; 3]);
    let history = broker.json(&["history", "desk-0"]).await?;
    ensure!(history[0]["trigger"] == "policy", "{history:#}");

    broker.kill().await?;
    broker.start_again().await?;
    ensure!(statuses(&broker, &fleet).await? == [HostStatus::Available; 3]);
    let pool = broker.json(&["pool", "show", "desks"]).await?;
    ensure!(
        pool[0]["revision"] == "desks-1" && pool[0]["hosts"] == 3,
        "{pool:#}"
    );
    Ok(())
}

#[tokio::test]
async fn a_policy_that_turns_a_pool_to_no_is_shown_and_needs_force() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = three_that_need_assistance(&broker).await?;
    let file = policy(&broker, "[severity]\nurls = \"fatal\"\n")?;
    let preview = broker.json(&["pool", "preview", "desks", &file]).await?;
    ensure!(
        preview["turned_to_no"] == 3 && preview["connectable"] == 3,
        "{preview:#}"
    );
    ensure!(preview["effects"][0]["to"] == "unavailable", "{preview:#}");
    let refused = broker.cli(&["pool", "set", "desks", &file]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("POLICY_TOO_SHARP"),
        "{refused:?}"
    );
    ensure!(statuses(&broker, &fleet).await? == [HostStatus::NeedsAssistance; 3]);
    let forced = broker
        .cli(&["pool", "set", "desks", &file, "--force"])
        .await?;
    ensure!(forced.code == Some(0), "{forced:?}");
    ensure!(statuses(&broker, &fleet).await? == [HostStatus::Unavailable; 3]);
    Ok(())
}

#[tokio::test]
async fn a_wrong_policy_names_file_line_and_key_and_changes_nothing() -> Result<()> {
    let broker = Broker::start().await?;
    let file = policy(&broker, "\n[severity]\nurls = \"deadly\"\n")?;
    let wrong = broker.cli(&["pool", "set", "default", &file]).await?;
    ensure!(wrong.code == Some(1), "{wrong:?}");
    ensure!(wrong.stderr.contains("policy.toml:3"), "{wrong:?}");
    let file = policy(
        &broker,
        "[[check]]\nname = \"gpu\"\ncommand = \"/bin/sh\"\n",
    )?;
    let wrong = broker.cli(&["pool", "set", "default", &file]).await?;
    ensure!(wrong.stderr.contains("unknown key `command`"), "{wrong:?}");
    let pool = broker.json(&["pool", "show", "default"]).await?;
    ensure!(
        pool[0]["revision"] == "default-0" && pool[0]["policy"] == "",
        "{pool:#}"
    );
    let unknown = broker.cli(&["pool", "show", "nope"]).await?;
    ensure!(unknown.stderr.contains("POOL_UNKNOWN"), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn the_agent_applies_its_pools_policy_and_runs_its_checks_on_demand() -> Result<()> {
    let broker = Broker::start().await?;
    let (listener, url) = (Target::listener().await?, Target::web_server().await?);
    let checks = format!(
        "[check.session_listener]\n{}",
        listener.as_session_listener()
    );
    let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
    let token = broker.token("desks", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let _process = agent.run()?;
    let up = broker
        .verdict_until("desk-1", "connectable", |v| v.connectable_new)
        .await?;
    ensure!(up.status() == HostStatus::Available, "{}", describe(&up));

    // The checks run every 30 s: what changes now is seen because somebody asks.
    listener.answer_with(0);
    let asked = broker.json(&["recheck", "desk-1"]).await?;
    ensure!(asked["complete"] == true, "{asked:#}");
    let checks = asked["host"]["checks"].as_array().context("no checks")?;
    ensure!(
        checks
            .iter()
            .all(|check| check["age_ms"].as_u64() < Some(10_000)),
        "{asked:#}"
    );

    let refused = url.url();
    url.answer_with(503);
    let file = policy(
        &broker,
        &format!("[[url]]\nurl = \"{refused}\"\n[[check]]\nname = \"urls\"\nfall = 1\n"),
    )?;
    let set = broker.cli(&["pool", "set", "desks", &file]).await?;
    ensure!(set.code == Some(0), "{set:?}");
    let host = broker
        .verdict_until("desk-1", "the pool's URL to fail", |verdict| {
            verdict
                .reasons
                .iter()
                .any(|reason| reason.subject == "urls")
        })
        .await?;
    ensure!(
        host.status() == HostStatus::NeedsAssistance,
        "{}",
        describe(&host)
    );
    let shown = broker.json(&["host", "desk-1"]).await?;
    ensure!(shown["policy_revision"] == "desks-1", "{shown:#}");
    Ok(())
}

#[tokio::test]
async fn a_host_without_a_session_cannot_be_rechecked() -> Result<()> {
    let broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 1).await?;
    for agent in fleet.agents {
        agent.kill().await;
    }
    broker
        .verdict_until("host-0", "doubt", |verdict| {
            verdict.confidence() != muster_proto::v1::Confidence::Confirmed
        })
        .await?;
    let refused = broker.cli(&["recheck", "host-0"]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("HOST_NOT_CONNECTED"),
        "{refused:?}"
    );
    Ok(())
}
