//! Instants and durations.

use std::time::Duration;

use jiff::Timestamp;

use super::BorderError;

/// Longest duration that is taken over; longer ones are cut to it. Nothing in Muster lasts longer,
/// and sums of such durations overflow neither clock.
pub const MAX_DURATION: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// A duration for a field that ends in `_ms`.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The duration in a field that ends in `_ms`, at most [`MAX_DURATION`].
#[must_use]
pub fn duration(millis: u64) -> Duration {
    Duration::from_millis(millis).min(MAX_DURATION)
}

/// The duration in a field where zero says nothing.
pub(super) fn optional_duration(millis: u64) -> Option<Duration> {
    (millis != 0).then(|| duration(millis))
}

/// An instant as the contract has it.
#[must_use]
pub fn timestamp(instant: Timestamp) -> prost_types::Timestamp {
    // Before 1970 jiff counts nanoseconds down, the contract always up.
    let nanos = instant.as_nanosecond();
    let seconds = nanos.div_euclid(1_000_000_000);
    let rest = nanos.rem_euclid(1_000_000_000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).expect("an instant has fewer seconds than nanoseconds"),
        nanos: i32::try_from(rest).expect("less than a second"),
    }
}

/// The instant in a field that must be set.
///
/// # Errors
/// If it is missing, or not an instant.
pub fn instant(
    field: &str,
    wire: Option<prost_types::Timestamp>,
) -> Result<Timestamp, BorderError> {
    optional_instant(field, wire)?.ok_or_else(|| BorderError::missing(field))
}

/// The instant in a field that may be set.
///
/// # Errors
/// If it is not an instant.
pub fn optional_instant(
    field: &str,
    wire: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, BorderError> {
    let Some(prost_types::Timestamp { seconds, nanos }) = wire else {
        return Ok(None);
    };
    let wrong = || {
        let problem = format!("{seconds} s {nanos} ns is not an instant of the years 1 to 9999");
        BorderError::new(field, problem)
    };
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(wrong());
    }
    Timestamp::new(seconds, nanos)
        .map(Some)
        .map_err(|_| wrong())
}
