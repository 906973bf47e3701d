//! Status and connectable: two pure functions of facts, presence, policy and the instant.
//!
//! [`status`] is a list of rows, the first match wins. [`assess`] adds the two booleans, which are
//! a conjunction of their own and are never read off the label alone.

use super::{
    Context, Facts, Hold, HoldAnswers, Link, Power, Presence, Upgrade,
    facts::severity_of,
    limits,
    presence::{hold_in_force, presence},
    reasons::reasons,
};
use crate::model::{
    CheckResult, Leave, Mono, Outcome, Reason, Severity, Status, UnknownCause, UpgradingAccepts,
};

/// Everything that follows from the facts at one instant.
#[derive(Clone, PartialEq, Debug)]
pub struct Assessment {
    /// The label.
    pub status: Status,
    /// The answer for a new session.
    pub connectable_new: bool,
    /// The answer for coming back to one's own session.
    pub connectable_reconnect: bool,
    /// How well the broker knows that the host is there.
    pub presence: Presence,
    /// All reasons, worst first.
    pub reasons: Vec<Reason>,
    /// Every fatal check has a finished run that counts.
    pub settled: bool,
}

/// What the rows look at, judged once.
pub(super) struct View<'a> {
    pub(super) facts: &'a Facts,
    pub(super) context: &'a Context<'a>,
    pub(super) presence: Presence,
    pub(super) settled: bool,
    /// The hold that alone keeps the host from being absent.
    pub(super) hold: Option<&'a Hold>,
    /// Checks with their judged outcome and what it means.
    pub(super) checks: Vec<Judged<'a>>,
    pub(super) upgrade: UpgradeView<'a>,
}

/// One check's result as judged at the instant.
pub(super) struct Judged<'a> {
    pub(super) result: &'a CheckResult,
    pub(super) outcome: Outcome,
    pub(super) severity: Severity,
    pub(super) since: jiff::Timestamp,
}

impl Judged<'_> {
    /// Bad, and a run has finished: a check not yet run is no sign of trouble. That it never runs
    /// shows as TIMED_OUT or STALE.
    fn counts_against(&self) -> bool {
        self.outcome.is_bad() && self.outcome != Outcome::Unknown(UnknownCause::NotYetRun)
    }
}

