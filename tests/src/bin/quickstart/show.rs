//! What the terminal shows: progress, the live table, and at the end the journals.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _, stdout},
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use muster_tests::{binaries, broker::Broker};
use rustix::termios::tcgetwinsize;

/// Between two looks at the table: people see seconds.
const REDRAW: Duration = Duration::from_secs(1);

/// Events under the live table: as many as the demo has.
const EVENTS: usize = 8;

/// Tells what is being done. Beside a live table, details are kept for it instead.
pub(crate) struct Progress {
    begun: Instant,
    kept: Option<Mutex<Vec<String>>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            kept: None,
        }
    }
}

impl Progress {
    /// One whose details are shown under the live table.
    pub(crate) fn for_table() -> Self {
        Self {
            kept: Some(Mutex::default()),
            ..Self::default()
        }
    }

    /// A step begins.
    pub(crate) fn step(&self, what: &str) {
        self.say(&format!(
            "[{:5.1} s] {what}",
            self.begun.elapsed().as_secs_f64()
        ));
    }

    /// Something about the step.
    pub(crate) fn detail(&self, what: &str) {
        match &self.kept {
            Some(kept) => {
                let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                if kept.len() == EVENTS {
                    kept.remove(0);
                }
                kept.push(what.to_owned());
            }
            None => self.say(&format!("          {what}")),
        }
    }

    /// A line as it is.
    pub(crate) fn say(&self, line: &str) {
        let mut out = stdout().lock();
        // A terminal that has gone must not keep all from being taken down.
        drop(writeln!(out, "{line}").and_then(|()| out.flush()));
    }

    fn events(&self) -> Vec<String> {
        let Some(kept) = &self.kept else {
            return Vec::new();
        };
        let kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.clone()
    }
}

/// What a command of the CLI prints.
async fn told(broker: &Broker, arguments: &[&str]) -> Result<String> {
    let output = broker.cli(arguments).await?;
    ensure!(output.code == Some(0), "{arguments:?}: {}", output.stderr);
    Ok(output.stdout)
}

/// The commands to try next, with the paths of this very broker.
fn commands(broker: &Broker, name: &str) -> Result<String> {
    let binary = binaries::fresh()?.broker;
    // Short where the reader stands in the repository.
    let binary = binary
        .strip_prefix(binaries::repository())
        .unwrap_or(&binary);
    let cli = binary.display();
    let config = broker.folder().config();
    let mut text = format!(
        "In another terminal:\n  export MUSTER_CONFIG={}\n",
        config.display()
    );
    for (command, note) in [
        (
            format!("check {name}"),
            "exits 0 connectable, 1 not, 2 cannot tell",
        ),
        (
            format!("check {name} --output json"),
            "every reason with its remedy",
        ),
        (format!("host {name}"), "its checks"),
        ("history demo-upgrade".to_owned(), "its journal"),
        (format!("drain {name} --reason disks"), "no new sessions"),
        ("watch".to_owned(), "every change"),
    ] {
        writeln!(text, "  {cli} {command:<24} # {note}")?;
    }
    Ok(text)
}

/// A line of the table as the terminal takes it: a wrapped one would shift all below it.
fn fitting(line: &str, width: usize) -> String {
    line.chars().take(width).collect()
}

/// Draws the table anew as long as it is wanted. Without a terminal it is printed when it changes.
pub(crate) async fn live_table(broker: &Broker, name: &str, events: &Progress) -> Result<()> {
    let terminal = stdout().is_terminal();
    let mut ticks = tokio::time::interval(REDRAW);
    let mut last = String::new();
    loop {
        ticks.tick().await;
        // Without a terminal, and on one that does not know its width, lines are as long as they are.
        let width = tcgetwinsize(stdout()).map_or(0, |size| size.ws_col);
        let width = if width == 0 { usize::MAX } else { width.into() };
        let table = told(broker, &["hosts"]).await?;
        let events = events
            .events()
            .into_iter()
            .map(|event| format!("- {event}"));
        let mut text = String::new();
        for line in table.lines().map(str::to_owned).chain(events) {
            writeln!(text, "{}", fitting(&line, width))?;
        }
        writeln!(text, "\n{}\nCtrl-C ends all.", commands(broker, name)?)?;
        if text == last {
            continue;
        }
        let mut out = stdout().lock();
        if terminal {
            // Home, and clear to the end of the screen after each line: no flicker.
            let drawn = text.replace('\n', "\x1b[K\n");
            write!(out, "\x1b[H{drawn}\x1b[J").context("the terminal has gone")?;
        } else {
            write!(out, "{text}").context("nobody reads")?;
        }
        out.flush().context("the terminal has gone")?;
        last = text;
    }
}

/// The journals of all hosts, newest first, and the table.
pub(crate) async fn everything(broker: &Broker, demo: &[&str], name: &str) -> Result<()> {
    let mut text = String::new();
    for host in demo.iter().chain([&name]) {
        let history = told(broker, &["history", host]).await?;
        writeln!(text, "\njournal of {host}\n{history}")?;
    }
    let own = broker.cli(&["check", name]).await?;
    writeln!(text, "this machine\n{}", own.stdout)?;
    writeln!(text, "hosts\n{}", told(broker, &["hosts"]).await?)?;
    let mut out = stdout().lock();
    write!(out, "{text}").context("nobody reads")?;
    out.flush().context("nobody reads")
}
