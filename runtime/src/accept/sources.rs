//! Places for handshakes, shared fairly between the addresses that they come from.
//!
//! One address may have half of all places and half of all waiting, so that whoever opens
//! connections and says nothing cannot shut the others out. A connection over its source's share
//! waits; one over its source's share of the waiting is turned away. Finished handshakes do not
//! count: a fleet behind one address is as welcome as any.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// All sources with a handshake that is not finished.
#[derive(Debug)]
pub(super) struct Sources {
    all: Arc<Semaphore>,
    share: usize,
    waiting_share: usize,
    // Bounded by the connections that may wait: a source without one is forgotten.
    sources: Mutex<HashMap<IpAddr, Source>>,
}

#[derive(Debug)]
struct Source {
    places: Arc<Semaphore>,
    unfinished: usize,
}

/// A connection whose handshake is not finished; forgotten when dropped.
#[derive(Debug)]
pub(super) struct Unfinished {
    sources: Arc<Sources>,
    source: IpAddr,
    places: Arc<Semaphore>,
}

/// The right to make a handshake now.
#[derive(Debug)]
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Sources {
    pub(super) fn new(handshakes: usize, waiting: usize) -> Arc<Self> {
        // Without a single place nobody could ever come in.
        let handshakes = handshakes.max(1);
        Arc::new(Self {
            all: Arc::new(Semaphore::new(handshakes)),
            share: handshakes.div_ceil(2),
            waiting_share: (handshakes + waiting).div_ceil(2),
            sources: Mutex::default(),
        })
    }

    /// Takes a new connection in; none if its source has too many unfinished ones.
    pub(super) fn admit(self: &Arc<Self>, address: SocketAddr) -> Option<Unfinished> {
        let source = source_of(address.ip());
        let mut sources = self.sources.lock();
        let entry = sources.entry(source).or_insert_with(|| Source {
            places: Arc::new(Semaphore::new(self.share)),
            unfinished: 0,
        });
        if entry.unfinished >= self.waiting_share {
            return None;
        }
        entry.unfinished += 1;
        Some(Unfinished {
            sources: Arc::clone(self),
            source,
            places: Arc::clone(&entry.places),
        })
    }
}

impl Unfinished {
    /// Waits for a place.
    pub(super) async fn place(&self) -> Place {
        // The own share first: who waits for it holds none of the places of all.
        Place {
            _own: super::free_slot(&self.places).await,
            _all: super::free_slot(&self.sources.all).await,
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut sources = self.sources.sources.lock();
        if let Some(entry) = sources.get_mut(&self.source) {
            entry.unfinished -= 1;
            if entry.unfinished == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// Whoever has an IPv6 address has its whole /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn from(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    #[test]
    fn one_source_cannot_take_the_places_of_others() {
        let sources = Sources::new(4, 6);
        let greedy: Vec<_> = (0..5)
            .map(|_| sources.admit(from("192.0.2.1")).unwrap())
            .collect();
        assert!(sources.admit(from("::ffff:192.0.2.1")).is_none());
        let places: Vec<_> = greedy
            .iter()
            .filter_map(|one| one.place().now_or_never())
            .collect();
        assert_eq!(places.len(), 2);

        let other = sources.admit(from("192.0.2.2")).unwrap();
        assert!(other.place().now_or_never().is_some());
        drop(places);
        assert!(greedy[4].place().now_or_never().is_some());
    }

    #[test]
    fn all_places_together_are_limited() {
        let sources = Sources::new(2, 2);
        let held: Vec<_> = ["192.0.2.1", "192.0.2.2"]
            .map(|address| sources.admit(from(address)).unwrap())
            .into_iter()
            .map(|one| (one.place().now_or_never().unwrap(), one))
            .collect();
        let third = sources.admit(from("192.0.2.3")).unwrap();
        assert!(third.place().now_or_never().is_none());
        drop(held);
        assert!(third.place().now_or_never().is_some());
    }

    #[test]
    fn nothing_is_kept_of_a_source_that_has_finished() {
        let sources = Sources::new(2, 2);
        let first = sources.admit(from("2001:db8::1")).unwrap();
        let second = sources.admit(from("2001:db8::2")).unwrap();
        assert_eq!(sources.sources.lock().len(), 1, "one /64 is one source");
        drop((first, second));
        assert!(sources.sources.lock().is_empty());
    }
}
