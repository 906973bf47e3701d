//! The broker's glue round the real cores, as small as it can be. Its twin is
//! `broker/src/registry`: `apply`, `publish` and `writes` stand in its `mod.rs`, `tick`,
//! `poll_window` and `due` in its `ticker.rs`, `charge_unheard` in its `unheard.rs`. Keep both
//! alike: what is wrong in the twin alone is not found here.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use muster_core::{
    fleet::{
        Alert, Command, Dial, DialOutcome, Fleet, JudgedClock, Lateness, RestartWindow, SteadyWall,
        Wheel,
    },
    host::{
        self, Asked, Context, Effects, Event, Host, HostRecord, Imposed, Link, Snapshot, Terms,
    },
    model::{Confidence, Epoch, HostId, Intent, Mono, Now, PoolPolicy, Verdict},
};

use crate::store::{Key, Store, Ticket, Value, Write};

/// Between two records of what was served to hosts not heard.
pub const CHARGE: Duration = Duration::from_secs(5);
/// The restart window is a lease and this.
pub const RECONNECT_WINDOW: Duration = Duration::from_secs(60);
/// The pace that sessions are told.
pub const TERMS: Terms = Terms {
    interval: Duration::from_secs(10),
    lease: Duration::from_secs(35),
};
/// Hosts missing at the end of the window are looked at this long before it.
const BEFORE_THE_END: Duration = Duration::from_secs(2);
/// Changes that are kept: few, so that slow watchers lose their place.
const KEPT: usize = 64;
/// Entries of one host's journal.
const JOURNAL_MAX: u64 = 1000;

/// The broker's two clocks, as its machine shows them.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// The boot-time clock.
    pub boot: Mono,
    /// The wall clock.
    pub wall: Timestamp,
}

/// One host.
#[derive(Debug)]
pub struct Cell {
    /// Number of the host.
    pub host: Host,
    /// What questions read.
    pub published: Snapshot,
    /// Revision of its last change.
    pub revision: u64,
    /// What judges.
    pub policy: Arc<PoolPolicy>,
}

/// What happened inside, for whoever watches from outside.
#[derive(Clone, Debug)]
pub enum Note {
    /// An event went in.
    Handled {
        /// The host.
        host: usize,
        /// What the journal calls it.
        trigger: &'static str,
        /// What came of it.
        effects: Box<Effects>,
        /// Judged time.
        now: Now,
    },
    /// A rule of the fleet imposed something.
    Imposed(usize, Arc<Imposed>),
    /// The broker's dials convicted a host.
    Convicted(usize),
    /// Something that a person should know.
    Alert(Alert),
}

/// One entry of the change log.
#[derive(Clone, Debug)]
pub struct Change {
    /// Counts up by one.
    pub revision: u64,
    /// The host.
    pub host: usize,
    /// The answer as of the change; none if the host was removed.
    pub verdict: Option<Arc<Verdict>>,
}

/// What became of a word.
#[derive(Debug)]
pub struct Outcome {
    /// What the core asked for.
    pub effects: Effects,
    /// When what must be durable is.
    pub ticket: Option<Ticket>,
}

/// A broker's process.
#[derive(Debug)]
pub struct Broker {
    /// Number of its start.
    pub incarnation: u32,
    /// All hosts, by number; none where one was removed.
    pub cells: Vec<Option<Cell>>,
    by_id: HashMap<HostId, usize>,
    /// The rules of the fleet.
    pub fleet: Fleet,
    clock: JudgedClock,
    window: Option<RestartWindow>,
    wheel: Wheel<HostId>,
    /// When what was served to hosts not heard was last stored, and to how many.
    charged: Option<(Mono, usize)>,
    /// The wall clock without its jumps.
    wall: SteadyWall,
    sessions: u32,
    verdicts: u64,
    /// The change log.
    pub log: VecDeque<Change>,
    /// Revision of the last change.
    pub last: u64,
    /// Sessions to be closed, by their epoch; true if a newer one took over.
    pub closing: Vec<(usize, Epoch, bool)>,
    /// Dials to make.
    pub dials: Vec<Dial>,
    /// For the oracle.
    pub notes: Vec<Note>,
}

