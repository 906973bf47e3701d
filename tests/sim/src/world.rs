//! One run: virtual time, the queue of events, and what each does.

use std::{cmp::Ordering, collections::BinaryHeap, sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::{
    agent::RunId,
    fleet::{Dial, DialOutcome, Met},
    host::{Admin, Context, Host, Identity},
    model::{CheckName, Epoch, HostId, HostName, Mono, Outcome, PoolName, PoolPolicy, ProbePolicy},
};

use crate::{
    agent::{AckOf, Down, Machine, Up},
    broker::{Broker, Clocks, writes},
    happen::addresses,
    net::Net,
    oracle::{Broken, Oracle},
    plan::Plan,
    rng::Rng,
    store::{Store, Ticket},
    trace::Trace,
    watch::Watcher,
};

/// The run's first instant.
pub const BEGIN: Mono = Mono::from_origin(Duration::from_secs(100_000));
const BEGIN_WALL: i64 = 1_800_000_000;
/// Front ends of a run.
const FRONT_ENDS: usize = 2;
/// Watchers of a run; the last is slow.
const WATCHERS: usize = 3;

/// What happens.
#[derive(Clone, Debug)]
pub enum Ev {
    /// The broker's tick.
    Tick(u32),
    /// The broker looks at its wheel.
    Look(u32),
    /// A commit under way ends.
    Commit(u32),
    /// The store is tried again.
    Retry(u32),
    /// A connection arrives with its hello.
    Arrive(u32),
    /// A word arrives at the broker.
    Up(u32, Up),
    /// An adversary repeats a word of some session.
    Replay(usize, Epoch, Up),
    /// A word arrives at the agent.
    Down(u32, Down),
    /// The agent learns that the connection is gone.
    AgentLost(u32),
    /// The broker does.
    BrokerLost(u32),
    /// The agent's side gives up on what is not acknowledged.
    UpTimeout(u32),
    /// The broker's side does.
    DownTimeout(u32),
    /// No Welcome came.
    NoWelcome(u32),
    /// Something is due at a machine.
    Wake(usize),
    /// A run of a check ends.
    Ran(usize, u32, CheckName, RunId, Outcome),
    /// A goodbye was waited for long enough.
    Gone(usize, u32),
    /// A fault begins, goes on, or ends.
    Fault(usize, u8),
    /// The broker's dial arrives.
    Dialled(Box<Dial>),
    /// It is answered.
    DialDone(Box<Dial>, DialOutcome),
    /// A watcher reads.
    Watch(usize),
    /// Somebody asks about a host.
    Ask,
    /// The oracle's own instant for a host.
    Critical(usize),
    /// The broker is started; it needs its store for that.
    Start,
    /// A front end asks, and follows the answer.
    FrontEnd(usize),
    /// It has met something.
    Outcome(usize, usize, Met),
}

impl Ev {
    /// The broker's process must run for it.
    #[must_use]
    pub fn needs_broker(&self) -> bool {
        matches!(
            self,
            Self::Tick(_)
                | Self::Look(_)
                | Self::Commit(_)
                | Self::Retry(_)
                | Self::Arrive(_)
                | Self::Up(..)
                | Self::Replay(..)
                | Self::BrokerLost(_)
                | Self::DialDone(..)
                | Self::Outcome(..)
        )
    }
}

struct Entry {
    at: Mono,
    number: u64,
    ev: Ev,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// What waits for the disk.
#[derive(Debug)]
pub enum OnDurable {
    /// An acknowledgement.
    Ack(u32, AckOf),
    /// A drain that was set.
    Drained(usize),
    /// A drain that may be lifted now.
    Undrain(usize),
}

/// A run.
pub struct World {
    /// What it is.
    pub plan: Plan,
    /// True time.
    pub now: Mono,
    /// Chance.
    pub rng: Rng,
    queue: BinaryHeap<Entry>,
    events: u64,
    numbers: u64,
    /// Machines; the first ones are the hosts themselves.
    pub machines: Vec<Machine>,
    /// When each machine is woken next.
    pub wakes: Vec<Option<Mono>>,
    /// Ids of hosts.
    pub ids: Vec<HostId>,
    /// Pool of each.
    pub pools: Vec<PoolName>,
    /// Policy of each.
    pub policies: Vec<Arc<PoolPolicy>>,
    /// Connections.
    pub net: Net,
    /// What is durable.
    pub store: Store,
    /// The broker's process, while it runs.
    pub broker: Option<Broker>,
    /// It is stopped.
    pub paused: u8,
    /// What waits for a stopped process.
    pub held: Vec<Ev>,
    /// Starts of the broker.
    pub incarnation: u32,
    /// The machine of the broker is down.
    pub machine_down: bool,
    /// When the broker's machine booted.
    pub boot_base: Mono,
    /// The wall clock is off by so many seconds.
    pub wall_off: i64,
    /// Commits take seconds.
    pub store_slow: u8,
    /// Commits fail.
    pub store_fails: u8,
    /// What waits for the disk.
    pub waiting: Vec<(Ticket, OnDurable)>,
    /// Names of front ends.
    pub front_ends: Vec<Arc<str>>,
    /// A front end cannot connect to anybody.
    pub front_end_broken: u8,
    /// Who watches.
    pub watchers: Vec<Watcher>,
    /// The judge.
    pub oracle: Oracle,
    /// What is told of the run.
    pub trace: Trace,
    /// Copies by the fault that made them.
    pub copies: Vec<(usize, usize)>,
    ask_all: bool,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ran {
    /// Events.
    pub events: u64,
    /// Hash over all of them.
    pub hash: u64,
    /// Verdicts that were checked.
    pub verdicts: u64,
}

impl World {
    /// A run that has not begun.
    #[must_use]
    pub fn new(plan: Plan, trace: Trace) -> Self {
        let hosts = plan.hosts;
        let mut rng = Rng::new(plan.seed);
        let mut ids = Vec::new();
        for number in 0..hosts {
            let mut bytes = rng.bytes();
            // Told apart at a glance.
            bytes[15] = u8::try_from(number).unwrap_or(u8::MAX);
            ids.push(HostId::from_random(bytes));
        }
        let pools: Vec<PoolName> = (0..hosts)
            .map(|number| {
                let name = ["default", "second"][number % plan.pools.min(2)];
                PoolName::new(name).expect("a good name")
            })
            .collect();
        let policy = Arc::new(PoolPolicy {
            probe: plan.probe.then(ProbePolicy::default),
            ..PoolPolicy::default()
        });
        let machines: Vec<Machine> = (0..hosts)
            .map(|number| {
                let (peer, own) = addresses(&plan, number, false);
                Machine::new(number, peer, own, BEGIN)
            })
            .collect();
        Self {
            now: BEGIN,
            queue: BinaryHeap::new(),
            events: 0,
            numbers: 0,
            wakes: vec![None; hosts],
            machines,
            policies: vec![policy; hosts],
            oracle: Oracle::new(&plan, pools.clone()),
            ids,
            pools,
            net: Net::default(),
            store: Store::default(),
            broker: None,
            paused: 0,
            held: Vec::new(),
            incarnation: 0,
            machine_down: false,
            boot_base: BEGIN.back(rng.seconds(100, 90_000)),
            wall_off: 0,
            store_slow: 0,
            store_fails: 0,
            waiting: Vec::new(),
            front_ends: (0..FRONT_ENDS)
                .map(|n| format!("gateway-{n}").into())
                .collect(),
            front_end_broken: 0,
            watchers: (0..WATCHERS).map(|_| Watcher::default()).collect(),
            trace,
            copies: Vec::new(),
            ask_all: false,
            rng,
            plan,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn run(mut self) -> (Result<Ran, Broken>, Trace) {
        let result = self.go().map_err(|broken| Broken {
            at: self.now.since(BEGIN),
            ..broken
        });
        let ran = result.map(|()| Ran {
            events: self.events,
            hash: self.trace.hash(),
            verdicts: self.oracle.verdicts,
        });
        (ran, self.trace)
    }

    fn go(&mut self) -> Result<(), Broken> {
        self.begin();
        let end = BEGIN + self.plan.until.unwrap_or(self.plan.lasts);
        while let Some(entry) = self.queue.pop() {
            if entry.at > end {
                break;
            }
            self.now = entry.at;
            self.events += 1;
            self.trace.event(self.now, &entry.ev);
            self.handle(entry.ev);
            self.settle()?;
        }
        self.now = end;
        if self.plan.until.is_some() {
            return Ok(());
        }
        let clocks = self.clocks();
        self.oracle
            .converged(&self.machines, self.broker.as_mut(), clocks)
    }

    fn begin(&mut self) {
        self.start_broker();
        let clocks = self.clocks();
        for number in 0..self.plan.hosts {
            self.enrol(number, clocks);
            let at = self.now + self.rng.millis(0, 5000);
            let now = self.now;
            self.machines[number].start(now, &mut self.rng);
            self.at(at, Ev::Wake(number));
            self.wakes[number] = Some(at);
        }
        for (number, fault) in self.plan.faults.clone().iter().enumerate() {
            self.at(BEGIN + fault.at, Ev::Fault(number, 0));
        }
        for number in 0..WATCHERS {
            self.after(Duration::from_secs(1), Ev::Watch(number));
        }
        for number in 0..FRONT_ENDS {
            self.after(Duration::from_secs(30), Ev::FrontEnd(number));
        }
        self.after(Duration::from_secs(1), Ev::Ask);
    }

    fn enrol(&mut self, number: usize, clocks: Clocks) {
        let Some(broker) = &mut self.broker else {
            return;
        };
        let now = broker.now(clocks);
        let identity = Identity {
            name: HostName::new(&format!("host-{number}")).expect("a good name"),
            id: self.ids[number],
            pool: self.pools[number].clone(),
            enrolled_at: clocks.wall,
        };
        let policy = self.policies[number].clone();
        let context = Context {
            now,
            policy: &policy,
            window_ends: None,
            broker_late: false,
        };
        let (host, effects) = Host::enrolled(identity, Admin::default(), &context);
        self.store.put_durable(writes(&host, &effects, &context));
        broker.enrol(
            number,
            host,
            &effects,
            policy.clone(),
            &mut self.store,
            clocks,
        );
        self.oracle.enrolled(number, now);
    }

    /// Something happens at an instant.
    pub fn at(&mut self, at: Mono, ev: Ev) {
        self.numbers += 1;
        self.queue.push(Entry {
            at: at.max(self.now),
            number: self.numbers,
            ev,
        });
    }

    /// Something happens after a while.
    pub fn after(&mut self, after: Duration, ev: Ev) {
        self.at(self.now + after, ev);
    }

    /// The broker's clocks.
    #[must_use]
    pub fn clocks(&self) -> Clocks {
        let seconds = BEGIN_WALL + self.wall_off;
        let wall = Timestamp::from_second(seconds).unwrap_or(Timestamp::MIN);
        Clocks {
            boot: Mono::from_origin(self.now.since(self.boot_base)),
            wall: wall.checked_add(self.now.since(BEGIN)).unwrap_or(wall),
        }
    }

    /// What the network takes for one message.
    pub fn delay(&mut self) -> Duration {
        let slow = self.net.slow.iter().copied().max().map_or(0, u64::from);
        self.rng.millis(1, 20) + self.rng.millis(0, slow)
    }

    /// Nothing passes between this machine and the broker.
    #[must_use]
    pub fn is_cut(&self, machine: usize) -> bool {
        self.net.cut_all > 0 || self.machines[machine].truth.cut > 0
    }

    fn handle(&mut self, ev: Ev) {
        if self.paused > 0 && ev.needs_broker() {
            self.hold(ev);
            return;
        }
        match ev {
            Ev::Tick(incarnation) => self.tick(incarnation),
            Ev::Look(incarnation) => self.look(incarnation),
            Ev::Commit(incarnation) => self.committed(incarnation),
            Ev::Retry(incarnation) => {
                if incarnation == self.incarnation {
                    self.store.resume();
                    self.commit();
                }
            }
            Ev::Arrive(conn) => self.arrive(conn),
            Ev::Up(conn, up) => self.up(conn, up),
            Ev::Replay(host, epoch, up) => self.replay(host, epoch, &up),
            Ev::Down(conn, down) => self.down(conn, down),
            Ev::AgentLost(conn) => self.agent_lost(conn),
            Ev::BrokerLost(conn) => self.broker_lost(conn),
            Ev::UpTimeout(conn) => self.up_timeout(conn),
            Ev::DownTimeout(conn) => self.down_timeout(conn),
            Ev::NoWelcome(conn) => self.no_welcome(conn),
            Ev::Wake(machine) => self.wake(machine),
            Ev::Ran(machine, generation, name, run, outcome) => {
                let now = self.now;
                // What a process that is stopped does not take it takes when it goes on.
                if self.machines[machine].is_awake() && self.machines[machine].truth.stuck == 0 {
                    self.machines[machine].ran(generation, &name, run, outcome, now);
                    self.wake(machine);
                } else if self.machines[machine].process.is_some() {
                    let ev = Ev::Ran(machine, generation, name, run, outcome);
                    self.after(Duration::from_secs(1), ev);
                }
            }
            Ev::Gone(machine, generation) => self.gone(machine, generation),
            Ev::Fault(number, step) => self.fault(number, step),
            Ev::Dialled(dial) => self.dialled(&dial),
            Ev::DialDone(dial, outcome) => {
                if let Some(host) = self.ids.iter().position(|id| *id == dial.id) {
                    self.oracle.dialled(host, outcome == DialOutcome::Answered);
                }
                let clocks = self.clocks();
                if let Some(broker) = &mut self.broker {
                    broker.handle_dialled(&dial, outcome, &mut self.store, clocks);
                }
            }
            Ev::Watch(number) => self.watch(number),
            Ev::Ask => {
                self.ask_all = true;
                let after = self.rng.millis(100, 3000);
                self.after(after, Ev::Ask);
            }
            Ev::Critical(host) => self.oracle.touch(host),
            Ev::Start => self.start_broker(),
            Ev::FrontEnd(number) => self.front_end(number),
            Ev::Outcome(front_end, host, met) => {
                let clocks = self.clocks();
                if let Some(broker) = &mut self.broker {
                    let (id, name) = (self.ids[host], self.front_ends[front_end].clone());
                    broker.handle_outcome(id, &name, met, &mut self.store, clocks);
                }
            }
        }
    }

    /// The process is stopped: what it would take waits, a tick of each kind once.
    fn hold(&mut self, ev: Ev) {
        let again = |held: &Ev| {
            matches!(
                (held, &ev),
                (Ev::Tick(_), Ev::Tick(_)) | (Ev::Look(_), Ev::Look(_))
            )
        };
        if !self.held.iter().any(again) {
            self.held.push(ev);
        }
    }

    /// The broker's process goes on: what waited comes in the order that the kernel kept, ticks at
    /// any place.
    pub fn resume(&mut self) {
        let held = std::mem::take(&mut self.held);
        let now = self.now;
        for (number, ev) in held.into_iter().enumerate() {
            let timer = matches!(ev, Ev::Tick(_) | Ev::Look(_) | Ev::Commit(_));
            let after = if timer {
                Duration::from_micros(self.rng.below(3000))
            } else {
                Duration::from_micros(10 * u64::try_from(number).unwrap_or(0))
            };
            self.at(now + after, ev);
        }
        // Somebody has asked meanwhile.
        self.ask_all = true;
    }

    /// Everything that follows an event at once, and the oracle's word.
    fn settle(&mut self) -> Result<(), Broken> {
        let clocks = self.clocks();
        while let Some(broker) = &mut self.broker {
            let closing = std::mem::take(&mut broker.closing);
            let dials = std::mem::take(&mut broker.dials);
            if closing.is_empty() && dials.is_empty() {
                break;
            }
            for (host, epoch, replaced) in closing {
                self.close(host, epoch, replaced);
            }
            for dial in dials {
                let delay = self.delay();
                self.after(delay, Ev::Dialled(Box::new(dial)));
            }
        }
        if self.paused == 0 {
            self.commit();
        }
        let ask_all = std::mem::take(&mut self.ask_all);
        if let Some(broker) = &mut self.broker {
            let served = self.paused == 0;
            let critical = self.oracle.after(
                broker,
                &self.machines,
                clocks,
                self.now,
                ask_all && served,
                &mut self.trace,
            )?;
            for (host, at) in critical {
                // On the broker's clock; a stall makes it early, and then there is another.
                let after = at.since(broker_now(&self.broker, clocks));
                self.after(after, Ev::Critical(host));
            }
        }
        Ok(())
    }
}

fn broker_now(broker: &Option<Broker>, clocks: Clocks) -> Mono {
    broker
        .as_ref()
        .map_or(clocks.boot, |broker| broker.now(clocks).mono)
}
