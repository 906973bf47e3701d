//! Bounded waits on a condition.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a test waits for something that happens within milliseconds on an idle machine: long
/// enough for two cores that also compile.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition that nothing announces, such as a file or another process's
/// answer. Short beside every time that is measured, long beside the cost of a look.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Waits until `probe` answers `Ok`, and gives what it answered.
///
/// # Errors
/// After `within`: with `what` was waited for and why the last probe said no.
pub async fn until<T, F, Fut>(what: &str, within: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let begun = Instant::now();
    loop {
        // A probe that hangs must not make the wait endless.
        let left = within
            .saturating_sub(begun.elapsed())
            .max(Duration::from_secs(1));
        let why = match tokio::time::timeout(left, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(why)) => format!("{why:#}"),
            Err(_) => "the probe did not answer".to_owned(),
        };
        if begun.elapsed() >= within {
            bail!("waited {within:?} for {what}; last: {why}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Waits for a future.
///
/// # Errors
/// After `within`, naming `what` was waited for.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("waited {limit:?} for {what}"),
    }
}
