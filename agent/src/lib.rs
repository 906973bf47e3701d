//! Muster's agent: runs a session host's checks and streams its heartbeats to the broker.
//!
//! - [`checks`]: what is looked at, one file each; [`probe`]: how the network is tried.
//! - [`platform`]: what asks the operating system.
//! - [`scheduler`]: when checks run; [`doctor`]: all of them once, for a person.
//! - [`session`]: the stream to the broker; [`announce`], [`power`]: what it is told beside results.
//! - [`control`]: the socket for commands; [`enroll`]: how a machine becomes a host.
//! - [`config`], [`store`]: what is read at the start, and what is kept.
//!
//! Invariants: a hanging check cannot delay a beat, a hanging broker cannot delay a check, and no
//! word of the broker makes the agent run a program.
#![warn(missing_docs)]

pub mod announce;
pub mod checks;
pub mod config;
pub mod control;
pub mod doctor;
pub mod enroll;
pub mod platform;
pub mod power;
pub mod probe;
pub mod scheduler;
pub mod session;
pub mod store;

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use muster_core::{
    agent::{HostPolicy, ResultSet},
    model::SessionCounts,
};
use muster_runtime::{
    accept::BindError,
    clock,
    explain::explain,
    files::FileError,
    identity::{LocalIdentity, LocalIdentityError},
    service,
    shutdown::Shutdown,
    supervisor::{Supervisor, SupervisorError, TaskKind},
    tls::{self, ClientTls, TlsError},
    watchdog::Watchdog,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    announce::Announcer,
    config::Config,
    platform::{machine, sessions},
    scheduler::{MAX_ORDERS, Order},
    session::{About, Context, LinkState},
    store::{DataDir, POLICY},
};

/// Version of this agent.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Time for all tasks to end: the goodbye takes 3 s at most.
const GRACE: Duration = Duration::from_secs(5);
/// A loop that has not turned for so long is stuck: the longest turns of both take 5 s, and a busy
/// machine may make them thrice that.
const LOOP_LIMIT: Duration = Duration::from_secs(30);
/// A run that has held its thread for so long after its end came holds it for ever.
const RUNS_LIMIT: Duration = Duration::from_secs(60);
/// How often people's sessions are counted: at least once per beat of the default pace.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// Longest time for a count; the number is unknown then.
const COUNT_WITHIN: Duration = Duration::from_secs(10);

