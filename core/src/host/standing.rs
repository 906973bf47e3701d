//! How a host stands, as the rules of the whole fleet see it: told on change, never per beat.

use std::net::{IpAddr, SocketAddr};

use super::{
    AbsentWhy, Admin, Context, Facts, Link, Power, Presence, SuspectWhy, presence::presence,
};
use crate::model::{Leave, Mono, PoolName, PoolPolicy};

/// Is it there?
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Here {
    /// Beats arrive.
    Confirmed,
    /// A beat is overdue or the stream broke; its agent said nothing about it.
    Overdue,
    /// Its agent said that it restarts, and is not back yet.
    Restarting,
    /// Known from before the broker's start, not heard yet.
    Unverified,
    /// Not there.
    Gone(Gone),
}

/// Why a host is not there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gone {
    /// It was heard, and was lost.
    Lost,
    /// It said goodbye, never came, is banned, or did not come back after the broker's restart.
    Otherwise,
}

impl Here {
    /// It counts among those that are there.
    #[must_use]
    pub const fn is_present(self) -> bool {
        !matches!(self, Self::Gone(_))
    }
}

/// How a host stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its pool.
    pub pool: PoolName,
    /// Orders what is told of one host: lower ones came earlier.
    pub version: u64,
    /// Is it there?
    pub here: Here,
    /// The answer for a new session.
    pub connectable_new: bool,
    /// Where the broker may dial it to see whether it answers.
    pub target: Option<SocketAddr>,
}

impl Standing {
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            pool,
            version: _,
            here,
            connectable_new,
            target,
        } = self;
        (pool, here, connectable_new, target)
            == (
                &other.pool,
                &other.here,
                &other.connectable_new,
                &other.target,
            )
    }
}

/// Is it there, for the rules of the fleet?
pub(super) fn here(facts: &Facts, context: &Context<'_>) -> Here {
    let Admin {
        banned_since,
        approval_awaited_since,
        drains: _,
    } = &*facts.admin;
    if banned_since.is_some() || approval_awaited_since.is_some() {
        return Here::Gone(Gone::Otherwise);
    }
    if let Power::Leaving { how, .. } = facts.power {
        match how {
            Leave::Poweroff | Leave::Reboot | Leave::Suspend | Leave::AgentStop => {
                return Here::Gone(Gone::Otherwise);
            }
            Leave::AgentRestart => {}
        }
    }
    match presence(facts, context) {
        Presence::Confirmed | Presence::Suspect(SuspectWhy::BrokerLate) => Here::Confirmed,
        Presence::Suspect(SuspectWhy::AgentRestarting) => Here::Restarting,
        Presence::Suspect(SuspectWhy::StreamEnded | SuspectWhy::Silent) => Here::Overdue,
        Presence::Suspect(SuspectWhy::MassLoss) => match facts.link {
            Link::Heard(_) => Here::Overdue,
            Link::Loaded { .. } | Link::NeverSeen | Link::Lost { .. } => Here::Unverified,
        },
        Presence::Unverified => Here::Unverified,
        Presence::Absent(AbsentWhy::LeaseOver | AbsentWhy::ProbeRefused) => Here::Gone(Gone::Lost),
        Presence::Absent(AbsentWhy::NeverSeen | AbsentWhy::NotBackAfterRestart) => {
            Here::Gone(Gone::Otherwise)
        }
    }
}

/// Where the broker may dial the host: one of its own listeners at one of its own addresses, as
/// the pool's policy allows.
///
/// An address is the host's own if the host itself names it. So the address of a balancer or of a
/// translating router, which the broker sees but the host does not know, is never dialled, and
/// neither is a temporary address, which agents do not name.
pub(super) fn probe_target(facts: &Facts, policy: &PoolPolicy) -> Option<SocketAddr> {
    let probe = policy.probe.as_ref()?;
    let peer = facts.about.peer_address.parse::<SocketAddr>().ok();
    let peer = peer.map(|peer| peer.ip().to_canonical());
    let own = facts
        .about
        .addresses
        .iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|address| address.to_canonical())
        // Whoever comes from loopback runs on this very machine, whatever it calls itself.
        .chain(peer.filter(IpAddr::is_loopback));
    let mut allowed: Vec<IpAddr> = own
        .filter(|address| {
            probe.allows(*address)
                || Some(*address) == peer && !facts.about.is_local && is_dialable(*address)
        })
        .collect();
    // The address that it is heard from is the likeliest to be reached.
    allowed.sort_by_key(|address| Some(*address) != peer);
    allowed.into_iter().find_map(|address| {
        facts
            .listeners
            .iter()
            .filter(|listener| {
                probe.allows_port(listener.port)
                    && (listener.addresses.is_empty()
                        || listener.addresses.iter().any(|bound| {
                            bound.parse::<IpAddr>().is_ok_and(|bound| {
                                bound.is_unspecified() || bound.to_canonical() == address
                            })
                        }))
            })
            // VNC servers count every stranger and lock out its address: only where nothing else
            // listens.
            .min_by_key(|listener| &*listener.protocol == "vnc")
            .map(|listener| SocketAddr::new(address, listener.port))
    })
}

/// Not this machine, not everybody, not only this link.
fn is_dialable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_unspecified())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified())
        }
    }
}

/// The broker's dial found nobody where this host used to answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conviction {
    /// When the first dial began: a word after it acquits.
    pub dialled_at: Mono,
    /// What was tried and what came back, step by step.
    pub evidence: std::sync::Arc<[String]>,
}
