//! Who asks for too much is refused by name, and nobody else notices.

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::agent_message::Body;
use muster_runtime::{accept::AcceptOptions, refusal::Refusal};
use muster_tests::{
    broker::{Broker, Folder, Settings},
    fleet::Traits,
    process,
    session::{Session, plain_hello, plain_report},
    wait,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tonic::Code;

use super::{Judge, knock, light, quick};
use crate::support::assert_refused;

fn limited(limits: &str) -> Settings {
    Settings {
        more: format!("[limits]\n{limits}\n"),
        ..quick()
    }
}

#[tokio::test]
async fn a_session_that_says_too_much_is_ended() -> Result<()> {
    let broker = Broker::start_with(limited("messages_per_second = 4")).await?;
    let _steady = light(&broker, "default", "steady", Traits::default()).await?;
    let judge = Judge::start(&broker).await?;
    let token = broker.token("default", Some("chatty"), 1).await?;
    let host = broker.way_in().enrol(&token, "chatty").await?;
    let (mut session, _) = Session::hello(host.connect().await?, plain_hello("boot")).await?;
    let report = plain_report(&[]);
    session.report(report.clone()).await?;
    // The burst is of five seconds.
    for _ in 0..30 {
        let beat = session.beat(&report);
        // The session ends in the midst of it.
        drop(session.say(Body::Beat(beat)).await);
    }
    let refused = session.refused().await?;
    assert_refused(&refused, Code::ResourceExhausted, "TOO_MANY_MESSAGES")?;
    let counted = broker
        .metric("muster_refusals_total{reason=\"TOO_MANY_MESSAGES\"} ")
        .await?;
    ensure!(counted == 1, "{counted}");
    judge.harm("chatty");
    judge.verdict().await
}

#[tokio::test]
async fn sessions_over_the_cap_are_told_to_come_again_later() -> Result<()> {
    let broker = Broker::start_with(limited("sessions = 2")).await?;
    let _first = light(&broker, "default", "host-1", Traits::default()).await?;
    let second = light(&broker, "default", "host-2", Traits::default()).await?;
    let judge = Judge::start(&broker).await?;
    let token = broker.token("default", Some("host-3"), 1).await?;
    let third = broker.way_in().enrol(&token, "host-3").await?;
    let hello = plain_hello("boot");
    let Err(refused) = knock(&third, &hello).await else {
        anyhow::bail!("a third session of two");
    };
    assert_refused(&refused, Code::ResourceExhausted, "BROKER_BUSY")?;
    let refusal = Refusal::from_status(&refused).context("no refusal")?;
    ensure!(
        refusal.retry_after.is_some_and(|after| !after.is_zero()),
        "{refusal:?}"
    );
    judge.harm("host-2");
    second.kill().await;
    wait::until("a place to be free", wait::PATIENCE, || async {
        knock(&third, &hello).await?;
        Ok(())
    })
    .await?;
    judge.verdict().await
}

#[tokio::test]
async fn a_handshake_that_hangs_is_ended() -> Result<()> {
    let broker = Broker::start_with(limited("handshake_timeout = \"300ms\"")).await?;
    let _steady = light(&broker, "default", "steady", Traits::default()).await?;
    let judge = Judge::start(&broker).await?;
    let begun = Instant::now();
    let mut hanging = TcpStream::connect(&broker.endpoints.grpc).await?;
    let mut said = [0];
    let read = hanging.read(&mut said);
    let ended = wait::within("the end of the handshake", wait::PATIENCE, read).await?;
    ensure!(!matches!(ended, Ok(1..)), "{ended:?}");
    let default = AcceptOptions::default().handshake_timeout;
    ensure!(begun.elapsed() < default, "{:?}", begun.elapsed());
    judge.verdict().await
}

#[tokio::test]
async fn limits_out_of_range_are_named_with_what_is_allowed() -> Result<()> {
    for (line, words) in [
        ("sessions = 0", ["`limits.sessions`", "1 to 1000000"]),
        ("connections = 1", ["`limits.connections`", "16 to 1000000"]),
        ("handshakes = 1", ["`limits.handshakes`", "2 to 65536"]),
        (
            "messages_per_second = 1",
            ["`limits.messages_per_second`", "2 to 10000"],
        ),
        (
            "handshake_timeout = \"1ms\"",
            ["`limits.handshake_timeout`", "100ms to 1m"],
        ),
        ("sesions = 5", ["`sesions`", "`sessions`"]),
    ] {
        let folder = Folder::temporary()?;
        folder.write_config(&limited(line), "127.0.0.1:0", "127.0.0.1:0")?;
        let text = fs::read_to_string(folder.config())?;
        let number = text.lines().position(|found| found == line).context(line)? + 1;
        let output = process::run(folder.command(&["serve"])?, wait::PATIENCE).await?;
        ensure!(output.code == Some(78), "{line}: {output:?}");
        let place = format!("{}:{number}", folder.config().display());
        let said = |word: &str| output.stderr.contains(word);
        ensure!(
            said(&place) && words.iter().all(|word| said(word)),
            "{line}: {output:?}"
        );
    }
    Ok(())
}
