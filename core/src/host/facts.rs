//! What the broker knows of one host, on axes that are never mixed.
//!
//! Facts are cheap to clone (texts and lists are shared), so that a copy can be published after
//! every event and read without a lock.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Imposed, limits};
use crate::model::{
    CheckName, CheckResult, CloudInstance, Epoch, HostId, HostName, Leave, Listener, Mono, Outcome,
    PoolName, PoolPolicy, ResumeToken, SessionCounts, Severity, UnknownCause, UpgradeAttempt,
};

/// All facts of one host.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    /// Who it is.
    pub identity: Identity,
    /// What its agent said about itself.
    pub about: Arc<About>,
    /// When and how it was heard.
    pub link: Link,
    /// The live session, if any.
    pub session: Option<Session>,
    /// Who may speak for it while its lease runs.
    pub resume: Resume,
    /// Another machine shows the same identity.
    pub conflict: Option<Arc<Conflict>>,
    /// What the rules of the whole fleet impose.
    pub imposed: Arc<Imposed>,
    /// What was seen when it was lost, step by step, where its silence alone is not all.
    pub lost_evidence: Arc<[String]>,
    /// Last beat or report, or this broker's start; silence during an upgrade counts from here.
    pub last_word: Option<Mono>,
    /// What its checks found.
    pub health: Health,
    /// Power, as announced.
    pub power: Power,
    /// Upgrade, as announced.
    pub upgrade: Upgrade,
    /// Attempts that are over by somebody's word: restating them changes nothing.
    pub cleared_attempts: Arc<[Arc<str>]>,
    /// What operators decided.
    pub admin: Arc<Admin>,
    /// Where it takes connections.
    pub listeners: Arc<[Listener]>,
    /// Sessions as last counted.
    pub sessions: SessionCounts,
    /// Since when their number is what it is.
    pub sessions_since: Timestamp,
}

/// Who a host is: fixed at enrolment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Name, unique in the fleet.
    pub name: HostName,
    /// Random id, in the certificate with the name.
    pub id: HostId,
    /// Pool whose policy it shares.
    pub pool: PoolName,
    /// When it was enrolled.
    pub enrolled_at: Timestamp,
}

/// What an agent says about itself. For people, but for the boot id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// Version of the agent.
    pub agent_version: Arc<str>,
    /// The machine's boot: another value discards all results.
    pub boot_id: Arc<str>,
    /// Operating system.
    pub os: Arc<str>,
    /// Addresses, as the host sees them.
    pub addresses: Vec<String>,
    /// Address of its session, as the broker sees it.
    pub peer_address: Arc<str>,
    /// Policy that the agent applies.
    pub policy_revision: Arc<str>,
    /// Its session comes from the machine that the broker runs on.
    #[serde(default)]
    pub is_local: bool,
    /// Which machine of a cloud it is, as last told in this boot.
    #[serde(default)]
    pub cloud: Option<CloudInstance>,
}

/// Why a host counts as absent: the evidence that convicted it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbsentWhy {
    /// Enrolled, and never reported.
    NeverSeen,
    /// Silent for longer than its lease.
    LeaseOver,
    /// Silent, and its session listener refused the broker.
    ProbeRefused,
    /// Not back within the window after a restart of the broker.
    NotBackAfterRestart,
}

/// When and how a host was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Enrolled, and never reported.
    NeverSeen,
    /// Known from before this broker's start, not heard yet.
    Loaded {
        /// End of what was left of its lease, if it was suspect when the broker stopped; the end
        /// of the restart window otherwise.
        lease_ends: Option<Mono>,
    },
    /// Heard by this broker.
    Heard(Heard),
    /// Not there.
    Lost {
        /// The evidence.
        why: AbsentWhy,
        /// When it was lost.
        at: Timestamp,
    },
}

