//! What is known of one host, by what went in.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::{
    host::{Admission, Effects, Hello, Host, Imposed, Power, Report},
    model::{
        Confidence, Epoch, HostId, Leave, Mono, Outcome, PowerAnnouncement, ReasonCode,
        ResumeToken, Status, Transition, UnknownCause, UpgradeAnnouncement,
    },
};

use super::is_goodbye;
use crate::{
    agent::{AckOf, Up},
    broker::{Clocks, TERMS},
    store::Store,
};

/// Checks that are fatal in every pool of a run.
const FATAL: [&str; 2] = ["domain", "session_listener"];

/// How long stored results count for a restarted broker.
const LOADED_RESULTS_VALID: Duration = Duration::from_secs(100);

/// The session that speaks for a host.
#[derive(Clone, Debug)]
pub(super) struct Live {
    pub(super) epoch: Epoch,
    machine: usize,
    instance: Arc<str>,
    top: u64,
    reported: bool,
}

/// A token that was given out.
#[derive(Debug)]
struct Given {
    token: ResumeToken,
    /// Its holder has shown that it has it.
    arrived: bool,
}

/// A fatal check's last finished run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) outcome: Outcome,
    pub(super) began: Mono,
    /// It is of an earlier session: it ends at that instant.
    carried_until: Option<Mono>,
}

/// A host known from before the broker's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) new: bool,
    pub(super) reconnect: bool,
    /// What is left of its lease, where the broker knew that it was doubtful.
    pub(super) ends: Option<Mono>,
    /// Since when it is known so.
    pub(super) since: Mono,
    /// Nothing has been said since that may have changed the answer.
    pub(super) sure: bool,
}

/// What was last told about a host.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Told {
    pub(super) status: Status,
    pub(super) new: bool,
    pub(super) reconnect: bool,
    pub(super) reasons: Vec<(ReasonCode, String)>,
}

impl Told {
    fn of(transition: &Transition) -> Self {
        Self {
            status: transition.to,
            new: transition.connectable_new,
            reconnect: transition.connectable_reconnect,
            reasons: transition
                .reasons
                .iter()
                .map(|reason| (reason.code.clone(), reason.subject.clone()))
                .collect(),
        }
    }
}

/// What is known of a host.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) exists: bool,
    pub(super) session: Option<Live>,
    /// Judged instant of the last beat or report that counts, since the broker's start.
    pub(super) heard: Option<Mono>,
    /// Its stream has ended since.
    pub(super) ended: bool,
    /// When, if it has.
    pub(super) ended_at: Option<Mono>,
    pub(super) loaded: Option<Loaded>,
    pub(super) checks: BTreeMap<String, Known>,
    pub(super) valid_until: Mono,
    boot: Option<Arc<str>>,
    /// Runs that began earlier do not count.
    pub(super) barrier: Mono,
    /// The latest that this barrier may be for a broker that knows less.
    pub(super) barrier_most: Mono,
    pub(super) power: Option<PowerAnnouncement>,
    /// The last word about power was acknowledged.
    power_acknowledged: bool,
    pub(super) upgrade: Option<UpgradeAnnouncement>,
    pub(super) upgrade_since: Option<Mono>,
    upgrade_acknowledged: bool,
    pub(super) drained: Option<Option<Timestamp>>,
    pub(super) drain_acknowledged: bool,
    pub(super) convicted: bool,
    pub(super) imposed: Arc<Imposed>,
    pub(super) told: Option<Told>,
    pub(super) sequence: u64,
    /// Tokens given out, oldest first.
    tokens: Vec<Given>,
    /// Tokens that have been followed by one whose session has spoken.
    used: Vec<ResumeToken>,
    pub(super) twin: Option<Box<Host>>,
    /// What was left of a doubtful host's lease when the broker stopped well.
    lease_left: Option<Duration>,
    /// Time served beyond its lease since its last word.
    pub(super) extended: Duration,
    pub(super) extended_by_hold: bool,
    pub(super) extended_in_long_window: bool,
    /// Looks at which what was told and what is so differed.
    pub(super) differs: u8,
    /// It has been connectable.
    pub(super) was_well: bool,
    /// A copy of it has been about.
    pub(super) copied: bool,
}

