//! The answer to a question, computed from a snapshot at the instant of the question.

use std::time::Duration;

use super::{Context, Power, Presence, Snapshot, Upgrade, assess, conclude::next_deadline};
use crate::model::{Intent, Leave, Mono, ReasonCode, SafeToPowerOff, Status, Verdict};

/// The longest that an answer may be used: one default beat.
const VALID_AT_MOST: Duration = Duration::from_secs(10);
/// The shortest wait that is worth telling.
const RETRY_AT_LEAST: Duration = Duration::from_secs(1);
/// How long a host that has just connected takes to its first full report.
const STARTING_TAKES: Duration = Duration::from_secs(5);

/// What a question brings along.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// What the connection is wanted for.
    pub intent: Intent,
    /// The broker that answers.
    pub observed_by: &'a str,
}

/// Answers: is this host connectable, and if not, why and what mends it?
#[must_use]
pub fn verdict(snapshot: &Snapshot, context: &Context<'_>, asked: Asked<'_>) -> Verdict {
    let facts = &snapshot.facts;
    let assessed = assess(facts, context);
    let connectable = match asked.intent {
        Intent::New => assessed.connectable_new,
        Intent::Reconnect => assessed.connectable_reconnect,
    };
    let now = context.now.mono;
    let changes = next_deadline(facts, context, assessed.presence);
    let valid_for = changes
        .map_or(VALID_AT_MOST, |at| at.since(now))
        .min(VALID_AT_MOST);
    let last_beat_age = match facts.link {
        super::Link::Heard(heard) => Some(now.since(heard.last_beat)),
        super::Link::NeverSeen | super::Link::Loaded { .. } | super::Link::Lost { .. } => {
            // Since this broker's start nothing newer than its last word is known.
            facts
                .session
                .as_ref()
                .and(facts.last_word)
                .map(|word| now.since(word))
        }
    };
    Verdict {
        name: facts.identity.name.clone(),
        host_id: facts.identity.id,
        pool: facts.identity.pool.clone(),
        status: assessed.status,
        status_since: if assessed.status == snapshot.status {
            snapshot.status_since
        } else {
            context.now.wall
        },
        intent: asked.intent,
        connectable,
        connectable_new: assessed.connectable_new,
        connectable_reconnect: assessed.connectable_reconnect,
        as_of: context.now.wall,
        last_beat_age,
        confidence: assessed.presence.confidence(),
        confidence_reason: assessed.presence.why().to_owned(),
        valid_for,
        retry_after: if connectable {
            None
        } else {
            retry_after(snapshot, context, &assessed)
        },
        observed_by: asked.observed_by.to_owned(),
        verdict_id: String::new(),
        listeners: facts.listeners.to_vec(),
        sessions: facts.sessions,
        safe_to_power_off: safe_to_power_off(snapshot, assessed.presence),
        reasons: assessed.reasons,
    }
}

/// Only where waiting alone may mend it: a start, an upgrade, a reboot, a drain that ends.
fn retry_after(
    snapshot: &Snapshot,
    context: &Context<'_>,
    assessed: &super::Assessment,
) -> Option<Duration> {
    let facts = &snapshot.facts;
    let now = context.now.mono;
    let until = |at: Mono| Some(at.since(now));
    let starting = assessed
        .reasons
        .iter()
        .any(|reason| reason.code == ReasonCode::STARTING);
    let wait = if starting {
        Some(STARTING_TAKES)
    } else if let (Status::Upgrading, Upgrade::InProgress(upgrade)) =
        (assessed.status, &facts.upgrade)
    {
        until(upgrade.deadline())
    } else if let (
        Status::Shutdown,
        Power::Leaving {
            how: Leave::Reboot,
            back_by,
            ..
        },
    ) = (assessed.status, facts.power)
    {
        until(back_by)
    } else if assessed.connectable_reconnect {
        // Only drains and limits stand against it.
        let ends: Option<Vec<_>> = facts.admin.drains.iter().map(|drain| drain.until).collect();
        ends?
            .into_iter()
            .max()
            .and_then(|end| until(context.now.mono_at(end)))
    } else {
        None
    };
    wait.map(|wait| wait.max(RETRY_AT_LEAST))
}

fn safe_to_power_off(snapshot: &Snapshot, presence: Presence) -> SafeToPowerOff {
    match (presence, snapshot.facts.sessions.total()) {
        (_, Some(count)) if count > 0 => SafeToPowerOff::No,
        (Presence::Confirmed, Some(_)) => SafeToPowerOff::Yes,
        (
            Presence::Confirmed | Presence::Suspect(_) | Presence::Unverified | Presence::Absent(_),
            _,
        ) => SafeToPowerOff::Unknown,
    }
}
