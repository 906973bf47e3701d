//! Reasons of a judgement: all that hold, worst first, each with since, evidence and remedy.

use super::{
    HoldAnswers, Link, Presence,
    assess::{Judged, UpgradeView, View},
};
use crate::model::{Leave, Outcome, Reason, ReasonCode, Severity, Status, UnknownCause};

/// All reasons of the view, worst first.
pub(super) fn reasons(view: &View<'_>, status: Status) -> Vec<Reason> {
    let mut found = Vec::new();
    admin(view, &mut found);
    power(view, &mut found);
    upgrade(view, &mut found);
    presence(view, status, &mut found);
    imposed(view, &mut found);
    let silent_by_its_word = view.machine_leaves() || view.agent_stopped();
    if !silent_by_its_word {
        for check in &view.checks {
            found.extend(check_reason(check));
        }
    }
    sessions(view, &mut found);
    // Stable: what ranks the same stays in the order of names.
    found.sort_by_key(|reason| reason.code.rank());
    found
}

fn admin(view: &View<'_>, found: &mut Vec<Reason>) {
    let admin = &view.facts.admin;
    if let Some(since) = admin.banned_since {
        found.push(Reason::new(
            ReasonCode::BANNED,
            "banned by an operator",
            since,
        ));
    }
    if let Some(since) = admin.approval_awaited_since {
        found.push(Reason::new(
            ReasonCode::AWAITING_APPROVAL,
            "awaits an operator's approval",
            since,
        ));
    }
    for drain in view.drains() {
        let why = if drain.reason.is_empty() {
            "no reason given"
        } else {
            &drain.reason
        };
        let mut reason = Reason::new(
            ReasonCode::DRAINED,
            format!("drained by {}: {why}", drain.owner),
            drain.since,
        );
        reason.subject.clone_from(&drain.owner);
        reason.remedy = reason.remedy.map(|remedy| {
            remedy.command(format!(
                "muster-broker undrain {} --owner {}",
                view.facts.identity.name, drain.owner
            ))
        });
        found.push(reason);
    }
}

fn power(view: &View<'_>, found: &mut Vec<Reason>) {
    let Some((how, since, _)) = view.leaving() else {
        return;
    };
    let (code, message) = match how {
        Leave::Poweroff => (ReasonCode::LEAVING_POWEROFF, "announced that it powers off"),
        Leave::Reboot if view.reboot_is_overdue() => (
            ReasonCode::REBOOT_OVERDUE,
            "announced a reboot and is not back in time",
        ),
        Leave::Reboot => (ReasonCode::LEAVING_REBOOT, "announced that it reboots"),
        Leave::Suspend => (ReasonCode::LEAVING_SUSPEND, "announced that it suspends"),
        Leave::AgentStop => (ReasonCode::AGENT_STOPPED, "the agent was stopped"),
        Leave::AgentRestart => return,
    };
    found.push(Reason::new(code, message, since));
}

fn upgrade(view: &View<'_>, found: &mut Vec<Reason>) {
    let now = view.context.now;
    let reason = match view.upgrade {
        UpgradeView::None => return,
        UpgradeView::Pending(upgrade) => Reason::new(
            ReasonCode::UPGRADE_PENDING,
            format!(
                "upgrade to {} in phase {}",
                upgrade.attempt.to,
                upgrade.attempt.phase.as_str()
            ),
            upgrade.since,
        ),
        UpgradeView::Switching(upgrade) => Reason::new(
            ReasonCode::UPGRADING,
            format!(
                "upgrading from {} to {}",
                upgrade.attempt.from, upgrade.attempt.to
            ),
            upgrade.since,
        ),
        UpgradeView::Silent(upgrade) => Reason::new(
            ReasonCode::UPGRADE_TIMED_OUT,
            format!("fell silent during the upgrade to {}", upgrade.attempt.to),
            upgrade.since,
        ),
        UpgradeView::TimedOut(upgrade) => Reason::new(
            ReasonCode::UPGRADE_TIMED_OUT,
            timed_out_text(&upgrade.attempt),
            now.wall_at(upgrade.deadline()),
        ),
        UpgradeView::Failed(failed) => Reason::new(
            if failed.timed_out {
                ReasonCode::UPGRADE_TIMED_OUT
            } else {
                ReasonCode::UPGRADE_FAILED
            },
            if failed.timed_out {
                failed.error.clone()
            } else {
                format!(
                    "upgrade to {} failed in phase {}: {}",
                    failed.attempt.to,
                    failed.attempt.phase.as_str(),
                    failed.error
                )
            },
            failed.since,
        ),
    };
    found.push(reason);
}

/// What is said of an attempt that passed its deadline.
pub(super) fn timed_out_text(attempt: &crate::model::UpgradeAttempt) -> String {
    format!(
        "the upgrade to {} did not end within its deadline; it was in phase {}",
        attempt.to,
        attempt.phase.as_str()
    )
}

