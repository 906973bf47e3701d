//! The words of the domain. Types here carry meaning and bounds, and decide nothing.

mod announce;
mod cloud;
mod names;
mod outcome;
mod policy;
mod reason;
mod status;
mod time;
mod verdict;
mod version;

pub use announce::{Leave, PowerAnnouncement, UpgradeAnnouncement, UpgradeAttempt, UpgradePhase};
pub use cloud::CloudInstance;
pub use names::{
    CheckName, Epoch, HostId, HostName, NameError, PoolName, ResumeToken, Role, TrustDomain,
};
pub use outcome::{
    CheckResult, Finding, MAX_CHECKS, MAX_FINDINGS_BYTES, MAX_MESSAGE_BYTES, MAX_REMEDY_BYTES,
    Outcome, Remedy, Severity, UnknownCause, clean_text,
};
pub use policy::{
    CheckPace, PROBE_PORTS, PoolPolicy, ProbePolicy, RequiredUrl, UpgradingAccepts, Wildcard,
    default_check_names,
};
pub use reason::{Reason, ReasonCode, ReasonInfo};
pub use status::{Confidence, Intent, SafeToPowerOff, Status};
pub use time::{Mono, Now};
pub use verdict::{Listener, SessionCounts, Transition, Verdict};
pub use version::at_or_above;
