//! Ends a process whose loops no longer turn, so that whoever supervises it starts it anew.
//!
//! A plain thread looks every [`LOOK`] at the signs of life that the loops leave, and judges by its
//! own looks (see [`vigil`](muster_core::vigil)): a process that was stopped as a whole is not
//! suspected for it. While all turn, the service manager's watchdog is told so; once one is quiet
//! it is not, and once one is wedged the process ends with [`WEDGED`] and a line in its log.
//!
//! After shutdown was requested loops may rest; the process has [`END_WITHIN`] to end then.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use muster_core::vigil::{Sight, Vigil};

use crate::{service, shutdown::Shutdown};

/// Exit code of a process that ended itself because a part of it was stuck (`EX_SOFTWARE`).
pub const WEDGED: i32 = 70;
/// Between two looks: short beside every limit, and nothing beside the cost of a beat.
pub const LOOK: Duration = Duration::from_secs(1);
/// Looks after a request to end: longer than any grace period of ours, shorter than the patience
/// of a service manager.
const END_WITHIN: u32 = 12;
/// The log may be what is stuck: the last word is waited for no longer than this.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);

/// A loop leaves its sign of life here at each turn. Clones are the same.
#[derive(Clone, Default)]
pub struct Mark {
    turns: Arc<AtomicU64>,
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mark").field(&self.turns()).finish()
    }
}

impl Mark {
    /// The loop has turned.
    pub fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Turns so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}

/// One loop under watch.
struct Watched {
    name: &'static str,
    limit: u32,
    turns: Box<dyn FnMut() -> u64 + Send>,
}

/// The loops of a process.
#[derive(Default)]
pub struct Watchdog {
    watched: Vec<Watched>,
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.watched.iter().map(|watched| watched.name).collect();
        f.debug_tuple("Watchdog").field(&names).finish()
    }
}

impl Watchdog {
    /// Watches nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A mark for the loop `name`, which must turn at least every `limit` of looks.
    #[must_use]
    pub fn mark(&mut self, name: &'static str, limit: Duration) -> Mark {
        let mark = Mark::default();
        let turns = mark.clone();
        self.watch(name, limit, move || turns.turns());
        mark
    }

    /// Watches a loop whose turns are told by `turns`.
    pub fn watch(
        &mut self,
        name: &'static str,
        limit: Duration,
        turns: impl FnMut() -> u64 + Send + 'static,
    ) {
        self.watched.push(Watched {
            name,
            limit: u32::try_from(limit.as_secs()).unwrap_or(u32::MAX),
            turns: Box::new(turns),
        });
    }

    /// Watches until the guard is dropped.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(self, shutdown: Shutdown) -> io::Result<Guard> {
        self.start_with(shutdown, LOOK, end)
    }

    fn start_with(
        mut self,
        shutdown: Shutdown,
        look: Duration,
        end: impl Fn(&str) + Send + 'static,
    ) -> io::Result<Guard> {
        let (over, stop) = mpsc::channel::<()>();
        let mut vigil = Vigil::new(self.watched.iter().map(|watched| watched.limit));
        let mut ending = 0;
        let keep = move || {
            // Timed out is a look; anything else is the end of the guard.
            while stop.recv_timeout(look) == Err(mpsc::RecvTimeoutError::Timeout) {
                if shutdown.is_requested() {
                    ending += 1;
                    if ending >= END_WITHIN {
                        end("the end of all tasks");
                        return;
                    }
                    continue;
                }
                let counts: Vec<u64> = self.watched.iter_mut().map(|w| (w.turns)()).collect();
                match vigil.look(&counts) {
                    Sight::Alive => service::alive(),
                    Sight::Quiet(_) => {}
                    Sight::Wedged(index) => {
                        end(self.watched[index].name);
                        return;
                    }
                }
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(keep)?;
        Ok(Guard { _over: over })
    }
}

/// Ends the watch when it is dropped.
#[derive(Debug)]
pub struct Guard {
    _over: mpsc::Sender<()>,
}

/// Says what is stuck and ends the process, even where saying so is what is stuck.
fn end(what: &str) {
    let (said, wait) = mpsc::channel();
    let line = what.to_owned();
    let word = thread::Builder::new().spawn(move || {
        tracing::error!(
            stuck = line,
            exit.code = WEDGED,
            "a part of this process is stuck; it ends itself to be started anew"
        );
        // Whoever waits may have given up.
        let _ = said.send(());
    });
    if word.is_ok() {
        // The end comes either way.
        let _ = wait.recv_timeout(LAST_WORD_WITHIN);
    }
    std::process::exit(WEDGED);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const QUICK: Duration = Duration::from_millis(2);

    /// Starts the watchdog with short looks; what it ends the process for comes out of the channel.
    fn watch(dog: Watchdog, shutdown: &Shutdown) -> (Guard, mpsc::Receiver<String>) {
        let (sender, ended) = mpsc::channel();
        let end = move |what: &str| sender.send(what.to_owned()).unwrap();
        (dog.start_with(shutdown.clone(), QUICK, end).unwrap(), ended)
    }

    #[test]
    fn a_loop_that_no_longer_turns_ends_the_process_and_is_named() {
        let mut dog = Watchdog::new();
        let turning = dog.mark("turning", Duration::from_secs(1000));
        let _stuck = dog.mark("stuck", Duration::from_secs(5));
        turning.turn();
        let (_guard, ended) = watch(dog, &Shutdown::new());
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), "stuck");
    }

    #[test]
    fn whoever_turns_lives_on_and_the_guard_ends_the_watch() {
        let mut dog = Watchdog::new();
        let (asked, looks) = mpsc::channel();
        let mut turns = 0;
        dog.watch("turning", Duration::from_secs(2), move || {
            turns += 1;
            let _ = asked.send(turns);
            turns
        });
        let (guard, ended) = watch(dog, &Shutdown::new());
        for wanted in 1..20_u64 {
            assert_eq!(looks.recv_timeout(PATIENCE).unwrap(), wanted);
        }
        assert_eq!(ended.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(guard);
        let over = ended.recv_timeout(PATIENCE);
        assert_eq!(over, Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_process_that_does_not_end_when_asked_is_ended() {
        let mut dog = Watchdog::new();
        let _resting = dog.mark("resting", Duration::from_secs(5));
        let shutdown = Shutdown::new();
        shutdown.request();
        let (_guard, ended) = watch(dog, &shutdown);
        assert_eq!(
            ended.recv_timeout(PATIENCE).unwrap(),
            "the end of all tasks"
        );
    }
}
