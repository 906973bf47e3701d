//! `exec`: a plugin by the protocol of Nagios.
//!
//! It runs as a user without rights, within its limit, never twice at once, and nothing that it
//! started outlives its run: see [`plugin`]. The program and its arguments stand in this machine's
//! own file alone; arguments are never told, because they may hold a password.

use std::{os::unix::fs::MetadataExt as _, path::PathBuf, process::Stdio, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy, SessionCounts, UnknownCause},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use super::{
    Definition, OneAtATime, Place, Wrong, cannot_run, definition, file_fresh::wrong_path, nagios,
};
use crate::platform::plugin::{self, Account, Ending, How, Order};

/// Who plugins run as where the agent is root.
const DEFAULT_USER: &str = "nobody";
/// Arguments of a plugin.
const MAX_ARGUMENTS: usize = 128;
/// A keeper tells two outputs of 4 KiB, which JSON makes up to six times as long.
const MAX_ENDING: u64 = 64 << 10;

definition! {
    /// Keys of `kind = "exec"`.
    Exec {
        /// The program.
        command: PathBuf,
        /// Its arguments; no shell reads them.
        #[serde(default)]
        args: Vec<String>,
        /// User that it runs as.
        user: Option<String>,
        /// Its performance data says how many sessions people have.
        #[serde(default)]
        counts_sessions: bool,
        #[serde(skip)]
        asked: OneAtATime,
    }
}

impl Definition for Exec {
    const KIND: &'static str = "exec";

    fn wrong(&self) -> Option<Wrong> {
        if let Some((_, value, allowed)) = wrong_path(&self.command) {
            return Some(("command", value, allowed));
        }
        let count = self.args.len();
        (count > MAX_ARGUMENTS).then(|| {
            let allowed = format!("at most {MAX_ARGUMENTS} arguments");
            ("args", count.to_string(), allowed)
        })
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        self.run(place).boxed()
    }
}

impl Exec {
    async fn run(&self, place: &Place) -> Observation {
        let program = self.command.display().to_string();
        let account = match self.account() {
            Ok(account) => account,
            Err(why) => {
                return cannot_run(
                    &program,
                    "PLUGIN_USER",
                    format!("it cannot run as it should: {why}"),
                    Remedy::text("Correct `user` in checks.d, or run the agent as root."),
                );
            }
        };
        if let Some(problem) = self.exposed(account, place.budget / 10).await {
            return cannot_run(
                &program,
                "PLUGIN_EXPOSED",
                problem,
                Remedy::text("See who changed it, then let nobody else write it.")
                    .command(format!("chown root {program} && chmod go-w {program}")),
            );
        }
        let order = Order {
            program: self.command.clone(),
            arguments: self.args.clone(),
            account,
            // The rest is for killing what it leaves, and for telling so.
            limit: place.budget * 8 / 10,
            lock: Some(place.locks.join(format!("{}.lock", place.name))),
            mark: uuid::Uuid::from_u128(rand::random()).to_string(),
        };
        match keep(place, &order).await {
            Ok(ending) => self.judge(place, &program, order.limit, &ending),
            Err(why) => {
                let mark = order.mark;
                let swept = tokio::task::spawn_blocking(move || plugin::sweep(&mark)).await;
                let (killed, left) = swept.unwrap_or_default();
                let mut seen = cannot_run(
                    &program,
                    "PLUGIN_KEEPER",
                    format!("what keeps the plugin broke: {why}"),
                    Remedy::text("See whether the machine is out of memory or processes.")
                        .command("dmesg | grep -i -E 'killed process|oom' | tail"),
                );
                remember(&mut seen, killed, &left);
                seen
            }
        }
    }

    /// Who it runs as; none for who the agent runs as.
    fn account(&self) -> Result<Option<Account>, String> {
        let me = plugin::own_user();
        let wanted = match &self.user {
            None if me != 0 => return Ok(None),
            None => DEFAULT_USER,
            Some(user) => user,
        };
        let account = plugin::account(wanted).map_err(|error| error.to_string())?;
        if account.uid == me && me != 0 {
            return Ok(None);
        }
        if me != 0 {
            return Err(format!("only root can run a program as {wanted}"));
        }
        Ok(Some(account))
    }

