//! What a broker says of a host: reasons, verdicts, transitions.
//!
//! Read back by our own command line. A label of a newer broker reads as Unavailable and a
//! confidence as Unverified: the booleans beside them are what counts.

use jiff::Timestamp;
use muster_core::{
    host::{CheckStanding, Drain, Flip},
    model::{
        Confidence, HostName, Intent, PoolName, Reason, ReasonCode, Remedy, SafeToPowerOff, Status,
        Transition, Verdict, clean_text,
    },
};

use super::{
    BorderError, Word as _, all, by_value, duration, host::sessions, instant, millis,
    optional_instant, timestamp,
};
use crate::v1;

/// Reasons of one verdict: each check may give one, and each drain.
const MAX_REASONS: usize = 128;
/// Listeners of a verdict, as many as a host may report.
const MAX_LISTENERS: usize = super::MAX_LISTENERS;
/// Steps of evidence of one reason, and bytes of each.
const MAX_EVIDENCE: usize = 64;
const MAX_TEXT_BYTES: usize = 1024;

by_value!(
    Reason => v1::Reason,
    Verdict => v1::Verdict,
    Transition => v1::Transition,
    Drain => v1::Drain,
    Flip => v1::CheckFlip,
);

impl From<&Reason> for v1::Reason {
    fn from(reason: &Reason) -> Self {
        Self {
            code: reason.code.as_str().to_owned(),
            subject: reason.subject.clone(),
            message: reason.message.clone(),
            since: Some(timestamp(reason.since)),
            evidence: reason.evidence.clone(),
            remedy: reason.remedy.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::Reason> for Reason {
    type Error = BorderError;

    fn try_from(wire: v1::Reason) -> Result<Self, BorderError> {
        let text = |text: &String| clean_text(text, MAX_TEXT_BYTES);
        if wire.code.is_empty() {
            return Err(BorderError::missing("code"));
        }
        Ok(Self {
            code: ReasonCode::from_text(&wire.code),
            subject: text(&wire.subject),
            message: text(&wire.message),
            since: instant("since", wire.since)?,
            evidence: wire.evidence.iter().take(MAX_EVIDENCE).map(text).collect(),
            remedy: wire.remedy.map(|remedy| Remedy {
                text: text(&remedy.text),
                commands: remedy
                    .commands
                    .iter()
                    .take(MAX_EVIDENCE)
                    .map(text)
                    .collect(),
            }),
        })
    }
}

impl From<&Verdict> for v1::Verdict {
    fn from(verdict: &Verdict) -> Self {
        Self {
            name: verdict.name.to_string(),
            host_id: verdict.host_id.to_string(),
            pool: verdict.pool.to_string(),
            status: verdict.status.to_wire(),
            intent: verdict.intent.to_wire(),
            connectable: verdict.connectable,
            connectable_new: verdict.connectable_new,
            connectable_reconnect: verdict.connectable_reconnect,
            reasons: verdict.reasons.iter().map(Into::into).collect(),
            as_of: Some(timestamp(verdict.as_of)),
            last_beat_age_ms: verdict.last_beat_age.map(millis),
            confidence: verdict.confidence.to_wire(),
            confidence_reason: verdict.confidence_reason.clone(),
            valid_for_ms: millis(verdict.valid_for),
            retry_after_ms: verdict.retry_after.map(millis),
            observed_by: verdict.observed_by.clone(),
            verdict_id: verdict.verdict_id.clone(),
            listeners: verdict.listeners.iter().map(Into::into).collect(),
            sessions: Some(verdict.sessions.into()),
            safe_to_power_off: verdict.safe_to_power_off.to_wire(),
            status_since: Some(timestamp(verdict.status_since)),
        }
    }
}

impl TryFrom<v1::Verdict> for Verdict {
    type Error = BorderError;

    fn try_from(wire: v1::Verdict) -> Result<Self, BorderError> {
        Ok(Self {
            name: HostName::new(&wire.name).map_err(|error| BorderError::new("name", error))?,
            host_id: wire
                .host_id
                .parse()
                .map_err(|error| BorderError::new("host_id", error))?,
            pool: PoolName::new(&wire.pool).map_err(|error| BorderError::new("pool", error))?,
            status: status(wire.status),
            status_since: instant("status_since", wire.status_since)?,
            intent: Intent::from_wire(wire.intent).unwrap_or(Intent::New),
            connectable: wire.connectable,
            connectable_new: wire.connectable_new,
            connectable_reconnect: wire.connectable_reconnect,
            reasons: all("reasons", MAX_REASONS, wire.reasons)?,
            as_of: instant("as_of", wire.as_of)?,
            last_beat_age: wire.last_beat_age_ms.map(duration),
            confidence: confidence(wire.confidence),
            confidence_reason: clean_text(&wire.confidence_reason, MAX_TEXT_BYTES),
            valid_for: duration(wire.valid_for_ms),
            retry_after: wire.retry_after_ms.map(duration),
            observed_by: clean_text(&wire.observed_by, MAX_TEXT_BYTES),
            verdict_id: clean_text(&wire.verdict_id, MAX_TEXT_BYTES),
            listeners: all("listeners", MAX_LISTENERS, wire.listeners)?,
            sessions: sessions(wire.sessions),
            safe_to_power_off: SafeToPowerOff::from_wire(wire.safe_to_power_off)
                .unwrap_or(SafeToPowerOff::Unknown),
        })
    }
}

impl From<&Transition> for v1::Transition {
    fn from(transition: &Transition) -> Self {
        let unspecified = v1::HostStatus::Unspecified as i32;
        Self {
            sequence: transition.sequence,
            at: Some(timestamp(transition.at)),
            from: transition.from.map_or(unspecified, Status::to_wire),
            to: transition.to.to_wire(),
            connectable_new: transition.connectable_new,
            connectable_reconnect: transition.connectable_reconnect,
            reasons: transition.reasons.iter().map(Into::into).collect(),
            confidence: transition.confidence.to_wire(),
            trigger: transition.trigger.clone(),
        }
    }
}

impl TryFrom<v1::Transition> for Transition {
    type Error = BorderError;

    fn try_from(wire: v1::Transition) -> Result<Self, BorderError> {
        let unspecified = v1::HostStatus::Unspecified as i32;
        Ok(Self {
            sequence: wire.sequence,
            at: instant("at", wire.at)?,
            from: (wire.from != unspecified).then(|| status(wire.from)),
            to: status(wire.to),
            connectable_new: wire.connectable_new,
            connectable_reconnect: wire.connectable_reconnect,
            confidence: confidence(wire.confidence),
            reasons: all("reasons", MAX_REASONS, wire.reasons)?,
            trigger: clean_text(&wire.trigger, MAX_TEXT_BYTES),
        })
    }
}

impl From<&Drain> for v1::Drain {
    fn from(drain: &Drain) -> Self {
        Self {
            owner: drain.owner.clone(),
            reason: drain.reason.clone(),
            since: Some(timestamp(drain.since)),
            until: drain.until.map(timestamp),
        }
    }
}

impl TryFrom<v1::Drain> for Drain {
    type Error = BorderError;

    fn try_from(wire: v1::Drain) -> Result<Self, BorderError> {
        let since: Timestamp = instant("since", wire.since)?;
        Ok(Self {
            owner: clean_text(&wire.owner, MAX_TEXT_BYTES),
            reason: clean_text(&wire.reason, MAX_TEXT_BYTES),
            since,
            until: optional_instant("until", wire.until)?,
        })
    }
}

impl From<&Flip> for v1::CheckFlip {
    fn from(flip: &Flip) -> Self {
        Self {
            at: Some(timestamp(flip.at)),
            from: flip.from.map_or(0, CheckStanding::to_wire),
            to: flip.to.to_wire(),
            message: flip.message.clone(),
        }
    }
}

impl TryFrom<v1::CheckFlip> for Flip {
    type Error = BorderError;

    fn try_from(wire: v1::CheckFlip) -> Result<Self, BorderError> {
        Ok(Self {
            at: instant("at", wire.at)?,
            from: CheckStanding::from_wire(wire.from),
            to: CheckStanding::from_wire(wire.to).unwrap_or(CheckStanding::Unknown),
            message: clean_text(&wire.message, MAX_TEXT_BYTES),
        })
    }
}

fn status(number: i32) -> Status {
    Status::from_wire(number).unwrap_or(Status::Unavailable)
}

fn confidence(number: i32) -> Confidence {
    Confidence::from_wire(number).unwrap_or(Confidence::Unverified)
}