/// An upgrade as it stands at the instant, deadlines applied.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum UpgradeView<'a> {
    None,
    /// Before the switch: only a reason.
    Pending(&'a super::InProgress),
    /// Between switch and commit, inside the deadline.
    Switching(&'a super::InProgress),
    /// Switching, and silent for too long.
    Silent(&'a super::InProgress),
    /// Its deadline passed.
    TimedOut(&'a super::InProgress),
    Failed(&'a super::FailedUpgrade),
}

impl<'a> View<'a> {
    pub(super) fn new(facts: &'a Facts, context: &'a Context<'a>) -> Self {
        let presence = presence(facts, context);
        Self {
            facts,
            context,
            presence,
            hold: hold_in_force(facts, context),
            settled: !presence.is_absent()
                && facts.health.is_settled(context.policy, context.now.wall),
            checks: judged_checks(facts, context, presence),
            upgrade: upgrade_view(facts, context.now.mono),
        }
    }

    pub(super) fn is_barred(&self) -> bool {
        let admin = &self.facts.admin;
        admin.banned_since.is_some() || admin.approval_awaited_since.is_some()
    }

    pub(super) fn leaving(&self) -> Option<(Leave, jiff::Timestamp, Mono)> {
        match self.facts.power {
            Power::Running => None,
            Power::Leaving {
                how,
                since,
                back_by,
            } => Some((how, since, back_by)),
        }
    }

    pub(super) fn reboot_is_overdue(&self) -> bool {
        matches!(self.leaving(), Some((Leave::Reboot, _, back_by)) if self.context.now.mono >= back_by)
    }

    /// Row 1 holds: the machine itself goes, and is not overdue.
    pub(super) fn machine_leaves(&self) -> bool {
        match self.leaving() {
            Some((Leave::Poweroff | Leave::Suspend, ..)) => true,
            Some((Leave::Reboot, ..)) => !self.reboot_is_overdue(),
            Some((Leave::AgentStop | Leave::AgentRestart, ..)) | None => false,
        }
    }

    pub(super) fn agent_stopped(&self) -> bool {
        matches!(self.leaving(), Some((Leave::AgentStop, ..)))
    }

    fn any_bad(&self, severity: Severity) -> bool {
        self.checks
            .iter()
            .any(|check| check.severity == severity && check.counts_against())
    }
}

/// The outcomes of all checks held, in their order, as they count at the instant; as reported for
/// a host that is absent.
pub(super) fn judged_outcomes(facts: &Facts, context: &Context<'_>) -> Vec<Outcome> {
    let presence = presence(facts, context);
    if presence.is_absent() {
        return facts
            .health
            .held
            .iter()
            .map(|held| held.result.outcome)
            .collect();
    }
    judged_checks(facts, context, presence)
        .iter()
        .map(|check| check.outcome)
        .collect()
}

fn judged_checks<'a>(
    facts: &'a Facts,
    context: &Context<'_>,
    presence: Presence,
) -> Vec<Judged<'a>> {
    // Results age only while beats come; afterwards they stand as they were, because presence
    // judges then.
    let judge_at = match (presence, facts.link) {
        (Presence::Absent(_), _) => return Vec::new(),
        (_, Link::Heard(heard)) => Some(context.now.mono.min(heard.confirmed_until())),
        (_, Link::NeverSeen | Link::Loaded { .. } | Link::Lost { .. }) => None,
    };
    facts
        .health
        .held
        .iter()
        .map(|held| {
            let until = held.valid_until(facts.health.valid_until);
            let stale = held.has_run() && judge_at.is_some_and(|at| at >= until);
            let outcome = if stale {
                Outcome::Unknown(UnknownCause::Stale)
            } else {
                held.result.outcome
            };
            Judged {
                result: &held.result,
                outcome,
                severity: severity_of(context.policy, &held.result.name, outcome),
                since: if stale {
                    context.now.wall_at(until)
                } else {
                    held.since
                },
            }
        })
        .collect()
}

fn upgrade_view(facts: &Facts, now: Mono) -> UpgradeView<'_> {
    match &facts.upgrade {
        Upgrade::None => UpgradeView::None,
        Upgrade::Failed(failed) => UpgradeView::Failed(failed),
        Upgrade::InProgress(upgrade) => {
            let silent_from = facts
                .last_word
                .map_or(Mono::ZERO, |word| word + limits::UPGRADE_SILENCE);
            if now >= upgrade.deadline() {
                UpgradeView::TimedOut(upgrade)
            } else if upgrade.switch_ends.is_none() {
                UpgradeView::Pending(upgrade)
            } else if now >= silent_from {
                UpgradeView::Silent(upgrade)
            } else {
                UpgradeView::Switching(upgrade)
            }
        }
    }
}

/// The label: the first row that matches.
fn status(view: &View<'_>) -> Status {
    // 0: an operator's word comes first.
    if view.is_barred() {
        return Status::Unavailable;
    }
    // 1: the machine announced that it goes.
    if view.machine_leaves() {
        return Status::Shutdown;
    }
    // 2: an upgrade between switch and commit, inside its deadline.
    if matches!(view.upgrade, UpgradeView::Switching(_)) {
        return Status::Upgrading;
    }
    // 3: not there, not checked by anybody, or not yet.
    if view.presence.is_absent()
        || view.agent_stopped()
        || view.reboot_is_overdue()
        || !view.settled
    {
        return Status::Unavailable;
    }
    // 4: a fatal check fails or cannot be told.
    if view.any_bad(Severity::Fatal) {
        return Status::Unavailable;
    }
    // 5: the last upgrade failed, by its word or by its deadline.
    if matches!(
        view.upgrade,
        UpgradeView::Failed(_) | UpgradeView::TimedOut(_) | UpgradeView::Silent(_)
    ) {
        return Status::UpgradeFailed;
    }
    // 6: something non-fatal.
    if view.any_bad(Severity::NonFatal) || view.facts.conflict.is_some() {
        return Status::NeedsAssistance;
    }
    // 7
    Status::Available
}

/// Connectable for somebody who comes back: a conjunction over the facts. The label is only one
/// of its terms.
fn connectable_reconnect(view: &View<'_>, status: Status) -> bool {
    let label_accepts = match status {
        Status::Available | Status::NeedsAssistance | Status::UpgradeFailed => true,
        Status::Upgrading => view.context.policy.upgrading_accepts != UpgradingAccepts::None,
        Status::Shutdown | Status::Unavailable => false,
    };
    label_accepts
        && !view.is_barred()
        && !view.presence.is_absent()
        && !view.agent_stopped()
        && !view.reboot_is_overdue()
        && view.settled
        && !view.any_bad(Severity::Fatal)
}

/// Connectable for a new session: all of the above, and room for one more.
fn connectable_new(view: &View<'_>, status: Status) -> bool {
    let (imposed, now) = (&view.facts.imposed, view.context.now.mono);
    let upgrading_accepts = status != Status::Upgrading
        || view.context.policy.upgrading_accepts == UpgradingAccepts::All;
    connectable_reconnect(view, status)
        && upgrading_accepts
        && view.drains().next().is_none()
        && view
            .hold
            .is_none_or(|hold| hold.answers == HoldAnswers::AsBefore)
        && imposed.held_down_at(now).is_none()
        && imposed.outside_at(now).is_none_or(|view| !view.refuses_new)
        && !view.at_session_limit()
}

impl View<'_> {
    /// The drains in force at the instant.
    pub(super) fn drains(&self) -> impl Iterator<Item = &super::Drain> {
        let now = self.context.now.wall;
        self.facts
            .admin
            .drains
            .iter()
            .filter(move |drain| drain.until.is_none_or(|until| now < until))
    }

    pub(super) fn at_session_limit(&self) -> bool {
        match (
            self.context.policy.max_sessions,
            self.facts.sessions.total(),
        ) {
            (Some(limit), Some(count)) => count >= limit,
            (Some(_), None) | (None, _) => false,
        }
    }
}

