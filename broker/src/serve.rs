//! The broker's life: start and serve. How it ends is in [`stop`](crate::stop).

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use muster_core::model::{HostName, TrustDomain};
use muster_proto::v1;
use muster_runtime::{
    accept::{self, BindError, TlsIncoming, UnixIncoming},
    clock, files,
    identity::LocalIdentity,
    service,
    shutdown::Shutdown,
    supervisor::{Supervisor, SupervisorError, TaskKind},
    tls::{ServerTls, TlsError, TlsVersions},
    watchdog::Guard,
};
use serde::Serialize;
use tonic::transport::Server;
use tonic_health::server::HealthReporter;

use crate::{
    ca::{BROKER_LIFETIME, Ca, CaError},
    config::Config,
    metrics::Metrics,
    prober,
    registry::{BrokerName, Registry, run_ticker},
    services::{AgentEdge, ConnectionEdge, EnrollmentEdge, FleetEdge, access::AccessLayer},
    stop::ended,
    store::{
        Applied, Batch, BrokerRecord, EmbeddedStore, Store, StoreError, WriteQueue, decode, encode,
        keys,
    },
    watchdog, web,
};

/// For the disk to take the first record of a start: it takes milliseconds.
const CHARGED_WITHIN: Duration = Duration::from_secs(2);
/// Streams of one connection: an agent has one, a gateway some dozens.
const STREAMS_MAX: u32 = 256;
/// Header list of one request.
const HEADERS_MAX_BYTES: u32 = 16 * 1024;
/// A front end's or operator's message: a batch of a thousand names.
const REQUEST_MAX_BYTES: usize = 1024 * 1024;
/// A joining host's message: a token, a name and a request of 8 KiB.
const ENROLMENT_MAX_BYTES: usize = 16 * 1024;

/// Why the broker does not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A file or folder.
    #[error("the data folder {} cannot be used", path.display())]
    DataFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: files::FileError,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS.
    #[error("the broker's certificate cannot be used")]
    Tls(#[from] TlsError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A thread, a listener's address.
    #[error("the operating system refused")]
    Io(#[from] io::Error),
    /// Reflection.
    #[error("the contract cannot be served")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// A task failed.
    #[error(transparent)]
    Task(#[from] SupervisorError),
}

/// Where a started broker is reached; also written to `endpoints.json` in the data folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoints {
    /// gRPC over TLS.
    pub grpc: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
    /// The operators' socket.
    pub operator_socket: PathBuf,
    /// Pin of the fleet's CA.
    pub ca_pin: String,
}

/// A broker that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it is reached.
    pub endpoints: Endpoints,
    pub(crate) supervisor: Supervisor,
    pub(crate) registry: Arc<Registry>,
    pub(crate) writer: JoinHandle<()>,
    pub(crate) health: HealthReporter,
    pub(crate) shutdown: Shutdown,
    /// Ends the servers, after what is on its way has been told.
    pub(crate) cut: Shutdown,
    /// Ends the process if the ticker is stuck.
    pub(crate) watchdog: Guard,
}

/// Runs a broker until `shutdown`.
///
/// # Errors
/// If it cannot start, or a part of it fails.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), ServeError> {
    start(config, shutdown).await?.join().await
}

/// Starts a broker; it serves when this returns.
///
/// # Errors
/// If it cannot start: nothing is left running.
pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running, ServeError> {
    let data = &config.data_dir;
    files::create_private_directory(data).map_err(|source| ServeError::DataFolder {
        path: data.clone(),
        source,
    })?;
    // Ports first: a second broker must not touch the store of the first.
    let grpc = accept::bind_tcp(config.listen.grpc)?;
    let http = accept::bind_tcp(config.listen.http)?;
    accept::raise_open_files();
    let kept = Kept::open(&config)?;
    kept.charge().await;
    let names = server_names(&config, grpc.local_addr()?);
    let renewal = Renewal {
        ca: kept.ca.clone(),
        name: broker_name(&kept.record),
        names,
    };
    let tls = Arc::new(ServerTls::new(
        &renewal.identity()?,
        TlsVersions::default(),
    )?);
    let options = config.accept_options();
    let endpoints = Endpoints {
        grpc: grpc.local_addr()?,
        http: http.local_addr()?,
        operator_socket: config.operator_socket.clone(),
        ca_pin: kept.ca.pin().to_string(),
    };
    let incoming = accept::serve_tls(grpc, tls.clone(), options);
    let group = Some(config.operator_group.as_str()).filter(|group| !group.is_empty());
    let local = accept::serve_unix(&config.operator_socket, 0o660, group, options)?;

    let cut = Shutdown::new();
    let advertised = advertised(&config, endpoints.grpc, &renewal.names);
    let (health, health_service) = tonic_health::server::health_reporter();
    let services = kept.services(&config, advertised, &cut, health_service)?;
    let registry = kept.registry;
    let supervisor = Supervisor::new(shutdown.clone());
    let critical = TaskKind::Critical;
    let counters = incoming.counters();
    judge(
        &supervisor,
        &registry,
        move || counters.waiting(),
        &shutdown,
    );
    supervisor.spawn(
        "grpc",
        critical,
        serve_tls(services.clone(), incoming, cut.clone()),
    );
    supervisor.spawn(
        "operators",
        critical,
        serve_unix(services, local, cut.clone()),
    );
    supervisor.spawn(
        "http",
        critical,
        web::serve(http, registry.clone(), shutdown.clone(), cut.clone()),
    );
    supervisor.spawn("certificate", critical, renewal.run(tls, shutdown.clone()));

    announce(data, &endpoints, &kept.record, registry.len())?;
    let watchdog = watchdog::start(&registry, shutdown.clone())?;
    service::ready();
    service::status(&format!("serving at {}", endpoints.grpc));
    let writer = kept.writer;
    Ok(Running {
        endpoints,
        supervisor,
        registry,
        writer,
        health,
        shutdown,
        cut,
        watchdog,
    })
}

