//! What is durable, what is on its way, and what is lost when the broker dies.
//!
//! As the broker's one writer does, all that has gathered is one commit. A commit under way when
//! the process dies may have reached the disk or not.

use std::collections::BTreeMap;

use muster_core::{
    fleet::HoldsRecord,
    host::{Admin, HostRecord},
    model::{HostId, Transition},
};

use crate::rng::Rng;

/// A key of the store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A host's record.
    Host(HostId),
    /// What operators decided of it.
    Admin(HostId),
    /// An entry of its journal.
    Journal(HostId, u64),
    /// Time served to hosts not heard, summed over restarts.
    Unheard,
    /// Time that holds took.
    Holds,
}

/// A value of the store.
#[derive(Clone, Debug)]
pub enum Value {
    /// See [`Key::Host`].
    Host(Box<HostRecord>),
    /// See [`Key::Admin`].
    Admin(Admin),
    /// See [`Key::Journal`].
    Journal(Box<Transition>),
    /// See [`Key::Unheard`]: milliseconds.
    Unheard(BTreeMap<HostId, u64>),
    /// See [`Key::Holds`].
    Holds(HoldsRecord),
}

/// One key's new value; none to delete.
pub type Write = (Key, Option<Value>);

/// A place in the order of writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Ticket(u64);

/// The store and its writer.
#[derive(Debug, Default)]
pub struct Store {
    durable: BTreeMap<Key, Value>,
    waiting: BTreeMap<Key, Option<Value>>,
    under_way: BTreeMap<Key, Option<Value>>,
    committing: bool,
    last: u64,
    under_way_up_to: u64,
    durable_up_to: u64,
}

impl Store {
    /// Queues writes; they are durable when the ticket is.
    pub fn put(&mut self, writes: impl IntoIterator<Item = Write>) -> Ticket {
        self.waiting.extend(writes);
        self.last += 1;
        Ticket(self.last)
    }

    /// Writes at once: before a broker serves.
    pub fn put_durable(&mut self, writes: impl IntoIterator<Item = Write>) {
        for (key, value) in writes {
            put(&mut self.durable, key, value);
        }
    }

    /// Begins a commit of all that waits; false if there is nothing, or one is under way.
    pub fn begin(&mut self) -> bool {
        if self.committing || self.waiting.is_empty() && self.last == self.durable_up_to {
            return false;
        }
        self.committing = true;
        self.under_way = std::mem::take(&mut self.waiting);
        self.under_way_up_to = self.last;
        true
    }

    /// The commit under way is on the disk.
    pub fn finish(&mut self) {
        self.committing = false;
        self.durable_up_to = self.under_way_up_to;
        for (key, value) in std::mem::take(&mut self.under_way) {
            put(&mut self.durable, key, value);
        }
    }

    /// The commit under way failed: it is tried again with what has gathered since.
    pub fn fail(&mut self) {
        self.committing = false;
        let newer = std::mem::take(&mut self.waiting);
        self.waiting = std::mem::take(&mut self.under_way);
        self.waiting.extend(newer);
    }

    /// The store failed: nothing is tried until [`Store::resume`].
    pub fn pause(&mut self) {
        self.committing = true;
    }

    /// Tries again.
    pub fn resume(&mut self) {
        self.committing = false;
    }

    /// What was queued for this key is waited for.
    pub fn make_durable(&mut self, key: Key) {
        if let Some(value) = self.waiting.remove(&key) {
            put(&mut self.durable, key, value);
        }
    }

    /// Everything is written: a clean stop.
    pub fn flush(&mut self) {
        self.finish();
        self.begin();
        self.finish();
    }

    /// What was queued for a host is written no more.
    pub fn forget(&mut self, id: HostId) {
        let keep = |key: &Key| match key {
            Key::Host(of) | Key::Admin(of) | Key::Journal(of, _) => *of != id,
            Key::Unheard | Key::Holds => true,
        };
        self.waiting.retain(|key, _| keep(key));
        self.under_way.retain(|key, _| keep(key));
    }

    /// The process dies.
    pub fn crash(&mut self, rng: &mut Rng) {
        if self.committing && !self.under_way.is_empty() && rng.percent(50) {
            self.finish();
        }
        self.committing = false;
        self.under_way.clear();
        self.waiting.clear();
        self.durable_up_to = self.last;
    }

    /// Is it durable?
    #[must_use]
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        ticket.0 <= self.durable_up_to
    }

    /// The durable value.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&Value> {
        self.durable.get(&key)
    }

    /// The durable record of a host.
    #[must_use]
    pub fn host(&self, id: HostId) -> Option<&HostRecord> {
        match self.durable.get(&Key::Host(id)) {
            Some(Value::Host(record)) => Some(record),
            _ => None,
        }
    }

    /// The durable decisions about a host.
    #[must_use]
    pub fn admin(&self, id: HostId) -> Admin {
        match self.durable.get(&Key::Admin(id)) {
            Some(Value::Admin(admin)) => admin.clone(),
            _ => Admin::default(),
        }
    }

    /// The durable journal of a host, oldest first.
    pub fn journal(&self, id: HostId) -> impl Iterator<Item = &Transition> {
        self.durable
            .range(Key::Journal(id, 0)..=Key::Journal(id, u64::MAX))
            .filter_map(|(_, value)| match value {
                Value::Journal(transition) => Some(&**transition),
                _ => None,
            })
    }

    /// The last durable entry of a host's journal.
    #[must_use]
    pub fn last_entry(&self, id: HostId) -> Option<&Transition> {
        let (_, value) = self
            .durable
            .range(Key::Journal(id, 0)..=Key::Journal(id, u64::MAX))
            .next_back()?;
        match value {
            Value::Journal(transition) => Some(transition),
            _ => None,
        }
    }

    /// Keys, durable and not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.durable.len() + self.waiting.len() + self.under_way.len()
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn put(map: &mut BTreeMap<Key, Value>, key: Key, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
