//! What a host says of itself: hello, beats, reports, power, upgrades.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use muster_core::{
    host::{Beat, Hello, Report},
    model::{
        CloudInstance, Leave, Listener, MAX_CHECKS, PowerAnnouncement, ResumeToken, SessionCounts,
        UpgradeAnnouncement, UpgradeAttempt, UpgradePhase, clean_text,
    },
};

use super::{
    BorderError, MAX_VERSION_BYTES, Word as _, all, by_value, duration, id, millis, required_id,
    time::optional_duration,
};
use crate::v1;

/// Listeners that one host may report: a handful of protocols on a handful of ports.
pub const MAX_LISTENERS: usize = 32;
/// Addresses of a host or listener that are kept; they are for people and for probes.
pub const MAX_ADDRESSES: usize = 16;
/// Bytes of a resume token. Ours has 16.
pub const MAX_RESUME_TOKEN_BYTES: usize = 64;
/// Bytes of one address: an IPv6 address with its zone fits twice.
const MAX_ADDRESS_BYTES: usize = 128;
/// Bytes of the operating system's name.
const MAX_OS_BYTES: usize = 128;
/// Bytes of what went wrong in an upgrade.
const MAX_ERROR_BYTES: usize = 512;

by_value!(
    Hello => v1::Hello,
    Report => v1::Report,
    Listener => v1::Listener,
    CloudInstance => v1::CloudInstance,
    UpgradeAnnouncement => v1::UpgradeState,
);

impl From<&Hello> for v1::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            agent_version: hello.agent_version.to_string(),
            boot_id: hello.boot_id.to_string(),
            instance_id: hello.instance_id.to_string(),
            resume_token: hello
                .resume_token
                .as_ref()
                .map_or_else(Bytes::new, |token| Bytes::copy_from_slice(token.as_bytes())),
            os: hello.os.to_string(),
            addresses: hello.addresses.clone(),
            policy_revision: hello.policy_revision.to_string(),
            power: Some(hello.power.into()),
            upgrade: Some((&hello.upgrade).into()),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = BorderError;

    fn try_from(wire: v1::Hello) -> Result<Self, BorderError> {
        if wire.resume_token.len() > MAX_RESUME_TOKEN_BYTES {
            let problem = format!(
                "has {} bytes; at most {MAX_RESUME_TOKEN_BYTES} are allowed",
                wire.resume_token.len()
            );
            return Err(BorderError::new("resume_token", problem));
        }
        Ok(Self {
            agent_version: version(&wire.agent_version),
            boot_id: required_id("boot_id", &wire.boot_id)?,
            instance_id: required_id("instance_id", &wire.instance_id)?,
            // A token of another length is none of ours: its bearer is a stranger.
            resume_token: <[u8; 16]>::try_from(&wire.resume_token[..])
                .ok()
                .map(ResumeToken::new),
            os: clean_text(&wire.os, MAX_OS_BYTES).into(),
            addresses: addresses(&wire.addresses),
            policy_revision: id("policy_revision", &wire.policy_revision)?,
            power: power(wire.power),
            upgrade: upgrade(wire.upgrade)?,
        })
    }
}

impl From<Beat> for v1::Beat {
    fn from(beat: Beat) -> Self {
        Self {
            sequence: beat.sequence,
            state_hash: beat.state_hash,
            results_valid_ms: millis(beat.results_valid),
            sessions: Some(beat.sessions.into()),
        }
    }
}

impl From<v1::Beat> for Beat {
    fn from(wire: v1::Beat) -> Self {
        Self {
            sequence: wire.sequence,
            state_hash: wire.state_hash,
            results_valid: duration(wire.results_valid_ms),
            sessions: sessions(wire.sessions),
        }
    }
}

