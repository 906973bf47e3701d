//! What is counted. docs/metrics.md lists every metric; a test compares it with this file.

use std::sync::{Arc, atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Pool and status of hosts: never a host's name, which would have no bound.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PoolStatus {
    /// The pool.
    pub pool: String,
    /// The status, as in JSON.
    pub status: String,
}

/// A stable reason of a refusal.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RefusalReason {
    /// The reason.
    pub reason: String,
}

/// What came of a dial.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ProbeOutcome {
    /// answered, refused, unreachable, silent.
    pub outcome: String,
}

/// What became of a front end's report.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CountedAs {
    /// Whether it counts, or why not.
    pub counted: String,
}

macro_rules! register {
    ($registry:ident, $name:literal, $help:literal) => {{
        let metric = Default::default();
        $registry.register($name, $help, Clone::clone(&metric));
        metric
    }};
}

/// What the rules of the fleet do: holds, rests, conflicts, dials, front ends' reports.
#[derive(Debug)]
pub struct RuleMetrics {
    /// Stalls and suspends of the broker that count as restarts.
    pub stalls: Counter,
    /// Seconds that the wall clock is ahead since it was set.
    pub wall_clock_ahead_seconds: Gauge,
    /// Holds in force.
    pub holds: Gauge,
    /// Holds that have begun.
    pub holds_begun: Counter,
    /// Hosts that are held.
    pub hosts_held: Gauge,
    /// Hosts that rest because they came and went.
    pub hosts_held_down: Gauge,
    /// Hosts that were told to rest.
    pub hold_downs: Counter,
    /// Newcomers refused because another speaks for the host.
    pub conflicts: Counter,
    /// Dials of session listeners by what came of them.
    pub probes: Family<ProbeOutcome, Counter>,
    /// Reports of front ends by what became of them.
    pub outcomes: Family<CountedAs, Counter>,
}

impl RuleMetrics {
    fn register(registry: &mut Registry) -> Self {
        let stalls: Counter = register!(
            registry,
            "stalls",
            "Stalls and suspends of the broker that count as restarts"
        );
        let wall_clock_ahead_seconds: Gauge = register!(
            registry,
            "wall_clock_ahead_seconds",
            "Seconds that the wall clock is ahead since it was set"
        );
        let holds: Gauge = register!(registry, "holds", "Holds in mass losses in force");
        let holds_begun: Counter = register!(registry, "holds_begun", "Holds in mass losses begun");
        let hosts_held: Gauge =
            register!(registry, "hosts_held", "Hosts that are held in a mass loss");
        let hosts_held_down: Gauge = register!(
            registry,
            "hosts_held_down",
            "Hosts that rest because they came and went"
        );
        let hold_downs: Counter =
            register!(registry, "hold_downs", "Rests of hosts that came and went");
        let conflicts: Counter = register!(
            registry,
            "identity_conflicts",
            "Newcomers refused because another agent speaks for the host"
        );
        let probes: Family<ProbeOutcome, Counter> = register!(
            registry,
            "probes",
            "The broker's dials of session listeners by what came of them"
        );
        let outcomes: Family<CountedAs, Counter> = register!(
            registry,
            "outcomes_reported",
            "Reports of front ends by what became of them"
        );
        Self {
            stalls,
            wall_clock_ahead_seconds,
            holds,
            holds_begun,
            hosts_held,
            hosts_held_down,
            hold_downs,
            conflicts,
            probes,
            outcomes,
        }
    }
}

/// All metrics of the broker.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Hosts by pool and status.
    pub hosts: Family<PoolStatus, Gauge>,
    /// Live sessions.
    pub sessions: Gauge,
    /// Beats taken.
    pub beats: Counter,
    /// Reports taken.
    pub reports: Counter,
    /// Changes of a host's status, answers or reasons.
    pub transitions: Counter,
    /// Verdicts given.
    pub verdicts: Counter,
    /// Open watches.
    pub watchers: Gauge,
    /// Watches that were told to start anew.
    pub resyncs: Counter,
    /// Refusals by reason.
    pub refusals: Family<RefusalReason, Counter>,
    /// Transactions of the store.
    pub store_commits: Counter,
    /// Keys written.
    pub store_writes: Counter,
    /// Transactions that failed.
    pub store_failures: Counter,
    /// Entries of journals left out while the store failed.
    pub store_dropped: Counter,
    /// Seconds that the last tick came too late.
    pub tick_late_seconds: Gauge<f64, AtomicU64>,
    /// Hosts that this restart has not heard yet.
    pub unverified: Gauge,
    /// What the rules of the fleet do.
    pub rules: RuleMetrics,
}

