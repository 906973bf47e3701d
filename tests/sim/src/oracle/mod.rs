//! The judge: knows what was really handled, acknowledged and switched off, keeps books of its own
//! and compares them with what the broker answers.
//!
//! Fed by the world ([`Oracle::heard`] and its like) with what truly went in, never with what the
//! core made of it. `host.rs` has what is known of one host, `judge.rs` the invariants of one host
//! at an instant, `fleet.rs` those of a pool and of the whole.

mod fleet;
mod host;
mod judge;

use std::{collections::BTreeSet, fmt, time::Duration};

use jiff::Timestamp;
use muster_core::{
    host::{Effects, Hello},
    model::{Epoch, HostId, Intent, Leave, Mono, Now, PoolName, PowerAnnouncement, ResumeToken},
};

use self::{fleet::Pools, host::Seen};
use crate::{
    agent::{AckOf, Machine, Up},
    broker::{Broker, Clocks, Note, TERMS},
    plan::Plan,
    store::Store,
    trace::Trace,
};

/// The most that one tick or one question advances judged time.
const STEP_MAX: Duration = Duration::from_secs(2);
/// A stall longer than this is a restart.
const STALL: Duration = Duration::from_secs(60);
/// The restart window at most.
const WINDOW_MAX: Duration = Duration::from_secs(600);
/// Holds of a pool in any hour at most.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// An invariant does not hold.
#[derive(Clone, Debug)]
pub struct Broken {
    /// Its number.
    pub invariant: u8,
    /// The host, if it is about one.
    pub host: Option<usize>,
    /// What was seen.
    pub what: String,
    /// Virtual time.
    pub at: Duration,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}", self.invariant)?;
        if let Some(host) = self.host {
            write!(f, ", host {host}")?;
        }
        write!(f, ", at {:.1} s: {}", self.at.as_secs_f64(), self.what)
    }
}

/// The judge's own clock: boot time less the broker's stalls.
#[derive(Clone, Copy, Debug, Default)]
struct Judged {
    judged: Mono,
    ticked: Mono,
}

impl Judged {
    fn read(self, boot: Mono) -> Mono {
        self.judged + boot.since(self.ticked).min(STEP_MAX)
    }
}

/// The restart window as it may be.
#[derive(Clone, Copy, Debug)]
struct Window {
    opened: Mono,
    /// Whether the broker has prolonged it.
    prolonged: bool,
}

/// The judge of one run.
#[derive(Debug)]
pub struct Oracle {
    hosts: Vec<Seen>,
    pools: Pools,
    clock: Judged,
    window: Option<Window>,
    /// True time of the last tick that counted served time.
    counted: Option<Mono>,
    touched: BTreeSet<usize>,
    problem: Option<Broken>,
    harmless: bool,
    looked: bool,
    stopped_well: bool,
    /// Verdicts that were checked.
    pub verdicts: u64,
    critical: Vec<(usize, Mono)>,
}

impl Oracle {
    /// A judge who has seen nothing.
    #[must_use]
    pub fn new(plan: &Plan, pools: Vec<PoolName>) -> Self {
        Self {
            hosts: (0..plan.hosts).map(|_| Seen::default()).collect(),
            pools: Pools::new(pools),
            clock: Judged::default(),
            window: None,
            counted: None,
            touched: BTreeSet::new(),
            problem: None,
            harmless: plan.harmless,
            looked: false,
            stopped_well: false,
            verdicts: 0,
            critical: Vec::new(),
        }
    }

    /// Something is wrong; the first counts.
    pub fn problem(&mut self, invariant: u8, host: Option<usize>, what: String) {
        self.problem.get_or_insert(Broken {
            invariant,
            host,
            what,
            at: Duration::ZERO,
        });
    }

    /// Looks at a host after this event.
    pub fn touch(&mut self, host: usize) {
        self.touched.insert(host);
    }