impl Broker {
    /// Starts with what is durable.
    pub fn start(
        incarnation: u32,
        ids: &[HostId],
        policies: &[Arc<PoolPolicy>],
        store: &mut Store,
        clocks: Clocks,
    ) -> Self {
        let now = Now {
            mono: clocks.boot,
            wall: clocks.wall,
        };
        let mut broker = Self {
            incarnation,
            cells: Vec::new(),
            by_id: HashMap::new(),
            fleet: Fleet::new(TERMS.lease, now.mono),
            clock: JudgedClock::new(now.mono, now.mono.since_origin()),
            window: None,
            wheel: Wheel::default(),
            charged: None,
            wall: SteadyWall::new(now),
            sessions: 0,
            verdicts: 0,
            log: VecDeque::new(),
            last: 0,
            closing: Vec::new(),
            dials: Vec::new(),
            notes: Vec::new(),
        };
        if let Some(Value::Holds(record)) = store.get(Key::Holds) {
            broker.fleet.restore(record, now);
        }
        let served = match store.get(Key::Unheard) {
            Some(Value::Unheard(served)) => served.clone(),
            _ => BTreeMap::new(),
        };
        let mut any = false;
        for (number, id) in ids.iter().enumerate() {
            broker.by_id.insert(*id, number);
            let cell = store.host(*id).cloned().map(|record| {
                any = true;
                let mut host = record.restore(store.admin(*id), now);
                if let Some(served) = served.get(id) {
                    let window = TERMS.lease + RECONNECT_WINDOW;
                    let left = window.saturating_sub(Duration::from_millis(*served));
                    host.bound_unheard(now.mono + left);
                }
                Cell {
                    published: host.snapshot(),
                    host,
                    revision: 0,
                    policy: policies[number].clone(),
                }
            });
            broker.cells.push(cell);
        }
        if any {
            broker.window = Some(RestartWindow::open(now.mono, TERMS.lease, RECONNECT_WINDOW));
        }
        for number in 0..ids.len() {
            // Whatever ended while the broker was down ends now, and the wheel learns the rest.
            broker.apply(number, Event::Deadline, store, clocks);
        }
        // Durable before anybody is answered: else a broker that is killed soon after each start
        // would serve for nothing.
        broker.charge_unheard(store, now.mono);
        store.make_durable(Key::Unheard);
        broker
    }

    /// Adds a host whose enrolment is durable.
    pub fn enrol(
        &mut self,
        number: usize,
        host: Host,
        effects: &Effects,
        policy: Arc<PoolPolicy>,
        store: &mut Store,
        clocks: Clocks,
    ) {
        let id = host.facts().identity.id;
        self.by_id.insert(id, number);
        if self.cells.len() <= number {
            self.cells.resize_with(number + 1, || None);
        }
        self.cells[number] = Some(Cell {
            published: host.snapshot(),
            host,
            revision: 0,
            policy,
        });
        let now = self.now(clocks);
        self.publish(number, effects, now, store);
        if let Some(standing) = &effects.standing {
            self.fleet.handle_standing(id, standing, now);
            self.follow_fleet(store, clocks);
        }
    }

    /// Takes a host out.
    pub fn remove(&mut self, number: usize, store: &mut Store, clocks: Clocks) {
        let Some(cell) = self.cells.get_mut(number).and_then(Option::take) else {
            return;
        };
        let id = cell.host.facts().identity.id;
        if let Some(session) = &cell.host.facts().session {
            self.closing.push((number, session.epoch, true));
        }
        self.wheel.disarm(id);
        self.append(number, None);
        let now = self.now(clocks);
        self.fleet.handle_removed(id, now);
        self.follow_fleet(store, clocks);
    }

