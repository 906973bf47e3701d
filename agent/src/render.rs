//! What the commands print for people.

use std::fmt::Write as _;

use comfy_table::{Table, presets::NOTHING};
use muster_agent::doctor::{Diagnosis, Finding, Progress};
use muster_core::model::clean_text;

/// Takes back the line of the progress.
pub(crate) const NO_LINE: &str = "\r\x1b[2K";

/// The line of the progress, over the one before it.
pub(crate) fn progress(progress: &Progress, width: usize) -> String {
    let waiting: Vec<_> = progress.waiting.iter().map(ToString::to_string).collect();
    let (total, left) = (progress.total, waiting.len());
    let line = format!(
        "{} of {total} checks done after {} s; {}",
        total - left.min(total),
        progress.elapsed.as_secs(),
        if left == 0 {
            String::new()
        } else {
            format!("waiting for {}", waiting.join(", "))
        }
    );
    // In the last column many terminals begin the next line.
    format!(
        "{NO_LINE}{}",
        clean_text(line.trim_end_matches("; "), width.saturating_sub(1))
    )
}

/// The diagnosis: a table, then every check with what was tried and what mends it.
pub(crate) fn diagnosis(diagnosis: &Diagnosis) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["CHECK", "OUTCOME", "SEVERITY", "MESSAGE"]);
    for check in &diagnosis.checks {
        table.add_row([
            check.result.name.to_string(),
            check.result.outcome.to_string(),
            check.severity.to_string(),
            check.result.message.clone(),
        ]);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    for check in &diagnosis.checks {
        details(&mut text, check);
    }
    let host = match (&diagnosis.name, &diagnosis.pool) {
        (Some(name), Some(pool)) => format!("host {name}, pool {pool}"),
        _ => "this machine is not enrolled".to_owned(),
    };
    let session = match &diagnosis.session {
        None => "no agent runs here".to_owned(),
        Some(link) => link.session(),
    };
    line(&mut text, &format!("\n{host}; {session}"));
    for (broker, problem) in diagnosis.session.iter().flat_map(|link| &link.problems) {
        line(&mut text, &format!("  {broker}: {problem}"));
    }
    text
}

fn details(text: &mut String, check: &Finding) {
    if check.result.findings.is_empty() {
        return;
    }
    line(
        text,
        &format!("\n{} ({})", check.result.name, check.result.outcome),
    );
    for finding in &check.result.findings {
        line(
            text,
            &format!(
                "  {} [{}]: {}",
                finding.subject, finding.code, finding.message
            ),
        );
        for step in &finding.steps {
            line(text, &format!("    - {step}"));
        }
        if let Some(remedy) = &finding.remedy {
            line(text, &format!("    remedy: {}", remedy.text));
            for command in &remedy.commands {
                line(text, &format!("      $ {command}"));
            }
        }
    }
    if check.result.truncated {
        line(text, "  ... more was found than is shown here");
    }
}

fn line(text: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{line}");
}
