//! The rules of the whole fleet beside the cells: who stands how goes in, commands for single
//! hosts come out.
//!
//! The rules have one lock of their own, taken when a host's standing changes and at every tick,
//! never for a beat or a question, and never while a cell's lock is held. Commands are carried out
//! by whoever finds them, one at a time, so that a host hears them in their order.

use std::{sync::Arc, time::Duration};

use muster_core::{
    fleet::{
        Alert, Command, Counted, Dial, DialOutcome, Fleet, HoldEnd, HoldView, HoldsRecord, Met,
    },
    host::{Event, HeldDown, Standing},
    model::{HostId, HostName, Mono, PoolName},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Cell, Registry};
use crate::store::{Store, StoreError, decode, encode, keys};

/// The window is judged this long before it ends: two ticks, so that a hold is in force when it
/// does.
const WINDOW_JUDGED_BEFORE: Duration = Duration::from_secs(2);

/// The rules and what they wake.
pub(super) struct Rules {
    fleet: Mutex<Fleet>,
    /// Held by whoever carries commands out.
    carrying: Mutex<()>,
    /// A host fell silent: there may be something to dial.
    dials: Notify,
}

impl Rules {
    pub(super) fn new(lease: Duration, now: Mono) -> Self {
        Self {
            fleet: Mutex::new(Fleet::new(lease, now)),
            carrying: Mutex::default(),
            dials: Notify::new(),
        }
    }
}

impl Registry {
    /// Reads what holds of earlier starts took.
    pub(super) fn read_holds(&self, store: &dyn Store) -> Result<(), StoreError> {
        if let Some(value) = store.get(keys::HOLDS)? {
            let record: HoldsRecord = decode(keys::HOLDS, &value)?;
            self.rules.fleet.lock().restore(&record, self.now());
        }
        Ok(())
    }

    /// Tells the rules how a host stands now, and does what follows.
    pub(super) fn tell_rules(&self, id: HostId, standing: Option<&Standing>) {
        let Some(standing) = standing else { return };
        let now = self.now();
        self.rules.fleet.lock().handle_standing(id, standing, now);
        self.carry_out();
    }

    pub(super) fn tell_rules_removed(&self, id: HostId) {
        let now = self.now();
        self.rules.fleet.lock().handle_removed(id, now);
        self.carry_out();
    }

    /// Carries out what the rules want, until they want nothing more.
    fn carry_out(&self) {
        loop {
            // Somebody else does, and looks again when done.
            let Some(carrying) = self.rules.carrying.try_lock() else {
                return;
            };
            loop {
                let (command, alerts) = {
                    let mut fleet = self.rules.fleet.lock();
                    let alerts: Vec<Alert> = std::iter::from_fn(|| fleet.poll_alert()).collect();
                    (fleet.poll_command(), alerts)
                };
                for alert in &alerts {
                    self.alert(alert);
                }
                let Some((id, command)) = command else { break };
                let cell = self.by_id.pin().get(&id).cloned();
                let Some(cell) = cell else { continue };
                let event = match command {
                    Command::Impose(imposed) => Event::Imposed(imposed),
                    Command::Convict(conviction) => Event::Convicted(conviction),
                };
                let outcome = self.step(&cell, event);
                if let Some(standing) = &outcome.effects.standing {
                    let now = self.now();
                    self.rules.fleet.lock().handle_standing(id, standing, now);
                }
            }
            drop(carrying);
            if !self.rules.fleet.lock().has_commands() {
                self.rules.dials.notify_one();
                return;
            }
        }
    }

    /// Every tick: holds end, views grow old, the end of the window is judged, what holds took is
    /// stored.
    pub(super) fn tick_rules(&self) {
        let now = self.now();
        let window = *self.window.lock();
        let record = {
            let mut fleet = self.rules.fleet.lock();
            fleet.tick(window.is_some(), now);
            if let Some(window) = window
                && now.mono + WINDOW_JUDGED_BEFORE >= window.ends()
            {
                fleet.handle_window_end(window.opened(), now);
            }
            fleet.take_record(now)
        };
        self.carry_out();
        if let Some(record) = record {
            let value = (!record.pools.is_empty()).then(|| encode(&record));
            let _ = self.queue.put([(keys::HOLDS.to_vec(), value)]);
        }
        let fleet = self.rules.fleet.lock();
        let holds = fleet.holds(now);
        let held: usize = holds.iter().map(|hold| hold.held).sum();
        let down = fleet.held_down(now).len();
        drop(fleet);
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.rules.holds.set(gauge(holds.len()));
        self.metrics.rules.hosts_held.set(gauge(held));
        self.metrics.rules.hosts_held_down.set(gauge(down));
    }

