//! Four hosts that come to show what can become of a host: the real agent, with checks that point
//! at listeners and web servers of this program.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{Confidence, GetHostHistoryRequest, HostStatus, Verdict};
use muster_tests::{
    agent::Agent,
    broker::{Broker, describe},
    process::Process,
    targets::Target,
    wait,
};

use crate::{DEMO_POOL, show::Progress};

/// How long a demo host may take to a state: seconds on an idle machine.
const STATE: Duration = Duration::from_secs(60);

const ASSIST: &str = "demo-assist";
const UPGRADE: &str = "demo-upgrade";
const SHUTDOWN: &str = "demo-shutdown";
const KILLED: &str = "demo-killed";

/// One demo host. Its targets end with it.
struct DemoHost {
    name: &'static str,
    agent: Agent,
    process: Process,
    web: Target,
    _others: [Target; 2],
}

/// All four.
pub(crate) struct Demo {
    hosts: Vec<DemoHost>,
}

impl Demo {
    pub(crate) async fn set_up(broker: &Broker, agents: &Path) -> Result<Self> {
        let mut hosts = Vec::new();
        for name in [ASSIST, UPGRADE, SHUTDOWN, KILLED] {
            hosts.push(DemoHost::start(broker, agents, name).await?);
        }
        Ok(Self { hosts })
    }

    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.hosts.iter().map(|host| host.name).collect()
    }

    /// Leads each host to its state; the upgrade takes `pause` before it fails.
    pub(crate) async fn run(
        &mut self,
        broker: &Broker,
        progress: &Progress,
        pause: Duration,
    ) -> Result<()> {
        for host in &self.hosts {
            let heard = |verdict: &Verdict| verdict.confidence() == Confidence::Confirmed;
            until(broker, host.name, "heard", heard).await?;
            // An announcement of an earlier run stands until it is withdrawn.
            host.agent.announce(&["running"]).await?;
            let connectable = |verdict: &Verdict| verdict.connectable;
            until(broker, host.name, "connectable", connectable).await?;
        }
        progress.detail("all four are connectable");
        self.fail_a_check(broker, progress).await?;
        self.kill(broker, progress).await?;
        self.shut_down(broker, progress).await?;
        self.fail_an_upgrade(broker, progress, pause).await
    }

    async fn fail_a_check(&mut self, broker: &Broker, progress: &Progress) -> Result<()> {
        let host = self.host(ASSIST)?;
        host.web.answer_with(503);
        status(broker, ASSIST, HostStatus::NeedsAssistance).await?;
        progress.detail(&format!(
            "{ASSIST}: a required URL answers 503 -> Needs Assistance, still connectable"
        ));
        Ok(())
    }

    async fn fail_an_upgrade(
        &mut self,
        broker: &Broker,
        progress: &Progress,
        pause: Duration,
    ) -> Result<()> {
        let host = self.host(UPGRADE)?;
        let begin = ["upgrading", "--to", "9.9.9", "--for", "10m"];
        host.agent.announce(&begin).await?;
        status(broker, UPGRADE, HostStatus::Upgrading).await?;
        progress.detail(&format!(
            "{UPGRADE}: `muster-agent announce upgrading` -> Upgrading"
        ));
        tokio::time::sleep(pause).await;
        let error = "the package's signature is not valid";
        host.agent
            .announce(&["upgrade-failed", "--error", error])
            .await?;
        status(broker, UPGRADE, HostStatus::UpgradeFailed).await?;
        progress.detail(&format!(
            "{UPGRADE}: `muster-agent announce upgrade-failed` -> Upgrade Failed, connectable"
        ));
        Ok(())
    }

    async fn shut_down(&mut self, broker: &Broker, progress: &Progress) -> Result<()> {
        let host = self.host(SHUTDOWN)?;
        host.agent
            .announce(&["shutdown", "--kind", "poweroff"])
            .await?;
        status(broker, SHUTDOWN, HostStatus::Shutdown).await?;
        // The machine goes off.
        host.process.terminate(STATE).await?;
        status(broker, SHUTDOWN, HostStatus::Shutdown).await?;
        progress.detail(&format!(
            "{SHUTDOWN}: `muster-agent announce shutdown`, then its agent ends -> Shutdown"
        ));
        Ok(())
    }

    async fn kill(&mut self, broker: &Broker, progress: &Progress) -> Result<()> {
        self.host(KILLED)?.process.kill().await?;
        status(broker, KILLED, HostStatus::Unavailable).await?;
        progress.detail(&format!(
            "{KILLED}: kill -9 of its agent -> Suspect at once, Unavailable when its lease ended"
        ));
        Ok(())
    }

    fn host(&mut self, name: &str) -> Result<&mut DemoHost> {
        let mut hosts = self.hosts.iter_mut();
        hosts
            .find(|host| host.name == name)
            .with_context(|| format!("there is no {name}"))
    }

    /// Ends what still runs.
    pub(crate) async fn stop(&mut self, limit: Duration) -> Result<()> {
        for host in &mut self.hosts {
            if host.process.has_ended()?.is_none() {
                host.process.terminate(limit).await?;
            }
        }
        Ok(())
    }
}

