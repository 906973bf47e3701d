//! What a run is: a fleet, its pace, and the faults that it meets. All of it follows from a seed,
//! and any part can be left out to make a failing run smaller.

use std::{fmt, time::Duration};

use crate::rng::Rng;

/// Before this time nothing goes wrong: the fleet comes up.
const WARM_UP: Duration = Duration::from_secs(70);
/// At the end nothing goes wrong for so long: what is well must be back by then. The slowest way
/// back is that of a machine that was taken for a copy: it tries again after a minute, and waits
/// for checks.
pub const CALM: Duration = Duration::from_secs(190);

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed that it came from; what happens by chance within the run follows from it too.
    pub seed: u64,
    /// How long it lasts.
    pub lasts: Duration,
    /// It is cut short then, and nobody asks whether all is well again.
    pub until: Option<Duration>,
    /// Hosts.
    pub hosts: usize,
    /// Pools, with the hosts dealt out in turn.
    pub pools: usize,
    /// The broker dials silent hosts.
    pub probe: bool,
    /// Several hosts come from one address, which they do not name as their own.
    pub shared_addresses: bool,
    /// Nothing happens that a host's users would notice: nobody may be called unavailable.
    pub harmless: bool,
    /// What goes wrong.
    pub faults: Vec<Fault>,
}

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fault {
    /// When it begins.
    pub at: Duration,
    /// How long it lasts, for what has a length.
    pub lasts: Duration,
    /// What.
    pub what: What,
}

/// Kinds of faults. `usize` names a host.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum What {
    /// The agent's process is killed, and started again at the end.
    AgentKilled(usize),
    /// The agent restarts, and says so.
    AgentRestarts(usize),
    /// The agent is stopped by its administrator.
    AgentStopped(usize),
    /// The agent's process is stopped (SIGSTOP) for a while.
    AgentPaused(usize),
    /// The agent's process is killed and its resume token is lost.
    TokenLost(usize),
    /// No power, without a word.
    PowerCut(usize),
    /// A goodbye, and off.
    Poweroff(usize),
    /// A goodbye, a reboot.
    Reboot(usize),
    /// A goodbye, and suspended.
    Suspend(usize),
    /// The connection is reset.
    Reset(usize),
    /// One side's end of the connection is gone, and the other does not know.
    HalfOpen(usize),
    /// Nothing passes between this host and the broker.
    Cut(usize),
    /// Nothing passes between these hosts (of a hundred) and the broker.
    CutSome(u8),
    /// Nothing passes between the broker and anybody.
    CutAll,
    /// Messages take so many milliseconds at most.
    Slow(u16),
    /// An adversary repeats and reorders messages.
    Adversary,
    /// The broker is killed, and started again at the end; true if its machine goes down with it.
    BrokerKilled(bool),
    /// The broker is killed again and again, and lives so many seconds each time.
    BrokerLoops(u8),
    /// The broker stops well, and is started again at the end.
    BrokerStops,
    /// The broker's process is stopped (SIGSTOP) for a while.
    BrokerPaused,
    /// The store takes seconds for a commit.
    StoreSlow,
    /// The store fails.
    StoreFails,
    /// The broker's wall clock jumps by so many seconds.
    WallJumps(i32),
    /// A fatal check fails.
    FatalFails(usize),
    /// A non-fatal check fails.
    NonFatalFails(usize),
    /// A fatal check hangs.
    CheckHangs(usize),
    /// The loop that runs the checks is stuck; beats go on.
    ChecksStuck(usize),
    /// The session listener is down.
    ListenerDown(usize),
    /// A firewall rejects the broker's own dials to this host, and nobody else's.
    FirewallRejects(usize),
    /// A copy of the machine runs.
    Clone(usize),
    /// A front end whose own connections all fail.
    FrontEndBroken,
    /// An operator drains the host.
    Drained(usize),
    /// The agent is upgraded: 0 well, 1 fails, 2 never says how it ended.
    Upgraded(usize, u8),
    /// The host comes and goes.
    Flaps(usize),
    /// The host is removed.
    Removed(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} at {:.1} s for {:.1} s",
            self.what,
            self.at.as_secs_f64(),
            self.lasts.as_secs_f64()
        )
    }
}

impl Plan {
    /// The run of this seed.
    #[must_use]
    pub fn of(seed: u64, lasts: Duration) -> Self {
        let mut rng = Rng::new(seed ^ 0x006d_7573_7465_7200);
        let hosts = match rng.below(20) {
            0 => 1,
            1 => 2,
            2 => 24,
            _ => 3 + rng.index(8),
        };
        let harmless = rng.percent(25);
        let mut plan = Self {
            seed,
            lasts,
            until: None,
            hosts,
            pools: 1 + rng.index(2).min(hosts - 1),
            probe: rng.percent(70),
            shared_addresses: rng.percent(15),
            harmless,
            faults: Vec::new(),
        };
        let until = lasts.saturating_sub(CALM);
        if until <= WARM_UP {
            return plan;
        }
        for _ in 0..1 + rng.below(9) {
            let at = rng.between(WARM_UP, until);
            let fault = if harmless {
                harmless_fault(&mut rng, hosts)
            } else {
                any_fault(&mut rng, hosts, lasts)
            };
            let lasts = fault.1.min(until.saturating_sub(at));
            plan.faults.push(Fault {
                at,
                lasts,
                what: fault.0,
            });
        }
        if harmless {
            plan.space_out();
        }
        plan.faults.sort_by_key(|fault| fault.at);
        plan
    }

