//! `muster-broker status`, `hold end` and `trust`: the broker's own state, and words on it.

use jiff::Timestamp;
use muster_core::model::Status;
use muster_proto::{
    border::{self, BorderError, Word as _},
    v1,
};
use serde::Serialize;

use super::{
    Failure, Global, Output,
    client::{connect, fleet, refused},
    commands::{json_line, print, say},
    render::{table, time},
};
use crate::Config;

/// The broker's own state, in JSON.
#[derive(Debug, Serialize)]
struct StatusView {
    broker_id: String,
    trust_domain: String,
    version: String,
    incarnation: u64,
    started_at: Option<Timestamp>,
    as_of: Option<Timestamp>,
    hosts: Vec<(Status, u64)>,
    hosts_present: u64,
    sessions: u64,
    watchers: u64,
    restart_window: Option<WindowView>,
    holds: Vec<HoldView>,
    held_down: Vec<HeldDownView>,
    conflicts: Vec<String>,
    discounted_front_ends: Vec<String>,
    store_failing: bool,
    tick_late_ms: u64,
    stalls: u64,
    wall_clock_ahead_ms: i64,
    probes_calibrated: u64,
    probes_under_way: u64,
    alerts: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct WindowView {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    hosts: u64,
}

#[derive(Debug, Serialize)]
struct HoldView {
    pool: String,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    hosts: u64,
    evidence: String,
    answered: bool,
    reconnect_only: bool,
}

#[derive(Debug, Serialize)]
struct HeldDownView {
    name: String,
    losses: u32,
    until: Option<Timestamp>,
}

impl TryFrom<v1::BrokerStatus> for StatusView {
    type Error = BorderError;

    fn try_from(wire: v1::BrokerStatus) -> Result<Self, BorderError> {
        let at = |name: &'static str, value| border::optional_instant(name, value);
        let mut alerts = Vec::new();
        if wire.store_failing {
            alerts.push("STORE_FAILED");
        }
        if !wire.holds.is_empty() {
            alerts.push("MASS_LOSS");
        }
        if !wire.conflicts.is_empty() {
            alerts.push("IDENTITY_CONFLICT");
        }
        if !wire.discounted_front_ends.is_empty() {
            alerts.push("FRONT_END_DISCOUNTED");
        }
        if wire.wall_clock_ahead_ms != 0 {
            alerts.push("WALL_CLOCK_SET");
        }
        if wire.tick_late_ms > 0 {
            alerts.push("BROKER_LATE");
        }
        let probes = wire.probes.unwrap_or_default();
        Ok(Self {
            started_at: at("started_at", wire.started_at)?,
            as_of: at("as_of", wire.as_of)?,
            hosts: wire
                .hosts
                .iter()
                .filter_map(|count| Some((Status::from_wire(count.status)?, count.count)))
                .collect(),
            restart_window: match wire.restart_window {
                None => None,
                Some(window) => Some(WindowView {
                    since: at("restart_window.since", window.since)?,
                    until: at("restart_window.until", window.until)?,
                    hosts: window.hosts,
                }),
            },
            holds: wire
                .holds
                .into_iter()
                .map(|hold| {
                    Ok(HoldView {
                        since: at("holds.since", hold.since)?,
                        until: at("holds.until", hold.until)?,
                        pool: hold.pool,
                        hosts: hold.hosts,
                        evidence: hold.evidence,
                        answered: hold.answered,
                        reconnect_only: hold.reconnect_only,
                    })
                })
                .collect::<Result<_, BorderError>>()?,
            held_down: wire
                .held_down
                .into_iter()
                .map(|held| {
                    Ok(HeldDownView {
                        until: at("held_down.until", held.until)?,
                        name: held.name,
                        losses: held.losses,
                    })
                })
                .collect::<Result<_, BorderError>>()?,
            broker_id: wire.broker_id,
            trust_domain: wire.trust_domain,
            version: wire.version,
            incarnation: wire.incarnation,
            hosts_present: wire.hosts_present,
            sessions: wire.sessions,
            watchers: wire.watchers,
            conflicts: wire.conflicts,
            discounted_front_ends: wire.discounted_front_ends,
            store_failing: wire.store_failing,
            tick_late_ms: wire.tick_late_ms,
            stalls: wire.stalls,
            wall_clock_ahead_ms: wire.wall_clock_ahead_ms,
            probes_calibrated: probes.calibrated,
            probes_under_way: probes.under_way,
            alerts,
        })
    }
}

/// `muster-broker status`.
pub(super) async fn status(global: &Global, config: &Config) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .get_broker_status(v1::GetBrokerStatusRequest {})
        .await
        .map_err(refused)?
        .into_inner();
    let view = StatusView::try_from(answer.status.unwrap_or_default())?;
    match global.output {
        Output::Json => json_line(&view)?,
        Output::Table => print(format_args!("{}\n", text(&view)))?,
    }
    Ok(())
}

