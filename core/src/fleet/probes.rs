//! The broker's own look: which host is dialled when, and what may follow from it.
//!
//! ```text
//! Confirmed --every 10 min--> dial --answered--> calibrated for 15 min; anything else: not at all
//! Overdue and calibrated ---> dial --refused--> 500 ms --> dial --refused--> evidence against it
//!                               |--unreachable-----------------------------> evidence against it
//!                               |--answered--------------------------------> evidence for it,
//!                               |                                            and soon a dial again
//!                               '--silent----------------------------------> nothing
//! ```
//! Only a target that answered this broker while its host was heard can tell anything by not
//! answering now, and only if no other host has the same target: behind one address there may be
//! many machines.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use jiff::Timestamp;

use super::RateLimit;
use crate::{
    host::{Conviction, Here, Standing},
    model::{HostId, Mono, Now},
};

/// A healthy host is dialled at most once in this time.
const CALIBRATE_EVERY: Duration = Duration::from_secs(10 * 60);
/// An answer counts for this long: one and a half rounds, so that one may be late.
const CALIBRATED_FOR: Duration = Duration::from_secs(15 * 60);
/// Between two refusals that count: a server that restarts is back by then.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A silent host whose listener answers is dialled again after this time: a machine that goes down
/// may lose its agent first, and its listener a moment later. Each further time takes four times
/// as long, so that a host that is well is dialled five times within a lease at most.
const ANSWERED_AGAIN: Duration = Duration::from_millis(250);
/// The longest such time: from there on its lease judges.
const ANSWERED_AGAIN_MAX: Duration = Duration::from_secs(64);
/// A held host is dialled again after this time.
const HELD_EVERY: Duration = Duration::from_secs(30);
/// First calibrations of a fleet are spread over this time.
const CALIBRATE_SPREAD: Duration = Duration::from_secs(10);
/// Dials under way at once: each is a socket for a few seconds at most.
const DIALS_AT_ONCE: usize = 256;
/// Dials a second: a fleet of 15,000 is calibrated within its ten minutes ten times over.
const DIALS_PER_SECOND: u32 = 250;

/// What a dial is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// To know whether a healthy host answers the broker at all.
    Calibrate,
    /// To know whether a silent one is still there.
    Arbitrate,
}

/// A dial to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dial {
    /// The host.
    pub id: HostId,
    /// Where.
    pub target: SocketAddr,
    /// What for.
    pub purpose: Purpose,
    /// When it began.
    pub at: Mono,
    /// Tells apart what the host went through before.
    episode: u32,
}

/// What came of a dial.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DialOutcome {
    /// Somebody takes connections there.
    Answered,
    /// The connection was refused.
    Refused,
    /// The network says that there is no such host or no way to it.
    Unreachable,
    /// Nothing came back in time, or the broker itself could not dial.
    Silent,
}

impl DialOutcome {
    /// The word for it in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Silent => "silent",
        }
    }
}

/// What dials found about a silent host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Finding {
    /// Its listener answers.
    Answered,
    /// Nothing came back: that says nothing, and what was found before holds no more.
    Silent,
    /// Its listener does not, and would if it could.
    Gone(Conviction),
}

#[derive(Debug)]
struct Probed {
    target: Option<SocketAddr>,
    here: Here,
    /// Counts how often it changed between heard and silent.
    episode: u32,
    /// Last answer while it was heard.
    calibrated_at: Option<(Mono, Timestamp)>,
    /// Last dial while it was heard.
    asked_at: Option<Mono>,
    /// First refusal since it fell silent, and when that dial began.
    refused: Option<(Mono, Timestamp)>,
    due: Option<Mono>,
    held: bool,
    /// Front ends cannot connect to it: look, although it is heard.
    look: bool,
    /// Answers since it fell silent.
    answers: u32,
}

/// All dials of one broker.
#[derive(Debug)]
pub(super) struct Probes {
    hosts: HashMap<HostId, Probed>,
    /// How many hosts have a target.
    sharers: HashMap<SocketAddr, u32>,
    due: BTreeSet<(Mono, HostId)>,
    /// Hosts that have just fallen silent: each is in it once, at most all hosts.
    urgent: VecDeque<HostId>,
    under_way: HashMap<HostId, Purpose>,
    rate: RateLimit,
}

impl Probes {
    pub(super) fn new(now: Mono) -> Self {
        Self {
            hosts: HashMap::new(),
            sharers: HashMap::new(),
            due: BTreeSet::new(),
            urgent: VecDeque::new(),
            under_way: HashMap::new(),
            rate: RateLimit::new(DIALS_PER_SECOND, DIALS_PER_SECOND, now),
        }
    }

    /// Dials under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Hosts that could be convicted by a dial.
    pub(super) fn calibrated(&self, now: Mono) -> usize {
        self.hosts
            .keys()
            .filter(|id| self.usable(**id, now).is_some())
            .count()
    }

