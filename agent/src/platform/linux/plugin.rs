//! Runs one program of somebody else's so that nothing of it remains.
//!
//! The agent starts itself again as a small keeper (`muster-agent run-plugin`), which starts the
//! program. The keeper is a child subreaper: whatever the program starts, through setsid and any
//! number of forks, stays among the keeper's descendants until the keeper has killed and buried
//! it. That happens when the program ends, at its time limit, and when the agent goes away (the
//! keeper's standard input ends). The program's environment carries a mark besides, by which the
//! agent finds what is left should the keeper itself be killed.
//!
//! ```text
//!   agent --Order--> keeper --spawn--> program --fork--> ...
//!   agent <-Ending-- keeper  (none of them is left)
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use muster_runtime::clock;
use rustix::{
    fs::{FlockOperation, flock},
    process::{
        Pid, PidfdFlags, Signal, WaitOptions, getpid, pidfd_open, pidfd_send_signal,
        set_child_subreaper, wait,
    },
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    net::unix::pipe,
    process::Command,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

/// First argument that makes the agent's program a keeper.
pub const KEEPER: &str = "run-plugin";
/// Variable that marks the processes of one run.
const MARK: &str = "MUSTER_RUN";
/// Bytes of a program's output that are kept: what Nagios keeps of a plugin's, halved.
pub const MAX_OUTPUT: usize = 4 << 10;
/// An order is written by the agent from a file of at most 1 MiB.
const MAX_ORDER: u64 = 2 << 20;
/// How long what was killed may take to be gone. Only a process that waits for a dead disk or file
/// server takes longer, and it may take for ever.
const BURY_WITHIN: Duration = Duration::from_secs(3);
/// Between two looks at what is left: a killed process is gone within a millisecond or two.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Between two tries for the lock that an earlier run holds.
const LOCK_AGAIN: Duration = Duration::from_millis(50);
/// Processes that are named when they cannot be killed.
const MAX_NAMED: usize = 8;

/// What the agent asks of a keeper.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Who it runs as; none for who the agent runs as.
    pub account: Option<Account>,
    /// It is ended after this time.
    pub limit: Duration,
    /// File that is locked while it runs, so that there are never two at once.
    pub lock: Option<PathBuf>,
    /// Names this run among all.
    pub mark: String,
}

/// A user of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Id of the user's first group.
    pub gid: u32,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal of somebody else.
    Signalled(i32),
    /// Killed at its limit.
    TimedOut,
    /// It never ran, because of this.
    NotStarted(String),
    /// It never ran: an earlier run has not ended.
    Busy,
}

/// What a keeper tells at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// How the program ended.
    pub how: How,
    /// What it wrote to standard output, as far as kept.
    pub output: String,
    /// What it wrote to standard error, as far as kept.
    pub errors: String,
    /// It wrote more than is kept.
    pub is_cut: bool,
    /// Processes that the program left behind, or that ran at its limit, and that are gone now.
    pub killed: usize,
    /// Processes that could not be killed.
    pub left: Vec<i32>,
}

impl Ending {
    fn without_run(how: How) -> Self {
        Self {
            how,
            output: String::new(),
            errors: String::new(),
            is_cut: false,
            killed: 0,
            left: Vec::new(),
        }
    }
}

/// The account of that name in `/etc/passwd`: accounts that plugins run as are the machine's own.
///
/// # Errors
/// If the file cannot be read or has no such name.
pub fn account(name: &str) -> io::Result<Account> {
    let text = fs::read_to_string("/etc/passwd")?;
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_it = fields.next() == Some(name);
        let (uid, gid) = (fields.nth(1)?, fields.next()?);
        is_it.then(|| Some((uid.parse().ok()?, gid.parse().ok()?)))?
    });
    match found {
        Some((uid, gid)) => Ok(Account { uid, gid }),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("/etc/passwd has no user {name}"),
        )),
    }
}

/// The user that this process runs as.
#[must_use]
pub fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The keeper's whole life: reads its order, runs it, tells the ending.
///
/// # Errors
/// If it is not started as the agent does it.
pub fn keep() -> io::Result<()> {
    // Its own place in the tree is settled before anything is started.
    set_child_subreaper(Some(getpid()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ending = runtime.block_on(async {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let input = pipe::Receiver::from_file(input)?;
        let mut input = BufReader::new(input.take(MAX_ORDER));
        let mut line = String::new();
        input.read_line(&mut line).await?;
        let order: Order = serde_json::from_str(&line)?;
        io::Result::Ok(obey(&order, agent_gone(input)).await)
    });
    if let Ok(Some(ending)) = &ending {
        // Where nobody reads it any more there is nobody to tell either.
        let _ = serde_json::to_writer(io::stdout(), ending);
    }
    ending.map(drop)
}

/// Until the agent closes its end, or the service manager ends this service.
async fn agent_gone(mut input: impl AsyncRead + Unpin) {
    let mut byte = [0];
    let closed = async {
        // More words are not expected; any ends the wait, as an error does.
        let _ = input.read(&mut byte).await;
    };
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            () = closed => {}
            _ = terminated.recv() => {}
        },
        Err(_) => closed.await,
    }
}