impl Metrics {
    /// All metrics, registered.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::with_prefix("muster");
        let (hosts, sessions): (Family<PoolStatus, Gauge>, Gauge) = (
            register!(registry, "hosts", "Hosts by pool and status"),
            register!(registry, "sessions", "Live sessions of agents"),
        );
        let beats: Counter = register!(registry, "beats", "Beats taken");
        let reports: Counter = register!(registry, "reports", "Full reports taken");
        let transitions: Counter = register!(
            registry,
            "transitions",
            "Changes of a host's status, answers or reasons"
        );
        let verdicts: Counter = register!(registry, "verdicts", "Verdicts given to front ends");
        let watchers: Gauge = register!(registry, "watchers", "Open watches");
        let resyncs: Counter = register!(registry, "watch_resyncs", "Watches told to start anew");
        let refusals: Family<RefusalReason, Counter> = register!(
            registry,
            "refusals",
            "Refused requests and sessions by reason"
        );
        let store_commits: Counter =
            register!(registry, "store_commits", "Transactions of the store");
        let store_writes: Counter = register!(registry, "store_writes", "Keys and batches written");
        let store_failures: Counter = register!(
            registry,
            "store_failures",
            "Transactions of the store that failed"
        );
        let store_dropped: Counter = register!(
            registry,
            "store_dropped",
            "Entries of journals left out while the store failed"
        );
        let tick_late_seconds: Gauge<f64, AtomicU64> = register!(
            registry,
            "tick_late_seconds",
            "Seconds that the last tick came too late"
        );
        let unverified: Gauge = register!(
            registry,
            "hosts_unverified",
            "Hosts not heard since the broker's start"
        );
        let rules = RuleMetrics::register(&mut registry);
        Arc::new(Self {
            registry,
            hosts,
            sessions,
            beats,
            reports,
            transitions,
            verdicts,
            watchers,
            resyncs,
            refusals,
            store_commits,
            store_writes,
            store_failures,
            store_dropped,
            tick_late_seconds,
            unverified,
            rules,
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        Self::new()
    }

    /// Counts a refusal.
    pub fn refused(&self, reason: &str) {
        let reason = RefusalReason {
            reason: reason.to_owned(),
        };
        self.refusals.get_or_create(&reason).inc();
    }

    /// Counts what came of a dial.
    pub fn probed(&self, outcome: &str) {
        let outcome = outcome.to_owned();
        self.rules
            .probes
            .get_or_create(&ProbeOutcome { outcome })
            .inc();
    }

    /// Counts what became of a front end's report.
    pub fn counted(&self, counted: &str) {
        let counted = counted.to_owned();
        self.rules
            .outcomes
            .get_or_create(&CountedAs { counted })
            .inc();
    }

    /// All metrics as Prometheus reads them (OpenMetrics text).
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_in_the_documentation_lists_exactly_these_metrics() {
        let metrics = Metrics::new();
        let pool = PoolStatus {
            pool: "p".to_owned(),
            status: "available".to_owned(),
        };
        metrics.hosts.get_or_create(&pool).set(1);
        metrics.refused("HOST_UNKNOWN");
        metrics.probed("answered");
        metrics.counted("yes");
        let served: BTreeSet<String> = metrics
            .render()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .map(str::to_owned)
            .collect();
        let table = include_str!("../../docs/metrics.md");
        let documented: BTreeSet<String> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split('`').next())
            .map(str::to_owned)
            .collect();
        assert_eq!(served, documented);
        assert!(!served.is_empty());
    }
}
