//! `session_listener`: is there a place where people can connect, and does it speak?
//!
//! Configured listeners must all be there and speak. With none configured those that this machine
//! is known to offer are found in the kernel's table, by port and by program; finding none is a
//! failure, because then nobody can connect. A listener on loopback alone is no way in for others.
//!
//! The kernel's table is read in every run. The protocol is spoken at the start, when the socket is
//! another or connections wait for it, after a failure, and every five minutes: servers write log
//! lines for each knock, and some lock out who knocks and has no login.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use muster_core::{
    agent::Observation,
    model::{Finding, Listener, Mono, Now, Outcome, Remedy},
};
use muster_runtime::clock;
use parking_lot::Mutex;

use super::{Check, Inputs, cannot_run};
use crate::{
    config::{Require, SessionListenerConfig},
    platform::sockets::{self, ListeningSocket, Owner},
    probe::{
        listener::{self, Spoken},
        tcp::{self, Problem},
    },
};

/// Listeners that are tried in one run; a report carries 32.
const MAX_TARGETS: usize = 32;
/// Sockets whose owners and greetings are remembered; more are looked at anew each time.
const MAX_REMEMBERED: usize = 256;

/// Where connections to loopback come from. Servers such as TigerVNC lock out an address that comes
/// and goes without logging in, and 127.0.0.1 is a gateway's; this one is nobody else's.
const SOURCE: Ipv4Addr = Ipv4Addr::new(127, 77, 85, 83);
/// How long a word of a listener counts while its socket stays the same.
const SPEAK_EVERY: Duration = Duration::from_mins(5);

/// Programs that take people's sessions, and what they speak.
const PROGRAMS: [(&str, &str); 12] = [
    ("sshd", "ssh"),
    ("dropbear", "ssh"),
    ("xrdp", "rdp"),
    ("gnome-remote-de", "rdp"),
    ("freerdp-shadow-", "rdp"),
    ("Xvnc", "vnc"),
    ("Xtigervnc", "vnc"),
    ("Xtightvnc", "vnc"),
    ("x11vnc", "vnc"),
    ("wayvnc", "vnc"),
    ("krfb", "vnc"),
    ("dcvserver", "https"),
];

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    Arc::new(SessionListener {
        config: inputs.config.check.session_listener.clone(),
        budget: inputs.budget(),
        memory: Mutex::default(),
    })
}

struct SessionListener {
    config: SessionListenerConfig,
    budget: Duration,
    memory: Mutex<Memory>,
}

/// What is known of sockets until they are closed.
#[derive(Default)]
struct Memory {
    owners: BTreeMap<u64, Owner>,
    spoken: BTreeMap<u64, LastSpoken>,
}

/// What was said when a socket was last spoken to, and when that was.
#[derive(Clone)]
struct LastSpoken {
    at: Mono,
    said: Spoken,
}

/// The steps of one listener, and what came of them.
type Tried = (Vec<String>, Result<Spoken, Problem>);

/// One listener to be tried.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Target {
    protocol: String,
    port: u16,
    /// Addresses that it is bound to; empty where the kernel does not list it.
    bound: Vec<IpAddr>,
    sockets: Vec<u64>,
    waiting: u32,
    /// Address to try, where the configuration names one.
    address: Option<IpAddr>,
    owner: Option<Owner>,
}

impl Check for SessionListener {
    fn run(&self) -> BoxFuture<'_, Observation> {
        self.look().boxed()
    }
}