/// `muster-broker hold end`.
pub(super) async fn end_holds(
    pool: String,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .end_holds(v1::EndHoldsRequest { pool })
        .await
        .map_err(refused)?
        .into_inner();
    match (global.output, answer.ended) {
        (Output::Json, ended) => json_line(&serde_json::json!({ "ended": ended }))?,
        (Output::Table, 0) => print(format_args!("no hold is in force\n"))?,
        (Output::Table, ended) => print(format_args!(
            "{ended} ended; hosts that are silent for longer than their lease are Unavailable now\n"
        ))?,
    }
    Ok(())
}

/// `muster-broker trust`.
pub(super) async fn trust(
    name: String,
    newcomer: bool,
    global: &Global,
    config: &Config,
) -> Result<(), Failure> {
    let mut client = fleet(connect(global, config).await?);
    let answer = client
        .trust_host(v1::TrustHostRequest { name, newcomer })
        .await
        .map_err(refused)?
        .into_inner();
    say(answer.verdict, global)
}

/// The state as a person reads it: what is out of the ordinary comes first.
fn text(view: &StatusView) -> String {
    let mut lines = Vec::new();
    fleet_lines(view, &mut lines);
    broker_lines(view, &mut lines);
    if lines.is_empty() {
        lines.push("all is well: no window, no hold, no conflict, the store works".to_owned());
    }
    if view.hosts_present <= 2 {
        lines.push(
            "Fleets of one or two hosts have no hold: a common cause cannot be told from two \
             separate ones."
                .to_owned(),
        );
    }
    format!("{}\n{}", lines.join("\n"), facts(view))
}

fn at(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), time)
}

/// What is held back from hosts, why, and until when.
fn fleet_lines(view: &StatusView, lines: &mut Vec<String>) {
    if let Some(window) = &view.restart_window {
        lines.push(format!(
            "RESTART_WINDOW since {} until {}: {} hosts not heard yet are answered as last known",
            at(window.since),
            at(window.until),
            window.hosts
        ));
    }
    for hold in &view.holds {
        let answers = if hold.reconnect_only {
            "for reconnecting only"
        } else {
            "answered as before"
        };
        let refusals = if hold.answered {
            "; those that refuse are found dead"
        } else {
            ""
        };
        lines.push(format!(
            "MASS_LOSS in pool {} since {} until {}: {}; {} held, {answers}{refusals}. End it \
             with: muster-broker hold end --pool {}",
            hold.pool,
            at(hold.since),
            at(hold.until),
            hold.evidence,
            hold.hosts,
            hold.pool
        ));
    }
    for held in &view.held_down {
        lines.push(format!(
            "HELD_DOWN: {} was lost {} times within 30 minutes; no new sessions until {}",
            held.name,
            held.losses,
            at(held.until)
        ));
    }
    for name in &view.conflicts {
        lines.push(format!(
            "IDENTITY_CONFLICT about {name}: see muster-broker host {name}, decide with \
             muster-broker trust {name}"
        ));
    }
    for name in &view.discounted_front_ends {
        lines.push(format!(
            "FRONT_END_DISCOUNTED: {name} fails on most of its hosts; its reports do not count"
        ));
    }
}

/// What is wrong with the broker itself: worst first.
fn broker_lines(view: &StatusView, lines: &mut Vec<String>) {
    if view.store_failing {
        let line = "STORE_FAILED: the store cannot be written; answers go on, enrolment and \
                    policies are refused. See the disk that it is on.";
        lines.insert(0, line.to_owned());
    }
    if view.wall_clock_ahead_ms != 0 {
        lines.push(format!(
            "WALL_CLOCK_SET: the wall clock was set by {} s; deadlines go by the time before \
             until the broker's next start",
            view.wall_clock_ahead_ms / 1000
        ));
    }
    if view.tick_late_ms > 0 {
        lines.push(format!(
            "BROKER_LATE: its clock is {} ms late; no host is better than suspect",
            view.tick_late_ms
        ));
    }
}

fn facts(view: &StatusView) -> String {
    let hosts: Vec<String> = view
        .hosts
        .iter()
        .map(|(status, count)| format!("{count} {}", status.title()))
        .collect();
    let probes = format!(
        "{} hosts calibrated, {} under way",
        view.probes_calibrated, view.probes_under_way
    );
    let broker = format!(
        "{} {} in {}",
        view.broker_id, view.version, view.trust_domain
    );
    let started = format!("{} (start {})", at(view.started_at), view.incarnation);
    let mut facts = table(["", ""]);
    for (name, value) in [
        ("hosts", hosts.join(", ")),
        ("sessions", view.sessions.to_string()),
        ("watches", view.watchers.to_string()),
        ("probes", probes),
        ("stalls", view.stalls.to_string()),
        ("broker", broker),
        ("started", started),
    ] {
        facts.add_row([name.to_owned(), value]);
    }
    facts.trim_fmt()
}
