//! A machine with its agent: the real cores of the agent's side, and the small glue between them.
//! Its twin is `agent/src/session` (`talk.rs`, `mod.rs`).

use std::{sync::Arc, time::Duration};

use muster_core::{
    agent::{BeatClock, CheckSpec, Failure, Observation, Reconnect, RunId, Schedule, state_hash},
    host::{Beat, Hello, Report},
    model::{
        CheckName, CheckPace, Epoch, Leave, Listener, Mono, Outcome, PowerAnnouncement,
        ResumeToken, SessionCounts, UpgradeAnnouncement, default_check_names,
    },
};

use crate::rng::Rng;

/// Reports are at least so far apart.
const REPORT_GAP: Duration = Duration::from_millis(200);
/// The broker must say Welcome within this time.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(10);
/// First try after a loss, as Welcome sets it.
pub const SPREAD: Duration = Duration::from_secs(1);
/// Cap of the backoff, as Welcome sets it.
pub const CAP: Duration = Duration::from_secs(15);
/// Port of the session listener.
pub const PORT: u16 = 3389;

/// A word of an agent.
#[derive(Clone, PartialEq, Debug)]
pub enum Up {
    /// Still here.
    Beat(Beat),
    /// Everything.
    Report(Box<Report>),
    /// It leaves, or stays after all.
    Leaving(PowerAnnouncement),
    /// A step of an upgrade.
    Upgrade(UpgradeAnnouncement),
}

/// What a broker acknowledges.
#[derive(Clone, PartialEq, Debug)]
pub enum AckOf {
    /// A goodbye.
    Leaving(PowerAnnouncement),
    /// A step of an upgrade.
    Upgrade(UpgradeAnnouncement),
    /// A report.
    Report,
}

/// A word of the broker.
#[derive(Clone, PartialEq, Debug)]
pub enum Down {
    /// The session is accepted.
    Welcome(ResumeToken, Epoch),
    /// It is not, or not yet.
    Refused(Option<Duration>),
    /// Durable.
    Ack(AckOf),
    /// A full report, please.
    Resync,
    /// Run the checks now.
    Recheck,
    /// The session is over; true if the agent may come back at once.
    End(bool),
}

/// What a process wants of the world around it.
#[derive(Clone, Debug)]
pub enum Act {
    /// Connect and say hello.
    Connect(Box<Hello>),
    /// A word in the live session.
    Send(Up),
    /// A run of a check ends at that time.
    Run(CheckName, RunId, Mono, Outcome),
}

/// How the link to the broker is.
#[derive(Debug)]
pub enum Link {
    /// Tries again at that time.
    Waiting(Mono),
    /// Waits for Welcome on this connection.
    Connecting(u32),
    /// In session.
    Up(Talk),
}

/// A session, from Welcome to its end.
#[derive(Debug)]
pub struct Talk {
    /// The connection.
    pub conn: u32,
    beats: BeatClock,
    reported: Option<u64>,
    since: Mono,
    reported_fresh: bool,
    next_report: Mono,
}

/// An agent's process.
#[derive(Debug)]
pub struct Process {
    /// Tells apart what an earlier process left behind.
    pub generation: u32,
    instance: Arc<str>,
    schedule: Schedule,
    reconnect: Reconnect,
    /// The link to the broker.
    pub link: Link,
}

