//! The agent's side of one session, word by word: for tests that say the wrong thing on purpose,
//! and for the light agents of a fleet.

use std::time::Duration;

use anyhow::{Context, Result};
use muster_core::model::default_check_names;
use muster_proto::v1::{
    Ack, AgentMessage, Beat, BrokerMessage, CheckOutcome, CheckResult, Hello, Leaving, Listener,
    PowerKind, PowerState, Report, SessionCounts, UpgradeProgress, UpgradeState, Welcome, ack,
    agent_message::Body, agent_service_client::AgentServiceClient, broker_message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::wait;

/// Messages under way to the broker; tests send a handful at once.
const MESSAGES: usize = 16;

/// How long a result of a light agent lives. It runs no checks, so its results must not age.
const RESULTS_VALID: Duration = Duration::from_secs(3600);

/// One open session.
#[derive(Debug)]
pub struct Session {
    tx: mpsc::Sender<AgentMessage>,
    rx: Streaming<BrokerMessage>,
    sequence: u64,
}

impl Session {
    /// Opens a session with `first` as its first message.
    ///
    /// # Errors
    /// The broker's refusal, if it comes before anything else.
    pub async fn open(channel: Channel, first: Body) -> Result<Self, Status> {
        let (tx, messages) = mpsc::channel(MESSAGES);
        tx.try_send(message(first))
            .map_err(|_| Status::internal("a new channel takes a message"))?;
        let rx = AgentServiceClient::new(channel)
            .session(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self {
            tx,
            rx,
            sequence: 0,
        })
    }

    /// Opens a session with a proper Hello and waits for its Welcome.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn hello(channel: Channel, hello: Hello) -> Result<(Self, Welcome), Status> {
        let mut session = Self::open(channel, Body::Hello(hello)).await?;
        match session.next().await? {
            broker_message::Body::Welcome(welcome) => Ok((session, welcome)),
            other => Err(Status::internal(format!("no Welcome but {other:?}"))),
        }
    }

    /// Says something.
    ///
    /// # Errors
    /// When the session has ended.
    pub async fn say(&self, body: Body) -> Result<()> {
        self.tx
            .send(message(body))
            .await
            .context("the session has ended")
    }

    /// Says it only if nothing before it is still waiting to be sent: a beat that waits is of no
    /// use when it arrives.
    pub fn say_if_free(&self, body: Body) -> bool {
        self.tx.try_send(message(body)).is_ok()
    }

    /// The next number for a beat or a report.
    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// The broker's next word.
    ///
    /// # Errors
    /// The broker's refusal; `Unavailable` where the stream just ends.
    pub async fn next(&mut self) -> Result<broker_message::Body, Status> {
        loop {
            let Some(message) = self.rx.message().await? else {
                return Err(Status::unavailable("the stream has ended"));
            };
            // A body that this build does not know is skipped, as agents do.
            if let Some(body) = message.body {
                return Ok(body);
            }
        }
    }

    /// Waits for the acknowledgement of what was said before; other words are passed over.
    ///
    /// # Errors
    /// The broker's refusal, or none within [`wait::PATIENCE`].
    pub async fn acknowledged(&mut self, of: ack::Of) -> Result<()> {
        let what = format!("acknowledgement of {of:?}");
        wait::within(&what, wait::PATIENCE, async {
            loop {
                match self.next().await? {
                    broker_message::Body::Ack(Ack { of: Some(got) }) if got == of => return Ok(()),
                    _ => {}
                }
            }
        })
        .await?
    }

    /// Waits for the refusal that ends the session.
    ///
    /// # Errors
    /// If none comes within [`wait::PATIENCE`].
    pub async fn refused(&mut self) -> Result<Status> {
        wait::within("a refusal", wait::PATIENCE, async {
            loop {
                if let Err(status) = self.next().await {
                    return Ok(status);
                }
            }
        })
        .await?
    }

    /// Sends a full report and waits for its acknowledgement.
    ///
    /// # Errors
    /// The broker's refusal, or no answer in time.
    pub async fn report(&mut self, mut report: Report) -> Result<()> {
        report.sequence = self.next_sequence();
        let of = ack::Of::ReportSequence(report.sequence);
        self.say(Body::Report(report)).await?;
        self.acknowledged(of).await
    }

    /// Says goodbye and waits until it is durable.
    ///
    /// # Errors
    /// The broker's refusal, or no answer in time.
    pub async fn leave(&mut self, kind: PowerKind) -> Result<()> {
        let id = uuid::Uuid::from_u128(rand::random()).to_string();
        let of = ack::Of::LeavingId(id.clone());
        self.say(Body::Leaving(Leaving {
            id,
            power: Some(power(kind)),
        }))
        .await?;
        self.acknowledged(of).await
    }

    /// Tells how far an upgrade is and waits until that is durable.
    ///
    /// # Errors
    /// The broker's refusal, or no answer in time.
    pub async fn upgrade(&mut self, upgrade: UpgradeState) -> Result<()> {
        let id = uuid::Uuid::from_u128(rand::random()).to_string();
        let of = ack::Of::UpgradeProgressId(id.clone());
        self.say(Body::UpgradeProgress(UpgradeProgress {
            id,
            upgrade: Some(upgrade),
        }))
        .await?;
        self.acknowledged(of).await
    }

    /// One beat of a host whose last report was `report`.
    pub fn beat(&mut self, report: &Report) -> Beat {
        Beat {
            sequence: self.next_sequence(),
            state_hash: report.state_hash,
            results_valid_ms: report.results_valid_ms,
            sessions: report.sessions,
        }
    }
}

