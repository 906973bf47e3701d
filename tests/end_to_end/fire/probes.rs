//! The broker's own look at a host that fell silent: machines that die, and ways to healthy ones
//! that make a look worthless.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use jiff::Timestamp;
use muster_proto::v1::{Confidence, Verdict};
use muster_tests::{
    apart::{self, Machine},
    broker::{Broker, Folder, describe},
    fleet::{LightAgent, ListenerKind, SessionListener, Speaks, Traits},
    relay::Relay,
};

use super::{
    Block, Desk, Judge, PORT, age, calibrated, evidence, is_lost, judge::as_of, let_probe, light,
    lights, long_lease, with_listener,
};
use crate::support::has_reason;

/// Long enough for a look, a second one after half a second, and what follows from them.
const LOOKED_AT: Duration = Duration::from_millis(2500);

/// Told long before its lease was over, for what the broker saw.
fn was_found_dead(lost: &Verdict, target: &str, died: Timestamp, lease: Duration) -> Result<()> {
    let after = Duration::try_from(as_of(lost)?.duration_since(died))?;
    println!("{} was found dead after {after:?}", lost.name);
    ensure!(
        has_reason(lost, "PROBE_REFUSED") && after < lease,
        "{after:?}: {}",
        describe(lost)
    );
    let seen = evidence(lost, "PROBE_REFUSED")?;
    for word in [
        format!("{target} answered the broker at "),
        format!("{target} refused the broker at "),
        "and again at ".to_owned(),
    ] {
        ensure!(seen.contains(&word), "{word:?} in {seen}");
    }
    Ok(())
}

#[tokio::test]
async fn a_machine_that_dies_is_found_dead_long_before_its_lease_is_over() -> Result<()> {
    let broker = Broker::start_with(long_lease()).await?;
    let lease = broker.settings.lease();
    let block = Block::new();
    let mut agents = lights(&broker, "default", "host", &block, 5).await?;
    let Desk {
        mut process,
        listener,
        ..
    } = Desk::start(&broker, "desk-1").await?;
    let ports = format!("{PORT}, {}", listener.address.port());
    let_probe(&broker, "default", "\"127.0.0.0/8\"", &ports).await?;
    calibrated(&broker, 6).await?;
    let judge = Judge::start(&broker).await?;

    let died = Timestamp::now();
    judge.harm("host-1");
    agents.remove(0).kill().await;
    let lost = judge.told("host-1", "found dead", is_lost).await?;
    was_found_dead(&lost, &format!("{}:{PORT}", block.address(1)), died, lease)?;

    let died = Timestamp::now();
    judge.harm("desk-1");
    let target = listener.address.to_string();
    drop(listener);
    process.kill().await?;
    let lost = judge.told("desk-1", "found dead", is_lost).await?;
    was_found_dead(&lost, &target, died, lease)?;

    // A host that only lost its stream comes back, and nobody notices.
    agents[0].break_stream().await?;
    ensure!(
        broker
            .metric("muster_probes_total{outcome=\"refused\"} ")
            .await?
            >= 4
    );
    judge.verdict().await
}

fn here(last: u8) -> IpAddr {
    [10, 77, 0, last].into()
}

fn elsewhere(last: u8) -> IpAddr {
    [192, 168, 7, last].into()
}

/// Somebody else's listener at an address that the broker might take for a host's.
fn trap(last: u8) -> Result<SessionListener> {
    let kind = ListenerKind {
        speaks: Speaks::Ssh,
        port: PORT,
    };
    SessionListener::open(here(last), kind)
}

#[test]
fn no_way_that_only_looks_like_the_host_convicts_a_healthy_one() -> Result<()> {
    let name = "no_way_that_only_looks_like_the_host_convicts_a_healthy_one";
    apart::run(module_path!(), name, healthy_hosts_on_odd_ways())
}

/// A host that connects from an address, names another as its own, and listens at neither.
fn named(address: IpAddr, named: IpAddr) -> Traits {
    Traits {
        named: Some(named),
        closed: true,
        ..with_listener(address)
    }
}

