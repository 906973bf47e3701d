//! A report for people.

use std::{
    fmt::{Result, Write as _},
    time::Duration,
};

use crate::report::{Amount, Harmed, Report, Return};

/// The report as lines of text.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = head(report, &mut text)
        .and_then(|()| costs(report, &mut text))
        .and_then(|()| compared(report, &mut text))
        .and_then(|()| outcome(report, &mut text));
    text
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn head(report: &Report, out: &mut String) -> Result {
    writeln!(
        out,
        "{}: {}, commit {}, {} build, {} processors",
        report.script, report.date, report.commit, report.profile, report.processors
    )?;
    writeln!(out, "  {}", report.command)?;
    write!(out, "  agents          {}", report.agents)?;
    if report.real_agents > 0 {
        write!(out, " and {} real ones", report.real_agents)?;
    }
    if report.processes > 1 {
        write!(out, " in {} processes", report.processes)?;
    }
    if report.listeners {
        write!(out, ", each with a listener")?;
    }
    if report.probe {
        write!(out, ", probe on")?;
    }
    if report.loss_percent > 0 {
        write!(out, ", {} % of their packets lost", report.loss_percent)?;
    }
    writeln!(
        out,
        "\n  pace            interval {:?}, lease {:?}, reconnect window {:?}",
        millis(report.interval_ms),
        millis(report.lease_ms),
        millis(report.window_ms)
    )
}

fn costs(report: &Report, out: &mut String) -> Result {
    for (what, amount) in [
        ("enrolled", report.enrolled),
        ("connected", report.connected),
    ] {
        if let Some(Amount { count, seconds }) = amount {
            writeln!(out, "  {what:<15} {count} in {seconds:.1} s")?;
        }
    }
    if let Some(steady) = &report.steady {
        writeln!(
            out,
            "  steady          {:.1} beats/s for {:.0} s; each takes {:.1} us of processor of the \
             broker and {:.1} us of the swarm; the broker is at {:.1} %",
            steady.beats_per_second,
            steady.seconds,
            steady.server_us_per_beat,
            steady.swarm_us_per_beat,
            steady.server_cpu_percent
        )?;
    }
    if let Some(memory) = &report.memory {
        writeln!(
            out,
            "  memory          {:.1} KiB for each agent: {} KiB resident, {} KiB without hosts",
            memory.per_agent_kib, memory.connected_kib, memory.empty_kib
        )?;
    }
    Ok(())
}

fn compared(report: &Report, out: &mut String) -> Result {
    for compared in &report.compared {
        writeln!(
            out,
            "  {:>6} agents   a beat {:.1} us, bare {:.1} us: {:.2} of it; an agent {:.1} KiB, bare \
             {:.1} KiB: {:.2} of it",
            compared.agents,
            compared.broker_us,
            compared.bare_us,
            compared.cpu_ratio,
            compared.broker_kib,
            compared.bare_kib,
            compared.memory_ratio
        )?;
        for cost in &compared.costs {
            writeln!(
                out,
                "    {:<13} {:.1} beats/s, {:.1} us each (swarm {:.1} us), {} KiB, {} KiB without agents",
                cost.server,
                cost.steady.beats_per_second,
                cost.steady.server_us_per_beat,
                cost.steady.swarm_us_per_beat,
                cost.memory.connected_kib,
                cost.memory.empty_kib
            )?;
        }
    }
    for asked in &report.asked {
        writeln!(
            out,
            "  {:<40} {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.1} us of the broker each",
            asked.rpc,
            asked.per_second,
            asked.time.p50_ms,
            asked.time.p99_ms,
            asked.server_us_per_call
        )?;
    }
    if let (Some(ratio), Some(cpu)) = (report.asked_ratio, report.asked_cpu_ratio) {
        writeln!(
            out,
            "  CheckHost       {ratio:.3} of the throughput of the rpc that does nothing, {cpu:.2} of \
             its processor time"
        )?;
    }
    Ok(())
}

fn outcome(report: &Report, out: &mut String) -> Result {
    for harmed in &report.harmed {
        self::harmed(harmed, out)?;
    }
    for back in &report.returns {
        self::back(back, out)?;
    }
    if report.compared.is_empty() {
        self::watched(report, out)?;
    }
    for failure in &report.failures {
        writeln!(out, "  FAILED          {failure}")?;
    }
    if report.failures.is_empty() {
        writeln!(out, "  all as it must be")?;
    }
    Ok(())
}

fn watched(report: &Report, out: &mut String) -> Result {
    writeln!(
        out,
        "  false           {} Unavailable, {} not connectable",
        report.false_unavailable, report.false_not_connectable
    )?;
    for example in &report.examples {
        writeln!(out, "                  {example}")?;
    }
    writeln!(
        out,
        "  watch           silent for {:?} at most",
        millis(report.longest_watch_silence_ms)
    )
}

fn harmed(harmed: &Harmed, out: &mut String) -> Result {
    write!(out, "  {:<15} {} hosts", harmed.what, harmed.count)?;
    if let Some(told) = harmed.told {
        write!(
            out,
            "; the front end was told after p50 {:.1} ms, p99 {:.1} ms, at most {:.1} ms",
            told.p50_ms, told.p99_ms, told.max_ms
        )?;
    }
    if !harmed.untold.is_empty() {
        write!(out, "; NEVER TOLD: {}", harmed.untold.join(" "))?;
    }
    writeln!(out)
}

fn back(back: &Return, out: &mut String) -> Result {
    let shown = |after: Option<u64>| {
        after.map_or("NEVER".to_owned(), |after| format!("{:?}", millis(after)))
    };
    writeln!(
        out,
        "  {:<15} away {:?}; agents back after {}, all Confirmed after {}",
        back.what,
        millis(back.broker_away_ms),
        shown(back.agents_back_ms),
        shown(back.confirmed_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_shown() {
        let mut report = Report::default();
        assert!(text(&report).contains("all as it must be"));
        report.fail("three hosts were told Unavailable");
        let shown = text(&report);
        assert!(
            shown.contains("FAILED") && !shown.contains("all as it must be"),
            "{shown}"
        );
    }
}
