//! The session with the broker, kept for ever.
//!
//! ```text
//!   wait --> connect --> welcome --> talk --+--> goodbye (shutdown asked for)
//!    ^          |           |          |    |
//!    +----------+-----------+----------+    +--> wait (lost, refused, sent away)
//! ```
//!
//! Which broker and how long to wait is the core's to decide ([`Reconnect`]). Nothing here waits
//! for a check: results are read from a copy, and what a broker that hangs does not take is told
//! again later. Waits are counted on the boot-time clock, so a machine that slept through one is
//! not kept waiting, and a session that was slept through for a lease is opened anew at once.
//! Words that somebody waits for ([`Delivery`]) are told in the live session, or
//! their senders are told at once that there is none.

mod facts;
mod keep;
mod link;
mod open;
mod pace;
mod talk;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_core::{
    agent::{Failure, HostPolicy, Reconnect, ResultSet},
    model::SessionCounts,
};
use muster_runtime::{
    channel::{ConnectError, explain_status},
    clock,
    explain::explain,
    refusal::{self, Reaction, Refusal},
    shutdown::Shutdown,
    tls::ClientTls,
    watchdog::Mark,
};
use tokio::sync::{mpsc, watch};
use tonic::Status;

pub use facts::{About, Board};
use keep::Keeper;
pub use link::LinkState;

use crate::{
    announce::{Announced, Delivery},
    scheduler::Order,
    store::DataDir,
};

/// What a session needs beside its broker.
pub struct Context {
    /// Own certificate and the fleet's roots.
    pub tls: ClientTls,
    /// Where resume token and policy are kept.
    pub data: DataDir,
    /// Who speaks.
    pub about: About,
    /// Results of the checks.
    pub results: watch::Receiver<Arc<ResultSet>>,
    /// What is announced.
    pub announced: watch::Receiver<Announced>,
    /// People's sessions as last counted.
    pub sessions: watch::Receiver<SessionCounts>,
    /// The pool's policy; the session changes it.
    pub policy: watch::Sender<Arc<HostPolicy>>,
    /// To the check scheduler.
    pub orders: mpsc::Sender<Order>,
    /// How the session fares, for others to read.
    pub link: watch::Sender<LinkState>,
    /// Sign of life of this loop.
    pub mark: Mark,
}

/// Why a try or a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// Shutdown was asked for, and the goodbye is said.
    #[error("shutdown was asked for")]
    Stopped,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker ended the stream with a status; the flag says that it had said Welcome.
    #[error("{}", explain_status(.0))]
    Status(Box<Status>, bool),
    /// The broker closed the stream without a word; likewise.
    #[error("the broker closed the stream")]
    Closed(bool),
    /// The broker broke the contract.
    #[error("the broker's answer cannot be used: {0}")]
    Contract(String),
    /// The broker said nothing.
    #[error("the broker did not say Welcome within {0:?}")]
    NoWelcome(Duration),
    /// Time passed that this process did not see: more than the broker believes a silent host.
    #[error("the machine slept or this process was stopped for {0:.0?}, longer than the lease")]
    Slept(Duration),
    /// The broker sent us away.
    #[error("the broker asked this host to connect anew")]
    SentAway {
        within: Duration,
        endpoints: Vec<Arc<str>>,
    },
}

/// The configuration leads to no broker.
#[derive(Debug, thiserror::Error)]
#[error("no broker is known; name them in agent.toml (brokers = [\"HOST:PORT\"]) or enrol again")]
pub struct NoBrokers;

/// Keeps a session until shutdown is requested.
///
/// # Errors
/// If there is no broker to try.
pub async fn run(
    context: Context,
    brokers: Vec<Arc<str>>,
    mut deliveries: mpsc::Receiver<Delivery>,
    shutdown: Shutdown,
) -> Result<(), NoBrokers> {
    let keeper = Keeper::new(context.data.clone());
    let mut reconnect = Reconnect::new(brokers);
    reconnect.handle_endpoints(&keeper.last().endpoints);
    let show_brokers = |reconnect: &Reconnect| {
        let known = reconnect.endpoints().to_vec();
        context.link.send_modify(|link| link.brokers = known);
    };
    show_brokers(&reconnect);
    let mut told = Told::default();
    let mut next = reconnect.first_try().ok_or(NoBrokers)?;
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = turn_away(&mut deliveries) => {}
            () = pace::until(clock::boot() + next.after, &context.mark) => {}
        }
        let endpoint = Arc::clone(&next.endpoint);
        let ended = one(
            &context,
            &keeper,
            &endpoint,
            &mut reconnect,
            &mut deliveries,
            &shutdown,
        )
        .await;
        show_brokers(&reconnect);
        let Some(failure) = told.tell(&context, &endpoint, &ended, &mut reconnect) else {
            return Ok(());
        };
        next = reconnect
            .handle_failure(failure, crate::scheduler::draw())
            .ok_or(NoBrokers)?;
        tracing::debug!(broker = %next.endpoint, after_ms = next.after.as_millis(), "next try");
    }
}