/// A broker on a machine of its own, and odd ways to it.
struct OddWays {
    broker: Broker,
    relay: Relay,
    port: String,
    always: Vec<(&'static str, String)>,
    /// Listeners of others at addresses that the broker might take for a host's.
    traps: Vec<SessionListener>,
}

impl OddWays {
    async fn new() -> Result<Self> {
        apart::switch().await?;
        for last in [22, 23, 24, 26, 27, 28, 29, 99] {
            apart::sh(&format!("ip addr add 10.77.0.{last}/24 dev switch")).await?;
        }
        let machine = Machine::on_switch("broker", 2).await?;
        let folder = Folder::temporary()?.on_machine(&machine);
        // On both families, so that peers over IPv4 are seen as mapped addresses.
        let mut broker = Broker::start_at(folder, long_lease(), "[::]:0", "127.0.0.1:0").await?;
        let (_, port) = broker.endpoints.grpc.rsplit_once(':').unwrap_or_default();
        let (port, at) = (port.to_owned(), machine.address);
        broker.endpoints.grpc = format!("{at}:{port}");
        let translated = format!(
            "ip saddr {} tcp dport {port} snat to {}",
            here(22),
            here(99)
        );
        let walled = here(27);
        let walled =
            format!("ip saddr {at} ip daddr {walled} tcp dport {PORT} reject with tcp reset");
        let ways = Self {
            relay: Relay::start(here(1), &broker.endpoints.grpc).await?,
            broker,
            port,
            always: vec![("leaving", translated), ("in", walled)],
            traps: vec![trap(99)?, trap(1)?],
        };
        ways.heal().await?;
        Ok(ways)
    }

    async fn heal(&self) -> Result<()> {
        self.relay.go_on();
        let rules = self.always.iter().map(|(at, rule)| (*at, rule.as_str()));
        apart::rules(&rules.collect::<Vec<_>>()).await
    }

    /// Nobody on an odd way can be heard.
    async fn cut(&self) -> Result<()> {
        let mut rules = self.always.clone();
        for last in [22, 23, 24, 26, 27, 28] {
            let (from, port) = (here(last), &self.port);
            rules.push(("out", format!("ip saddr {from} tcp dport {port} drop")));
        }
        self.relay.stand_still();
        let rules = rules.iter().map(|(at, rule)| (*at, rule.as_str()));
        apart::rules(&rules.collect::<Vec<_>>()).await
    }

    /// One that comes through a balancer.
    async fn balanced(&self) -> Result<LightAgent> {
        let token = self.broker.token("default", Some("balanced"), 1).await?;
        let mut enrolled = self.broker.way_in().enrol(&token, "balanced").await?;
        enrolled.endpoint = self.relay.address.to_string();
        let agent = LightAgent::start_with(enrolled, named(here(1), elsewhere(25)))?;
        agent.reported().await?;
        Ok(agent)
    }
}

async fn healthy_hosts_on_odd_ways() -> Result<()> {
    let mut ways = OddWays::new().await?;
    let broker = &ways.broker;
    let_probe(broker, "default", "\"10.77.0.0/24\"", &PORT.to_string()).await?;
    // Enough others that those who fall silent are no mass.
    let mut steady = Vec::new();
    for number in 0..8 {
        let name = format!("steady-{number}");
        steady.push(light(broker, "default", &name, Traits::default()).await?);
    }
    let mut odd = vec![ways.balanced().await?];
    for (name, traits) in [
        ("twin-1", with_listener(here(23))),
        ("twin-2", named(here(24), here(23))),
        ("nat", named(here(22), elsewhere(22))),
        ("uncalibrated", named(here(28), here(28))),
        ("walled", with_listener(here(27))),
        ("mapped", with_listener(here(26))),
    ] {
        odd.push(light(broker, "default", name, traits).await?);
    }
    let plain = light(broker, "default", "plain", with_listener(here(29))).await?;
    // Only the last two are at an address of their own, where the broker reaches them.
    calibrated(broker, 2).await?;
    let judge = Judge::start(broker).await?;

    // All are well and cannot be heard, and whatever answered for them stops.
    ways.cut().await?;
    for trap in ways.traps.drain(..) {
        trap.close().await;
    }
    odd[1].close_listener().await;
    for agent in &odd {
        let long_silent = |verdict: &Verdict| age(verdict).is_ok_and(|age| age > LOOKED_AT);
        let verdict = ways
            .broker
            .verdict_until(&agent.name, "long silent", long_silent)
            .await?;
        ensure!(
            verdict.connectable_new && verdict.confidence() == Confidence::Suspect,
            "{}",
            describe(&verdict)
        );
    }
    // And the broker does look: who is dead is found dead.
    let died = Timestamp::now();
    judge.harm("plain");
    plain.kill().await;
    let lost = judge.told("plain", "found dead", is_lost).await?;
    let target = format!("{}:{PORT}", here(29));
    was_found_dead(&lost, &target, died, ways.broker.settings.lease())?;

    ways.heal().await?;
    for agent in &odd {
        let heard = |verdict: &Verdict| verdict.confidence() == Confidence::Confirmed;
        ways.broker
            .verdict_until(&agent.name, "heard again", heard)
            .await?;
    }
    judge.verdict().await
}
