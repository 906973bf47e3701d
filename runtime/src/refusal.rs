//! The stable reasons with which a broker says no, on the wire and back.
//!
//! A refusal is a gRPC status with `google.rpc.ErrorInfo` (reason, domain `muster`) and, where
//! waiting helps, `RetryInfo`. [`REASONS`] is the table of all reasons with the one reaction of
//! an agent to each; a reason that is not in it comes from a newer broker and means
//! [`Reaction::Retry`].

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use muster_core::model::clean_text;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The domain of all our reasons.
pub const DOMAIN: &str = "muster";
/// The message travels in a header: with its percent encoding and the details it must stay well
/// under the 16 KiB that HTTP/2 peers accept.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Entries of metadata, and bytes of each.
const MAX_METADATA: usize = 16;
const MAX_METADATA_BYTES: usize = 256;

/// What an agent does when it is refused so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Tries again with backoff, not before `RetryInfo` says.
    Retry,
    /// Tries again at the slowest pace and says loudly that an administrator must act: the
    /// refusal will not go away by itself.
    RetrySlowly,
    /// Gives up what it asked for: the request itself is wrong.
    GiveUp,
}

/// What is known of a reason.
#[derive(Clone, Copy, Debug)]
pub struct ReasonInfo {
    /// The reason as it stands in `ErrorInfo`.
    pub reason: &'static str,
    /// The gRPC status code that goes with it.
    pub code: Code,
    /// What an agent does.
    pub reaction: Reaction,
    /// What it means, for the documentation.
    pub meaning: &'static str,
}

macro_rules! reasons {
    ($($name:ident, $code:ident, $reaction:ident, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $name: &str = stringify!($name);)*

        /// All reasons of this version.
        pub const REASONS: &[ReasonInfo] = &[$(ReasonInfo {
            reason: $name,
            code: Code::$code,
            reaction: Reaction::$reaction,
            meaning: $meaning,
        },)*];
    };
}

reasons! {
    CERTIFICATE_REQUIRED, Unauthenticated, RetrySlowly, "The service demands a client certificate and none was presented.";
    CERTIFICATE_EXPIRED, Unauthenticated, RetrySlowly, "The client certificate is over.";
    CERTIFICATE_NOT_YET_VALID, Unauthenticated, Retry, "The client certificate begins in the broker's future: a clock is wrong.";
    CERTIFICATE_UNTRUSTED, Unauthenticated, RetrySlowly, "The client certificate was not issued by this fleet's CA.";
    CERTIFICATE_MALFORMED, Unauthenticated, RetrySlowly, "The client certificate carries no identity of Muster.";
    CERTIFICATE_OTHER_TRUST_DOMAIN, Unauthenticated, RetrySlowly, "The client certificate is of another fleet.";
    ROLE_NOT_ALLOWED, PermissionDenied, RetrySlowly, "The certificate's role may not use this service.";
    HOST_UNKNOWN, NotFound, RetrySlowly, "There is no such host, or it was removed.";
    HOST_SUPERSEDED, PermissionDenied, RetrySlowly, "The host of that name was enrolled anew with another id.";
    HOST_BANNED, PermissionDenied, RetrySlowly, "An operator banned the host.";
    IDENTITY_CONFLICT, Aborted, Retry, "Another machine uses this host's identity: the one that was here first is believed.";
    IDENTITY_IN_USE, Aborted, Retry, "The host has a session, and who holds it has not proved yet whether it lives.";
    OUTCOME_UNKNOWN, InvalidArgument, GiveUp, "A report of an outcome names no answer that this broker gave in the last minutes.";
    HELLO_EXPECTED, FailedPrecondition, Retry, "The first message of a session was not Hello.";
    HELLO_REPEATED, FailedPrecondition, Retry, "A session said Hello twice.";
    HELLO_TIMED_OUT, DeadlineExceeded, Retry, "A session was opened and did not say Hello in time.";
    MESSAGE_INVALID, InvalidArgument, Retry, "A message breaks the contract; the metadata names the field.";
    TOO_MANY_MESSAGES, ResourceExhausted, Retry, "A session says more messages a second than it may.";
    MESSAGE_TOO_LARGE, ResourceExhausted, Retry, "A message is over its limit.";
    SESSION_REPLACED, Aborted, Retry, "A newer session of the same host took over.";
    LEASE_OVER, DeadlineExceeded, Retry, "The broker heard nothing for the whole lease and closed the session.";
    BROKER_STOPPING, Unavailable, Retry, "The broker shuts down.";
    BROKER_BUSY, ResourceExhausted, Retry, "The broker is at one of its limits.";
    BROKER_STALLED, Unavailable, Retry, "The broker cannot vouch for its own answers just now.";
    STORE_FAILED, Unavailable, Retry, "The broker cannot write its store.";
    TOKEN_UNKNOWN, Unauthenticated, GiveUp, "There is no such join token.";
    TOKEN_EXPIRED, Unauthenticated, GiveUp, "The join token is over.";
    TOKEN_USED, Unauthenticated, GiveUp, "The join token was used as often as it may be.";
    TOKEN_FOR_OTHER_NAME, PermissionDenied, GiveUp, "The join token enrols a host of another name.";
    NAME_TAKEN, AlreadyExists, GiveUp, "A host of that name is enrolled.";
    NAME_INVALID, InvalidArgument, GiveUp, "A name has a length or characters that are not allowed.";
    CSR_INVALID, InvalidArgument, GiveUp, "The certificate request cannot be used.";
    REQUEST_INVALID, InvalidArgument, GiveUp, "A request breaks the contract; the metadata names the field.";
    PAGE_TOKEN_INVALID, InvalidArgument, GiveUp, "The page token is not one of this listing.";
    POOL_UNKNOWN, NotFound, GiveUp, "There is no such pool.";
    POLICY_INVALID, InvalidArgument, GiveUp, "A pool's policy has a key or a value that is not allowed.";
    POLICY_TOO_SHARP, FailedPrecondition, GiveUp, "A policy would turn more than a tenth of a pool's connectable hosts to no, and was not forced.";
    HOST_NOT_CONNECTED, FailedPrecondition, GiveUp, "The host has no session with this broker just now.";
    CONFLICT_UNKNOWN, NotFound, GiveUp, "Nothing is known of a conflict about that host.";
    DRAIN_UNKNOWN, NotFound, GiveUp, "There is no such drain.";
    DRAIN_LIMIT, ResourceExhausted, GiveUp, "The host has as many drains as it may have.";
}

