//! The registry: every host's cell, the clock that judges, the log that watchers read.
//!
//! A word for a host goes through [`Registry::apply`]: a short lock on its cell, the pure step of
//! `muster-core`, the new facts published for questions, the change appended to the log, the
//! record handed to the writer. A question ([`Registry::verdict`]) takes no lock and does no I/O:
//! it reads the published facts and computes the answer for this very instant.

mod cell;
mod journal;
mod log;
mod rules;
mod ticker;
mod unheard;
mod verdict_id;

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use muster_core::{
    fleet::{Dial, JudgedClock, Lateness, RestartWindow, SteadyWall, Wheel},
    host::{self, Admin, Asked, Context, Effects, Event, Host, HostRecord, Terms},
    model::{Epoch, HostId, HostName, Intent, Mono, Now, PoolName, PoolPolicy, Status, Verdict},
};
use muster_runtime::clock;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

pub use cell::{Cell, Mailbox, Published, SessionEnd, SessionWord, Ungreeted};
pub use log::{Change, ChangeLog, Gone, What};
use rules::Rules;
pub use ticker::{Progress, run_ticker};
use unheard::{Charged, Unheard};
use verdict_id::VerdictIds;

use crate::{
    metrics::Metrics,
    policy::PolicyRecord,
    store::{Store, StoreError, Ticket, WriteQueue, decode, encode, keys},
};

/// Hosts of one fleet on one broker: ten times the largest that was measured.
pub const HOSTS_MAX: usize = 150_000;
/// Entries of one host's journal.
pub const JOURNAL_MAX: u64 = 1000;

/// The pace that the broker dictates, and the window after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Interval and lease of sessions.
    pub terms: Terms,
    /// The restart window is a lease and this.
    pub reconnect_window: Duration,
}

/// All hosts of the fleet, and what judges them.
pub struct Registry {
    by_name: papaya::HashMap<HostName, Arc<Cell>>,
    by_id: papaya::HashMap<HostId, Arc<Cell>>,
    /// Names in order, for pages. Changed only with a host.
    names: RwLock<BTreeMap<HostName, Arc<Cell>>>,
    log: ChangeLog,
    clock: ArcSwap<JudgedClock>,
    /// The wall clock without its jumps: deadlines that outlive a restart go by it.
    wall: ArcSwap<SteadyWall>,
    window: Mutex<Option<RestartWindow>>,
    /// End of the window in nanoseconds since the clock's origin, 0 when closed: for questions.
    window_ends: AtomicU64,
    wheel: Mutex<Wheel<HostId>>,
    rules: Rules,
    /// When what was served to hosts not heard was last stored.
    charged: Mutex<Option<Charged>>,
    policies: ArcSwap<HashMap<PoolName, Arc<PoolPolicy>>>,
    default_policy: Arc<PoolPolicy>,
    pace: Pace,
    queue: WriteQueue,
    metrics: Arc<Metrics>,
    broker_id: String,
    incarnation: u32,
    sessions: AtomicU64,
    verdicts: AtomicU64,
    verdict_ids: VerdictIds,
    started_at: jiff::Timestamp,
    progress: watch::Sender<Progress>,
    counts: Mutex<HashMap<(PoolName, Status), i64>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("hosts", &self.names.read().len())
            .finish_non_exhaustive()
    }
}

/// What became of a word for a host.
#[derive(Debug)]
pub struct Outcome {
    /// What the core asked for.
    pub effects: Effects,
    /// When what must be durable is; none if nothing must be.
    pub ticket: Option<Ticket>,
}

/// Facts as published, and what judges them, at one instant.
#[derive(Debug)]
pub struct Question {
    /// The facts.
    pub published: Arc<Published>,
    policy: Arc<PoolPolicy>,
    now: Now,
    window_ends: Option<Mono>,
    broker_late: bool,
}

impl Question {
    /// What judges, under the policy in force.
    #[must_use]
    pub fn context(&self) -> Context<'_> {
        self.context_under(&self.policy)
    }

    /// What would judge, under another policy.
    #[must_use]
    pub fn context_under<'a>(&'a self, policy: &'a PoolPolicy) -> Context<'a> {
        Context {
            now: self.now,
            policy,
            window_ends: self.window_ends,
            broker_late: self.broker_late,
        }
    }
}

/// The broker cannot vouch for its answers: its own clock tick is late by more than a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stalled;

/// Who the broker is, for its answers.
#[derive(Clone, Debug)]
pub struct BrokerName {
    /// Id of the broker.
    pub broker_id: String,
    /// Number of its start.
    pub incarnation: u32,
}