    pub(super) fn handle_standing(&mut self, id: HostId, standing: &Standing, now: Mono) {
        let host = self.hosts.entry(id).or_insert_with(|| Probed {
            target: None,
            here: Here::Unverified,
            episode: 0,
            calibrated_at: None,
            asked_at: None,
            refused: None,
            due: None,
            held: false,
            look: false,
            answers: 0,
        });
        if host.target != standing.target {
            let before = std::mem::replace(&mut host.target, standing.target);
            host.calibrated_at = None;
            // Its turn stays: a host that names another listener each time is asked no more often.
            host.episode += 1;
            if let Some(before) = before
                && let Some(count) = self.sharers.get_mut(&before)
            {
                *count -= 1;
                if *count == 0 {
                    self.sharers.remove(&before);
                }
            }
            if let Some(target) = standing.target {
                *self.sharers.entry(target).or_default() += 1;
            }
        }
        let was = std::mem::replace(&mut host.here, standing.here);
        if was != standing.here {
            host.episode += 1;
            host.refused = None;
            host.look = false;
            host.answers = 0;
        }
        match standing.here {
            Here::Overdue if was != Here::Overdue => self.urgent.push_back(id),
            Here::Confirmed => {
                let at = host.asked_at.map_or_else(
                    || now + spread(id),
                    |asked| (asked + CALIBRATE_EVERY).max(now),
                );
                self.wake(id, at);
            }
            Here::Overdue | Here::Restarting | Here::Unverified | Here::Gone(_) => {}
        }
    }

    pub(super) fn handle_removed(&mut self, id: HostId) {
        let Some(host) = self.hosts.remove(&id) else {
            return;
        };
        if let Some(due) = host.due {
            self.due.remove(&(due, id));
        }
        if let Some(target) = host.target
            && let Some(count) = self.sharers.get_mut(&target)
        {
            *count -= 1;
            if *count == 0 {
                self.sharers.remove(&target);
            }
        }
        self.under_way.remove(&id);
    }

