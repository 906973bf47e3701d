//! A bare stream server to hold the broker against: the same accept loop and TLS, tonic as it comes,
//! and behind it nothing but a counter.
//!
//! It speaks just enough for a light agent: Welcome for a Hello, an acknowledgement for a Report.
//! It lives in a process of its own (`muster-swarm bare`), so that what it uses can be measured, and
//! ends when its parent closes the pipe.

use std::{
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use futures_util::{Stream, stream};
use muster_broker::ca::Ca;
use muster_core::model::{HostName, TrustDomain};
use muster_proto::v1::{
    Ack, AgentMessage, BrokerMessage, Welcome, ack, agent_message,
    agent_service_server::{AgentService, AgentServiceServer},
    broker_message,
};
use muster_runtime::{
    accept::{self, AcceptOptions},
    clock,
    tls::{ServerTls, TlsVersions},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::options::Bare;

/// A bare server in a child process, ended when dropped.
pub(crate) struct BareServer {
    process: Child,
    pub(crate) endpoint: String,
}

impl BareServer {
    /// Starts one with a certificate of the CA in the broker's `data`.
    pub(crate) async fn start(
        data: PathBuf,
        trust_domain: &TrustDomain,
        interval: Duration,
        lease: Duration,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell which program this is")?;
        let mut process = Command::new(program)
            .arg("bare")
            .arg("--data")
            .arg(data)
            .args(["--trust-domain", &trust_domain.to_string()])
            .args(["--interval-ms", &interval.as_millis().to_string()])
            .args(["--lease-ms", &lease.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the bare server")?;
        let out = process.stdout.take().context("a child without output")?;
        let line = BufReader::new(out).lines().next_line().await?;
        Ok(Self {
            process,
            endpoint: line.context("the bare server has ended")?,
        })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> Result<u32> {
        self.process.id().context("the bare server has ended")
    }

    /// Ends it.
    pub(crate) async fn stop(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        self.process.wait().await?;
        Ok(())
    }
}

/// The child's side.
pub(crate) async fn serve(arguments: &Bare) -> Result<()> {
    let domain: TrustDomain = arguments.trust_domain.parse()?;
    let ca = Ca::load(&arguments.data, &domain)?;
    let identity = ca.broker_identity(&HostName::new("bare")?, &[], clock::now().wall)?;
    let tls = Arc::new(ServerTls::new(&identity, TlsVersions::default())?);
    let listener = accept::bind_tcp(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    let incoming = accept::serve_tls(listener, tls, AcceptOptions::default());
    let counting = Counting {
        messages: Arc::default(),
        interval_ms: arguments.interval_ms,
        lease_ms: arguments.lease_ms,
    };
    println!("{address}");
    let serving = Server::builder()
        .add_service(AgentServiceServer::new(counting))
        .serve_with_incoming(incoming);
    tokio::select! {
        ended = serving => Ok(ended?),
        // The parent says nothing: it closes the pipe.
        _ = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()) => Ok(()),
    }
}

#[derive(Clone)]
struct Counting {
    messages: Arc<AtomicU64>,
    interval_ms: u64,
    lease_ms: u64,
}

type Outbound = Pin<Box<dyn Stream<Item = Result<BrokerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Counting {
    type SessionStream = Outbound;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Outbound>, Status> {
        let session = (self.clone(), request.into_inner());
        let outbound = stream::unfold(session, |(counting, mut inbound)| async move {
            loop {
                let message = inbound.message().await.ok()??;
                counting.messages.fetch_add(1, Ordering::Relaxed);
                if let Some(body) = counting.answer(message) {
                    let answer = BrokerMessage { body: Some(body) };
                    return Some((Ok(answer), (counting, inbound)));
                }
            }
        });
        Ok(Response::new(Box::pin(outbound)))
    }
}

impl Counting {
    fn answer(&self, message: AgentMessage) -> Option<broker_message::Body> {
        match message.body? {
            agent_message::Body::Hello(_) => Some(broker_message::Body::Welcome(Welcome {
                epoch: 1,
                interval_ms: self.interval_ms,
                lease_ms: self.lease_ms,
                reconnect_spread_ms: self.interval_ms,
                reconnect_cap_ms: self.lease_ms,
                ..Welcome::default()
            })),
            agent_message::Body::Report(report) => Some(broker_message::Body::Ack(Ack {
                of: Some(ack::Of::ReportSequence(report.sequence)),
            })),
            _ => None,
        }
    }
}
