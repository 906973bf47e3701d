//! What `muster-broker host` shows beside the verdict.

use anyhow::{Context as _, Result, ensure};
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

fn check<'a>(host: &'a Value, name: &str) -> &'a Value {
    let checks = host["checks"].as_array().map(Vec::as_slice);
    let mut checks = checks.unwrap_or_default().iter();
    checks
        .find(|check| check["name"] == name)
        .unwrap_or(&Value::Null)
}

/// From and to of a check's flips, newest first.
fn flips(host: &Value, name: &str) -> Vec<(Value, Value)> {
    let flips = check(host, name)["flips"].as_array().cloned();
    let flips = flips.unwrap_or_default().into_iter();
    flips
        .map(|flip| (flip["from"].clone(), flip["to"].clone()))
        .collect()
}

#[tokio::test]
async fn a_check_shows_when_it_was_last_seen_and_how_it_flipped() -> Result<()> {
    let mut broker = Broker::start().await?;
    let (listener, url) = (Target::listener().await?, Target::web_server().await?);
    let checks = format!(
        "[check.urls]\ninterval = \"300ms\"\nfall = 1\n\
         required = [{{ url = \"{}\", role = \"custom\" }}]\n",
        url.url()
    );
    url.answer_with(503);
    let (_agent, mut process) = host(&broker, &listener, &checks).await?;
    let first = shown_until(&broker, "a first result", |host| {
        !flips(host, "urls").is_empty()
    })
    .await?;
    ensure!(
        flips(&first, "urls") == [(Value::Null, "fail".into())],
        "{first:#}"
    );
    url.answer_with(200);
    let wanted = [("fail".into(), "pass".into()), (Value::Null, "fail".into())];
    let mended = shown_until(&broker, "it is mended", |host| {
        flips(host, "urls") == wanted
    })
    .await?;
    ensure!(flips(&mended, "domain").is_empty(), "{mended:#}");

    // It finds the same again and again, which nobody is told of by itself.
    let seen = |host: &Value| -> Result<jiff::Timestamp> {
        let at = check(host, "urls")["last_run_at"].as_str();
        Ok(at.context("never seen")?.parse()?)
    };
    let before = seen(&mended)?;
    shown_until(&broker, "a later run", |host| {
        seen(host).is_ok_and(|later| later > before)
    })
    .await?;

    let table = broker.cli(&["host", "desk-1"]).await?;
    for word in [
        "LAST SEEN",
        "changes of checks, newest first",
        "answers 503",
    ] {
        ensure!(table.stdout.contains(word), "{word}: {table:?}");
    }

    // Whoever is gone was last seen when it was, and a restart of the broker makes it no younger.
    process.kill().await?;
    shown_until(&broker, "the host is gone", |host| {
        host["connectable"] == false
    })
    .await?;
    let gone = broker.json(&["host", "desk-1"]).await?;
    broker.stop().await?;
    broker.start_again().await?;
    let after = broker.json(&["host", "desk-1"]).await?;
    ensure!(seen(&after)? == seen(&gone)?, "{after:#}");
    ensure!(flips(&after, "urls") == wanted, "{after:#}");
    let listed = broker.json(&["hosts"]).await?;
    ensure!(
        check(&listed[0], "urls")["flips"].is_null(),
        "a list has no journals: {listed:#}"
    );
    Ok(())
}
