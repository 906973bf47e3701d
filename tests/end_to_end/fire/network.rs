//! Black holes, lost packets, slow lines, half-open ones.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::Confidence;
use muster_tests::{
    agent::Agent,
    apart::{self, Machine},
    broker::{Broker, Folder, Settings, describe},
    fleet::{LightAgent, Manner, Traits},
    relay::Relay,
    wait,
};
use tokio::process::Command;

use super::{Judge, age, beats, calibrated, is_lost, is_well, let_probe, light, quick};
use crate::support::has_reason;

/// A broker on the test's own network, where machines can reach it.
async fn broker_on_switch(settings: Settings) -> Result<Broker> {
    apart::switch().await?;
    let grpc = format!("{}:0", apart::HERE);
    Broker::start_at(Folder::temporary()?, settings, &grpc, "127.0.0.1:0").await
}

/// A real agent on a machine of its own, with a real sshd.
async fn remote(
    broker: &Broker,
    name: &str,
    number: u8,
) -> Result<(Machine, Agent, Vec<muster_tests::process::Process>)> {
    let machine = Machine::on_switch(name, number).await?;
    let here = broker.folder().path();
    let key = here.join(format!("{name}.key"));
    apart::sh(&format!(
        "mkdir -p /run/sshd; ssh-keygen -q -N '' -t ed25519 -f {}",
        key.display()
    ))
    .await?;
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f", "/dev/null", "-o", "PidFile=none"])
        .args(["-o", "UsePAM=no", "-h"])
        .arg(&key);
    let log = here.join(format!("{name}.sshd.log"));
    let sshd = muster_tests::process::Process::spawn("sshd", machine.command(&sshd), &log)?;
    let checks = "[check.session_listener]\ninterval = \"60s\"\n";
    let agent = Agent::new(here, name, checks)?.on_machine(&machine);
    let token = broker.token("default", Some(name), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    wait::until("sshd to listen", wait::PATIENCE, || async {
        machine.sh("ss -Hltn 'sport = :22' | grep -q .").await
    })
    .await?;
    let process = agent.run()?;
    broker.verdict_until(name, "connectable", is_well).await?;
    Ok((machine, agent, vec![process, sshd]))
}

#[test]
fn a_machine_in_a_black_hole_is_lost_after_its_lease_and_is_back_after_it() -> Result<()> {
    let name = "a_machine_in_a_black_hole_is_lost_after_its_lease_and_is_back_after_it";
    apart::run(module_path!(), name, async {
        let broker = broker_on_switch(quick()).await?;
        let lease = broker.settings.lease();
        // The broker may look itself, and sees nothing either: silence convicts nobody.
        let_probe(&broker, "default", "\"10.77.0.0/24\"", "22").await?;
        let (first, ..) = &remote(&broker, "vm-1", 11).await?;
        let _second = remote(&broker, "vm-2", 12).await?;
        calibrated(&broker, 2).await?;
        let judge = Judge::start(&broker).await?;

        judge.harm("vm-1");
        let hole = format!("ip saddr {} drop", first.address);
        apart::rules(&[("in", &hole)]).await?;
        let lost = judge.told("vm-1", "lost", is_lost).await?;
        ensure!(
            has_reason(&lost, "LEASE_OVER") && age(&lost)? >= lease && age(&lost)? < lease * 2,
            "{} {:?}",
            describe(&lost),
            age(&lost)
        );
        let told = judge.all_told("vm-1");
        let suspected = told
            .iter()
            .find(|told| told.confidence() == Confidence::Suspect)
            .context("never suspect")?;
        ensure!(
            suspected.confidence_reason == "SILENT" && suspected.connectable_new,
            "{}",
            describe(suspected)
        );

        judge.mend("vm-1");
        apart::rules(&[]).await?;
        judge.told("vm-1", "well again", is_well).await?;
        judge.verdict().await
    })
}

#[test]
fn nobody_is_told_lost_at_five_percent_loss_and_a_delay_of_200_ms() -> Result<()> {
    let name = "nobody_is_told_lost_at_five_percent_loss_and_a_delay_of_200_ms";
    apart::run(module_path!(), name, async {
        let broker = Broker::start_with(Settings {
            lease_grace: Duration::from_millis(3100),
            ..quick()
        })
        .await?;
        let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), &broker.endpoints.grpc).await?;
        let token = broker.token("default", None, 6).await?;
        let mut agents = Vec::new();
        for number in 0..6 {
            let mut enrolled = broker
                .way_in()
                .enrol(&token, &format!("host-{number}"))
                .await?;
            enrolled.endpoint = relay.address.to_string();
            let agent = LightAgent::start_with(
                enrolled,
                Traits {
                    manner: Manner::AsAgents,
                    ..Traits::default()
                },
            )?;
            agent.reported().await?;
            agents.push(agent);
        }
        let judge = Judge::start(&broker).await?;
        relay.delay(Duration::from_millis(200));
        let port = relay.address.port();
        let to = format!("tcp dport {port} numgen random mod 100 < 5 counter drop");
        let from = format!("tcp sport {port} numgen random mod 100 < 5 counter drop");
        apart::rules(&[("in", &to), ("in", &from)]).await?;

        beats(&agents, 30).await?;
        let counted = apart::sh("nft list chain ip fire in").await?;
        ensure!(
            !counted.contains("packets 0 "),
            "nothing was lost: {counted}"
        );
        for agent in &agents {
            let told = judge.all_told(&agent.name);
            ensure!(told.iter().all(is_well), "{}", agent.name);
        }
        judge.verdict().await
    })
}

#[tokio::test]
async fn a_line_that_stands_still_is_survived_and_one_that_is_half_open_is_not_believed()
-> Result<()> {
    let broker = Broker::start_with(quick()).await?;
    let lease = broker.settings.lease();
    let token = broker.token("default", None, 2).await?;
    let mut agents = Vec::new();
    let mut relays = Vec::new();
    for name in ["still", "half-open"] {
        let relay = Relay::start(Ipv4Addr::LOCALHOST.into(), &broker.endpoints.grpc).await?;
        let mut enrolled = broker.way_in().enrol(&token, name).await?;
        enrolled.endpoint = relay.address.to_string();
        let agent = LightAgent::start(enrolled);
        agent.reported().await?;
        agents.push(agent);
        relays.push(relay);
    }
    let _steady = light(&broker, "default", "steady", Traits::default()).await?;
    let judge = Judge::start(&broker).await?;

    // Shorter than the lease: suspect, and never lost.
    relays[0].stand_still();
    let suspect = |verdict: &muster_proto::v1::Verdict| verdict.confidence() == Confidence::Suspect;
    judge.told("still", "suspect", suspect).await?;
    relays[0].go_on();

    judge.harm("half-open");
    relays[1].lose_what_clients_say();
    let lost = judge.told("half-open", "lost", is_lost).await?;
    ensure!(
        has_reason(&lost, "LEASE_OVER") && age(&lost)? >= lease,
        "{}",
        describe(&lost)
    );
    judge.mend("half-open");
    relays[1].go_on();
    judge.told("half-open", "well again", is_well).await?;
    judge.verdict().await
}
