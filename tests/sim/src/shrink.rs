//! Makes a failing run smaller: fewer faults, a smaller fleet, an earlier end.

use std::time::Duration;

use crate::{Broken, Plan, Trace, World, plan::What};

/// Runs that are tried at most: a few seconds.
const TRIES: usize = 300;

/// What of a plan is left.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The plan.
    pub plan: Plan,
    /// Numbers of the faults that are left, as the seed's whole plan counts them.
    pub only: Vec<usize>,
    /// How it breaks.
    pub broken: Broken,
}

/// The plan of a seed with less of everything: these faults only, so many hosts, until then.
#[must_use]
pub fn cut(
    mut plan: Plan,
    only: Option<&[usize]>,
    hosts: Option<usize>,
    until: Option<Duration>,
) -> Plan {
    if let Some(only) = only {
        plan.faults = plan
            .faults
            .iter()
            .enumerate()
            .filter(|(number, _)| only.contains(number))
            .map(|(_, fault)| *fault)
            .collect();
    }
    if let Some(hosts) = hosts {
        plan.hosts = hosts.clamp(1, plan.hosts);
        plan.pools = plan.pools.min(plan.hosts);
        let hosts = plan.hosts;
        plan.faults
            .retain(|fault| host_of(fault.what).is_none_or(|host| host < hosts));
    }
    if let Some(until) = until {
        plan.until = Some(until);
    }
    plan
}

/// The smallest variant of a failing run that breaks the same invariant.
#[must_use]
pub fn shrink(whole: &Plan, broken: Broken) -> Shrunk {
    let mut tries = TRIES;
    let mut best = Shrunk {
        plan: whole.clone(),
        only: (0..whole.faults.len()).collect(),
        broken,
    };
    let mut attempt = |only: &[usize], hosts: usize, until: Option<Duration>, invariant: u8| {
        tries = tries.checked_sub(1)?;
        let plan = cut(whole.clone(), Some(only), Some(hosts), until);
        let (result, _) = World::new(plan.clone(), Trace::quiet()).run();
        let broken = result
            .err()
            .filter(|broken| broken.invariant == invariant)?;
        Some(Shrunk {
            plan,
            only: only.to_vec(),
            broken,
        })
    };
    let mut went_on = true;
    while went_on {
        went_on = false;
        for number in best.only.clone() {
            let only: Vec<usize> = best.only.iter().copied().filter(|n| *n != number).collect();
            let hosts = best.plan.hosts;
            if let Some(found) = attempt(&only, hosts, None, best.broken.invariant) {
                best = found;
                went_on = true;
            }
        }
        for hosts in 1..best.plan.hosts {
            if let Some(found) = attempt(&best.only, hosts, None, best.broken.invariant) {
                best = found;
                went_on = true;
                break;
            }
        }
    }
    if best.broken.at < best.plan.lasts {
        let until = Some(best.broken.at + Duration::from_secs(1));
        let (only, hosts) = (best.only.clone(), best.plan.hosts);
        if let Some(found) = attempt(&only, hosts, until, best.broken.invariant) {
            best = found;
        }
    }
    best
}

fn host_of(what: What) -> Option<usize> {
    match what {
        What::AgentKilled(host)
        | What::AgentRestarts(host)
        | What::AgentStopped(host)
        | What::AgentPaused(host)
        | What::TokenLost(host)
        | What::PowerCut(host)
        | What::Poweroff(host)
        | What::Reboot(host)
        | What::Suspend(host)
        | What::Reset(host)
        | What::HalfOpen(host)
        | What::Cut(host)
        | What::FatalFails(host)
        | What::NonFatalFails(host)
        | What::CheckHangs(host)
        | What::ChecksStuck(host)
        | What::ListenerDown(host)
        | What::FirewallRejects(host)
        | What::Clone(host)
        | What::Drained(host)
        | What::Upgraded(host, _)
        | What::Flaps(host)
        | What::Removed(host) => Some(host),
        What::CutSome(_)
        | What::CutAll
        | What::Slow(_)
        | What::Adversary
        | What::BrokerKilled(_)
        | What::BrokerLoops(_)
        | What::BrokerStops
        | What::BrokerPaused
        | What::StoreSlow
        | What::StoreFails
        | What::WallJumps(_)
        | What::FrontEndBroken => None,
    }
}
