//! A real broker process on a loopback address of its own, with a data folder that goes with it.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use muster_proto::v1::{CreateTokenRequest, SetPoolRequest, Verdict};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use tonic::Status;

use crate::{
    apart::Machine,
    binaries,
    clients::{self, Connections, FleetClient, Token, WayIn},
    process::{self, Output, Process},
    wait,
};

/// How long a start may take: tens of milliseconds on an idle machine.
const START: Duration = Duration::from_secs(20);

/// How long a command of the CLI may take.
const COMMAND: Duration = Duration::from_secs(20);

/// How a broker is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time between two beats.
    pub interval: Duration,
    /// Beats in a lease.
    pub lease_beats: u32,
    /// Added to the lease.
    pub lease_grace: Duration,
    /// Added to the lease for the window after a restart.
    pub reconnect_window: Duration,
    /// More lines of configuration.
    pub more: String,
}

impl Default for Settings {
    /// A lease of 3 s: short beside a test's patience, long beside what a busy machine delays.
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            lease_beats: 3,
            lease_grace: Duration::from_millis(1500),
            reconnect_window: Duration::from_secs(5),
            more: String::new(),
        }
    }
}

impl Settings {
    /// How long the broker believes a host after its last beat.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.interval * self.lease_beats + self.lease_grace
    }
}

/// Where a broker that is ready can be reached, as it writes it into its data folder.
#[derive(Clone, Debug, Deserialize)]
pub struct Endpoints {
    /// gRPC, `host:port`.
    pub grpc: String,
    /// Web and metrics, `host:port`.
    pub http: String,
    /// The operators' socket.
    pub operator_socket: PathBuf,
}

/// A broker.
#[derive(Debug)]
pub struct Broker {
    /// The process; ended between `kill` and `start_again`.
    pub process: Process,
    /// How it was started.
    pub settings: Settings,
    /// Where it is reached; the same after a restart.
    pub endpoints: Endpoints,
    folder: Folder,
}

/// The files of a broker.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    own_group: bool,
    /// The program; that of the sources if none.
    broker: Option<PathBuf>,
    machine: Option<Machine>,
    // Goes last, with all that is in it; none for a folder that is kept.
    _temporary: Option<TempDir>,
}

impl Folder {
    /// A new folder that goes with this value.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn temporary() -> Result<Self> {
        let temporary = tempfile::Builder::new()
            .prefix("muster-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        Ok(Self {
            path: temporary.path().to_owned(),
            own_group: false,
            broker: None,
            machine: None,
            _temporary: Some(temporary),
        })
    }

    /// A folder that stays.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn kept(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path: path.canonicalize()?,
            own_group: false,
            broker: None,
            machine: None,
            _temporary: None,
        })
    }

    /// The same; the broker gets a process group of its own, so that Ctrl-C at a terminal reaches
    /// its parent alone.
    #[must_use]
    pub fn in_own_group(mut self) -> Self {
        self.own_group = true;
        self
    }

    /// The same, with the broker on this machine. Its commands are for its Unix socket.
    #[must_use]
    pub fn on_machine(mut self, machine: &Machine) -> Self {
        self.machine = Some(machine.clone());
        self
    }

    /// The same, with this program as the broker, or that of the sources.
    #[must_use]
    pub fn with_broker(mut self, program: Option<&Path>) -> Self {
        self.broker = program.map(Path::to_owned);
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The broker's configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("broker.toml")
    }

    /// The broker's data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path.join("broker")
    }

    /// What the broker logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.path.join("broker.log")
    }

    /// Writes the broker's configuration.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_config(&self, settings: &Settings, grpc: &str, http: &str) -> Result<()> {
        let mut text = String::new();
        writeln!(text, "data_dir = {:?}", self.data())?;
        writeln!(
            text,
            "operator_socket = {:?}",
            self.path.join("operator.sock")
        )?;
        writeln!(text, "[listen]\ngrpc = {grpc:?}\nhttp = {http:?}")?;
        writeln!(text, "[liveness]")?;
        writeln!(text, "interval = \"{}ms\"", settings.interval.as_millis())?;
        writeln!(text, "lease_beats = {}", settings.lease_beats)?;
        writeln!(
            text,
            "lease_grace = \"{}ms\"",
            settings.lease_grace.as_millis()
        )?;
        let window = settings.reconnect_window.as_millis();
        writeln!(text, "reconnect_window = \"{window}ms\"")?;
        text.push_str(&settings.more);
        fs::write(self.config(), text).context("cannot write the broker's configuration")
    }

    /// The command `muster-broker ARGUMENTS` with this configuration.
    ///
    /// # Errors
    /// When the binary cannot be built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = match &self.broker {
            Some(program) => binaries::command(program),
            None => binaries::command(&binaries::fresh()?.broker),
        };
        command
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .current_dir(&self.path);
        if let Some(machine) = &self.machine {
            command = machine.command(&command);
        }
        if self.own_group {
            command.process_group(0);
        }
        Ok(command)
    }
}

