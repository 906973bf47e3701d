//! AgentService: one session per agent.
//!
//! A session is a stream that tonic polls: it has no task and no channel of its own, and what it
//! holds ends with it. Its end, however it comes, is a word of its own (`StreamEnded`).

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream, stream::FuturesUnordered,
};
use muster_core::{
    fleet::RateLimit,
    host::{Admission, Effects, Event, Hello},
    model::{Epoch, ResumeToken, Role},
};
use muster_proto::{border, v1};
use muster_runtime::{
    clock,
    refusal::{self, Refusal},
};
use tokio::time::Sleep;
use tonic::{Code, Request, Response, Status, Streaming};

use super::{access::Caller, refuse};
use crate::{
    config::Limits,
    registry::{Cell, Mailbox, Outcome, Registry, SessionEnd, SessionWord, Ungreeted},
};

/// An agent message at most: 64 checks of 4 KiB.
pub const MESSAGE_MAX_BYTES: usize = 256 * 1024;
/// A session that has not said Hello by then is of no use.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Words that wait for the disk. An agent sends one at a time.
const ACKS_MAX: usize = 32;
/// Streams of one host that have not said Hello: its agent has one, a reconnect perhaps two.
const UNGREETED_MAX: usize = 4;
/// First try to reconnect is at random within this time, for each 1,000 hosts a second more.
const RECONNECT_SPREAD: Duration = Duration::from_secs(1);
const RECONNECT_SPREAD_MAX: Duration = Duration::from_secs(30);
/// Cap of the agents' backoff.
const RECONNECT_CAP: Duration = Duration::from_secs(15);

/// The service.
#[derive(Clone, Debug)]
pub struct AgentEdge {
    registry: Arc<Registry>,
    trust_domain: Arc<str>,
    sessions: Arc<AtomicUsize>,
    limits: Limits,
}

impl AgentEdge {
    /// A service for `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, trust_domain: Arc<str>, limits: Limits) -> Self {
        Self {
            registry,
            trust_domain,
            sessions: Arc::default(),
            limits,
        }
    }

    /// The host that the certificate speaks for, as enrolled today.
    fn host_of(&self, caller: &Caller) -> Result<Arc<Cell>, Refusal> {
        let identity = caller
            .identity
            .as_ref()
            .filter(|identity| identity.role == Role::Host)
            .ok_or_else(|| Refusal::new(refusal::ROLE_NOT_ALLOWED, "not a host's certificate"))?;
        let name = &identity.name;
        let cell = self.registry.get(name.as_str()).ok_or_else(|| {
            let message = format!("no host {name} is enrolled here; enrol it with a new token");
            Refusal::new(refusal::HOST_UNKNOWN, message).with("host", name.as_str())
        })?;
        let enrolled = cell.published().snapshot.facts.identity.id;
        if identity.host_id != Some(enrolled) {
            let message = format!("host {name} was enrolled anew; this certificate is of no use");
            return Err(Refusal::new(refusal::HOST_SUPERSEDED, message).with("host", name.as_str()));
        }
        Ok(cell)
    }
}

type Outbound = Pin<Box<dyn Stream<Item = Result<v1::BrokerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for AgentEdge {
    type SessionStream = Outbound;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Outbound>, Status> {
        let caller = Caller::of(&request)?;
        let cell = self.host_of(&caller).map_err(|refusal| {
            tracing::warn!(
                peer = %caller.name,
                peer.address = caller.address.map(tracing::field::display),
                reason = %refusal.reason,
                "session refused"
            );
            refuse(&self.registry, refusal)
        })?;
        let Some(ungreeted) = cell.ungreeted(UNGREETED_MAX) else {
            let message = format!("{UNGREETED_MAX} streams of this host have not said Hello yet");
            let refusal = Refusal::new(refusal::BROKER_BUSY, message);
            return Err(refuse(&self.registry, refusal.retry_after(HELLO_WITHIN)));
        };
        let limits = self.limits;
        if self.sessions.fetch_add(1, Ordering::Relaxed) >= limits.sessions {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            let most = limits.sessions;
            let message = format!("this broker holds {most} sessions, and takes no more");
            let refusal = Refusal::new(refusal::BROKER_BUSY, message);
            return Err(refuse(
                &self.registry,
                refusal.retry_after(Duration::from_secs(30)),
            ));
        }
        self.registry.metrics().sessions.inc();
        let session = Session {
            edge: self.clone(),
            cell,
            address: caller.address,
            is_local: caller.is_local,
            words: RateLimit::new(
                limits.messages_per_second,
                limits.messages_burst(),
                clock::boot(),
            ),
            inbound: Some(request.into_inner()),
            epoch: None,
            mailbox: None,
            ungreeted: Some(ungreeted),
            hello_by: Some(Box::pin(tokio::time::sleep(HELLO_WITHIN))),
            outbox: VecDeque::new(),
            acks: FuturesUnordered::new(),
            last_word: None,
        };
        let outbound = stream::unfold(session, |mut session| async move {
            session.next().await.map(|item| (item, session))
        });
        Ok(Response::new(outbound.boxed()))
    }
}