    /// The judged instant.
    #[must_use]
    pub fn now(&self, clocks: Clocks) -> Now {
        Now {
            mono: self.clock.read(clocks.boot),
            wall: self.wall.at(clocks.boot),
        }
    }

    /// End of the restart window, while it is open.
    #[must_use]
    pub fn window_ends(&self) -> Option<Mono> {
        self.window.map(|window| window.ends())
    }

    fn context<'a>(&self, now: Now, policy: &'a PoolPolicy) -> Context<'a> {
        Context {
            now,
            policy,
            window_ends: self.window_ends(),
            broker_late: false,
        }
    }

    /// The epoch of a new session.
    pub fn next_epoch(&mut self) -> Epoch {
        self.sessions += 1;
        Epoch::new(self.incarnation, self.sessions)
    }

    /// Takes a word for a host in: decides, publishes, tells watchers, queues what must be stored.
    pub fn apply(
        &mut self,
        number: usize,
        event: Event,
        store: &mut Store,
        clocks: Clocks,
    ) -> Option<Outcome> {
        let outcome = self.step(number, event, store, clocks)?;
        self.follow_fleet(store, clocks);
        Some(outcome)
    }

    fn step(
        &mut self,
        number: usize,
        event: Event,
        store: &mut Store,
        clocks: Clocks,
    ) -> Option<Outcome> {
        let now = self.now(clocks);
        let window_ends = self.window_ends();
        let cell = self.cells.get_mut(number)?.as_mut()?;
        let was_unverified = cell.host.told().confidence == Confidence::Unverified;
        let trigger = event.trigger();
        let policy = cell.policy.clone();
        let context = Context {
            now,
            policy: &policy,
            window_ends,
            broker_late: false,
        };
        let effects = cell.host.handle(event, &context);
        let heard = was_unverified && cell.host.told().confidence == Confidence::Confirmed;
        let id = cell.host.facts().identity.id;
        let ticket = self.publish(number, &effects, now, store);
        if heard && let Some(window) = &mut self.window {
            window.handle_arrival(now.mono);
        }
        if let Some(epoch) = effects.close {
            self.closing
                .push((number, epoch, effects.admission.is_some()));
        }
        if let Some(standing) = &effects.standing {
            self.fleet.handle_standing(id, standing, now);
        }
        self.notes.push(Note::Handled {
            host: number,
            trigger,
            effects: Box::new(effects.clone()),
            now,
        });
        Some(Outcome { effects, ticket })
    }

    /// What the rules of the fleet want, until they want no more.
    fn follow_fleet(&mut self, store: &mut Store, clocks: Clocks) {
        while let Some((id, command)) = self.fleet.poll_command() {
            let Some(&number) = self.by_id.get(&id) else {
                continue;
            };
            let event = match command {
                Command::Impose(imposed) => {
                    self.notes.push(Note::Imposed(number, imposed.clone()));
                    Event::Imposed(imposed)
                }
                Command::Convict(conviction) => {
                    self.notes.push(Note::Convicted(number));
                    Event::Convicted(conviction)
                }
            };
            self.step(number, event, store, clocks);
        }
        while let Some(alert) = self.fleet.poll_alert() {
            self.notes.push(Note::Alert(alert));
        }
        let now = self.now(clocks);
        while let Some(dial) = self.fleet.poll_dial(now.mono) {
            self.dials.push(dial);
        }
        if let Some(record) = self.fleet.take_record(now) {
            store.put([(Key::Holds, Some(Value::Holds(record)))]);
        }
    }

    /// Everything that follows a step.
    fn publish(
        &mut self,
        number: usize,
        effects: &Effects,
        now: Now,
        store: &mut Store,
    ) -> Option<Ticket> {
        let window_ends = self.window_ends();
        let cell = self.cells.get_mut(number)?.as_mut()?;
        let policy = cell.policy.clone();
        let context = Context {
            now,
            policy: &policy,
            window_ends,
            broker_late: false,
        };
        let id = cell.host.facts().identity.id;
        cell.published = cell.host.snapshot();
        let writes = writes(&cell.host, effects, &context);
        if effects.tell {
            let snapshot = cell.published.clone();
            let verdict = host::verdict(&snapshot, &context, self.asked(Intent::New));
            let revision = self.append(number, Some(Arc::new(verdict)));
            if let Some(cell) = self.cells[number].as_mut() {
                cell.revision = revision;
            }
        }
        if let Some(at) = effects.next_deadline {
            self.wheel.arm(id, at);
        }
        (!writes.is_empty()).then(|| store.put(writes))
    }

    fn append(&mut self, host: usize, verdict: Option<Arc<Verdict>>) -> u64 {
        self.last += 1;
        if self.log.len() == KEPT {
            self.log.pop_front();
        }
        self.log.push_back(Change {
            revision: self.last,
            host,
            verdict,
        });
        self.last
    }

    fn asked(&mut self, intent: Intent) -> Asked<'static> {
        self.verdicts += 1;
        Asked {
            intent,
            observed_by: "sim",
        }
    }

    /// The answer about a host, for this very instant; none if the broker cannot vouch for it.
    pub fn verdict(&mut self, number: usize, intent: Intent, clocks: Clocks) -> Option<Verdict> {
        let broker_late = match self.clock.lateness(clocks.boot, TERMS.lease) {
            Lateness::OnTime => false,
            Lateness::Late => true,
            Lateness::Stalled => return None,
        };
        let asked = self.asked(intent);
        let cell = self.cells.get(number)?.as_ref()?;
        let context = Context {
            broker_late,
            ..self.context(self.now(clocks), &cell.policy)
        };
        Some(host::verdict(&cell.published, &context, asked))
    }

    /// A tick, every second.
    pub fn tick(&mut self, store: &mut Store, clocks: Clocks) {
        let tick = self.clock.tick(clocks.boot, clocks.boot.since_origin());
        let _ = self.wall.tick(Now {
            mono: clocks.boot,
            wall: clocks.wall,
        });
        if tick.stalled {
            self.restart_window(store, clocks);
        }
        if tick.behind {
            for number in 0..self.cells.len() {
                self.apply(number, Event::Deadline, store, clocks);
            }
        }
        self.poll_window(store, clocks);
        let now = self.now(clocks);
        self.fleet.tick(self.window.is_some(), now);
        self.follow_fleet(store, clocks);
        self.charge_unheard(store, now.mono);
    }

    /// Nothing is known of the present: every host is answered as last known until it speaks.
    fn restart_window(&mut self, store: &mut Store, clocks: Clocks) {
        let unheard_until = self.window_ends();
        let now = self.now(clocks).mono;
        self.window = Some(RestartWindow::open(now, TERMS.lease, RECONNECT_WINDOW));
        for number in 0..self.cells.len() {
            self.apply(
                number,
                Event::BrokerStalled { unheard_until },
                store,
                clocks,
            );
        }
    }

    fn poll_window(&mut self, store: &mut Store, clocks: Clocks) {
        let now = self.now(clocks);
        let Some(window) = &mut self.window else {
            return;
        };
        let ends = window.poll_end(now.mono, false);
        if now.mono < ends {
            if now.mono + BEFORE_THE_END >= ends {
                let opened = window.opened();
                self.fleet.handle_window_end(opened, now);
                self.follow_fleet(store, clocks);
            }
            return;
        }
        // Whoever is left was armed for this instant and comes up in the wheel.
        self.window = None;
    }

    /// Lets hosts whose deadline has come judge themselves anew; looked at every 100 ms.
    pub fn due(&mut self, store: &mut Store, clocks: Clocks) {
        let now = self.now(clocks).mono;
        for id in self.wheel.due(now, usize::MAX) {
            if let Some(&number) = self.by_id.get(&id) {
                self.apply(number, Event::Deadline, store, clocks);
            }
        }
    }

    /// Stores what has been served to hosts not heard since the start, charged up to the next
    /// call.
    fn charge_unheard(&mut self, store: &mut Store, now: Mono) {
        let length = TERMS.lease + RECONNECT_WINDOW;
        let Some(window) = self.window else {
            if self.charged.take().is_some() {
                store.put([(Key::Unheard, None)]);
            }
            return;
        };
        let unheard_now = |cell: &&Cell| matches!(cell.host.facts().link, Link::Loaded { .. });
        let hosts = self.cells.iter().flatten().filter(unheard_now).count();
        let fresh = |(at, before): (Mono, usize)| now.since(at) < CHARGE && hosts == before;
        if self.charged.is_some_and(fresh) {
            return;
        }
        self.charged = Some((now, hosts));
        let mut unheard = BTreeMap::new();
        for cell in self.cells.iter().flatten() {
            let Link::Loaded { lease_ends } = cell.host.facts().link else {
                continue;
            };
            let ends = lease_ends.unwrap_or(window.opened() + length);
            let left = ends.since(now).saturating_sub(CHARGE);
            let served = length.saturating_sub(left).as_millis();
            let served = u64::try_from(served).unwrap_or(u64::MAX);
            unheard.insert(cell.host.facts().identity.id, served);
        }
        store.put([(Key::Unheard, Some(Value::Unheard(unheard)))]);
    }

    /// What came of a dial.
    pub fn handle_dialled(
        &mut self,
        dial: &Dial,
        outcome: DialOutcome,
        store: &mut Store,
        clocks: Clocks,
    ) {
        let now = self.now(clocks);
        self.fleet.handle_dialled(dial, outcome, now);
        self.follow_fleet(store, clocks);
    }

    /// A front end followed an answer and met something.
    pub fn handle_outcome(
        &mut self,
        id: HostId,
        front_end: &Arc<str>,
        met: muster_core::fleet::Met,
        store: &mut Store,
        clocks: Clocks,
    ) {
        let now = self.now(clocks);
        let _ = self.fleet.handle_outcome(id, front_end, met, now);
        self.follow_fleet(store, clocks);
    }

    /// At a clean stop: the record of every host, with what is left of suspect hosts' leases.
    pub fn write_all(&self, store: &mut Store, clocks: Clocks) {
        let now = self.now(clocks);
        for cell in self.cells.iter().flatten() {
            let record = HostRecord::of(&cell.host, &self.context(now, &cell.policy), true);
            let key = Key::Host(cell.host.facts().identity.id);
            store.put([(key, Some(Value::Host(Box::new(record))))]);
        }
    }

    /// Keys that the wheel holds.
    #[must_use]
    pub fn armed(&self) -> usize {
        self.wheel.len()
    }
}

/// What of a step must be stored.
#[must_use]
pub fn writes(host: &Host, effects: &Effects, context: &Context<'_>) -> Vec<Write> {
    let id = host.facts().identity.id;
    let mut writes = Vec::new();
    if effects.persist {
        let record = HostRecord::of(host, context, false);
        writes.push((Key::Host(id), Some(Value::Host(Box::new(record)))));
    }
    if let Some(transition) = &effects.transition {
        let sequence = transition.sequence;
        let entry = Value::Journal(Box::new(transition.clone()));
        writes.push((Key::Journal(id, sequence), Some(entry)));
        if let Some(old) = sequence.checked_sub(JOURNAL_MAX) {
            writes.push((Key::Journal(id, old), None));
        }
    }
    if effects.persist_admin {
        let admin = Value::Admin((*host.facts().admin).clone());
        writes.push((Key::Admin(id), Some(admin)));
    }
    writes
}