/// What is really so at the machine. Counts of what keeps it from being well, because faults
/// overlap.
#[derive(Clone, Copy, Default, Debug)]
pub struct Truth {
    /// A fatal check fails.
    pub fatal_fails: u8,
    /// A non-fatal one does.
    pub non_fatal_fails: u8,
    /// A fatal check hangs.
    pub hangs: u8,
    /// The loop of the checks is stuck.
    pub stuck: u8,
    /// The session listener is down.
    pub listener_down: u8,
    /// The broker's dials are rejected.
    pub rejects_broker: u8,
    /// The agent's process is stopped.
    pub paused: u8,
    /// No power, suspended, or rebooting.
    pub off: u8,
    /// Suspended: its process goes on when it wakes.
    pub suspended: u8,
    /// The agent does not run.
    pub no_agent: u8,
    /// Nothing passes between it and the broker.
    pub cut: u8,
}

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// The host that it is enrolled as.
    pub host: usize,
    /// It is a copy of another.
    pub is_copy: bool,
    /// What is so.
    pub truth: Truth,
    /// This boot.
    pub boot_id: Arc<str>,
    /// When the machine booted.
    pub booted: Mono,
    /// Resume token on its disk.
    pub token: Option<ResumeToken>,
    /// Version of its agent.
    pub version: u32,
    /// What it announces.
    pub power: PowerAnnouncement,
    /// What it announces.
    pub upgrade: UpgradeAnnouncement,
    /// Address that the broker sees.
    pub peer: Arc<str>,
    /// Its own addresses, as it names them.
    pub own: Vec<String>,
    /// The agent.
    pub process: Option<Process>,
    generation: u32,
    boots: u32,
}

impl Machine {
    /// A machine that was just switched on.
    #[must_use]
    pub fn new(host: usize, peer: Arc<str>, own: Vec<String>, now: Mono) -> Self {
        Self {
            host,
            is_copy: false,
            truth: Truth::default(),
            boot_id: format!("boot-{host}-0").into(),
            booted: now,
            token: None,
            version: 1,
            power: PowerAnnouncement::Running,
            upgrade: UpgradeAnnouncement::Silent,
            peer,
            own,
            process: None,
            generation: 0,
            boots: 0,
        }
    }

    /// A copy with everything on its disk; `same_boot` if it was copied as it ran.
    #[must_use]
    pub fn copy(&self, same_boot: bool, peer: Arc<str>, own: Vec<String>, now: Mono) -> Self {
        let boot_id = if same_boot {
            self.boot_id.clone()
        } else {
            format!("{}-copy", self.boot_id).into()
        };
        Self {
            is_copy: true,
            boot_id,
            booted: if same_boot { self.booted } else { now },
            token: self.token.clone(),
            version: self.version,
            generation: 1000,
            ..Self::new(self.host, peer, own, now)
        }
    }

    /// The agent runs and is not stopped.
    #[must_use]
    pub fn is_awake(&self) -> bool {
        let Truth {
            paused,
            off,
            suspended,
            ..
        } = self.truth;
        paused == 0 && off == 0 && suspended == 0 && self.process.is_some()
    }