impl DemoHost {
    async fn start(broker: &Broker, agents: &Path, name: &'static str) -> Result<Self> {
        let (listener, metadata) = (Target::listener().await?, Target::web_server().await?);
        let web = Target::web_server().await?;
        let checks = checks(&broker.endpoints.grpc, &listener, &web, &metadata);
        let agent = Agent::new(agents, name, &checks)?.in_own_group();
        if !agent.is_enrolled() {
            let token = broker.token(DEMO_POOL, Some(name), 1).await?;
            agent.enrol(&broker.endpoints.grpc, &token).await?;
        }
        let mut process = agent.run()?;
        process.be_quiet();
        Ok(Self {
            name,
            agent,
            process,
            web,
            _others: [listener, metadata],
        })
    }
}

/// Checks of things that this program controls, every second, so that the demo is quick.
fn checks(broker: &str, listener: &Target, web: &Target, metadata: &Target) -> String {
    let pace = "interval = \"1s\"\nfall = 1\n";
    let listener = listener.as_session_listener();
    let (url, metadata) = (web.url(), metadata.url());
    format!(
        "brokers = [{broker:?}]\n\
         [check.session_listener]\n{pace}{listener}\
         [check.urls]\n{pace}required = [{{ url = {url:?}, role = \"diagnostics\" }}]\n\
         [check.metadata_service]\n{pace}provider = \"azure\"\nendpoint = {metadata:?}\n\
         [check.monitoring_agent]\n{pace}process = \"quickstart\"\n"
    )
}

/// Waits until the host has this status and its journal says so: the answer is computed when asked,
/// the entry is written a moment later.
async fn status(broker: &Broker, name: &str, wanted: HostStatus) -> Result<()> {
    let what = wanted.as_str_name();
    until(broker, name, what, |verdict| verdict.status() == wanted).await?;
    wait::until(
        &format!("the journal of {name} to say {what}"),
        STATE,
        || async move {
            let request = GetHostHistoryRequest {
                name: name.to_owned(),
                limit: 1,
                since: None,
            };
            let history = broker.operator().await?.get_host_history(request).await?;
            let newest = history.into_inner().transitions.pop();
            ensure!(newest.is_some_and(|entry| entry.to() == wanted), "not yet");
            Ok(())
        },
    )
    .await
}

async fn until(
    broker: &Broker,
    name: &str,
    what: &str,
    wanted: impl Fn(&Verdict) -> bool,
) -> Result<()> {
    let wanted = &wanted;
    wait::until(&format!("{name} to be {what}"), STATE, || async move {
        let verdict = broker.verdict(name).await?;
        ensure!(wanted(&verdict), "{}", describe(&verdict));
        Ok(())
    })
    .await
}