/// One try, and the session that it leads to.
async fn one(
    context: &Context,
    keeper: &Keeper,
    endpoint: &Arc<str>,
    reconnect: &mut Reconnect,
    deliveries: &mut mpsc::Receiver<Delivery>,
    shutdown: &Shutdown,
) -> Ended {
    let lease = open::lease(&keeper.last());
    let opened = tokio::select! {
        () = shutdown.requested() => return Ended::Stopped,
        () = turn_away(deliveries) => return Ended::Stopped,
        opened = open::open(context, keeper, endpoint) => opened,
        // A handshake that was slept through leads nowhere, and its limits have not counted.
        slept = pace::slept_through(lease, &context.mark) => return Ended::Slept(slept),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(ended) => return ended,
    };
    reconnect.handle_welcome(opened.welcome.spread, opened.welcome.cap);
    reconnect.handle_endpoints(&opened.welcome.endpoints);
    let known = reconnect.endpoints().to_vec();
    let passed_over = opened.passed_over.iter().map(ToString::to_string);
    let passed_over: Vec<String> = passed_over.collect();
    context.link.send_modify(|link| {
        link.connected = Some(Arc::clone(endpoint));
        link.address = Some(opened.address);
        link.problems.clear();
        if !passed_over.is_empty() {
            let problem = format!("connected, but not to {}", passed_over.join("; "));
            link.problems.insert(endpoint.to_string(), problem);
        }
        link.brokers = known;
    });
    tracing::info!(
        broker = %endpoint,
        broker.address = %opened.address,
        broker.passed_over = passed_over.join("; "),
        broker.id = opened.welcome.broker_id,
        epoch = opened.welcome.epoch,
        "session is open"
    );
    let ended = talk::talk(context, opened, deliveries, shutdown).await;
    context.link.send_modify(|link| {
        link.connected = None;
        link.address = None;
    });
    ended
}

/// Answers whoever wants something told that there is no session now. Never returns, unless
/// nobody can ask any more.
async fn turn_away(deliveries: &mut mpsc::Receiver<Delivery>) {
    while let Some(delivery) = deliveries.recv().await {
        drop(delivery);
    }
    std::future::pending::<()>().await;
}

/// What was told of each broker last, so that an outage of hours is one line, not thousands.
#[derive(Default)]
struct Told {
    /// By endpoint; as many as there are of these.
    last: BTreeMap<Arc<str>, String>,
}

impl Told {
    /// Tells the log and all who look how the try ended, and what that means for the next one.
    /// None for the end of the process.
    fn tell(
        &mut self,
        context: &Context,
        endpoint: &Arc<str>,
        ended: &Ended,
        reconnect: &mut Reconnect,
    ) -> Option<Failure> {
        let refusal = match ended {
            Ended::Status(status, _) => Refusal::from_status(status),
            _ => None,
        };
        let failure = match ended {
            Ended::Stopped => return None,
            Ended::SentAway { within, endpoints } => {
                let to = endpoints.join(", ");
                tracing::info!(broker = %endpoint, to, "sent away by the broker");
                reconnect.handle_directive(endpoints);
                self.last.remove(endpoint);
                return Some(Failure::SentAway(*within));
            }
            Ended::Slept(_) => Failure::Woke,
            Ended::Closed(true) => Failure::Lost,
            Ended::Status(_, welcomed) => match &refusal {
                Some(refusal) if *welcomed && is_an_end(refusal) => Failure::Lost,
                Some(refusal) => refused(refusal, reconnect.cap()),
                None if *welcomed => Failure::Lost,
                None => Failure::Unreachable,
            },
            Ended::Connect(_) | Ended::Closed(false) | Ended::Contract(_) | Ended::NoWelcome(_) => {
                Failure::Unreachable
            }
        };
        let why = explain(ended);
        // A refusal may tell times and addresses that differ each time: its reason is what is new.
        let key = refusal
            .as_ref()
            .map_or(&*why, |refusal| &*refusal.reason)
            .to_owned();
        let by_itself = refusal.is_some_and(|refusal| refusal.reaction() == Reaction::Retry);
        let said_before = self.last.get(endpoint) == Some(&key);
        self.last
            .retain(|known, _| reconnect.endpoints().contains(known));
        self.last.insert(Arc::clone(endpoint), key);
        context.link.send_modify(|link| {
            link.problems.insert(endpoint.to_string(), why.clone());
        });
        match failure {
            // A session that was lost was one: that it is lost again is news.
            Failure::Lost | Failure::Woke => {
                tracing::warn!(broker = %endpoint, why, "the session was lost");
            }
            _ if said_before => tracing::debug!(broker = %endpoint, why, "still no session"),
            Failure::Refused(_) if by_itself => {
                tracing::warn!(broker = %endpoint, why, "refused for now");
            }
            Failure::Refused(_) => {
                tracing::error!(broker = %endpoint, why, "the broker refuses this host");
            }
            Failure::Unreachable | Failure::SentAway(_) => {
                tracing::warn!(broker = %endpoint, why, "no session");
            }
        }
        Some(failure)
    }
}

/// The broker ended a session that was well: as if the stream had broken, so that a whole fleet
/// comes back spread over the time that Welcome told.
fn is_an_end(said: &Refusal) -> bool {
    [refusal::BROKER_STOPPING, refusal::LEASE_OVER].contains(&&*said.reason)
}

/// The one reaction to each reason, see the table of refusals. What an administrator must mend is
/// tried at the slowest pace: they may mend it at any time, and the host comes back by itself.
fn refused(said: &Refusal, slowest: Duration) -> Failure {
    // Whoever took over may be a clone of this machine: two of them must not throw each other out
    // as fast as they can.
    if said.reason == refusal::SESSION_REPLACED {
        return Failure::Refused(Some(slowest));
    }
    let wait = match said.reaction() {
        Reaction::Retry => said.retry_after,
        Reaction::RetrySlowly | Reaction::GiveUp => Some(said.retry_after.unwrap_or(slowest)),
    };
    Failure::Refused(wait)
}
