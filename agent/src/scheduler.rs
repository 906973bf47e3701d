//! Runs the checks as the core's schedule says.
//!
//! Each run is a task of its own with a time limit, so a hanging check delays nothing, and a check
//! that panics is a check that cannot run. When the machine slept or the process was stopped, runs
//! that were under way are dropped and all checks run at once. Results are published as a copy whose ages are worked
//! out by whoever reads it.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::future::FutureExt as _;
use muster_core::{
    agent::{CheckSpec, Observation, Pulse, Random, ResultSet, RunId, Schedule, Start},
    model::{CheckName, Outcome, UnknownCause},
};
use muster_runtime::{clock, shutdown::Shutdown, watchdog::Mark};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::checks::{Check, Planned};

/// Longest sleep: timers stand still while the machine is suspended, and the checks shall be due
/// soon after it wakes.
const MAX_SLEEP: Duration = Duration::from_secs(5);
/// A run that does not even end when its limit is over holds a thread of the process: that is
/// called stuck after this time, which no busy machine takes to end it.
const STUCK_AFTER: Duration = Duration::from_secs(5);
/// Orders that may wait: a broker sends few, and more would only repeat them.
pub const MAX_ORDERS: usize = 16;

/// What the scheduler is told to do.
#[derive(Clone)]
pub enum Order {
    /// Run these checks soon, or all.
    Recheck(Vec<CheckName>),
    /// From now on these checks; all run at once, because what they look at has changed.
    Apply(Vec<Planned>),
}

/// Where the scheduler leaves its signs of life.
#[derive(Clone, Debug, Default)]
pub struct Marks {
    /// The loop turns.
    pub scheduler: Mark,
    /// No run is stuck.
    pub runs: Mark,
}

/// Runs checks until shutdown is requested.
///
/// # Errors
/// Never; the type is what the supervisor asks for.
pub async fn run(
    planned: Vec<Planned>,
    mut orders: mpsc::Receiver<Order>,
    results: watch::Sender<Arc<ResultSet>>,
    marks: Marks,
    shutdown: Shutdown,
) -> Result<(), std::convert::Infallible> {
    let mut shell = Shell::default();
    shell.apply(planned);
    results.send_replace(shell.published());
    let stopped = shutdown.requested();
    tokio::pin!(stopped);
    let mut pulse = Pulse::new(MAX_SLEEP);
    loop {
        marks.scheduler.turn();
        if !shell.is_stuck() {
            marks.runs.turn();
        }
        let gap = pulse.turn(clock::boot(), clock::awake());
        if gap.is_wake() {
            tracing::info!(
                slept_ms = gap.slept.as_millis(),
                stopped_ms = gap.stopped.as_millis(),
                "awake again: all checks run"
            );
            shell.handle_wake();
        }
        shell.start_due();
        let wake = shell.schedule.next_wake();
        let nap = wake.map_or(MAX_SLEEP, |wake| wake.since(clock::boot()).min(MAX_SLEEP));
        tokio::select! {
            () = &mut stopped => return Ok(()),
            () = sleep(nap) => {}
            Some(ended) = shell.runs.join_next() => {
                // One that was dropped says nothing.
                if let Ok((name, run, observation)) = ended {
                    shell.handle_ended(&name, run, observation);
                    results.send_replace(shell.published());
                }
            }
            Some(order) = orders.recv() => {
                shell.handle_order(order);
                results.send_replace(shell.published());
            }
        }
    }
}

#[derive(Default)]
struct Shell {
    schedule: Schedule,
    checks: BTreeMap<CheckName, Arc<dyn Check>>,
    runs: JoinSet<(CheckName, RunId, Observation)>,
    under_way: BTreeMap<RunId, UnderWay>,
}

/// A run that has not ended.
struct UnderWay {
    abort: AbortHandle,
    /// By then it has ended, if its thread ever comes back from it.
    stuck_from: Instant,
}

impl Shell {
    fn apply(&mut self, planned: Vec<Planned>) {
        let mut specs: Vec<CheckSpec> = Vec::new();
        self.checks.clear();
        for Planned { spec, check } in planned {
            if let Some(check) = check {
                self.checks.insert(spec.name.clone(), check);
            }
            specs.push(spec);
        }
        for name in self.schedule.set_checks(specs, clock::boot()) {
            tracing::warn!(check = %name, "check left out: there are too many, or two of that name");
        }
    }

    fn handle_order(&mut self, order: Order) {
        match order {
            Order::Apply(planned) => {
                self.apply(planned);
                let _ = self.schedule.recheck(&[], clock::boot());
            }
            Order::Recheck(names) => {
                for name in self.schedule.recheck(&names, clock::boot()) {
                    tracing::warn!(check = %name, "asked to run a check that is not known here");
                }
            }
        }
    }

