//! Own checks end to end: a real broker, a real agent, plugins that misbehave.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{Confidence, HostStatus, Verdict};
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    process::{self, Process},
    targets::Target,
    wait,
};
use serde_json::Value;
use tokio::process::Command;

use crate::support::has_reason;

fn mode(path: &Path, bits: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(bits))?)
}

/// An agent with a folder of own checks, and one that plugins may write to.
struct Machine {
    agent: Agent,
    folder: tempfile::TempDir,
    listener: Target,
}

impl Machine {
    async fn new(name: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Plugins run as nobody.
        mode(folder.path(), 0o755)?;
        for (name, bits) in [("checks.d", 0o755), ("said", 0o777)] {
            fs::create_dir(folder.path().join(name))?;
            mode(&folder.path().join(name), bits)?;
        }
        let listener = Target::listener().await?;
        let settings = format!(
            "checks_dir = {:?}\n[check.session_listener]\ninterval = \"300ms\"\nfall = 1\n{}",
            folder.path().join("checks.d"),
            listener.as_session_listener()
        );
        let agent = Agent::new(folder.path(), name, &settings)?;
        Ok(Self {
            agent,
            folder,
            listener,
        })
    }

    fn said(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.folder.path().join("said").join(name)).ok()
    }

    fn say(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("said").join(name), "")?)
    }

    /// Writes a plugin; `SAID` in it is the folder that it may write to.
    fn plugin(&self, name: &str, text: &str) -> Result<String> {
        let path = self.folder.path().join(name);
        let said = self.folder.path().join("said").display().to_string();
        fs::write(
            &path,
            format!("#!/bin/bash\n{}", text.replace("SAID", &said)),
        )?;
        mode(&path, 0o755)?;
        Ok(path.display().to_string())
    }

    fn check(&self, name: &str, keys: &str) -> Result<()> {
        let path = self.folder.path().join(format!("checks.d/{name}.toml"));
        fs::write(path, format!("[[check]]\nname = {name:?}\n{keys}\n"))?;
        Ok(())
    }

    async fn run(&self, broker: &Broker, name: &str) -> Result<Process> {
        let token = broker.token("default", Some(name), 1).await?;
        self.agent.enrol(&broker.endpoints.grpc, &token).await?;
        self.agent.run()
    }

    async fn doctor(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let arguments = [&["doctor", "--output", "json"], arguments].concat();
        let output = self.agent.cli(&arguments).await?;
        let json = serde_json::from_str(&output.stdout).with_context(|| output.stderr.clone())?;
        Ok((output.code, json))
    }
}

