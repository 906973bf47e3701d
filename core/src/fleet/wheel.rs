//! Deadlines of many hosts, in buckets.
//!
//! A host is armed at most once per change of its earliest deadline. Beats move deadlines only
//! further away and touch nothing here: a host that comes up early says when it is really due and
//! is armed again. So a beat costs no work in the wheel, and every host comes up about once per
//! two beats.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    time::Duration,
};

use crate::model::Mono;

/// Width of a bucket. Expiry is exact at read time; the wheel only decides when watchers are told.
pub const BUCKET: Duration = Duration::from_millis(100);

/// Deadlines by key: at most one entry per key.
#[derive(Debug)]
pub struct Wheel<K> {
    buckets: BTreeMap<u64, Vec<K>>,
    armed: HashMap<K, u64>,
}

impl<K> Default for Wheel<K> {
    fn default() -> Self {
        Self {
            buckets: BTreeMap::new(),
            armed: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Wheel<K> {
    /// Wakes `key` at `at` or earlier. An entry that is earlier already stays.
    pub fn arm(&mut self, key: K, at: Mono) {
        let bucket = bucket_after(at);
        match self.armed.get(&key) {
            Some(&before) if before <= bucket => return,
            Some(&before) => self.take_out(key, before),
            None => {}
        }
        self.armed.insert(key, bucket);
        self.buckets.entry(bucket).or_default().push(key);
    }

    /// Forgets `key`.
    pub fn disarm(&mut self, key: K) {
        if let Some(before) = self.armed.remove(&key) {
            self.take_out(key, before);
        }
    }

    /// Takes out all keys that are due at `now`, at most `limit`.
    pub fn due(&mut self, now: Mono, limit: usize) -> Vec<K> {
        let last = bucket_of(now);
        let mut due = Vec::new();
        while let Some(mut entry) = self.buckets.first_entry() {
            if *entry.key() > last || due.len() >= limit {
                break;
            }
            let room = limit - due.len();
            let keys = entry.get_mut();
            let taken: Vec<K> = keys.drain(..room.min(keys.len())).collect();
            if keys.is_empty() {
                entry.remove();
            }
            for key in &taken {
                self.armed.remove(key);
            }
            due.extend(taken);
        }
        due
    }

    /// Keys that are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.armed.len()
    }

    /// Nothing is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.armed.is_empty()
    }

    fn take_out(&mut self, key: K, bucket: u64) {
        if let Some(keys) = self.buckets.get_mut(&bucket) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.buckets.remove(&bucket);
            }
        }
    }
}

fn bucket_of(at: Mono) -> u64 {
    u64::try_from(at.since_origin().as_millis() / BUCKET.as_millis()).unwrap_or(u64::MAX)
}

/// The first bucket whose start is at or after `at`: a key never comes up too early to be due.
fn bucket_after(at: Mono) -> u64 {
    let start =
        Mono::from_origin(BUCKET.saturating_mul(u32::try_from(bucket_of(at)).unwrap_or(u32::MAX)));
    if start < at {
        bucket_of(at).saturating_add(1)
    } else {
        bucket_of(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::from_origin(Duration::from_millis(ms))
    }

    #[test]
    fn keys_come_up_when_due_and_never_before() {
        let mut wheel = Wheel::default();
        wheel.arm(1, at(1000));
        wheel.arm(2, at(1001));
        wheel.arm(3, at(5000));
        assert_eq!(wheel.due(at(999), 10), Vec::<i32>::new());
        assert_eq!(wheel.due(at(1000), 10), vec![1]);
        assert_eq!(wheel.due(at(1099), 10), Vec::<i32>::new());
        assert_eq!(wheel.due(at(1100), 10), vec![2]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn only_an_earlier_deadline_moves_an_entry() {
        let mut wheel = Wheel::default();
        wheel.arm(1, at(3000));
        wheel.arm(1, at(9000));
        wheel.arm(1, at(2000));
        assert_eq!(wheel.len(), 1);
        assert_eq!(wheel.due(at(2000), 10), vec![1]);
        assert!(wheel.due(at(100_000), 10).is_empty());
    }

    #[test]
    fn a_limit_leaves_the_rest_for_the_next_call() {
        let mut wheel = Wheel::default();
        for key in 0..10 {
            wheel.arm(key, at(100));
        }
        wheel.disarm(4);
        let first = wheel.due(at(100), 6);
        let second = wheel.due(at(100), 6);
        assert_eq!((first.len(), second.len(), wheel.is_empty()), (6, 3, true));
    }
}