    fn start_due(&mut self) {
        for start in self.schedule.start_due(clock::boot(), draw) {
            match self.checks.get(&start.name) {
                Some(check) => {
                    let (run, limit) = (start.run, start.timeout);
                    let abort = self.runs.spawn(run_once(Arc::clone(check), start));
                    let stuck_from = Instant::now() + limit + STUCK_AFTER;
                    let under_way = UnderWay { abort, stuck_from };
                    self.under_way.insert(run, under_way);
                }
                None => {
                    let seen = cannot_run("the check is not there");
                    self.handle_ended(&start.name, start.run, seen);
                }
            }
        }
    }

    /// What was under way says more of the sleep than of the host.
    fn handle_wake(&mut self) {
        for run in self.schedule.handle_wake(clock::boot()) {
            if let Some(under_way) = self.under_way.remove(&run) {
                under_way.abort.abort();
            }
        }
    }

    /// A run holds its thread although its limit is long over.
    fn is_stuck(&self) -> bool {
        let now = Instant::now();
        self.under_way.values().any(|run| run.stuck_from < now)
    }

    fn handle_ended(&mut self, name: &CheckName, run: RunId, observation: Observation) {
        self.under_way.remove(&run);
        let observation = without_idle_words(observation);
        let (outcome, seen) = (observation.outcome, observation.message.clone());
        if self
            .schedule
            .handle_finished(name, run, observation, clock::boot())
        {
            tracing::debug!(check = %name, %outcome, seen, "check ran");
        }
    }

    fn published(&self) -> Arc<ResultSet> {
        Arc::new(self.schedule.result_set())
    }
}

/// 32 random bits.
#[must_use]
pub fn draw() -> Random {
    Random(rand::random())
}

async fn run_once(check: Arc<dyn Check>, start: Start) -> (CheckName, RunId, Observation) {
    let observation = run_bounded(&*check, start.timeout).await;
    (start.name, start.run, observation)
}

/// One run within its limit, whatever the check does.
pub(crate) async fn run_bounded(check: &dyn Check, limit: Duration) -> Observation {
    let run = AssertUnwindSafe(async { check.run().await }).catch_unwind();
    match timeout(limit, run).await {
        Ok(Ok(observation)) => observation,
        Ok(Err(_panic)) => cannot_run("the check panicked; the agent's log says more"),
        Err(_) => Observation::timed_out(limit),
    }
}

fn cannot_run(message: &str) -> Observation {
    Observation::new(Outcome::Unknown(UnknownCause::CannotRun), message)
}

