//! Paths to the broker that are slow, dead or many, and what delays no beat.

use std::{
    fs,
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use muster_proto::v1::{
    CheckOutcome, Reconnect, UnknownCause, Welcome, agent_message::Body, directive::Action,
};
use muster_runtime::refusal::{self, Refusal};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::watch,
    task::yield_now,
    time::timeout,
};

use crate::{
    directive,
    edge::{Agent, Broker, Ca, PATIENCE, welcome},
};

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn neither_a_hanging_check_nor_a_missing_acknowledgement_delays_a_beat() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await;
    // Nobody speaks there: every run of the check waits for as long as it may, which is seconds.
    agent.protocol = "ssh";
    let _agent = agent.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    // Nothing of all this is ever acknowledged.
    let (mut beats, mut reports) = (0, 0);
    while beats < 15 {
        match session.next().await.expect("the session stays open") {
            Body::Beat(_) => beats += 1,
            Body::Report(report) => {
                reports += 1;
                let check = report
                    .checks
                    .iter()
                    .find(|check| check.name == "session_listener")
                    .unwrap();
                assert_eq!(check.outcome(), CheckOutcome::Unknown, "{check:?}");
                assert_eq!(check.unknown_cause(), UnknownCause::NotYetRun, "{check:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(reports > 0);
}

/// Carries bytes between an agent and its broker, and holds them back for as long as it is told.
struct Relay {
    address: SocketAddr,
    held: watch::Sender<bool>,
    /// Pieces of the agent's that came in while held.
    pieces: Arc<AtomicUsize>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (held, hold) = watch::channel(false);
        let pieces = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&pieces);
        tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                let broker = TcpStream::connect(to).await.unwrap();
                let (from_agent, to_agent) = agent.into_split();
                let (from_broker, to_broker) = broker.into_split();
                let count = Arc::clone(&count);
                tokio::spawn(carry(from_agent, to_broker, hold.clone(), count));
                let ignored = Arc::default();
                tokio::spawn(carry(from_broker, to_agent, hold.clone(), ignored));
            }
        });
        Self {
            address,
            held,
            pieces,
        }
    }

    /// Waits until so many pieces came in while held.
    async fn held_back(&self, wanted: usize) {
        let enough = async {
            while self.pieces.load(Ordering::Relaxed) < wanted {
                yield_now().await;
            }
        };
        timeout(PATIENCE, enough)
            .await
            .expect("the agent speaks on");
    }
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    mut hold: watch::Receiver<bool>,
    count: Arc<AtomicUsize>,
) {
    let mut waiting = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        let held = *hold.borrow_and_update();
        if !held && !waiting.is_empty() {
            if to.write_all(&waiting).await.is_err() {
                return;
            }
            waiting.clear();
        }
        tokio::select! {
            changed = hold.changed() => if changed.is_err() { return },
            read = from.read(&mut buffer) => match read {
                // Closing the other half ends the other direction too.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    waiting.extend_from_slice(&buffer[..length]);
                    count.fetch_add(usize::from(held), Ordering::Relaxed);
                }
            },
        }
    }
}

#[tokio::test]
async fn a_broker_that_answers_nothing_for_many_leases_keeps_its_session() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let relay = Relay::start(broker.address).await;
    let _agent = Agent::enrolled(&ca, &[relay.address]).await.start();
    let short = Welcome {
        lease_ms: 200,
        ..welcome()
    };
    // The first session tells the lease, by which the second is opened.
    let mut session = broker.session().await;
    session.open(short.clone()).await;
    session.beat().await;
    drop(session);
    let mut session = broker.session().await;
    session.open(short).await;
    let before = session.beat().await;
    relay.held.send_replace(true);
    // A beat each 100 ms at most, and a ping after a lease: ten leases at least.
    relay.held_back(22).await;
    relay.held.send_replace(false);
    let mut last = before.sequence;
    while last < before.sequence + 25 {
        let next = session.beat().await.sequence;
        assert!(next > last);
        last = next;
    }
}

