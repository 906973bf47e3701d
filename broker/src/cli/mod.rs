//! The command line of `muster-broker`.
//!
//! Everything but `serve` speaks gRPC: over the operators' Unix socket, whose file permissions
//! are the authority, or with `--endpoint --ca --cert --key` over TLS.

mod client;
mod commands;
mod drain;
mod pools;
mod render;
mod status;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_core::model::Intent;
use muster_runtime::{config::HumanDuration, shutdown::Shutdown, telemetry};

use crate::{Config, serve};

/// Exit codes of a wrong command line and of a wrong configuration, as sysexits.h has them. The
/// service manager does not start the broker again after either.
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// Keeps the status of a fleet of session hosts and answers whether each is connectable.
#[derive(Debug, Parser)]
#[command(
    name = "muster-broker",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        muster-broker serve\n  \
        muster-broker token create --pool vdi\n  \
        muster-broker hosts\n  \
        muster-broker check vdi-01 --output json\n  \
        muster-broker drain vdi-01 --reason 'new disk' --for 2h"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub(crate) struct Global {
    /// Configuration file
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How listings are written
    #[arg(
        long,
        global = true,
        env = "MUSTER_OUTPUT",
        value_enum,
        default_value = "table"
    )]
    output: Output,
    /// The operators' socket, if not the one of the configuration
    #[arg(long, global = true, env = "MUSTER_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Speak to the broker at HOST:PORT over TLS instead of the socket
    #[arg(
        long, global = true, env = "MUSTER_ENDPOINT", value_name = "HOST:PORT",
        requires_all = ["ca", "cert", "key"]
    )]
    endpoint: Option<String>,
    /// Root certificates of the fleet, PEM
    #[arg(long, global = true, env = "MUSTER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Your certificate, PEM
    #[arg(long, global = true, env = "MUSTER_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Your private key, PEM
    #[arg(long, global = true, env = "MUSTER_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
}