    /// Why somebody else could decide what runs here; none where nobody can, or where there is no
    /// program, which its start tells better.
    async fn exposed(&self, account: Option<Account>, limit: Duration) -> Option<String> {
        let command = self.command.clone();
        let asked = self.asked.ask(limit, move || std::fs::metadata(command));
        let metadata = match asked.await {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("who can change it cannot be told: {error}")),
        };
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        let me = plugin::own_user();
        let is_own = owner == 0 || owner == me || account.is_some_and(|it| it.uid == owner);
        (!is_own || mode & 0o022 != 0).then(|| {
            format!(
                "{} belongs to user {owner} and has mode {mode:04o}: others could change it",
                self.command.display()
            )
        })
    }

    fn judge(&self, place: &Place, program: &str, limit: Duration, ending: &Ending) -> Observation {
        let said = nagios::read(&ending.output);
        let complaint = ending.errors.lines().next().unwrap_or_default().trim();
        let unknown = Outcome::Unknown(UnknownCause::CannotRun);
        let (outcome, code, message) = match &ending.how {
            How::Exited(code) => match nagios::outcome(*code) {
                Some(outcome) => (outcome, exit_code(outcome), said.first.clone()),
                None => (
                    unknown,
                    "PLUGIN_EXIT",
                    format!("it ended with {code}, not with 0 to 3"),
                ),
            },
            How::Signalled(signal) => (
                unknown,
                "PLUGIN_KILLED",
                format!("signal {signal} ended it"),
            ),
            How::TimedOut => (
                Outcome::Unknown(UnknownCause::TimedOut),
                "PLUGIN_TIMED_OUT",
                format!("it was ended after {limit:.1?}"),
            ),
            How::NotStarted(why) => (
                unknown,
                "PLUGIN_NOT_STARTED",
                format!("{program} cannot be started: {why}"),
            ),
            How::Busy => (
                unknown,
                "PLUGIN_STILL_RUNS",
                "an earlier run of it has not ended".to_owned(),
            ),
        };
        let message = match (message.is_empty(), complaint.is_empty()) {
            (false, _) => message,
            (true, false) => complaint.to_owned(),
            (true, true) => "it said nothing".to_owned(),
        };
        let sessions = self.counts_sessions.then(|| match ending.how {
            How::Exited(0..=2) => said.sessions(),
            _ => SessionCounts::default(),
        });
        let mut steps = said.more;
        if !matches!(ending.how, How::Exited(0..=3)) && !said.first.is_empty() {
            steps.insert(0, format!("it said: {}", said.first));
        }
        if !complaint.is_empty() {
            steps.push(format!("to standard error: {complaint}"));
        }
        if ending.is_cut {
            steps.push(format!(
                "it wrote more than the {} bytes that are kept",
                plugin::MAX_OUTPUT
            ));
        }
        let mut seen = Observation::new(outcome, message.clone()).with(Finding {
            subject: program.to_owned(),
            code: code.to_owned(),
            message,
            steps,
            remedy: (outcome != Outcome::Pass).then(|| remedy(place, program, &ending.how)),
        });
        remember(&mut seen, ending.killed, &ending.left);
        seen.sessions = sessions;
        seen
    }
}

fn exit_code(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass | Outcome::NotApplicable => "PLUGIN_OK",
        Outcome::Warn => "PLUGIN_WARNING",
        Outcome::Fail => "PLUGIN_CRITICAL",
        Outcome::Unknown(_) => "PLUGIN_UNKNOWN",
    }
}

fn remedy(place: &Place, program: &str, how: &How) -> Remedy {
    let again = format!("muster-agent doctor --check {}", place.name);
    match how {
        How::Exited(0..=3) => Remedy::text("Do what it says, then run it again.").command(again),
        How::NotStarted(_) => Remedy::text(
            "See whether the program is there and its user may run it; correct `command` in \
             checks.d.",
        )
        .command(format!("ls -l {program}")),
        How::TimedOut => Remedy::text(
            "See what it waits for. If it needs longer, give it a longer `timeout` in checks.d.",
        )
        .command(again),
        How::Exited(_) | How::Signalled(_) => Remedy::text(
            "It is broken, or no plugin: run it by hand as its user and look at its exit code.",
        )
        .command(again),
        How::Busy => Remedy::text("Another doctor may run it; else see what it waits for.")
            .command(format!(
                "ps -eo pid,stat,wchan:32,lstart,args | grep {program}"
            )),
    }
}

/// Adds what became of the processes of a run.
fn remember(seen: &mut Observation, killed: usize, left: &[i32]) {
    let Some(finding) = seen.findings.first_mut() else {
        return;
    };
    if killed > 0 {
        finding
            .steps
            .push(format!("killed what it left behind: {killed} processes"));
    }
    if !left.is_empty() {
        let ids: Vec<_> = left.iter().map(ToString::to_string).collect();
        finding
            .steps
            .push(format!("cannot be killed: processes {}", ids.join(", ")));
    }
}

/// Has a keeper obey the order. When this is dropped the keeper kills the plugin by itself.
async fn keep(place: &Place, order: &Order) -> Result<Ending, String> {
    let told = |error: std::io::Error| error.to_string();
    let mut keeper = Command::new(&place.keeper)
        .arg(plugin::KEEPER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Ctrl-C at a terminal is for the agent; the keeper follows it in order.
        .process_group(0)
        .spawn()
        .map_err(told)?;
    let (Some(mut orders), Some(endings)) = (keeper.stdin.take(), keeper.stdout.take()) else {
        return Err("it has no pipes".to_owned());
    };
    let line = serde_json::to_string(order).map_err(|error| error.to_string())?;
    orders.write_all(line.as_bytes()).await.map_err(told)?;
    orders.write_all(b"\n").await.map_err(told)?;
    let mut ending = Vec::new();
    endings
        .take(MAX_ENDING)
        .read_to_end(&mut ending)
        .await
        .map_err(told)?;
    let status = keeper.wait().await.map_err(told)?;
    serde_json::from_slice(&ending).map_err(|_| format!("it ended with {status}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::refused;

    #[test]
    fn a_program_is_named_by_its_whole_path() {
        let error = refused("kind = 'exec'\ncommand = 'check_disk'");
        assert!(
            error.contains("check.1.command") && error.contains("absolute"),
            "{error}"
        );
    }
}
