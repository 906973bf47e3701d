//! A broker that stops leaves well: it says so, writes what it knows, and is gone in time.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_broker::Config;
use muster_proto::v1::{HostStatus, broker_message, directive::Action};
use muster_runtime::{
    refusal::{BROKER_STOPPING, Refusal},
    shutdown::Shutdown,
};
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    fleet::Fleet,
    session::{Session, plain_hello, plain_report},
    targets::Target,
    wait,
};
use tonic::Code;

use crate::support::{Watch, assert_refused};

/// From the signal to the end of the process, whatever hangs on it.
const GONE_WITHIN: Duration = Duration::from_secs(5);

async fn stop_in_time(broker: &mut Broker) -> Result<()> {
    let status = broker.process.terminate(GONE_WITHIN).await?;
    ensure!(status.success(), "the broker ended with {status}");
    Ok(())
}

#[tokio::test]
async fn agents_and_watchers_are_told_to_come_again_each_at_its_own_time() -> Result<()> {
    let mut broker = Broker::start().await?;
    let token = broker.token("default", None, 1).await?;
    let host = broker.way_in().enrol(&token, "host-1").await?;
    let (mut session, _) = Session::hello(host.connect().await?, plain_hello("boot")).await?;
    session.report(plain_report(&[])).await?;
    let mut watches = Vec::new();
    for _ in 0..8 {
        watches.push(Watch::start(&broker).await?);
    }
    let told = async {
        let directive = loop {
            if let broker_message::Body::Directive(directive) = session.next().await? {
                break directive;
            }
        };
        let Some(Action::Reconnect(away)) = directive.action else {
            anyhow::bail!("another directive: {directive:?}");
        };
        ensure!(away.within_ms > 0 && away.endpoints.is_empty(), "{away:?}");
        // An agent that does not follow it is told the same by the end of the stream.
        let status = session.refused().await?;
        assert_refused(&status, Code::Unavailable, BROKER_STOPPING)
    };
    let (stopped, told) = tokio::join!(stop_in_time(&mut broker), told);
    stopped.and(told)?;

    let mut times = Vec::new();
    for watch in &mut watches {
        let status = watch.refused().await?;
        assert_refused(&status, Code::Unavailable, BROKER_STOPPING)?;
        let refusal = Refusal::from_status(&status).context("a refusal")?;
        times.push(refusal.retry_after.context("no time to come again")?);
    }
    times.sort();
    times.dedup();
    ensure!(times.len() > 4, "no jitter: {times:?}");
    Ok(())
}

#[tokio::test]
async fn under_hundreds_of_agents_the_broker_is_gone_in_time_and_nobody_is_lost() -> Result<()> {
    let mut broker = Broker::start().await?;
    let fleet = Fleet::start(&broker, "default", "host", 300).await?;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(Watch::start(&broker).await?);
    }
    // One that has not even said Hello, and one that reads nothing, hold nobody up.
    let silent = fleet.agents[0].credentials.connect().await?;
    let hello = muster_proto::v1::agent_message::Body::Hello(plain_hello("other boot"));
    let _unread = Session::open(silent, hello).await?;

    stop_in_time(&mut broker).await?;
    for agent in &fleet.agents[1..] {
        agent
            .until("to be sent away", |state| state.sent_away == 1)
            .await?;
    }
    for watch in &mut watches {
        assert_refused(&watch.refused().await?, Code::Unavailable, BROKER_STOPPING)?;
    }

    broker.start_again().await?;
    let mut watch = Watch::start(&broker).await?;
    ensure!(watch.told.len() == 300, "{} hosts", watch.told.len());
    for agent in &fleet.agents {
        agent.reported().await?;
    }
    watch.listen_for(broker.settings.lease()).await?;
    for verdict in &watch.told {
        ensure!(
            verdict.status() == HostStatus::Available && verdict.connectable_new,
            "{}",
            describe(verdict)
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_real_agent_that_is_sent_away_comes_back_without_a_warning() -> Result<()> {
    let mut broker = Broker::start().await?;
    let listener = Target::listener().await?;
    let checks = format!(
        "[check.session_listener]\n{}",
        listener.as_session_listener()
    );
    let agent = Agent::new(broker.folder().path(), "desk-1", &checks)?;
    let token = broker.token("default", Some("desk-1"), 1).await?;
    agent.enrol(&broker.endpoints.grpc, &token).await?;
    let process = agent.run()?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    stop_in_time(&mut broker).await?;
    broker.start_again().await?;
    wait::until("the agent to be back", wait::PATIENCE, || async {
        let log = process.log()?;
        ensure!(log.matches("session is open").count() == 2, "{log}");
        ensure!(log.contains("sent away by the broker"), "{log}");
        ensure!(!log.contains("the session was lost"), "{log}");
        Ok(())
    })
    .await
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(wait::PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_withdrawn_from_the_request_to_stop_on() -> Result<()> {
    muster_runtime::tls::install_provider();
    let folder = tempfile::tempdir()?;
    let mut config = Config {
        data_dir: folder.path().join("data"),
        operator_socket: folder.path().join("operator.sock"),
        operator_group: String::new(),
        ..Config::default()
    };
    config.listen.grpc = SocketAddr::from(([127, 0, 0, 1], 0));
    config.listen.http = SocketAddr::from(([127, 0, 0, 1], 0));
    let shutdown = Shutdown::new();
    let broker = muster_broker::start(config, shutdown.clone()).await?;
    let http = broker.endpoints.http;
    let before = get(http, "/readyz")?;
    ensure!(before.starts_with("HTTP/1.1 200"), "{before}");
    shutdown.request();
    let after = get(http, "/readyz")?;
    ensure!(
        after.starts_with("HTTP/1.1 503") && after.contains("shutting down"),
        "{after}"
    );
    broker.join().await?;
    ensure!(get(http, "/readyz").is_err(), "it still serves");
    Ok(())
}