/// What is known of `reason`.
#[must_use]
pub fn info(reason: &str) -> Option<&'static ReasonInfo> {
    REASONS.iter().find(|info| info.reason == reason)
}

/// A refusal, to be sent or as received.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// The gRPC status code.
    pub code: Code,
    /// Stable reason.
    pub reason: Cow<'static, str>,
    /// What to say to a person.
    pub message: String,
    /// More about it: `field`, `host`, `limit`.
    pub metadata: BTreeMap<String, String>,
    /// Not again before this time has passed.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal for one of this module's reasons, with the code that goes with it.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: info(reason).map_or(Code::Unknown, |info| info.code),
            reason: Cow::Borrowed(reason),
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_after: None,
        }
    }

    /// The same, saying more.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// The same, to be tried again after this time.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// What an agent does about it.
    #[must_use]
    pub fn reaction(&self) -> Reaction {
        info(&self.reason).map_or(Reaction::Retry, |info| info.reaction)
    }

    /// The refusal in `status`; none if the status is not one of ours.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let reason = match self::info(&info.reason) {
            Some(known) => Cow::Borrowed(known.reason),
            None => Cow::Owned(clean_text(&info.reason, 64)),
        };
        let metadata = info.metadata.iter().take(MAX_METADATA);
        Some(Self {
            code: status.code(),
            reason,
            message: clean_text(status.message(), MAX_MESSAGE_BYTES),
            metadata: metadata
                .map(|(key, value)| (clean_text(key, 64), clean_text(value, MAX_METADATA_BYTES)))
                .collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        })
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let metadata = refusal
            .metadata
            .into_iter()
            .take(MAX_METADATA)
            .map(|(key, value)| (key, clean_text(&value, MAX_METADATA_BYTES)))
            .collect::<std::collections::HashMap<_, _>>();
        let mut details = ErrorDetails::with_error_info(refusal.reason, DOMAIN, metadata);
        if let Some(after) = refusal.retry_after {
            details.set_retry_info(Some(after));
        }
        let message = clean_text(&refusal.message, MAX_MESSAGE_BYTES);
        Status::with_error_details(refusal.code, message, details)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.reason)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        let refusal = Refusal::new(TOKEN_EXPIRED, "the join token ended an hour ago")
            .with("token_id", "ab12")
            .retry_after(Duration::from_millis(2500));
        let status = Status::from(refusal.clone());
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(Refusal::from_status(&status), Some(refusal));
    }

    #[test]
    fn a_status_of_others_is_no_refusal_of_ours() {
        assert_eq!(Refusal::from_status(&Status::unavailable("x")), None);
        let details = ErrorDetails::with_error_info("X", "example.org", []);
        let status = Status::with_error_details(Code::Internal, "x", details);
        assert_eq!(Refusal::from_status(&status), None);
    }

    #[test]
    fn a_reason_of_a_newer_broker_is_kept_and_retried() {
        let details = ErrorDetails::with_error_info("MOON_FULL", DOMAIN, []);
        let status = Status::with_error_details(Code::Internal, "wait", details);
        let refusal = Refusal::from_status(&status).unwrap();
        assert_eq!(refusal.to_string(), "wait (MOON_FULL)");
        assert_eq!(refusal.reaction(), Reaction::Retry);
    }

    #[test]
    fn each_reason_stands_once_in_the_table() {
        for (at, info) in REASONS.iter().enumerate() {
            let again = REASONS[at + 1..]
                .iter()
                .any(|other| other.reason == info.reason);
            assert!(!again, "{}", info.reason);
            assert_eq!(Refusal::new(info.reason, "x").code, info.code);
        }
    }

    #[test]
    fn a_giant_message_stays_within_what_a_header_takes() {
        let giant = Refusal::new(MESSAGE_INVALID, "\n".repeat(1 << 20)).with("k", "v".repeat(9999));
        let status = Status::from(giant);
        assert!(status.message().len() <= MAX_MESSAGE_BYTES);
        assert!(status.details().len() < 4096);
    }
}