/// Is nothing left of a process but, at most, its entry?
fn is_gone(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

/// Ignores what can be ignored, leaves its session and forks twice, and keeps count of its runs.
const WEDGED: &str = r#"
trap '' TERM HUP INT
echo $$ >> SAID/wedged
setsid bash -c 'trap "" TERM HUP; (bash -c "trap \"\" TERM HUP; echo \$\$ >> SAID/wedged; while :; do sleep 1000; done" &) & while :; do sleep 1000; done' > /dev/null 2>&1 &
while :; do sleep 1000; done
"#;

#[tokio::test]
async fn a_wedged_plugin_and_a_loud_one_delay_neither_beats_nor_other_checks() -> Result<()> {
    let broker = Broker::start().await?;
    let machine = Machine::new("desk-1").await?;
    let wedged = machine.plugin("wedged", WEDGED)?;
    let loud = machine.plugin("loud", "head -c 10485760 /dev/zero | tr '\\0' x; exit 2")?;
    let counted = machine.plugin("counted", "echo $$ >> SAID/counted; echo fine")?;
    // The wedged one is wedged for as long as the others need to run many times.
    machine.check(
        "wedged",
        &format!("kind = 'exec'\ncommand = {wedged:?}\ninterval = '10s'\ntimeout = '10s'"),
    )?;
    machine.check(
        "loud",
        &format!("kind = 'exec'\ncommand = {loud:?}\ninterval = '200ms'"),
    )?;
    machine.check(
        "counted",
        &format!("kind = 'exec'\ncommand = {counted:?}\ninterval = '200ms'"),
    )?;
    let mut agent = machine.run(&broker, "desk-1").await?;

    wait::until("the plugin to be wedged", wait::PATIENCE, async || {
        let wedged = machine.said("wedged").context("it has not started")?;
        ensure!(wedged.lines().count() == 2, "{wedged}");
        Ok(())
    })
    .await?;
    broker
        .verdict_until("desk-1", "connectable", |verdict| verdict.connectable_new)
        .await?;
    let count = || {
        machine
            .said("counted")
            .map_or(0, |lines| lines.lines().count())
    };
    let before = count();
    let mut doubts = Vec::new();
    while count() < before + 10 {
        let verdict = broker.verdict("desk-1").await?;
        if verdict.confidence() != Confidence::Confirmed || !verdict.connectable_new {
            doubts.push(describe(&verdict));
        }
        // The wedged plugin is ended at its limit, and then no longer in the way.
        ensure!(
            machine
                .said("wedged")
                .is_some_and(|runs| runs.lines().count() == 2),
            "too slow"
        );
    }
    ensure!(doubts.is_empty(), "{doubts:?}");
    let wedged = machine.said("wedged").unwrap_or_default();
    ensure!(
        wedged.lines().count() == 2,
        "it ran twice at once: {wedged}"
    );

    // What a wedged and a loud plugin come to is told, with the host still taking people.
    let told = broker
        .verdict_until("desk-1", "the failing plugin", |verdict| {
            verdict.status() == HostStatus::NeedsAssistance && has_reason(verdict, "CHECK_FAILED")
        })
        .await?;
    ensure!(told.connectable_new, "{}", describe(&told));
    let status = agent.terminate(wait::PATIENCE).await?;
    ensure!(status.success(), "the agent ended with {status}");
    wait::until(
        "the plugin to end with the agent",
        wait::PATIENCE,
        async || {
            let all = machine.said("wedged").unwrap_or_default();
            let left: Vec<_> = all.lines().filter(|pid| !is_gone(pid)).collect();
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        },
    )
    .await?;
    drop(machine.listener);
    Ok(())
}

#[tokio::test]
async fn a_plugin_ends_with_an_agent_that_is_killed() -> Result<()> {
    let broker = Broker::start().await?;
    let machine = Machine::new("desk-1").await?;
    let wedged = machine.plugin("wedged", WEDGED)?;
    machine.check(
        "wedged",
        &format!("kind = 'exec'\ncommand = {wedged:?}\ntimeout = '10m'"),
    )?;
    let mut agent = machine.run(&broker, "desk-1").await?;
    wait::until("the plugin to be wedged", wait::PATIENCE, async || {
        let wedged = machine.said("wedged").context("it has not started")?;
        ensure!(wedged.lines().count() == 2, "{wedged}");
        Ok(())
    })
    .await?;
    agent.kill().await?;
    wait::until("the plugin to end too", wait::PATIENCE, async || {
        let all = machine.said("wedged").unwrap_or_default();
        ensure!(all.lines().all(is_gone), "left: {all}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_policy_weighs_own_checks_by_name_and_cannot_make_one() -> Result<()> {
    let broker = Broker::start().await?;
    let machine = Machine::new("desk-1").await?;
    let raid = machine.plugin(
        "raid",
        "[ -e SAID/mended ] && exit 0; echo degraded; exit 2",
    )?;
    let keys = format!("kind = 'exec'\ncommand = {raid:?}\ninterval = '300ms'");
    machine.check("raid", &keys)?;
    let _agent = machine.run(&broker, "desk-1").await?;
    let assisted = |verdict: &Verdict| verdict.status() == HostStatus::NeedsAssistance;
    broker
        .verdict_until("desk-1", "the degraded array", assisted)
        .await?;

    let file = machine.folder.path().join("policy.toml");
    let set = async |text: &str| {
        fs::write(&file, text)?;
        let file = file.display().to_string();
        broker
            .cli(&["pool", "set", "default", &file, "--force"])
            .await
    };
    let fatal = "[[check]]\nname = 'raid'\nseverity = 'fatal'\n";
    for key in [
        "command = '/bin/true'",
        "args = []",
        "path = '/'",
        "kind = 'exec'",
    ] {
        let output = set(&format!("{fatal}{key}\n")).await?;
        ensure!(
            output.code != Some(0) && output.stderr.contains("unknown key"),
            "{output:?}"
        );
    }
    let output = set(&format!(
        "{fatal}[[check]]\nname = 'ghost'\nseverity = 'fatal'\n"
    ))
    .await?;
    ensure!(output.code == Some(0), "{output:?}");
    let broken = broker
        .verdict_until("desk-1", "unavailable", |verdict| {
            verdict.status() == HostStatus::Unavailable && has_reason(verdict, "FATAL_CHECK_FAILED")
        })
        .await?;
    let reason = broken
        .reasons
        .iter()
        .find(|reason| reason.subject == "raid");
    ensure!(
        reason.is_some_and(|reason| reason.message.contains("degraded")),
        "{}",
        describe(&broken)
    );
    wait::until("the check that no host has", wait::PATIENCE, async || {
        let host = broker.json(&["host", "desk-1"]).await?;
        let checks = host["checks"].as_array().context("checks")?;
        let ghost = checks.iter().find(|check| check["name"] == "ghost");
        let ghost = ghost.with_context(|| host.to_string())?;
        ensure!(ghost["outcome"] == "unknown", "{ghost}");
        ensure!(ghost["unknown_cause"] == "unsupported", "{ghost}");
        Ok(())
    })
    .await?;
    machine.say("mended")?;
    broker
        .verdict_until("desk-1", "connectable again", |verdict| {
            verdict.connectable_new
        })
        .await?;
    Ok(())
}

#[tokio::test]
async fn doctor_runs_own_checks_and_tells_their_words() -> Result<()> {
    let machine = Machine::new("desk-1").await?;
    let raid = machine.plugin("raid", "echo 'array degraded | disks=1'; exit 2")?;
    machine.check(
        "raid",
        &format!("kind = 'exec'\ncommand = {raid:?}\nlabels = {{ team = 'storage' }}"),
    )?;
    machine.check(
        "room",
        "kind = 'disk'\npath = '/'\nmin_free = '0%'\nmin_free_files = '0%'",
    )?;
    let (code, json) = machine.doctor(&["--check", "raid,room"]).await?;
    ensure!(code == Some(1), "{json}");
    let check = &json["checks"][0];
    ensure!(check["name"] == "raid" && check["kind"] == "exec", "{json}");
    ensure!(
        check["outcome"] == "fail" && check["message"] == "array degraded",
        "{json}"
    );
    let steps = check["findings"][0]["steps"].to_string();
    ensure!(
        steps.contains("team=storage") && steps.contains("disks=1"),
        "{json}"
    );
    ensure!(json["checks"][1]["outcome"] == "pass", "{json}");
    Ok(())
}

#[tokio::test]
async fn a_terminal_sees_the_progress_and_a_pipe_does_not() -> Result<()> {
    let machine = Machine::new("desk-1").await?;
    let slow = machine.plugin(
        "slow",
        "while [ ! -e SAID/go ]; do sleep 0.05; done; echo done",
    )?;
    machine.check(
        "slow",
        &format!("kind = 'exec'\ncommand = {slow:?}\ntimeout = '60s'"),
    )?;
    machine.check(
        "room",
        "kind = 'disk'\npath = '/'\nmin_free = '0%'\nmin_free_files = '0%'",
    )?;
    let doctor = machine.agent.command(&["doctor", "--check", "slow,room"])?;
    let doctor = doctor.as_std();
    let mut words = vec![doctor.get_program().display().to_string()];
    words.extend(doctor.get_args().map(|word| word.display().to_string()));
    // `script` runs it at a terminal of its own, and writes what is seen there to its output.
    let log = machine.folder.path().join("terminal");
    let mut terminal = Command::new("script");
    terminal.args(["-q", "-f", "-e", "-c", &words.join(" "), "/dev/null"]);
    let mut terminal = Process::spawn("doctor at a terminal", terminal, &log)?;
    wait::until("the progress", wait::PATIENCE, async || {
        let seen = terminal.log()?;
        ensure!(seen.contains("1 of 2 checks done"), "{seen}");
        ensure!(seen.contains("waiting for slow"), "{seen}");
        Ok(())
    })
    .await?;
    machine.say("go")?;
    let status = terminal.ended(wait::PATIENCE).await?;
    let seen = terminal.log()?;
    ensure!(
        status.success() && seen.contains("CHECK"),
        "{status}: {seen}"
    );
    let output = process::run(
        machine.agent.command(&["doctor", "--check", "room"])?,
        wait::PATIENCE,
    );
    let output = output.await?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn checks_that_others_can_write_or_that_are_misspelt_are_refused_at_the_start() -> Result<()>
{
    let machine = Machine::new("desk-1").await?;
    let path = machine.folder.path().join("checks.d/room.toml");
    machine.check("room", "kind = 'disk'\npath = '/'\ninterval = '1m'")?;
    mode(&path, 0o666)?;
    let output = machine.agent.cli(&["doctor"]).await?;
    ensure!(output.code == Some(78), "{output:?}");
    for part in ["checks.d/room.toml", "mode 0666", "chmod go-w"] {
        ensure!(output.stderr.contains(part), "{part}: {output:?}");
    }
    mode(&path, 0o644)?;
    for (keys, says) in [
        (
            "kind = 'disk'\npath = '/'\nintervall = '1m'",
            "room.toml:5: unknown key `intervall`",
        ),
        ("kind = 'dsik'\npath = '/'", "did you mean \"disk\""),
    ] {
        machine.check("room", keys)?;
        let output = machine.agent.cli(&["run"]).await?;
        ensure!(output.code == Some(78), "{output:?}");
        ensure!(output.stderr.contains(says), "{output:?}");
    }
    fs::rename(&path, machine.folder.path().join("checks.d/urls.toml"))?;
    machine.check("urls", "kind = 'disk'\npath = '/'")?;
    let output = machine.agent.cli(&["doctor"]).await?;
    ensure!(output.stderr.contains("every agent has"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn a_plugin_counts_sessions_that_the_system_does_not_know() -> Result<()> {
    let broker = Broker::start().await?;
    let policy = broker.folder().path().join("policy.toml");
    fs::write(&policy, "max_sessions = 3\n")?;
    let policy = policy.display().to_string();
    let set = broker.cli(&["pool", "set", "default", &policy]).await?;
    ensure!(set.code == Some(0), "{set:?}");
    let machine = Machine::new("desk-1").await?;
    let counts = machine.plugin(
        "counts",
        "[ -e SAID/broken ] && exit 3; echo \"people | $(cat SAID/people)\"",
    )?;
    let said = |text: &str| -> Result<()> {
        let folder = machine.folder.path().join("said");
        fs::write(folder.join("new"), text)?;
        Ok(fs::rename(folder.join("new"), folder.join("people"))?)
    };
    said("active=1 disconnected=1")?;
    machine.check(
        "people",
        &format!("kind = 'exec'\ncommand = {counts:?}\ninterval = '200ms'\ncounts_sessions = true"),
    )?;
    let _agent = machine.run(&broker, "desk-1").await?;
    let sessions = |verdict: &Verdict| {
        let counts = verdict.sessions.unwrap_or_default();
        (counts.active, counts.disconnected)
    };
    broker
        .verdict_until("desk-1", "two sessions", |verdict| {
            verdict.connectable_new && sessions(verdict) == (Some(1), Some(1))
        })
        .await?;
    said("active=2 disconnected=1")?;
    broker
        .verdict_until("desk-1", "the limit", |verdict| {
            !verdict.connectable_new && has_reason(verdict, "SESSION_LIMIT")
        })
        .await?;
    machine.say("broken")?;
    broker
        .verdict_until("desk-1", "a count that nobody knows", |verdict| {
            verdict.connectable_new
                && sessions(verdict) == (None, None)
                && has_reason(verdict, "SESSION_COUNT_UNKNOWN")
        })
        .await?;
    drop(machine.listener);
    Ok(())
}
