//! A client in another language, with nothing of ours but a certificate: grpcio and reflection.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use muster_proto::v1::CheckOutcome;
use muster_tests::{
    binaries::repository,
    broker::Broker,
    fleet::Fleet,
    process::{self, Output},
    wait,
};
use serde_json::Value;
use tokio::process::Command;

/// The client as a command, with the certificate in this folder.
fn client(broker: &Broker, folder: Option<&Path>, arguments: &[&str]) -> Result<Command> {
    let python = repository().join("target/tools/venv/bin/python");
    ensure!(
        python.exists(),
        "{} is not there: run `tests/run --install` once",
        python.display()
    );
    let mut command = Command::new(python);
    command
        .arg(repository().join("tests/python/client.py"))
        .args(["--endpoint", &broker.endpoints.grpc]);
    if let Some(folder) = folder {
        command.arg("--dir").arg(folder);
    }
    command.args(arguments);
    Ok(command)
}

async fn ask(broker: &Broker, folder: &Path, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = run(broker, Some(folder), arguments).await?;
    ensure!(output.code == Some(0), "{arguments:?}: {output:?}");
    lines(&output)
}

async fn run(broker: &Broker, folder: Option<&Path>, arguments: &[&str]) -> Result<Output> {
    process::run(client(broker, folder, arguments)?, wait::PATIENCE * 2).await
}

fn lines(output: &Output) -> Result<Vec<Value>> {
    let lines = output.stdout.lines();
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[tokio::test]
async fn python_lists_checks_and_watches_with_a_viewer_certificate() -> Result<()> {
    let broker = Broker::start().await?;
    let mut fleet = Fleet::start(&broker, "default", "host", 3).await?;
    fleet.agents[1]
        .report(&[("urls", CheckOutcome::Fail)])
        .await?;
    let folder = broker.folder().path().join("viewer");
    let folder_text = folder.to_str().context("a path that is no text")?;
    let issued = broker
        .cli(&[
            "cert",
            "issue",
            "--role",
            "viewer",
            "--name",
            "python",
            "--out",
            folder_text,
        ])
        .await?;
    ensure!(issued.code == Some(0), "{issued:?}");

    let services = ask(&broker, &folder, &["services"]).await?;
    let names = services[0]["services"].as_array().context("no services")?;
    for service in [
        "muster.v1.ConnectionService",
        "muster.v1.FleetService",
        "grpc.health.v1.Health",
    ] {
        ensure!(
            names.iter().any(|name| name == service),
            "{service}: {names:?}"
        );
    }
    let health = ask(&broker, &folder, &["health"]).await?;
    ensure!(health[0]["status"] == "SERVING", "{health:?}");

    // Three hosts in pages of two.
    let listed = ask(&broker, &folder, &["list"]).await?;
    let listed: Vec<_> = listed.iter().map(|verdict| &verdict["name"]).collect();
    ensure!(listed == ["host-0", "host-1", "host-2"], "{listed:?}");

    let checked = ask(&broker, &folder, &["check", "host-1"]).await?;
    ensure!(
        checked[0]["status"] == "HOST_STATUS_NEEDS_ASSISTANCE",
        "{checked:?}"
    );
    ensure!(checked[0]["connectable"] == true, "{checked:?}");
    ensure!(
        checked[0]["reasons"][0]["code"] == "CHECK_FAILED",
        "{checked:?}"
    );

    let unknown = run(&broker, Some(&folder), &["check", "nobody"]).await?;
    ensure!(unknown.code == Some(3), "{unknown:?}");
    let refusal = &lines(&unknown)?[0];
    ensure!(
        refusal["error"] == "NOT_FOUND" && refusal["reason"] == "HOST_UNKNOWN",
        "{refusal}"
    );

    let until = "host-2=HOST_STATUS_UNAVAILABLE";
    let watch = ["watch", "--until", until, "--seconds", "30"];
    let watch = tokio::spawn(process::run(
        client(&broker, Some(&folder), &watch)?,
        wait::PATIENCE * 2,
    ));
    fleet.agents.remove(2).kill().await;
    let watched = watch.await??;
    ensure!(watched.code == Some(0), "{watched:?}");
    let events = lines(&watched)?;
    ensure!(
        events
            .iter()
            .any(|event| event.get("snapshot_end").is_some()),
        "{events:?}"
    );
    Ok(())
}

#[tokio::test]
async fn python_without_a_certificate_is_told_what_is_missing() -> Result<()> {
    let broker = Broker::start().await?;
    let _fleet = Fleet::start(&broker, "default", "host", 1).await?;
    let issued = muster_tests::clients::issue(&broker, "viewer", "python").await?;
    let folder = broker.folder().path().join("ca-only");
    std::fs::create_dir(&folder)?;
    issued.store(&folder)?;
    // The CA alone: the broker is believed, and asks for a certificate in its turn.
    std::fs::remove_file(folder.join("key.pem"))?;
    std::fs::remove_file(folder.join("cert.pem"))?;
    let output = run(&broker, Some(&folder), &["check", "host-0"]).await?;
    ensure!(output.code == Some(3), "{output:?}");
    let refusal = &lines(&output)?[0];
    ensure!(
        refusal["error"] == "UNAUTHENTICATED" && refusal["reason"] == "CERTIFICATE_REQUIRED",
        "{refusal}"
    );
    Ok(())
}
