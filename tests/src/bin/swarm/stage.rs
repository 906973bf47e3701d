//! What a script is played on: a broker, all agents, a watching front end.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use muster_tests::{
    binaries,
    broker::{Broker, Folder},
    clients,
    process::Signal,
    targets::Target,
};
use tokio::time::{Instant, sleep};

use crate::{
    beside::memory,
    crew::Crew,
    identities::Identities,
    meter,
    options::Common,
    progress::Progress,
    real::RealAgent,
    report::{Amount, Report, Steady},
    watcher::{Seen, Watch},
    worker::{self, Start, Totals, now},
};

/// Pool of all hosts.
pub(crate) const POOL: &str = "default";

/// Between two looks at how things stand. Each asks every agent.
const LOOK: Duration = Duration::from_millis(100);

/// Beside the time that connecting takes at the pace asked for: a busy machine.
const SLACK: Duration = Duration::from_secs(120);

/// A block of addresses for each run, so that two runs on one machine do not meet: 256 blocks of
/// 16,384 in 127.64.0.0/10.
const BLOCK_BITS: u32 = 14;
const BLOCKS: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);

/// Everything that a script plays with.
pub(crate) struct Stage<'a> {
    pub(crate) common: &'a Common,
    pub(crate) progress: &'a Progress,
    pub(crate) broker: Broker,
    pub(crate) crew: Crew,
    pub(crate) watch: Watch,
    pub(crate) real: Vec<RealAgent>,
    /// Address of agent 0; the others follow.
    pub(crate) addresses: Ipv4Addr,
    pub(crate) report: Report,
    /// Light agents that were not harmed.
    pub(crate) alive: usize,
    /// Hosts that were not harmed.
    pub(crate) hosts: usize,
    _web: Target,
}

impl<'a> Stage<'a> {
    /// Starts everything and waits until the front end sees all hosts Confirmed.
    pub(crate) async fn set_up(
        common: &'a Common,
        mut report: Report,
        progress: &'a Progress,
    ) -> Result<Self> {
        build(common, progress)?;
        let empty = empty_broker(common).await?;
        let mut broker = start_broker(common).await?;
        broker.process.be_quiet();
        if common.probe {
            set_probe(&broker, common).await?;
        }
        let identities = Identities::in_folder(broker.folder().path());
        let begun = Instant::now();
        let count = identities
            .enrol(&broker, POOL, common.agents, progress)
            .await?;
        if count > 0 {
            let seconds = begun.elapsed().as_secs_f64();
            progress.say(&format!("{count} hosts enrolled"));
            report.enrolled = Some(Amount { count, seconds });
        }

        let mut crew = Crew::new(common.agents, common.listeners.is_some(), common.processes)?;
        report.processes = crew.processes();
        let addresses = block_of_addresses();
        let web = Target::web_server().await?;
        let mut real = Vec::new();
        for number in 0..common.real {
            let address = worker::address(addresses, common.agents + number)?;
            real.push(RealAgent::start(&broker, POOL, number, address, &web).await?);
            progress.bar(
                "real agents started",
                as_u64(real.len()),
                as_u64(common.real),
            );
        }
        let begun = Instant::now();
        crew.start(&Start {
            identities: identities.file().to_owned(),
            first: 0,
            end: common.agents,
            endpoint: broker.endpoints.grpc.clone(),
            per_second: common.per_second,
            addresses,
            listeners: common.listeners,
            ssh: common.ssh,
        })
        .await?;
        let front_end = clients::issue(&broker, "frontend", "swarm").await?;
        let mut stage = Self {
            common,
            progress,
            watch: Watch::start(front_end),
            broker,
            crew,
            real,
            addresses,
            report,
            alive: common.agents,
            hosts: common.hosts(),
            _web: web,
        };
        // Of an earlier, larger run: nobody speaks for them.
        for number in common.agents..identities.len()? {
            let name = Identities::name(number);
            stage.watch.seen().will_be_harmed(&name);
        }
        stage.connected(begun).await?;
        stage.measure_memory(empty)?;
        stage.watch.seen().judge();
        if !common.steady.0.is_zero() {
            stage.steady(common.steady.0).await?;
        }
        Ok(stage)
    }

    async fn connected(&mut self, begun: Instant) -> Result<()> {
        let limit = connect_limit(self.common, self.alive)?;
        let (alive, hosts) = (as_u64(self.alive), self.hosts);
        self.until("connected", limit, |totals, seen| {
            (totals.reported == alive && seen.confirmed() == hosts).then_some(())
        })
        .await?
        .with_context(|| format!("not all agents were connected within {limit:?}"))?;
        let seconds = begun.elapsed().as_secs_f64();
        self.progress
            .say(&format!("{hosts} hosts connected and Confirmed"));
        self.report.connected = Some(Amount {
            count: hosts,
            seconds,
        });
        Ok(())
    }

    fn measure_memory(&mut self, empty_kib: u64) -> Result<()> {
        let used = meter::usage(self.broker_id()?)?;
        self.report.memory = Some(memory(used, empty_kib, self.hosts)?);
        Ok(())
    }

