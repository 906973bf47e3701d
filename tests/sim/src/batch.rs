//! Many runs on a few threads, and what to say about them.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{Broken, Plan, Trace, World};

/// Threads: a run takes one, and most machines that build this have two to spare.
const THREADS: usize = 2;
/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_millis(500);

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Total {
    /// Runs.
    pub runs: u64,
    /// Events in all.
    pub events: u64,
    /// Answers that were judged.
    pub verdicts: u64,
    /// Time that it took.
    pub took: Duration,
    /// Runs that broke an invariant, by seed.
    pub broken: Vec<(u64, Broken)>,
}

impl Total {
    /// One line.
    #[must_use]
    pub fn summary(&self, each: Duration) -> String {
        let virtual_hours =
            each.as_secs_f64() * f64::from(u32::try_from(self.runs).unwrap_or(u32::MAX)) / 3600.0;
        let seconds = self.took.as_secs_f64().max(0.001);
        let per_second = f64::from(u32::try_from(self.events / 1000).unwrap_or(u32::MAX)) / seconds;
        format!(
            "{} runs, {virtual_hours:.1} virtual hours, {} events, {} answers judged, {seconds:.1} s, {per_second:.0} thousand events/s, {} broken",
            self.runs,
            self.events,
            self.verdicts,
            self.broken.len()
        )
    }
}

/// Runs so many seeds from `first` on, each for that long. Stops at the first that breaks an
/// invariant if asked to.
#[must_use]
pub fn run(first: u64, seeds: u64, each: Duration, stop_at_first: bool) -> Total {
    let next = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds || done.load(Ordering::Relaxed) {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    let (result, _) = World::new(Plan::of(seed, each), Trace::quiet()).run();
                    let mut total = total.lock().expect("no thread panics with it");
                    total.runs += 1;
                    match result {
                        Ok(ran) => {
                            total.events += ran.events;
                            total.verdicts += ran.verdicts;
                        }
                        Err(broken) => {
                            total.broken.push((seed, broken));
                            done.fetch_or(stop_at_first, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        if std::io::stderr().is_terminal() {
            scope.spawn(|| progress(&total, &next, seeds, begun));
        }
    });
    let mut total = total.into_inner().expect("no thread panics with it");
    total.took = begun.elapsed();
    total.broken.sort_by_key(|(seed, _)| *seed);
    total
}

fn progress(total: &Mutex<Total>, next: &AtomicU64, seeds: u64, begun: Instant) {
    let mut err = std::io::stderr();
    while next.load(Ordering::Relaxed) < seeds {
        thread::sleep(PROGRESS);
        let (runs, broken) = {
            let total = total.lock().expect("no thread panics with it");
            (total.runs, total.broken.len())
        };
        let seconds = begun.elapsed().as_secs();
        // A terminal that is gone is no reason to stop.
        let _ = write!(
            err,
            "\r{runs} of {seeds} runs, {broken} broken, {seconds} s "
        );
        let _ = err.flush();
    }
    let _ = writeln!(err);
}
