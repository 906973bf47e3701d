//! What was served without a word from a host, summed over restarts.
//!
//! A restarted broker believes its hosts for a window. A broker that crashes again and again would
//! believe a dead host for ever, if each start began anew. So while the window is open, the time
//! for which each host not heard yet has been believed is stored: one small record every few
//! seconds, charged in advance, at the next tick after a host came back, which owes nothing any
//! more, and none once all are back or given up.

use std::{collections::HashMap, time::Duration};

use muster_core::{
    host::{Host, Link},
    model::{HostId, Mono},
};
use serde::{Deserialize, Serialize};

use super::{Pace, Registry};
use crate::store::{Store, StoreError, decode, encode, keys};

/// Between two records; charged in advance, so that a crash in between is counted too.
pub(super) const CHARGE: Duration = Duration::from_secs(5);

/// The last record of a window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charged {
    at: Mono,
    /// Hosts in it: fewer once some were heard, never more.
    hosts: usize,
}

/// Milliseconds believed without a word, by host.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Unheard {
    served_ms: HashMap<HostId, u64>,
}

impl Unheard {
    pub(super) fn read(store: &dyn Store) -> Result<Self, StoreError> {
        match store.get(keys::UNHEARD)? {
            Some(value) => decode(keys::UNHEARD, &value),
            None => Ok(Self::default()),
        }
    }

    /// Gives the host only what is left of the window.
    pub(super) fn bound(&self, host: &mut Host, now: Mono, pace: Pace) {
        if let Some(served) = self.served_ms.get(&host.facts().identity.id) {
            let window = pace.terms.lease.saturating_add(pace.reconnect_window);
            host.bound_unheard(now + window.saturating_sub(Duration::from_millis(*served)));
        }
    }
}

impl Registry {
    /// Stores what has been served to hosts not heard since the start, charged up to the next
    /// call. Without an open window nothing is stored.
    pub(super) fn charge_unheard(&self, now: Mono) {
        let window = self
            .pace
            .terms
            .lease
            .saturating_add(self.pace.reconnect_window);
        let opened = self.window.lock().map(|window| window.opened());
        let mut charged = self.charged.lock();
        let Some(opened) = opened else {
            if charged.take().is_some() {
                let _ = self.queue.put([(keys::UNHEARD.to_vec(), None)]);
            }
            return;
        };
        let cells = self.page(None, usize::MAX, |published| {
            matches!(published.snapshot.facts.link, Link::Loaded { .. })
        });
        if charged.is_some_and(|last| now.since(last.at) < CHARGE && cells.len() == last.hosts) {
            return;
        }
        *charged = Some(Charged {
            at: now,
            hosts: cells.len(),
        });
        let mut unheard = Unheard::default();
        for cell in cells {
            let facts = cell.published().snapshot.facts.clone();
            let ends = match facts.link {
                Link::Loaded {
                    lease_ends: Some(ends),
                } => ends,
                _ => opened + window,
            };
            let left = ends.since(now).saturating_sub(CHARGE);
            let served = window.saturating_sub(left);
            let served = u64::try_from(served.as_millis()).unwrap_or(u64::MAX);
            unheard.served_ms.insert(facts.identity.id, served);
        }
        let _ = self
            .queue
            .put([(keys::UNHEARD.to_vec(), Some(encode(&unheard)))]);
    }
}