/// How listings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the broker until it is told to stop
    Serve,
    /// Shows the broker's own state: what it holds back, why, and until when
    Status,
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Lists all hosts
    #[command(after_help = "Example:\n  muster-broker hosts --pool vdi --output json")]
    Hosts {
        /// Only this pool
        #[arg(long, env = "MUSTER_POOL")]
        pool: Option<String>,
    },
    /// Shows one host: its status, every reason with its remedy, its checks
    Host {
        /// Name of the host
        name: String,
    },
    /// Shows the journal of a host, newest first
    History {
        /// Name of the host
        name: String,
        /// At most this many entries
        #[arg(long, env = "MUSTER_LIMIT", default_value_t = 50)]
        limit: u32,
    },
    /// Shows every change as it happens
    Watch {
        /// Only this pool
        #[arg(long, env = "MUSTER_POOL")]
        pool: Vec<String>,
        /// What connections are wanted for
        #[arg(long, env = "MUSTER_INTENT", value_enum, default_value = "new")]
        intent: IntentArg,
    },
    /// Asks whether a host is connectable: exits 0 if it is, 1 if not, 2 if that cannot be told
    #[command(
        after_help = "Example:\n  muster-broker check vdi-01 --intent reconnect && connect vdi-01"
    )]
    Check {
        /// Name of the host
        name: String,
        /// What the connection is wanted for
        #[arg(long, env = "MUSTER_INTENT", value_enum, default_value = "new")]
        intent: IntentArg,
    },
    /// Runs the checks of a host now and shows what they find
    Recheck {
        /// Name of the host
        name: String,
        /// Only this check
        #[arg(long, env = "MUSTER_CHECK")]
        check: Vec<String>,
        /// Wait at most this long for the results
        #[arg(long, env = "MUSTER_WAIT", value_name = "TIME", default_value = "30s")]
        wait: HumanDuration,
    },
    /// Takes a host out for new sessions
    #[command(
        after_help = "Example:\n  muster-broker drain vdi-01 --reason 'new disk' --until-empty 8h && ssh vdi-01 poweroff"
    )]
    Drain {
        /// Name of the host
        name: String,
        /// Why, for people
        #[arg(long, env = "MUSTER_REASON", default_value = "")]
        reason: String,
        /// Who drains; your own name if not given
        #[arg(long, env = "MUSTER_OWNER", default_value = "")]
        owner: String,
        /// Ends by itself after this time, such as 2h
        #[arg(long = "for", env = "MUSTER_FOR", value_name = "TIME")]
        lasts: Option<HumanDuration>,
        /// Wait at most this long until nobody has a session: exits 0 then, 1 if somebody still
        /// has one, 2 if that cannot be told
        #[arg(long, env = "MUSTER_UNTIL_EMPTY", value_name = "TIME")]
        until_empty: Option<HumanDuration>,
    },
    /// Lifts a drain
    Undrain {
        /// Name of the host
        name: String,
        /// Whose drain; your own if not given
        #[arg(long, env = "MUSTER_OWNER", default_value = "")]
        owner: String,
        /// Lift every drain, whoever owns it
        #[arg(long, conflicts_with = "owner")]
        all: bool,
    },
    /// Forgets a host: its certificate is of no use any more
    Remove {
        /// Name of the host
        name: String,
    },
    /// Holds in mass losses
    #[command(subcommand)]
    Hold(HoldCommand),
    /// Decides an identity conflict: believes the machine that is heard
    Trust {
        /// Name of the host
        name: String,
        /// Believe the newcomer that is refused instead
        #[arg(long, env = "MUSTER_NEWCOMER")]
        newcomer: bool,
    },
    /// Pools and their policies
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Certificates for front ends, viewers and operators
    #[command(subcommand)]
    Cert(CertCommand),
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Makes a join token and shows it once, with the command that uses it
    #[command(
        after_help = "Example:\n  muster-broker token create --pool vdi --name vdi-01 --ttl 1d"
    )]
    Create {
        /// Pool of the hosts that enrol with it
        #[arg(long, env = "MUSTER_POOL", default_value = "default")]
        pool: String,
        /// The only host name that it may enrol
        #[arg(long, env = "MUSTER_NAME")]
        name: Option<String>,
        /// How often it may be used
        #[arg(long, env = "MUSTER_USES", default_value_t = 1)]
        uses: u32,
        /// How long it may be used, at most 30d
        #[arg(long, env = "MUSTER_TTL", value_name = "TIME", default_value = "1h")]
        ttl: HumanDuration,
    },
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Shows all pools, or one with its policy
    Show {
        /// Name of the pool
        name: Option<String>,
    },
    /// Says which hosts would change if the policy in FILE took effect
    #[command(after_help = "Example:\n  muster-broker pool preview vdi vdi.toml")]
    Preview {
        /// Name of the pool
        name: String,
        /// The policy, TOML
        file: PathBuf,
    },
    /// Puts the policy in FILE in force
    #[command(after_help = "Example:\n  muster-broker pool set vdi vdi.toml")]
    Set {
        /// Name of the pool
        name: String,
        /// The policy, TOML
        file: PathBuf,
        /// Even if it turns more than a tenth of the connectable hosts to no
        #[arg(long, env = "MUSTER_FORCE")]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum HoldCommand {
    /// Ends holds at once: hosts that are silent for longer than their lease are Unavailable
    #[command(after_help = "Example:\n  muster-broker hold end --pool vdi")]
    End {
        /// Only of this pool
        #[arg(long, env = "MUSTER_POOL")]
        pool: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Makes a key here and has a certificate for it signed
    #[command(
        after_help = "Example:\n  muster-broker cert issue --role frontend --name gw1 --out /etc/gateway/muster"
    )]
    Issue {
        /// What its holder may be
        #[arg(long, env = "MUSTER_ROLE", value_enum)]
        role: RoleArg,
        /// Name of the holder
        #[arg(long, env = "MUSTER_NAME")]
        name: String,
        /// How long it lasts, at most 365d
        #[arg(long, env = "MUSTER_TTL", value_name = "TIME", default_value = "30d")]
        ttl: HumanDuration,
        /// Folder for key.pem (0600), cert.pem and ca.pem; NAME here if not given
        #[arg(long, env = "MUSTER_OUT", value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IntentArg {
    /// A new session
    New,
    /// Back to one's own session
    Reconnect,
}

impl From<IntentArg> for Intent {
    fn from(arg: IntentArg) -> Self {
        match arg {
            IntentArg::New => Self::New,
            IntentArg::Reconnect => Self::Reconnect,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    /// Asks for verdicts
    Frontend,
    /// Looks at everything
    Viewer,
    /// Looks and acts
    Operator,
}

impl RoleArg {
    fn as_str(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// Runs the command line `arguments` (the first is the program's name).
pub async fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    muster_runtime::tls::install_provider();
    match run(cli).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("muster-broker: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Why a command failed: what to say and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: 1,
        }
    }

    fn coded(self, code: u8) -> Self {
        Self { code, ..self }
    }
}

impl<E: std::error::Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(muster_runtime::explain::explain(&error))
    }
}

async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let global = cli.global;
    let config = load(&global)?;
    match cli.command {
        Command::Serve => {
            telemetry::init(config.log.format, &config.log.filter)?;
            let shutdown = Shutdown::from_signals()?;
            serve::run(config, shutdown).await?;
            Ok(ExitCode::SUCCESS)
        }
        command => commands::run(command, &global, &config).await,
    }
}

fn load(global: &Global) -> Result<Config, Failure> {
    let usual = PathBuf::from("/etc/muster/broker.toml");
    // A file that was named must be there; the usual one may be missing.
    let (path, required) = match &global.config {
        Some(path) => (path, true),
        None => (&usual, false),
    };
    Config::load(path, required).map_err(|error| Failure::from(error).coded(CONFIGURATION))
}
