//! Child processes with their logs: started, signalled by their process id, always ended.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};

pub use rustix::process::Signal;

use crate::wait;

/// Lines of a log that are printed when its process is dropped: a start with its last minutes.
const TAIL_LINES: usize = 120;

/// A child process whose output goes to a file. It is killed when dropped, and the end of its log
/// is printed then: test runners show that of failing tests alone.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    quiet: bool,
}

/// What a command that has ended said.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Process {
    /// Starts `command` with its output appended to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || {
            File::options()
                .create(true)
                .append(true)
                .open(log)
                .with_context(|| format!("cannot write {}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
            quiet: false,
        })
    }

    /// Prints no log at the end.
    pub fn be_quiet(&mut self) {
        self.quiet = true;
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self
            .child
            .id()
            .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
            .with_context(|| format!("{} has ended", self.name))?;
        kill_process(id, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Ends it with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// When it has ended before.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.ended(wait::PATIENCE).await.map(drop)
    }

    /// Asks it to end with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it has ended before, or does not end within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(limit).await
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        Ok(wait::within(&what, limit, self.child.wait()).await??)
    }

    /// Its exit status if it has ended.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// All that it wrote.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log)
            .map_err(|error| anyhow!("cannot read {}: {error}", self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.quiet {
            return;
        }
        let log = self.log().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        eprintln!("---- log of {} ----\n{}", self.name, tail.join("\n"));
    }
}

/// Runs a command to its end and gives what it said.
///
/// # Errors
/// When it cannot be started or does not end within `limit`.
pub async fn run(mut command: Command, limit: Duration) -> Result<Output> {
    let what = format!("{command:?}", command = command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = wait::within(&what, limit, command.output())
        .await?
        .with_context(|| format!("cannot run {what}"))?;
    Ok(Output {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