/// What passes needs no evidence at the broker, which keeps it for every host of the fleet.
fn without_idle_words(mut observation: Observation) -> Observation {
    if matches!(observation.outcome, Outcome::Pass | Outcome::NotApplicable) {
        observation.findings.clear();
    }
    observation
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::{BoxFuture, pending};
    use muster_core::model::{CheckPace, Finding};

    use super::*;

    /// A check made of a closure, as real as the others to the scheduler.
    struct Probe<F>(F);

    impl<F, R> Check for Probe<F>
    where
        F: Fn() -> R + Send + Sync,
        R: Future<Output = Observation> + Send + 'static,
    {
        fn run(&self) -> BoxFuture<'_, Observation> {
            (self.0)().boxed()
        }
    }

    fn planned<F, R>(name: &str, pace: CheckPace, probe: F) -> Planned
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Observation> + Send + 'static,
    {
        Planned {
            spec: CheckSpec {
                name: CheckName::new(name).unwrap(),
                kind: name.into(),
                pace,
                supported: true,
            },
            check: Some(Arc::new(Probe(probe))),
        }
    }

    fn pace(interval_ms: u64, timeout_ms: u64) -> CheckPace {
        CheckPace {
            interval: Duration::from_millis(interval_ms),
            timeout: Duration::from_millis(timeout_ms),
            ..CheckPace::default()
        }
    }

    struct Running {
        orders: mpsc::Sender<Order>,
        results: watch::Receiver<Arc<ResultSet>>,
        marks: Marks,
        shutdown: Shutdown,
    }

    fn start(checks: Vec<Planned>) -> Running {
        let (orders, inbox) = mpsc::channel(MAX_ORDERS);
        let (sender, results) = watch::channel(Arc::default());
        let shutdown = Shutdown::new();
        let marks = Marks::default();
        let running = run(checks, inbox, sender, marks.clone(), shutdown.clone());
        tokio::spawn(running);
        Running {
            orders,
            results,
            marks,
            shutdown,
        }
    }

    async fn outcome(running: &mut Running, name: &str, wanted: Outcome) {
        let found = running.results.wait_for(|set| {
            set.results(clock::boot())
                .iter()
                .any(|result| result.name.as_str() == name && result.outcome == wanted)
        });
        timeout(Duration::from_secs(10), found)
            .await
            .expect("in time")
            .unwrap();
    }

    fn pass() -> Observation {
        Observation::new(Outcome::Pass, "ok")
    }

    #[tokio::test]
    async fn a_hanging_or_panicking_check_delays_no_other() {
        let mut running = start(vec![
            planned("hangs", pace(100, 200), || async { pending().await }),
            planned("panics", pace(100, 200), || async {
                assert!(Duration::ZERO > Duration::from_secs(1), "a bug");
                pass()
            }),
            planned("works", pace(100, 200), || async { pass() }),
        ]);
        outcome(&mut running, "works", Outcome::Pass).await;
        outcome(
            &mut running,
            "panics",
            Outcome::Unknown(UnknownCause::CannotRun),
        )
        .await;
        outcome(
            &mut running,
            "hangs",
            Outcome::Unknown(UnknownCause::TimedOut),
        )
        .await;
        running.shutdown.request();
    }

    /// Waits until the loop has turned ten times more, and says how often no run was stuck.
    async fn ten_turns(marks: &Marks) -> u64 {
        let (from, runs) = (marks.scheduler.turns(), marks.runs.turns());
        while marks.scheduler.turns() < from + 10 {
            sleep(Duration::from_millis(10)).await;
        }
        marks.runs.turns() - runs
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_run_that_holds_its_thread_shows_by_its_mark_until_it_lets_go() {
        let (let_go, hold) = std::sync::mpsc::channel::<()>();
        let hold = Arc::new(parking_lot::Mutex::new(hold));
        let running = start(vec![
            planned("holds", pace(3_600_000, 10), move || {
                let hold = Arc::clone(&hold);
                // Not as a check should: its thread is gone, and with it the time limit.
                async move { pass_after(&hold.lock()) }
            }),
            planned("works", pace(100, 200), || async { pass() }),
        ]);
        let marks = &running.marks;
        assert!(ten_turns(marks).await > 0, "its limit is not long over yet");
        let stuck = async { while ten_turns(marks).await > 0 {} };
        timeout(Duration::from_secs(20), stuck)
            .await
            .expect("it shows");
        let_go.send(()).unwrap();
        let free = async { while ten_turns(marks).await == 0 {} };
        timeout(Duration::from_secs(20), free)
            .await
            .expect("it lets go");
        running.shutdown.request();
    }

    fn pass_after(word: &std::sync::mpsc::Receiver<()>) -> Observation {
        word.recv().unwrap();
        pass()
    }

    #[tokio::test]
    async fn a_recheck_runs_at_once_and_unknown_names_harm_nothing() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let mut running = start(vec![planned("a", pace(3_600_000, 1000), move || {
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    pass()
                } else {
                    Observation::new(Outcome::Warn, "again")
                }
            }
        })]);
        outcome(&mut running, "a", Outcome::Pass).await;
        let names = ["nosuch", "a"].map(|name| CheckName::new(name).unwrap());
        running
            .orders
            .send(Order::Recheck(names.to_vec()))
            .await
            .unwrap();
        outcome(&mut running, "a", Outcome::Warn).await;
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_new_plan_replaces_the_old_one_and_runs_at_once() {
        let mut running = start(vec![planned("a", pace(3_600_000, 1000), || async {
            pass()
        })]);
        outcome(&mut running, "a", Outcome::Pass).await;
        let plan = vec![planned("b", pace(3_600_000, 1000), || async { pass() })];
        running.orders.send(Order::Apply(plan)).await.unwrap();
        outcome(&mut running, "b", Outcome::Pass).await;
        assert_eq!(running.results.borrow().results(clock::boot()).len(), 1);
    }

    #[tokio::test]
    async fn ten_megabytes_of_output_stay_small_and_passing_needs_no_evidence() {
        let huge = |outcome| {
            move || async move {
                Observation::new(outcome, "x".repeat(10 << 20)).with(Finding {
                    message: "y".repeat(10 << 20),
                    ..Finding::default()
                })
            }
        };
        let mut running = start(vec![
            planned("bad", pace(3_600_000, 5000), huge(Outcome::Fail)),
            planned("good", pace(3_600_000, 5000), huge(Outcome::Pass)),
        ]);
        outcome(&mut running, "bad", Outcome::Fail).await;
        outcome(&mut running, "good", Outcome::Pass).await;
        for result in running.results.borrow().results(clock::boot()) {
            assert!(result.truncated && result.message.len() <= 256);
            assert_eq!(result.findings.is_empty(), result.outcome == Outcome::Pass);
        }
    }
}