#[tokio::test]
async fn brokers_that_welcome_names_are_tried_beside_the_configured_ones() {
    let ca = Ca::new();
    let (mut one, mut two) = (Broker::start(&ca), Broker::start(&ca));
    let agent = Agent::enrolled(&ca, &[one.address]).await.start();
    let told = Welcome {
        endpoints: vec![two.address.to_string(), nobody().await.to_string()],
        ..welcome()
    };
    let mut session = one.session().await;
    session.open(told.clone()).await;
    session.report_until(|_| true).await;
    let known = agent.link_until(|link| link.brokers.len() == 3).await;
    assert_eq!(*known.brokers[0], one.address.to_string());
    drop(session);
    let mut session = two.session().await;
    session.open(told).await;
    let at_two = |link: &muster_agent::session::LinkState| {
        link.address == Some(two.address) && link.problems.is_empty()
    };
    agent.link_until(at_two).await;
    drop(session);
    // Nobody is at the third; the turn comes round to the first.
    one.session().await.open(welcome()).await;
}

#[tokio::test]
async fn a_directive_that_leads_nowhere_leads_back_to_the_known_brokers() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let _agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    session.report_until(|_| true).await;
    let away = Action::Reconnect(Reconnect {
        within_ms: 10,
        endpoints: vec![nobody().await.to_string()],
    });
    session.say(directive(away)).await;
    // It closes in order and says no goodbye: the broker knows.
    while let Some(word) = session.next().await {
        assert!(matches!(word, Body::Beat(_) | Body::Report(_)), "{word:?}");
    }
    broker.session().await.open(welcome()).await;
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_no_proof_while_the_process_runs() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let agent = Agent::enrolled(&ca, &[broker.address]).await;
    // Nothing can be renamed over a folder.
    let taken = agent.data.path().join("session.json");
    fs::create_dir_all(taken.join("in the way")).unwrap();
    let _agent = agent.start();
    for (presented, told) in [(vec![], 1), (vec![1; 16], 2), (vec![2; 16], 3)] {
        let mut session = broker.session().await;
        let resume_token = vec![told; 16].into();
        let hello = session
            .open(Welcome {
                resume_token,
                ..welcome()
            })
            .await;
        assert_eq!(hello.resume_token, presented);
        session.report_until(|_| true).await;
    }
}

#[tokio::test]
async fn a_refusal_that_lasts_is_told_once_and_tried_again_for_ever() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let agent = Agent::enrolled(&ca, &[broker.address]).await;
    let log = agent.data.path().with_extension("log");
    let mut process = Command::new(env!("CARGO_BIN_EXE_muster-agent"))
        .arg("run")
        .arg("--config")
        .arg(agent.write_config())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The pace of the first session makes the tries that follow short.
    let mut session = broker.session().await;
    session.open(welcome()).await;
    session.report_until(|_| true).await;
    drop(session);
    for reason in [refusal::IDENTITY_IN_USE, refusal::IDENTITY_CONFLICT] {
        for time in 0..4 {
            let mut session = broker.session().await;
            session.hello().await;
            let words = format!("the other was heard {time} ms ago");
            let refusal = Refusal::new(reason, words.clone()).retry_after(Duration::from_millis(1));
            session.refuse(refusal.into()).await;
            let told = |problem: &String| problem.contains(reason) && problem.contains(&words);
            agent
                .link_until(|link| link.problems.values().any(told))
                .await;
        }
    }
    let mut session = broker.session().await;
    session.open(welcome()).await;
    agent.link_until(|link| link.connected.is_some()).await;
    process.kill().await.unwrap();
    let log = fs::read_to_string(log).unwrap();
    for reason in [refusal::IDENTITY_IN_USE, refusal::IDENTITY_CONFLICT] {
        assert_eq!(log.matches(reason).count(), 1, "{log}");
    }
}
