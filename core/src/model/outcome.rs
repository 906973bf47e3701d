//! What checks find, and the bounds of what they may say.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::names::CheckName;

/// Checks that one host may report. The seed has five, a busy host perhaps twenty.
pub const MAX_CHECKS: usize = 64;
/// Bytes of a check's one-line message: fits a terminal's line and a pager's screen.
pub const MAX_MESSAGE_BYTES: usize = 256;
/// Bytes of all findings of one check, so that 64 full checks stay under the 256 KiB message.
pub const MAX_FINDINGS_BYTES: usize = 2048;
/// Bytes of the remedies of one check.
pub const MAX_REMEDY_BYTES: usize = 512;
/// Findings of one check, whatever their size.
const MAX_FINDINGS: usize = 16;
/// Steps of one finding.
const MAX_STEPS: usize = 16;

/// What a run of a check found, or why that is not known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// All is well.
    Pass,
    /// Worth a look; never changes a status.
    Warn,
    /// Broken.
    Fail,
    /// Could not be told.
    Unknown(UnknownCause),
    /// Nothing of the kind is expected on this host.
    NotApplicable,
}

impl Outcome {
    /// Fail or Unknown: does not pass.
    #[must_use]
    pub const fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Unknown(_))
    }

    /// The outcome without its cause, as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Unknown(_) => "unknown",
            Self::NotApplicable => "not_applicable",
        }
    }

    /// Why it is Unknown.
    #[must_use]
    pub const fn cause(self) -> Option<UnknownCause> {
        match self {
            Self::Unknown(cause) => Some(cause),
            Self::Pass | Self::Warn | Self::Fail | Self::NotApplicable => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            Some(cause) => f.pad(&format!("unknown ({})", cause.as_str())),
            None => f.pad(self.as_str()),
        }
    }
}

/// Why an outcome is Unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownCause {
    /// No run has finished yet.
    NotYetRun,
    /// The run was ended at its time limit.
    TimedOut,
    /// The last finished run is older than a result may be.
    Stale,
    /// The check could not be started or lost what it needs.
    CannotRun,
    /// The agent has no such check.
    Unsupported,
}

impl UnknownCause {
    /// The cause as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYetRun => "not_yet_run",
            Self::TimedOut => "timed_out",
            Self::Stale => "stale",
            Self::CannotRun => "cannot_run",
            Self::Unsupported => "unsupported",
        }
    }
}

/// What a failing check means for a pool. The broker applies it: administrators own what a
/// failure means, agents report what they saw.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Fail or Unknown makes the host Unavailable.
    Fatal,
    /// Fail or Unknown makes the host Needs Assistance.
    NonFatal,
    /// Shown, and changes nothing.
    ReportOnly,
}

impl Severity {
    /// The severity as it stands in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fatal => "fatal",
            Self::NonFatal => "non_fatal",
            Self::ReportOnly => "report_only",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What mends a problem.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Remedy {
    /// What to do, for a person.
    pub text: String,
    /// Commands that can be pasted, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
}

impl Remedy {
    /// A remedy in words alone.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            commands: Vec::new(),
        }
    }

    /// The same with one more command to paste.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.commands.push(command.into());
        self
    }

    fn bytes(&self) -> usize {
        self.text.len() + self.commands.iter().map(String::len).sum::<usize>()
    }
}

/// One thing that a check found, with the way it was found.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about: a URL, a listener, a unit.
    pub subject: String,
    /// Stable cause code, upper case with underscores.
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// What was tried, step by step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// What mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
}

impl Finding {
    /// Bytes that count against [`MAX_FINDINGS_BYTES`].
    fn bytes(&self) -> usize {
        self.subject.len()
            + self.code.len()
            + self.message.len()
            + self.steps.iter().map(String::len).sum::<usize>()
            + self.remedy.as_ref().map_or(0, Remedy::bytes)
    }

