//! A broker's edge over real TLS whose every word the test chooses, and an agent beside it.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use muster_agent::{
    RunError,
    config::Config,
    control::{self, Answer, Request},
    session::LinkState,
    store::DataDir,
};
use muster_proto::v1::{
    AgentMessage, Beat, BrokerMessage, EnrollRequest, EnrollResponse, Hello, Report, Welcome,
    agent_message::Body,
    agent_service_server::{AgentService, AgentServiceServer},
    broker_message,
    enrollment_service_server::{EnrollmentService, EnrollmentServiceServer},
};
use muster_runtime::{
    accept::{AcceptOptions, bind_tcp, serve_tls},
    identity::{KeyPem, LocalIdentity, Pin, from_certificate, pin_of},
    shutdown::Shutdown,
    tls::{ServerTls, TlsVersions},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming, transport::Server};

/// Longer than anything here takes, short enough to be waited for when it breaks.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const BROKER: &str = "muster://muster-0a1b2c3d/broker/broker-1";
pub(crate) const HOST: &str =
    "muster://muster-0a1b2c3d/host/vdi-01/0e8a9d6a-3f0f-4d4c-9a55-0d6b3c1f2a77";

/// The fleet's CA.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn pin(&self) -> Pin {
        pin_of(&self.root()).unwrap()
    }

    fn params(uri: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(3000, 1, 1);
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params
    }

    fn broker(&self) -> LocalIdentity {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(BROKER, ExtendedKeyUsagePurpose::ServerAuth);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        LocalIdentity {
            info: from_certificate(&certificate).unwrap(),
            chain: vec![certificate],
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            roots: vec![self.root()],
        }
    }

    /// Gives a host its identity, as an enrolment would.
    fn enrol(&self, data: &DataDir) {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(HOST, ExtendedKeyUsagePurpose::ClientAuth);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let files = data.identity();
        files.store_key(&KeyPem::new(key.serialize_pem())).unwrap();
        files
            .store_certificates(&[certificate], &[self.root()])
            .unwrap();
    }

    /// Signs what a joining host asks for.
    pub(crate) fn sign(&self, csr: &[u8]) -> Vec<u8> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        request.params = Self::params(HOST, ExtendedKeyUsagePurpose::ClientAuth);
        request.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// A session as the edge sees it.
pub(crate) struct Session {
    inbox: Streaming<AgentMessage>,
    outbox: mpsc::Sender<Result<BrokerMessage, Status>>,
}

impl Session {
    /// The agent's next word; None when it has ended the stream.
    pub(crate) async fn next(&mut self) -> Option<Body> {
        let message = timeout(PATIENCE, self.inbox.message())
            .await
            .expect("a word in time");
        message.ok().flatten().map(|message| message.body.unwrap())
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.next().await {
            Some(Body::Hello(hello)) => hello,
            other => panic!("not Hello: {other:?}"),
        }
    }

    pub(crate) async fn report_until(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        loop {
            match self.next().await.expect("the stream is open") {
                Body::Report(report) if wanted(&report) => return report,
                _ => {}
            }
        }
    }

    pub(crate) async fn beat(&mut self) -> Beat {
        loop {
            if let Body::Beat(beat) = self.next().await.expect("the stream is open") {
                return beat;
            }
        }
    }

    pub(crate) async fn say(&self, body: broker_message::Body) {
        // The agent may have gone: then the test sees that.
        let _ = self
            .outbox
            .send(Ok(BrokerMessage { body: Some(body) }))
            .await;
    }

    pub(crate) async fn refuse(&self, status: Status) {
        let _ = self.outbox.send(Err(status)).await;
    }

    /// Hello and Welcome.
    pub(crate) async fn open(&mut self, welcome: Welcome) -> Hello {
        let hello = self.hello().await;
        self.say(broker_message::Body::Welcome(welcome)).await;
        hello
    }
}

/// A pace fast enough for tests.
pub(crate) fn welcome() -> Welcome {
    Welcome {
        cluster_id: "muster-0a1b2c3d".to_owned(),
        broker_id: "broker-1".to_owned(),
        incarnation: 1,
        epoch: 1,
        resume_token: vec![7; 16].into(),
        interval_ms: 100,
        lease_ms: 5000,
        reconnect_spread_ms: 50,
        reconnect_cap_ms: 100,
        ..Welcome::default()
    }
}

type Enrolling = dyn Fn(EnrollRequest) -> Result<EnrollResponse, Status> + Send + Sync;

struct Edge {
    sessions: mpsc::Sender<Session>,
    enrolling: Arc<Enrolling>,
}

