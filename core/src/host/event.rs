//! What happens to a host, as the core hears it.

use std::{sync::Arc, time::Duration};

use super::{Conviction, Drain, Imposed, Standing};
use crate::model::{
    CheckResult, CloudInstance, Epoch, Listener, Mono, PowerAnnouncement, ResumeToken,
    SessionCounts, Transition, UpgradeAnnouncement,
};

/// First word of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Version of the agent.
    pub agent_version: Arc<str>,
    /// The machine's boot, opaque.
    pub boot_id: Arc<str>,
    /// Random per process of the agent.
    pub instance_id: Arc<str>,
    /// Token of the Welcome that it heard last.
    pub resume_token: Option<ResumeToken>,
    /// Operating system, for people.
    pub os: Arc<str>,
    /// Addresses as the host sees them.
    pub addresses: Vec<String>,
    /// Policy that the agent applies.
    pub policy_revision: Arc<str>,
    /// Power, restated.
    pub power: PowerAnnouncement,
    /// Upgrade, restated.
    pub upgrade: UpgradeAnnouncement,
}

/// Still here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Counts up within a session.
    pub sequence: u64,
    /// Hash of the agent's state, opaque.
    pub state_hash: u64,
    /// The least time left over all check results.
    pub results_valid: Duration,
    /// Sessions as counted now.
    pub sessions: SessionCounts,
}

/// Everything the host knows about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Counts with the beats.
    pub sequence: u64,
    /// Hash of the agent's state, opaque.
    pub state_hash: u64,
    /// The least time left over all check results.
    pub results_valid: Duration,
    /// Results of all checks, each name once.
    pub checks: Vec<CheckResult>,
    /// Where the host takes connections.
    pub listeners: Vec<Listener>,
    /// Which machine of a cloud it is; none while the agent does not know.
    pub cloud: Option<CloudInstance>,
    /// Sessions as counted now.
    pub sessions: SessionCounts,
    /// Policy that the agent applies.
    pub policy_revision: Arc<str>,
    /// Power, restated.
    pub power: PowerAnnouncement,
    /// Upgrade, restated.
    pub upgrade: UpgradeAnnouncement,
}

/// Everything that can happen to a host.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// An agent asks for a session. Its epoch is higher than every earlier one of this host;
    /// `Effects::admission` says whether it is taken.
    Opened {
        /// The session's epoch.
        epoch: Epoch,
        /// What the agent said.
        hello: Hello,
        /// Pace that it was told.
        terms: Terms,
        /// Address that the session came from.
        peer_address: Arc<str>,
        /// That address is one of this very machine.
        is_local: bool,
        /// Random: the token that Welcome will bring.
        token: ResumeToken,
    },
    /// Still here.
    Beat(Epoch, Beat),
    /// Everything the host knows about itself.
    Report(Epoch, Report),
    /// It leaves, or stays after all.
    Leaving(Epoch, PowerAnnouncement),
    /// A step of an upgrade.
    Upgrade(Epoch, UpgradeAnnouncement),
    /// The stream ended without a goodbye, or after one.
    StreamEnded(Epoch),
    /// Time passed; sent when `Effects::next_deadline` is due.
    Deadline,
    /// An operator drains the host.
    Drain(Drain),
    /// Drains were lifted, durably.
    Undrain(Undrain),
    /// The pool's policy changed.
    PolicyChanged,
    /// The rules of the fleet impose this from now on, and nothing else.
    Imposed(Arc<Imposed>),
    /// The broker's own dials found nobody where the host used to answer.
    Convicted(Conviction),
    /// An operator decided whom to believe: the incumbent, or the newcomer that is refused.
    Trust {
        /// The newcomer.
        newcomer: bool,
    },
    /// The broker itself was stopped for so long that it knows nothing of the present: the same
    /// as a restart.
    BrokerStalled {
        /// End of the window that was open already: hosts not heard since are believed no longer.
        unheard_until: Option<Mono>,
    },
}

/// Which drains are lifted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undrain {
    /// That owner's.
    Owner(String),
    /// All.
    All,
}

/// Pace that a session is told in Welcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// Time between beats.
    pub interval: Duration,
    /// How long a beat is believed.
    pub lease: Duration,
}

impl Event {
    /// What the journal calls a change that this event brought about.
    #[must_use]
    pub const fn trigger(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "hello",
            Self::Beat(..) => "beat",
            Self::Report(..) => "report",
            Self::Leaving(..) => "leaving",
            Self::Upgrade(..) => "upgrade",
            Self::StreamEnded(_) => "stream_ended",
            Self::Deadline => "deadline",
            Self::Drain(_) => "drain",
            Self::Undrain(_) => "undrain",
            Self::PolicyChanged => "policy",
            Self::Imposed(_) => "fleet",
            Self::Convicted(_) => "probe",
            Self::Trust { .. } => "trust",
            Self::BrokerStalled { .. } => "broker_stalled",
        }
    }
}

/// What becomes of a session that an agent asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It speaks for the host from now on.
    Accepted,
    /// Somebody else speaks for the host, and is asked whether it is alive.
    InUse {
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// Somebody else speaks for the host, and is alive.
    Conflict {
        /// When asking again makes sense: not soon.
        retry_after: Duration,
    },
}

/// What is to be done after an event.
#[must_use]
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Effects {
    /// The words were of an older session, or of one that is over: nothing changed.
    pub stale: bool,
    /// The entry for the journal, if status, an answer or the set of reasons changed.
    pub transition: Option<Transition>,
    /// Watchers must be told: a transition, or a change of confidence alone.
    pub tell: bool,
    /// The host's record must be stored before the words are acknowledged.
    pub persist: bool,
    /// What operators decided must be stored: a drain ended by itself, or was set.
    pub persist_admin: bool,
    /// What became of `Event::Opened`.
    pub admission: Option<Admission>,
    /// The session that speaks now must show that it is alive: by any word.
    pub challenge: bool,
    /// How the host stands, if that changed.
    pub standing: Option<Standing>,
    /// The agent must send a full report.
    pub resync: Option<&'static str>,
    /// The agent must run its checks now.
    pub recheck: bool,
    /// This session is to be closed: its lease is over, or a newer one took its place.
    pub close: Option<Epoch>,
    /// When the host must hear `Event::Deadline` at the latest; none while nothing is due.
    pub next_deadline: Option<Mono>,
}

impl Effects {
    /// Nothing is to be told, stored or waited for: facts moved and no more.
    #[must_use]
    pub fn only_facts(&self) -> bool {
        !self.tell
            && self.transition.is_none()
            && !self.persist
            && !self.persist_admin
            && self.next_deadline.is_none()
    }
}