impl SessionListener {
    async fn look(&self) -> Observation {
        let sockets = match tokio::task::spawn_blocking(sockets::listening).await {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(error)) => return no_table(&error.to_string()),
            Err(error) => return no_table(&error.to_string()),
        };
        let owners = self.owners(&sockets).await;
        let targets = if self.config.listeners.is_empty() {
            let mut found = discover(&sockets, &owners);
            let has_way_in = found.iter().any(|target| !target.is_loopback_only());
            if has_way_in && !self.config.allow_loopback {
                // Backends of a gateway and forwarded ports are not for us to knock at.
                found.retain(|target| !target.is_loopback_only());
            }
            found
        } else {
            self.configured(&sockets, &owners)
        };
        if targets.is_empty() {
            return none_found(sockets.len());
        }
        let now = clock::now();
        let tried = join_all(targets.iter().map(|target| self.try_one(target, now))).await;
        self.judge(&targets, tried)
    }

    /// Owners of the sockets, asked for only when there are new sockets: listing every process's
    /// files is the dearest thing that this check does.
    async fn owners(&self, sockets: &[ListeningSocket]) -> BTreeMap<u64, Owner> {
        let wanted: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
        let known = {
            let mut memory = self.memory.lock();
            memory.owners.retain(|inode, _| wanted.contains(inode));
            memory.spoken.retain(|inode, _| wanted.contains(inode));
            memory.owners.clone()
        };
        let new: BTreeSet<u64> = wanted
            .iter()
            .filter(|inode| !known.contains_key(inode))
            .copied()
            .collect();
        if new.is_empty() {
            return known;
        }
        let found = tokio::task::spawn_blocking(move || sockets::owners(&new)).await;
        let mut memory = self.memory.lock();
        for (inode, owner) in found.unwrap_or_default() {
            if memory.owners.len() < MAX_REMEMBERED {
                memory.owners.insert(inode, owner);
            }
        }
        memory.owners.clone()
    }

    fn configured(
        &self,
        sockets: &[ListeningSocket],
        owners: &BTreeMap<u64, Owner>,
    ) -> Vec<Target> {
        let wanted = self.config.listeners.iter().take(MAX_TARGETS);
        wanted
            .map(|listener| {
                let mut target = Target {
                    protocol: listener.protocol.clone(),
                    port: listener.port,
                    bound: Vec::new(),
                    sockets: Vec::new(),
                    waiting: 0,
                    address: listener.address,
                    owner: None,
                };
                for socket in sockets {
                    let ip = socket.address.ip().to_canonical();
                    let asked = listener
                        .address
                        .is_none_or(|address| ip.is_unspecified() || ip == address.to_canonical());
                    if socket.address.port() == listener.port && asked {
                        target.add(socket, owners);
                    }
                }
                target
            })
            .collect()
    }

    async fn try_one(&self, target: &Target, now: Now) -> Tried {
        let mut steps = vec![target.describe()];
        if let Some((ago, said)) = self.still_counts(target, now.mono) {
            steps.push(format!("spoken to {} s ago, same socket", ago.as_secs()));
            steps.extend(said.step.clone());
            return (steps, Ok(said));
        }
        let mut spoken = self.speak(target, Some(SOURCE), now, &mut steps).await;
        // A server that lets people in by their address may know 127.0.0.1 alone.
        let refuses_us = matches!(&spoken, Err(problem) if problem.code == "LISTENER_CLOSED");
        if refuses_us && target.addresses().iter().any(|to| to.ip().is_loopback()) {
            spoken = self.speak(target, None, now, &mut steps).await;
        }
        match &spoken {
            Ok(said) => self.remember(target, now.mono, said),
            Err(_) => self
                .memory
                .lock()
                .spoken
                .retain(|inode, _| !target.sockets.contains(inode)),
        }
        (steps, spoken)
    }

    async fn speak(
        &self,
        target: &Target,
        source: Option<Ipv4Addr>,
        now: Now,
        steps: &mut Vec<String>,
    ) -> Result<Spoken, Problem> {
        let limit = self.budget / 2;
        let stream = tcp::connect_from(source, &target.addresses(), limit, steps)
            .await
            .map_err(|problem| problem.for_listener(target))?;
        match listener::exchange(&target.protocol, stream, limit, now.wall).await {
            Ok(said) => {
                steps.extend(said.step.clone());
                Ok(said)
            }
            Err((step, problem)) => {
                steps.push(step);
                Err(problem)
            }
        }
    }

    fn still_counts(&self, target: &Target, now: Mono) -> Option<(Duration, Spoken)> {
        // Connections that wait are taken by a server that works within a moment.
        // Nothing is said to a listener of plain TCP, so nothing counts but the connection.
        if target.waiting > 0 || target.sockets.is_empty() || target.protocol == "tcp" {
            return None;
        }
        let memory = self.memory.lock();
        let mut oldest: Option<&LastSpoken> = None;
        for inode in &target.sockets {
            let last = memory.spoken.get(inode)?;
            oldest = oldest.filter(|oldest| oldest.at <= last.at).or(Some(last));
        }
        let last = oldest?;
        let ago = now.since(last.at);
        (ago < SPEAK_EVERY).then(|| (ago, last.said.clone()))
    }

    fn remember(&self, target: &Target, at: Mono, said: &Spoken) {
        let mut memory = self.memory.lock();
        for inode in &target.sockets {
            if memory.spoken.len() < MAX_REMEMBERED || memory.spoken.contains_key(inode) {
                let said = said.clone();
                memory.spoken.insert(*inode, LastSpoken { at, said });
            }
        }
    }

    fn judge(&self, targets: &[Target], tried: Vec<Tried>) -> Observation {
        let configured = !self.config.listeners.is_empty();
        let mut found = Findings::default();
        let mut listeners = Vec::new();
        for (target, (steps, result)) in targets.iter().zip(tried) {
            let reachable = self.config.allow_loopback || !target.is_loopback_only();
            // A session server's socket on a port of its own choice may be for something else.
            let guessed = !configured && protocol(target.port, None).is_none();
            match result {
                Ok(_) if !reachable => found.bad(target, steps, loopback_only(target)),
                Ok(said) => found.good(target, steps, said),
                Err(problem) if guessed && problem.code == "LISTENER_OTHER_PROTOCOL" => {
                    found.aside.push(finding(target, steps, problem));
                    continue;
                }
                Err(problem) => found.bad(target, steps, problem),
            }
            if reachable && !target.bound.is_empty() {
                listeners.push(target.listener());
            }
        }
        let mut seen = found.into_observation(self.config.require);
        seen.listeners = Some(listeners);
        seen
    }
}

