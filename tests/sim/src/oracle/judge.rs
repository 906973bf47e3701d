//! The invariants of one host at an instant.

use std::time::Duration;

use muster_core::{
    host::{self, Context, Facts, Presence, Upgrade},
    model::{Confidence, Intent, Mono, Now, ReasonCode, Status, UpgradeAnnouncement, Verdict},
};

use super::{HOLD_MAX, INTENTS, Oracle, WINDOW_MAX};
use crate::{
    agent::Machine,
    broker::{Broker, Cell, Clocks, RECONNECT_WINDOW, TERMS},
};

/// An attempt at an upgrade ends within this time; the sum of both deadlines and some slack.
const UPGRADE_MAX: Duration = Duration::from_secs(5 * 60 + 5);
/// How much later than its own books the judge lets something end: a wheel's bucket and a tick.
const SLACK: Duration = Duration::from_millis(1500);
/// A host may be served so much longer than a window for each start of a broker that was killed
/// before its first charge was durable.
const START_SLACK: Duration = Duration::from_secs(12);

pub(super) fn context<'a>(
    cell: &'a Cell,
    broker: &Broker,
    judged: Mono,
    clocks: Clocks,
) -> Context<'a> {
    Context {
        now: Now {
            mono: judged,
            wall: broker.now(clocks).wall,
        },
        policy: &cell.policy,
        window_ends: broker.window_ends(),
        broker_late: false,
    }
}

