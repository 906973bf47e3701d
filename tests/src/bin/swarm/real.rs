//! Real agents beside the light ones, each with a session listener that ends with it.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result};
use muster_tests::{
    agent::Agent,
    broker::Broker,
    fleet::{ListenerKind, SessionListener, Speaks},
    process::Process,
    targets::Target,
    wait,
};

use crate::worker::now;

/// Port of the session listeners where the light agents have none.
const PORT: u16 = 3389;

/// One real agent with what it checks.
pub(crate) struct RealAgent {
    pub(crate) name: String,
    process: Process,
    listener: Option<SessionListener>,
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
        let settings = settings(endpoint, address, web);
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