/// One agent's live session.
struct Session {
    edge: AgentEdge,
    cell: Arc<Cell>,
    address: Option<SocketAddr>,
    is_local: bool,
    /// Words that it may say.
    words: RateLimit,
    /// None once the session is over.
    inbound: Option<Streaming<v1::AgentMessage>>,
    /// Set by Hello.
    epoch: Option<Epoch>,
    /// Until Hello: one of the few places for streams that have not said it.
    ungreeted: Option<Ungreeted>,
    /// What the broker wants; set by Hello.
    mailbox: Option<Arc<Mailbox>>,
    /// Until Hello.
    hello_by: Option<Pin<Box<Sleep>>>,
    outbox: VecDeque<v1::BrokerMessage>,
    /// Acknowledgements that wait for the disk.
    acks: FuturesUnordered<BoxFuture<'static, v1::BrokerMessage>>,
    /// Ends the session once the outbox is empty.
    last_word: Option<Refusal>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.edge.sessions.fetch_sub(1, Ordering::Relaxed);
        self.edge.registry.metrics().sessions.dec();
        if let Some(epoch) = self.epoch {
            tracing::debug!(
                host.name = %self.cell.published().snapshot.facts.identity.name,
                session.epoch = epoch.get(),
                "session ended"
            );
            self.cell.forget(epoch);
            self.edge
                .registry
                .apply(&self.cell, Event::StreamEnded(epoch));
        }
    }
}

enum Turn {
    Heard(Result<Option<v1::AgentMessage>, Status>),
    Durable(v1::BrokerMessage),
    Told(SessionWord),
    NoHello,
}

impl Session {
    /// The next word to the agent; none when the session is over.
    async fn next(&mut self) -> Option<Result<v1::BrokerMessage, Status>> {
        loop {
            if let Some(message) = self.outbox.pop_front() {
                if self.outbox.is_empty() {
                    // A session says little after its Welcome: what held that is given back.
                    self.outbox = VecDeque::new();
                }
                return Some(Ok(message));
            }
            if let Some(refusal) = self.last_word.take() {
                self.inbound = None;
                return Some(Err(refuse(&self.edge.registry, refusal)));
            }
            let turn = self.turn().await?;
            if let Err(status) = self.handle(turn) {
                self.inbound = None;
                return Some(Err(status));
            }
        }
    }