    fn bounded(self) -> Self {
        Self {
            subject: clean_text(&self.subject, MAX_MESSAGE_BYTES),
            code: clean_text(&self.code, 64),
            message: clean_text(&self.message, MAX_MESSAGE_BYTES),
            steps: self
                .steps
                .iter()
                .take(MAX_STEPS)
                .map(|step| clean_text(step, MAX_MESSAGE_BYTES))
                .collect(),
            remedy: self.remedy.map(|remedy| Remedy {
                text: clean_text(&remedy.text, MAX_MESSAGE_BYTES),
                commands: remedy
                    .commands
                    .iter()
                    .take(4)
                    .map(|command| clean_text(command, MAX_MESSAGE_BYTES))
                    .collect(),
            }),
        }
    }
}

/// The result of one check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(into = "CheckResultRepr", from = "CheckResultRepr")]
pub struct CheckResult {
    /// Name of the check.
    pub name: CheckName,
    /// Kind of the check.
    pub kind: Arc<str>,
    /// Settled outcome, after rise and fall.
    pub outcome: Outcome,
    /// Outcome of the last run alone.
    pub raw: Outcome,
    /// Age of the last finished run, at the time of the report; none before the first.
    pub age: Option<Duration>,
    /// How long that run took.
    pub duration: Duration,
    /// One line for a person.
    pub message: String,
    /// What was found, worst first.
    pub findings: Vec<Finding>,
    /// Findings or text were left out to keep the bounds.
    pub truncated: bool,
}

impl CheckResult {
    /// The same within all bounds, with control characters taken out: the worst findings (they
    /// come first) are kept and `truncated` marks that something is missing.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.kind = clean_text(&self.kind, 64).into();
        let message = clean_text(&self.message, MAX_MESSAGE_BYTES);
        self.truncated |= self.message.len() > MAX_MESSAGE_BYTES;
        self.message = message;
        let (mut findings, mut remedies) = (0, 0);
        let mut kept = Vec::new();
        for finding in std::mem::take(&mut self.findings) {
            let before = finding.bytes();
            let mut small = finding.bounded();
            self.truncated |= small.bytes() < before;
            if let Some(remedy) = &small.remedy {
                if remedies + remedy.bytes() > MAX_REMEDY_BYTES {
                    self.truncated = true;
                    small.remedy = None;
                } else {
                    remedies += remedy.bytes();
                }
            }
            while findings + small.bytes() > MAX_FINDINGS_BYTES && small.steps.pop().is_some() {
                self.truncated = true;
            }
            if kept.len() == MAX_FINDINGS || findings + small.bytes() > MAX_FINDINGS_BYTES {
                self.truncated = true;
                break;
            }
            findings += small.bytes();
            kept.push(small);
        }
        self.findings = kept;
        self
    }
}

/// `text` without control characters (line breaks and tabs become spaces), cut at a character's
/// edge to at most `max` bytes, the cut marked by `...` where it fits.
#[must_use]
pub fn clean_text(text: &str, max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(max));
    let mut cut = false;
    for found in text.chars() {
        let found = match found {
            '\n' | '\r' | '\t' => ' ',
            // Also bidirectional overrides: they make a terminal or page show another text.
            other
                if other.is_control()
                    || ('\u{202a}'..='\u{202e}').contains(&other)
                    || ('\u{2066}'..='\u{2069}').contains(&other) =>
            {
                '\u{fffd}'
            }
            other => other,
        };
        if clean.len() + found.len_utf8() > max {
            cut = true;
            break;
        }
        clean.push(found);
    }
    if cut && max >= 3 {
        while clean.len() + 3 > max {
            clean.pop();
        }
        clean.push_str("...");
    }
    clean
}