    /// A host is enrolled.
    pub fn enrolled(&mut self, host: usize, now: Now) {
        self.hosts[host] = Seen::enrolled(now.mono);
    }

    /// A host is removed.
    pub fn removed(&mut self, host: usize) {
        self.hosts[host].exists = false;
        self.hosts[host].session = None;
    }

    /// A broker has loaded what was durable.
    pub fn broker_started(
        &mut self,
        store: &Store,
        ids: &[HostId],
        broker: &Broker,
        clocks: Clocks,
    ) {
        self.clock = Judged {
            judged: clocks.boot,
            ticked: clocks.boot,
        };
        self.counted = None;
        self.pools.broker_started(clocks.wall);
        let any = broker.cells.iter().any(Option::is_some);
        self.window = any.then_some(Window {
            opened: clocks.boot,
            prolonged: false,
        });
        let well = std::mem::take(&mut self.stopped_well);
        for (number, id) in ids.iter().enumerate() {
            let Some(cell) = broker.cells.get(number).and_then(Option::as_ref) else {
                continue;
            };
            let problem = self.hosts[number].loaded(store, *id, &cell.host, clocks, well);
            if let Some((invariant, what)) = problem {
                self.problem(invariant, Some(number), what);
            }
            self.touch(number);
        }
    }

    /// It is gone.
    pub fn broker_gone(&mut self) {
        for seen in &mut self.hosts {
            seen.session = None;
        }
        self.touched.clear();
    }

    /// It stopped well: everything is written.
    pub fn stopped_well(&mut self, clocks: Clocks) {
        self.stopped_well = true;
        let now = self.clock.read(clocks.boot);
        for seen in &mut self.hosts {
            seen.stopped_well(now);
        }
    }

    /// The broker is about to tick.
    pub fn ticked(&mut self, clocks: Clocks) {
        let gap = clocks.boot.since(self.clock.ticked);
        let before = self.clock.judged;
        for seen in &mut self.hosts {
            seen.pass(before);
        }
        self.clock.judged = self.clock.judged + gap.min(STEP_MAX);
        self.clock.ticked = clocks.boot;
        if gap > STALL {
            let now = self.clock.judged;
            let before = self.window.map(|window| window.opened + WINDOW_MAX);
            for seen in &mut self.hosts {
                seen.stalled(now, before);
            }
            self.window = Some(Window {
                opened: now,
                prolonged: false,
            });
        }
    }

    /// The broker has looked at its wheel.
    pub fn looked(&mut self) {
        self.looked = true;
    }

    /// A hello is about to be taken in.
    pub fn hello(&mut self, host: usize, broker: &Broker, clocks: Clocks) {
        let now = self.clock.read(clocks.boot);
        self.hosts[host].pass(now);
        self.hosts[host].comes_back(broker.window_ends(), now);
    }