/// Starts what judges by time and by the broker's own dials.
fn judge(
    supervisor: &Supervisor,
    registry: &Arc<Registry>,
    waiting: impl Fn() -> usize + Send + 'static,
    shutdown: &Shutdown,
) {
    let ticker = run_ticker(registry.clone(), waiting, shutdown.clone());
    supervisor.spawn("ticker", TaskKind::Critical, ticker);
    let prober = prober::run(registry.clone(), shutdown.clone());
    supervisor.spawn("prober", TaskKind::Critical, prober);
}

/// What outlives the process, loaded.
struct Kept {
    store: Arc<dyn Store>,
    record: BrokerRecord,
    ca: Arc<Ca>,
    registry: Arc<Registry>,
    writer: JoinHandle<()>,
}

impl Kept {
    fn open(config: &Config) -> Result<Self, ServeError> {
        let (store, record) = open_store(&config.data_dir)?;
        let store: Arc<dyn Store> = Arc::new(store);
        let ca = Arc::new(open_ca(&config.data_dir, &record.trust_domain)?);
        let metrics = Metrics::new();
        let (queue, writer) = WriteQueue::start(store.clone(), metrics.clone())?;
        let who = BrokerName {
            broker_id: record.broker_id.clone(),
            incarnation: record.incarnation,
        };
        let registry = Registry::load(store.as_ref(), queue, metrics, who, config.pace())?;
        Ok(Self {
            store,
            record,
            ca,
            registry,
            writer,
        })
    }

    /// Waits until the disk has what hosts are charged for being believed unheard: a broker that
    /// crashes again and again on a slow disk must not believe them for nothing. While the store
    /// fails, answers go on.
    async fn charge(&self) {
        let queue = self.registry.queue();
        let charged = queue.durable(queue.put([]));
        if tokio::time::timeout(CHARGED_WITHIN, charged).await.is_err() {
            tracing::error!("the store does not take what hosts are charged since the start");
        }
    }

    fn services<H>(
        &self,
        config: &Config,
        advertised: Vec<String>,
        cut: &Shutdown,
        health: tonic_health::pb::health_server::HealthServer<H>,
    ) -> Result<Router, ServeError>
    where
        H: tonic_health::pb::health_server::Health,
    {
        let Self {
            store,
            ca,
            registry,
            record,
            ..
        } = self;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(muster_proto::DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let domain = record.trust_domain.as_str().into();
        let agent = AgentEdge::new(registry.clone(), domain, config.limits);
        let enrollment = EnrollmentEdge::new(registry.clone(), store.clone(), ca.clone());
        let connection = ConnectionEdge::new(registry.clone(), cut.clone());
        let fleet = FleetEdge::new(
            registry.clone(),
            store.clone(),
            ca.clone(),
            advertised.into(),
            record.trust_domain.as_str().into(),
        );
        let agent = v1::agent_service_server::AgentServiceServer::new(agent)
            .max_decoding_message_size(crate::services::MESSAGE_MAX_BYTES);
        let enrollment = v1::enrollment_service_server::EnrollmentServiceServer::new(enrollment)
            .max_decoding_message_size(ENROLMENT_MAX_BYTES);
        let connection = v1::connection_service_server::ConnectionServiceServer::new(connection)
            .max_decoding_message_size(REQUEST_MAX_BYTES);
        let fleet = v1::fleet_service_server::FleetServiceServer::new(fleet)
            .max_decoding_message_size(REQUEST_MAX_BYTES);
        Ok(Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADERS_MAX_BYTES)
            .layer(AccessLayer::new(registry.metrics().clone()))
            .add_service(agent)
            .add_service(enrollment)
            .add_service(connection)
            .add_service(fleet)
            .add_service(health)
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?))
    }
}

type Router = tonic::transport::server::Router<
    tower::layer::util::Stack<AccessLayer, tower::layer::util::Identity>,
>;

async fn serve_tls(
    services: Router,
    incoming: TlsIncoming,
    cut: Shutdown,
) -> Result<(), tonic::transport::Error> {
    ended(
        services.serve_with_incoming_shutdown(incoming, cut.requested()),
        &cut,
    )
    .await
}