    /// Looks again and again until `done` gives something; none if it never did within `limit`.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Totals, &Seen) -> Option<T>,
    ) -> Result<Option<T>> {
        let begun = Instant::now();
        loop {
            let totals = self.crew.totals().await?;
            let confirmed = {
                let seen = self.watch.seen();
                if let Some(found) = done(&totals, &seen) {
                    return Ok(Some(found));
                }
                seen.confirmed()
            };
            if begun.elapsed() >= limit {
                let why = totals.refusals.join("; ");
                self.progress
                    .say(&format!("{what}: given up after {limit:?} {why}"));
                return Ok(None);
            }
            let shown = format!("{what}; {confirmed} Confirmed, {} beats", totals.beats);
            self.progress.bar(&shown, totals.reported, totals.agents);
            sleep(LOOK).await;
        }
    }

    /// Lets a time pass.
    pub(crate) async fn pause(&mut self, what: &str, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let reached = |_: &Totals, _: &Seen| (Instant::now() >= end).then_some(());
        self.until(what, time + SLACK, reached).await?;
        Ok(())
    }

    /// Measures what beats cost for a time.
    pub(crate) async fn steady(&mut self, length: Duration) -> Result<()> {
        let broker = self.broker_id()?;
        let begun = Instant::now();
        let (server, swarm) = (meter::cpu(broker)?, self.crew.usage()?.cpu);
        let before = self.crew.totals().await?.beats;
        self.progress.pass("steady", length).await;
        let beats = self.crew.totals().await?.beats - before;
        let server = meter::cpu(broker)? - server;
        let swarm = self.crew.usage()?.cpu - swarm;
        let seconds = begun.elapsed().as_secs_f64();
        self.report.steady = Some(Steady::of(beats, seconds, server, swarm));
        Ok(())
    }

    /// The broker's process id.
    pub(crate) fn broker_id(&self) -> Result<u32> {
        self.broker.process.id().context("the broker has ended")
    }

    /// Kills the broker and starts it again after `away`; gives when it was killed and when it was
    /// back.
    pub(crate) async fn restart_broker(&mut self, away: Duration) -> Result<(u64, u64)> {
        let killed = now();
        self.broker.process.signal(Signal::KILL)?;
        self.broker.process.ended(SLACK).await?;
        sleep(away).await;
        self.broker.start_again().await?;
        self.broker.process.be_quiet();
        Ok((killed, now()))
    }

    /// Takes everything down and gives the report.
    pub(crate) async fn take_down(mut self) -> Result<Report> {
        {
            let seen = self.watch.seen();
            let report = &mut self.report;
            report.false_unavailable = seen.false_unavailable.len();
            report.false_not_connectable = seen.false_not_connectable.len();
            report.examples.clone_from(&seen.examples);
            report.longest_watch_silence_ms = seen.longest_silence / 1_000_000;
            if report.false_not_connectable + report.false_unavailable > 0 {
                report.fail("hosts that nobody harmed were told lost");
            }
        }
        self.progress.say("ending");
        self.crew.clear().await?;
        for agent in &mut self.real {
            agent.stop().await?;
        }
        let log = self.broker.process.log().unwrap_or_default();
        // What was measured is told, whatever the end.
        if let Err(error) = self.broker.stop().await {
            let why = format!("the broker did not end as it must: {error:#}");
            self.report.fail(why);
        }
        if log.contains("panicked") {
            bail!("something panicked in the broker: {}", tail(&log));
        }
        Ok(self.report)
    }
}

fn tail(log: &str) -> String {
    let panicked = log.lines().filter(|line| line.contains("panicked"));
    panicked.take(3).collect::<Vec<_>>().join("\n")
}

/// A count as it is shown.
pub(crate) fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// How long it may take until so many agents are connected.
pub(crate) fn connect_limit(common: &Common, agents: usize) -> Result<Duration> {
    let pace = f64::from(common.per_second.max(1));
    let agents = f64::from(u32::try_from(agents)?);
    Ok(Duration::from_secs_f64(agents / pace) + SLACK)
}

/// The first address of a block at random.
pub(crate) fn block_of_addresses() -> Ipv4Addr {
    let block = u32::from(rand::random::<u8>()) << BLOCK_BITS;
    Ipv4Addr::from_bits(BLOCKS.to_bits() | block)
}

pub(crate) fn build(common: &Common, progress: &Progress) -> Result<()> {
    match &common.broker {
        Some(broker) => ensure!(broker.is_file(), "{} is no file", broker.display()),
        None => {
            progress.say("building muster-broker and muster-agent");
            binaries::fresh()?;
        }
    }
    Ok(())
}

async fn start_broker(common: &Common) -> Result<Broker> {
    let folder = match &common.keep {
        Some(path) => Folder::kept(path)?,
        None => Folder::temporary()?,
    };
    start_in(common, folder).await
}

pub(crate) async fn start_in(common: &Common, folder: Folder) -> Result<Broker> {
    let folder = folder.in_own_group().with_broker(common.broker.as_deref());
    let [a, b, c]: [u8; 3] = rand::random();
    // An address of its own, outside of the agents', so that its ports are free when it starts again.
    let address = format!("127.{}.{b}.{}:0", a % 64, c.clamp(2, 253));
    Broker::start_in(folder, common.settings(), &address).await
}

/// Resident memory of a broker without hosts, KiB.
pub(crate) async fn empty_broker(common: &Common) -> Result<u64> {
    let mut broker = start_in(common, Folder::temporary()?).await?;
    broker.process.be_quiet();
    let id = broker.process.id().context("the broker has ended")?;
    let used = meter::usage(id)?;
    broker.stop().await?;
    Ok(used.rss_kib)
}

/// Lets the broker probe the listeners of the swarm, which are on loopback.
async fn set_probe(broker: &Broker, common: &Common) -> Result<()> {
    let port = common.listeners.unwrap_or(3389);
    let policy =
        format!("[probe]\nenabled = true\nnetworks = [\"127.0.0.0/8\"]\nports = [{port}, 3389]\n");
    let file = broker.folder().path().join("pool.toml");
    std::fs::write(&file, policy)?;
    let file = file.to_str().context("the folder's name is not text")?;
    let output = broker.cli(&["pool", "set", POOL, file]).await?;
    ensure!(
        output.code == Some(0),
        "cannot set the policy: {}",
        output.stderr
    );
    Ok(())
}