/// Runs the order; none if the agent went away meanwhile.
async fn obey(order: &Order, gone: impl Future<Output = ()>) -> Option<Ending> {
    let begun = clock::boot();
    tokio::pin!(gone);
    let lock = tokio::select! {
        () = &mut gone => return None,
        lock = timeout(order.limit, locked(order.lock.as_deref())) => lock,
    };
    let Ok(_lock) = lock else {
        return Some(Ending::without_run(How::Busy));
    };
    let mut command = command(order);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Some(Ending::without_run(How::NotStarted(error.to_string()))),
    };
    let (mut said, mut erred) = (Kept::default(), Kept::default());
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let left = order.limit.saturating_sub(clock::boot() - begun);
    let ended = {
        let reads = async {
            tokio::join!(said.read(&mut out), erred.read(&mut err));
            // Closed pipes are not yet the end.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            status = child.wait() => Some(status),
            () = reads => None,
            () = sleep(left) => None,
            () = &mut gone => {
                bury().await;
                return None;
            }
        }
    };
    let how = match ended {
        None => How::TimedOut,
        Some(Err(error)) => How::NotStarted(error.to_string()),
        Some(Ok(status)) => match status.code() {
            Some(code) => How::Exited(code),
            None => {
                use std::os::unix::process::ExitStatusExt as _;
                How::Signalled(status.signal().unwrap_or(0))
            }
        },
    };
    let (killed, left) = bury().await;
    // Nobody holds the pipes any more, unless it cannot be killed: what is in them is the rest.
    let _ = timeout(Duration::from_millis(200), async {
        tokio::join!(said.read(&mut out), erred.read(&mut err))
    })
    .await;
    Some(Ending {
        how,
        is_cut: said.is_cut || erred.is_cut,
        output: said.text(),
        errors: erred.text(),
        killed,
        left,
    })
}

fn command(order: &Order) -> Command {
    let mut command = std::process::Command::new(&order.program);
    command
        .args(&order.arguments)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C.UTF-8")
        .env(MARK, &order.mark)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if let Some(account) = order.account {
        // Other groups are dropped with it.
        command.uid(account.uid).gid(account.gid);
    }
    command.into()
}

/// Waits until no other run of the check holds its lock. Where there is no folder for it yet, no
/// agent runs either.
async fn locked(path: Option<&Path>) -> Option<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path?)
        .ok()?;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        sleep(LOCK_AGAIN).await;
    }
    Some(file)
}

/// The first bytes of a stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Kept {
    /// Reads to the end. What is too much is read and dropped: a plugin that meets a closed pipe
    /// or a full one would not say how it went.
    async fn read(&mut self, stream: &mut Option<impl AsyncRead + Unpin>) {
        let Some(stream) = stream else { return };
        let mut chunk = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            let room = MAX_OUTPUT - self.bytes.len();
            self.is_cut |= count > room;
            self.bytes.extend_from_slice(&chunk[..count.min(room)]);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Kills all descendants until none is left: how many lived, and which cannot be killed.
async fn bury() -> (usize, Vec<i32>) {
    let begun = clock::boot();
    let mut seen = BTreeSet::new();
    loop {
        let none_left = loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        if none_left {
            return (seen.len(), Vec::new());
        }
        let living = descendants();
        for process in &living {
            seen.insert(process.pid);
            process.kill();
        }
        if clock::boot() - begun > BURY_WITHIN {
            let left = living.iter().map(|process| process.pid);
            return (seen.len(), left.take(MAX_NAMED).collect());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// A process, told apart from a later one of the same id by when it started.
struct Found {
    pid: i32,
    started: u64,
}

impl Found {
    fn kill(&self) {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return;
        };
        // The descriptor names the process that has the id now, and who that is is asked after.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        let now = procfs::process::Process::new(self.pid).and_then(|process| process.stat());
        if now.is_ok_and(|stat| stat.starttime == self.started) {
            // One that is gone already, or that another user owns, shows in the next look.
            let _ = pidfd_send_signal(&handle, Signal::KILL);
        }
    }
}

/// All living descendants of this process.
fn descendants() -> Vec<Found> {
    let Ok(all) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let all: Vec<_> = all
        .filter_map(|process| process.ok()?.stat().ok())
        .filter(|stat| !matches!(stat.state, 'Z' | 'X'))
        .collect();
    let mut family = vec![getpid().as_raw_nonzero().get()];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        for stat in all.iter().filter(|stat| stat.ppid == parent) {
            family.push(stat.pid);
            found.push(Found {
                pid: stat.pid,
                started: stat.starttime,
            });
        }
        at += 1;
    }
    found
}

/// All living processes whose environment carries the mark of this run.
fn marked(mark: &str) -> Vec<Found> {
    let Ok(all) = procfs::process::all_processes() else {
        return Vec::new();
    };
    let wanted = format!("{MARK}={mark}");
    let carries = |process: procfs::process::Process| {
        // Those of others may not be read, and then they are none of ours.
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).ok()?;
        let is_it = environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes());
        let stat = process.stat().ok()?;
        is_it.then_some(Found {
            pid: process.pid,
            started: stat.starttime,
        })
    };
    all.filter_map(Result::ok).filter_map(carries).collect()
}

/// Kills every process of this run by its mark, for when the keeper could not: how many there
/// were, and which are still there. Blocks for as long as they take to go.
#[must_use]
pub fn sweep(mark: &str) -> (usize, Vec<i32>) {
    let begun = clock::boot();
    let mut seen = BTreeSet::new();
    loop {
        let living = marked(mark);
        if living.is_empty() {
            return (seen.len(), Vec::new());
        }
        for process in &living {
            seen.insert(process.pid);
            process.kill();
        }
        if clock::boot() - begun > BURY_WITHIN {
            let left = living.iter().map(|process| process.pid);
            return (seen.len(), left.take(MAX_NAMED).collect());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name() {
        assert_eq!(account("root").unwrap(), Account { uid: 0, gid: 0 });
        let error = account("nosuchuser").unwrap_err();
        assert!(error.to_string().contains("nosuchuser"), "{error}");
    }

    #[test]
    fn a_run_that_left_nothing_needs_no_sweep() {
        assert_eq!(sweep("no-such-run"), (0, Vec::new()));
    }
}
