//! The answer to the front end, and the entry of a journal.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Confidence, HostId, HostName, Intent, PoolName, Reason, SafeToPowerOff, Status};

/// People's sessions on a host. None is unknown, never zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SessionCounts {
    /// With somebody at the other end.
    pub active: Option<u32>,
    /// Running on without a connection.
    pub disconnected: Option<u32>,
    /// Being set up.
    pub pending: Option<u32>,
}

impl SessionCounts {
    /// All sessions, known only when both active and disconnected ones are. Sessions being set up
    /// add to it where the host can count them.
    #[must_use]
    pub fn total(self) -> Option<u32> {
        let pending = self.pending.unwrap_or(0);
        Some(
            self.active?
                .saturating_add(self.disconnected?)
                .saturating_add(pending),
        )
    }
}

/// A place where a host takes people's connections.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Listener {
    /// rdp, ssh, vnc, https, tcp.
    pub protocol: Arc<str>,
    /// Addresses that it is bound to; empty for all.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// TCP port.
    pub port: u16,
}

/// The answer: is this host connectable, and if not, why and what mends it?
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// Name of the host.
    pub name: HostName,
    /// Id of the host.
    pub host_id: HostId,
    /// Pool of the host.
    pub pool: PoolName,
    /// The label.
    pub status: Status,
    /// Since when the host has had it.
    pub status_since: Timestamp,
    /// What was asked for.
    pub intent: Intent,
    /// The answer for that intent.
    pub connectable: bool,
    /// The answer for a new session.
    pub connectable_new: bool,
    /// The answer for coming back to one's own session.
    pub connectable_reconnect: bool,
    /// All reasons, worst first.
    pub reasons: Vec<Reason>,
    /// When the broker computed this.
    pub as_of: Timestamp,
    /// Age of the last beat.
    #[serde(rename = "last_beat_age_ms", with = "opt_millis", default)]
    pub last_beat_age: Option<Duration>,
    /// How well the broker knows that the host is there.
    pub confidence: Confidence,
    /// Why that is not Confirmed.
    pub confidence_reason: String,
    /// How long this answer may be used without asking again.
    #[serde(rename = "valid_for_ms", with = "millis")]
    pub valid_for: Duration,
    /// When asking again makes sense; none where waiting alone mends nothing.
    #[serde(rename = "retry_after_ms", with = "opt_millis", default)]
    pub retry_after: Option<Duration>,
    /// The broker that observed the host.
    pub observed_by: String,
    /// Names this answer; given by the broker that gives it.
    pub verdict_id: String,
    /// Where the host takes connections.
    pub listeners: Vec<Listener>,
    /// Sessions as last counted.
    pub sessions: SessionCounts,
    /// May the machine be powered off?
    pub safe_to_power_off: SafeToPowerOff,
}

/// One change of a host's status, of an answer about it, or of the set of its reasons.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transition {
    /// Counts up by one for each host, without holes.
    pub sequence: u64,
    /// When, by the broker's clock.
    pub at: Timestamp,
    /// Status before; none at enrolment.
    pub from: Option<Status>,
    /// Status after.
    pub to: Status,
    /// The answer for a new session, after.
    pub connectable_new: bool,
    /// The answer for coming back, after.
    pub connectable_reconnect: bool,
    /// How well the broker knew that the host was there, after.
    pub confidence: Confidence,
    /// All reasons after, worst first.
    pub reasons: Vec<Reason>,
    /// What brought it about.
    pub trigger: String,
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_millis)
    }
}

mod opt_millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "the shape that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::millis::serialize(value, s),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(d)?.map(Duration::from_millis))
    }
}
