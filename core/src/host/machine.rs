//! What happens to a host: one exhaustive match over events.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    About, AbsentWhy, Admin, Admission, Beat, Context, Conviction, Drain, Effects, Event, Facts,
    Health, Heard, Held, Hello, Identity, Link, Power, Report, Resume, Session, Standing, Terms,
    Undrain, Upgrade, admission,
    assess::judged_outcomes,
    conclude::session_ends,
    health::{carry_results, take_results},
    limits,
    presence::{Presence, SuspectWhy, lost_since, presence},
    standing::probe_target,
    upgrade,
};
use crate::model::{
    CheckResult, Confidence, Epoch, Leave, Listener, Mono, Now, PoolPolicy, PowerAnnouncement,
    ReasonCode, ResumeToken, Status,
};

/// A host: its facts and what has been told about it.
#[derive(Clone, PartialEq, Debug)]
pub struct Host {
    pub(super) facts: Facts,
    pub(super) told: Told,
    /// Counts what the rules of the fleet were told, so that it can be put in order.
    pub(super) version: u64,
    /// What the rules of the fleet were last told.
    pub(super) stood: Option<Standing>,
    /// Where the broker may dial it; worked out when what it rests on changes.
    pub(super) target: Option<std::net::SocketAddr>,
    /// Confirmed and settled: until this instant a beat that says nothing new changes nothing that
    /// was told. None if any word must be judged.
    pub(super) calm_until: Option<Mono>,
}

/// What comes with a hello beside it.
struct Opening {
    epoch: Epoch,
    terms: Terms,
    peer_address: Arc<str>,
    is_local: bool,
    token: ResumeToken,
}

/// A copy of what answers rest on.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// The facts.
    pub facts: Facts,
    /// The label that was last told.
    pub status: Status,
    /// Since when.
    pub status_since: Timestamp,
}

/// What the journal and the watchers were last told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    /// Sequence of the last transition; 0 before the first.
    pub sequence: u64,
    /// The label.
    pub status: Status,
    /// Since when.
    pub status_since: Timestamp,
    /// The answer for a new session.
    pub connectable_new: bool,
    /// The answer for coming back.
    pub connectable_reconnect: bool,
    /// Codes and subjects of the reasons.
    pub reasons: Vec<(ReasonCode, String)>,
    /// How well the host was known to be there.
    pub confidence: Confidence,
    /// Why not better.
    pub confidence_reason: String,
}

impl Host {
    /// A host that has just enrolled, with the first entry of its journal.
    pub fn enrolled(identity: Identity, admin: Admin, context: &Context<'_>) -> (Self, Effects) {
        let at = identity.enrolled_at;
        let facts = Facts {
            about: Arc::new(About::default()),
            link: Link::NeverSeen,
            session: None,
            resume: Resume::default(),
            conflict: None,
            imposed: Arc::default(),
            lost_evidence: Arc::new([]),
            last_word: None,
            health: Health::nothing(context.now.mono, at),
            power: Power::Running,
            upgrade: Upgrade::None,
            cleared_attempts: Arc::new([]),
            admin: Arc::new(admin),
            listeners: Arc::new([]),
            sessions: crate::model::SessionCounts::default(),
            sessions_since: at,
            identity,
        };
        let mut host = Self {
            calm_until: None,
            facts,
            told: Told {
                sequence: 0,
                status: Status::Unavailable,
                status_since: at,
                connectable_new: false,
                connectable_reconnect: false,
                reasons: Vec::new(),
                confidence: Confidence::Absent,
                confidence_reason: String::new(),
            },
            version: 0,
            stood: None,
            target: None,
        };
        let mut effects = Effects::default();
        host.conclude("enrolled", context, &mut effects);
        effects.persist_admin = true;
        (host, effects)
    }

