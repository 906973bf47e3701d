//! One number that changes when the host's state does.

use crate::model::{
    CheckResult, CloudInstance, Listener, PowerAnnouncement, UpgradeAnnouncement, UpgradeAttempt,
};

/// Hash over what a report says, without times: settled outcomes, causes of Unknown, the subjects
/// and codes of findings, listeners, the cloud's instance, power, upgrade. Two reports of one hash
/// say the same about the host. Opaque to the broker; it does not depend on the order of checks and listeners.
#[must_use]
pub fn state_hash(
    checks: &[CheckResult],
    listeners: &[Listener],
    cloud: Option<&CloudInstance>,
    power: &PowerAnnouncement,
    upgrade: &UpgradeAnnouncement,
) -> u64 {
    let mut whole = Fnv::new();
    // A sum does not depend on the order. Each part is a hash of its own.
    whole.number(sum(checks.iter().map(check)));
    whole.number(sum(listeners.iter().map(listener)));
    // A machine in no cloud adds nothing, so that its hash is that of agents which tell of none.
    if let Some(cloud) = cloud {
        whole.text("cloud");
        whole.text(&cloud.provider);
        whole.text(&cloud.instance_id);
        whole.text(&cloud.region);
        whole.text(&cloud.instance_type);
    }
    match power {
        PowerAnnouncement::Running => whole.text("running"),
        PowerAnnouncement::Leaving {
            how,
            back_within: _,
        } => whole.text(how.as_str()),
    }
    match upgrade {
        UpgradeAnnouncement::Silent => whole.text("silent"),
        UpgradeAnnouncement::Cleared { id } => {
            whole.text("cleared");
            whole.text(id);
        }
        UpgradeAnnouncement::InProgress { attempt, within: _ } => {
            whole.text("in_progress");
            attempt_of(&mut whole, attempt);
        }
        UpgradeAnnouncement::Failed { attempt, error } => {
            whole.text("failed");
            attempt_of(&mut whole, attempt);
            whole.text(error);
        }
    }
    whole.0
}

fn sum(parts: impl Iterator<Item = u64>) -> u64 {
    parts.fold(0, u64::wrapping_add)
}

fn check(result: &CheckResult) -> u64 {
    let mut hash = Fnv::new();
    hash.text(result.name.as_str());
    hash.text(&result.kind);
    hash.text(result.outcome.as_str());
    hash.text(result.outcome.cause().map_or("", |cause| cause.as_str()));
    for finding in &result.findings {
        hash.text(&finding.subject);
        hash.text(&finding.code);
    }
    hash.0
}

fn listener(listener: &Listener) -> u64 {
    let mut hash = Fnv::new();
    hash.text(&listener.protocol);
    hash.number(u64::from(listener.port));
    for address in &listener.addresses {
        hash.text(address);
    }
    hash.0
}

fn attempt_of(hash: &mut Fnv, attempt: &UpgradeAttempt) {
    hash.text(&attempt.id);
    hash.text(&attempt.from);
    hash.text(&attempt.to);
    hash.text(attempt.phase.as_str());
}

