//! What the service manager is told of this process. Without one nothing happens.
//!
//! A thread of its own sends the words: a manager that hangs would block whoever speaks to it. A
//! word that cannot be sent is of no consequence here: the manager acts on its absence.

use std::{
    sync::{
        OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use muster_core::model::clean_text;
use sd_notify::NotifyState;

/// Longest line of status: what fits a terminal, and some more.
const MAX_STATUS_BYTES: usize = 256;
/// Words that may wait. The manager takes them at once, or hangs and misses nothing by fewer.
const MAX_WORDS: usize = 16;

enum Word {
    Ready,
    Stopping,
    Status(String),
    Alive,
}

/// The process serves.
pub fn ready() {
    tell(Word::Ready);
}

/// The process is about to end.
pub fn stopping() {
    tell(Word::Stopping);
}

/// One line for people, as `systemctl status` shows it.
pub fn status(line: &str) {
    // A line break would begin another word to the manager.
    tell(Word::Status(clean_text(line, MAX_STATUS_BYTES)));
}

/// The process lives: the manager's watchdog waits anew.
pub fn alive() {
    tell(Word::Alive);
}

fn tell(word: Word) {
    static WORDS: OnceLock<Option<SyncSender<Word>>> = OnceLock::new();
    if let Some(words) = WORDS.get_or_init(speaker) {
        // What does not fit is not told: see above.
        let _ = words.try_send(word);
    }
}

/// Starts the thread that speaks; none without a manager.
fn speaker() -> Option<SyncSender<Word>> {
    std::env::var_os("NOTIFY_SOCKET")?;
    let (sender, words) = sync_channel(MAX_WORDS);
    let started = thread::Builder::new()
        .name("service words".into())
        .spawn(move || speak(&words));
    match started {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::error!(%error, "the service manager cannot be told anything");
            None
        }
    }
}

fn speak(words: &Receiver<Word>) {
    while let Ok(word) = words.recv() {
        let state = match &word {
            Word::Ready => NotifyState::Ready,
            Word::Stopping => NotifyState::Stopping,
            Word::Status(line) => NotifyState::Status(line),
            Word::Alive => NotifyState::Watchdog,
        };
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::debug!(%error, "the service manager cannot be told");
        }
    }
}
