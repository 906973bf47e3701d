//! Names of answers. A front end that reports what it met names the answer that it followed; the
//! broker must know its own without remembering each. So a name says when it was given, and
//! carries a keyed hash over that, the host and the answer: no other process can make one.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use muster_core::model::{HostId, Mono};

/// An answer may be followed for this long: as long as a view from outside lasts.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(5 * 60);

/// Makes names, and knows its own.
#[derive(Debug, Default)]
pub(super) struct VerdictIds {
    key: RandomState,
}

impl VerdictIds {
    /// The name of answer `number` about `host`.
    pub(super) fn make(&self, number: u64, host: HostId, connectable: bool, now: Mono) -> String {
        let at = now.since_origin().as_secs();
        let tag = self.key.hash_one((number, host, connectable, at));
        format!("{number:x}-{at:x}-{tag:016x}")
    }

    /// `id` names an answer that called this host connectable, within the last minutes.
    pub(super) fn said_yes(&self, id: &str, host: HostId, now: Mono) -> bool {
        let mut parts = id.split('-').map(|part| u64::from_str_radix(part, 16).ok());
        let (Some(Some(number)), Some(Some(at)), Some(Some(tag)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let given = Mono::from_origin(Duration::from_secs(at));
        given <= now
            && now.since(given) < FOLLOWED_WITHIN
            && self.key.hash_one((number, host, true, at)) == tag
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_about_this_host_within_five_minutes_counts() {
        let at = |seconds| Mono::from_origin(Duration::from_secs(seconds));
        let (ids, others) = (VerdictIds::default(), VerdictIds::default());
        let (host, other) = (HostId::from_random([1; 16]), HostId::from_random([2; 16]));
        let yes = ids.make(7, host, true, at(1000));
        assert!(ids.said_yes(&yes, host, at(1299)));
        assert!(!ids.said_yes(&yes, host, at(1300)), "too old");
        assert!(!ids.said_yes(&yes, other, at(1000)), "about another host");
        assert!(!others.said_yes(&yes, host, at(1000)), "another process's");
        let no = ids.make(8, host, false, at(1000));
        assert!(!ids.said_yes(&no, host, at(1000)), "it said no");
        for wrong in ["", "-", "7-3e8", "x-y-z", &format!("{yes}-0"), &yes[1..]] {
            assert!(!ids.said_yes(wrong, host, at(1000)), "{wrong}");
        }
    }
}
