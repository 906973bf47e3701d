//! What the next session needs of this one: kept in memory for this process, on disk for the next.
//!
//! A resume token that was used is the mark of a clone. So Hello takes it from memory, where it is
//! the last one even when the disk takes nothing; and a slow write never lands over a newer one.

use std::{sync::Arc, time::Duration};

use muster_runtime::explain::explain;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::store::{DataDir, LastSession, SESSION};

/// A disk that takes longer is waited for by nobody: the session goes on.
const KEEP_WITHIN: Duration = Duration::from_secs(2);

/// The last session.
pub(super) struct Keeper {
    data: DataDir,
    last: watch::Sender<LastSession>,
    /// Held while writing: one at a time, each with what is the last then.
    writing: Arc<Mutex<()>>,
}

impl Keeper {
    /// Begins with what an earlier process left behind.
    pub(super) fn new(data: DataDir) -> Self {
        let last = data.last_session().unwrap_or_default();
        Self {
            data,
            last: watch::Sender::new(last),
            writing: Arc::default(),
        }
    }

    /// The last session that was welcomed.
    pub(super) fn last(&self) -> LastSession {
        self.last.borrow().clone()
    }

    /// Keeps it. A disk that takes nothing costs the proof of identity at the next start of the
    /// agent, not this session.
    pub(super) async fn keep(&self, session: LastSession) {
        self.last.send_replace(session);
        let (data, last) = (self.data.clone(), self.last.subscribe());
        let writing = Arc::clone(&self.writing);
        let kept = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = writing.lock();
            let last = last.borrow().clone();
            data.write(SESSION, &last)
        });
        match timeout(KEEP_WITHIN, kept).await {
            // Writing does not panic.
            Ok(Ok(Ok(())) | Err(_)) => {}
            Ok(Ok(Err(error))) => tracing::error!(
                error = explain(&error),
                "the session's resume token cannot be kept"
            ),
            Err(_) => tracing::error!(
                within_ms = KEEP_WITHIN.as_millis(),
                "the disk is slow: the session's resume token is not kept yet"
            ),
        }
    }
}
