//! When the next beat is due.
//!
//! The first beat falls at random within one interval, so that hosts that connect together do not
//! beat together; later ones follow after 6/7 to 1 interval. Jitter only shortens: the broker's
//! lease is counted in whole intervals.

use std::time::Duration;

use super::Random;
use crate::model::Mono;

/// The pace of one session's beats, and the sequence that they share with its reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BeatClock {
    interval: Duration,
    due: Mono,
    sequence: u64,
}

impl BeatClock {
    /// The clock of a session that was welcomed at `now` with this interval.
    #[must_use]
    pub fn start(interval: Duration, now: Mono, random: Random) -> Self {
        Self {
            interval,
            due: now + random.within(interval),
            sequence: 0,
        }
    }

    /// When the next beat is due.
    #[must_use]
    pub fn due(&self) -> Mono {
        self.due
    }

    /// The sequence of the message that is sent now, be it a beat or a report.
    #[must_use]
    pub fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// A beat is sent at `now`. After a stall beats that were missed are not made up for.
    pub fn handle_sent(&mut self, now: Mono, random: Random) {
        let jitter = random.within(self.interval / 7);
        self.due = now + self.interval.saturating_sub(jitter);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    proptest! {
        #[test]
        fn the_first_beat_is_within_one_interval_and_later_ones_are_never_late(
            first: u32,
            later in proptest::collection::vec(any::<u32>(), 1..50),
            millis in 1_u64..100_000,
        ) {
            let interval = Duration::from_millis(millis);
            let mut clock = BeatClock::start(interval, at(100), Random(first));
            prop_assert!(clock.due() >= at(100));
            prop_assert!(clock.due() < at(100) + interval);
            for bits in later {
                let sent = clock.due();
                clock.handle_sent(sent, Random(bits));
                let gap = clock.due() - sent;
                prop_assert!(gap <= interval, "{gap:?}");
                prop_assert!(gap >= interval * 6 / 7, "{gap:?}");
            }
        }
    }

    #[test]
    fn a_stall_is_followed_by_one_beat_not_by_a_burst() {
        let mut clock = BeatClock::start(INTERVAL, at(0), Random(0));
        clock.handle_sent(at(1000), Random(0));
        assert_eq!(clock.due(), at(1010));
    }

    #[test]
    fn sequences_count_up_by_one() {
        let mut clock = BeatClock::start(INTERVAL, at(0), Random(0));
        assert_eq!([clock.next_sequence(), clock.next_sequence()], [1, 2]);
    }
}