/// Judges everything at the context's instant. Total and deterministic.
#[must_use]
pub fn assess(facts: &Facts, context: &Context<'_>) -> Assessment {
    let view = View::new(facts, context);
    let status = status(&view);
    Assessment {
        status,
        connectable_new: connectable_new(&view, status),
        connectable_reconnect: connectable_reconnect(&view, status),
        presence: view.presence,
        reasons: reasons(&view, status),
        settled: view.settled,
    }
}

/// The checks with their judged outcome and severity, for administrators.
#[must_use]
pub fn judged(facts: &Facts, context: &Context<'_>) -> Vec<(CheckResult, Outcome, Severity)> {
    let presence = presence(facts, context);
    if presence.is_absent() {
        // What was last reported, for people: nothing rests on it.
        return facts
            .health
            .held
            .iter()
            .map(|held| {
                let stale = Outcome::Unknown(UnknownCause::Stale);
                let outcome = if held.has_run() {
                    stale
                } else {
                    held.result.outcome
                };
                let severity = severity_of(context.policy, &held.result.name, outcome);
                (aged(held, context), outcome, severity)
            })
            .collect();
    }
    judged_checks(facts, context, presence)
        .into_iter()
        .zip(facts.health.held.iter())
        .map(|(check, held)| (aged(held, context), check.outcome, check.severity))
        .collect()
}

fn aged(held: &super::Held, context: &Context<'_>) -> CheckResult {
    CheckResult {
        age: held
            .finished
            .map(|finished| context.now.mono.since(finished)),
        ..(*held.result).clone()
    }
}