async fn serve_unix(
    services: Router,
    incoming: UnixIncoming,
    cut: Shutdown,
) -> Result<(), tonic::transport::Error> {
    ended(
        services.serve_with_incoming_shutdown(incoming, cut.requested()),
        &cut,
    )
    .await
}

/// Renews the broker's own certificate long before it ends; live sessions stay.
struct Renewal {
    ca: Arc<Ca>,
    name: HostName,
    names: Vec<String>,
}

impl Renewal {
    fn identity(&self) -> Result<LocalIdentity, CaError> {
        self.ca
            .broker_identity(&self.name, &self.names, clock::now().wall)
    }

    async fn run(self, tls: Arc<ServerTls>, shutdown: Shutdown) -> Result<(), ServeError> {
        loop {
            tokio::select! {
                () = shutdown.requested() => return Ok(()),
                () = tokio::time::sleep(BROKER_LIFETIME / 7) => {}
            }
            tls.replace(&self.identity()?, TlsVersions::default())?;
            tracing::info!("the broker's certificate was renewed");
        }
    }
}

/// Opens the store, or makes it at the very first start, and counts this start.
fn open_store(data: &Path) -> Result<(EmbeddedStore, BrokerRecord), ServeError> {
    let (path, root) = (data.join("store.redb"), data.join("ca.pem"));
    let first = !path.exists();
    if first && root.exists() {
        return Err(StoreError::Missing { path, beside: root }.into());
    }
    let store = if first {
        EmbeddedStore::create(&path)?
    } else {
        EmbeddedStore::open(&path)?
    };
    let before = store.get(keys::BROKER)?;
    let record = match &before {
        Some(bytes) => {
            let record: BrokerRecord = decode(keys::BROKER, bytes)?;
            BrokerRecord {
                incarnation: record.incarnation.saturating_add(1),
                ..record
            }
        }
        None => BrokerRecord {
            trust_domain: TrustDomain::from_random(rand::random()),
            broker_id: format!("broker-{:08x}", rand::random::<u32>()),
            incarnation: 1,
            created_at: clock::now().wall,
        },
    };
    let batch = Batch {
        require: vec![(keys::BROKER.to_vec(), before)],
        write: vec![(keys::BROKER.to_vec(), Some(encode(&record)))],
    };
    if store.commit(&[batch])? != [Applied::Yes] {
        return Err(StoreError::InUse { path }.into());
    }
    Ok((store, record))
}

/// Reads the CA; makes it at the very first start, when neither of its files is there.
fn open_ca(data: &Path, trust_domain: &TrustDomain) -> Result<Ca, CaError> {
    if data.join("ca.key").exists() {
        return Ca::load(data, trust_domain);
    }
    if data.join("ca.pem").exists() && has_hosts(data) {
        // The key was lost. A new CA would be another fleet: say so instead.
        return Ca::load(data, trust_domain);
    }
    Ca::create(data, trust_domain, clock::now().wall)
}

/// `endpoints.json` is written once a broker has served: its CA was in use.
fn has_hosts(data: &Path) -> bool {
    data.join("endpoints.json").exists()
}

fn broker_name(record: &BrokerRecord) -> HostName {
    HostName::new(&record.broker_id).unwrap_or_else(|_| {
        HostName::new("broker").expect("a word of lower-case letters is a name")
    })
}

/// What clients may call the broker, for those that check names.
fn server_names(config: &Config, grpc: SocketAddr) -> Vec<String> {
    let mut names = config.tls.names.clone();
    let own = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    names.extend([
        own,
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ]);
    if !grpc.ip().is_unspecified() {
        names.push(grpc.ip().to_string());
    }
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

/// Where joining hosts are sent.
fn advertised(config: &Config, grpc: SocketAddr, names: &[String]) -> Vec<String> {
    let port = grpc.port();
    if let Some(name) = config.tls.names.first() {
        return vec![format!("{name}:{port}")];
    }
    if !grpc.ip().is_unspecified() {
        return vec![grpc.to_string()];
    }
    let loopback = ["localhost", "127.0.0.1", "::1"];
    let own = names.iter().find(|name| !loopback.contains(&name.as_str()));
    vec![format!(
        "{}:{port}",
        own.map_or("localhost", String::as_str)
    )]
}

/// Says where the broker is reached: in `endpoints.json`, which also shows that it has served, and
/// in the log.
fn announce(
    data: &Path,
    endpoints: &Endpoints,
    record: &BrokerRecord,
    hosts: usize,
) -> Result<(), ServeError> {
    let text = serde_json::to_vec_pretty(endpoints).map_err(io::Error::other)?;
    files::write_atomic(&data.join("endpoints.json"), &text, files::PUBLIC_MODE).map_err(
        |source| ServeError::DataFolder {
            path: data.to_owned(),
            source,
        },
    )?;
    tracing::info!(
        grpc = %endpoints.grpc,
        http = %endpoints.http,
        operator_socket = %endpoints.operator_socket.display(),
        trust_domain = %record.trust_domain,
        incarnation = record.incarnation,
        hosts,
        "the broker serves"
    );
    Ok(())
}
