//! Which broker to try next, and after how long.
//!
//! An agent tries for ever. The first try after a loss comes at random within the spread that the
//! last Welcome set, so that a broker's restart is not followed by a herd; later ones back off
//! with full jitter up to a cap. All endpoints are tried in turn, those of the configuration and
//! those that the last Welcome named, and the backoff grows with whole rounds: with several
//! brokers a host fails over in seconds. A directive's endpoints come first, each once. Before the
//! first Welcome of a process the spread is zero: a host that was just started is wanted soon.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::Random;

/// Upper end of the first backoff. Doubles with each round: five rounds reach the default cap.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Cap before a Welcome says otherwise.
const DEFAULT_CAP: Duration = Duration::from_secs(15);
/// Longest wait that a broker may ask for: it must not silence a host for ever.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Endpoints in all: those of the configuration and of Welcome, sixteen each at most.
const MAX_ENDPOINTS: usize = 32;
/// Endpoints of one directive: beyond a few the others are as good.
const MAX_DIRECTED: usize = 16;

/// One try to come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Try {
    /// Whom to try, `host:port`.
    pub endpoint: Arc<str>,
    /// Wait this long first.
    pub after: Duration,
}

/// How a try, or the session that it led to, ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// A session that was welcomed has ended.
    Lost,
    /// The broker sent the agent away by a directive, within this time.
    SentAway(Duration),
    /// The process woke after longer than a lease: the broker has given the session up, or will.
    Woke,
    /// Nobody answered, or the handshake failed.
    Unreachable,
    /// The broker answered and refused; it may have said when to come again.
    Refused(Option<Duration>),
}

/// The state of reconnecting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconnect {
    configured: Vec<Arc<str>>,
    /// All that are tried in turn: the configured ones, then those that Welcome told.
    endpoints: Vec<Arc<str>>,
    at: usize,
    /// Those of a directive, still to be tried.
    directed: VecDeque<Arc<str>>,
    /// The last one tried.
    last: Option<Arc<str>>,
    spread: Duration,
    cap: Duration,
    failures: u32,
}

impl Reconnect {
    /// A process that starts and knows these endpoints.
    #[must_use]
    pub fn new(configured: Vec<Arc<str>>) -> Self {
        let mut reconnect = Self {
            configured,
            endpoints: Vec::new(),
            at: 0,
            directed: VecDeque::new(),
            last: None,
            spread: Duration::ZERO,
            cap: DEFAULT_CAP,
            failures: 0,
        };
        reconnect.handle_endpoints(&[]);
        reconnect
    }

    /// All endpoints that are tried in turn.
    #[must_use]
    pub fn endpoints(&self) -> &[Arc<str>] {
        &self.endpoints
    }

    /// The slowest pace: the cap of the backoff.
    #[must_use]
    pub fn cap(&self) -> Duration {
        self.cap
    }

    /// The first try of the process: at once. None without endpoints.
    #[must_use]
    pub fn first_try(&mut self) -> Option<Try> {
        self.last = self.endpoints.get(self.at).cloned();
        self.last.clone().map(|endpoint| Try {
            endpoint,
            after: Duration::ZERO,
        })
    }

    /// A session is welcomed, with the pace for the time after it.
    pub fn handle_welcome(&mut self, spread: Duration, cap: Duration) {
        self.failures = 0;
        self.spread = spread.min(MAX_WAIT);
        self.cap = cap.clamp(FIRST_BACKOFF, MAX_WAIT);
    }

    /// What the broker told of itself and the others: tried in turn after the configured ones, and
    /// in place of those that were told before. The turn stays where it was.
    pub fn handle_endpoints(&mut self, told: &[Arc<str>]) {
        let current = self.endpoints.get(self.at).cloned();
        self.endpoints.clear();
        for endpoint in self.configured.iter().chain(told) {
            if self.endpoints.len() < MAX_ENDPOINTS && !self.endpoints.contains(endpoint) {
                self.endpoints.push(Arc::clone(endpoint));
            }
        }
        let same = |endpoint: &Arc<str>| Some(endpoint) == current.as_ref();
        self.at = self.endpoints.iter().position(same).unwrap_or(0);
    }

    /// The broker sends the agent away: these are tried first, each once. None of them means those
    /// that are known.
    pub fn handle_directive(&mut self, endpoints: &[Arc<str>]) {
        self.directed = endpoints.iter().take(MAX_DIRECTED).cloned().collect();
    }

