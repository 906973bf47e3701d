//! Tests of one host: every row and every pair of rows, the life of a host told as stories, and
//! properties over random histories.

mod about;
mod flips;
mod newcomers;
mod properties;
mod rows;
mod simulated;
mod stories;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::*;
use crate::model::*;

/// A host with a broker's clock and policy around it.
#[derive(Clone)]
pub(super) struct World {
    pub(super) host: Host,
    pub(super) now: Now,
    pub(super) policy: PoolPolicy,
    pub(super) window_ends: Option<Mono>,
    pub(super) epoch: u32,
    pub(super) sequence: u64,
    pub(super) boot: u32,
    pub(super) version: &'static str,
    pub(super) cloud: Option<CloudInstance>,
    pub(super) power: PowerAnnouncement,
    pub(super) upgrade: UpgradeAnnouncement,
    /// Token of the last Welcome, as the agent keeps it.
    pub(super) token: Option<ResumeToken>,
}

pub(super) const INTERVAL: Duration = Duration::from_secs(10);
pub(super) const LEASE: Duration = Duration::from_secs(35);
pub(super) const VALID: Duration = Duration::from_secs(90);

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn name(text: &str) -> CheckName {
    CheckName::new(text).unwrap()
}

pub(super) fn result(check: &str, outcome: Outcome) -> CheckResult {
    let run = outcome != Outcome::Unknown(UnknownCause::NotYetRun);
    CheckResult {
        name: name(check),
        kind: check.into(),
        outcome,
        raw: outcome,
        age: run.then_some(Duration::ZERO),
        duration: Duration::ZERO,
        message: format!("{check} says {outcome}"),
        findings: vec![],
        truncated: false,
    }
}

pub(super) fn attempt(id: &str, to: &str, phase: UpgradePhase) -> UpgradeAttempt {
    UpgradeAttempt {
        id: id.into(),
        from: "0.1.0".into(),
        to: to.into(),
        phase,
    }
}

pub(super) fn upgrading(id: &str, to: &str) -> UpgradeAnnouncement {
    UpgradeAnnouncement::InProgress {
        attempt: attempt(id, to, UpgradePhase::Switch),
        within: None,
    }
}

pub(super) fn leaving(how: Leave) -> PowerAnnouncement {
    PowerAnnouncement::Leaving {
        how,
        back_within: None,
    }
}

pub(super) const ALL_CHECKS: [&str; 5] = [
    "domain",
    "metadata_service",
    "monitoring_agent",
    "session_listener",
    "urls",
];

impl World {
    /// A host that has just enrolled.
    pub(super) fn enrolled() -> Self {
        let now = Now {
            mono: Mono::from_origin(secs(100_000)),
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
        };
        let identity = Identity {
            name: HostName::new("vdi-01").unwrap(),
            id: HostId::from_random([7; 16]),
            pool: PoolName::default_pool(),
            enrolled_at: now.wall,
        };
        let policy = PoolPolicy::default();
        let context = Context {
            now,
            policy: &policy,
            window_ends: None,
            broker_late: false,
        };
        let (host, effects) = Host::enrolled(identity, Admin::default(), &context);
        assert_eq!(effects.transition.unwrap().sequence, 1);
        Self {
            host,
            now,
            policy,
            window_ends: None,
            epoch: 0,
            sequence: 0,
            boot: 1,
            version: "0.1.0",
            cloud: None,
            power: PowerAnnouncement::Running,
            upgrade: UpgradeAnnouncement::Silent,
            token: None,
        }
    }

