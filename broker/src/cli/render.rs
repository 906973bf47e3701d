//! Tables and texts for people.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use muster_core::{
    host::{CheckStanding, Flip},
    model::{Confidence, Reason, Severity, Transition, Verdict},
};

use super::commands::now;
use crate::view::{HostView, WatchView};

/// Changes of checks that a table shows: a screen has perhaps fifty lines, and JSON has them all.
const FLIPS_SHOWN: usize = 20;

/// A point in time, to the second.
pub(super) fn time(at: Timestamp) -> String {
    at.round(jiff::Unit::Second)
        .map_or_else(|_| at.to_string(), |at| at.to_string())
}

/// How long ago, in the largest unit that says enough.
fn ago(at: Timestamp) -> String {
    let seconds = now().duration_since(at).as_secs();
    match seconds {
        ..=0 => "now".to_owned(),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

pub(super) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

pub(super) fn table<const N: usize>(titles: [&str; N]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(titles);
    table
}

/// One line per host.
pub(super) fn hosts(hosts: &[HostView]) -> String {
    let mut table = table([
        "HOST",
        "POOL",
        "STATUS",
        "NEW",
        "RECONNECT",
        "SINCE",
        "LAST BEAT",
        "REASON",
    ]);
    for host in hosts {
        let verdict = &host.verdict;
        table.add_row([
            verdict.name.to_string(),
            verdict.pool.to_string(),
            status_text(verdict),
            yes_no(verdict.connectable_new).to_owned(),
            yes_no(verdict.connectable_reconnect).to_owned(),
            ago(verdict.status_since),
            host.last_beat_at.map_or_else(|| "-".to_owned(), ago),
            verdict.reasons.first().map_or_else(String::new, short),
        ]);
    }
    table.trim_fmt()
}

/// The status, with the doubt if there is one: of a host that takes nobody there is none.
fn status_text(verdict: &Verdict) -> String {
    match verdict.confidence {
        Confidence::Suspect | Confidence::Unverified if verdict.connectable_reconnect => {
            format!(
                "{} ({})",
                verdict.status.title(),
                verdict.confidence.title().to_lowercase()
            )
        }
        Confidence::Confirmed
        | Confidence::Suspect
        | Confidence::Unverified
        | Confidence::Absent => verdict.status.title().to_owned(),
    }
}

pub(super) fn short(reason: &Reason) -> String {
    if reason.subject.is_empty() {
        format!("{}: {}", reason.code, reason.message)
    } else {
        format!("{} {}: {}", reason.code, reason.subject, reason.message)
    }
}

/// The answer with every reason and remedy.
pub(super) fn verdict(verdict: &Verdict) -> String {
    let mut text = String::new();
    let answer = if verdict.connectable {
        "connectable"
    } else {
        "NOT connectable"
    };
    let _ = writeln!(
        text,
        "{}: {} ({}) - {answer} for a {}",
        verdict.name,
        verdict.status,
        verdict.confidence.title().to_lowercase(),
        match verdict.intent {
            muster_core::model::Intent::New => "new session",
            muster_core::model::Intent::Reconnect => "reconnect",
        },
    );
    if verdict.connectable_new != verdict.connectable_reconnect {
        let _ = writeln!(
            text,
            "  new session: {}, reconnect: {}",
            yes_no(verdict.connectable_new),
            yes_no(verdict.connectable_reconnect)
        );
    }
    for reason in &verdict.reasons {
        write_reason(&mut text, reason);
    }
    if let Some(retry) = verdict.retry_after {
        let _ = writeln!(text, "  ask again in {} s", retry.as_secs());
    }
    text
}

fn write_reason(text: &mut String, reason: &Reason) {
    let _ = writeln!(text, "  {} (since {})", short(reason), seen(reason.since));
    for step in &reason.evidence {
        let _ = writeln!(text, "      - {step}");
    }
    if let Some(remedy) = &reason.remedy {
        let _ = writeln!(text, "    remedy: {}", remedy.text);
        for command in &remedy.commands {
            let _ = writeln!(text, "      $ {command}");
        }
    }
}

/// Everything about one host.
pub(super) fn host(host: &HostView) -> String {
    let mut text = verdict(&host.verdict);
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<15} {value}");
        }
    };
    fact("pool", host.verdict.pool.as_str());
    fact("id", &host.verdict.host_id.to_string());
    fact("agent", &host.agent_version);
    fact("system", &host.os);
    let cloud = host.cloud.as_ref().map(ToString::to_string);
    fact("cloud", &cloud.unwrap_or_default());
    fact("addresses", &host.addresses.join(", "));
    fact("seen from", &host.peer_address);
    fact("enrolled", &host.enrolled_at.map_or_else(String::new, time));
    let beat = |at| format!("{} ({})", time(at), seen(at));
    fact(
        "last beat",
        &host.last_beat_at.map_or_else(|| "none".to_owned(), beat),
    );
    fact("safe to turn off", host.verdict.safe_to_power_off.title());
    for drain in &host.drains {
        let until = drain
            .until
            .map_or_else(String::new, |at| format!(", until {}", time(at)));
        fact(
            "drained by",
            &format!("{}: {}{until}", drain.owner, drain.reason),
        );
    }
    for listener in &host.verdict.listeners {
        let bound = if listener.addresses.is_empty() {
            "all addresses".to_owned()
        } else {
            listener.addresses.join(", ")
        };
        fact(
            "listens",
            &format!("{} on port {}, {bound}", listener.protocol, listener.port),
        );
    }
    if !host.checks.is_empty() {
        let _ = writeln!(text, "\n{}", checks(host));
    }
    if let Some(flips) = flips(host) {
        let _ = writeln!(text, "\nchanges of checks, newest first\n{flips}");
    }
    text
}

