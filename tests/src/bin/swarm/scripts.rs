//! What is done to broker and agents, and what must come of it.

use std::time::Duration;

use anyhow::Result;
use muster_tests::process::Signal;
use tokio::time::{Instant, sleep_until};

use crate::{
    identities::Identities,
    network,
    options::{self, Script},
    questions,
    report::{Harmed, Latency, Return},
    stage::{Stage, as_u64},
    worker::{self, Order, now},
};

/// A lease's end may be told this much later: the broker's clock ticks each second.
const TICK: Duration = Duration::from_secs(1);

/// Beyond what must hold, before a wait is given up: so that it shows how late something came.
const LATE: Duration = Duration::from_secs(30);

/// The most that a mass loss is held in any hour.
const HOLD: Duration = Duration::from_secs(600);

/// Plays a script.
pub(crate) async fn play(script: &Script, stage: &mut Stage<'_>) -> Result<()> {
    match script {
        Script::Steady(script) => stage.steady(script.length.0).await,
        Script::Storm(script) => storm(script, stage).await,
        Script::Kill(script) => harm(script, stage, Way::Kill).await,
        Script::BlackHole(script) => {
            let way = if script.drop {
                Way::Swallow
            } else {
                Way::Freeze
            };
            harm(&script.harm, stage, way).await
        }
        Script::Stop(script) => stop(script, stage).await,
        Script::Reconnect(script) => reconnect(script, stage).await,
        Script::CrashLoop(script) => crash_loop(script, stage).await,
        Script::Questions(script) => questions::run(script, stage).await,
        // Played without a stage.
        Script::Beside(_) | Script::Worker | Script::Bare(_) => Ok(()),
    }
}

/// A host that was harmed, and when.
struct Victim {
    name: String,
    at: u64,
}

/// How a light agent is harmed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its sockets close.
    Kill,
    /// It hangs.
    Freeze,
    /// Its packets are lost.
    Swallow,
}

impl Way {
    fn what(self) -> &'static str {
        match self {
            Self::Kill => "killed",
            Self::Freeze => "hanging",
            Self::Swallow => "packets lost",
        }
    }
}

/// Harms hosts at a pace, and waits until the front end was told of each.
async fn harm(script: &options::Harm, stage: &mut Stage<'_>, way: Way) -> Result<()> {
    let what = way.what();
    let lease = script.common.settings().lease();
    warn_of_mass_loss(script, stage);
    let pause = Duration::from_secs(60) / script.per_minute.max(1);
    let mut victims = Vec::new();
    let mut next = Instant::now();
    // Real agents are killed by SIGKILL; they do not fall silent.
    let real = if what == "killed" {
        stage.real.len()
    } else {
        0
    };
    for number in 0..script.count.min(real + stage.alive) {
        sleep_until(next).await;
        next += pause;
        let victim = if number < real {
            harm_real(stage, number).await?
        } else {
            // From the end, so that the first hosts are there for whoever looks.
            let number = script.common.agents - 1 - (number - real);
            harm_light(stage, number, way).await?
        };
        victims.push(victim);
        stage
            .progress
            .bar(what, as_u64(victims.len()), as_u64(script.count));
    }
    let limit = lease + TICK;
    let harmed = told(stage, what, &victims, 0, limit).await?;
    if let (Some(p99), Some(told)) = (script.told_p99, harmed.told)
        && told.p99_ms > p99.0.as_secs_f64() * 1e3
    {
        let why = format!("{what}: told after {} ms (p99), wanted {p99}", told.p99_ms);
        stage.report.fail(why);
    }
    stage.report.harmed.push(harmed);
    Ok(())
}

fn warn_of_mass_loss(script: &options::Harm, stage: &Stage<'_>) {
    let lease = script.common.settings().lease().as_secs_f64();
    let in_lease = f64::from(script.per_minute) / 60.0 * lease;
    let hosts = f64::from(u32::try_from(script.common.hosts()).unwrap_or(u32::MAX));
    let share = if hosts < 100.0 { 0.55 } else { 0.15 };
    if in_lease >= 3.0 && in_lease >= hosts * share {
        stage.progress.say(&format!(
            "{in_lease:.0} of {hosts} hosts within one lease are a mass loss: some will be held"
        ));
    }
}

async fn harm_real(stage: &mut Stage<'_>, number: usize) -> Result<Victim> {
    let name = stage.real[number].name.clone();
    stage.watch.seen().will_be_harmed(&name);
    stage.hosts -= 1;
    let at = stage.real[number].kill().await?;
    Ok(Victim { name, at })
}

async fn harm_light(stage: &mut Stage<'_>, number: usize, way: Way) -> Result<Victim> {
    let name = Identities::name(number);
    stage.watch.seen().will_be_harmed(&name);
    stage.hosts -= 1;
    stage.alive -= 1;
    let at = match way {
        Way::Kill => stage.crew.harm(number, Order::Kill).await?,
        Way::Freeze => stage.crew.harm(number, Order::Freeze).await?,
        Way::Swallow => {
            let (at, address) = (now(), worker::address(stage.addresses, number)?);
            network::swallow(address)?;
            at
        }
    };
    Ok(Victim { name, at })
}

