//! Tests in a network of their own: the test's own program, run once more in namespaces where it
//! may drop packets, add machines and fill disks without anybody noticing. Needs root or user
//! namespaces, and `ip`, `nft` and `nsenter`.

use std::{
    env,
    future::Future,
    net::Ipv4Addr,
    process::{Command as StdCommand, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// Set in the program that runs inside. Not of Muster's own names, which are taken out of the
/// environment of what tests start.
const INSIDE: &str = "TEST_RUNS_APART";

/// A loopback of its own, mounts of its own, and room for the names of further networks.
const PREPARE: &str = "ip link set lo up && mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"";

/// The address of the test's own end of a network of machines.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// Runs `body` in namespaces of its own: network, mounts, processes. `module` is the caller's
/// `module_path!()`, `name` the test's function.
///
/// # Errors
/// Those of `body`; that the namespaces cannot be made; or that there is no such test.
pub fn run<F>(module: &str, name: &str, body: F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    if env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        return runtime.block_on(body);
    }
    let module = module.split_once("::").map_or("", |(_, inner)| inner);
    let test = format!("{module}::{name}");
    let mut command = StdCommand::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-c", PREPARE])
        .arg(env::current_exe()?)
        .args(["--exact", &test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null());
    let output = command.output().context("cannot run unshare")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // Shown by test runners if the test fails.
    eprintln!("{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{test} failed in its namespaces");
    ensure!(said.contains("1 passed"), "there is no test {test}");
    Ok(())
}

/// A machine with a network of its own, one link away from the test's.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// Runs a command of the system that must succeed.
///
/// # Errors
/// When it fails, with what it said.
pub async fn sh(script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).stdin(Stdio::null());
    let output = command.output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{script}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Makes the switch that machines hang on, with the test at [`HERE`].
///
/// # Errors
/// When the kernel refuses.
pub async fn switch() -> Result<()> {
    sh(&format!(
        "ip link add switch type bridge; ip addr add {HERE}/24 dev switch; ip link set switch up"
    ))
    .await
    .map(drop)
}

impl Machine {
    /// A machine at 10.77.0.`number` on the switch.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn on_switch(name: &str, number: u8) -> Result<Self> {
        let address = Ipv4Addr::new(10, 77, 0, number);
        sh(&format!(
            "ip netns add {name}
             ip link add {name} type veth peer name eth0 netns {name}
             ip link set {name} master switch up
             ip -n {name} link set lo up
             ip -n {name} addr add {address}/24 dev eth0
             ip -n {name} link set eth0 up
             ip -n {name} route add default via {HERE}"
        ))
        .await?;
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }

    /// The same command, on this machine.
    #[must_use]
    pub fn command(&self, command: &Command) -> Command {
        let inner = command.as_std();
        let mut outer = Command::new("nsenter");
        outer
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(inner.get_program())
            .args(inner.get_args());
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => outer.env(name, value),
                None => outer.env_remove(name),
            };
        }
        if let Some(folder) = inner.get_current_dir() {
            outer.current_dir(folder);
        }
        outer
    }

    /// Runs a script on this machine.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let mut inner = Command::new("sh");
        inner.args(["-euc", script]);
        let output = self.command(&inner).output().await?;
        ensure!(output.status.success(), "{script}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Packets that are dropped or changed on the test's own network: one table, made anew with each
/// set of rules.
///
/// `rules` are of nftables, each with its chain: `in` and `out` see all packets of the test's
/// processes, `leaving` may translate their addresses.
///
/// # Errors
/// When nft refuses them.
pub async fn rules(rules: &[(&str, &str)]) -> Result<()> {
    let of = |chain: &str| -> String {
        let found = rules.iter().filter(|(of, _)| *of == chain);
        found.map(|(_, rule)| format!("{rule}\n")).collect()
    };
    let text = format!(
        "table ip fire {{}}\ndelete table ip fire\ntable ip fire {{\n\
         chain in {{ type filter hook input priority 0; {} }}\n\
         chain out {{ type filter hook output priority 0; {} }}\n\
         chain leaving {{ type nat hook postrouting priority 100; {} }}\n}}\n",
        of("in"),
        of("out"),
        of("leaving"),
    );
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    std::fs::write(&file, &text)?;
    let output = Command::new("nft").arg("-f").arg(&file).output().await?;
    ensure!(output.status.success(), "{text}: {output:?}");
    Ok(())
}
