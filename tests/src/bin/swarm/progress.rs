//! What is being done: a line that is written over on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal as _, Write as _, stderr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two plain lines of one step: a log is read later.
const PLAIN: Duration = Duration::from_secs(10);
/// Cells of a bar.
const CELLS: u64 = 24;

/// Tells on standard error what is being done; standard output is for the report.
pub(crate) struct Progress {
    begun: Instant,
    terminal: bool,
    plain: Mutex<Option<Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            terminal: stderr().is_terminal(),
            plain: Mutex::new(None),
        }
    }

    /// A step begins, or something happened that shall stay.
    pub(crate) fn say(&self, what: &str) {
        *self.plain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        self.write(&format!("{clear}[{:6.1} s] {what}\n", self.seconds()));
    }

    /// How far a step is.
    pub(crate) fn bar(&self, what: &str, done: u64, of: u64) {
        if self.terminal {
            let line = format!("[{:6.1} s] {} {what}", self.seconds(), bar(done, of));
            self.write(&format!("\r\x1b[K{line}"));
            return;
        }
        let mut plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner);
        let due = plain.is_none_or(|last| last.elapsed() >= PLAIN);
        if due {
            // The first line of a step comes after a while: most steps are short.
            if plain.replace(Instant::now()).is_some() {
                self.write(&format!(
                    "[{:6.1} s]   {done}/{of} {what}\n",
                    self.seconds()
                ));
            }
        }
    }

    /// Lets a time pass in which nobody is asked anything.
    pub(crate) async fn pass(&self, what: &str, time: Duration) {
        let begun = Instant::now();
        let end = begun + time;
        while Instant::now() < end {
            self.bar(what, begun.elapsed().as_secs(), time.as_secs());
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
        }
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    fn write(&self, text: &str) {
        let mut out = stderr().lock();
        // A terminal that has gone must not keep all from being taken down.
        drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    }
}

fn bar(done: u64, of: u64) -> String {
    let filled = (done.min(of) * CELLS).checked_div(of).unwrap_or(CELLS);
    let cells: String = (0..CELLS)
        .map(|cell| if cell < filled { '#' } else { '-' })
        .collect();
    format!("[{cells}] {done}/{of}")
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_fills_and_never_overflows() {
        assert_eq!(bar(0, 2), format!("[{}] 0/2", "-".repeat(24)));
        assert_eq!(
            bar(1, 2),
            format!("[{}{}] 1/2", "#".repeat(12), "-".repeat(12))
        );
        assert_eq!(bar(3, 2), format!("[{}] 3/2", "#".repeat(24)));
        assert_eq!(bar(0, 0), format!("[{}] 0/0", "#".repeat(24)));
    }
}