/// FNV-1a: the same on every machine and in every version, which the standard hasher is not. It
/// guards against loss, not against malice: the agent that hashes is the one that is believed.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A text, with an end that no text contains.
    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(&[0xff]);
    }

    fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{CheckName, Finding, Leave, Outcome, UnknownCause, UpgradePhase};

    fn result(name: &str, outcome: Outcome) -> CheckResult {
        CheckResult {
            name: CheckName::new(name).unwrap(),
            kind: name.into(),
            outcome,
            raw: outcome,
            age: Some(Duration::from_secs(1)),
            duration: Duration::from_millis(3),
            message: "m".into(),
            findings: Vec::new(),
            truncated: false,
        }
    }

    fn ssh() -> Listener {
        Listener {
            protocol: "ssh".into(),
            addresses: Vec::new(),
            port: 22,
        }
    }

    fn cloud(kind: &str) -> CloudInstance {
        CloudInstance {
            provider: "aws".into(),
            instance_id: "i-1".into(),
            region: "eu-west-1".into(),
            instance_type: kind.into(),
        }
    }

    fn of(checks: &[CheckResult]) -> u64 {
        state_hash(
            checks,
            &[ssh()],
            None,
            &PowerAnnouncement::Running,
            &UpgradeAnnouncement::Silent,
        )
    }

    #[test]
    fn times_messages_and_order_do_not_count() {
        let before = [result("a", Outcome::Pass), result("b", Outcome::Fail)];
        let mut after = [result("b", Outcome::Fail), result("a", Outcome::Pass)];
        after[0].age = Some(Duration::from_secs(99));
        after[0].duration = Duration::from_secs(9);
        after[0].message = "another".into();
        after[0].raw = Outcome::Pass;
        assert_eq!(of(&before), of(&after));
    }

    #[test]
    fn everything_else_counts() {
        let attempt = |phase| UpgradeAttempt {
            id: "1".into(),
            from: "1.0".into(),
            to: "1.1".into(),
            phase,
        };
        let in_progress = |phase| UpgradeAnnouncement::InProgress {
            attempt: attempt(phase),
            within: None,
        };
        let leaving = |how| PowerAnnouncement::Leaving {
            how,
            back_within: None,
        };
        let pass = [result("a", Outcome::Pass)];
        let running = PowerAnnouncement::Running;
        let silent = UpgradeAnnouncement::Silent;
        let mut found = result("a", Outcome::Pass);
        found.findings = vec![Finding {
            code: "SLOW".into(),
            ..Finding::default()
        }];
        let hashes = [
            state_hash(&pass, &[], None, &running, &silent),
            state_hash(&[], &[], None, &running, &silent),
            state_hash(&pass, &[ssh()], None, &running, &silent),
            state_hash(&[result("a", Outcome::Fail)], &[], None, &running, &silent),
            state_hash(&[result("b", Outcome::Pass)], &[], None, &running, &silent),
            state_hash(
                &[result("a", Outcome::Unknown(UnknownCause::Stale))],
                &[],
                None,
                &running,
                &silent,
            ),
            state_hash(
                &[result("a", Outcome::Unknown(UnknownCause::TimedOut))],
                &[],
                None,
                &running,
                &silent,
            ),
            state_hash(&[found], &[], None, &running, &silent),
            state_hash(&pass, &[], None, &leaving(Leave::Reboot), &silent),
            state_hash(&pass, &[], None, &leaving(Leave::Poweroff), &silent),
            state_hash(
                &pass,
                &[],
                None,
                &running,
                &in_progress(UpgradePhase::Switch),
            ),
            state_hash(
                &pass,
                &[],
                None,
                &running,
                &in_progress(UpgradePhase::Commit),
            ),
            state_hash(
                &pass,
                &[],
                None,
                &running,
                &UpgradeAnnouncement::Failed {
                    attempt: attempt(UpgradePhase::Switch),
                    error: "no space".into(),
                },
            ),
            state_hash(
                &pass,
                &[],
                None,
                &running,
                &UpgradeAnnouncement::Cleared { id: "1".into() },
            ),
        ];
        let distinct: std::collections::BTreeSet<_> = hashes.iter().collect();
        assert_eq!(distinct.len(), hashes.len());
    }

    #[test]
    fn the_machine_of_a_cloud_counts() {
        let of = |cloud: Option<&CloudInstance>| {
            let running = PowerAnnouncement::Running;
            state_hash(&[], &[], cloud, &running, &UpgradeAnnouncement::Silent)
        };
        assert_eq!(of(None), STABLE);
        assert_ne!(of(Some(&cloud("m5"))), STABLE);
        assert_ne!(of(Some(&cloud("m5"))), of(Some(&cloud("m6"))));
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        assert_eq!(
            of(&[result("a", Outcome::Pass)]),
            of(&[result("a", Outcome::Pass)])
        );
        assert_eq!(
            state_hash(
                &[],
                &[],
                None,
                &PowerAnnouncement::Running,
                &UpgradeAnnouncement::Silent
            ),
            STABLE
        );
    }

    /// Worked out once; a change of it costs every host one full report, no more.
    const STABLE: u64 = 4_283_694_306_898_395_029;
}