/// The JSON shape: the cause of Unknown stands beside the outcome.
#[derive(Serialize, Deserialize)]
struct CheckResultRepr {
    name: CheckName,
    kind: Arc<str>,
    outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unknown_cause: Option<UnknownCause>,
    raw_outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    raw_unknown_cause: Option<UnknownCause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    duration_ms: u64,
    message: String,
    #[serde(default)]
    findings: Vec<Finding>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn outcome_from(text: &str, cause: Option<UnknownCause>) -> Outcome {
    match text {
        "pass" => Outcome::Pass,
        "warn" => Outcome::Warn,
        "fail" => Outcome::Fail,
        "not_applicable" => Outcome::NotApplicable,
        // What a newer writer wrote is not known here, and never healthy.
        _ => Outcome::Unknown(cause.unwrap_or(UnknownCause::CannotRun)),
    }
}

impl From<CheckResult> for CheckResultRepr {
    fn from(result: CheckResult) -> Self {
        Self {
            name: result.name,
            kind: result.kind,
            outcome: result.outcome.as_str().to_owned(),
            unknown_cause: result.outcome.cause(),
            raw_outcome: result.raw.as_str().to_owned(),
            raw_unknown_cause: result.raw.cause(),
            age_ms: result.age.map(millis),
            duration_ms: millis(result.duration),
            message: result.message,
            findings: result.findings,
            truncated: result.truncated,
        }
    }
}

impl From<CheckResultRepr> for CheckResult {
    fn from(repr: CheckResultRepr) -> Self {
        Self {
            name: repr.name,
            kind: repr.kind,
            outcome: outcome_from(&repr.outcome, repr.unknown_cause),
            raw: outcome_from(&repr.raw_outcome, repr.raw_unknown_cause),
            age: repr.age_ms.map(Duration::from_millis),
            duration: Duration::from_millis(repr.duration_ms),
            message: repr.message,
            findings: repr.findings,
            truncated: repr.truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(message: String, findings: Vec<Finding>) -> CheckResult {
        CheckResult {
            name: CheckName::new("urls").unwrap(),
            kind: "urls".into(),
            outcome: Outcome::Unknown(UnknownCause::TimedOut),
            raw: Outcome::Fail,
            age: Some(Duration::from_millis(1500)),
            duration: Duration::from_millis(20),
            message,
            findings,
            truncated: false,
        }
    }

    #[test]
    fn ten_megabytes_of_output_become_a_small_marked_result() {
        let huge = "x".repeat(10 << 20);
        let finding = Finding {
            subject: "s".repeat(5000),
            code: "HUGE".into(),
            message: "m".repeat(5000),
            steps: vec!["t".repeat(5000); 100],
            remedy: Some(Remedy::text("r".repeat(5000)).command("c".repeat(5000))),
        };
        let small = result(huge, vec![finding; 50]).bounded();
        assert!(small.truncated);
        assert!(small.message.len() <= MAX_MESSAGE_BYTES && small.message.ends_with("..."));
        assert!(!small.findings.is_empty());
        assert!(small.findings.iter().map(Finding::bytes).sum::<usize>() <= MAX_FINDINGS_BYTES);
        assert_eq!(
            small.clone().bounded(),
            small,
            "bounding twice changes nothing"
        );
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let finding = Finding {
            subject: "https://example.org".into(),
            code: "DNS_NXDOMAIN".into(),
            message: "no such name".into(),
            steps: vec!["asked 127.0.0.53".into()],
            remedy: Some(Remedy::text("create the record").command("nsupdate")),
        };
        let whole = result("1 of 1 URLs not reachable".into(), vec![finding]);
        assert_eq!(whole.clone().bounded(), whole);
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(
            clean_text("a\u{1b}[31mb\nc\u{202e}", 100),
            "a\u{fffd}[31mb c\u{fffd}"
        );
        assert_eq!(clean_text("äöü", 5), "ä...");
    }

    #[test]
    fn json_keeps_outcome_and_cause_apart() {
        let before = result("m".into(), vec![]);
        let json = serde_json::to_value(&before).unwrap();
        assert_eq!(json["outcome"], "unknown");
        assert_eq!(json["unknown_cause"], "timed_out");
        assert_eq!(serde_json::from_value::<CheckResult>(json).unwrap(), before);
    }
}
