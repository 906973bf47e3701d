//! A real agent process with a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use muster_runtime::identity::IdentityFiles;
use tokio::process::Command;

use crate::{
    apart::Machine,
    binaries,
    clients::Token,
    process::{self, Output, Process},
};

/// How long a command of the CLI may take: `doctor` runs every check once.
const COMMAND: Duration = Duration::from_secs(60);

/// Variables that would send a check of a loopback address to somebody else.
const PROXIES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
];

/// One machine's agent: its configuration and its data.
#[derive(Clone, Debug)]
pub struct Agent {
    /// What it is called in messages.
    pub label: String,
    folder: PathBuf,
    keeps_proxies: bool,
    own_group: bool,
    machine: Option<Machine>,
}

impl Agent {
    /// The agent of the host `name` in `parent/NAME`, whose configuration has `checks` as its
    /// tables of checks. What it checks is under the test's control: no proxy stands between.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn new(parent: &Path, name: &str, checks: &str) -> Result<Self> {
        let mut agent = Self::of_this_machine(parent, name, checks)?;
        agent.keeps_proxies = false;
        let text = fs::read_to_string(agent.config())?;
        fs::write(agent.config(), format!("name = {name:?}\n{text}"))?;
        Ok(agent)
    }

    /// An agent in `parent/LABEL` that names itself and sees this machine as it is. `settings` is
    /// the rest of its configuration.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn of_this_machine(parent: &Path, label: &str, settings: &str) -> Result<Self> {
        let folder = parent.join(label);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let agent = Self {
            label: label.to_owned(),
            folder,
            keeps_proxies: true,
            own_group: false,
            machine: None,
        };
        let text = format!(
            "data_dir = {:?}\ncontrol_socket = {:?}\n{settings}",
            agent.data(),
            agent.folder.join("control.sock"),
        );
        fs::write(agent.config(), text).context("cannot write the agent's configuration")?;
        Ok(agent)
    }

    /// The same, in a process group of its own: Ctrl-C at a terminal reaches its parent alone.
    #[must_use]
    pub fn in_own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// The same, on this machine.
    #[must_use]
    pub fn on_machine(mut self, machine: &Machine) -> Self {
        self.machine = Some(machine.clone());
        self
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// Its data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Has it a certificate?
    #[must_use]
    pub fn is_enrolled(&self) -> bool {
        IdentityFiles::new(self.data().join("identity")).exists()
    }

    /// What it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The command `muster-agent ARGUMENTS` with this configuration.
    ///
    /// # Errors
    /// When the binary cannot be built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = binaries::command(&binaries::fresh()?.agent);
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .current_dir(&self.folder);
        if !self.keeps_proxies {
            for variable in PROXIES {
                command.env_remove(variable);
            }
        }
        if let Some(machine) = &self.machine {
            command = machine.command(&command);
        }
        if self.own_group {
            command.process_group(0);
        }
        Ok(command)
    }

    /// Runs a command of the CLI.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time; any exit code is an answer.
    pub async fn cli(&self, arguments: &[&str]) -> Result<Output> {
        process::run(self.command(arguments)?, COMMAND).await
    }

    /// Tries to enrol; any exit code is an answer.
    ///
    /// # Errors
    /// When the command cannot be run or does not end in time.
    pub async fn try_enrol(&self, endpoint: &str, token: &Token) -> Result<Output> {
        let arguments = ["enroll", "--broker", endpoint, "--ca-pin", &token.ca_pin];
        let mut command = self.command(&arguments)?;
        // Not as an argument, which every process of the machine could read.
        command.env("MUSTER_TOKEN", &token.token);
        process::run(command, COMMAND).await
    }

    /// Enrols.
    ///
    /// # Errors
    /// When it is refused, with what it said.
    pub async fn enrol(&self, endpoint: &str, token: &Token) -> Result<()> {
        let output = self.try_enrol(endpoint, token).await?;
        ensure!(output.code == Some(0), "enroll failed: {}", output.stderr);
        Ok(())
    }

    /// Starts `muster-agent run`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self) -> Result<Process> {
        let name = format!("muster-agent {}", self.label);
        Process::spawn(&name, self.command(&["run"])?, &self.log())
    }

    /// Announces something over the control socket.
    ///
    /// # Errors
    /// When that fails, with what it said.
    pub async fn announce(&self, arguments: &[&str]) -> Result<()> {
        let arguments = [&["announce"], arguments].concat();
        let output = self.cli(&arguments).await?;
        ensure!(
            output.code == Some(0),
            "{arguments:?} failed: {}",
            output.stderr
        );
        Ok(())
    }
}