fn message(body: Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

/// A power announcement without a time.
#[must_use]
pub fn power(kind: PowerKind) -> PowerState {
    PowerState {
        kind: kind.into(),
        back_within_ms: 0,
    }
}

/// The first words of a light agent on a machine that was booted as `boot_id`.
#[must_use]
pub fn plain_hello(boot_id: &str) -> Hello {
    Hello {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.to_owned(),
        instance_id: uuid::Uuid::from_u128(rand::random()).to_string(),
        os: "light".to_owned(),
        power: Some(power(PowerKind::Running)),
        ..Hello::default()
    }
}

/// A result of the check `name`.
#[must_use]
pub fn result(name: &str, outcome: CheckOutcome) -> CheckResult {
    CheckResult {
        name: name.to_owned(),
        kind: name.to_owned(),
        outcome: outcome.into(),
        raw_outcome: outcome.into(),
        age_ms: Some(0),
        duration_ms: 0,
        message: format!("{name} is {}", outcome.as_str_name()),
        ..CheckResult::default()
    }
}

/// The report of a host on which all is well but what `differing` says.
#[must_use]
pub fn plain_report(differing: &[(&str, CheckOutcome)]) -> Report {
    let outcome = |name: &str| {
        let given = differing.iter().find(|(other, _)| *other == name);
        given.map_or(CheckOutcome::Pass, |(_, outcome)| *outcome)
    };
    let mut checks: Vec<CheckResult> = default_check_names()
        .into_iter()
        .map(|name| result(name, outcome(name)))
        .collect();
    for (name, outcome) in differing {
        if !checks.iter().any(|check| check.name == *name) {
            checks.push(result(name, *outcome));
        }
    }
    Report {
        state_hash: hash(&checks),
        results_valid_ms: u64::try_from(RESULTS_VALID.as_millis()).unwrap_or(u64::MAX),
        checks,
        listeners: vec![Listener {
            protocol: "ssh".to_owned(),
            addresses: Vec::new(),
            port: 22,
        }],
        sessions: Some(SessionCounts {
            active: Some(0),
            disconnected: Some(0),
            pending: Some(0),
        }),
        power: Some(power(PowerKind::Running)),
        ..Report::default()
    }
}

/// Opaque to the broker: it must differ when an outcome does.
fn hash(checks: &[CheckResult]) -> u64 {
    checks.iter().fold(1, |hash: u64, check| {
        hash.wrapping_mul(31)
            .wrapping_add(u64::from(check.outcome.unsigned_abs()))
    })
}