    /// The facts as they are.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// A copy to answer questions from, without a lock.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            facts: self.facts.clone(),
            status: self.told.status,
            status_since: self.told.status_since,
        }
    }

    /// What was last told about it.
    #[must_use]
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// Takes an event in and says what is to be done. Time that has passed is applied first, so
    /// that a late word never revives what is over.
    pub fn handle(&mut self, event: Event, context: &Context<'_>) -> Effects {
        let mut effects = Effects::default();
        if let Event::Beat(epoch, beat) = &event
            && self.takes_plain_beat(*epoch, beat, context)
        {
            return effects;
        }
        self.expire(context, &mut effects);
        let trigger = event.trigger();
        match event {
            Event::Opened {
                epoch,
                hello,
                terms,
                peer_address,
                is_local,
                token,
            } => {
                let opening = Opening {
                    epoch,
                    terms,
                    peer_address,
                    is_local,
                    token,
                };
                self.open(opening, hello, context, &mut effects);
            }
            Event::Beat(epoch, beat) => self.beat(epoch, beat, context, &mut effects),
            Event::Report(epoch, report) => self.report(epoch, report, context, &mut effects),
            Event::Leaving(epoch, power) => self.leaving(epoch, power, context.now, &mut effects),
            Event::Upgrade(epoch, announced) => {
                self.upgrade(epoch, &announced, context, &mut effects);
            }
            Event::StreamEnded(epoch) => self.stream_ended(epoch, context.now, &mut effects),
            Event::Deadline => {}
            Event::Drain(drain) => self.drain(drain, &mut effects),
            Event::Undrain(which) => self.undrain(&which, &mut effects),
            // The policy stands in the context.
            Event::PolicyChanged => self.aim(context.policy),
            Event::Imposed(imposed) => {
                self.facts.imposed = imposed;
                // What only the hold before kept from being over is over now.
                self.expire(context, &mut effects);
            }
            Event::Convicted(conviction) => self.convict(conviction, context, &mut effects),
            Event::Trust { newcomer } => admission::trust(&mut self.facts, newcomer),
            Event::BrokerStalled { unheard_until } => {
                self.broker_stalled(unheard_until, context);
            }
        }
        // A word that was not taken changes nothing; what changed did so by time alone.
        let trigger = if effects.stale {
            Event::Deadline.trigger()
        } else {
            trigger
        };
        self.conclude(trigger, context, &mut effects);
        effects
    }

    /// Applies the passing of time: what is over is over, whoever speaks next.
    fn expire(&mut self, context: &Context<'_>, effects: &mut Effects) {
        let now = context.now;
        if let Some((why, at)) = lost_since(&self.facts, context) {
            self.facts.lost_evidence = match &self.facts.imposed.hold {
                Some(hold) => [hold.evidence.to_string()].into(),
                None => Arc::new([]),
            };
            self.lose(why, at, now);
            // A loss may change no answer, and still counts after a restart.
            effects.persist = true;
        }
        if let Some(kept) = self.facts.imposed.expired(now.mono) {
            self.facts.imposed = Arc::new(kept);
        }
        admission::expire(&mut self.facts, now.mono);
        if let Some(session) = &self.facts.session
            && now.mono >= session_ends(&self.facts, session)
        {
            effects.close = Some(session.epoch);
        }
        effects.persist |= upgrade::expire(&mut self.facts, now);
        if self
            .facts
            .admin
            .drains
            .iter()
            .any(|drain| is_over(drain, now))
        {
            let mut admin = (*self.facts.admin).clone();
            admin.drains.retain(|drain| !is_over(drain, now));
            self.facts.admin = Arc::new(admin);
            effects.persist_admin = true;
        }
    }

    fn lose(&mut self, why: AbsentWhy, at: Mono, now: Now) {
        self.facts.link = Link::Lost {
            why,
            at: now.wall_at(at),
        };
        self.unsettle(at, now);
    }

    /// The broker's dials found nobody. They convict whoever is silent and has been since before
    /// the first dial: any word since acquits.
    fn convict(&mut self, conviction: Conviction, context: &Context<'_>, effects: &mut Effects) {
        let Conviction {
            dialled_at,
            evidence,
        } = conviction;
        let now = context.now;
        let is_silent = match presence(&self.facts, context) {
            Presence::Suspect(
                SuspectWhy::StreamEnded | SuspectWhy::Silent | SuspectWhy::MassLoss,
            )
            | Presence::Unverified => true,
            Presence::Suspect(SuspectWhy::AgentRestarting | SuspectWhy::BrokerLate)
            | Presence::Confirmed
            | Presence::Absent(_) => false,
        };
        let spoke_since = self.facts.last_word.is_some_and(|word| word >= dialled_at)
            && matches!(self.facts.link, Link::Heard(_))
            || self
                .facts
                .session
                .as_ref()
                .is_some_and(|session| session.opened >= dialled_at);
        if !is_silent || spoke_since {
            effects.stale = true;
            return;
        }
        self.facts.lost_evidence = evidence;
        self.lose(AbsentWhy::ProbeRefused, now.mono, now);
    }

    fn unsettle(&mut self, barrier: Mono, now: Now) {
        self.facts.health.barrier = self.facts.health.barrier.max(barrier);
        self.facts.health.unsettled_since = now.wall_at(barrier);
    }

    fn is_stale(&self, epoch: Epoch, effects: &mut Effects) -> bool {
        let live = self
            .facts
            .session
            .as_ref()
            .is_some_and(|session| session.epoch == epoch);
        effects.stale = !live;
        !live
    }

    fn open(
        &mut self,
        opening: Opening,
        hello: Hello,
        context: &Context<'_>,
        effects: &mut Effects,
    ) {
        let now = context.now;
        let Opening {
            epoch,
            terms,
            peer_address,
            is_local,
            token,
        } = opening;
        if self
            .facts
            .session
            .as_ref()
            .is_some_and(|session| session.epoch >= epoch)
        {
            effects.stale = true;
            return;
        }
        let (answer, challenge) = admission::admit(&mut self.facts, &hello, &peer_address, context);
        effects.admission = Some(answer);
        effects.challenge = challenge;
        if answer != Admission::Accepted {
            return;
        }
        admission::accept(&mut self.facts, &hello, token);
        if let Some(before) = self.facts.session.take() {
            effects.close = Some(before.epoch);
        }
        let same_boot = self.facts.about.boot_id == hello.boot_id;
        if same_boot {
            carry_results(&mut self.facts);
        } else {
            // What this boot found counts, from before this session too: the barrier stays.
            self.facts.health = Health::nothing(self.facts.health.barrier, now.wall);
        }
        // A hello alone extends no lease: an agent that dies after every hello is a dead agent.
        if let Link::Heard(heard) = &mut self.facts.link
            && heard.ended.is_none()
        {
            heard.ended = Some(now.mono);
        }
        self.facts.about = Arc::new(About {
            agent_version: hello.agent_version,
            boot_id: hello.boot_id,
            os: hello.os,
            addresses: hello.addresses,
            peer_address,
            policy_revision: hello.policy_revision,
            is_local,
            // What this boot told stands until it is told anew.
            cloud: same_boot.then(|| self.facts.about.cloud.clone()).flatten(),
        });
        self.aim(context.policy);
        self.facts.session = Some(Session {
            epoch,
            opened: now.mono,
            instance_id: hello.instance_id,
            interval: terms.interval,
            lease: terms.lease,
            sequence: 0,
            reported: false,
        });
        match hello.power {
            PowerAnnouncement::Leaving { .. } => self.take_power(hello.power, now),
            PowerAnnouncement::Running => match self.facts.power {
                Power::Leaving {
                    how: Leave::AgentStop | Leave::AgentRestart,
                    ..
                } => {
                    self.facts.power = Power::Running;
                }
                // Shutdown ends with the settled report that ends it.
                Power::Leaving {
                    how: Leave::Poweroff | Leave::Reboot | Leave::Suspend,
                    ..
                }
                | Power::Running => {}
            },
        }
        effects.persist |= upgrade::announce(&mut self.facts, &hello.upgrade, context.policy, now);
        effects.persist |= upgrade::see_version(&mut self.facts, context, false);
        effects.recheck = matches!(self.facts.link, Link::Lost { .. });
    }

    fn beat(&mut self, epoch: Epoch, beat: Beat, context: &Context<'_>, effects: &mut Effects) {
        let now = context.now;
        if self.is_stale(epoch, effects) {
            return;
        }
        let Some(session) = &mut self.facts.session else {
            return;
        };
        if beat.sequence <= session.sequence {
            return;
        }
        session.sequence = beat.sequence;
        admission::heard(&mut self.facts.resume);
        let (interval, lease, reported) = (session.interval, session.lease, session.reported);
        self.facts.last_word = Some(now.mono);
        match self.facts.link {
            Link::Heard(_) if reported => {
                self.facts.link = Link::Heard(Heard {
                    last_beat: now.mono,
                    interval,
                    lease,
                    ended: None,
                });
                let valid = beat.results_valid.min(limits::RESULTS_VALID_MAX);
                self.facts.health.valid_until = now.mono + valid;
                self.take_sessions(beat.sessions, now);
                if self.facts.health.state_hash != Some(beat.state_hash) {
                    effects.resync = Some("state differs");
                } else if !self.facts.health.is_settled(context.policy, now.wall) {
                    // A run that ends as the one before changes no hash, and may be the one that
                    // settles the host.
                    effects.resync = Some("not settled yet");
                }
            }
            Link::Lost { .. } => {
                effects.resync = Some("the lease was over");
                effects.recheck = true;
            }
            Link::Heard(_) | Link::NeverSeen | Link::Loaded { .. } => {
                effects.resync = Some("no report in this session yet");
            }
        }
    }

    fn report(
        &mut self,
        epoch: Epoch,
        report: Report,
        context: &Context<'_>,
        effects: &mut Effects,
    ) {
        let now = context.now;
        if self.is_stale(epoch, effects) {
            return;
        }
        let Some(session) = &mut self.facts.session else {
            return;
        };
        if report.sequence <= session.sequence && session.reported {
            return;
        }
        session.sequence = session.sequence.max(report.sequence);
        session.reported = true;
        admission::heard(&mut self.facts.resume);
        self.facts.lost_evidence = Arc::new([]);
        let (interval, lease) = (session.interval, session.lease);
        self.facts.last_word = Some(now.mono);
        self.facts.link = Link::Heard(Heard {
            last_beat: now.mono,
            interval,
            lease,
            ended: None,
        });
        let was_settled = self.facts.health.is_settled(context.policy, now.wall);
        take_results(&mut self.facts, report.checks, report.results_valid, now);
        self.facts.health.state_hash = Some(report.state_hash);
        let settled = self.facts.health.is_settled(context.policy, now.wall);
        if was_settled && !settled {
            self.facts.health.unsettled_since = now.wall;
        }
        if self.take_listeners(report.listeners, effects) {
            self.aim(context.policy);
        }
        self.take_sessions(report.sessions, now);
        let told = About {
            policy_revision: report.policy_revision,
            cloud: report.cloud.or_else(|| self.facts.about.cloud.clone()),
            ..(*self.facts.about).clone()
        };
        if *self.facts.about != told {
            effects.persist |= self.facts.about.cloud != told.cloud;
            self.facts.about = Arc::new(told);
        }
        match report.power {
            PowerAnnouncement::Leaving { .. } => self.take_power(report.power, now),
            PowerAnnouncement::Running if settled => self.facts.power = Power::Running,
            PowerAnnouncement::Running => {}
        }
        effects.persist |= upgrade::announce(&mut self.facts, &report.upgrade, context.policy, now);
        effects.persist |= upgrade::see_version(&mut self.facts, context, true);
    }

    fn leaving(&mut self, epoch: Epoch, power: PowerAnnouncement, now: Now, effects: &mut Effects) {
        if self.is_stale(epoch, effects) {
            return;
        }
        admission::heard(&mut self.facts.resume);
        self.facts.last_word = Some(now.mono);
        // The last report said something else: should the agent stay after all and its word for
        // that be lost, the next beat asks for a report.
        self.facts.health.state_hash = None;
        self.take_power(power, now);
        if matches!(
            power,
            PowerAnnouncement::Leaving {
                how: Leave::AgentStop,
                ..
            }
        ) {
            self.unsettle(now.mono, now);
        }
        effects.persist = true;
    }

    fn upgrade(
        &mut self,
        epoch: Epoch,
        announced: &crate::model::UpgradeAnnouncement,
        context: &Context<'_>,
        effects: &mut Effects,
    ) {
        if self.is_stale(epoch, effects) {
            return;
        }
        admission::heard(&mut self.facts.resume);
        self.facts.last_word = Some(context.now.mono);
        self.facts.health.state_hash = None;
        upgrade::announce(&mut self.facts, announced, context.policy, context.now);
        // Acknowledged when durable, even if it said nothing new: the word before it may still be
        // on its way to the disk.
        effects.persist = true;
    }

    fn take_power(&mut self, power: PowerAnnouncement, now: Now) {
        self.facts.power = match (power, self.facts.power) {
            (PowerAnnouncement::Running, _) => Power::Running,
            // Restating a goodbye moves no deadline.
            (PowerAnnouncement::Leaving { how, .. }, before @ Power::Leaving { how: old, .. })
                if old == how =>
            {
                before
            }
            (PowerAnnouncement::Leaving { how, back_within }, _) => {
                if how == Leave::AgentStop {
                    // Nobody checks from now on: what was found before counts no more.
                    self.unsettle(now.mono, now);
                }
                let within = back_within
                    .unwrap_or(limits::REBOOT_BACK_WITHIN)
                    .min(limits::REBOOT_BACK_WITHIN_MAX);
                Power::Leaving {
                    how,
                    since: now.wall,
                    back_by: now.mono + within,
                }
            }
        };
    }

    /// Front ends are told where a host listens. A new process of the agent that has not looked
    /// yet knows of none.
    fn take_listeners(&mut self, listeners: Vec<Listener>, effects: &mut Effects) -> bool {
        let looked = self
            .facts
            .health
            .held
            .iter()
            .any(|held| held.carried_until.is_none() && held.has_run());
        if listeners.is_empty() && !looked || self.facts.listeners[..] == listeners[..] {
            return false;
        }
        self.facts.listeners = listeners.into();
        effects.tell = true;
        effects.persist = true;
        true
    }

    fn take_sessions(&mut self, sessions: crate::model::SessionCounts, now: Now) {
        if self.facts.sessions.total() != sessions.total() {
            self.facts.sessions_since = now.wall;
        }
        self.facts.sessions = sessions;
    }

    fn stream_ended(&mut self, epoch: Epoch, now: Now, effects: &mut Effects) {
        if self.is_stale(epoch, effects) {
            return;
        }
        let session = self.facts.session.take();
        match &mut self.facts.link {
            Link::Heard(heard) => {
                heard.ended.get_or_insert(now.mono);
            }
            // It was heard before the broker's own stall, and went during it: from here on it is
            // suspect like any other, with a lease and no more.
            Link::Loaded { lease_ends } => {
                if let Some(session) = session.filter(|session| session.reported) {
                    let ends = now.mono + session.lease;
                    *lease_ends = Some(lease_ends.map_or(ends, |before| before.min(ends)));
                }
            }
            Link::NeverSeen | Link::Lost { .. } => {}
        }
    }

    fn drain(&mut self, drain: Drain, effects: &mut Effects) {
        let mut admin = (*self.facts.admin).clone();
        admin.drains.retain(|other| other.owner != drain.owner);
        admin.drains.push(drain);
        admin.drains.truncate(limits::DRAINS);
        self.facts.admin = Arc::new(admin);
        effects.persist_admin = true;
    }

    fn undrain(&mut self, which: &Undrain, effects: &mut Effects) {
        let mut admin = (*self.facts.admin).clone();
        admin.drains.retain(|drain| match which {
            Undrain::Owner(owner) => drain.owner != *owner,
            Undrain::All => false,
        });
        self.facts.admin = Arc::new(admin);
        effects.persist_admin = true;
    }

    /// Whoever was well is believed for a window; whoever was doubted keeps what was left.
    fn broker_stalled(&mut self, unheard_until: Option<Mono>, context: &Context<'_>) {
        let now = context.now.mono;
        if matches!(self.facts.link, Link::Heard(_)) {
            self.freeze_results(context);
        }
        match self.facts.link {
            Link::Heard(heard) => {
                let doubted = now >= heard.confirmed_until();
                let lease_ends = doubted.then(|| heard.lease_ends());
                self.facts.link = Link::Loaded { lease_ends };
            }
            Link::Loaded { lease_ends: None } => {
                self.facts.link = Link::Loaded {
                    lease_ends: Some(unheard_until.unwrap_or(now)),
                };
            }
            Link::Loaded {
                lease_ends: Some(_),
            }
            | Link::NeverSeen
            | Link::Lost { .. } => {}
        }
    }

    /// What has gone stale stays so: results of a host that is not heard do not age.
    fn freeze_results(&mut self, context: &Context<'_>) {
        let outcomes = judged_outcomes(&self.facts, context);
        self.facts.health.held = self
            .facts
            .health
            .held
            .iter()
            .zip(outcomes)
            .map(|(held, outcome)| Held {
                result: Arc::new(CheckResult {
                    outcome,
                    ..(*held.result).clone()
                }),
                ..held.clone()
            })
            .collect();
    }

    /// Works out where the broker may dial a host that comes from the store.
    pub fn aim(&mut self, policy: &PoolPolicy) {
        self.target = probe_target(&self.facts, policy);
    }

    /// Believes a host known from before the start until `until` at the longest: what an earlier
    /// start served without a word from it counts.
    pub fn bound_unheard(&mut self, until: Mono) {
        if let Link::Loaded { lease_ends } = &mut self.facts.link {
            *lease_ends = Some(lease_ends.map_or(until, |ends| ends.min(until)));
        }
    }
}

fn is_over(drain: &Drain, now: Now) -> bool {
    drain.until.is_some_and(|until| now.wall >= until)
}