    /// A held host is dialled again and again, as arbiter.
    pub(super) fn set_held(&mut self, id: HostId, held: bool, now: Mono) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.held = held;
            if held {
                self.wake(id, now + HELD_EVERY);
            }
        }
    }

    /// The outside cannot connect to a host that is heard: look, if that can tell anything.
    pub(super) fn look(&mut self, id: HostId, now: Mono) {
        if let Some(host) = self.hosts.get_mut(&id)
            && !host.look
        {
            host.look = true;
            host.refused = None;
            self.wake(id, now);
        }
    }

    /// What was found about a silent host counts no more: dial it again now.
    pub(super) fn ask_again(&mut self, id: HostId, now: Mono) {
        if let Some(host) = self.hosts.get_mut(&id) {
            host.refused = None;
            self.wake(id, now);
        }
    }

    fn wake(&mut self, id: HostId, at: Mono) {
        let Some(host) = self.hosts.get_mut(&id) else {
            return;
        };
        if let Some(before) = host.due {
            if before <= at {
                return;
            }
            self.due.remove(&(before, id));
        }
        host.due = Some(at);
        self.due.insert((at, id));
    }

    /// The target of a host that a dial could convict.
    fn usable(&self, id: HostId, now: Mono) -> Option<SocketAddr> {
        let host = self.hosts.get(&id)?;
        let target = host.target?;
        let fresh = host
            .calibrated_at
            .is_some_and(|(at, _)| now.since(at) < CALIBRATED_FOR);
        (fresh && self.sharers.get(&target) == Some(&1)).then_some(target)
    }

    /// The next dial to make; none while there is none, or as many are under way as may be.
    pub(super) fn poll_dial(&mut self, now: Mono) -> Option<Dial> {
        loop {
            if self.under_way.len() >= DIALS_AT_ONCE {
                return None;
            }
            let (id, at) = match self.urgent.front() {
                Some(id) => (*id, None),
                None => {
                    let (at, id) = *self.due.first()?;
                    if at > now {
                        return None;
                    }
                    (id, Some(at))
                }
            };
            let dial = self.dial(id, now);
            if dial.is_some() && !self.rate.take(now) {
                return None;
            }
            match at {
                None => {
                    self.urgent.pop_front();
                }
                Some(at) => {
                    self.due.remove(&(at, id));
                    if let Some(host) = self.hosts.get_mut(&id) {
                        host.due = None;
                    }
                    if dial.is_none() {
                        self.calibrate_later(id, now);
                    }
                }
            }
            if let Some(dial) = dial {
                if let (Purpose::Calibrate, Some(host)) = (dial.purpose, self.hosts.get_mut(&id)) {
                    host.asked_at = Some(now);
                }
                self.under_way.insert(id, dial.purpose);
                return Some(dial);
            }
        }
    }

    /// It came up and is not to be dialled now: a healthy host comes up again for its next round.
    fn calibrate_later(&mut self, id: HostId, now: Mono) {
        let Some(host) = self.hosts.get(&id) else {
            return;
        };
        if host.here == Here::Confirmed && host.target.is_some() {
            let next = host.asked_at.unwrap_or(now) + CALIBRATE_EVERY;
            // Shared with another host: looked at again a round later.
            let next = if next > now {
                next
            } else {
                now + CALIBRATE_EVERY
            };
            self.wake(id, next);
        }
    }

    fn dial(&self, id: HostId, now: Mono) -> Option<Dial> {
        let host = self.hosts.get(&id)?;
        if self.under_way.contains_key(&id) {
            return None;
        }
        let (purpose, target) = match host.here {
            Here::Overdue => (Purpose::Arbitrate, self.usable(id, now)?),
            Here::Unverified if host.held => (Purpose::Arbitrate, self.usable(id, now)?),
            Here::Confirmed if host.look && self.usable(id, now).is_some() => {
                (Purpose::Arbitrate, self.usable(id, now)?)
            }
            Here::Confirmed => {
                let target = host.target?;
                let early = host
                    .asked_at
                    .is_some_and(|asked| now.since(asked) < CALIBRATE_EVERY);
                if early || self.sharers.get(&target) != Some(&1) {
                    return None;
                }
                (Purpose::Calibrate, target)
            }
            Here::Restarting | Here::Unverified | Here::Gone(_) => return None,
        };
        Some(Dial {
            id,
            target,
            purpose,
            at: now,
            episode: host.episode,
        })
    }

    /// Takes in what came of a dial.
    pub(super) fn handle_dialled(
        &mut self,
        dial: &Dial,
        outcome: DialOutcome,
        now: Now,
    ) -> Option<Finding> {
        self.under_way.remove(&dial.id);
        let usable = self.usable(dial.id, now.mono) == Some(dial.target);
        let host = self.hosts.get_mut(&dial.id)?;
        let (here, held) = (host.here, host.held);
        if host.episode != dial.episode {
            // It has moved on: what is due for it now is asked anew.
            if here == Here::Overdue {
                self.urgent.push_back(dial.id);
            } else if here == Here::Confirmed {
                let asked = host.asked_at.map_or(now.mono, |at| at + CALIBRATE_EVERY);
                self.wake(dial.id, asked);
            }
            return None;
        }
        match dial.purpose {
            Purpose::Calibrate => {
                host.calibrated_at =
                    (outcome == DialOutcome::Answered).then_some((now.mono, now.wall));
                let next = host.asked_at.unwrap_or(now.mono) + CALIBRATE_EVERY;
                self.wake(dial.id, next);
                None
            }
            Purpose::Arbitrate => {
                let finding = match outcome {
                    DialOutcome::Answered => {
                        host.refused = None;
                        Some(Finding::Answered)
                    }
                    DialOutcome::Silent => Some(Finding::Silent),
                    // Another host came to the same address meanwhile: nobody is convicted by it.
                    DialOutcome::Refused | DialOutcome::Unreachable if !usable => None,
                    DialOutcome::Refused => match host.refused {
                        None => {
                            host.refused = Some((dial.at, now.wall));
                            self.wake(dial.id, now.mono + AGAIN_AFTER);
                            return None;
                        }
                        Some((first, first_wall)) => Some(Finding::Gone(Conviction {
                            dialled_at: first,
                            evidence: [
                                answered(host, dial),
                                format!("{} refused the broker at {first_wall}", dial.target),
                                format!("and again at {}", now.wall),
                            ]
                            .into(),
                        })),
                    },
                    DialOutcome::Unreachable => Some(Finding::Gone(Conviction {
                        dialled_at: dial.at,
                        evidence: [
                            answered(host, dial),
                            format!("{} is unreachable since {}", dial.target, now.wall),
                        ]
                        .into(),
                    })),
                };
                host.look = false;
                if here == Here::Overdue && !held && finding == Some(Finding::Answered) {
                    let factor = 4u32.saturating_pow(host.answers);
                    host.answers += 1;
                    let after = ANSWERED_AGAIN.saturating_mul(factor);
                    self.wake(dial.id, now.mono + after.min(ANSWERED_AGAIN_MAX));
                } else if held {
                    self.wake(dial.id, now.mono + HELD_EVERY);
                } else if here == Here::Confirmed {
                    let asked = host.asked_at.unwrap_or(now.mono);
                    self.wake(dial.id, asked + CALIBRATE_EVERY);
                }
                finding
            }
        }
    }
}

fn answered(host: &Probed, dial: &Dial) -> String {
    let at = host
        .calibrated_at
        .map_or_else(String::new, |(_, at)| at.to_string());
    format!("{} answered the broker at {at}", dial.target)
}

/// The same for a host each time, different for each host.
fn spread(id: HostId) -> Duration {
    let byte = id.as_bytes()[0];
    CALIBRATE_SPREAD * u32::from(byte) / 256
}