/// The last word of a host, and how long it is believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Receive time of the last beat or report. Only the broker's receive time judges.
    pub last_beat: Mono,
    /// Time between beats that the broker dictated.
    pub interval: Duration,
    /// How long a beat is believed.
    pub lease: Duration,
    /// When the stream ended, if it did.
    pub ended: Option<Mono>,
}

impl Heard {
    /// From this instant on the host is absent.
    #[must_use]
    pub fn lease_ends(&self) -> Mono {
        self.last_beat + self.lease
    }

    /// From this instant on the host is suspect: the stream ended, or two beats are missing.
    #[must_use]
    pub fn confirmed_until(&self) -> Mono {
        let silent = self.last_beat + self.interval.saturating_mul(limits::SUSPECT_AFTER_BEATS);
        self.ended.map_or(silent, |ended| ended.min(silent))
    }
}

/// One agent's live stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Order among the host's sessions.
    pub epoch: Epoch,
    /// When it was accepted.
    pub opened: Mono,
    /// Process of the agent.
    pub instance_id: Arc<str>,
    /// Time between beats that it was told.
    pub interval: Duration,
    /// Lease that it was told.
    pub lease: Duration,
    /// Highest sequence seen; lower ones are repetitions.
    pub sequence: u64,
    /// A full report arrived.
    pub reported: bool,
}

/// Tokens by which an agent shows that it is the one that was spoken to before.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    /// The token of the last Welcome.
    pub current: Option<ResumeToken>,
    /// The one before it: good until the agent has spoken since the last Welcome, which may have
    /// been lost.
    pub before: Option<ResumeToken>,
    /// Process of the agent that was welcomed and has not spoken since.
    pub unproven: Option<Arc<str>>,
    /// Tokens that have been followed by a newer one: whoever presents one is a copy.
    pub used: Arc<[ResumeToken]>,
    /// A newcomer without a token waits for the proof of the one that speaks now.
    pub challenge: Option<Challenge>,
    /// Instances that an operator decided on: let in, and refused without further words.
    pub trusted: Option<Arc<str>>,
    /// See `trusted`.
    pub distrusted: Option<Arc<str>>,
}

/// The incumbent was asked to show that it is alive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Challenge {
    /// Since when.
    pub since: Mono,
    /// It has spoken since.
    pub proved: bool,
}

/// Two machines speak for one host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// Since when.
    pub since: Timestamp,
    /// Forgotten at this instant unless the newcomer tries again.
    pub until: Mono,
    /// Address of the one that is heard.
    pub incumbent: Arc<str>,
    /// Address of the one that is refused.
    pub newcomer: Arc<str>,
    /// Process of the agent that is refused.
    pub newcomer_instance: Arc<str>,
    /// They run on the same boot of the same machine.
    pub same_machine: bool,
}

/// What the checks found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    /// Results by name.
    pub held: Arc<[Held]>,
    /// From this instant on all results reported in this session are stale.
    pub valid_until: Mono,
    /// A run counts towards "settled" if it began at or after this instant: the later of
    /// enrolment, this boot and the last loss.
    pub barrier: Mono,
    /// When the host last became unsettled.
    pub unsettled_since: Timestamp,
    /// Hash that the last report named.
    pub state_hash: Option<u64>,
}

/// One check's result as the broker holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// The result as reported.
    pub result: Arc<CheckResult>,
    /// Since when it has this outcome.
    pub since: Timestamp,
    /// When its last finished run began; none before the first.
    pub began: Option<Mono>,
    /// When its last finished run ended.
    pub finished: Option<Mono>,
    /// The same for people: on the wall clock, which outlives a restart.
    pub finished_at: Option<Timestamp>,
    /// For a result of an earlier session: it goes stale at this instant.
    pub carried_until: Option<Mono>,
}

impl Held {
    /// From this instant on the result is stale, seen beside the session's `valid_until`.
    #[must_use]
    pub fn valid_until(&self, session_valid_until: Mono) -> Mono {
        self.carried_until.unwrap_or(session_valid_until)
    }

    /// A run of the check has finished.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.began.is_some() && self.result.outcome != Outcome::Unknown(UnknownCause::NotYetRun)
    }
}