/// What became of the listeners, each by itself.
#[derive(Default)]
struct Findings {
    good: Vec<Finding>,
    warned: Vec<Finding>,
    bad: Vec<Finding>,
    aside: Vec<Finding>,
}

impl Findings {
    fn bad(&mut self, target: &Target, steps: Vec<String>, problem: Problem) {
        self.bad.push(finding(target, steps, problem));
    }

    fn good(&mut self, target: &Target, steps: Vec<String>, said: Spoken) {
        if let Some(warning) = said.warning {
            self.warned.push(finding(target, steps, warning));
            return;
        }
        self.good.push(Finding {
            subject: target.name(),
            code: "LISTENS".to_owned(),
            message: "takes connections".to_owned(),
            steps,
            remedy: None,
        });
    }

    fn into_observation(mut self, require: Require) -> Observation {
        let works = !(self.good.is_empty() && self.warned.is_empty());
        if !works {
            self.bad.append(&mut self.aside);
        }
        let outcome = match require {
            _ if self.bad.is_empty() && self.warned.is_empty() => Outcome::Pass,
            Require::Any if works => Outcome::Warn,
            Require::Any | Require::All if self.bad.is_empty() => Outcome::Warn,
            Require::Any | Require::All => Outcome::Fail,
        };
        let names: Vec<_> = self.good.iter().map(|good| good.subject.clone()).collect();
        let mut all = self.bad;
        all.append(&mut self.warned);
        let message = match all.first() {
            None => format!("people can connect by {}", names.join(", ")),
            Some(first) => {
                let more = match all.len() {
                    1 => String::new(),
                    count => format!(", and {} more", count - 1),
                };
                format!("{}: {}{more}", first.subject, first.message)
            }
        };
        let mut seen = Observation::new(outcome, message);
        all.append(&mut self.good);
        all.append(&mut self.aside);
        seen.findings = all;
        seen
    }
}

impl Target {
    fn add(&mut self, socket: &ListeningSocket, owners: &BTreeMap<u64, Owner>) {
        self.bound.push(socket.address.ip().to_canonical());
        self.sockets.push(socket.inode);
        self.waiting += socket.waiting;
        self.owner = self
            .owner
            .take()
            .or_else(|| owners.get(&socket.inode).cloned());
    }

    fn name(&self) -> String {
        format!("{} on port {}", self.protocol, self.port)
    }

    fn is_loopback_only(&self) -> bool {
        match self.address {
            Some(address) if self.bound.is_empty() => address.is_loopback(),
            _ => !self.bound.is_empty() && self.bound.iter().all(IpAddr::is_loopback),
        }
    }

    /// Where to try: the configured address, else one that reaches what is bound.
    fn addresses(&self) -> Vec<SocketAddr> {
        let at = |ip| SocketAddr::new(ip, self.port);
        if let Some(address) = self.address {
            return vec![at(address)];
        }
        let (v4, v6) = (
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        );
        let has = |ip: IpAddr| self.bound.contains(&ip);
        if has(Ipv4Addr::UNSPECIFIED.into()) || self.bound.is_empty() {
            vec![at(v4)]
        } else if has(Ipv6Addr::UNSPECIFIED.into()) {
            // Such a socket mostly takes IPv4 too, where the source can be ours alone.
            vec![at(v4), at(v6)]
        } else {
            self.bound.iter().take(2).map(|ip| at(*ip)).collect()
        }
    }

    fn listener(&self) -> Listener {
        let everywhere = self.bound.iter().any(IpAddr::is_unspecified);
        let mut addresses: Vec<_> = self.bound.iter().map(IpAddr::to_string).collect();
        addresses.sort();
        addresses.dedup();
        Listener {
            protocol: self.protocol.as_str().into(),
            addresses: if everywhere { Vec::new() } else { addresses },
            port: self.port,
        }
    }