impl From<&Report> for v1::Report {
    fn from(report: &Report) -> Self {
        Self {
            sequence: report.sequence,
            state_hash: report.state_hash,
            results_valid_ms: millis(report.results_valid),
            checks: report.checks.iter().map(Into::into).collect(),
            listeners: report.listeners.iter().map(Into::into).collect(),
            sessions: Some(report.sessions.into()),
            policy_revision: report.policy_revision.to_string(),
            power: Some(report.power.into()),
            upgrade: Some((&report.upgrade).into()),
            cloud: report.cloud.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::Report> for Report {
    type Error = BorderError;

    fn try_from(wire: v1::Report) -> Result<Self, BorderError> {
        let report = Self {
            sequence: wire.sequence,
            state_hash: wire.state_hash,
            results_valid: duration(wire.results_valid_ms),
            checks: all("checks", MAX_CHECKS, wire.checks)?,
            listeners: all("listeners", MAX_LISTENERS, wire.listeners)?,
            sessions: sessions(wire.sessions),
            policy_revision: id("policy_revision", &wire.policy_revision)?,
            power: power(wire.power),
            upgrade: upgrade(wire.upgrade)?,
            cloud: cloud(wire.cloud),
        };
        let mut names = HashSet::with_capacity(report.checks.len());
        for (at, check) in report.checks.iter().enumerate() {
            if !names.insert(&check.name) {
                let problem = format!("{:?} stands there twice", check.name.as_str());
                return Err(BorderError::new(&format!("checks[{at}].name"), problem));
            }
        }
        Ok(report)
    }
}

impl From<&Listener> for v1::Listener {
    fn from(listener: &Listener) -> Self {
        Self {
            protocol: listener.protocol.to_string(),
            addresses: listener.addresses.clone(),
            port: listener.port.into(),
        }
    }
}

impl TryFrom<v1::Listener> for Listener {
    type Error = BorderError;

    fn try_from(wire: v1::Listener) -> Result<Self, BorderError> {
        let port = u16::try_from(wire.port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| {
                BorderError::new("port", format!("is {}; allowed are 1 to 65535", wire.port))
            })?;
        Ok(Self {
            protocol: required_id("protocol", &wire.protocol)?,
            addresses: addresses(&wire.addresses),
            port,
        })
    }
}

impl From<&CloudInstance> for v1::CloudInstance {
    fn from(cloud: &CloudInstance) -> Self {
        Self {
            provider: cloud.provider.to_string(),
            instance_id: cloud.instance_id.clone(),
            region: cloud.region.clone(),
            instance_type: cloud.instance_type.clone(),
        }
    }
}

/// Reads which machine of a cloud it is; what names none is as good as nothing.
#[must_use]
pub fn cloud(wire: Option<v1::CloudInstance>) -> Option<CloudInstance> {
    let wire = wire?;
    CloudInstance {
        provider: wire.provider.into(),
        instance_id: wire.instance_id,
        region: wire.region,
        instance_type: wire.instance_type,
    }
    .bounded()
}

impl From<SessionCounts> for v1::SessionCounts {
    fn from(counts: SessionCounts) -> Self {
        Self {
            active: counts.active,
            disconnected: counts.disconnected,
            pending: counts.pending,
        }
    }
}

impl From<v1::SessionCounts> for SessionCounts {
    fn from(wire: v1::SessionCounts) -> Self {
        Self {
            active: wire.active,
            disconnected: wire.disconnected,
            pending: wire.pending,
        }
    }
}

/// A host that does not speak of sessions has not said that there are none.
pub(super) fn sessions(wire: Option<v1::SessionCounts>) -> SessionCounts {
    wire.map_or_else(SessionCounts::default, Into::into)
}

impl From<PowerAnnouncement> for v1::PowerState {
    fn from(power: PowerAnnouncement) -> Self {
        use v1::PowerKind as W;
        let (kind, back_within) = match power {
            PowerAnnouncement::Running => (W::Running, None),
            PowerAnnouncement::Leaving { how, back_within } => {
                let kind = match how {
                    Leave::Poweroff => W::Poweroff,
                    Leave::Reboot => W::Reboot,
                    Leave::Suspend => W::Suspend,
                    Leave::AgentStop => W::AgentStop,
                    Leave::AgentRestart => W::AgentRestart,
                };
                (kind, back_within)
            }
        };
        Self {
            kind: kind as i32,
            back_within_ms: back_within.map_or(0, millis),
        }
    }
}

/// Reads a restated power. A host that says nothing is running: it speaks. A kind of leaving that
/// this version does not know is a leaving all the same, as if the agent stopped: nobody vouches
/// for the host from then on.
#[must_use]
pub fn power(wire: Option<v1::PowerState>) -> PowerAnnouncement {
    use v1::PowerKind as W;
    let Some(wire) = wire else {
        return PowerAnnouncement::Running;
    };
    let how = match W::try_from(wire.kind) {
        Ok(W::Unspecified | W::Running) => return PowerAnnouncement::Running,
        Ok(W::Poweroff) => Leave::Poweroff,
        Ok(W::Reboot) => Leave::Reboot,
        Ok(W::Suspend) => Leave::Suspend,
        Ok(W::AgentStop) | Err(_) => Leave::AgentStop,
        Ok(W::AgentRestart) => Leave::AgentRestart,
    };
    PowerAnnouncement::Leaving {
        how,
        back_within: optional_duration(wire.back_within_ms),
    }
}

impl From<v1::PowerState> for PowerAnnouncement {
    fn from(wire: v1::PowerState) -> Self {
        power(Some(wire))
    }
}

impl From<&UpgradeAnnouncement> for v1::UpgradeState {
    fn from(upgrade: &UpgradeAnnouncement) -> Self {
        use v1::UpgradeKind as W;
        let of = |attempt: &UpgradeAttempt, kind: W| Self {
            kind: kind as i32,
            attempt_id: attempt.id.to_string(),
            from_version: attempt.from.to_string(),
            to_version: attempt.to.to_string(),
            phase: attempt.phase.to_wire(),
            ..Self::default()
        };
        match upgrade {
            UpgradeAnnouncement::Silent => Self {
                kind: W::None as i32,
                ..Self::default()
            },
            UpgradeAnnouncement::Cleared { id } => Self {
                kind: W::None as i32,
                cleared_attempt_id: id.to_string(),
                ..Self::default()
            },
            UpgradeAnnouncement::InProgress { attempt, within } => Self {
                within_ms: within.map_or(0, millis),
                ..of(attempt, W::InProgress)
            },
            UpgradeAnnouncement::Failed { attempt, error } => Self {
                error: error.clone(),
                ..of(attempt, W::Failed)
            },
        }
    }
}

impl TryFrom<v1::UpgradeState> for UpgradeAnnouncement {
    type Error = BorderError;

    fn try_from(wire: v1::UpgradeState) -> Result<Self, BorderError> {
        use v1::UpgradeKind as W;
        match W::try_from(wire.kind) {
            // A kind of a newer agent says nothing that this version could act on.
            Ok(W::Unspecified) | Err(_) => Ok(Self::Silent),
            Ok(W::None) if wire.cleared_attempt_id.is_empty() => Ok(Self::Silent),
            Ok(W::None) => Ok(Self::Cleared {
                id: id("cleared_attempt_id", &wire.cleared_attempt_id)?,
            }),
            Ok(W::InProgress) => Ok(Self::InProgress {
                attempt: attempt(&wire)?,
                within: optional_duration(wire.within_ms),
            }),
            Ok(W::Failed) => Ok(Self::Failed {
                attempt: attempt(&wire)?,
                error: clean_text(&wire.error, MAX_ERROR_BYTES),
            }),
        }
    }
}

fn upgrade(wire: Option<v1::UpgradeState>) -> Result<UpgradeAnnouncement, BorderError> {
    wire.map_or(Ok(UpgradeAnnouncement::Silent), TryInto::try_into)
        .map_err(|error: BorderError| error.inside("upgrade"))
}

fn attempt(wire: &v1::UpgradeState) -> Result<UpgradeAttempt, BorderError> {
    Ok(UpgradeAttempt {
        id: required_id("attempt_id", &wire.attempt_id)?,
        from: version(&wire.from_version),
        to: version(&wire.to_version),
        phase: UpgradePhase::from_wire(wire.phase).unwrap_or(UpgradePhase::Preflight),
    })
}

fn version(text: &str) -> Arc<str> {
    clean_text(text, MAX_VERSION_BYTES).into()
}

pub(super) fn addresses(wire: &[String]) -> Vec<String> {
    wire.iter()
        .take(MAX_ADDRESSES)
        .map(|address| clean_text(address, MAX_ADDRESS_BYTES))
        .collect()
}
