//! The broker beside a bare stream server: processor time of a beat and memory of an agent, at
//! several sizes of the fleet, in one run.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_core::model::TrustDomain;
use muster_runtime::identity::from_certificate;
use muster_tests::broker::{Broker, Folder};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    bare::BareServer,
    crew::Crew,
    identities::Identities,
    meter::{self, Usage},
    options::{Beside, Common},
    progress::Progress,
    report::{Compared, Cost, Memory, Report, Steady},
    stage::{self, POOL, as_u64, start_in},
    worker::Start,
};

/// Budgets: what the broker may cost beside the bare server, and an agent's memory.
const CPU_RATIO: f64 = 1.3;
const AGENT_KIB: f64 = 56.0;

/// Between connecting and measuring: reports are written, handshakes' memory is given back.
const REST: Duration = Duration::from_secs(3);
/// After a restart's window, which goes on for a while when the last host has arrived.
const WINDOW_ENDS: Duration = Duration::from_secs(12);

/// Between two looks at how many are connected.
const LOOK: Duration = Duration::from_millis(100);

struct Run<'a> {
    script: &'a Beside,
    common: &'a Common,
    progress: &'a Progress,
    identities: Identities,
    addresses: Ipv4Addr,
}

/// A server to be measured.
struct Server<'a> {
    name: &'static str,
    id: u32,
    endpoint: &'a str,
    /// Resident memory without agents.
    empty_kib: u64,
    /// Nothing is measured before.
    rest_until: Instant,
}

/// Measures all sizes.
pub(crate) async fn run(
    script: &Beside,
    mut report: Report,
    progress: &Progress,
) -> Result<Report> {
    let common = &script.common;
    stage::build(common, progress)?;
    let mut broker = start_in(common, Folder::temporary()?).await?;
    broker.process.be_quiet();
    let run = Run {
        script,
        common,
        progress,
        identities: Identities::in_folder(broker.folder().path()),
        addresses: stage::block_of_addresses(),
    };
    let mut sizes = script.sizes.clone();
    // The fleet only grows: hosts that are enrolled and not connected would count as memory.
    sizes.sort_unstable();
    for size in sizes {
        let compared = run.size(size, &mut broker).await?;
        judge(&compared, &mut report);
        report.compared.push(compared);
    }
    broker.stop().await?;
    report.agents = report.compared.last().map_or(0, |last| last.agents);
    Ok(report)
}

fn judge(compared: &Compared, report: &mut Report) {
    let Compared {
        agents, cpu_ratio, ..
    } = compared;
    if *cpu_ratio > CPU_RATIO {
        report.fail(format!(
            "{agents} agents: a beat takes {cpu_ratio:.2} of the bare server's processor time, budget {CPU_RATIO}"
        ));
    }
    let kib = compared.broker_kib;
    if kib > AGENT_KIB {
        report.fail(format!(
            "{agents} agents: {kib:.1} KiB each, budget {AGENT_KIB}"
        ));
    }
}

impl Run<'_> {
    async fn size(&self, size: usize, broker: &mut Broker) -> Result<Compared> {
        self.identities
            .enrol(broker, POOL, size, self.progress)
            .await?;
        let empty = stage::empty_broker(self.common).await?;
        let mut costs = Vec::new();
        for _ in 0..self.script.rounds.max(1) {
            // Anew, so that nothing of the enrolment and of the round before is in its memory.
            broker.stop().await?;
            broker.start_again().await?;
            broker.process.be_quiet();
            let id = broker.process.id().context("the broker has ended")?;
            let endpoint = broker.endpoints.grpc.clone();
            // A broker that waits for hosts after its start is busier than one that has them.
            let rest_until = Instant::now() + self.common.restart_window() + WINDOW_ENDS;
            let server = Server {
                name: "broker",
                id,
                endpoint: &endpoint,
                empty_kib: empty,
                rest_until,
            };
            costs.push(self.one(server, size).await?);
            broker.stop().await?;

            let bare = self.bare(broker).await?;
            let id = bare.id()?;
            let server = Server {
                name: "bare",
                id,
                endpoint: &bare.endpoint,
                empty_kib: meter::usage(id)?.rss_kib,
                rest_until: Instant::now(),
            };
            costs.push(self.one(server, size).await?);
            bare.stop().await?;
            broker.start_again().await?;
            broker.process.be_quiet();
        }
        Ok(Compared::of(size, costs))
    }

    async fn bare(&self, broker: &Broker) -> Result<BareServer> {
        let settings = self.common.settings();
        let data = broker.folder().data();
        let domain = self.trust_domain(&broker.endpoints.grpc)?;
        BareServer::start(data, &domain, settings.interval, settings.lease()).await
    }

    fn trust_domain(&self, endpoint: &str) -> Result<TrustDomain> {
        let first = self.identities.load(0..1, endpoint)?;
        let certificate = first.first().and_then(|first| first.certificates.first());
        let certificate = certificate.context("no identities")?;
        Ok(from_certificate(certificate)?.identity.trust_domain)
    }

    /// Connects agents to a server, and measures it.
    async fn one(&self, server: Server<'_>, agents: usize) -> Result<Cost> {
        let Server { name, id, .. } = server;
        self.progress.say(&format!("{name}, {agents} agents"));
        let common = self.common;
        let mut crew = Crew::new(agents, false, common.processes)?;
        crew.start(&Start {
            identities: self.identities.file().to_owned(),
            first: 0,
            end: agents,
            endpoint: server.endpoint.to_owned(),
            per_second: common.per_second,
            addresses: self.addresses,
            listeners: None,
            ssh: false,
        })
        .await?;
        let begun = Instant::now();
        loop {
            let totals = crew.totals().await?;
            self.progress
                .bar("connected", totals.reported, as_u64(agents));
            if totals.reported == as_u64(agents) {
                break;
            }
            let limit = stage::connect_limit(common, agents)?;
            ensure!(
                begun.elapsed() < limit,
                "not connected: {:?}",
                totals.refusals
            );
            sleep(LOOK).await;
        }
        sleep_until(server.rest_until.max(Instant::now() + REST)).await;
        let (used, swarm) = (meter::usage(id)?, crew.usage()?.cpu);
        let (before, begun) = (crew.totals().await?.beats, Instant::now());
        self.progress.pass("steady", self.script.length.0).await;
        let beats = crew.totals().await?.beats - before;
        let seconds = begun.elapsed().as_secs_f64();
        let cpu = meter::cpu(id)? - used.cpu;
        let swarm = crew.usage()?.cpu - swarm;
        crew.clear().await?;
        Ok(Cost {
            server: name.to_owned(),
            steady: Steady::of(beats, seconds, cpu, swarm),
            memory: memory(used, server.empty_kib, agents)?,
        })
    }
}

/// The memory of a server that has these agents.
pub(crate) fn memory(used: Usage, empty_kib: u64, agents: usize) -> Result<Memory> {
    let agents = f64::from(u32::try_from(agents)?.max(1));
    let grown = f64::from(u32::try_from(used.rss_kib.saturating_sub(empty_kib))?);
    Ok(Memory {
        empty_kib,
        connected_kib: used.rss_kib,
        connected_pss_kib: used.pss_kib,
        per_agent_kib: grown / agents,
    })
}
