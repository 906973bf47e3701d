//! A calm host: Confirmed, settled, and nothing due but by its link.
//!
//! Almost every word that a broker hears is a beat that says nothing new. It moves the times of the
//! link and judges nothing, because only time has passed, and less than until the next deadline.

use super::{Beat, Context, Heard, Host, Link, admission, conclude::session_ends, limits};
use crate::model::{Epoch, Mono};

impl Host {
    /// Takes a beat of a calm host that says nothing new; false if it must be judged.
    pub(super) fn takes_plain_beat(
        &mut self,
        epoch: Epoch,
        beat: &Beat,
        context: &Context<'_>,
    ) -> bool {
        let now = context.now.mono;
        let (Some(calm_until), Link::Heard(heard), Some(session)) =
            (self.calm_until, self.facts.link, &mut self.facts.session)
        else {
            return false;
        };
        let valid_until = now + beat.results_valid.min(limits::RESULTS_VALID_MAX);
        let plain = !context.broker_late
            && now < calm_until
            // Results that had ended are good again by this beat: that is news.
            && now < self.facts.health.valid_until
            // Before results end, the host comes up for its link: it is armed for that.
            && valid_until >= calm_until.min(now + heard.lease)
            && heard.ended.is_none()
            && now < heard.lease_ends()
            && session.epoch == epoch
            && session.reported
            && beat.sequence > session.sequence
            && self.facts.health.state_hash == Some(beat.state_hash)
            && self.facts.sessions == beat.sessions;
        if plain {
            session.sequence = beat.sequence;
            admission::heard(&mut self.facts.resume);
            self.facts.last_word = Some(now);
            self.facts.link = Link::Heard(Heard {
                last_beat: now,
                interval: session.interval,
                lease: session.lease,
                ended: None,
            });
            self.facts.health.valid_until = valid_until;
            self.calm_until = Some(calm_until.min(valid_until));
        }
        plain
    }

    /// When a calm host is due, if that is later than now: beats moved its deadlines away since it
    /// was armed, and nothing is to be judged.
    #[must_use]
    pub fn due_later(&self, context: &Context<'_>) -> Option<Mono> {
        let calm_until = self.calm_until?;
        let (Link::Heard(heard), Some(session)) = (self.facts.link, &self.facts.session) else {
            return None;
        };
        let due = calm_until
            .min(heard.confirmed_until())
            .min(heard.lease_ends())
            .min(session_ends(&self.facts, session));
        (heard.ended.is_none() && !context.broker_late && context.now.mono < due).then_some(due)
    }
}