    /// Waits for whatever comes first; none when the session is over.
    async fn turn(&mut self) -> Option<Turn> {
        let inbound = self.inbound.as_mut()?;
        let told = async {
            match &self.mailbox {
                Some(mailbox) => mailbox.next().await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match &mut self.hello_by {
                Some(by) => by.await,
                None => std::future::pending().await,
            }
        };
        Some(tokio::select! {
            biased;
            word = told => Turn::Told(word),
            Some(ack) = self.acks.next() => Turn::Durable(ack),
            message = inbound.message() => Turn::Heard(message),
            () = late => Turn::NoHello,
        })
    }

    fn handle(&mut self, turn: Turn) -> Result<(), Status> {
        let registry = &self.edge.registry;
        match turn {
            Turn::Durable(ack) => self.outbox.push_back(ack),
            Turn::Told(SessionWord::End(SessionEnd::Stopping)) => {
                self.pass_on(SessionWord::Reconnect);
                self.last_word = Some(ending(SessionEnd::Stopping));
            }
            Turn::Told(SessionWord::End(end)) => return Err(refuse(registry, ending(end))),
            Turn::Told(word) => self.pass_on(word),
            Turn::NoHello => {
                let message = format!("no Hello within {} s", HELLO_WITHIN.as_secs());
                return Err(refuse(
                    registry,
                    Refusal::new(refusal::HELLO_TIMED_OUT, message),
                ));
            }
            // The peer is gone, or went without a goodbye: a loss, whichever it was.
            Turn::Heard(Ok(None)) => self.inbound = None,
            Turn::Heard(Err(status)) => {
                if matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) {
                    let message =
                        format!("a message of an agent has at most {MESSAGE_MAX_BYTES} bytes");
                    let refusal = Refusal::new(refusal::MESSAGE_TOO_LARGE, message);
                    return Err(refuse(registry, refusal));
                }
                self.inbound = None;
            }
            Turn::Heard(Ok(Some(message))) => {
                self.hear(message).map_err(|refusal| {
                    tracing::warn!(
                        host.name = %self.cell.published().snapshot.facts.identity.name,
                        reason = %refusal.reason,
                        detail = %refusal.message,
                        "session ended by a bad word"
                    );
                    refuse(&self.edge.registry, refusal)
                })?;
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: v1::AgentMessage) -> Result<(), Refusal> {
        use v1::agent_message::Body;
        if !self.words.take(clock::boot()) {
            let most = self.edge.limits.messages_per_second;
            let message = format!("a session says at most {most} messages a second");
            return Err(
                Refusal::new(refusal::TOO_MANY_MESSAGES, message).with("limit", most.to_string())
            );
        }
        let body = message.body.ok_or_else(|| {
            // A kind of message that this broker does not know decodes to nothing.
            Refusal::new(
                refusal::MESSAGE_INVALID,
                "a message without a body that is known here",
            )
        })?;
        match (self.epoch, body) {
            (None, Body::Hello(hello)) => self.hello(hello),
            (None, _) => Err(Refusal::new(
                refusal::HELLO_EXPECTED,
                "the first message of a session must be Hello",
            )),
            (Some(_), Body::Hello(_)) => Err(Refusal::new(
                refusal::HELLO_REPEATED,
                "a session says Hello once",
            )),
            (Some(epoch), Body::Beat(beat)) => {
                self.edge.registry.metrics().beats.inc();
                let outcome = self.apply(Event::Beat(epoch, beat.into()));
                self.follow(&outcome.effects);
                Ok(())
            }
            (Some(epoch), Body::Report(report)) => {
                self.edge.registry.metrics().reports.inc();
                let sequence = report.sequence;
                let report = report.try_into().map_err(bad_message)?;
                let outcome = self.apply(Event::Report(epoch, report));
                self.follow(&outcome.effects);
                self.acknowledge(&outcome, v1::ack::Of::ReportSequence(sequence))
            }
            (Some(epoch), Body::Leaving(leaving)) => {
                let outcome = self.apply(Event::Leaving(epoch, border::power(leaving.power)));
                self.acknowledge(&outcome, v1::ack::Of::LeavingId(leaving.id))
            }
            (Some(epoch), Body::UpgradeProgress(progress)) => {
                let upgrade = progress.upgrade.unwrap_or_default();
                let event = Event::Upgrade(epoch, upgrade.try_into().map_err(bad_message)?);
                let outcome = self.apply(event);
                self.acknowledge(&outcome, v1::ack::Of::UpgradeProgressId(progress.id))
            }
        }
    }

    fn apply(&self, event: Event) -> Outcome {
        self.edge.registry.apply(&self.cell, event)
    }

    fn hello(&mut self, hello: v1::Hello) -> Result<(), Refusal> {
        let hello: Hello = hello.try_into().map_err(bad_message)?;
        let registry = self.edge.registry.clone();
        let epoch = registry.next_epoch();
        let pace = registry.pace();
        let peer_address = self.address.map_or_else(String::new, |address| {
            // An IPv4 host is shown as one, whatever socket it came through.
            SocketAddr::new(address.ip().to_canonical(), address.port()).to_string()
        });
        let identity = self.cell.published().snapshot.facts.identity.clone();
        tracing::debug!(
            host.name = %identity.name,
            agent.version = %hello.agent_version,
            peer.address = %peer_address,
            session.epoch = epoch.get(),
            "session opened"
        );
        let token: [u8; 16] = rand::random();
        let event = Event::Opened {
            epoch,
            hello,
            terms: pace.terms,
            peer_address: peer_address.into(),
            is_local: self.is_local,
            token: ResumeToken::new(token),
        };
        let outcome = self.apply(event);
        self.admitted(&outcome.effects, identity.name.as_str())?;
        // From here on its end is the end of a session.
        self.epoch = Some(epoch);
        let Some(mailbox) = self.cell.adopt(epoch) else {
            let removed = self.cell.is_retired();
            return Err(ending(if removed {
                SessionEnd::Removed
            } else {
                SessionEnd::Replaced
            }));
        };
        self.mailbox = Some(mailbox);
        self.hello_by = None;
        self.ungreeted = None;
        let spread = reconnect_spread(&registry);
        self.outbox.push_back(v1::BrokerMessage {
            body: Some(v1::broker_message::Body::Welcome(v1::Welcome {
                cluster_id: self.edge.trust_domain.to_string(),
                broker_id: registry.broker_id().to_owned(),
                incarnation: u64::from(registry.incarnation()),
                epoch: epoch.get(),
                resume_token: token.to_vec().into(),
                interval_ms: millis(pace.terms.interval),
                lease_ms: millis(pace.terms.lease),
                reconnect_spread_ms: millis(spread),
                reconnect_cap_ms: millis(RECONNECT_CAP),
                endpoints: Vec::new(),
                policy: Some(border::host_policy(&self.cell.policy())),
            })),
        });
        self.follow(&outcome.effects);
        Ok(())
    }

    /// What the core says to a newcomer.
    fn admitted(&self, effects: &Effects, host: &str) -> Result<(), Refusal> {
        let (reason, message, retry_after) = match effects.admission {
            Some(Admission::Accepted) => return Ok(()),
            None => return Err(ending(SessionEnd::Replaced)),
            Some(Admission::InUse { retry_after }) => (
                refusal::IDENTITY_IN_USE,
                format!("another agent speaks for host {host}, and is asked whether it is alive"),
                retry_after,
            ),
            Some(Admission::Conflict { retry_after }) => (
                refusal::IDENTITY_CONFLICT,
                format!(
                    "another agent speaks for host {host} and is alive: this machine is a copy of \
                     it. Run `muster-agent generalize` here and enrol it as a host of its own"
                ),
                retry_after,
            ),
        };
        self.edge.registry.metrics().rules.conflicts.inc();
        Err(Refusal::new(reason, message)
            .with("host", host)
            .retry_after(retry_after))
    }

    /// What the core wants of the agent.
    fn follow(&mut self, effects: &Effects) {
        if let Some(reason) = effects.resync {
            self.pass_on(SessionWord::Resync(reason));
        }
        if effects.recheck {
            self.pass_on(SessionWord::Recheck(Vec::new()));
        }
    }

    /// A word of the broker's for the agent. The end of the session is none.
    fn pass_on(&mut self, word: SessionWord) {
        use v1::{broker_message::Body, directive::Action};
        let directive = |action| {
            let id = format!("{:016x}", rand::random::<u64>());
            Body::Directive(v1::Directive {
                id,
                action: Some(action),
            })
        };
        let body = match word {
            SessionWord::End(_) => return,
            SessionWord::Resync(reason) => Body::Resync(v1::Resync {
                reason: reason.to_owned(),
            }),
            SessionWord::Recheck(checks) => {
                let checks = checks.iter().map(ToString::to_string).collect();
                directive(Action::Recheck(v1::Recheck { checks }))
            }
            SessionWord::Reconnect => directive(Action::Reconnect(v1::Reconnect {
                within_ms: millis(reconnect_spread(&self.edge.registry)),
                endpoints: Vec::new(),
            })),
            SessionWord::Policy => directive(Action::ApplyPolicy(border::host_policy(
                &self.cell.policy(),
            ))),
        };
        self.outbox
            .push_back(v1::BrokerMessage { body: Some(body) });
    }

    /// Acknowledges at once, or when what must be durable is.
    fn acknowledge(&mut self, outcome: &Outcome, of: v1::ack::Of) -> Result<(), Refusal> {
        if outcome.effects.stale {
            // A newer session took over: this word was not taken, and is not acknowledged.
            return Err(ending(SessionEnd::Replaced));
        }
        let ack = v1::Ack { of: Some(of) };
        let message = v1::BrokerMessage {
            body: Some(v1::broker_message::Body::Ack(ack)),
        };
        let Some(ticket) = outcome.ticket else {
            self.outbox.push_back(message);
            return Ok(());
        };
        if self.acks.len() >= ACKS_MAX {
            let message = format!("{ACKS_MAX} words of this session wait for the broker's disk");
            return Err(
                Refusal::new(refusal::BROKER_BUSY, message).retry_after(Duration::from_secs(5))
            );
        }
        let registry = self.edge.registry.clone();
        self.acks.push(
            async move {
                registry.queue().durable(ticket).await;
                message
            }
            .boxed(),
        );
        Ok(())
    }
}

/// Within this time hosts come back, each at random: it grows with the fleet.
pub(super) fn reconnect_spread(registry: &Registry) -> Duration {
    let thousands = u32::try_from(registry.len() / 1000).unwrap_or(u32::MAX);
    RECONNECT_SPREAD
        .saturating_mul(1 + thousands)
        .min(RECONNECT_SPREAD_MAX)
}

fn ending(end: SessionEnd) -> Refusal {
    match end {
        SessionEnd::Replaced => Refusal::new(
            refusal::SESSION_REPLACED,
            "a newer session of this host took over",
        ),
        SessionEnd::LeaseOver => {
            Refusal::new(refusal::LEASE_OVER, "nothing was heard for a whole lease")
        }
        SessionEnd::Removed => Refusal::new(refusal::HOST_UNKNOWN, "the host was removed"),
        SessionEnd::Banned => Refusal::new(refusal::HOST_BANNED, "an operator banned the host"),
        SessionEnd::Stopping => Refusal::new(refusal::BROKER_STOPPING, "the broker shuts down"),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err asks for"
)]
fn bad_message(error: border::BorderError) -> Refusal {
    Refusal::new(refusal::MESSAGE_INVALID, error.to_string()).with("field", error.field.to_string())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
