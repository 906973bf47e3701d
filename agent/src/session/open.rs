//! From nothing to Welcome.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use muster_core::{
    agent::{HostPolicy, Random},
    model::Mono,
};
use muster_proto::v1::{
    self, AgentMessage, agent_message, agent_service_client::AgentServiceClient, broker_message,
};
use muster_runtime::{
    channel::{AddressFailure, ConnectOptions, Connected, Keepalive, connect_tls_at},
    clock,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Board, Context, Ended, keep::Keeper};
use crate::store::LastSession;

/// Time for TCP and TLS with one address, and for finding the addresses.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Time for Welcome. Long, because a broker that is slow after a restart must not be made slower
/// by hosts that hang up and come again; a path that is dead shows by its missing keepalive.
const WELCOME_WITHIN: Duration = Duration::from_secs(60);
/// For so long a broker's answer to our ping is waited for. A dead path is found by TCP within a
/// lease; a broker that is stopped, or busy with a whole fleet, must not be made slower by hosts
/// that hang up and come again.
const PING_PATIENCE: Duration = Duration::from_secs(600);
/// Lease before a Welcome named one.
const DEFAULT_LEASE: Duration = Duration::from_secs(35);
/// Messages on their way out. A beat, a report and a few words that somebody waits for.
const OUTBOX: usize = 16;
/// Largest message of a broker: a policy of 64 checks and URLs.
const MAX_MESSAGE_BYTES: usize = 256 << 10;
/// Shortest interval that is obeyed, as brokers have it too: below it beats are the load.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Longest interval that is obeyed: a host must be heard within minutes.
const MAX_INTERVAL: Duration = Duration::from_secs(300);

/// The pace of a session, as the broker dictates it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Welcome {
    pub(super) broker_id: String,
    pub(super) epoch: u64,
    pub(super) interval: Duration,
    pub(super) lease: Duration,
    pub(super) spread: Duration,
    pub(super) cap: Duration,
    pub(super) endpoints: Vec<Arc<str>>,
}

/// A session that is welcomed.
pub(super) struct Opened {
    pub(super) welcome: Welcome,
    /// The broker's address.
    pub(super) address: SocketAddr,
    /// Its other addresses that did not answer.
    pub(super) passed_over: Vec<AddressFailure>,
    pub(super) outbox: mpsc::Sender<AgentMessage>,
    pub(super) inbox: Streaming<v1::BrokerMessage>,
}

impl Context {
    pub(super) fn board(&self) -> Board {
        Board {
            results: self.results.borrow().clone(),
            announced: self.announced.borrow().clone(),
            sessions: *self.sessions.borrow(),
            policy: self.policy.borrow().clone(),
        }
    }

    /// Takes over a policy: keeps it, and tells whoever plans the checks.
    pub(super) fn apply_policy(&self, wire: Option<v1::HostPolicy>) {
        let Some(wire) = wire else { return };
        match HostPolicy::try_from(wire) {
            Ok(policy) => {
                let changed = self.policy.send_if_modified(|current| {
                    let differs = **current != policy;
                    if differs {
                        *current = Arc::new(policy.clone());
                    }
                    differs
                });
                if changed {
                    tracing::info!(policy.revision = policy.revision, "policy applied");
                }
            }
            // The old policy stays, and the report says which one that is.
            Err(error) => tracing::error!(%error, "the broker's policy cannot be used"),
        }
    }
}

/// Connects to `endpoint`, says Hello and waits for Welcome.
pub(super) async fn open(
    context: &Context,
    keeper: &Keeper,
    endpoint: &str,
) -> Result<Opened, Ended> {
    let lease = lease(&keeper.last());
    let options = ConnectOptions {
        connect_timeout: CONNECT_WITHIN,
        user_timeout: lease,
        keepalive: Some(Keepalive {
            after: lease,
            patience: PING_PATIENCE,
        }),
    };
    let connected = connect_tls_at(endpoint, context.tls.clone(), options).await?;
    match timeout(WELCOME_WITHIN, greet(context, keeper, connected)).await {
        Ok(opened) => opened,
        Err(_) => Err(Ended::NoWelcome(WELCOME_WITHIN)),
    }
}

/// The lease as last told.
pub(super) fn lease(last: &LastSession) -> Duration {
    last.lease.unwrap_or(DEFAULT_LEASE)
}

async fn greet(context: &Context, keeper: &Keeper, connected: Connected) -> Result<Opened, Ended> {
    let Connected {
        channel,
        address,
        passed_over,
        socket,
    } = connected;
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let hello = context.board().hello(&context.about, clock::now().wall);
    let hello = v1::Hello {
        resume_token: keeper.last().resume_token.into(),
        ..v1::Hello::from(hello)
    };
    let (outbox, outgoing) = mpsc::channel(OUTBOX);
    let first = AgentMessage {
        body: Some(agent_message::Body::Hello(hello)),
    };
    if outbox.try_send(first).is_err() {
        return Err(Ended::Closed(false));
    }
    let refused = |status| Ended::Status(Box::new(status), false);
    let mut inbox = client
        .session(ReceiverStream::new(outgoing))
        .await
        .map_err(refused)?
        .into_inner();
    let first = inbox
        .message()
        .await
        .map_err(refused)?
        .ok_or(Ended::Closed(false))?;
    let Some(broker_message::Body::Welcome(wire)) = first.body else {
        return Err(Ended::Contract("its first word is not Welcome".to_owned()));
    };
    let welcome = Welcome::from_wire(&wire)?;
    if let Err(error) = socket.set_user_timeout(welcome.lease) {
        // The one that was set before holds.
        tracing::warn!(%error, "the connection's time limit cannot be set to the lease");
    }
    let session = LastSession {
        resume_token: wire.resume_token.to_vec(),
        lease: Some(welcome.lease),
        endpoints: welcome.endpoints.clone(),
    };
    keeper.keep(session).await;
    context.apply_policy(wire.policy);
    Ok(Opened {
        welcome,
        address,
        passed_over,
        outbox,
        inbox,
    })
}

impl Welcome {
    fn from_wire(wire: &v1::Welcome) -> Result<Self, Ended> {
        let duration = muster_proto::border::duration;
        let interval = duration(wire.interval_ms);
        if !(MIN_INTERVAL..=MAX_INTERVAL).contains(&interval) {
            let problem = format!(
                "Welcome wants a beat every {interval:?}; allowed are {MIN_INTERVAL:?} to \
                 {MAX_INTERVAL:?}"
            );
            return Err(Ended::Contract(problem));
        }
        Ok(Self {
            broker_id: wire.broker_id.clone(),
            epoch: wire.epoch,
            interval,
            // A lease below the interval would end between two beats.
            lease: duration(wire.lease_ms).max(interval),
            spread: duration(wire.reconnect_spread_ms),
            cap: duration(wire.reconnect_cap_ms),
            endpoints: wire
                .endpoints
                .iter()
                .take(16)
                .map(|text| text.as_str().into())
                .collect(),
        })
    }

    /// When the first beat is due.
    pub(super) fn beats(&self, now: Mono, random: Random) -> muster_core::agent::BeatClock {
        muster_core::agent::BeatClock::start(self.interval, now, random)
    }
}
