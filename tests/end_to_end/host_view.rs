//! What `muster-broker host` shows beside the verdict.

use anyhow::{Result, ensure};
use muster_tests::{agent::Agent, broker::Broker, process::Process, targets::Target, wait};
use serde_json::Value;

/// A host whose checks have these tables beside the listener.
async fn host(broker: &Broker, listener: &Target, checks: &str) -> Result<(Agent, Process)> {
    let checks = format!(
        "[check.session_listener]\n{}{checks}",
        listener.as_session_listener()
    );
    let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let process = agent.run()?;
    Ok((agent, process))
}

/// The host as JSON, as soon as `wanted` says yes to it.
async fn shown_until(
    broker: &Broker,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    wait::until(what, wait::PATIENCE, async || {
        let shown = broker.json(&["host", "desk-1"]).await?;
        ensure!(wanted(&shown), "{shown:#}");
        Ok(shown)
    })
    .await
}

#[tokio::test]
async fn a_cloud_s_machine_is_shown_by_its_own_fields() -> Result<()> {
    let broker = Broker::start().await?;
    let listener = Target::listener().await?;
    let cloud = Target::web_server_with(
        r#"{"compute":{"vmId":"02aab8a4","location":"westeurope","vmSize":"Standard_D4s_v5"}}"#,
    )
    .await?;
    let checks = format!(
        "[check.metadata_service]\nprovider = \"azure\"\nendpoint = \"{}\"\n",
        cloud.url()
    );
    let (_agent, mut process) = host(&broker, &listener, &checks).await?;
    let shown = shown_until(&broker, "the cloud is told", |host| {
        host["cloud"].is_object()
    })
    .await?;
    let wanted = serde_json::json!({
        "provider": "azure",
        "instance_id": "02aab8a4",
        "region": "westeurope",
        "instance_type": "Standard_D4s_v5",
    });
    ensure!(shown["cloud"] == wanted, "{shown:#}");
    let table = broker.cli(&["host", "desk-1"]).await?;
    ensure!(
        table
            .stdout
            .contains("azure instance 02aab8a4, type Standard_D4s_v5, in westeurope"),
        "{table:?}"
    );
    let listed = broker.json(&["hosts"]).await?;
    ensure!(listed[0]["cloud"] == wanted, "{listed:#}");
    process.terminate(wait::PATIENCE).await?;
    let kept = broker.json(&["host", "desk-1"]).await?;
    ensure!(kept["cloud"] == wanted, "{kept:#}");
    Ok(())
}