impl Broker {
    /// Starts a broker in a temporary folder.
    ///
    /// # Errors
    /// When it is not ready in time, with the end of its log.
    pub async fn start() -> Result<Self> {
        Self::start_with(Settings::default()).await
    }

    /// Starts a broker in a temporary folder.
    ///
    /// # Errors
    /// When it is not ready in time, with the end of its log.
    pub async fn start_with(settings: Settings) -> Result<Self> {
        // An address of its own, so that its ports are still free when it starts again.
        let [a, b, c]: [u8; 3] = rand::random();
        let address = format!("127.{a}.{b}.{}:0", c.clamp(2, 253));
        Self::start_in(Folder::temporary()?, settings, &address).await
    }

    /// Starts a broker in a folder, listening at `address`.
    ///
    /// # Errors
    /// When it is not ready in time, with the end of its log.
    pub async fn start_in(folder: Folder, settings: Settings, address: &str) -> Result<Self> {
        Self::start_at(folder, settings, address, address).await
    }

    /// Starts a broker in a folder, listening at these addresses for gRPC and for HTTP.
    ///
    /// # Errors
    /// When it is not ready in time, with the end of its log.
    pub async fn start_at(
        folder: Folder,
        settings: Settings,
        grpc: &str,
        http: &str,
    ) -> Result<Self> {
        folder.write_config(&settings, grpc, http)?;
        let (process, endpoints) = serve(&folder).await?;
        Ok(Self {
            process,
            settings,
            endpoints,
            folder,
        })
    }

