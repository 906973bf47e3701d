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
//! again later. Words that somebody waits for ([`Delivery`]) are told in the live session, or
//! their senders are told at once that there is none.

mod facts;
mod link;
mod open;
mod talk;

use std::{sync::Arc, time::Duration};

use muster_core::{
    agent::{Failure, HostPolicy, Reconnect, ResultSet},
    model::SessionCounts,
};
use muster_runtime::{
    channel::{ConnectError, explain_status},
    explain::explain,
    refusal::{self, Reaction, Refusal},
    shutdown::Shutdown,
    tls::ClientTls,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tonic::Status;

pub use facts::{About, Board};
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
    let last = context.data.last_session().unwrap_or_default();
    let mut reconnect = Reconnect::new(brokers.clone());
    reconnect.handle_endpoints(last.endpoints.clone());
    context
        .link
        .send_modify(|link| link.brokers.clone_from(&brokers));
    let mut lease = last.lease;
    let mut next = reconnect.first_try().ok_or(NoBrokers)?;
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = turn_away(&mut deliveries) => {}
            () = sleep(next.after) => {}
        }
        let endpoint = Arc::clone(&next.endpoint);
        let ended = one(
            &context,
            &endpoint,
            &mut lease,
            &mut reconnect,
            &mut deliveries,
            &shutdown,
        )
        .await;
        let Some(failure) = told(&context, &endpoint, &ended, &mut reconnect) else {
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
    endpoint: &Arc<str>,
    lease: &mut Option<Duration>,
    reconnect: &mut Reconnect,
    deliveries: &mut mpsc::Receiver<Delivery>,
    shutdown: &Shutdown,
) -> Ended {
    let opened = tokio::select! {
        () = shutdown.requested() => return Ended::Stopped,
        () = turn_away(deliveries) => return Ended::Stopped,
        opened = open::open(context, endpoint, *lease) => opened,
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(ended) => return ended,
    };
    *lease = Some(opened.welcome.lease);
    reconnect.handle_welcome(opened.welcome.spread, opened.welcome.cap);
    reconnect.handle_endpoints(opened.welcome.endpoints.clone());
    context.link.send_modify(|link| {
        link.connected = Some(Arc::clone(endpoint));
        link.problems.clear();
        if !opened.welcome.endpoints.is_empty() {
            link.brokers.clone_from(&opened.welcome.endpoints);
        }
    });
    tracing::info!(
        broker = %endpoint,
        broker.id = opened.welcome.broker_id,
        epoch = opened.welcome.epoch,
        "session is open"
    );
    let ended = talk::talk(context, opened, deliveries, shutdown).await;
    context.link.send_modify(|link| link.connected = None);
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

/// Tells the log and all who look how the try ended, and what that means for the next one. None
/// for the end of the process.
fn told(
    context: &Context,
    endpoint: &Arc<str>,
    ended: &Ended,
    reconnect: &mut Reconnect,
) -> Option<Failure> {
    let failure = match ended {
        Ended::Stopped => return None,
        Ended::SentAway { within, endpoints } => {
            tracing::info!(broker = %endpoint, "sent away by the broker");
            reconnect.handle_endpoints(endpoints.clone());
            return Some(Failure::SentAway(*within));
        }
        Ended::Closed(true) => Failure::Lost,
        Ended::Status(status, welcomed) => match Refusal::from_status(status) {
            Some(refusal) if *welcomed && is_an_end(&refusal) => Failure::Lost,
            Some(refusal) => refused(&refusal, reconnect.cap()),
            None if *welcomed => Failure::Lost,
            None => Failure::Unreachable,
        },
        Ended::Connect(_) | Ended::Closed(false) | Ended::Contract(_) | Ended::NoWelcome(_) => {
            Failure::Unreachable
        }
    };
    let why = explain(ended);
    let said_before = context.link.borrow().problems.get(&**endpoint) == Some(&why);
    context.link.send_modify(|link| {
        link.problems.insert(endpoint.to_string(), why.clone());
    });
    match failure {
        // An outage of hours is one line, not thousands.
        _ if said_before => tracing::debug!(broker = %endpoint, why, "still no session"),
        Failure::Lost => tracing::warn!(broker = %endpoint, why, "the session was lost"),
        Failure::Refused(None) => tracing::warn!(broker = %endpoint, why, "refused for now"),
        Failure::Refused(Some(_)) => {
            tracing::error!(broker = %endpoint, why, "the broker refuses this host");
        }
        Failure::Unreachable | Failure::SentAway(_) => {
            tracing::warn!(broker = %endpoint, why, "no session");
        }
    }
    Some(failure)
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
