//! What the service manager is told of this process. Without one nothing happens.
//!
//! A word that cannot be sent is of no consequence here: the manager acts on its absence.

use muster_core::model::clean_text;
use sd_notify::NotifyState;

/// Longest line of status: what fits a terminal, and some more.
const MAX_STATUS_BYTES: usize = 256;

/// The process serves.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line for people, as `systemctl status` shows it.
pub fn status(line: &str) {
    // A line break would begin another word to the manager.
    tell(&[NotifyState::Status(&clean_text(line, MAX_STATUS_BYTES))]);
}

/// The process lives: the manager's watchdog waits anew.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