fn presence(view: &View<'_>, status: Status, found: &mut Vec<Reason>) {
    let facts = view.facts;
    // A machine that said goodbye, an agent that was stopped, and the silence of a switch are
    // explained: their absence is no news.
    let explained = view.machine_leaves() || view.agent_stopped() || status == Status::Upgrading;
    if let Presence::Absent(why) = view.presence
        && !explained
        && !(facts.link == Link::NeverSeen
            && facts
                .session
                .as_ref()
                .is_some_and(|session| !session.reported))
    {
        let since = match facts.link {
            Link::NeverSeen => facts.identity.enrolled_at,
            Link::Lost { at, .. } => at,
            Link::Heard(heard) => view.context.now.wall_at(heard.lease_ends()),
            Link::Loaded { .. } => super::presence::loaded_until(&facts.link, view.context)
                .map_or(view.context.now.wall, |ends| view.context.now.wall_at(ends)),
        };
        let mut reason = Reason::new(why.code(), why.message(), since);
        reason.evidence = facts.lost_evidence.to_vec();
        found.push(reason);
    }
    if view.settled {
        return;
    }
    let since = facts.health.unsettled_since;
    let starting = facts
        .session
        .as_ref()
        .is_some_and(|session| !session.reported || !view.presence.is_absent());
    if starting && !view.agent_stopped() {
        found.push(Reason::new(
            ReasonCode::STARTING,
            "connected; the first full report is awaited",
            since,
        ));
    } else if !view.presence.is_absent() && !explained {
        found.push(Reason::new(
            ReasonCode::NOT_SETTLED,
            unsettled_text(view),
            since,
        ));
    }
}

/// What the rules of the whole fleet have to do with it.
fn imposed(view: &View<'_>, found: &mut Vec<Reason>) {
    let (imposed, now) = (&view.facts.imposed, view.context.now.mono);
    if let Some(hold) = view.hold {
        let message = match hold.answers {
            HoldAnswers::AsBefore => "silent together with many others; answered as before",
            HoldAnswers::ReconnectOnly => {
                "silent together with many others; no new sessions while others serve"
            }
        };
        let mut reason = Reason::new(ReasonCode::MASS_LOSS, message, hold.since);
        reason.evidence.push(hold.evidence.to_string());
        found.push(reason);
    }
    if let Some(held) = imposed.held_down_at(now) {
        let message = format!(
            "lost {} times within 30 minutes; no new sessions until it is steady",
            held.losses
        );
        found.push(Reason::new(ReasonCode::HELD_DOWN, message, held.since));
    }
    if let Some(outside) = imposed.outside_at(now) {
        let message = if outside.refuses_new {
            "front ends could not connect, and neither could the broker"
        } else {
            "front ends could not connect"
        };
        let mut reason = Reason::new(ReasonCode::OUTSIDE_VIEW, message, outside.since);
        reason.evidence = outside.evidence.to_vec();
        found.push(reason);
    }
    if let Some(conflict) = &view.facts.conflict {
        let message = if conflict.same_machine {
            "a second agent on the same machine uses this host's identity"
        } else {
            "another machine uses this host's identity"
        };
        let mut reason = Reason::new(ReasonCode::IDENTITY_CONFLICT, message, conflict.since);
        reason.evidence = vec![
            format!("heard from {}", conflict.incumbent),
            format!("refused: {}", conflict.newcomer),
        ];
        let name = &view.facts.identity.name;
        reason.remedy = reason.remedy.map(|remedy| {
            remedy
                .command(format!("muster-broker trust {name}"))
                .command(format!("muster-broker trust {name} --newcomer"))
        });
        found.push(reason);
    }
}

fn unsettled_text(view: &View<'_>) -> String {
    let open: Vec<&str> = view
        .context
        .policy
        .fatal_checks()
        .filter(|name| {
            view.facts
                .health
                .get(name)
                .is_none_or(|held| !held.has_run())
        })
        .map(|name| name.as_str())
        .collect();
    if open.is_empty() {
        "fatal checks have not run since the host was lost".to_owned()
    } else {
        format!("no finished run yet of: {}", open.join(", "))
    }
}

fn check_reason(check: &Judged<'_>) -> Option<Reason> {
    let code = match (check.outcome, check.severity) {
        (Outcome::Pass | Outcome::NotApplicable, _)
        | (Outcome::Unknown(UnknownCause::NotYetRun), _) => return None,
        (Outcome::Warn, _) => ReasonCode::CHECK_WARN,
        (Outcome::Fail, Severity::Fatal) => ReasonCode::FATAL_CHECK_FAILED,
        (Outcome::Fail, Severity::NonFatal) => ReasonCode::CHECK_FAILED,
        (Outcome::Unknown(_), Severity::Fatal) => ReasonCode::FATAL_CHECK_UNKNOWN,
        (Outcome::Unknown(_), Severity::NonFatal) => ReasonCode::CHECK_UNKNOWN,
        (Outcome::Fail | Outcome::Unknown(_), Severity::ReportOnly) => ReasonCode::CHECK_REPORTED,
    };
    let result = check.result;
    let message = if check.outcome == Outcome::Unknown(UnknownCause::Stale) {
        "no fresh result: the agent's check loop may hang".to_owned()
    } else if result.message.is_empty() {
        check.outcome.to_string()
    } else {
        result.message.clone()
    };
    let mut reason = Reason::new(code, message, check.since);
    reason.subject = result.name.as_str().to_owned();
    for finding in &result.findings {
        reason
            .evidence
            .push(format!("{}: {}", finding.code, finding.message));
        reason.evidence.extend(finding.steps.iter().cloned());
    }
    reason.remedy = result
        .findings
        .iter()
        .find_map(|finding| finding.remedy.clone());
    Some(reason)
}

fn sessions(view: &View<'_>, found: &mut Vec<Reason>) {
    let Some(limit) = view.context.policy.max_sessions else {
        return;
    };
    if view.presence.is_absent() {
        return;
    }
    let since = view.facts.sessions_since;
    match view.facts.sessions.total() {
        Some(count) if count >= limit => found.push(Reason::new(
            ReasonCode::SESSION_LIMIT,
            format!("{count} of at most {limit} sessions"),
            since,
        )),
        Some(_) => {}
        None => found.push(Reason::new(
            ReasonCode::SESSION_COUNT_UNKNOWN,
            format!("at most {limit} sessions, and the host does not know how many it has"),
            since,
        )),
    }
}