    /// The machine takes words from the network.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.truth.off == 0 && self.truth.suspended == 0
    }

    /// A new boot.
    pub fn boot(&mut self, now: Mono) {
        self.boots += 1;
        self.boot_id = format!(
            "boot-{}-{}{}",
            self.host,
            self.boots,
            if self.is_copy { "c" } else { "" }
        )
        .into();
        self.booted = now;
        self.power = PowerAnnouncement::Running;
    }

    /// The agent starts.
    pub fn start(&mut self, now: Mono, rng: &mut Rng) {
        self.generation += 1;
        if let PowerAnnouncement::Leaving {
            how: Leave::AgentStop | Leave::AgentRestart,
            ..
        } = self.power
        {
            // A process that runs has not stopped.
            self.power = PowerAnnouncement::Running;
        }
        let mut schedule = Schedule::default();
        let specs = default_check_names()
            .iter()
            .filter_map(|name| {
                Some(CheckSpec {
                    name: CheckName::new(name).ok()?,
                    kind: (*name).into(),
                    pace: CheckPace::default(),
                    supported: true,
                })
            })
            .collect();
        let _ = schedule.set_checks(specs, now);
        self.process = Some(Process {
            generation: self.generation,
            instance: format!("{}-{:x}", self.generation, rng.bits()).into(),
            schedule,
            reconnect: Reconnect::new(vec!["broker:7443".into()]),
            link: Link::Waiting(now),
        });
    }

    fn outcome(&self, name: &str) -> Outcome {
        let Truth {
            fatal_fails,
            non_fatal_fails,
            listener_down,
            ..
        } = self.truth;
        let fails = match name {
            "domain" => fatal_fails > 0,
            "session_listener" => listener_down > 0,
            "urls" => non_fatal_fails > 0,
            _ => false,
        };
        if fails { Outcome::Fail } else { Outcome::Pass }
    }

    /// Does what is due.
    pub fn wake(&mut self, now: Mono, rng: &mut Rng, acts: &mut Vec<Act>) {
        if !self.is_awake() {
            return;
        }
        let Some(mut process) = self.process.take() else {
            return;
        };
        if self.truth.stuck == 0 {
            let mut draws = rng.clone();
            let starts = process.schedule.start_due(now, || draws.random());
            *rng = draws;
            for start in starts {
                let hangs = self.truth.hangs > 0 && start.name.as_str() == "domain";
                let (ends, outcome) = if hangs {
                    let timed_out = Observation::timed_out(start.timeout).outcome;
                    (now + start.timeout, timed_out)
                } else {
                    (now + rng.millis(5, 800), self.outcome(start.name.as_str()))
                };
                acts.push(Act::Run(start.name, start.run, ends, outcome));
            }
        }
        match &mut process.link {
            Link::Waiting(at) if *at <= now => {
                acts.push(Act::Connect(Box::new(self.hello(&process))));
            }
            Link::Waiting(_) | Link::Connecting(_) => {}
            Link::Up(talk) => self.tell(talk, &process.schedule, now, rng, acts),
        }
        self.process = Some(process);
    }

    fn hello(&self, process: &Process) -> Hello {
        Hello {
            agent_version: format!("0.{}.0", self.version).into(),
            boot_id: self.boot_id.clone(),
            instance_id: process.instance.clone(),
            resume_token: self.token.clone(),
            os: "sim".into(),
            addresses: self.own.clone(),
            policy_revision: "default-1".into(),
            power: self.power,
            upgrade: self.upgrade.clone(),
        }
    }

    fn tell(
        &self,
        talk: &mut Talk,
        schedule: &Schedule,
        now: Mono,
        rng: &mut Rng,
        acts: &mut Vec<Act>,
    ) {
        let set = schedule.result_set();
        let checks = set.results(now);
        let listeners = set.listeners();
        let hash = state_hash(&checks, &listeners, None, &self.power, &self.upgrade);
        let fresh = set.all_begun_since(talk.since);
        let owes = talk.reported != Some(hash) || fresh && !talk.reported_fresh;
        let sessions = SessionCounts {
            active: Some(1),
            disconnected: Some(0),
            pending: None,
        };
        if owes && talk.next_report <= now {
            talk.reported = Some(hash);
            talk.reported_fresh |= fresh;
            talk.next_report = now + REPORT_GAP;
            acts.push(Act::Send(Up::Report(Box::new(Report {
                sequence: talk.beats.next_sequence(),
                state_hash: hash,
                results_valid: set.results_valid(now),
                checks,
                listeners,
                cloud: None,
                sessions,
                policy_revision: "default-1".into(),
                power: self.power,
                upgrade: self.upgrade.clone(),
            }))));
        }
        if talk.beats.due() <= now {
            let beat = Beat {
                sequence: talk.beats.next_sequence(),
                state_hash: hash,
                results_valid: set.results_valid(now),
                sessions,
            };
            talk.beats.handle_sent(now, rng.random());
            acts.push(Act::Send(Up::Beat(beat)));
        }
    }

    /// When there is something to do again.
    #[must_use]
    pub fn next_wake(&self, now: Mono) -> Option<Mono> {
        let process = self.process.as_ref()?;
        let checks = process
            .schedule
            .next_wake()
            .filter(|_| self.truth.stuck == 0);
        let link = match &process.link {
            Link::Waiting(at) => Some(*at),
            Link::Connecting(_) => None,
            Link::Up(talk) => {
                let set = process.schedule.result_set();
                let mut next = talk.beats.due();
                let hash = state_hash(
                    &set.results(now),
                    &set.listeners(),
                    None,
                    &self.power,
                    &self.upgrade,
                );
                let fresh = set.all_begun_since(talk.since);
                if talk.reported != Some(hash) || fresh && !talk.reported_fresh {
                    next = next.min(talk.next_report);
                }
                set.next_stale(now)
                    .map_or(Some(next), |stale| Some(next.min(stale)))
            }
        };
        [checks, link].into_iter().flatten().min()
    }

    /// A run has ended.
    pub fn ran(
        &mut self,
        generation: u32,
        name: &CheckName,
        run: RunId,
        outcome: Outcome,
        now: Mono,
    ) {
        let Some(process) = self.process.as_mut().filter(|p| p.generation == generation) else {
            return;
        };
        let mut observation = Observation::new(outcome, "");
        if name.as_str() == "session_listener" {
            observation.listeners = Some(if outcome == Outcome::Pass {
                vec![Listener {
                    protocol: "rdp".into(),
                    addresses: Vec::new(),
                    port: PORT,
                }]
            } else {
                Vec::new()
            });
        }
        process
            .schedule
            .handle_finished(name, run, observation, now);
    }

    /// A connection is being made.
    pub fn connecting(&mut self, conn: u32) {
        if let Some(process) = &mut self.process {
            process.link = Link::Connecting(conn);
        }
    }

    /// The connection that matters now.
    #[must_use]
    pub fn conn(&self) -> Option<u32> {
        match &self.process.as_ref()?.link {
            Link::Waiting(_) => None,
            Link::Connecting(conn) => Some(*conn),
            Link::Up(talk) => Some(talk.conn),
        }
    }

    /// In session.
    #[must_use]
    pub fn is_in_session(&self) -> bool {
        matches!(self.process.as_ref().map(|p| &p.link), Some(Link::Up(_)))
    }

    /// A word of the broker on that connection.
    pub fn hear(&mut self, conn: u32, word: &Down, now: Mono, rng: &mut Rng) {
        if self.conn() != Some(conn) {
            return;
        }
        let in_session = self.is_in_session();
        match word {
            Down::Welcome(token, _) => {
                self.token = Some(token.clone());
                if let Some(process) = &mut self.process {
                    process.reconnect.handle_welcome(SPREAD, CAP);
                    let _ = process.schedule.recheck(&[], now);
                    process.link = Link::Up(Talk {
                        conn,
                        beats: BeatClock::start(Duration::from_secs(10), now, rng.random()),
                        reported: None,
                        since: now,
                        reported_fresh: false,
                        next_report: now,
                    });
                }
            }
            Down::Refused(retry) => self.fail(conn, Failure::Refused(*retry), now, rng),
            Down::End(soon) => {
                let failure = match (soon, in_session) {
                    (true, true) => Failure::Lost,
                    (true, false) => Failure::Refused(None),
                    (false, _) => Failure::Refused(Some(CAP)),
                };
                self.fail(conn, failure, now, rng);
            }
            Down::Resync => {
                if let Some(Process {
                    link: Link::Up(talk),
                    ..
                }) = &mut self.process
                {
                    talk.reported = None;
                }
            }
            Down::Recheck => {
                if let Some(process) = &mut self.process {
                    let _ = process.schedule.recheck(&[], now);
                }
            }
            Down::Ack(_) => {}
        }
    }

    /// The connection is gone.
    pub fn lose(&mut self, conn: u32, now: Mono, rng: &mut Rng) {
        let failure = if self.is_in_session() {
            Failure::Lost
        } else {
            Failure::Unreachable
        };
        self.fail(conn, failure, now, rng);
    }

    fn fail(&mut self, conn: u32, failure: Failure, now: Mono, rng: &mut Rng) {
        if self.conn() != Some(conn) {
            return;
        }
        if let Some(process) = &mut self.process
            && let Some(next) = process.reconnect.handle_failure(failure, rng.random())
        {
            process.link = Link::Waiting(now + next.after);
        }
    }
}