    fn describe(&self) -> String {
        if self.bound.is_empty() {
            return format!("the kernel lists no socket on port {}", self.port);
        }
        let bound: Vec<_> = self.bound.iter().map(IpAddr::to_string).collect();
        let owner = match &self.owner {
            Some(owner) => format!("{} (process {})", owner.name, owner.pid),
            None => "a process of another user".to_owned(),
        };
        format!(
            "{owner} listens on {}, {} waiting",
            bound.join(" and "),
            self.waiting
        )
    }
}

impl Problem {
    fn for_listener(mut self, target: &Target) -> Self {
        if self.code == "TCP_REFUSED" {
            self.code = "LISTENER_DOWN";
            self.message = format!("nothing takes connections on port {}", target.port);
            self.remedy = start(&target.protocol);
        }
        self
    }
}

fn finding(target: &Target, steps: Vec<String>, problem: Problem) -> Finding {
    Finding {
        subject: target.name(),
        code: problem.code.to_owned(),
        message: problem.message,
        steps,
        remedy: Some(problem.remedy),
    }
}

fn start(protocol: &str) -> Remedy {
    match protocol {
        "ssh" => Remedy::text("Start the SSH server.").command("systemctl restart ssh"),
        "rdp" => Remedy::text("Start the RDP server.").command("systemctl restart xrdp"),
        "vnc" => Remedy::text("Start the VNC server."),
        _ => Remedy::text("Start the service that should listen there."),
    }
}

fn loopback_only(target: &Target) -> Problem {
    Problem {
        code: "LISTENER_LOOPBACK_ONLY",
        message: "listens on loopback alone: nobody else can connect".to_owned(),
        remedy: Remedy::text(format!(
            "Let the service on port {} listen on the network too; if a local gateway is the way \
             in, set allow_loopback = true under [check.session_listener] in agent.toml.",
            target.port
        )),
    }
}

fn no_table(error: &str) -> Observation {
    cannot_run(
        "/proc/net/tcp",
        format!("the listening sockets cannot be listed: {error}"),
        Remedy::text("Mount /proc for the agent."),
    )
}

fn none_found(looked_at: usize) -> Observation {
    let remedy = Remedy::text(
        "Install or start a session listener; one on another port is named under \
         [check.session_listener] listeners in agent.toml.",
    )
    .command("apt-get install openssh-server")
    .command("systemctl enable --now ssh");
    let message = "no session listener: nobody can connect to this host";
    let mut seen = Observation::new(Outcome::Fail, message).with(Finding {
        subject: "session listener".to_owned(),
        code: "NO_LISTENER".to_owned(),
        message: message.to_owned(),
        steps: vec![
            format!("looked at {looked_at} listening TCP sockets"),
            "none has port 22, 3389 or 5900-5999, or a known session server".to_owned(),
        ],
        remedy: Some(remedy),
    });
    seen.listeners = Some(Vec::new());
    seen
}

/// Known listeners among `sockets`, one for each protocol and port.
fn discover(sockets: &[ListeningSocket], owners: &BTreeMap<u64, Owner>) -> Vec<Target> {
    let mut found: BTreeMap<(String, u16), Target> = BTreeMap::new();
    for socket in sockets {
        let port = socket.address.port();
        let Some(protocol) = protocol(port, owners.get(&socket.inode)) else {
            continue;
        };
        found
            .entry((protocol.to_owned(), port))
            .or_insert_with(|| Target {
                protocol: protocol.to_owned(),
                port,
                bound: Vec::new(),
                sockets: Vec::new(),
                waiting: 0,
                address: None,
                owner: None,
            })
            .add(socket, owners);
    }
    found.into_values().take(MAX_TARGETS).collect()
}

/// What a socket speaks. Its program says it best, but not of every port that the program has.
fn protocol(port: u16, owner: Option<&Owner>) -> Option<&'static str> {
    let by_port = match port {
        22 => Some("ssh"),
        3389 => Some("rdp"),
        5900..=5999 => Some("vnc"),
        // Web clients of VNC servers, X servers, and X displays that sshd forwards.
        5800..=5899 | 6000..=6099 => return None,
        _ => None,
    };
    let by_program = owner.and_then(|owner| {
        PROGRAMS
            .iter()
            .find(|(name, _)| *name == owner.name)
            .map(|(_, protocol)| *protocol)
    });
    by_program.or(by_port)
}

#[cfg(test)]
#[path = "session_listener_tests.rs"]
mod tests;