/// The part in which two sets of facts differ.
pub(super) fn difference(before: &Facts, after: &Facts) -> String {
    let (before, after) = (format!("{before:?}"), format!("{after:?}"));
    let at = before
        .bytes()
        .zip(after.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let from = at.saturating_sub(60);
    let part = |text: &str| {
        text.get(from..(from + 160).min(text.len()))
            .unwrap_or_default()
            .to_owned()
    };
    format!("{} -> {}", part(&before), part(&after))
}

impl Oracle {
    pub(super) fn judge(
        &mut self,
        host: usize,
        broker: &mut Broker,
        machines: &[Machine],
        clocks: Clocks,
    ) {
        if !self.hosts[host].exists || broker.cells.get(host).is_none_or(Option::is_none) {
            return;
        }
        let judged = self.clock.read(clocks.boot);
        let told = broker.now(clocks).mono;
        if judged != told {
            self.problem(
                1,
                Some(host),
                format!("judged time is {told:?}, not {judged:?}"),
            );
        }
        let mut verdicts = Vec::new();
        for intent in INTENTS {
            let Some(verdict) = broker.verdict(host, intent, clocks) else {
                self.judge_silence(host, clocks);
                return;
            };
            self.verdicts += 1;
            verdicts.push(verdict);
        }
        self.judge_faces(host, &verdicts);
        let verdict = verdicts.swap_remove(0);
        self.judge_presence(host, &verdict, broker, judged, clocks);
        self.judge_health(host, &verdict, judged);
        self.judge_well(host, &verdict, broker, judged, clocks);
        self.judge_harmless(host, &verdict, machines);
        self.judge_upgrade(host, broker, judged);
        self.judge_step(host, broker, judged, clocks);
        self.judge_bounds(host, broker);
    }

    /// No answer is right only while the broker's own tick is late by more than a lease.
    fn judge_silence(&mut self, host: usize, clocks: Clocks) {
        if clocks.boot.since(self.clock.ticked) <= TERMS.lease {
            self.problem(
                11,
                Some(host),
                "no answer, and the broker is not late".to_owned(),
            );
        }
    }

    fn judge_faces(&mut self, host: usize, verdicts: &[Verdict]) {
        let [new, back] = verdicts else {
            return;
        };
        let same = (new.connectable_new, new.connectable_reconnect, new.status)
            == (
                back.connectable_new,
                back.connectable_reconnect,
                back.status,
            );
        if !same
            || new.connectable != new.connectable_new
            || back.connectable != back.connectable_reconnect
        {
            self.problem(12, Some(host), "two faces differ".to_owned());
        }
        if new.connectable_new && !new.connectable_reconnect {
            self.problem(
                12,
                Some(host),
                "new sessions and no way back to them".to_owned(),
            );
        }
    }

    /// 1, and 14.
    fn judge_presence(
        &mut self,
        host: usize,
        verdict: &Verdict,
        broker: &Broker,
        judged: Mono,
        clocks: Clocks,
    ) {
        let seen = &self.hosts[host];
        let lease = seen.lease_runs(judged);
        let in_window = seen.loaded.is_some_and(|loaded| {
            self.window
                .is_some_and(|window| judged < window.opened + WINDOW_MAX)
                && broker.window_ends().is_some_and(|ends| judged < ends)
                && loaded.ends.is_none_or(|ends| judged < ends)
        });
        let held = seen
            .imposed
            .hold
            .as_ref()
            .is_some_and(|hold| judged < hold.until);
        let connectable = verdict.connectable_new || verdict.connectable_reconnect;
        let mut problems = Vec::new();
        if connectable && !(lease || in_window || held) {
            problems.push((
                1,
                format!(
                    "connectable with no lease, window or hold ({})",
                    verdict.confidence
                ),
            ));
        }
        let late = clocks.boot.since(self.clock.ticked) > Duration::from_secs(3);
        let confirmed = lease
            && !seen.ended
            && seen
                .heard
                .is_some_and(|at| judged < at + TERMS.interval * 2)
            && !late;
        if verdict.confidence == Confidence::Confirmed && !confirmed {
            problems.push((1, "Confirmed, and is not heard".to_owned()));
        }
        if confirmed && verdict.confidence != Confidence::Confirmed {
            problems.push((11, format!("heard, and {}", verdict.confidence)));
        }
        if let Some(loaded) = seen.loaded
            && loaded.sure
            && !loaded.reconnect
            && connectable
        {
            problems.push((
                1,
                "was Unavailable as stored, and is connectable unheard".to_owned(),
            ));
        }
        if verdict.confidence == Confidence::Absent {
            let named = [
                "NEVER_SEEN",
                "LEASE_OVER",
                "PROBE_REFUSED",
                "NOT_BACK_AFTER_RESTART",
            ];
            if !named.contains(&&*verdict.confidence_reason) {
                let what = format!("Absent, and says {:?}", verdict.confidence_reason);
                problems.push((14, what));
            }
            let bare = verdict.reasons.iter().any(|reason| {
                reason.code == ReasonCode::PROBE_REFUSED && reason.evidence.is_empty()
            });
            if bare {
                problems.push((14, "convicted without evidence".to_owned()));
            }
        }
        for (invariant, what) in problems {
            self.problem(invariant, Some(host), what);
        }
    }

    /// 2.
    fn judge_health(&mut self, host: usize, verdict: &Verdict, judged: Mono) {
        let seen = &self.hosts[host];
        if seen.loaded.is_some() || seen.heard.is_none() {
            return;
        }
        let connectable = verdict.connectable_new || verdict.connectable_reconnect;
        let problem = if !connectable {
            None
        } else if !seen.is_settled() {
            Some("connectable, and not settled since it was lost")
        } else if seen.fatal_is_bad(judged) {
            Some("connectable with a fatal check that fails, is unknown or expired")
        } else if seen.leaves() {
            Some("connectable, and has said goodbye")
        } else if verdict.connectable_new && seen.drained == Some(None) {
            Some("takes new sessions, and is drained")
        } else {
            None
        };
        if let Some(what) = problem {
            self.problem(2, Some(host), what.to_owned());
        }
    }

    /// 11.
    fn judge_well(
        &mut self,
        host: usize,
        verdict: &Verdict,
        broker: &Broker,
        judged: Mono,
        clocks: Clocks,
    ) {
        let seen = &self.hosts[host];
        let quiet = !seen.leaves()
            && seen.power.is_none()
            && !matches!(seen.upgrade, Some(UpgradeAnnouncement::InProgress { .. }))
            && !seen.convicted;
        let well = if seen.loaded.is_some() {
            let loaded = seen.loaded.filter(|loaded| {
                loaded.reconnect
                    && loaded.sure
                    && broker.window_ends().is_some_and(|ends| judged < ends)
                    && loaded.ends.is_none_or(|ends| judged < ends)
                    && judged.since(loaded.since) < TERMS.lease
                    && seen.extended < TERMS.lease
            });
            loaded.is_some()
        } else {
            seen.lease_runs(judged) && seen.is_surely_settled() && !seen.fatal_is_bad(judged)
        };
        if !well || !quiet {
            return;
        }
        let codes = super::codes(&verdict.reasons);
        if !verdict.connectable_reconnect {
            let what = format!("well, and not connectable: {} ({codes})", verdict.status);
            self.problem(11, Some(host), what);
            return;
        }
        let drained = seen.drained.is_some()
            || broker.cells[host]
                .as_ref()
                .is_some_and(|cell| !cell.host.facts().admin.drains.is_empty());
        let imposed = seen.imposed.held_down_at(judged).is_some()
            || seen
                .imposed
                .outside_at(judged)
                .is_some_and(|view| view.refuses_new);
        let new_before = seen.loaded.is_none_or(|loaded| loaded.new);
        let _ = clocks;
        if !verdict.connectable_new && !drained && !imposed && new_before {
            let what = format!(
                "well, and takes no new sessions: {} ({codes})",
                verdict.status
            );
            self.problem(11, Some(host), what);
        }
    }

    /// Nothing happened that users would notice: then nobody may be called unavailable who has
    /// been well once.
    fn judge_harmless(&mut self, host: usize, verdict: &Verdict, machines: &[Machine]) {
        if !self.harmless {
            return;
        }
        let seen = &mut self.hosts[host];
        seen.was_well |= verdict.connectable_reconnect;
        let restarts = machines[host].power != muster_core::model::PowerAnnouncement::Running;
        if seen.was_well && !verdict.connectable_reconnect && !restarts {
            let codes = super::codes(&verdict.reasons);
            let what = format!(
                "nothing happened to it, and it is {} ({codes})",
                verdict.status
            );
            self.problem(11, Some(host), what);
        }
    }

    /// 7: what is under way ends.
    fn judge_upgrade(&mut self, host: usize, broker: &Broker, judged: Mono) {
        let Some(cell) = broker.cells[host].as_ref() else {
            return;
        };
        if cell.host.facts().upgrade == Upgrade::None {
            self.hosts[host].no_upgrade();
        }
        let switching = matches!(&cell.host.facts().upgrade, Upgrade::InProgress(up) if up.switch_ends.is_some());
        let seen = &mut self.hosts[host];
        if !switching {
            seen.upgrade_since = None;
            return;
        }
        let since = *seen.upgrade_since.get_or_insert(judged);
        if judged.since(since) > UPGRADE_MAX {
            self.problem(7, Some(host), "an upgrade does not end".to_owned());
        }
    }

    /// 5: what was last told is what is so, after every step.
    fn judge_step(&mut self, host: usize, broker: &Broker, judged: Mono, clocks: Clocks) {
        let Some(cell) = broker.cells[host].as_ref() else {
            return;
        };
        let _ = (judged, clocks);
        let facts = cell.host.facts();
        if cell.published.facts != *facts {
            self.problem(
                12,
                Some(host),
                "questions are answered from other facts".to_owned(),
            );
        }
        let told = cell.host.told();
        if let Some(last) = &self.hosts[host].told {
            let same = (last.status, last.new, last.reconnect)
                == (
                    told.status,
                    told.connectable_new,
                    told.connectable_reconnect,
                );
            if !same {
                self.problem(
                    5,
                    Some(host),
                    "the host believes that it told something else".to_owned(),
                );
            }
        }
    }

    /// 9.
    fn judge_bounds(&mut self, host: usize, broker: &Broker) {
        let Some(cell) = broker.cells[host].as_ref() else {
            return;
        };
        let facts = cell.host.facts();
        let bounds = [
            ("used tokens", facts.resume.used.len(), 8),
            ("drains", facts.admin.drains.len(), 8),
            ("cleared attempts", facts.cleared_attempts.len(), 8),
            ("results", facts.health.held.len(), 64),
            ("armed hosts", broker.armed(), self.hosts.len()),
            ("changes", broker.log.len(), 64),
        ];
        for (what, len, most) in bounds {
            if len > most {
                self.problem(9, Some(host), format!("{len} {what}"));
            }
        }
    }

    /// 5: after the broker has looked at its wheel, what was last told is what is so. A look may
    /// miss what falls due within a bucket, the third may not.
    pub(super) fn judge_told(&mut self, broker: &Broker, clocks: Clocks) {
        let judged = self.clock.read(clocks.boot);
        for host in 0..self.hosts.len() {
            let Some(cell) = broker.cells.get(host).and_then(Option::as_ref) else {
                continue;
            };
            let so = host::assess(cell.host.facts(), &context(cell, broker, judged, clocks));
            let last = cell.host.told();
            let same = (
                so.status,
                so.connectable_new,
                so.connectable_reconnect,
                so.presence.confidence(),
            ) == (
                last.status,
                last.connectable_new,
                last.connectable_reconnect,
                last.confidence,
            );
            let seen = &mut self.hosts[host];
            if same {
                seen.differs = 0;
                continue;
            }
            seen.differs += 1;
            if seen.differs >= 3 {
                let what = format!(
                    "watchers were told {} (new {}, {}), and it is {} (new {}, {})",
                    last.status,
                    last.connectable_new,
                    last.confidence,
                    so.status,
                    so.connectable_new,
                    so.presence.confidence(),
                );
                self.problem(5, Some(host), what);
            }
        }
    }

    /// 1: the sum of what is served beyond a lease is bounded, over restarts too.
    pub(super) fn count_served(&mut self, broker: &Broker, clocks: Clocks, passed: Duration) {
        let judged = self.clock.read(clocks.boot);
        let prolonged = self.window.is_some_and(|window| window.prolonged);
        for host in 0..self.hosts.len() {
            let Some(cell) = broker.cells.get(host).and_then(Option::as_ref) else {
                continue;
            };
            let so = host::assess(cell.host.facts(), &context(cell, broker, judged, clocks));
            let seen = &mut self.hosts[host];
            let served = so.connectable_reconnect && !seen.lease_runs(judged);
            if !served {
                continue;
            }
            seen.extended += passed;
            seen.extended_by_hold |= matches!(so.presence, Presence::Suspect(_));
            seen.extended_in_long_window |= prolonged;
            let window = if seen.extended_in_long_window {
                WINDOW_MAX
            } else {
                TERMS.lease + RECONNECT_WINDOW
            };
            let hold = if seen.extended_by_hold {
                HOLD_MAX
            } else {
                Duration::ZERO
            };
            if seen.extended > window + hold + SLACK + START_SLACK {
                let what = format!(
                    "served {:.0} s beyond its lease, hold {}",
                    seen.extended.as_secs_f64(),
                    seen.extended_by_hold
                );
                self.problem(1, Some(host), what);
            }
        }
    }

    /// 8: what is well is back.
    ///
    /// # Errors
    /// The first host that is not.
    pub fn converged(
        &mut self,
        machines: &[Machine],
        broker: Option<&mut Broker>,
        clocks: Clocks,
    ) -> Result<(), super::Broken> {
        let Some(broker) = broker else {
            return Ok(());
        };
        for (host, machine) in machines.iter().enumerate().take(self.hosts.len()) {
            if !self.hosts[host].exists || !machine.is_awake() || machine.truth.cut > 0 {
                continue;
            }
            let Some(verdict) = broker.verdict(host, Intent::Reconnect, clocks) else {
                continue;
            };
            let allowed: &[Status] = if self.hosts[host].copied {
                &[Status::Available, Status::NeedsAssistance]
            } else {
                &[Status::Available]
            };
            let conflict = verdict
                .reasons
                .iter()
                .any(|r| r.code == ReasonCode::IDENTITY_CONFLICT);
            let fine = (allowed.contains(&verdict.status) || conflict)
                && verdict.connectable_reconnect
                && verdict.confidence == Confidence::Confirmed;
            if !fine {
                let what = format!(
                    "is well, and at the end {} ({}; {})",
                    verdict.status,
                    verdict.confidence,
                    super::codes(&verdict.reasons)
                );
                self.problem(8, Some(host), what);
            }
        }
        match self.problem.take() {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }
}