    /// The holds in force.
    #[must_use]
    pub fn holds(&self) -> Vec<HoldView> {
        self.rules.fleet.lock().holds(self.now())
    }

    /// Hosts that rest because they came and went.
    #[must_use]
    pub fn held_down(&self) -> Vec<(HostName, HeldDown)> {
        let found = self.rules.fleet.lock().held_down(self.now());
        found
            .into_iter()
            .filter_map(|(id, held)| Some((self.name_of(id)?, held)))
            .collect()
    }

    /// Front ends whose reports do not count just now.
    #[must_use]
    pub fn discounted(&self) -> Vec<Arc<str>> {
        self.rules.fleet.lock().discounted()
    }

    /// Hosts that are there; dials under way; hosts that a dial could convict.
    #[must_use]
    pub fn rules_in_numbers(&self) -> (usize, usize, usize) {
        let fleet = self.rules.fleet.lock();
        let (under_way, calibrated) = fleet.probes(self.now().mono);
        (fleet.present(), under_way, calibrated)
    }

    /// An operator ends holds: of one pool, or all. Says how many there were.
    #[must_use]
    pub fn end_holds(&self, pool: Option<&PoolName>) -> usize {
        let now = self.now();
        let ended = self.rules.fleet.lock().end_holds(pool, now);
        self.carry_out();
        ended
    }

    /// What a front end met at a host that we had called connectable.
    #[must_use]
    pub fn take_outcome(&self, cell: &Cell, front_end: &Arc<str>, met: Met) -> Counted {
        let id = cell.published().snapshot.facts.identity.id;
        let now = self.now();
        let mut fleet = self.rules.fleet.lock();
        let counted = fleet.handle_outcome(id, front_end, met, now);
        drop(fleet);
        self.carry_out();
        counted
    }

    /// The next dial to make.
    #[must_use]
    pub fn poll_dial(&self) -> Option<Dial> {
        let now = self.now().mono;
        self.rules.fleet.lock().poll_dial(now)
    }

    /// Waits until there may be something to dial.
    pub async fn dials(&self) {
        self.rules.dials.notified().await;
    }

    /// What came of a dial.
    pub fn handle_dialled(&self, dial: &Dial, outcome: DialOutcome) {
        self.metrics.probed(outcome.as_str());
        let now = self.now();
        let mut fleet = self.rules.fleet.lock();
        fleet.handle_dialled(dial, outcome, now);
        drop(fleet);
        self.carry_out();
    }

    fn name_of(&self, id: HostId) -> Option<HostName> {
        let cell = self.by_id.pin().get(&id).cloned()?;
        Some(cell.published().snapshot.facts.identity.name.clone())
    }

    fn alert(&self, alert: &Alert) {
        match alert {
            Alert::HoldBegan { pool, missing, of } => {
                self.metrics.rules.holds_begun.inc();
                tracing::error!(pool.name = %pool, hosts.missing = missing, hosts.known = of,
                    "many hosts fell silent at once: they are believed for now");
            }
            Alert::HoldSpent { pool, missing, of } => {
                tracing::error!(pool.name = %pool, hosts.missing = missing, hosts.known = of,
                    "many hosts fell silent at once, and the pool's holds of this hour are spent");
            }
            Alert::HoldEnded { pool, why, let_out } => {
                let why = match why {
                    HoldEnd::Settled => "every held host is heard again or was found dead",
                    HoldEnd::TimeOver => "its time is over",
                    HoldEnd::Operator => "an operator ended it",
                };
                tracing::warn!(pool.name = %pool, hosts.let_out = let_out, why, "a hold ended");
            }
            Alert::HeldDown { id, losses, lasts } => {
                self.metrics.rules.hold_downs.inc();
                tracing::warn!(
                    host.name = self.name_of(*id).map(tracing::field::display),
                    host.losses = losses,
                    lasts_s = lasts.as_secs(),
                    "a host came and went too often: no new sessions for a while"
                );
            }
            Alert::FrontEndDiscounted { name } => {
                tracing::error!(front_end.name = %name,
                    "a front end fails on most of its hosts: its reports do not count");
            }
            Alert::Barred { id } => {
                tracing::warn!(
                    host.name = self.name_of(*id).map(tracing::field::display),
                    "front ends and the broker itself cannot connect: no new sessions"
                );
            }
        }
    }
}
