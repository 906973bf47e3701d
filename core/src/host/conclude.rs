//! The end of every step: judge anew, compare with what was told, say when to look again.

use super::{
    Assessment, Context, Effects, Facts, Host, Link, Power, Presence, Session, Standing, Told,
    Upgrade, assess, limits, presence::loaded_until, standing::here,
};
use crate::model::{Leave, Mono, ReasonCode, Status, Transition};

impl Host {
    /// Judges anew, compares with what was told, and says when to look again.
    pub(super) fn conclude(&mut self, trigger: &str, context: &Context<'_>, effects: &mut Effects) {
        let assessment = assess(&self.facts, context);
        let keys: Vec<(ReasonCode, String)> = assessment
            .reasons
            .iter()
            .map(|r| (r.code.clone(), r.subject.clone()))
            .collect();
        let changed = self.told.sequence == 0
            || self.told.status != assessment.status
            || self.told.connectable_new != assessment.connectable_new
            || self.told.connectable_reconnect != assessment.connectable_reconnect
            || self.told.reasons != keys;
        let confidence = assessment.presence.confidence();
        let confidence_reason = assessment.presence.why();
        effects.tell |= changed
            || self.told.confidence != confidence
            || self.told.confidence_reason != confidence_reason;
        if changed {
            let from = (self.told.sequence > 0).then_some(self.told.status);
            if from != Some(assessment.status) {
                self.told.status_since = context.now.wall;
            }
            self.told.sequence += 1;
            effects.persist = true;
            effects.transition = Some(transition(&self.told, from, &assessment, trigger, context));
        }
        self.told.status = assessment.status;
        self.told.connectable_new = assessment.connectable_new;
        self.told.connectable_reconnect = assessment.connectable_reconnect;
        self.told.reasons = keys;
        self.told.confidence = confidence;
        confidence_reason.clone_into(&mut self.told.confidence_reason);
        let (of_link, other) = deadlines(&self.facts, context, assessment.presence);
        effects.next_deadline = earliest(of_link, other);
        let calm = assessment.presence == Presence::Confirmed && assessment.settled;
        self.calm_until =
            calm.then(|| other.unwrap_or(context.now.mono + limits::RESULTS_VALID_MAX));
        effects.standing = self.stand(&assessment, context);
    }

    /// How the host stands, if that is news to the rules of the fleet.
    fn stand(&mut self, assessment: &Assessment, context: &Context<'_>) -> Option<Standing> {
        let standing = Standing {
            pool: self.facts.identity.pool.clone(),
            version: self.version + 1,
            here: here(&self.facts, context),
            connectable_new: assessment.connectable_new,
            target: self.target,
        };
        if self
            .stood
            .as_ref()
            .is_some_and(|before| before.says_the_same(&standing))
        {
            return None;
        }
        self.version += 1;
        self.stood = Some(standing.clone());
        Some(standing)
    }
}

/// A session without a word for a lease is over, even if its stream still stands.
pub(super) fn session_ends(facts: &Facts, session: &Session) -> Mono {
    session.opened.max(facts.last_word.unwrap_or(Mono::ZERO)) + session.lease
}

/// The next instant at which time alone may change something.
pub(super) fn next_deadline(
    facts: &Facts,
    context: &Context<'_>,
    presence: Presence,
) -> Option<Mono> {
    let (of_link, other) = deadlines(facts, context, presence);
    earliest(of_link, other)
}

fn earliest(one: Option<Mono>, other: Option<Mono>) -> Option<Mono> {
    one.into_iter().chain(other).min()
}

/// The next instant that each beat moves away, and the next of all others.
fn deadlines(
    facts: &Facts,
    context: &Context<'_>,
    presence: Presence,
) -> (Option<Mono>, Option<Mono>) {
    let link = match facts.link {
        Link::Heard(heard) => [Some(heard.confirmed_until()), Some(heard.lease_ends())],
        Link::Loaded { .. } => [loaded_until(&facts.link, context), None],
        Link::NeverSeen | Link::Lost { .. } => [None, None],
    };
    let results = facts
        .health
        .held
        .iter()
        .filter(|held| held.has_run() && presence == Presence::Confirmed)
        .map(|held| held.valid_until(facts.health.valid_until));
    let power = match facts.power {
        Power::Leaving {
            how: Leave::Reboot,
            back_by,
            ..
        } => Some(back_by),
        Power::Leaving { .. } | Power::Running => None,
    };
    let upgrade = match &facts.upgrade {
        Upgrade::InProgress(upgrade) => [
            Some(upgrade.deadline()),
            facts.last_word.map(|word| word + limits::UPGRADE_SILENCE),
        ],
        Upgrade::None | Upgrade::Failed(_) => [None, None],
    };
    let drains = facts
        .admin
        .drains
        .iter()
        .filter_map(|drain| Some(context.now.mono_at(drain.until?)));
    let session = facts
        .session
        .as_ref()
        .map(|session| session_ends(facts, session));
    let excused = context
        .policy
        .newly_fatal
        .values()
        .map(|until| context.now.mono_at(*until));
    let conflict = facts.conflict.as_ref().map(|conflict| conflict.until);
    let ahead = |deadline: &Mono| *deadline > context.now.mono;
    let of_link = link
        .into_iter()
        .chain([session])
        .flatten()
        .filter(ahead)
        .min();
    let other = facts
        .imposed
        .deadlines()
        .map(Some)
        .chain([conflict, power])
        .chain(upgrade)
        .flatten()
        .chain(results)
        .chain(drains)
        .chain(excused)
        .filter(ahead)
        .min();
    (of_link, other)
}

fn transition(
    told: &Told,
    from: Option<Status>,
    assessment: &Assessment,
    trigger: &str,
    context: &Context<'_>,
) -> Transition {
    Transition {
        sequence: told.sequence,
        at: context.now.wall,
        from,
        to: assessment.status,
        connectable_new: assessment.connectable_new,
        connectable_reconnect: assessment.connectable_reconnect,
        confidence: assessment.presence.confidence(),
        reasons: assessment.reasons.clone(),
        trigger: trigger.to_owned(),
    }
}