/// Why the agent cannot run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no identity.
    #[error(
        "this machine is not enrolled; get a join token (on the broker: muster-broker token \
         create), then: muster-agent enroll --broker HOST:PORT --token TOKEN --ca-pin PIN"
    )]
    NotEnrolled,
    /// The identity cannot be used.
    #[error("the identity of this host cannot be used")]
    Identity(#[source] LocalIdentityError),
    /// TLS cannot be set up with it.
    #[error("the identity of this host cannot be used")]
    Tls(#[from] TlsError),
    /// The data folder.
    #[error("the data folder cannot be used")]
    Data(#[from] FileError),
    /// The control socket.
    #[error("the control socket cannot be used")]
    Control(#[from] BindError),
    /// The kernel does not say which boot this is.
    #[error("this boot cannot be told from others: /proc is needed")]
    BootId(#[source] io::Error),
    /// There can be no thread for the watchdog.
    #[error("the watchdog cannot be started")]
    Watchdog(#[source] io::Error),
    /// A task failed.
    #[error(transparent)]
    Task(#[from] SupervisorError),
}

/// Runs the agent until shutdown is requested.
///
/// # Errors
/// [`RunError`] says what is missing, or which task failed.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    tls::install_provider();
    let data = DataDir::new(&config.data_dir);
    let identity = own_identity(&data)?;
    let client_tls = ClientTls::mutual(&identity)?;
    data.prepare()?;
    let incoming = control::bind(&config.control_socket)?;
    let boot_id = machine::boot_id().map_err(RunError::BootId)?;
    let mut watchdog = Watchdog::new();
    let marks = scheduler::Marks {
        scheduler: watchdog.mark("check scheduler", LOOP_LIMIT),
        runs: watchdog.mark("runs of checks", RUNS_LIMIT),
    };
    let mark = watchdog.mark("session", LOOP_LIMIT);
    let supervisor = Supervisor::new(shutdown.clone());
    let spawn = Critical {
        supervisor: &supervisor,
        shutdown: &shutdown,
    };
    let (announcer, deliveries) = Announcer::new(data.clone(), &boot_id, VERSION);
    let policy = watch::Sender::new(Arc::new(doctor::last_policy(&data)));
    let brokers = doctor::brokers(&config, &data);
    // The first run of `urls` comes before the first session.
    let link = watch::Sender::new(LinkState {
        brokers: brokers.clone(),
        ..LinkState::default()
    });
    let (orders, inbox) = mpsc::channel(MAX_ORDERS);
    let (results_sender, results) = watch::channel(Arc::default());
    let (counts_sender, counts) = watch::channel(SessionCounts::default());

    let first_plan = checks::plan(&config, &policy.borrow(), &link.subscribe());
    spawn.task("check scheduler", |shutdown| {
        scheduler::run(first_plan, inbox, results_sender, marks, shutdown)
    });
    let (planned, linked) = (policy.subscribe(), link.subscribe());
    let (kept, ordered) = (data.clone(), orders.clone());
    spawn.task("planner", |shutdown| {
        keep_plan(config, kept, planned, linked, ordered, shutdown)
    });
    let counted = results.clone();
    spawn.task("session counter", |shutdown| {
        count_sessions(counts_sender, counted, shutdown)
    });
    spawn.task("power", |shutdown| power::run(announcer.clone(), shutdown));
    spawn.task("control socket", |shutdown| {
        control::serve(incoming, announcer.clone(), link.subscribe(), shutdown)
    });
    spawn.task("status line", |shutdown| {
        tell_service_manager(link.subscribe(), shutdown)
    });
    let context = Context {
        tls: client_tls,
        data,
        about: about(&boot_id),
        results,
        announced: announcer.watch(),
        sessions: counts,
        policy,
        orders,
        link,
        mark,
    };
    spawn.task("session", |shutdown| {
        session::run(context, brokers, deliveries, shutdown)
    });
    let _guard = watchdog.start(shutdown).map_err(RunError::Watchdog)?;
    supervisor.join(GRACE).await?;
    Ok(())
}

/// Starts tasks that the process cannot go on without.
struct Critical<'a> {
    supervisor: &'a Supervisor,
    shutdown: &'a Shutdown,
}

impl Critical<'_> {
    fn task<F, E>(&self, name: &'static str, task: impl FnOnce(Shutdown) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let task = task(self.shutdown.clone());
        self.supervisor.spawn(name, TaskKind::Critical, task);
    }
}

/// Says that the agent runs, how its session fares, and that it ends. It is ready without a broker
/// too: a unit that waits for it must not wait for the network.
async fn tell_service_manager(
    mut link: watch::Receiver<LinkState>,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    service::ready();
    loop {
        service::status(&link.borrow_and_update().to_string());
        tokio::select! {
            () = shutdown.requested() => break,
            // Once the session has ended, so will the process.
            changed = link.changed() => if changed.is_err() {
                shutdown.requested().await;
                break;
            },
        }
    }
    service::stopping();
    Ok(())
}

fn own_identity(data: &DataDir) -> Result<LocalIdentity, RunError> {
    match data.identity().load() {
        Ok(identity) => {
            tracing::info!(
                host.name = %identity.info.identity.name,
                version = VERSION,
                certificate.until = %identity.info.not_after,
                "agent starts"
            );
            Ok(identity)
        }
        Err(error) if error.is_not_found() => Err(RunError::NotEnrolled),
        Err(error) => Err(RunError::Identity(error)),
    }
}

fn about(boot_id: &str) -> About {
    About {
        version: VERSION.into(),
        boot_id: boot_id.into(),
        instance_id: announce::new_id().into(),
        os: machine::os_name().into(),
        addresses: machine::addresses(),
    }
}

/// Plans the checks anew when the policy changes, and keeps it for the next start.
async fn keep_plan(
    config: Config,
    data: DataDir,
    mut policy: watch::Receiver<Arc<HostPolicy>>,
    link: watch::Receiver<LinkState>,
    orders: mpsc::Sender<Order>,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    loop {
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            changed = policy.changed() => if changed.is_err() {
                // The session has ended, and with it the process.
                shutdown.requested().await;
                return Ok(());
            },
        }
        let current = Arc::clone(&policy.borrow_and_update());
        let planned = checks::plan(&config, &current, &link);
        // The scheduler takes orders as long as the process runs.
        let _ = orders.send(Order::Apply(planned)).await;
        let data = data.clone();
        let kept = tokio::task::spawn_blocking(move || data.write(POLICY, &*current)).await;
        if let Ok(Err(error)) = kept {
            tracing::error!(error = explain(&error), "the policy cannot be kept");
        }
    }
}

async fn count_sessions(
    counts: watch::Sender<SessionCounts>,
    results: watch::Receiver<Arc<ResultSet>>,
    shutdown: Shutdown,
) -> Result<(), Infallible> {
    loop {
        // A site that counts itself knows of people whom the system does not.
        let own = results.borrow().sessions(clock::boot());
        let counted = match own {
            Some(counted) => counted,
            None => tokio::select! {
                () = shutdown.requested() => return Ok(()),
                counted = timeout(COUNT_WITHIN, sessions::count()) => counted.unwrap_or_default(),
            },
        };
        counts.send_replace(counted);
        tokio::select! {
            () = shutdown.requested() => return Ok(()),
            () = sleep(COUNT_EVERY) => {}
        }
    }
}