    /// Its files.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Ends it with SIGKILL.
    ///
    /// # Errors
    /// When it has ended before.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.kill().await
    }

    /// Ends it in an orderly way.
    ///
    /// # Errors
    /// When it does not end in time, or with another exit code than 0.
    pub async fn stop(&mut self) -> Result<()> {
        let status = self.process.terminate(wait::PATIENCE).await?;
        ensure!(status.success(), "the broker ended with {status}");
        Ok(())
    }

    /// Starts it again, with the same data at the same addresses.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub async fn start_again(&mut self) -> Result<()> {
        let Endpoints { grpc, http, .. } = &self.endpoints;
        self.folder.write_config(&self.settings, grpc, http)?;
        let (process, endpoints) = serve(&self.folder).await?;
        self.process = process;
        self.endpoints = endpoints;
        Ok(())
    }

    /// Runs a command of the CLI.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time; any exit code is an answer.
    pub async fn cli(&self, arguments: &[&str]) -> Result<Output> {
        process::run(self.folder.command(arguments)?, COMMAND).await
    }

    /// Runs a command of the CLI that must succeed and gives its JSON.
    ///
    /// # Errors
    /// When it fails, with what it said, or does not print JSON.
    pub async fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let arguments = [arguments, &["--output", "json"]].concat();
        let output = self.cli(&arguments).await?;
        ensure!(output.code == Some(0), "{arguments:?} failed: {output:?}");
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("no JSON from {arguments:?}: {output:?}"))
    }

    /// What its web listener answers: status and body. Not for a broker on another machine.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let host = &self.endpoints.http;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let exchange = async {
            let mut stream = TcpStream::connect(host).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let answer = wait::within(path, wait::PATIENCE, exchange).await??;
        let code = answer.split(' ').nth(1).context("no status")?.parse()?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok((code, body.to_owned()))
    }

    /// Value of a metric, as it stands in a line that begins with `name`; 0 if there is none.
    ///
    /// # Errors
    /// When the metrics are not served.
    pub async fn metric(&self, name: &str) -> Result<u64> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(Ok(0), |value| {
            value
                .trim()
                .parse()
                .with_context(|| format!("{name}{value}"))
        })
    }

    /// The operators' client, over the Unix socket.
    ///
    /// # Errors
    /// When the socket does not answer.
    pub async fn operator(&self) -> Result<FleetClient> {
        clients::operator(&self.endpoints.operator_socket).await
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn token(&self, pool: &str, name: Option<&str>, uses: u32) -> Result<Token> {
        let request = CreateTokenRequest {
            pool: pool.to_owned(),
            host_name: name.unwrap_or_default().to_owned(),
            uses,
            ttl_ms: 0,
        };
        let answer = self.operator().await?.create_token(request).await?;
        let answer = answer.into_inner();
        Ok(Token {
            token: answer.token,
            ca_pin: answer.ca_pin,
        })
    }

    /// Sets the policy of a pool.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn set_policy(&self, pool: &str, policy_toml: &str) -> Result<()> {
        let request = SetPoolRequest {
            name: pool.to_owned(),
            policy_toml: policy_toml.to_owned(),
            force: false,
        };
        self.operator().await?.set_pool(request).await?;
        Ok(())
    }

    /// How a machine without an identity reaches it.
    #[must_use]
    pub fn way_in(&self) -> WayIn {
        WayIn::new(&self.endpoints.grpc)
    }

    /// A front end's client with a certificate of its own.
    ///
    /// # Errors
    /// When the certificate is refused or the broker cannot be reached.
    pub async fn front_end(&self) -> Result<Connections> {
        let issued = clients::issue(self, "frontend", "front-end").await?;
        Ok(Connections::new(issued.connect().await?))
    }

    /// The verdict for a new session.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn verdict(&self, name: &str) -> Result<Verdict> {
        let channel = clients::unix(&self.endpoints.operator_socket).await?;
        Ok(Connections::new(channel).check(name).await?)
    }

    /// Waits until a host's verdict is as wanted.
    ///
    /// # Errors
    /// When it is not in time, with the last one.
    pub async fn verdict_until(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Verdict) -> bool,
    ) -> Result<Verdict> {
        let channel = clients::unix(&self.endpoints.operator_socket).await?;
        let connections = Connections::new(channel);
        let wanted = &wanted;
        wait::until(&format!("{name}: {what}"), wait::PATIENCE, || {
            let mut connections = connections.clone();
            async move {
                let verdict: Result<Verdict, Status> = connections.check(name).await;
                let verdict = verdict?;
                ensure!(wanted(&verdict), "{}", describe(&verdict));
                Ok(verdict)
            }
        })
        .await
    }
}

/// A verdict in one line.
#[must_use]
pub fn describe(verdict: &Verdict) -> String {
    let reasons: Vec<String> = verdict
        .reasons
        .iter()
        .map(|reason| format!("{}({})", reason.code, reason.subject))
        .collect();
    format!(
        "{} {} new={} reconnect={} {} [{}]",
        verdict.name,
        verdict.status().as_str_name(),
        verdict.connectable_new,
        verdict.connectable_reconnect,
        verdict.confidence().as_str_name(),
        reasons.join(" ")
    )
}

/// Starts the process and waits until it is ready.
async fn serve(folder: &Folder) -> Result<(Process, Endpoints)> {
    let told = folder.data().join("endpoints.json");
    if told.exists() {
        fs::remove_file(&told).context("cannot remove what an earlier start told")?;
    }
    let mut process = Process::spawn("muster-broker", folder.command(&["serve"])?, &folder.log())?;
    let endpoints = wait::until("the broker to be ready", START, || {
        let ended = process.has_ended();
        let told = told.clone();
        async move {
            if let Some(status) = ended? {
                return Ok(Err(status));
            }
            let text = fs::read_to_string(&told).context("no endpoints yet")?;
            Ok(Ok(serde_json::from_str(&text)?))
        }
    })
    .await?;
    match endpoints {
        Ok(endpoints) => Ok((process, endpoints)),
        Err(status) => bail!("the broker ended with {status}: {}", process.log()?),
    }
}