    /// A try or a session has ended: whom to try next, and when. None without endpoints.
    #[must_use]
    pub fn handle_failure(&mut self, failure: Failure, random: Random) -> Option<Try> {
        let count = self.endpoints.len();
        if count == 0 {
            return None;
        }
        let after = match failure {
            Failure::Lost => {
                self.failures = 0;
                random.within(self.spread)
            }
            Failure::SentAway(within) => {
                self.failures = 0;
                random.within(within.min(MAX_WAIT))
            }
            Failure::Woke => {
                self.failures = 0;
                Duration::ZERO
            }
            Failure::Unreachable | Failure::Refused(None) => random.within(self.backoff(count)),
            // Not before the time asked for, and then not all at once.
            Failure::Refused(Some(wait)) => wait.min(MAX_WAIT) + random.within(self.backoff(count)),
        };
        let endpoint = self.next_endpoint(failure);
        self.failures = self.failures.saturating_add(1);
        self.last = Some(Arc::clone(&endpoint));
        Some(Try { endpoint, after })
    }

    fn next_endpoint(&mut self, failure: Failure) -> Arc<str> {
        // The broker has done nothing wrong: the host was away.
        if failure == Failure::Woke
            && let Some(last) = &self.last
        {
            return Arc::clone(last);
        }
        if let Some(directed) = self.directed.pop_front() {
            return directed;
        }
        self.at = (self.at + 1) % self.endpoints.len();
        Arc::clone(&self.endpoints[self.at])
    }

    /// Upper end of the wait before the next try.
    fn backoff(&self, endpoints: usize) -> Duration {
        let endpoints = u32::try_from(endpoints).unwrap_or(u32::MAX).max(1);
        let round = (self.failures / endpoints).min(16);
        FIRST_BACKOFF.saturating_mul(1 << round).min(self.cap)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: Random = Random(u32::MAX);
    const SECOND: Duration = Duration::from_secs(1);

    fn endpoints(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn nearly(wait: Duration, limit: Duration) -> bool {
        wait < limit && wait > limit.mul_f64(0.999)
    }

    #[test]
    fn a_process_starts_at_once_and_a_lost_session_comes_back_within_the_spread() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1"]));
        assert_eq!(reconnect.first_try().unwrap().after, Duration::ZERO);
        reconnect.handle_welcome(5 * SECOND, 15 * SECOND);
        let next = reconnect.handle_failure(Failure::Lost, MOST).unwrap();
        assert!(nearly(next.after, 5 * SECOND), "{next:?}");
    }

    #[test]
    fn backoff_doubles_up_to_the_cap() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1"]));
        reconnect.handle_welcome(5 * SECOND, 3 * SECOND);
        let _ = reconnect.handle_failure(Failure::Lost, MOST);
        let limits = [1000, 2000, 3000, 3000, 3000].map(Duration::from_millis);
        for limit in limits {
            let next = reconnect
                .handle_failure(Failure::Unreachable, MOST)
                .unwrap();
            assert!(nearly(next.after, limit), "{next:?}, {limit:?}");
        }
        let soon = reconnect
            .handle_failure(Failure::Unreachable, Random(0))
            .unwrap();
        assert_eq!(soon.after, Duration::ZERO, "full jitter starts at zero");
    }

