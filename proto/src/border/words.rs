//! Enums. A value that is unspecified, or newer than this version, reads as none; who reads it
//! decides what that means, and never takes it for healthy.

use muster_core::{
    host::CheckStanding,
    model::{
        Confidence, Intent, Outcome, SafeToPowerOff, Severity, Status, UnknownCause, UpgradePhase,
    },
};

use crate::v1;

/// An enum of the domain that has a counterpart in the contract.
pub trait Word: Sized {
    /// The number that stands for it in a message.
    fn to_wire(self) -> i32;

    /// What that number stands for; none if it is unspecified or not known to this version.
    fn from_wire(number: i32) -> Option<Self>;
}

macro_rules! words {
    ($($core:ident = $wire:ident { $($value:ident),* $(,)? })*) => {
        $(
            impl From<$core> for v1::$wire {
                fn from(value: $core) -> Self {
                    match value { $($core::$value => Self::$value,)* }
                }
            }

            impl Word for $core {
                fn to_wire(self) -> i32 {
                    v1::$wire::from(self) as i32
                }

                fn from_wire(number: i32) -> Option<Self> {
                    match v1::$wire::try_from(number).ok()? {
                        v1::$wire::Unspecified => None,
                        $(v1::$wire::$value => Some(Self::$value),)*
                    }
                }
            }
        )*
    };
}

words! {
    Status = HostStatus {
        Available, NeedsAssistance, Shutdown, Unavailable, Upgrading, UpgradeFailed,
    }
    Intent = Intent { New, Reconnect }
    Confidence = Confidence { Confirmed, Suspect, Unverified, Absent }
    SafeToPowerOff = SafeToPowerOff { Yes, No, Unknown }
    Severity = Severity { Fatal, NonFatal, ReportOnly }
    UnknownCause = UnknownCause { NotYetRun, TimedOut, Stale, CannotRun, Unsupported }
    UpgradePhase = UpgradePhase {
        Preflight, Download, Verify, Wait, Switch, Probation, Commit, Rollback,
    }
}

impl Word for CheckStanding {
    fn to_wire(self) -> i32 {
        use v1::CheckOutcome as W;
        let word = match self {
            Self::Pass => W::Pass,
            Self::Warn => W::Warn,
            Self::Fail => W::Fail,
            Self::Unknown => W::Unknown,
        };
        word as i32
    }

    fn from_wire(number: i32) -> Option<Self> {
        use v1::CheckOutcome as W;
        match W::try_from(number).ok()? {
            W::Unspecified => None,
            W::Pass | W::NotApplicable => Some(Self::Pass),
            W::Warn => Some(Self::Warn),
            W::Fail => Some(Self::Fail),
            W::Unknown => Some(Self::Unknown),
        }
    }
}

impl From<Outcome> for v1::CheckOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Pass => Self::Pass,
            Outcome::Warn => Self::Warn,
            Outcome::Fail => Self::Fail,
            Outcome::Unknown(_) => Self::Unknown,
            Outcome::NotApplicable => Self::NotApplicable,
        }
    }
}

/// The cause of an outcome as it stands beside it.
pub(super) fn cause(outcome: Outcome) -> i32 {
    outcome
        .cause()
        .map_or(v1::UnknownCause::Unspecified as i32, Word::to_wire)
}

/// The outcome in a pair of fields. What is not known here is Unknown, and an Unknown of a cause
/// that is not known here could not run.
#[must_use]
pub fn outcome(number: i32, cause: i32) -> Outcome {
    use v1::CheckOutcome as W;
    match W::try_from(number) {
        Ok(W::Pass) => Outcome::Pass,
        Ok(W::Warn) => Outcome::Warn,
        Ok(W::Fail) => Outcome::Fail,
        Ok(W::NotApplicable) => Outcome::NotApplicable,
        Ok(W::Unknown | W::Unspecified) | Err(_) => {
            Outcome::Unknown(UnknownCause::from_wire(cause).unwrap_or(UnknownCause::CannotRun))
        }
    }
}
