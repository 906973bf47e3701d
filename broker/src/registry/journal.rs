//! What of a transition goes into the journal: all of it, unless it is too long.

use std::borrow::Cow;

use muster_core::model::Transition;

/// Bytes of texts in one entry: with a thousand entries, some 16 MiB for the worst host.
const ENTRY_BYTES: usize = 16 * 1024;

/// The entry to store. The worst reasons keep their evidence and remedies; those of the rest are
/// left out first, and what happened is never.
pub(super) fn bounded(transition: &Transition) -> Cow<'_, Transition> {
    let mut left = ENTRY_BYTES;
    let fits = transition.reasons.iter().all(|reason| {
        let size = detail(reason);
        let fits = size <= left;
        left = left.saturating_sub(size);
        fits
    });
    if fits {
        return Cow::Borrowed(transition);
    }
    let mut cut = transition.clone();
    let mut left = ENTRY_BYTES;
    for reason in &mut cut.reasons {
        let size = detail(reason);
        if size > left {
            left = 0;
            reason.evidence = vec!["left out: the entry would be too long".to_owned()];
            reason.remedy = None;
        } else {
            left -= size;
        }
    }
    Cow::Owned(cut)
}

/// Bytes of what a reason brings beside its message.
pub(super) fn detail(reason: &muster_core::model::Reason) -> usize {
    let evidence: usize = reason.evidence.iter().map(String::len).sum();
    let remedy = reason.remedy.as_ref().map_or(0, |remedy| {
        remedy.text.len() + remedy.commands.iter().map(String::len).sum::<usize>()
    });
    evidence + remedy
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use muster_core::model::{Confidence, Reason, ReasonCode, Status};

    use super::*;

    #[test]
    fn the_worst_reasons_keep_their_evidence_and_nothing_that_happened_is_lost() {
        let reasons: Vec<Reason> = (0..64)
            .map(|number| {
                let message = format!("check {number} fails");
                let code = ReasonCode::CHECK_FAILED;
                let mut reason = Reason::new(code, message, Timestamp::UNIX_EPOCH);
                reason.evidence = vec!["x".repeat(1024); 2];
                reason
            })
            .collect();
        let transition = Transition {
            sequence: 1,
            at: Timestamp::UNIX_EPOCH,
            from: None,
            to: Status::NeedsAssistance,
            connectable_new: true,
            connectable_reconnect: true,
            confidence: Confidence::Confirmed,
            reasons,
            trigger: "report".to_owned(),
        };
        let entry = bounded(&transition);
        assert_eq!(entry.reasons.len(), 64);
        assert_eq!(entry.reasons[0], transition.reasons[0]);
        assert_eq!(entry.reasons[63].message, "check 63 fails");
        let size: usize = entry.reasons.iter().map(detail).sum();
        assert!(size <= ENTRY_BYTES + 64 * 64, "{size}");
        let short = Transition {
            reasons: transition.reasons[..2].to_vec(),
            ..transition
        };
        assert_eq!(*bounded(&short), short);
    }
}
