//! `cargo quickstart`: Muster on one machine in one terminal.
//!
//! Builds the binaries, starts a broker with a fresh data folder on free ports, enrols the agent of
//! this very machine with its real checks and four demo hosts, and shows what the broker says of
//! them. Everything that it starts ends with it, and nothing stays but what `--keep` asks for.

mod demo;
mod show;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use muster_proto::v1::{ListFleetHostsRequest, Verdict};
use muster_tests::{
    agent::Agent,
    binaries,
    broker::{Broker, Folder, Settings},
    process::Process,
    wait,
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{demo::Demo, show::Progress};

/// Exit code of a command line that is not understood.
const USAGE: u8 = 64;

/// How long an agent may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(10);

/// How long this machine's checks may take to come to a first answer: each has 10 s.
const FIRST_ANSWER: Duration = Duration::from_secs(60);

/// Pool of the demo hosts.
const DEMO_POOL: &str = "demo";

/// Tries Muster on this machine: a broker, this machine's agent, four demo hosts.
#[derive(Debug, Parser)]
#[command(
    name = "cargo quickstart",
    after_help = "Examples:\n  \
    cargo quickstart                  a live table until Ctrl-C\n  \
    cargo quickstart --once           for scripts: all states, the journals, exit code 0\n  \
    cargo quickstart --keep ./fleet   the same fleet again the next time"
)]
struct Arguments {
    /// Waits until the demo hosts have reached their states, prints journals and table, and ends.
    #[arg(long)]
    once: bool,
    /// Keeps all data in this folder, and goes on with what is there.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done about a terminal that has gone.
            drop(error.print());
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("quickstart: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nquickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything, until it is done or somebody ends it; then all is taken down in order.
async fn run(arguments: &Arguments) -> Result<()> {
    // From here on no signal ends this program before what it started has ended.
    let mut signals = Signals::listen()?;
    let progress = Progress::default();
    progress.step("building muster-broker and muster-agent");
    binaries::cargo_build(&["-p", "muster-broker", "-p", "muster-agent", "--bins"])?;
    binaries::fresh()?;

    let folder = match &arguments.keep {
        Some(path) => Folder::kept(path)?,
        None => Folder::temporary()?,
    };
    let path = folder.path().to_owned();
    let set_up = tokio::select! {
        stage = Stage::set_up(folder, &progress) => Some(stage?),
        name = signals.next() => {
            progress.say(&format!("{name}: ending"));
            None
        }
    };
    let Some(mut stage) = set_up else {
        return Ok(());
    };
    let played = tokio::select! {
        played = play(arguments, &mut stage, &progress) => played,
        name = signals.next() => {
            progress.say(&format!("{name}: ending"));
            Ok(())
        }
    };
    stage.take_down(&progress).await?;
    if arguments.keep.is_some() {
        progress.say(&format!("kept: {}", path.display()));
    } else {
        ensure!(!path.exists(), "{} is left behind", path.display());
    }
    played.context("once more with `--keep DIR` leaves the logs in DIR")
}

/// Ctrl-C, SIGTERM, and the end of the terminal.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hang_up.recv() => "the terminal has gone",
        }
    }
}

/// The broker itself dials a host that falls silent: all of them are on this machine.
const POLICY: &str = "[probe]\nenabled = true\nnetworks = [\"127.0.0.0/8\", \"::1/128\"]\n";

/// The broker, this machine's agent, and the demo.
struct Stage {
    broker: Broker,
    this_machine: Process,
    name: String,
    demo: Demo,
}

impl Stage {
    async fn set_up(folder: Folder, progress: &Progress) -> Result<Self> {
        progress.step(&format!("starting a broker in {}", folder.path().display()));
        let settings = Settings {
            interval: Duration::from_secs(1),
            lease_grace: Duration::from_secs(2),
            ..Settings::default()
        };
        let mut broker = Broker::start_in(folder.in_own_group(), settings, "127.0.0.1:0").await?;
        broker.process.be_quiet();
        progress.detail(&format!("gRPC (mTLS) at {}", broker.endpoints.grpc));
        progress.detail(&format!(
            "metrics at http://{}/metrics",
            broker.endpoints.http
        ));

        for pool in ["default", "demo"] {
            broker.set_policy(pool, POLICY).await?;
        }
        progress.step("enrolling and starting the agent of this machine");
        let settings = format!("brokers = [{:?}]\n", broker.endpoints.grpc);
        let agents = broker.folder().path().join("agents");
        let agent = Agent::of_this_machine(&agents, "this-machine", &settings)?.in_own_group();
        if !agent.is_enrolled() {
            let token = broker.token("default", None, 1).await?;
            agent.enrol(&broker.endpoints.grpc, &token).await?;
        }
        let mut this_machine = agent.run()?;
        this_machine.be_quiet();
        let name = name_in_default_pool(&broker).await?;
        progress.detail(&format!("it is {name}, in the pool default"));

        progress.step("enrolling and starting four demo hosts in the pool demo");
        let demo = Demo::set_up(&broker, &agents).await?;
        Ok(Self {
            broker,
            this_machine,
            name,
            demo,
        })
    }

    async fn take_down(mut self, progress: &Progress) -> Result<()> {
        progress.step("stopping all");
        self.demo.stop(GOODBYE).await?;
        if self.this_machine.has_ended()?.is_none() {
            self.this_machine.terminate(GOODBYE).await?;
        }
        if self.broker.process.has_ended()?.is_none() {
            self.broker.stop().await?;
        }
        Ok(())
    }
}

/// This machine's name as the broker knows it.
async fn name_in_default_pool(broker: &Broker) -> Result<String> {
    let request = ListFleetHostsRequest {
        pool: "default".to_owned(),
        ..ListFleetHostsRequest::default()
    };
    let hosts = broker.operator().await?.list_fleet_hosts(request).await?;
    let hosts = hosts.into_inner().hosts;
    let verdict: Option<Verdict> = hosts.into_iter().find_map(|host| host.verdict);
    Ok(verdict.context("this machine is not enrolled")?.name)
}

/// Lets the demo run and shows it.
async fn play(arguments: &Arguments, stage: &mut Stage, progress: &Progress) -> Result<()> {
    let Stage {
        broker,
        name,
        demo,
        this_machine,
    } = stage;
    if arguments.once {
        progress.step("leading the demo hosts to their states");
        demo.run(broker, progress, Duration::ZERO).await?;
        progress.step("waiting for this machine's first answer");
        let settled = |verdict: &Verdict| !verdict.reasons.iter().any(is_about_to_change);
        wait::until("this machine's checks", FIRST_ANSWER, || async {
            let verdict = broker.verdict(name).await?;
            ensure!(settled(&verdict), "it is still starting");
            Ok(())
        })
        .await?;
        ensure!(this_machine.has_ended()?.is_none(), "its agent has ended");
        return show::everything(broker, &demo.names(), name).await;
    }
    // Upgrading is shown for a while before it fails.
    let pause = Duration::from_secs(15);
    let events = Progress::for_table();
    tokio::try_join!(
        demo.run(broker, &events, pause),
        show::live_table(broker, name, &events),
    )?;
    Ok(())
}

/// A reason that goes by itself when the first checks have finished.
fn is_about_to_change(reason: &muster_proto::v1::Reason) -> bool {
    matches!(&*reason.code, "NOT_SETTLED" | "STARTING" | "NEVER_SEEN")
}