    #[test]
    fn endpoints_are_tried_in_turn_and_a_round_counts_once() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1", "b:1", "c:1"]));
        let tries: Vec<_> = (0..6)
            .filter_map(|_| reconnect.handle_failure(Failure::Unreachable, MOST))
            .collect();
        let names: Vec<_> = tries.iter().map(|next| &*next.endpoint).collect();
        assert_eq!(names, ["b:1", "c:1", "a:1", "b:1", "c:1", "a:1"]);
        for (at, next) in tries.iter().enumerate() {
            let limit = if at < 3 {
                FIRST_BACKOFF
            } else {
                FIRST_BACKOFF * 2
            };
            assert!(nearly(next.after, limit), "try {at}: {next:?}");
        }
    }

    #[test]
    fn a_refusal_is_heeded_but_cannot_silence_the_host() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1"]));
        let next = reconnect
            .handle_failure(Failure::Refused(Some(20 * SECOND)), Random(0))
            .unwrap();
        assert_eq!(next.after, 20 * SECOND);
        let next = reconnect
            .handle_failure(Failure::Refused(Some(Duration::MAX)), Random(0))
            .unwrap();
        assert_eq!(next.after, MAX_WAIT);
    }

    #[test]
    fn without_endpoints_there_is_nothing_to_try() {
        let mut reconnect = Reconnect::new(Vec::new());
        assert_eq!(reconnect.first_try(), None);
        assert_eq!(reconnect.handle_failure(Failure::Unreachable, MOST), None);
    }

    #[test]
    fn told_endpoints_follow_the_configured_ones_and_the_turn_goes_on() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1", "b:1"]));
        let _ = reconnect.handle_failure(Failure::Unreachable, MOST);
        reconnect.handle_endpoints(&endpoints(&["c:1", "b:1"]));
        let mut next = || reconnect.handle_failure(Failure::Lost, MOST).unwrap();
        assert_eq!([&*next().endpoint, &*next().endpoint], ["c:1", "a:1"]);
        reconnect.handle_endpoints(&endpoints(&["d:1"]));
        assert_eq!(reconnect.endpoints(), endpoints(&["a:1", "b:1", "d:1"]));
        reconnect.handle_endpoints(&[]);
        assert_eq!(reconnect.endpoints(), endpoints(&["a:1", "b:1"]));
    }

    #[test]
    fn a_broker_that_tells_a_thousand_endpoints_cannot_drown_the_configured_ones() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1"]));
        let told: Vec<_> = (0..1000).map(|n| format!("t{n}:1").into()).collect();
        reconnect.handle_endpoints(&told);
        assert_eq!(reconnect.endpoints().len(), MAX_ENDPOINTS);
        assert_eq!(&*reconnect.endpoints()[0], "a:1");
        reconnect.handle_directive(&told);
        assert_eq!(reconnect.directed.len(), MAX_DIRECTED);
    }

    #[test]
    fn a_directives_endpoints_come_first_and_once_then_the_known_ones_in_turn() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1", "b:1"]));
        let _ = reconnect.first_try();
        reconnect.handle_welcome(5 * SECOND, 15 * SECOND);
        reconnect.handle_directive(&endpoints(&["x:1", "y:1"]));
        let away = Failure::SentAway(2 * SECOND);
        let first = reconnect.handle_failure(away, MOST).unwrap();
        assert_eq!(&*first.endpoint, "x:1");
        assert!(nearly(first.after, 2 * SECOND), "{first:?}");
        let mut names = Vec::new();
        for _ in 0..3 {
            let next = reconnect
                .handle_failure(Failure::Unreachable, MOST)
                .unwrap();
            names.push(next.endpoint);
        }
        assert_eq!(names, endpoints(&["y:1", "b:1", "a:1"]));
    }

    #[test]
    fn who_woke_comes_back_at_once_to_where_it_was() {
        let mut reconnect = Reconnect::new(endpoints(&["a:1", "b:1"]));
        let first = reconnect.first_try().unwrap();
        reconnect.handle_welcome(5 * SECOND, 15 * SECOND);
        let next = reconnect.handle_failure(Failure::Woke, MOST).unwrap();
        assert_eq!(next, first);
        // What was at fault is tried in turn as ever, with the first backoff.
        let next = reconnect
            .handle_failure(Failure::Unreachable, MOST)
            .unwrap();
        assert_eq!(&*next.endpoint, "b:1");
        assert!(nearly(next.after, FIRST_BACKOFF), "{next:?}");
    }

    proptest! {
        #[test]
        fn waits_never_exceed_the_cap_and_every_endpoint_gets_its_turn(
            count in 1_usize..6,
            cap in 0_u64..60,
            draws in proptest::collection::vec(any::<u32>(), 12..60),
        ) {
            let names: Vec<Arc<str>> = (0..count).map(|n| format!("h{n}:1").into()).collect();
            let mut reconnect = Reconnect::new(names);
            let cap = Duration::from_secs(cap);
            reconnect.handle_welcome(Duration::ZERO, cap);
            let mut seen = std::collections::BTreeSet::new();
            for bits in draws {
                let next = reconnect.handle_failure(Failure::Unreachable, Random(bits)).unwrap();
                prop_assert!(next.after <= cap.max(FIRST_BACKOFF));
                seen.insert(next.endpoint);
            }
            prop_assert_eq!(seen.len(), count);
        }
    }
}