#[tonic::async_trait]
impl AgentService for Edge {
    type SessionStream = ReceiverStream<Result<BrokerMessage, Status>>;

    async fn session(
        &self,
        request: tonic::Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, outgoing) = mpsc::channel(16);
        let session = Session {
            inbox: request.into_inner(),
            outbox,
        };
        self.sessions
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

#[tonic::async_trait]
impl EnrollmentService for Edge {
    async fn enroll(
        &self,
        request: tonic::Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        (self.enrolling)(request.into_inner()).map(Response::new)
    }
}

/// The edge of a broker.
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
}

impl Broker {
    pub(crate) fn start(ca: &Ca) -> Self {
        Self::enrolling(ca, |_| Err(Status::unimplemented("not in this test")))
    }

    pub(crate) fn enrolling(
        ca: &Ca,
        enrolling: impl Fn(EnrollRequest) -> Result<EnrollResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        muster_runtime::tls::install_provider();
        let listener = bind_tcp(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let tls = Arc::new(ServerTls::new(&ca.broker(), TlsVersions::default()).unwrap());
        let incoming = serve_tls(listener, tls, AcceptOptions::default());
        let (sender, sessions) = mpsc::channel(16);
        let edge = Arc::new(Edge {
            sessions: sender,
            enrolling: Arc::new(enrolling),
        });
        let server = Server::builder()
            .add_service(AgentServiceServer::from_arc(Arc::clone(&edge)))
            .add_service(EnrollmentServiceServer::from_arc(edge))
            .serve_with_incoming(incoming);
        // Ends with the test's runtime.
        tokio::spawn(server);
        Self { address, sessions }
    }

    pub(crate) async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv())
            .await
            .expect("a session in time")
            .unwrap()
    }
}

/// An agent in this process, with a listener of its own to check.
pub(crate) struct Agent {
    pub(crate) data: DataDir,
    pub(crate) control: PathBuf,
    pub(crate) shutdown: Shutdown,
    folder: TempDir,
    pub(crate) listener: TcpListener,
    /// What the listener is believed to speak. It says nothing: only `tcp` passes, and for others
    /// a run of the check waits for a word.
    pub(crate) protocol: &'static str,
    brokers: Vec<String>,
    running: Option<JoinHandle<Result<(), RunError>>>,
}

impl Agent {
    pub(crate) async fn enrolled(ca: &Ca, brokers: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(folder.path().join("data"));
        ca.enrol(&data);
        Self {
            data,
            control: folder.path().join("control.sock"),
            shutdown: Shutdown::new(),
            folder,
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            protocol: "tcp",
            brokers: brokers.iter().map(ToString::to_string).collect(),
            running: None,
        }
    }

    /// Writes the configuration, and says where it is.
    pub(crate) fn write_config(&self) -> PathBuf {
        let text = format!(
            "data_dir = {:?}\ncontrol_socket = {:?}\nbrokers = {:?}\n\
             [check.session_listener]\ninterval = \"500ms\"\nallow_loopback = true\n\
             listeners = [{{ protocol = {:?}, port = {}, address = \"127.0.0.1\" }}]\n",
            self.data.path(),
            self.control,
            self.brokers,
            self.protocol,
            self.listener.local_addr().unwrap().port(),
        );
        let path = self.folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn config(&self) -> Config {
        Config::load(&self.write_config(), true).unwrap()
    }

    pub(crate) fn start(mut self) -> Self {
        self.shutdown = Shutdown::new();
        let run = muster_agent::run(self.config(), self.shutdown.clone());
        self.running = Some(tokio::spawn(run));
        self
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> Result<(), RunError> {
        let running = self.running.take().expect("it runs");
        timeout(PATIENCE, running)
            .await
            .expect("it ends in time")
            .unwrap()
    }

    pub(crate) async fn stop(&mut self) -> Result<(), RunError> {
        self.shutdown.request();
        self.ended().await
    }

    /// How its session fares, once that is as wanted.
    pub(crate) async fn link_until(&self, wanted: impl Fn(&LinkState) -> bool) -> LinkState {
        let last = std::cell::RefCell::new(String::new());
        let look = async {
            loop {
                let answer = control::ask(&self.control, &Request::Link).await;
                last.replace(format!("{answer:?}"));
                if let Ok(Answer::Link { link }) = answer
                    && wanted(&link)
                {
                    return link;
                }
                tokio::task::yield_now().await;
            }
        };
        match timeout(PATIENCE, look).await {
            Ok(link) => link,
            Err(_) => panic!("waited for the link; last: {}", last.borrow()),
        }
    }
}