impl Seen {
    /// A host that has just enrolled.
    pub(super) fn enrolled(at: Mono) -> Self {
        Self {
            exists: true,
            barrier: at,
            sequence: 1,
            ..Self::default()
        }
    }

    /// Time has passed: its lease may be over.
    pub(super) fn pass(&mut self, now: Mono) {
        let Some(heard) = self.heard else {
            return;
        };
        let mut ends = heard + TERMS.lease;
        if let Some(hold) = &self.imposed.hold {
            ends = ends.max(hold.until);
        }
        if now >= ends {
            self.heard = None;
            self.raise_barrier(ends);
        }
    }

    /// It is heard again, or tries to be: was it given up before that?
    pub(super) fn comes_back(&mut self, window_ends: Option<Mono>, now: Mono) {
        let late = self.loaded.is_some_and(|loaded| {
            window_ends.is_none_or(|ends| now >= ends)
                || loaded.ends.is_some_and(|ends| now >= ends)
                || self
                    .ended_at
                    .is_some_and(|ended| now >= ended + TERMS.lease)
        });
        if late {
            self.barrier_most = self.barrier_most.max(now);
        }
    }

    fn raise_barrier(&mut self, to: Mono) {
        self.barrier = self.barrier.max(to);
        self.barrier_most = self.barrier_most.max(to);
    }

    /// The broker's dials convicted it, and it had not spoken since.
    pub(super) fn convict(&mut self, now: Mono) {
        self.convicted = true;
        self.heard = None;
        self.loaded = None;
        self.raise_barrier(now);
    }

    /// Its lease runs.
    pub(super) fn lease_runs(&self, now: Mono) -> bool {
        self.heard.is_some_and(|heard| now < heard + TERMS.lease)
    }

    /// A hello was taken in. Says what is wrong with the answer.
    pub(super) fn opened(
        &mut self,
        machine: usize,
        epoch: Epoch,
        hello: &Hello,
        token: &ResumeToken,
        admission: Option<Admission>,
        now: Mono,
    ) -> Option<String> {
        if admission != Some(Admission::Accepted) {
            return None;
        }
        let used = hello
            .resume_token
            .as_ref()
            .is_some_and(|token| self.used.contains(token));
        let incumbent = self.session.as_ref().filter(|live| {
            live.machine != machine && live.instance != hello.instance_id && live.reported
        });
        let wrong = incumbent.is_some() && used && self.lease_runs(now);
        if self
            .session
            .as_ref()
            .is_some_and(|live| live.machine != machine)
        {
            self.copied = true;
        }
        if self.boot.as_ref() != Some(&hello.boot_id) {
            self.checks.clear();
            if let Some(loaded) = &mut self.loaded {
                // What an earlier boot found counts no more.
                (loaded.new, loaded.reconnect) = (false, false);
            }
        }
        self.boot = Some(hello.boot_id.clone());
        for known in self.checks.values_mut() {
            known.carried_until = Some(known.carried_until.unwrap_or(self.valid_until));
        }
        self.session = Some(Live {
            epoch,
            machine,
            instance: hello.instance_id.clone(),
            top: 0,
            reported: false,
        });
        for given in &mut self.tokens {
            given.arrived |= hello.resume_token.as_ref() == Some(&given.token);
        }
        self.tokens.push(Given {
            token: token.clone(),
            arrived: false,
        });
        self.end(now);
        self.take_power(hello.power, false, now);
        self.take_upgrade(&hello.upgrade, now);
        wrong.then(|| "a token that was used took the place of a host that is heard".to_owned())
    }

