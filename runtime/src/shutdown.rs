//! One word that ends a process: asked for once, heard by everybody.

use std::{future::Future, io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A request to end, shared by all who hold a clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Not requested yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Requested by the first SIGTERM or SIGINT. A second one ends the process at once, with the
    /// exit code that shells give a process killed by that signal.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn from_signals() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let asked = shutdown.clone();
        // Lives as long as the process: it must hear the second signal during the grace period.
        tokio::spawn(async move {
            let name = either(&mut terminate, &mut interrupt).await.0;
            tracing::info!(signal = name, "shutting down");
            asked.request();
            let (name, number) = either(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = name, "second signal: ending at once");
            process::exit(128 + number);
        });
        Ok(shutdown)
    }

    /// Asks everybody to end. Asking again changes nothing.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Has somebody asked?
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Ready once somebody has asked. Owns what it needs.
    pub fn requested(&self) -> impl Future<Output = ()> + Send + 'static {
        self.token.clone().cancelled_owned()
    }

    /// A part that can be ended alone, and ends with the whole.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
        }
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = terminate.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_request_reaches_all_clones_and_children() {
        let shutdown = Shutdown::new();
        let (clone, child) = (shutdown.clone(), shutdown.child());
        assert!(!clone.is_requested());
        shutdown.request();
        clone.requested().await;
        child.requested().await;
    }

    #[test]
    fn a_child_ends_without_its_parent() {
        let shutdown = Shutdown::new();
        shutdown.child().request();
        assert!(!shutdown.is_requested());
    }
}