    /// A host that is Available, one second after its report.
    pub(super) fn available() -> Self {
        let mut world = Self::enrolled();
        let _ = world.open();
        let _ = world.report(&[]);
        world.pass(secs(1));
        assert_eq!(world.status(), Status::Available);
        world
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            policy: &self.policy,
            window_ends: self.window_ends,
            broker_late: false,
        }
    }

    pub(super) fn handle(&mut self, event: Event) -> Effects {
        let context = Context {
            now: self.now,
            policy: &self.policy,
            window_ends: self.window_ends,
            broker_late: false,
        };
        self.host.handle(event, &context)
    }

    pub(super) fn assess(&self) -> Assessment {
        assess(self.host.facts(), &self.context())
    }

    pub(super) fn status(&self) -> Status {
        self.assess().status
    }

    pub(super) fn codes(&self) -> Vec<String> {
        self.assess()
            .reasons
            .iter()
            .map(|reason| reason.code.to_string())
            .collect()
    }

    /// Lets time pass without an event.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now.mono = self.now.mono + time;
        self.now.wall = self.now.wall.checked_add(time).unwrap();
    }

    pub(super) fn live(&self) -> Epoch {
        Epoch::new(1, self.epoch)
    }

    pub(super) fn open(&mut self) -> Effects {
        self.epoch += 1;
        self.sequence = 0;
        let hello = Hello {
            agent_version: self.version.into(),
            boot_id: format!("boot-{}", self.boot).into(),
            instance_id: format!("instance-{}", self.epoch).into(),
            os: "Debian 12".into(),
            addresses: vec![],
            resume_token: self.token.clone(),
            policy_revision: "default-1".into(),
            power: self.power,
            upgrade: self.upgrade.clone(),
        };
        let terms = Terms {
            interval: INTERVAL,
            lease: LEASE,
        };
        let epoch = self.live();
        let token = ResumeToken::new([u8::try_from(self.epoch % 251).unwrap(); 16]);
        let effects = self.handle(Event::Opened {
            epoch,
            hello,
            terms,
            peer_address: "10.0.0.7:1".into(),
            is_local: false,
            token: token.clone(),
        });
        if effects.admission == Some(Admission::Accepted) {
            self.token = Some(token);
        }
        effects
    }

    /// A full report: all five checks pass but those given.
    pub(super) fn report(&mut self, but: &[(&str, Outcome)]) -> Effects {
        self.sequence += 1;
        let mut checks: Vec<CheckResult> = ALL_CHECKS
            .iter()
            .map(|check| result(check, Outcome::Pass))
            .collect();
        for (check, outcome) in but {
            checks.retain(|result| result.name.as_str() != *check);
            checks.push(result(check, *outcome));
        }
        let report = Report {
            sequence: self.sequence,
            state_hash: 1,
            results_valid: VALID,
            checks,
            listeners: vec![Listener {
                protocol: "ssh".into(),
                addresses: vec![],
                port: 22,
            }],
            cloud: self.cloud.clone(),
            sessions: SessionCounts {
                active: Some(1),
                disconnected: Some(0),
                pending: None,
            },
            policy_revision: "default-1".into(),
            power: self.power,
            upgrade: self.upgrade.clone(),
        };
        let epoch = self.live();
        self.handle(Event::Report(epoch, report))
    }

    pub(super) fn beat(&mut self) -> Effects {
        self.sequence += 1;
        let beat = Beat {
            sequence: self.sequence,
            state_hash: 1,
            results_valid: VALID,
            sessions: self.host.facts().sessions,
        };
        let epoch = self.live();
        self.handle(Event::Beat(epoch, beat))
    }

    pub(super) fn stream_ends(&mut self) -> Effects {
        let epoch = self.live();
        self.handle(Event::StreamEnded(epoch))
    }

    pub(super) fn leave(&mut self, how: Leave) -> Effects {
        let epoch = self.live();
        self.handle(Event::Leaving(epoch, leaving(how)))
    }

    /// The broker dies with only what was durable, and starts again after `down`.
    pub(super) fn restart_broker(&mut self, down: Duration, clean: bool) {
        let record = HostRecord::of(&self.host, &self.context(), clean);
        let json = serde_json::to_vec(&record).unwrap();
        let record: HostRecord = serde_json::from_slice(&json).unwrap();
        let admin = (*self.host.facts().admin).clone();
        self.pass(down);
        // Another process, perhaps another boot of the machine: another origin of the clock.
        self.now.mono = Mono::from_origin(secs(50));
        self.window_ends = Some(self.now.mono + LEASE + secs(60));
        self.host = record.restore(admin, self.now);
        self.epoch += 1000;
    }
}

pub(super) fn drain(owner: &str, until: Option<Timestamp>) -> Drain {
    Drain {
        owner: owner.to_owned(),
        reason: "new disk".to_owned(),
        since: Timestamp::from_second(1_800_000_000).unwrap(),
        until,
    }
}

pub(super) fn with_facts(world: &mut World, change: impl FnOnce(&mut Facts)) {
    let mut facts = world.host.facts().clone();
    change(&mut facts);
    world.host.facts = facts;
}

pub(super) fn set_outcome(facts: &mut Facts, check: &str, outcome: Outcome) {
    facts.health.held = facts
        .health
        .held
        .iter()
        .map(|held| {
            if held.result.name.as_str() == check {
                Held {
                    result: Arc::new(result(check, outcome)),
                    ..held.clone()
                }
            } else {
                held.clone()
            }
        })
        .collect();
}
