//! Real agents beside the light ones, each with a session listener that ends with it.
//!
//! An agent connects from whatever address the system gives it, which on one machine is the same for
//! all. Between each and the broker stands a relay that connects from the host's own address, so that
//! the broker sees as many machines. It passes on bytes and the end of the agent's connection.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use anyhow::{Context, Result};
use muster_tests::{
    agent::Agent,
    broker::Broker,
    fleet::{ListenerKind, SessionListener, Speaks},
    process::Process,
    targets::Target,
    wait,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
};

use crate::worker::now;

/// Port of the session listeners where the light agents have none.
const PORT: u16 = 3389;

/// One real agent with what it checks.
pub(crate) struct RealAgent {
    pub(crate) name: String,
    process: Process,
    listener: Option<SessionListener>,
    relay: JoinHandle<()>,
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

impl RealAgent {
    /// Enrols and starts `muster-agent` for the host `real-NUMBER`, whose listener is at `address`.
    pub(crate) async fn start(
        broker: &Broker,
        pool: &str,
        number: usize,
        address: IpAddr,
        web: &Target,
    ) -> Result<Self> {
        let name = format!("real-{number}");
        let kind = ListenerKind {
            speaks: Speaks::Rdp,
            port: PORT,
        };
        let listener = SessionListener::open(address, kind)?;
        let endpoint = &broker.endpoints.grpc;
        let (way, relay) = relay(address, endpoint).await?;
        let settings = settings(&way.to_string(), address, web);
        let folder: &Path = broker.folder().path();
        let agent = Agent::new(folder, &name, &settings)?.in_own_group();
        if !agent.is_enrolled() {
            let token = broker.token(pool, Some(&name), 1).await?;
            agent.enrol(endpoint, &token).await?;
        }
        let mut process = agent.run()?;
        process.be_quiet();
        Ok(Self {
            name,
            process,
            listener: Some(listener),
            relay,
        })
    }

    /// Kills it with SIGKILL, its listener with it, and says when.
    pub(crate) async fn kill(&mut self) -> Result<u64> {
        let at = now();
        self.process.kill().await?;
        let listener = self.listener.take().context("it was killed before")?;
        listener.close().await;
        Ok(at)
    }

    /// Ends it in an orderly way, if it still runs.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        if self.process.has_ended()?.is_none() {
            self.process.terminate(wait::PATIENCE).await?;
        }
        Ok(())
    }
}

/// Checks of what the swarm controls, so that nothing else of the machine shows. Paced slowly:
/// fifty agents share two processors with all else.
fn settings(broker: &str, address: IpAddr, web: &Target) -> String {
    let url = web.url();
    format!(
        "brokers = [{broker:?}]\n\
         [check.session_listener]\nallow_loopback = true\n\
         listeners = [{{ protocol = \"rdp\", port = {PORT}, address = \"{address}\" }}]\n\
         [check.urls]\nrequired = [{{ url = {url:?}, role = \"diagnostics\" }}]\n\
         [check.metadata_service]\nprovider = \"azure\"\nendpoint = {url:?}\n\
         [check.monitoring_agent]\nprocess = \"muster-swarm\"\n"
    )
}

/// Listens for one agent, and connects from `address` to the broker for it.
async fn relay(address: IpAddr, broker: &str) -> Result<(SocketAddr, JoinHandle<()>)> {
    let broker: SocketAddr = broker.parse()?;
    let listener = TcpListener::bind((address, 0)).await?;
    let way = listener.local_addr()?;
    let task = tokio::spawn(async move {
        // An agent has one connection, and two while it turns to another.
        let mut connections = JoinSet::new();
        while let Ok((agent, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(pass_on(agent, address, broker));
        }
    });
    Ok((way, task))
}

async fn pass_on(mut agent: TcpStream, from: IpAddr, broker: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let mut broker = socket.connect(broker).await?;
    agent.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    copy_bidirectional(&mut agent, &mut broker).await?;
    Ok(())
}