fn checks(host: &HostView) -> String {
    let mut table = table([
        "CHECK",
        "SEVERITY",
        "OUTCOME",
        "SINCE",
        "LAST SEEN",
        "MESSAGE",
    ]);
    for check in &host.checks {
        let outcome = if check.judged_outcome == check.result.outcome.as_str() {
            check.result.outcome.to_string()
        } else {
            format!("{} (was {})", check.judged_outcome, check.result.outcome)
        };
        let severity = match check.severity {
            Severity::Fatal => "fatal",
            Severity::NonFatal => "non-fatal",
            Severity::ReportOnly => "report only",
        };
        table.add_row([
            check.result.name.to_string(),
            severity.to_owned(),
            outcome,
            check.since.map_or_else(|| "-".to_owned(), ago),
            check.last_run_at.map_or_else(|| "never".to_owned(), seen),
            check.result.message.clone(),
        ]);
    }
    table.trim_fmt()
}

/// How long ago something was seen.
fn seen(at: Timestamp) -> String {
    match ago(at).as_str() {
        "now" => "now".to_owned(),
        ago => format!("{ago} ago"),
    }
}

/// How the checks changed; none if nothing is known to have.
fn flips(host: &HostView) -> Option<String> {
    let mut flips: Vec<(&str, &Flip)> = host
        .checks
        .iter()
        .flat_map(|check| {
            let name = check.result.name.as_str();
            check.flips.iter().map(move |flip| (name, flip))
        })
        .collect();
    if flips.is_empty() {
        return None;
    }
    flips.sort_by_key(|(_, flip)| std::cmp::Reverse(flip.at));
    let mut table = table(["AT", "CHECK", "FROM", "TO", "MESSAGE"]);
    for (name, flip) in flips.into_iter().take(FLIPS_SHOWN) {
        table.add_row([
            format!("{} ({})", time(flip.at), seen(flip.at)),
            name.to_owned(),
            flip.from.map_or("-", CheckStanding::as_str).to_owned(),
            flip.to.as_str().to_owned(),
            flip.message.clone(),
        ]);
    }
    Some(table.trim_fmt())
}

/// A journal, newest first.
pub(super) fn history(transitions: &[Transition]) -> String {
    let mut table = table(["#", "AT", "FROM", "TO", "NEW", "RECONNECT", "BY", "REASONS"]);
    for transition in transitions {
        let reasons: Vec<String> = transition
            .reasons
            .iter()
            .map(|reason| match reason.subject.as_str() {
                "" => reason.code.to_string(),
                subject => format!("{}({subject})", reason.code),
            })
            .collect();
        table.add_row([
            transition.sequence.to_string(),
            time(transition.at),
            transition
                .from
                .map_or("-", muster_core::model::Status::title)
                .to_owned(),
            transition.to.title().to_owned(),
            yes_no(transition.connectable_new).to_owned(),
            yes_no(transition.connectable_reconnect).to_owned(),
            transition.trigger.clone(),
            reasons.join(" "),
        ]);
    }
    table.trim_fmt()
}

/// One line of a watch; none where there is nothing for a person.
pub(super) fn event(event: &WatchView) -> Option<String> {
    let line = |verdict: &Verdict| {
        format!(
            "{}  {}  {}  new {}  reconnect {}  {}",
            time(verdict.as_of),
            verdict.name,
            status_text(verdict),
            yes_no(verdict.connectable_new),
            yes_no(verdict.connectable_reconnect),
            verdict.reasons.first().map_or_else(String::new, short),
        )
    };
    match event {
        WatchView::Snapshot { verdict } | WatchView::Changed { verdict, .. } => Some(line(verdict)),
        WatchView::Removed { name, .. } => Some(format!("{}  {name}  removed", time(now()))),
        WatchView::Resync { reason } => Some(format!("{}  starting anew: {reason}", time(now()))),
        WatchView::SnapshotEnd { .. } | WatchView::Progress { .. } => None,
    }
}
