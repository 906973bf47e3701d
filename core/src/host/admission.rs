//! Who may speak for a host: the one that was spoken to before, until its lease is over.
//!
//! ```text
//! newcomer with the current token ------------------------------> it is the incumbent: accepted
//! newcomer with a used token, incumbent's lease runs -----------> conflict: refused
//! newcomer without one -- incumbent has an open stream --asked--> speaks within 5 s: conflict
//!                   |                                        '--> silent: accepted
//!                   '---- incumbent's stream is gone -----------> waits for its return, or the
//!                                                                 end of its lease
//! incumbent's lease over, never seen, or not heard since the broker's start ----------> accepted
//! ```
//! A token is random, one per session, and never stored: a copy of a machine has the token of the
//! moment at which it was copied. It never becomes the host by being the last to speak.

use std::sync::Arc;

use super::{Admission, Challenge, Conflict, Context, Facts, Hello, Link, Resume, limits};
use crate::model::{Mono, ResumeToken};

/// Decides on a hello; keeps what it must remember in the facts. True beside the answer if the
/// incumbent is to be asked for its proof.
pub(super) fn admit(
    facts: &mut Facts,
    hello: &Hello,
    peer_address: &Arc<str>,
    context: &Context<'_>,
) -> (Admission, bool) {
    let now = context.now.mono;
    let Some(lease_ends) = protected_until(facts, now) else {
        return (Admission::Accepted, false);
    };
    let resume = &mut facts.resume;
    if resume.trusted.as_ref() == Some(&hello.instance_id) {
        return (Admission::Accepted, false);
    }
    let token = hello.resume_token.as_ref();
    let is_incumbent = token.is_some()
        && (token == resume.current.as_ref() || token == resume.before.as_ref())
        // The Welcome of a session that has not spoken may never have arrived.
        || resume.unproven.as_ref() == Some(&hello.instance_id);
    if is_incumbent {
        return (Admission::Accepted, false);
    }
    let is_used = token
        .is_some_and(|token| resume.used.contains(token) || resume.before.as_ref() == Some(token));
    if is_used {
        return (conflict(facts, hello, peer_address, context), false);
    }
    if facts.session.is_none() {
        // Its stream is gone: it comes back with its token, or its lease ends.
        let retry_after = lease_ends.since(now).min(limits::PROOF_WITHIN);
        return (Admission::InUse { retry_after }, false);
    }
    match &resume.challenge {
        Some(challenge) if challenge.proved => {
            (conflict(facts, hello, peer_address, context), false)
        }
        Some(challenge) => {
            let left = (challenge.since + limits::PROOF_WITHIN).since(now);
            if left.is_zero() {
                (Admission::Accepted, false)
            } else {
                (Admission::InUse { retry_after: left }, false)
            }
        }
        None => {
            resume.challenge = Some(Challenge {
                since: now,
                proved: false,
            });
            let retry_after = limits::PROOF_WITHIN;
            (Admission::InUse { retry_after }, true)
        }
    }
}

/// Until when nobody else may speak for the host: the lease of its last beat. Somebody known from
/// before the broker's start is not protected: nothing is known of tokens then.
fn protected_until(facts: &Facts, now: Mono) -> Option<Mono> {
    match facts.link {
        Link::Heard(heard) => Some(heard.lease_ends()).filter(|ends| now < *ends),
        Link::NeverSeen | Link::Loaded { .. } | Link::Lost { .. } => None,
    }
}

fn conflict(
    facts: &mut Facts,
    hello: &Hello,
    peer_address: &Arc<str>,
    context: &Context<'_>,
) -> Admission {
    let retry_after = limits::CONFLICT_RETRY;
    if facts.resume.distrusted.as_ref() != Some(&hello.instance_id) {
        facts.conflict = Some(Arc::new(Conflict {
            since: facts
                .conflict
                .as_ref()
                .map_or(context.now.wall, |before| before.since),
            until: context.now.mono + limits::CONFLICT_SHOWN,
            incumbent: facts.about.peer_address.clone(),
            newcomer: peer_address.clone(),
            newcomer_instance: hello.instance_id.clone(),
            same_machine: facts.about.boot_id == hello.boot_id,
        }));
    }
    Admission::Conflict { retry_after }
}

/// A session was accepted: `new` is what its Welcome brings.
pub(super) fn accept(facts: &mut Facts, hello: &Hello, new: ResumeToken) {
    let resume = &mut facts.resume;
    let presented = hello.resume_token.clone();
    if presented.is_none() || presented != resume.before {
        // What others held until now is used from here on; the presented one stays good until the
        // session has spoken.
        let held = [resume.before.take(), resume.current.take()];
        for token in held.into_iter().flatten() {
            if Some(&token) != presented.as_ref() {
                retire(resume, token);
            }
        }
        resume.before = presented;
    }
    resume.unproven = Some(hello.instance_id.clone());
    resume.current = Some(new);
    resume.challenge = None;
    if resume.trusted.as_ref() == Some(&hello.instance_id) {
        resume.trusted = None;
        facts.conflict = None;
    }
}

/// The session that speaks has spoken: it holds the current token, and is alive.
pub(super) fn heard(resume: &mut Resume) {
    resume.unproven = None;
    if let Some(token) = resume.before.take() {
        retire(resume, token);
    }
    if let Some(challenge) = &mut resume.challenge {
        challenge.proved = true;
    }
}

fn retire(resume: &mut Resume, token: ResumeToken) {
    if resume.used.contains(&token) {
        return;
    }
    let mut used: Vec<ResumeToken> = resume.used.to_vec();
    used.push(token);
    let from = used.len().saturating_sub(limits::USED_TOKENS);
    resume.used = used.split_off(from).into();
}

/// An operator decided: the one that is heard stays, or the newcomer takes its place.
pub(super) fn trust(facts: &mut Facts, newcomer: bool) {
    let Some(conflict) = facts.conflict.take() else {
        return;
    };
    let instance = conflict.newcomer_instance.clone();
    if newcomer {
        facts.resume.distrusted = facts
            .session
            .as_ref()
            .map(|session| session.instance_id.clone());
        facts.resume.trusted = Some(instance);
    } else {
        facts.resume.distrusted = Some(instance);
    }
}

/// Lets go of a conflict and a challenge whose newcomer went away.
pub(super) fn expire(facts: &mut Facts, now: Mono) {
    if facts
        .conflict
        .as_ref()
        .is_some_and(|conflict| now >= conflict.until)
    {
        facts.conflict = None;
    }
    if facts
        .resume
        .challenge
        .as_ref()
        .is_some_and(|challenge| now >= challenge.since + limits::CHALLENGE_LASTS)
    {
        facts.resume.challenge = None;
    }
}
