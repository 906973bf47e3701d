//! The agent's command line: thin, over the library.

mod cli;
mod render;

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use cli::{Announce, Cli, Command, Output, ShutdownKind};
use muster_agent::{
    announce::{Announcement, Delivered},
    checks::own::LoadError,
    config::Config,
    control::{self, Answer, Request},
    doctor, enroll,
    platform::plugin,
    store::DataDir,
};
use muster_core::model::Leave;
use muster_runtime::{explain::explain, shutdown::Shutdown, telemetry, tls};

/// The command line is wrong.
const USAGE: u8 = 64;
/// The configuration is wrong.
const CONFIGURATION: u8 = 78;

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == plugin::KEEPER)
    {
        return keep_plugin();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be done if even that cannot be printed.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let config = match configuration(&cli) {
        Ok(config) => config,
        Err(error) => {
            complain(&explain(&error));
            return ExitCode::from(CONFIGURATION);
        }
    };
    match start(cli, config) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// This process only keeps one plugin of an agent: see [`plugin`].
fn keep_plugin() -> ExitCode {
    match plugin::keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("the agent starts this for its plugins: {error}"));
            ExitCode::from(USAGE)
        }
    }
}

fn complain(problem: &str) {
    // Standard error may be closed; the exit code says it too.
    let _ = writeln!(io::stderr(), "muster-agent: {problem}");
}

/// The file, and the flags over it.
fn configuration(cli: &Cli) -> Result<Config, LoadError> {
    let settings = &cli.settings;
    let required = settings.config != std::path::Path::new(muster_agent::config::DEFAULT_PATH);
    let mut config = Config::load(&settings.config, required)?;
    if let Some(data_dir) = &settings.data_dir {
        config.data_dir.clone_from(data_dir);
    }
    if let Some(socket) = &settings.control_socket {
        config.control_socket.clone_from(socket);
    }
    if let Some(format) = settings.log_format {
        config.log.format = format;
    }
    if let Some(filter) = &settings.log_filter {
        config.log.filter.clone_from(filter);
    }
    if matches!(cli.command, Command::Run | Command::Doctor(_)) {
        config.load_own_checks()?;
    }
    Ok(config)
}

#[tokio::main]
async fn start(cli: Cli, config: Config) -> anyhow::Result<u8> {
    telemetry::init(config.log.format, &config.log.filter)?;
    tls::install_provider();
    let output = cli.settings.output;
    match cli.command {
        Command::Run => {
            let shutdown = Shutdown::from_signals().context("signals cannot be handled")?;
            muster_agent::run(config, shutdown).await?;
            Ok(0)
        }
        Command::Enroll(arguments) => enroll_host(arguments, config, output).await,
        Command::Doctor(arguments) => examine(&arguments, &config, output).await,
        Command::Announce { what } => announce(what, &config, output).await,
    }
}

async fn enroll_host(arguments: cli::Enroll, config: Config, output: Output) -> anyhow::Result<u8> {
    let token = match (arguments.token, &arguments.token_file) {
        (Some(token), _) => token,
        (None, Some(file)) => fs::read_to_string(file)
            .with_context(|| format!("the token cannot be read from {}", file.display()))?,
        (None, None) => {
            complain(
                "no join token is given; give --token-file FILE, --token TOKEN or MUSTER_TOKEN",
            );
            return Ok(USAGE);
        }
    };
    let mut brokers: Vec<_> = arguments.broker.iter().map(ToString::to_string).collect();
    if brokers.is_empty() {
        brokers = config.brokers;
    }
    let wish = enroll::Wish {
        brokers,
        token: token.trim().to_owned(),
        ca_pin: arguments.ca_pin,
        name: arguments.name.or(config.name),
        again: arguments.again,
    };
    let enrolment = enroll::enroll(&DataDir::new(&config.data_dir), wish).await?;
    match output {
        Output::Json => print_json(&enrolment)?,
        Output::Table => print(&format!(
            "enrolled as {} (host id {}) in pool {} of {}; the certificate is good until {}\n",
            enrolment.name,
            enrolment.host_id,
            enrolment.pool,
            enrolment.trust_domain,
            enrolment.not_after
        ))?,
    }
    Ok(0)
}

async fn examine(arguments: &cli::Doctor, config: &Config, output: Output) -> anyhow::Result<u8> {
    // A line that is written over is for a person alone.
    let is_watched = io::stderr().is_terminal();
    let tell = |progress: &doctor::Progress| {
        if is_watched {
            // Standard error may be closed; the diagnosis follows on standard output.
            let _ = write!(io::stderr(), "{}", render::progress(progress, width()));
        }
    };
    let examined = doctor::examine(config, &arguments.check, tell).await;
    if is_watched {
        let _ = write!(io::stderr(), "{}", render::NO_LINE);
    }
    let diagnosis = match examined {
        Ok(diagnosis) => diagnosis,
        Err(error) => {
            complain(&error.to_string());
            return Ok(USAGE);
        }
    };
    match output {
        Output::Json => print_json(&diagnosis)?,
        Output::Table => print(&render::diagnosis(&diagnosis))?,
    }
    Ok(diagnosis.exit_code)
}

/// Columns of the terminal on standard error.
fn width() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    match size {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        // A terminal without a size, such as a serial line.
        _ => 80,
    }
}

async fn announce(what: Announce, config: &Config, output: Output) -> anyhow::Result<u8> {
    let announcement = match what {
        Announce::Upgrading { to, within } => Announcement::Upgrading {
            to,
            within: within.map(|within| within.0),
        },
        Announce::UpgradeFailed { error, to } => Announcement::UpgradeFailed { to, error },
        Announce::Shutdown { kind, back_within } => Announcement::Shutdown {
            kind: match kind {
                ShutdownKind::Poweroff => Leave::Poweroff,
                ShutdownKind::Reboot => Leave::Reboot,
            },
            back_within: back_within.map(|within| within.0),
        },
        Announce::Running => Announcement::Running,
    };
    let request = Request::Announce { announcement };
    let answer = control::ask(&config.control_socket, &request).await?;
    if output == Output::Json {
        print_json(&answer)?;
    }
    let (code, words) = match answer {
        Answer::Announced {
            delivered: Delivered::Acknowledged,
        } => (0, "the broker has it".to_owned()),
        Answer::Announced {
            delivered: Delivered::NoSession,
        } => (
            1,
            "kept; there is no session with a broker now, the next one begins with it".to_owned(),
        ),
        Answer::Announced {
            delivered: Delivered::NotAcknowledged,
        } => (
            1,
            "kept and told; the broker has not acknowledged it yet".to_owned(),
        ),
        Answer::Refused { why } => (1, why),
        Answer::Link { .. } => (1, "the agent answered something else".to_owned()),
    };
    match (output, code) {
        (Output::Table, 0) => print(&format!("{words}\n"))?,
        (Output::Table | Output::Json, _) if code != 0 => complain(&words),
        (Output::Table | Output::Json, _) => {}
    }
    Ok(code)
}

fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever read it has enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output cannot be written"),
    }
}