impl Health {
    /// Nothing known, since `at`.
    #[must_use]
    pub fn nothing(barrier: Mono, at: Timestamp) -> Self {
        Self {
            held: Arc::new([]),
            valid_until: barrier,
            barrier,
            unsettled_since: at,
            state_hash: None,
        }
    }

    /// The result of that check.
    #[must_use]
    pub fn get(&self, name: &CheckName) -> Option<&Held> {
        let at = self
            .held
            .binary_search_by(|held| held.result.name.cmp(name))
            .ok()?;
        self.held.get(at)
    }

    /// Every check that is fatal in `policy` has a finished run that counts.
    #[must_use]
    pub fn is_settled(&self, policy: &PoolPolicy, now: Timestamp) -> bool {
        policy.fatal_checks().all(|name| {
            let held = self.get(name);
            if held.is_none_or(|held| !held.has_run()) && excused(policy, name, now) {
                return true;
            }
            held.is_some_and(|held| {
                held.result.outcome == Outcome::Unknown(UnknownCause::Unsupported)
                    || held.has_run() && held.began.is_some_and(|began| began >= self.barrier)
            })
        })
    }
}

/// The check became fatal so recently that a host without a result is not blamed for it.
fn excused(policy: &PoolPolicy, name: &CheckName, now: Timestamp) -> bool {
    policy
        .newly_fatal
        .get(name)
        .is_some_and(|until| now < *until)
}

/// What a failure of `held` means: a check that the agent does not have is at most `NonFatal`.
#[must_use]
pub(super) fn severity_of(policy: &PoolPolicy, name: &CheckName, outcome: Outcome) -> Severity {
    let severity = policy.severity(name);
    if severity == Severity::Fatal && outcome == Outcome::Unknown(UnknownCause::Unsupported) {
        return Severity::NonFatal;
    }
    severity
}

/// Power, as announced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// Up and staying.
    Running,
    /// On its way out, or out.
    Leaving {
        /// How.
        how: Leave,
        /// Since when.
        since: Timestamp,
        /// For a reboot: overdue from this instant on.
        back_by: Mono,
    },
}

/// Where an upgrade stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upgrade {
    /// None.
    None,
    /// Under way; the deadlines are the broker's own.
    InProgress(Arc<InProgress>),
    /// The last one failed.
    Failed(Arc<FailedUpgrade>),
}

/// An upgrade under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InProgress {
    /// The attempt.
    pub attempt: UpgradeAttempt,
    /// Since when.
    pub since: Timestamp,
    /// The whole attempt ends by this instant.
    pub ends: Mono,
    /// Switch to commit ends by this instant; none before the switch.
    pub switch_ends: Option<Mono>,
    /// Fatal checks that passed when it began: success means that none of them fails.
    pub passed_before: Arc<[CheckName]>,
}

impl InProgress {
    /// The deadline in force.
    #[must_use]
    pub fn deadline(&self) -> Mono {
        self.switch_ends.unwrap_or(self.ends)
    }
}

/// A failed upgrade.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FailedUpgrade {
    /// The attempt, with the phase that it failed in.
    pub attempt: UpgradeAttempt,
    /// What went wrong.
    pub error: String,
    /// Since when.
    pub since: Timestamp,
    /// It did not fail by the agent's word but by its deadline.
    pub timed_out: bool,
}

/// What operators decided.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Admin {
    /// Banned since.
    #[serde(default)]
    pub banned_since: Option<Timestamp>,
    /// Awaiting approval since.
    #[serde(default)]
    pub approval_awaited_since: Option<Timestamp>,
    /// Drains, at most eight, each owner once.
    #[serde(default)]
    pub drains: Vec<Drain>,
}

/// A drain: no new sessions while it lasts.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drain {
    /// Who drains.
    pub owner: String,
    /// Why, for people.
    pub reason: String,
    /// When it began.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Option<Timestamp>,
}