impl Registry {
    /// Loads all hosts from the store and opens the restart window if there are any.
    ///
    /// # Errors
    /// If the store cannot be read, or holds a record that cannot be understood.
    pub fn load(
        store: &dyn Store,
        queue: WriteQueue,
        metrics: Arc<Metrics>,
        who: BrokerName,
        pace: Pace,
    ) -> Result<Arc<Self>, StoreError> {
        let now = clock::now();
        let registry = Self {
            by_name: papaya::HashMap::new(),
            by_id: papaya::HashMap::new(),
            names: RwLock::default(),
            log: ChangeLog::default(),
            clock: ArcSwap::from_pointee(JudgedClock::new(now.mono, clock::awake())),
            wall: ArcSwap::from_pointee(SteadyWall::new(now)),
            window: Mutex::new(None),
            window_ends: AtomicU64::new(0),
            wheel: Mutex::default(),
            rules: Rules::new(pace.terms.lease, now.mono),
            charged: Mutex::default(),
            policies: ArcSwap::default(),
            default_policy: Arc::new(PoolPolicy::default()),
            pace,
            queue,
            metrics,
            broker_id: who.broker_id,
            incarnation: who.incarnation,
            sessions: AtomicU64::new(0),
            verdicts: AtomicU64::new(0),
            verdict_ids: VerdictIds::default(),
            started_at: now.wall,
            progress: watch::Sender::new(Progress {
                as_of: now.wall,
                revision: 0,
            }),
            counts: Mutex::default(),
        };
        registry.policies.store(Arc::new(read_policies(store)?));
        let hosts = registry.read_hosts(store, now)?;
        if !hosts.is_empty() {
            let window = RestartWindow::open(now.mono, pace.terms.lease, pace.reconnect_window);
            registry.set_window(Some(window));
        }
        registry.read_holds(store)?;
        let served = Unheard::read(store)?;
        for mut host in hosts {
            served.bound(&mut host, now.mono, pace);
            let policy = registry.policy(&host.facts().identity.pool);
            host.aim(&policy);
            let cell = Arc::new(Cell::new(host, 0, policy));
            registry.insert(&cell);
            // Whatever ended while the broker was down ends now, and the wheel learns the rest.
            registry.apply(&cell, Event::Deadline);
        }
        registry.charge_unheard(now.mono);
        Ok(Arc::new(registry))
    }

    fn read_hosts(&self, store: &dyn Store, now: Now) -> Result<Vec<Host>, StoreError> {
        let mut admins: HashMap<Vec<u8>, Admin> = HashMap::new();
        for (key, value) in store.scan(keys::ADMINS, usize::MAX, false)? {
            admins.insert(key[keys::ADMINS.len()..].to_vec(), decode(&key, &value)?);
        }
        let mut hosts = Vec::new();
        for (key, value) in store.scan(keys::HOSTS, usize::MAX, false)? {
            let record: HostRecord = decode(&key, &value)?;
            let admin = admins.remove(&key[keys::HOSTS.len()..]).unwrap_or_default();
            hosts.push(record.restore(admin, now));
        }
        Ok(hosts)
    }

    fn insert(&self, cell: &Arc<Cell>) {
        let published = cell.published();
        let identity = &published.snapshot.facts.identity;
        self.by_name
            .pin()
            .insert(identity.name.clone(), cell.clone());
        self.by_id.pin().insert(identity.id, cell.clone());
        self.names
            .write()
            .insert(identity.name.clone(), cell.clone());
        self.count(&identity.pool, published.snapshot.status, 1);
    }

    /// Adds a host whose enrolment is durable. The caller wrote its first record.
    pub fn enrol(&self, host: Host, effects: &Effects) -> Arc<Cell> {
        let policy = self.policy(&host.facts().identity.pool);
        let cell = Arc::new(Cell::new(host, 0, policy));
        self.insert(&cell);
        // A policy that was set in between found no cell to change.
        cell.set_policy(self.policy(&cell.published().snapshot.facts.identity.pool));
        let mut locked = cell.lock();
        let id = locked.facts().identity.id;
        self.publish(&cell, &mut locked, effects, &self.now());
        drop(locked);
        self.tell_rules(id, effects.standing.as_ref());
        cell
    }

