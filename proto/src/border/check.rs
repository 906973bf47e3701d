//! Results of checks.

use muster_core::model::{CheckName, CheckResult, Finding, Remedy};

use super::{BorderError, by_value, duration, millis, outcome, words::cause};
use crate::v1;

by_value!(
    Remedy => v1::Remedy,
    Finding => v1::Finding,
    CheckResult => v1::CheckResult,
);

impl From<&Remedy> for v1::Remedy {
    fn from(remedy: &Remedy) -> Self {
        Self {
            text: remedy.text.clone(),
            commands: remedy.commands.clone(),
        }
    }
}

/// Takes everything over; who holds a remedy bounds it.
impl From<v1::Remedy> for Remedy {
    fn from(wire: v1::Remedy) -> Self {
        Self {
            text: wire.text,
            commands: wire.commands,
        }
    }
}

impl From<&Finding> for v1::Finding {
    fn from(finding: &Finding) -> Self {
        Self {
            subject: finding.subject.clone(),
            code: finding.code.clone(),
            message: finding.message.clone(),
            steps: finding.steps.clone(),
            remedy: finding.remedy.as_ref().map(Into::into),
        }
    }
}

/// Takes everything over; the check's result bounds its findings as a whole.
impl From<v1::Finding> for Finding {
    fn from(wire: v1::Finding) -> Self {
        Self {
            subject: wire.subject,
            code: wire.code,
            message: wire.message,
            steps: wire.steps,
            remedy: wire.remedy.map(Into::into),
        }
    }
}

impl From<&CheckResult> for v1::CheckResult {
    fn from(result: &CheckResult) -> Self {
        Self {
            name: result.name.to_string(),
            kind: result.kind.to_string(),
            outcome: v1::CheckOutcome::from(result.outcome) as i32,
            raw_outcome: v1::CheckOutcome::from(result.raw) as i32,
            unknown_cause: cause(result.outcome),
            raw_unknown_cause: cause(result.raw),
            age_ms: result.age.map(millis),
            duration_ms: millis(result.duration),
            message: result.message.clone(),
            findings: result.findings.iter().map(Into::into).collect(),
            truncated: result.truncated,
        }
    }
}

impl TryFrom<v1::CheckResult> for CheckResult {
    type Error = BorderError;

    fn try_from(wire: v1::CheckResult) -> Result<Self, BorderError> {
        let name = CheckName::new(&wire.name).map_err(|error| BorderError::new("name", error))?;
        let kind = match wire.kind.as_str() {
            "" => name.as_str().into(),
            kind => kind.into(),
        };
        let result = Self {
            name,
            kind,
            outcome: outcome(wire.outcome, wire.unknown_cause),
            raw: outcome(wire.raw_outcome, wire.raw_unknown_cause),
            age: wire.age_ms.map(duration),
            duration: duration(wire.duration_ms),
            message: wire.message,
            findings: wire.findings.into_iter().map(Into::into).collect(),
            truncated: wire.truncated,
        };
        Ok(result.bounded())
    }
}
