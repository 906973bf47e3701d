//! A network of the swarm's own, in which packets are lost without anybody else noticing: a network
//! namespace of the kernel's with rules of nftables. Needs root, or a kernel that lets users make
//! namespaces.

use std::{
    env,
    net::IpAddr,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, ensure};

/// Set in the program that runs inside.
const INSIDE: &str = "MUSTER_SWARM_NETWORK";

/// All addresses of light agents.
const AGENTS: &str = "127.64.0.0/10";

/// Runs this program anew in a network of its own, unless it is there already.
///
/// # Errors
/// When there can be none.
pub(crate) fn enter() -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    let program = env::current_exe().context("cannot tell which program this is")?;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let error = command
        .args([
            "--net",
            "sh",
            "-c",
            "ip link set lo up && exec \"$0\" \"$@\"",
        ])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "own")
        .exec();
    Err(anyhow!(error).context("cannot run `unshare`"))
}

/// Sets rules: that many of a hundred packets from and to light agents are lost, and all of those
/// that are swallowed.
///
/// # Errors
/// When nftables refuses.
pub(crate) fn lose(percent: u32) -> Result<()> {
    let random = format!("numgen random mod 100 < {percent} drop");
    nft(&[
        "add table inet swarm".to_owned(),
        "add set inet swarm gone { type ipv4_addr; }".to_owned(),
        "add chain inet swarm in { type filter hook input priority 0; }".to_owned(),
        "add rule inet swarm in ip saddr @gone drop".to_owned(),
        "add rule inet swarm in ip daddr @gone drop".to_owned(),
        format!("add rule inet swarm in ip saddr {AGENTS} {random}"),
        format!("add rule inet swarm in ip daddr {AGENTS} {random}"),
    ])
}

/// From here on every packet from and to this address is lost.
///
/// # Errors
/// When nftables refuses.
pub(crate) fn swallow(address: IpAddr) -> Result<()> {
    nft(&[format!("add element inet swarm gone {{ {address} }}")])
}

fn nft(commands: &[String]) -> Result<()> {
    ensure!(
        env::var_os(INSIDE).is_some(),
        "packets are lost in a network of the swarm's own, and nowhere else"
    );
    let output = Command::new("nft")
        .arg(commands.join("; "))
        .stdin(Stdio::null())
        // Not in the path of users.
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .context("cannot run `nft`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft {commands:?}: {said}");
    Ok(())
}