    /// Takes a host out: its cell is dead from here on. The caller made it durable.
    pub fn remove(&self, cell: &Arc<Cell>) {
        let locked = cell.lock();
        if cell.is_retired() {
            return;
        }
        // First dead, then cut: a session that begins in between finds nobody to speak for.
        cell.retire();
        cell.end_session(SessionEnd::Removed);
        let published = cell.published();
        let identity = published.snapshot.facts.identity.clone();
        self.by_id.pin().remove(&identity.id);
        {
            let by_name = self.by_name.pin();
            if by_name
                .get(&identity.name)
                .is_some_and(|found| Arc::ptr_eq(found, cell))
            {
                by_name.remove(&identity.name);
                self.names.write().remove(&identity.name);
            }
        }
        self.wheel.lock().disarm(identity.id);
        self.count(&identity.pool, published.snapshot.status, -1);
        let what = What::Removed {
            name: identity.name,
            id: identity.id,
        };
        self.log.append(identity.pool, what, |_| {});
        drop(locked);
        self.tell_rules_removed(identity.id);
    }

    /// The cell of a host.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Cell>> {
        self.by_name.pin().get(name).cloned()
    }

    /// How many hosts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.read().len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cells in the order of their names, after `after`; at most `limit` that `wanted` takes.
    #[must_use]
    pub fn page(
        &self,
        after: Option<&HostName>,
        limit: usize,
        wanted: impl Fn(&Published) -> bool,
    ) -> Vec<Arc<Cell>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.names
            .read()
            .range::<HostName, _>((from, Bound::Unbounded))
            .map(|(_, cell)| cell)
            .filter(|cell| wanted(&cell.published()))
            .take(limit)
            .cloned()
            .collect()
    }

    /// The judged instant.
    #[must_use]
    pub fn now(&self) -> Now {
        let boot = clock::boot();
        Now {
            mono: self.clock.load().read(boot),
            wall: self.wall.load().at(boot),
        }
    }

    /// The protocol of the listener that a dial goes to, as its host names it.
    #[must_use]
    pub fn protocol_of(&self, dial: &Dial) -> Option<Arc<str>> {
        let cell = self.by_id.pin().get(&dial.id).cloned()?;
        let published = cell.published();
        let listeners = &published.snapshot.facts.listeners;
        let found = listeners.iter().find(|l| l.port == dial.target.port())?;
        Some(found.protocol.clone())
    }

    fn window_end(&self) -> Option<Mono> {
        match self.window_ends.load(Ordering::Acquire) {
            0 => None,
            nanos => Some(Mono::from_origin(Duration::from_nanos(nanos))),
        }
    }

    fn set_window(&self, window: Option<RestartWindow>) {
        let mut guard = self.window.lock();
        *guard = window;
        self.publish_window(window);
    }

    /// Called under the window's lock.
    fn publish_window(&self, window: Option<RestartWindow>) {
        let nanos = window.map_or(0, |window| window.ends().since_origin().as_nanos());
        self.window_ends
            .store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// What judges at `now` under `policy`.
    #[must_use]
    pub fn context<'a>(&self, now: Now, policy: &'a PoolPolicy) -> Context<'a> {
        Context {
            now,
            policy,
            window_ends: self.window_end(),
            broker_late: false,
        }
    }

    /// The policy of a pool.
    #[must_use]
    pub fn policy(&self, pool: &PoolName) -> Arc<PoolPolicy> {
        let policies = self.policies.load();
        policies.get(pool).unwrap_or(&self.default_policy).clone()
    }

    /// Puts a policy in force that is durable: judges every host of the pool by it, and tells
    /// their agents. Changes are made one at a time by the caller.
    pub fn set_policy(self: &Arc<Self>, pool: &PoolName, policy: PoolPolicy) {
        let policy = Arc::new(policy);
        let mut policies: HashMap<_, _> = (**self.policies.load()).clone();
        policies.insert(pool.clone(), policy.clone());
        self.policies.store(Arc::new(policies));
        for cell in self.page(None, usize::MAX, |published| {
            published.snapshot.facts.identity.pool == *pool
        }) {
            cell.set_policy(policy.clone());
            self.apply(&cell, Event::PolicyChanged);
            cell.say(SessionWord::Policy);
        }
    }

    /// Pace of sessions.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Id of this broker.
    #[must_use]
    pub fn broker_id(&self) -> &str {
        &self.broker_id
    }

    /// Number of this broker's start.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// The log that watchers read.
    #[must_use]
    pub fn log(&self) -> &ChangeLog {
        &self.log
    }

    /// Where the ticker is.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The epoch of a new session.
    #[must_use]
    pub fn next_epoch(&self) -> Epoch {
        let counter = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        // Four thousand million sessions in one life of the process are out of reach.
        Epoch::new(self.incarnation, u32::try_from(counter).unwrap_or(u32::MAX))
    }

    /// Takes a word for a host in: decides, publishes, tells watchers, queues what must be stored.
    pub fn apply(&self, cell: &Arc<Cell>, event: Event) -> Outcome {
        let outcome = self.step(cell, event);
        if outcome.effects.standing.is_some() {
            let id = cell.published().snapshot.facts.identity.id;
            self.tell_rules(id, outcome.effects.standing.as_ref());
        }
        outcome
    }

    /// One step of one host, without what the rules of the fleet make of it.
    fn step(&self, cell: &Arc<Cell>, event: Event) -> Outcome {
        let mut locked = cell.lock();
        let now = self.now();
        let was_unverified = locked.told().confidence == muster_core::model::Confidence::Unverified;
        let policy = cell.policy();
        let reported = matches!(event, Event::Report(..));
        let end = match event {
            Event::Opened { .. } => SessionEnd::Replaced,
            _ => SessionEnd::LeaseOver,
        };
        let effects = locked.handle(event, &self.context(now, &policy));
        let ticket = self.publish(cell, &mut locked, &effects, &now);
        let heard =
            was_unverified && locked.told().confidence == muster_core::model::Confidence::Confirmed;
        drop(locked);
        if reported {
            cell.reported().notify_waiters();
        }
        if heard && let Some(window) = self.window.lock().as_mut() {
            window.handle_arrival(now.mono);
        }
        if let Some(epoch) = effects.close {
            cell.close(epoch, end);
        }
        if effects.challenge {
            cell.say(SessionWord::Resync(
                "another agent asks for this host's session",
            ));
        }
        Outcome { effects, ticket }
    }

    /// Everything that follows a step, under the cell's lock.
    fn publish(
        &self,
        cell: &Arc<Cell>,
        host: &mut Host,
        effects: &Effects,
        now: &Now,
    ) -> Option<Ticket> {
        if cell.is_retired() {
            return None;
        }
        if effects.only_facts() {
            cell.publish(host.snapshot(), cell.published().revision);
            return None;
        }
        let policy = cell.policy();
        let context = self.context(*now, &policy);
        let identity = host.facts().identity.clone();
        let before = cell.published().snapshot.status;
        let snapshot = host.snapshot();
        if snapshot.status != before {
            self.count(&identity.pool, before, -1);
            self.count(&identity.pool, snapshot.status, 1);
        }
        if effects.tell {
            let verdict = self.name_answer(&snapshot, &context, Intent::New);
            let what = What::Changed(Box::new(verdict));
            let pool = identity.pool.clone();
            self.log
                .append(pool, what, |revision| cell.publish(snapshot, revision));
        } else {
            cell.publish(snapshot, cell.published().revision);
        }
        if let Some(at) = effects.next_deadline {
            self.wheel.lock().arm(identity.id, at);
        }
        if let Some(transition) = &effects.transition {
            self.metrics.transitions.inc();
            tracing::info!(
                host.name = %identity.name,
                host.status = transition.to.as_str(),
                host.status_before = transition.from.map_or("none", Status::as_str),
                host.connectable_new = transition.connectable_new,
                host.reasons = %reason_codes(transition),
                trigger = transition.trigger,
                "host changed"
            );
        }
        let writes = self.writes(host, effects, &context);
        (!writes.is_empty()).then(|| self.queue.put(writes))
    }

    /// What of a step must be stored.
    #[must_use]
    pub fn writes(
        &self,
        host: &Host,
        effects: &Effects,
        context: &Context<'_>,
    ) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let id = host.facts().identity.id;
        let mut writes = Vec::new();
        if effects.persist {
            let record = HostRecord::of(host, context, false);
            writes.push((keys::host(id), Some(encode(&record))));
        }
        if let Some(transition) = &effects.transition {
            let sequence = transition.sequence;
            let entry = journal::bounded(transition);
            writes.push((keys::journal_entry(id, sequence), Some(encode(&*entry))));
            if let Some(old) = sequence.checked_sub(JOURNAL_MAX) {
                writes.push((keys::journal_entry(id, old), None));
            }
        }
        if effects.persist_admin {
            writes.push((keys::admin(id), Some(encode(&*host.facts().admin))));
        }
        writes
    }

    /// The writer's queue.
    #[must_use]
    pub fn queue(&self) -> &WriteQueue {
        &self.queue
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn name_answer(
        &self,
        snapshot: &host::Snapshot,
        context: &Context<'_>,
        intent: Intent,
    ) -> Verdict {
        let asked = Asked {
            intent,
            observed_by: &self.broker_id,
        };
        let mut verdict = host::verdict(snapshot, context, asked);
        let number = self.verdicts.fetch_add(1, Ordering::Relaxed);
        let yes = verdict.connectable_new || verdict.connectable_reconnect;
        verdict.verdict_id = self
            .verdict_ids
            .make(number, verdict.host_id, yes, context.now.mono);
        verdict
    }

    /// The id names an answer of ours that called the host connectable, within the last minutes.
    #[must_use]
    pub fn has_said_yes(&self, verdict_id: &str, cell: &Cell) -> bool {
        let host = cell.published().snapshot.facts.identity.id;
        self.verdict_ids.said_yes(verdict_id, host, self.now().mono)
    }

    /// When this broker started.
    #[must_use]
    pub fn started_at(&self) -> jiff::Timestamp {
        self.started_at
    }

    /// When the restart window opened, and when it ends as things stand; none while it is closed.
    #[must_use]
    pub fn window(&self) -> Option<(jiff::Timestamp, jiff::Timestamp)> {
        let window = (*self.window.lock())?;
        let now = self.now();
        Some((now.wall_at(window.opened()), now.wall_at(window.ends())))
    }

    /// How long ago the broker's own tick was due, and what that means.
    #[must_use]
    pub fn lateness(&self) -> (Duration, Lateness) {
        let (boot, judged) = (clock::boot(), self.clock.load());
        (
            judged.late(boot),
            judged.lateness(boot, self.pace.terms.lease),
        )
    }

    /// The answer about a host, for this very instant.
    ///
    /// # Errors
    /// [`Stalled`] if the broker's own tick is late by more than a lease.
    pub fn verdict(&self, cell: &Cell, intent: Intent) -> Result<Verdict, Stalled> {
        Ok(self.answer(&self.question(cell)?, intent))
    }

    /// The answer to a question that was put before.
    #[must_use]
    pub fn answer(&self, question: &Question, intent: Intent) -> Verdict {
        self.metrics.verdicts.inc();
        let snapshot = &question.published.snapshot;
        self.name_answer(snapshot, &question.context(), intent)
    }

    /// The published facts of a host with the surroundings to judge them in.
    ///
    /// # Errors
    /// As [`Registry::verdict`].
    pub fn question(&self, cell: &Cell) -> Result<Question, Stalled> {
        let boot = clock::boot();
        let judged = self.clock.load();
        let broker_late = match judged.lateness(boot, self.pace.terms.lease) {
            Lateness::OnTime => false,
            Lateness::Late => true,
            Lateness::Stalled => return Err(Stalled),
        };
        Ok(Question {
            published: cell.published(),
            policy: cell.policy(),
            now: Now {
                mono: judged.read(boot),
                wall: self.wall.load().at(boot),
            },
            window_ends: self.window_end(),
            broker_late,
        })
    }

    /// Queues the record of every host, with what is left of suspect hosts' leases: at a clean
    /// stop, and at no other time.
    pub fn write_all(&self) -> Option<Ticket> {
        let now = self.now();
        let mut ticket = None;
        let cells: Vec<Arc<Cell>> = self.names.read().values().cloned().collect();
        for cell in cells {
            let host = cell.lock();
            let policy = cell.policy();
            let record = HostRecord::of(&host, &self.context(now, &policy), true);
            let key = keys::host(host.facts().identity.id);
            ticket = Some(self.queue.put([(key, Some(encode(&record)))]));
        }
        ticket
    }

    fn count(&self, pool: &PoolName, status: Status, by: i64) {
        let mut counts = self.counts.lock();
        let count = counts.entry((pool.clone(), status)).or_default();
        *count += by;
        let label = crate::metrics::PoolStatus {
            pool: pool.to_string(),
            status: status.as_str().to_owned(),
        };
        self.metrics.hosts.get_or_create(&label).set(*count);
    }
}

fn read_policies(store: &dyn Store) -> Result<HashMap<PoolName, Arc<PoolPolicy>>, StoreError> {
    let mut policies = HashMap::new();
    for (key, value) in store.scan(keys::POOLS, usize::MAX, false)? {
        let record: PolicyRecord = decode(&key, &value)?;
        let name = String::from_utf8_lossy(&key[keys::POOLS.len()..]).into_owned();
        let unreadable = |problem: String| StoreError::Policy {
            pool: name.clone(),
            problem,
        };
        let pool = PoolName::new(&name).map_err(|error| unreadable(error.to_string()))?;
        let policy = record
            .policy(&name)
            .map_err(|error| unreadable(error.to_string()))?;
        policies.insert(pool, Arc::new(policy));
    }
    Ok(policies)
}

fn reason_codes(transition: &muster_core::model::Transition) -> String {
    let codes: Vec<&str> = transition.reasons.iter().map(|r| r.code.as_str()).collect();
    codes.join(",")
}
