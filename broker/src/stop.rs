//! Leaving well: how the broker ends.
//!
//! ```text
//! not serving --> write what is known --> send agents and watchers away --> cut --> join
//! ```
//! Agents are told to reconnect (a directive), watchers are refused with the reason and a time to
//! come again; both at random within the spread, so that the next broker does not meet a herd. All
//! of it takes less than five seconds whatever hangs: the disk, a peer that does not read, a task.

use std::time::Duration;

use muster_runtime::{service, shutdown::Shutdown};
use tokio::time::{sleep, timeout};

use crate::{
    registry::SessionEnd,
    serve::{Running, ServeError},
};

/// For the disk to take the last records: it takes tens of thousands a second.
const GRACE_FOR_STORE: Duration = Duration::from_millis(1200);
/// For streams to end of themselves once they have been told.
const GRACE_FOR_STREAMS: Duration = Duration::from_secs(1);
/// For all tasks, from the cut: the streams, and as long again on a busy machine. Tasks that are
/// aborted then have a second more.
const GRACE_FOR_TASKS: Duration = Duration::from_secs(2);
/// For the writer to end: it has nothing left to write, unless the disk hangs.
const GRACE_FOR_WRITER: Duration = Duration::from_millis(500);

impl Running {
    /// Waits for the request to stop, then stops: turns not-serving, writes what it knows, ends
    /// sessions and watches, and joins every task.
    ///
    /// # Errors
    /// If a task failed or had to be aborted.
    pub async fn join(self) -> Result<(), ServeError> {
        self.shutdown.requested().await;
        tracing::info!("the broker stops");
        service::stopping();
        self.health
            .set_service_status("", tonic_health::ServingStatus::NotServing)
            .await;
        // Before streams are cut: what is left of a lease then would be of our own making.
        if let Some(ticket) = self.registry.write_all() {
            let durable = self.registry.queue().durable(ticket);
            if timeout(GRACE_FOR_STORE, durable).await.is_err() {
                tracing::error!("the store did not take the last records in time");
            }
        }
        for cell in self.registry.page(None, usize::MAX, |_| true) {
            cell.end_session(SessionEnd::Stopping);
        }
        self.cut.request();
        let ended = self.supervisor.join(GRACE_FOR_TASKS).await;
        self.registry.queue().stop();
        let writer = self.writer;
        let joined = tokio::task::spawn_blocking(move || writer.join());
        if !matches!(timeout(GRACE_FOR_WRITER, joined).await, Ok(Ok(Ok(())))) {
            tracing::error!("the store's writer did not end in time");
        }
        tracing::info!("the broker has stopped");
        drop(self.watchdog);
        Ok(ended?)
    }
}

/// Serves until shortly after the cut: streams that others keep open do not hold the broker up.
pub(crate) async fn ended<E>(
    server: impl Future<Output = Result<(), E>>,
    cut: &Shutdown,
) -> Result<(), E> {
    let late = async {
        cut.requested().await;
        sleep(GRACE_FOR_STREAMS).await;
    };
    tokio::select! {
        ended = server => ended,
        () = late => Ok(()),
    }
}
