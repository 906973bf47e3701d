//! Every task has an owner that knows what its end means.
//!
//! A [`TaskKind::Critical`] task must run until shutdown is requested: when it panics, fails, or
//! ends by itself before that, the whole process shuts down and [`Supervisor::join`] says which
//! task it was - a detector that dies unseen would leave every host up for ever. The end of a
//! [`TaskKind::Quiet`] task concerns nobody else; its failure is logged.
//!
//! Invariant: nothing is kept of a task that has ended, so short tasks may come and go for ever.

use std::{
    any::Any,
    borrow::Cow,
    collections::HashMap,
    error::Error,
    fmt,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::{task::AbortHandle, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{explain::explain, shutdown::Shutdown};

/// Time for aborted tasks to be dropped. They end at their next await; one that never awaits is
/// not waited for.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// What the end of a task means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskKind {
    /// The process cannot go on without it.
    Critical,
    /// May end, and may fail.
    Quiet,
}

/// How the process ended, where that was not as wished.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A critical task returned an error.
    #[error("the task `{task}` failed")]
    Failed {
        /// Its name.
        task: Cow<'static, str>,
        /// What it said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A critical task panicked.
    #[error("the task `{task}` panicked: {message}")]
    Panicked {
        /// Its name.
        task: Cow<'static, str>,
        /// The panic's message.
        message: String,
    },
    /// A critical task ended before anybody asked for shutdown.
    #[error("the task `{task}` ended although nobody asked for shutdown")]
    Ended {
        /// Its name.
        task: Cow<'static, str>,
    },
    /// Tasks did not end within the grace period and were aborted.
    #[error("tasks did not end within {grace:?} and were aborted: {}", tasks.join(", "))]
    Overdue {
        /// Their names.
        tasks: Vec<Cow<'static, str>>,
        /// The grace period.
        grace: Duration,
    },
}

/// Owner of all tasks. Clones own the same ones.
#[derive(Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

struct Inner {
    shutdown: Shutdown,
    tracker: TaskTracker,
    next: AtomicU64,
    running: Mutex<HashMap<u64, Running>>,
    failure: Mutex<Option<SupervisorError>>,
}

struct Running {
    name: Cow<'static, str>,
    /// None between the task's start and its entry here.
    abort: Option<AbortHandle>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor")
            .field("tasks", &self.inner.tracker.len())
            .finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Owns nothing yet; a critical failure will request `shutdown`.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            inner: Arc::new(Inner {
                shutdown,
                tracker: TaskTracker::new(),
                next: AtomicU64::new(0),
                running: Mutex::default(),
                failure: Mutex::default(),
            }),
        }
    }

    /// The request to end that this supervisor waits for.
    #[must_use]
    pub fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// Starts a task.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn spawn<F, E>(&self, name: impl Into<Cow<'static, str>>, kind: TaskKind, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let name = name.into();
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let entry = Running {
            name: name.clone(),
            abort: None,
        };
        self.inner.running.lock().insert(id, entry);
        let guard = Registered {
            inner: Arc::clone(&self.inner),
            id,
        };
        let handle = self.inner.tracker.spawn(async move {
            let result = AssertUnwindSafe(future).catch_unwind().await;
            guard.inner.ended(name, kind, flatten(result));
        });
        if let Some(entry) = self.inner.running.lock().get_mut(&id) {
            entry.abort = Some(handle.abort_handle());
        }
    }

    /// Waits until shutdown is requested or every task has ended, then at most `grace` for the
    /// tasks that are left, and aborts the rest.
    ///
    /// # Errors
    /// The first failure of a critical task, else the tasks that had to be aborted.
    pub async fn join(self, grace: Duration) -> Result<(), SupervisorError> {
        let inner = self.inner;
        inner.tracker.close();
        tokio::select! {
            () = inner.shutdown.requested() => {}
            () = inner.tracker.wait() => {}
        }
        let overdue = match timeout(grace, inner.tracker.wait()).await {
            Ok(()) => None,
            Err(_) => Some(inner.abort_all(grace).await),
        };
        match inner.failure.lock().take().or(overdue) {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }
}

impl Inner {
    fn ended(&self, task: Cow<'static, str>, kind: TaskKind, result: Result<(), Failure>) {
        let failure = match (result, kind) {
            (Ok(()), TaskKind::Quiet) => return,
            (Ok(()), TaskKind::Critical) if self.shutdown.is_requested() => return,
            (Ok(()), TaskKind::Critical) => SupervisorError::Ended { task },
            (Err(Failure::Error(source)), _) => SupervisorError::Failed { task, source },
            (Err(Failure::Panic(message)), _) => SupervisorError::Panicked { task, message },
        };
        match kind {
            TaskKind::Quiet => tracing::warn!(error = explain(&failure), "a task failed"),
            TaskKind::Critical => {
                tracing::error!(error = explain(&failure), "a critical task failed");
                self.failure.lock().get_or_insert(failure);
                self.shutdown.request();
            }
        }
    }