    /// It was.
    #[expect(
        clippy::too_many_arguments,
        reason = "all that there is to know of a hello"
    )]
    pub fn opened(
        &mut self,
        host: usize,
        machine: usize,
        epoch: Epoch,
        hello: &Hello,
        token: &ResumeToken,
        effects: &Effects,
        _broker: &Broker,
        clocks: Clocks,
    ) {
        let now = self.clock.read(clocks.boot);
        if let Some(what) =
            self.hosts[host].opened(machine, epoch, hello, token, effects.admission, now)
        {
            self.problem(3, Some(host), what);
        }
        self.touch(host);
    }

    /// A word was handled.
    pub fn heard(
        &mut self,
        host: usize,
        epoch: Epoch,
        up: &Up,
        effects: &Effects,
        broker: &Broker,
        clocks: Clocks,
    ) {
        let now = self.clock.read(clocks.boot);
        let live = self.is_live(host, epoch);
        if live == effects.stale {
            let what = format!(
                "a word of a session that is {} was taken as stale: {}",
                if live { "live" } else { "over" },
                effects.stale
            );
            self.problem(3, Some(host), what);
        }
        self.hosts[host].pass(now);
        self.hosts[host].comes_back(broker.window_ends(), now);
        if live {
            self.hosts[host].heard(up, now);
            let ends = now + TERMS.lease;
            self.critical.push((host, ends));
        }
        self.touch(host);
    }

    /// A session's stream ended.
    pub fn stream_ended(&mut self, host: usize, epoch: Epoch, clocks: Clocks) {
        let now = self.clock.read(clocks.boot);
        let seen = &mut self.hosts[host];
        if seen
            .session
            .as_ref()
            .is_some_and(|live| live.epoch == epoch)
        {
            seen.session = None;
            seen.end(now);
        }
    }

    /// That session speaks for the host.
    #[must_use]
    pub fn is_live(&self, host: usize, epoch: Epoch) -> bool {
        let seen = &self.hosts[host];
        seen.session
            .as_ref()
            .is_some_and(|live| live.epoch == epoch)
    }

    /// Something was acknowledged to a host's agent.
    pub fn acknowledged(&mut self, host: usize, of: &AckOf) {
        self.hosts[host].acknowledged(of);
    }

    /// A drain was asked for.
    pub fn drained(&mut self, host: usize, until: Option<Timestamp>) {
        self.hosts[host].drained = Some(until);
        self.hosts[host].drain_acknowledged = false;
    }

    /// Its caller was told that it is in force.
    pub fn drain_acknowledged(&mut self, host: usize) {
        if self.hosts[host].drained.is_some() {
            self.hosts[host].drain_acknowledged = true;
        }
    }

    /// Somebody asked to lift it.
    pub fn undrain_asked(&mut self, host: usize) {
        self.hosts[host].drained = None;
        self.hosts[host].drain_acknowledged = false;
    }

    /// The broker's dial met this at a host.
    pub fn dialled(&mut self, host: usize, answered: bool) {
        if answered && self.hosts[host].imposed.hold.is_some() {
            self.pools.answered(host);
        }
    }

    /// A repeated word is about to go in.
    pub fn before_replay(&mut self, host: usize, broker: &Broker, clocks: Clocks) {
        let Some(cell) = broker.cells.get(host).and_then(Option::as_ref) else {
            return;
        };
        // What time alone does to the host.
        let mut twin = cell.host.clone();
        let context = judge::context(cell, broker, self.clock.read(clocks.boot), clocks);
        let _ = twin.handle(muster_core::host::Event::Deadline, &context);
        self.hosts[host].twin = Some(Box::new(twin));
    }

    /// It has gone in, and must have changed nothing.
    pub fn after_replay(&mut self, host: usize, broker: &Broker, _clocks: Clocks) {
        let Some(twin) = self.hosts[host].twin.take() else {
            return;
        };
        let Some(cell) = broker.cells.get(host).and_then(Option::as_ref) else {
            return;
        };
        if twin.facts() != cell.host.facts() && !self.pools.imposed_just_now(&broker.notes, host) {
            let what = format!(
                "a repeated word changed the facts: {}",
                judge::difference(twin.facts(), cell.host.facts())
            );
            self.problem(6, Some(host), what);
        }
    }

    /// After an event: reads the broker's notes, and judges whoever was touched, or all. Says when
    /// it must look again by its own books.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn after(
        &mut self,
        broker: &mut Broker,
        machines: &[Machine],
        clocks: Clocks,
        now: Mono,
        all: bool,
        trace: &mut Trace,
    ) -> Result<Vec<(usize, Mono)>, Broken> {
        let looked = std::mem::take(&mut self.looked);
        for note in std::mem::take(&mut broker.notes) {
            self.note(&note, broker, clocks, now, trace);
        }
        if let Some(ends) = broker.window_ends() {
            if let Some(window) = &mut self.window {
                window.prolonged |=
                    ends.since(window.opened) > TERMS.lease + crate::broker::RECONNECT_WINDOW;
                if ends.since(window.opened) > WINDOW_MAX {
                    self.problem(
                        7,
                        None,
                        "the restart window is longer than ten minutes".into(),
                    );
                }
            } else {
                self.problem(
                    7,
                    None,
                    "a restart window is open that nothing opened".into(),
                );
            }
        } else {
            self.window = None;
        }
        let mut touched = std::mem::take(&mut self.touched);
        if all {
            touched.extend(0..self.hosts.len());
        }
        for host in touched {
            self.judge(host, broker, machines, clocks);
        }
        if looked {
            self.judge_told(broker, clocks);
            let count = self
                .counted
                .is_none_or(|at| now.since(at) >= Duration::from_secs(1));
            if count {
                let passed = self.counted.map_or(Duration::ZERO, |at| now.since(at));
                self.counted = Some(now);
                self.count_served(broker, clocks, passed.min(STEP_MAX));
                self.judge_pools(broker, machines, clocks);
            }
        }
        match self.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(std::mem::take(&mut self.critical)),
        }
    }

    fn note(&mut self, note: &Note, broker: &Broker, clocks: Clocks, now: Mono, trace: &mut Trace) {
        match note {
            Note::Handled {
                host,
                trigger,
                effects,
                ..
            } => {
                self.touch(*host);
                let judged = self.clock.read(clocks.boot);
                let was = self.hosts[*host].told.clone();
                let was_held = self.hosts[*host].imposed.hold_at(judged).is_some();
                if *trigger == "probe" && !effects.stale {
                    self.hosts[*host].convict(judged);
                    if was_held && !self.pools.has_answered(*host) {
                        let what = "convicted in a mass of which nobody answers".to_owned();
                        self.problem(13, Some(*host), what);
                    }
                    let took = effects.transition.is_some() && was.is_some_and(|told| told.new);
                    if took && self.pools.nobody_is_left(*host, broker, clocks) {
                        let what = "the broker's dials took a pool's last host".to_owned();
                        self.problem(13, Some(*host), what);
                    }
                }
                if let Some(transition) = &effects.transition {
                    trace.number(transition.sequence);
                    if trace.tells() {
                        trace.line(
                            now,
                            format_args!(
                                "host {host} is {} (new {}, back {}, {}) by {trigger}: {}",
                                transition.to.as_str(),
                                transition.connectable_new,
                                transition.connectable_reconnect,
                                transition.confidence.as_str(),
                                codes(&transition.reasons),
                            ),
                        );
                    }
                }
                if let Some((invariant, what)) = self.hosts[*host].told(effects, judged) {
                    self.problem(invariant, Some(*host), what);
                }
            }
            Note::Imposed(host, imposed) => {
                trace.line(now, format_args!("host {host} must bear {imposed:?}"));
                self.hosts[*host].imposed = imposed.clone();
                if let Some(what) = self.pools.imposed(*host, imposed, broker, clocks) {
                    self.problem(13, Some(*host), what);
                }
            }
            Note::Convicted(host) => {
                trace.line(
                    now,
                    format_args!("host {host} is convicted by the broker's dials"),
                );
            }
            Note::Alert(alert) => {
                trace.line(now, format_args!("ALERT {alert:?}"));
                let judged = self.clock.read(clocks.boot);
                if let Some(what) = self.pools.alert(alert, judged) {
                    self.problem(7, None, what);
                }
            }
        }
    }
}

fn codes(reasons: &[muster_core::model::Reason]) -> String {
    let codes: Vec<&str> = reasons.iter().map(|reason| reason.code.as_str()).collect();
    codes.join(", ")
}

/// It says that it goes, and not only that its agent restarts.
fn is_goodbye(power: PowerAnnouncement) -> bool {
    !matches!(
        power,
        PowerAnnouncement::Running
            | PowerAnnouncement::Leaving {
                how: Leave::AgentRestart,
                ..
            }
    )
}

/// Both questions.
const INTENTS: [Intent; 2] = [Intent::New, Intent::Reconnect];