/// Waits until the front end was told of all victims. Times count from their harm, or from `since`
/// if that was later.
async fn told(
    stage: &mut Stage<'_>,
    what: &str,
    victims: &[Victim],
    since: u64,
    limit: Duration,
) -> Result<Harmed> {
    let waiting = format!("{what}, waiting until the front end is told");
    stage
        .until(&waiting, limit + LATE, |_, seen| {
            let all = victims
                .iter()
                .all(|victim| seen.told(&victim.name).is_some());
            all.then_some(())
        })
        .await?;
    let mut harmed = Harmed {
        what: what.to_owned(),
        count: victims.len(),
        ..Harmed::default()
    };
    let mut times = Vec::new();
    for victim in victims {
        match stage.watch.seen().told(&victim.name) {
            Some(told) => {
                let from = victim.at.max(since);
                times.push(Duration::from_nanos(told.saturating_sub(from)));
            }
            None => harmed.untold.push(victim.name.clone()),
        }
    }
    if !harmed.untold.is_empty() {
        stage.report.fail(format!(
            "{what}: the front end was never told of some hosts"
        ));
    }
    if let Some(late) = times.iter().max().filter(|late| **late > limit) {
        stage
            .report
            .fail(format!("{what}: told after {late:?}, wanted {limit:?}"));
    }
    harmed.told = Latency::of(times);
    Ok(harmed)
}

/// Waits until all agents and then the front end see everything as it was, and notes it.
async fn all_back(
    stage: &mut Stage<'_>,
    mut back: Return,
    since: u64,
    within: Duration,
    sessions: u64,
    snapshots: u64,
) -> Result<()> {
    let (alive, hosts) = (as_u64(stage.alive), stage.hosts);
    let waiting = format!("{}, coming back", back.what);
    let after = |at: u64| at.saturating_sub(since) / 1_000_000;
    let mut agents = None;
    let confirmed = stage
        .until(&waiting, within + LATE, |totals, seen| {
            if agents.is_none() && totals.reported == alive && totals.sessions >= sessions {
                agents = Some(after(totals.last_reported));
            }
            let all = seen.snapshots >= snapshots && seen.confirmed() >= hosts;
            (agents.is_some() && all).then(now)
        })
        .await?;
    back.agents_back_ms = agents;
    back.confirmed_ms = confirmed.map(after);
    let limit = u64::try_from(within.as_millis())?;
    match back.confirmed_ms {
        Some(millis) if millis <= limit => {}
        Some(millis) => {
            let why = format!(
                "{}: all Confirmed after {millis} ms, wanted {within:?}",
                back.what
            );
            stage.report.fail(why);
        }
        None => stage
            .report
            .fail(format!("{}: not all came back", back.what)),
    }
    stage.report.returns.push(back);
    Ok(())
}

async fn storm(script: &options::Storm, stage: &mut Stage<'_>) -> Result<()> {
    for _ in 0..script.times {
        let before = stage.crew.totals().await?.sessions;
        let since = now();
        stage.crew.break_all().await?;
        let back = Return {
            what: "storm".to_owned(),
            ..Return::default()
        };
        let sessions = before + as_u64(stage.alive);
        all_back(stage, back, since, script.within.0, sessions, 0).await?;
        let lease = script.common.settings().lease();
        stage.pause("a lease after the storm", lease + TICK).await?;
    }
    Ok(())
}

async fn stop(script: &options::Stop, stage: &mut Stage<'_>) -> Result<()> {
    let lease = script.common.settings().lease();
    for length in &script.lengths {
        let what = format!("stop {length}");
        let since = now();
        stage.broker.process.signal(Signal::STOP)?;
        stage.pause(&what, length.0 / 2).await?;
        let mut victims = Vec::new();
        for _ in 0..script.kill.min(stage.alive) {
            victims.push(harm_light(stage, stage.alive - 1, Way::Kill).await?);
        }
        stage.pause(&what, length.0 / 2).await?;
        stage.broker.process.signal(Signal::CONT)?;
        let woken = now();
        let back = Return {
            what: what.clone(),
            broker_away_ms: (woken - since) / 1_000_000,
            ..Return::default()
        };
        let within = script.common.restart_window();
        all_back(stage, back, woken, within, 0, 0).await?;
        let harmed = told(stage, &what, &victims, woken, lease + TICK).await?;
        if harmed.count > 0 {
            stage.report.harmed.push(harmed);
        }
        stage
            .pause("the window after the stop", script.common.restart_window())
            .await?;
    }
    Ok(())
}

async fn reconnect(script: &options::Reconnect, stage: &mut Stage<'_>) -> Result<()> {
    for _ in 0..script.times {
        let sessions = stage.crew.totals().await?.sessions + as_u64(stage.alive);
        let snapshots = stage.watch.seen().snapshots + 1;
        let (killed, started) = stage.restart_broker(script.away.0).await?;
        let back = Return {
            what: "broker killed".to_owned(),
            broker_away_ms: (started - killed) / 1_000_000,
            ..Return::default()
        };
        all_back(stage, back, started, script.within.0, sessions, snapshots).await?;
        // Those who are missing are given up at the end of the window.
        let window = script.common.restart_window();
        stage
            .pause("the window after the restart", window + TICK)
            .await?;
    }
    Ok(())
}

async fn crash_loop(script: &options::CrashLoop, stage: &mut Stage<'_>) -> Result<()> {
    let common = &script.common;
    let limit = script
        .within
        .map_or(common.restart_window() + HOLD, |within| within.0);
    stage.restart_broker(Duration::ZERO).await?;
    let victim = harm_light(stage, stage.alive - 1, Way::Kill).await?;
    let name = victim.name.clone();
    let mut crashes = 0;
    let begun = Instant::now();
    while begun.elapsed() < limit + LATE {
        let what = format!("crash loop, {crashes} crashes, waiting for {name} to be told lost");
        let told = |_: &_, seen: &crate::watcher::Seen| seen.told(&name).map(drop);
        if stage.until(&what, script.every.0, told).await?.is_some() {
            break;
        }
        stage.restart_broker(Duration::ZERO).await?;
        crashes += 1;
    }
    let what = format!("beside {crashes} crashes");
    let harmed = told(stage, &what, &[victim], 0, limit).await?;
    stage.report.harmed.push(harmed);
    Ok(())
}