    /// Harmless faults are harmless one by one: together a slow network and a broken connection
    /// are not.
    fn space_out(&mut self) {
        self.faults.sort_by_key(|fault| fault.at);
        let mut kept: Vec<Fault> = Vec::new();
        for fault in &self.faults {
            let free = kept
                .last()
                .is_none_or(|before| fault.at >= before.at + before.lasts + WARM_UP);
            if free {
                kept.push(*fault);
            }
        }
        self.faults = kept;
    }

    /// One line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} hosts in {} pools, probe {}, {} faults, {:.0} s{}{}",
            self.hosts,
            self.pools,
            if self.probe { "on" } else { "off" },
            self.faults.len(),
            self.lasts.as_secs_f64(),
            if self.shared_addresses {
                ", shared addresses"
            } else {
                ""
            },
            if self.harmless { ", harmless" } else { "" },
        )
    }
}

fn harmless_fault(rng: &mut Rng, hosts: usize) -> (What, Duration) {
    let host = rng.index(hosts);
    match rng.below(12) {
        0 => (What::AgentKilled(host), rng.millis(100, 3000)),
        1 => (What::AgentRestarts(host), rng.millis(100, 3000)),
        2 => (What::Reset(host), Duration::ZERO),
        3 => (What::Cut(host), rng.millis(100, 8000)),
        4 => (What::CutAll, rng.seconds(1, 8)),
        5 => (What::Slow(1000), rng.seconds(5, 60)),
        6 => (What::Adversary, rng.seconds(5, 60)),
        7 => (What::BrokerKilled(rng.percent(50)), rng.seconds(1, 20)),
        8 => (What::BrokerStops, rng.seconds(1, 20)),
        9 => (What::BrokerPaused, pause(rng)),
        10 => (What::StoreSlow, rng.seconds(5, 60)),
        _ => (What::WallJumps(jump(rng)), Duration::ZERO),
    }
}

fn pause(rng: &mut Rng) -> Duration {
    match rng.below(3) {
        0 => rng.millis(100, 5000),
        1 => rng.seconds(5, 60),
        _ => rng.seconds(60, 150),
    }
}

fn jump(rng: &mut Rng) -> i32 {
    let seconds = i32::try_from(rng.below(7200)).unwrap_or(0);
    if rng.percent(50) { seconds } else { -seconds }
}

fn any_fault(rng: &mut Rng, hosts: usize, run: Duration) -> (What, Duration) {
    let host = rng.index(hosts);
    let short = rng.millis(100, 20_000);
    let long = rng.between(Duration::from_secs(5), run / 3);
    match rng.below(46) {
        0 => (What::AgentKilled(host), short),
        1 => (What::AgentKilled(host), long),
        2 => (What::AgentRestarts(host), short),
        3 => (What::AgentStopped(host), long),
        4 => (What::AgentPaused(host), long),
        5 => (What::TokenLost(host), short),
        6 | 7 => (What::PowerCut(host), long),
        8 => (What::Poweroff(host), long),
        9 => (What::Reboot(host), rng.seconds(10, 90)),
        10 => (What::Suspend(host), long),
        11 | 12 => (What::Reset(host), Duration::ZERO),
        13 => (What::HalfOpen(host), Duration::ZERO),
        14 | 15 => (What::Cut(host), short),
        16 => (What::Cut(host), long),
        17 => (
            What::CutSome(u8::try_from(10 + rng.below(90)).unwrap_or(50)),
            long,
        ),
        18 => (What::CutAll, short),
        19 => (What::CutAll, long),
        20 => (
            What::Slow(u16::try_from(200 + rng.below(9000)).unwrap_or(500)),
            long,
        ),
        21 | 22 => (What::Adversary, long),
        23 | 24 => (What::BrokerKilled(rng.percent(40)), rng.millis(100, 30_000)),
        25 => (What::BrokerKilled(rng.percent(40)), long),
        26 => (What::BrokerStops, short),
        27 | 28 => (
            What::BrokerPaused,
            if rng.percent(80) {
                pause(rng)
            } else {
                rng.seconds(100, 400)
            },
        ),
        29 => (What::StoreSlow, long),
        30 => (What::StoreFails, long),
        31 => (What::WallJumps(jump(rng)), Duration::ZERO),
        32 => (What::FatalFails(host), long),
        33 => (What::NonFatalFails(host), long),
        34 => (What::CheckHangs(host), long),
        35 => (What::ChecksStuck(host), rng.seconds(60, 300)),
        36 => (What::ListenerDown(host), short),
        37 => (What::FirewallRejects(host), long),
        38 => (What::Clone(host), long),
        39 => (What::FrontEndBroken, long),
        40 => (What::Drained(host), long),
        41 => (
            What::Upgraded(host, u8::try_from(rng.below(3)).unwrap_or(0)),
            long,
        ),
        42 => (What::Flaps(host), rng.seconds(60, 250)),
        43 | 44 => (
            What::BrokerLoops(u8::try_from(2 + rng.below(90)).unwrap_or(9)),
            rng.seconds(20, 300),
        ),
        _ => (What::Removed(host), Duration::ZERO),
    }
}