    /// A word of the live session was taken in.
    pub(super) fn heard(&mut self, up: &Up, now: Mono) {
        // Whoever speaks shows that Welcome arrived: earlier tokens are used. Of one that was
        // replaced before it was heard of nobody knows whether it ever arrived: its holder is a
        // stranger, who waits for the incumbent's proof.
        if let Some(mut current) = self.tokens.pop() {
            current.arrived = true;
            let earlier = self.tokens.drain(..).filter(|given| given.arrived);
            self.used.extend(earlier.map(|given| given.token));
            let from = self.used.len().saturating_sub(8);
            self.used.drain(..from);
            self.tokens.push(current);
        }
        let Some(live) = &mut self.session else {
            return;
        };
        match up {
            Up::Beat(beat) => {
                if beat.sequence <= live.top {
                    return;
                }
                live.top = beat.sequence;
                if live.reported && self.heard.is_some() && self.loaded.is_none() {
                    self.heard = Some(now);
                    self.resume();
                    self.valid_until = now + beat.results_valid;
                    self.word();
                }
            }
            Up::Report(report) => {
                if report.sequence <= live.top && live.reported {
                    return;
                }
                live.top = live.top.max(report.sequence);
                live.reported = true;
                self.heard = Some(now);
                self.resume();
                self.loaded = None;
                self.convicted = false;
                self.word();
                self.take_checks(report, now);
                let settled = self.is_settled();
                self.take_power(report.power, settled, now);
                self.take_upgrade(&report.upgrade, now);
            }
            Up::Leaving(power) => {
                self.take_power(*power, true, now);
                if let (PowerAnnouncement::Running, Some(loaded)) = (power, &mut self.loaded) {
                    loaded.sure = false;
                }
                if matches!(
                    power,
                    PowerAnnouncement::Leaving {
                        how: Leave::AgentStop,
                        ..
                    }
                ) {
                    self.raise_barrier(now);
                }
            }
            Up::Upgrade(upgrade) => self.take_upgrade(upgrade, now),
        }
    }

    /// Its stream ended, or was followed by another.
    pub(super) fn end(&mut self, now: Mono) {
        self.ended = true;
        self.ended_at.get_or_insert(now);
    }

    fn resume(&mut self) {
        self.ended = false;
        self.ended_at = None;
    }

    fn word(&mut self) {
        self.extended = Duration::ZERO;
        self.extended_by_hold = false;
        self.extended_in_long_window = false;
    }

    fn take_checks(&mut self, report: &Report, now: Mono) {
        let mut checks = BTreeMap::new();
        for name in FATAL {
            let Some(result) = report.checks.iter().find(|r| r.name.as_str() == name) else {
                continue;
            };
            let not_run = result.outcome == Outcome::Unknown(UnknownCause::NotYetRun);
            if not_run {
                if let Some(old) = self.checks.get(name) {
                    let until = old.carried_until.unwrap_or(self.valid_until);
                    if now < until {
                        let carried_until = Some(until);
                        checks.insert(
                            name.to_owned(),
                            Known {
                                carried_until,
                                ..*old
                            },
                        );
                    }
                }
                continue;
            }
            let age = result.age.unwrap_or_default();
            checks.insert(
                name.to_owned(),
                Known {
                    outcome: result.outcome,
                    began: now.back(age + result.duration),
                    carried_until: None,
                },
            );
        }
        self.checks = checks;
        self.valid_until = now + report.results_valid;
    }

    fn take_power(&mut self, power: PowerAnnouncement, settles: bool, now: Mono) {
        let before = self.power;
        self.power = match power {
            PowerAnnouncement::Leaving { .. } => Some(power),
            PowerAnnouncement::Running => match before {
                Some(PowerAnnouncement::Leaving {
                    how: Leave::AgentStop | Leave::AgentRestart,
                    ..
                }) => None,
                _ if settles => None,
                before => before,
            },
        };
        if self.power != before {
            self.power_acknowledged = false;
            if let PowerAnnouncement::Leaving {
                how: Leave::AgentStop,
                ..
            } = power
            {
                self.raise_barrier(now);
            }
        }
    }

    fn take_upgrade(&mut self, upgrade: &UpgradeAnnouncement, now: Mono) {
        match upgrade {
            UpgradeAnnouncement::Silent => {}
            UpgradeAnnouncement::InProgress { attempt, .. } => {
                let same = matches!(&self.upgrade, Some(UpgradeAnnouncement::InProgress { attempt: before, .. })
                    if before.id == attempt.id);
                if !same {
                    self.upgrade_since = Some(now);
                    self.upgrade_acknowledged = false;
                }
                self.upgrade = Some(upgrade.clone());
            }
            UpgradeAnnouncement::Failed { .. } => {
                self.upgrade_acknowledged = false;
                if let Some(loaded) = &mut self.loaded {
                    // It is over, and what was found before counts again.
                    loaded.sure = false;
                }
                self.upgrade = Some(upgrade.clone());
            }
            UpgradeAnnouncement::Cleared { id } => {
                if self
                    .upgrade
                    .as_ref()
                    .is_some_and(|current| !is_of(current, id))
                {
                    return;
                }
                self.upgrade_acknowledged = false;
                self.upgrade = None;
                self.upgrade_since = None;
                if let Some(loaded) = &mut self.loaded {
                    // Its administrator ends an upgrade, and what was found before counts again.
                    loaded.sure = false;
                }
            }
        }
    }