    async fn abort_all(&self, grace: Duration) -> SupervisorError {
        let mut tasks = Vec::new();
        for entry in self.running.lock().values() {
            tasks.push(entry.name.clone());
            if let Some(abort) = &entry.abort {
                abort.abort();
            }
        }
        tasks.sort();
        // Whatever does not even end when aborted is named all the same.
        let _ = timeout(ABORT_GRACE, self.tracker.wait()).await;
        SupervisorError::Overdue { tasks, grace }
    }
}

/// Takes a task out of the list when it ends, also when it is aborted.
struct Registered {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.inner.running.lock().remove(&self.id);
    }
}

enum Failure {
    Error(Box<dyn Error + Send + Sync>),
    Panic(String),
}

fn flatten<E>(result: Result<Result<(), E>, Box<dyn Any + Send>>) -> Result<(), Failure>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::Error(error.into())),
        Err(panic) => Err(Failure::Panic(panic_message(&*panic))),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::pending, io};

    use super::*;

    /// Far longer than any of these tests takes: nothing here waits for it.
    const GRACE: Duration = Duration::from_secs(60);

    fn supervisor() -> Supervisor {
        Supervisor::new(Shutdown::new())
    }

    async fn until(shutdown: Shutdown) -> Result<(), Infallible> {
        shutdown.requested().await;
        Ok(())
    }

    #[tokio::test]
    async fn all_tasks_are_joined_after_a_requested_shutdown() {
        let supervisor = supervisor();
        let shutdown = supervisor.shutdown().clone();
        for kind in [TaskKind::Critical, TaskKind::Quiet] {
            supervisor.spawn("waits", kind, until(shutdown.clone()));
        }
        shutdown.request();
        supervisor.join(GRACE).await.unwrap();
    }

    #[tokio::test]
    async fn an_error_of_a_critical_task_ends_the_others_and_is_told() {
        let supervisor = supervisor();
        let shutdown = supervisor.shutdown().clone();
        supervisor.spawn("waits", TaskKind::Critical, until(shutdown));
        supervisor.spawn("store", TaskKind::Critical, async {
            Err(io::Error::other("disk full"))
        });
        let error = supervisor.join(GRACE).await.unwrap_err();
        assert_eq!(explain(&error), "the task `store` failed: disk full");
    }

    #[tokio::test]
    async fn a_panic_of_a_critical_task_ends_the_process() {
        let supervisor = supervisor();
        supervisor.spawn("ticks", TaskKind::Critical, async {
            if Duration::ZERO.is_zero() {
                panic!("a bug");
            }
            Ok::<(), Infallible>(())
        });
        let error = supervisor.join(GRACE).await.unwrap_err();
        assert_eq!(error.to_string(), "the task `ticks` panicked: a bug");
    }

    #[tokio::test]
    async fn a_critical_task_that_just_ends_is_a_failure() {
        let supervisor = supervisor();
        supervisor.spawn("ticks", TaskKind::Critical, async {
            Ok::<(), Infallible>(())
        });
        let error = supervisor.join(GRACE).await.unwrap_err();
        assert!(matches!(error, SupervisorError::Ended { .. }), "{error}");
    }

    #[tokio::test]
    async fn failures_of_quiet_tasks_concern_nobody_else() {
        let supervisor = supervisor();
        supervisor.spawn("fails", TaskKind::Quiet, async { Err("no matter") });
        supervisor.spawn("panics", TaskKind::Quiet, async {
            if Duration::ZERO.is_zero() {
                panic!("a bug");
            }
            Ok::<(), Infallible>(())
        });
        supervisor.clone().join(GRACE).await.unwrap();
        assert!(!supervisor.shutdown().is_requested());
        assert!(supervisor.inner.running.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_end_in_time_is_aborted_and_named() {
        let supervisor = supervisor();
        supervisor.spawn(
            "stuck",
            TaskKind::Quiet,
            pending::<Result<(), Infallible>>(),
        );
        supervisor.shutdown().request();
        let inner = Arc::clone(&supervisor.inner);
        let error = supervisor.join(GRACE).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "tasks did not end within 60s and were aborted: stuck"
        );
        assert!(inner.tracker.is_empty());
    }
}