    /// Every fatal check has a finished run that counts.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled_since(self.barrier)
    }

    /// Likewise, beyond doubt.
    pub(super) fn is_surely_settled(&self) -> bool {
        self.is_settled_since(self.barrier_most)
    }

    fn is_settled_since(&self, barrier: Mono) -> bool {
        FATAL.iter().all(|name| {
            self.checks
                .get(*name)
                .is_some_and(|known| known.began >= barrier)
        })
    }

    /// A fatal check fails, is unknown, or was expired as of the last beat.
    pub(super) fn fatal_is_bad(&self, now: Mono) -> bool {
        let silent = self.heard.map_or(now, |heard| heard + TERMS.interval * 2);
        let confirmed_until = self.ended_at.map_or(silent, |ended| ended.min(silent));
        self.checks.values().any(|known| {
            let until = known.carried_until.unwrap_or(self.valid_until);
            known.outcome.is_bad() || now.min(confirmed_until) >= until
        })
    }

    /// An acknowledgement was given.
    pub(super) fn acknowledged(&mut self, of: &AckOf) {
        match of {
            AckOf::Leaving(power) => self.power_acknowledged |= self.power == Some(*power),
            AckOf::Upgrade(upgrade) => {
                self.upgrade_acknowledged |= self.upgrade.as_ref() == Some(upgrade);
            }
            AckOf::Report => {}
        }
    }

    /// What was told about it. Says what is wrong with that.
    pub(super) fn told(&mut self, effects: &Effects, now: Mono) -> Option<(u8, String)> {
        let transition = effects.transition.as_ref()?;
        if transition.confidence == Confidence::Absent {
            // Lost, perhaps by what only the broker knows: no run from before surely counts.
            self.barrier_most = self.barrier_most.max(now);
            if let Some(loaded) = &mut self.loaded {
                (loaded.new, loaded.reconnect) = (false, false);
            }
        }
        let told = Told::of(transition);
        let before = self.sequence;
        self.sequence = transition.sequence;
        if before > 0 && transition.sequence != before + 1 {
            return Some((5, format!("entry {} follows {before}", transition.sequence)));
        }
        if !effects.tell || !effects.persist {
            return Some((5, "a transition that is not told or not stored".to_owned()));
        }
        if self.told.as_ref() == Some(&told) {
            return Some((5, "a transition that changes nothing".to_owned()));
        }
        self.told = Some(told);
        None
    }

    /// A broker has loaded it. Says what was lost that must not be.
    pub(super) fn loaded(
        &mut self,
        store: &Store,
        id: HostId,
        host: &Host,
        clocks: Clocks,
        stopped_well: bool,
    ) -> Option<(u8, String)> {
        let was_settled = self.is_settled();
        let left = self.lease_left.take().filter(|_| stopped_well);
        self.session = None;
        self.heard = None;
        self.resume();
        self.imposed = Arc::default();
        self.tokens.clear();
        self.used.clear();
        self.checks.clear();
        self.barrier = Mono::ZERO;
        self.differs = 0;
        let now = clocks.boot;
        let entry = store.last_entry(id);
        let settled = entry.is_some_and(|entry| entry.connectable_reconnect);
        self.barrier_most = if settled { Mono::ZERO } else { now };
        self.boot = Some(host.facts().about.boot_id.clone());
        if settled || was_settled {
            // What the same boot found before counts on for a while; surely so only where the
            // store says that it did.
            let began = if settled {
                now
            } else {
                now.back(Duration::from_nanos(1))
            };
            for name in FATAL {
                let known = Known {
                    outcome: Outcome::Pass,
                    began,
                    carried_until: Some(now + LOADED_RESULTS_VALID),
                };
                self.checks.insert(name.to_owned(), known);
            }
        }
        self.loaded = Some(Loaded {
            new: entry.is_some_and(|entry| entry.connectable_new),
            reconnect: entry.is_some_and(|entry| entry.connectable_reconnect),
            ends: left.map(|left| now + left),
            since: now,
            // An upgrade may have come to its deadline meanwhile.
            sure: entry.is_none_or(|entry| entry.to != Status::Upgrading),
        });
        let stored = entry.map_or(0, |entry| entry.sequence);
        // The load itself may have told something already.
        if host.told().sequence < stored {
            return Some((
                5,
                format!(
                    "entry {stored} is durable, and the host is at {}",
                    host.told().sequence
                ),
            ));
        }
        self.sequence = stored;
        self.told = entry.map(Told::of);
        let expected = store
            .journal(id)
            .zip(entry.map_or(0, |e| e.sequence.saturating_sub(999).max(1))..);
        for (entry, number) in expected {
            if entry.sequence != number {
                return Some((
                    5,
                    format!("the journal has {} where {number} belongs", entry.sequence),
                ));
            }
        }
        self.kept(host)
    }

    /// What was acknowledged is still so.
    fn kept(&mut self, host: &Host) -> Option<(u8, String)> {
        let facts = host.facts();
        if self.power_acknowledged
            && let Some(PowerAnnouncement::Leaving { how, .. }) = self.power
        {
            let kept = matches!(facts.power, Power::Leaving { how: stored, .. } if stored == how);
            if !kept {
                let what = format!("an acknowledged goodbye ({}) is lost", how.as_str());
                return Some((4, what));
            }
        }
        if self.upgrade_acknowledged
            && self.upgrade.is_some()
            && facts.upgrade == muster_core::host::Upgrade::None
        {
            return Some((4, "an acknowledged step of an upgrade is lost".to_owned()));
        }
        if self.drain_acknowledged && self.drained == Some(None) && facts.admin.drains.is_empty() {
            return Some((4, "an acknowledged drain is lost".to_owned()));
        }
        self.power = match facts.power {
            Power::Running => None,
            Power::Leaving { how, .. } => Some(PowerAnnouncement::Leaving {
                how,
                back_within: None,
            }),
        };
        if self.drained.is_some() && facts.admin.drains.is_empty() {
            self.drained = None;
        }
        if matches!(facts.upgrade, muster_core::host::Upgrade::None) {
            self.upgrade = None;
            self.upgrade_since = None;
        } else {
            self.upgrade_since = None;
        }
        None
    }

    /// The broker was stopped for so long that it knows nothing of the present.
    pub(super) fn stalled(&mut self, now: Mono, window_before: Option<Mono>) {
        let told = self.told.as_ref();
        let (new, reconnect) = told.map_or((false, false), |told| (told.new, told.reconnect));
        if let Some(heard) = self.heard {
            let doubtful = self.ended || now >= heard + TERMS.interval * 2;
            self.loaded = Some(Loaded {
                new,
                reconnect,
                ends: doubtful.then_some(heard + TERMS.lease),
                since: now,
                sure: true,
            });
            self.heard = None;
        } else if let Some(loaded) = &mut self.loaded {
            loaded.ends = loaded.ends.or(window_before).or(Some(now));
        }
    }

    /// The broker holds no upgrade of it.
    pub(super) fn no_upgrade(&mut self) {
        self.upgrade = None;
        self.upgrade_acknowledged = false;
    }

    /// The broker stops well.
    pub(super) fn stopped_well(&mut self, now: Mono) {
        self.lease_left = self
            .heard
            .filter(|heard| now < *heard + TERMS.lease)
            .filter(|heard| self.ended || now >= *heard + TERMS.interval * 2)
            .map(|heard| (heard + TERMS.lease).since(now));
    }

    /// Says goodbye, or has.
    pub(super) fn leaves(&self) -> bool {
        self.power.is_some_and(is_goodbye)
    }
}

fn is_of(upgrade: &UpgradeAnnouncement, id: &str) -> bool {
    match upgrade {
        UpgradeAnnouncement::InProgress { attempt, .. }
        | UpgradeAnnouncement::Failed { attempt, .. } => &*attempt.id == id,
        UpgradeAnnouncement::Silent | UpgradeAnnouncement::Cleared { .. } => false,
    }
}
