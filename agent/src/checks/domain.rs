//! `domain`: is this machine joined to the domain that it should be joined to?
//!
//! Where nothing is expected and nothing speaks of a domain, the check does not apply. A machine
//! is joined when its keytab holds its own keys for the domain's realm. Whether a controller still
//! honours them is not tried yet, and the steps say so.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy},
};

use super::{Check, Inputs, cannot_run};
use crate::platform::{
    domain::{self, DomainTraces, Keytab},
    units,
};

const SUBJECT: &str = "domain";

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let expected = inputs.config.check.domain.expected.as_ref();
    Arc::new(Domain {
        expected: expected.or(inputs.policy.expected_domain.as_ref()).cloned(),
        root: PathBuf::from("/"),
    })
}

struct Domain {
    expected: Option<String>,
    root: PathBuf,
}

impl Check for Domain {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            let root = self.root.clone();
            let traces =
                tokio::task::spawn_blocking(move || domain::traces(Path::new(&root))).await;
            let traces = match traces {
                Ok(traces) => traces,
                Err(error) => {
                    let message = format!("traces of a domain cannot be looked for: {error}");
                    return cannot_run(SUBJECT, message, Remedy::text("Look at the agent's log."));
                }
            };
            let seen = judge(self.expected.as_deref(), &traces);
            if seen.outcome == Outcome::Pass {
                return self.with_client(seen, &traces).await;
            }
            seen
        }
        .boxed()
    }
}

impl Domain {
    /// The join is good; warns if the service that uses it is down.
    async fn with_client(&self, seen: Observation, traces: &DomainTraces) -> Observation {
        let name = match (&traces.winbind, traces.sssd.is_empty()) {
            (_, false) => "sssd",
            (Some(_), true) => "winbind",
            (None, true) => return seen,
        };
        let Ok(units) = units::services(&[name]).await else {
            return seen;
        };
        match units.first() {
            Some(unit) if unit.installed && unit.active == "failed" => {
                let message =
                    format!("joined, but {name} has failed: logins of the domain may not work");
                Observation::new(Outcome::Warn, message.clone()).with(Finding {
                    subject: name.to_owned(),
                    code: "DOMAIN_CLIENT_DOWN".to_owned(),
                    message,
                    steps: vec![format!("{} is {} ({})", unit.name, unit.active, unit.sub)],
                    remedy: Some(
                        Remedy::text(format!("Start {name}; its log says why it failed."))
                            .command(format!("systemctl restart {name}"))
                            .command(format!("journalctl -u {name}")),
                    ),
                })
            }
            _ => seen,
        }
    }
}

fn judge(expected: Option<&str>, traces: &DomainTraces) -> Observation {
    let Some(wanted) = expected.map(str::to_owned).or_else(|| configured(traces)) else {
        return without_expectation(traces);
    };
    let because = match expected {
        Some(_) => "expected",
        None => "set up in sssd or Samba",
    };
    let mut steps = vec![format!("the domain {wanted} is {because}")];
    match &traces.keytab {
        Keytab::Realms(realms) => {
            let shown = realms.iter().cloned().collect::<Vec<_>>().join(", ");
            steps.push(format!(
                "/etc/krb5.keytab has this machine's keys for: {shown}"
            ));
            if realms
                .iter()
                .any(|realm| realm.eq_ignore_ascii_case(&wanted))
            {
                return joined(&wanted, steps);
            }
            if realms.is_empty() {
                return not_joined(&wanted, steps, "its keytab has no key of the machine");
            }
            other_domain(&wanted, &shown, steps)
        }
        Keytab::Missing => {
            steps.push("there is no /etc/krb5.keytab".to_owned());
            not_joined(&wanted, steps, "it has no keytab")
        }
        Keytab::Damaged => {
            steps.push("/etc/krb5.keytab is not a keytab".to_owned());
            not_joined(&wanted, steps, "its keytab is damaged")
        }
        Keytab::Unreadable => unreadable("/etc/krb5.keytab"),
    }
}

/// Nobody said which domain: what the machine itself shows is right.
fn without_expectation(traces: &DomainTraces) -> Observation {
    match &traces.keytab {
        Keytab::Realms(realms) if !realms.is_empty() => {
            let realm = realms.iter().next().cloned().unwrap_or_default();
            joined(
                &realm,
                vec!["/etc/krb5.keytab has this machine's keys".to_owned()],
            )
        }
        Keytab::Unreadable => unreadable("/etc/krb5.keytab"),
        Keytab::Missing | Keytab::Damaged | Keytab::Realms(_) if traces.sssd_unreadable => {
            unreadable("/etc/sssd/sssd.conf")
        }
        Keytab::Missing | Keytab::Damaged | Keytab::Realms(_) => Observation::new(
            Outcome::NotApplicable,
            "no domain is expected, and nothing on this machine speaks of one",
        ),
    }
}

fn configured(traces: &DomainTraces) -> Option<String> {
    traces
        .sssd
        .iter()
        .next()
        .cloned()
        .or_else(|| traces.winbind.clone())
}

fn joined(domain: &str, mut steps: Vec<String>) -> Observation {
    steps.push("whether a controller honours the keys was not tried".to_owned());
    let message = format!("joined to {domain}");
    Observation::new(Outcome::Pass, message.clone()).with(Finding {
        subject: domain.to_owned(),
        code: "DOMAIN_JOINED".to_owned(),
        message,
        steps,
        remedy: None,
    })
}

fn not_joined(wanted: &str, steps: Vec<String>, why: &str) -> Observation {
    let message = format!("not joined to {wanted}: {why}");
    Observation::new(Outcome::Fail, message.clone()).with(Finding {
        subject: wanted.to_owned(),
        code: "DOMAIN_NOT_JOINED".to_owned(),
        message,
        steps,
        remedy: Some(
            Remedy::text(format!("Join this machine to {wanted}."))
                .command(format!("realm join {}", wanted.to_lowercase())),
        ),
    })
}

fn other_domain(wanted: &str, found: &str, steps: Vec<String>) -> Observation {
    let message = format!("joined to {found} instead of {wanted}");
    Observation::new(Outcome::Fail, message.clone()).with(Finding {
        subject: wanted.to_owned(),
        code: "DOMAIN_OTHER".to_owned(),
        message,
        steps,
        remedy: Some(
            Remedy::text(format!(
                "Leave {found} and join {wanted}, or correct the expected domain of the pool."
            ))
            .command("realm leave")
            .command(format!("realm join {}", wanted.to_lowercase())),
        ),
    })
}

fn unreadable(path: &str) -> Observation {
    cannot_run(
        path,
        format!("{path} is there and the agent may not read it"),
        Remedy::text("Run the agent as root: only root may read it."),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_core::model::UnknownCause;

    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn traces(keytab: Keytab, sssd: &[&str]) -> DomainTraces {
        DomainTraces {
            keytab,
            sssd: set(sssd),
            sssd_unreadable: false,
            winbind: None,
        }
    }

    fn realms(names: &[&str]) -> Keytab {
        Keytab::Realms(set(names))
    }

    #[test]
    fn every_case_has_its_outcome_and_cause() {
        let cannot = Outcome::Unknown(UnknownCause::CannotRun);
        let table = [
            (
                None,
                traces(Keytab::Missing, &[]),
                Outcome::NotApplicable,
                "",
            ),
            (None, traces(realms(&[]), &[]), Outcome::NotApplicable, ""),
            (
                None,
                traces(realms(&["A.ORG"]), &[]),
                Outcome::Pass,
                "DOMAIN_JOINED",
            ),
            (None, traces(Keytab::Unreadable, &[]), cannot, "CANNOT_RUN"),
            (
                None,
                traces(realms(&["A.ORG"]), &["a.org"]),
                Outcome::Pass,
                "DOMAIN_JOINED",
            ),
            (
                None,
                traces(Keytab::Missing, &["a.org"]),
                Outcome::Fail,
                "DOMAIN_NOT_JOINED",
            ),
            (
                Some("a.org"),
                traces(Keytab::Missing, &[]),
                Outcome::Fail,
                "DOMAIN_NOT_JOINED",
            ),
            (
                Some("a.org"),
                traces(Keytab::Damaged, &[]),
                Outcome::Fail,
                "DOMAIN_NOT_JOINED",
            ),
            (
                Some("a.org"),
                traces(realms(&[]), &[]),
                Outcome::Fail,
                "DOMAIN_NOT_JOINED",
            ),
            (
                Some("a.org"),
                traces(realms(&["A.ORG"]), &[]),
                Outcome::Pass,
                "DOMAIN_JOINED",
            ),
            (
                Some("a.org"),
                traces(realms(&["B.ORG"]), &[]),
                Outcome::Fail,
                "DOMAIN_OTHER",
            ),
            (
                Some("a.org"),
                traces(Keytab::Unreadable, &[]),
                cannot,
                "CANNOT_RUN",
            ),
        ];
        for (expected, traces, outcome, code) in table {
            let seen = judge(expected, &traces);
            assert_eq!(seen.outcome, outcome, "{expected:?}, {traces:?}");
            let found = seen.findings.first().map_or("", |finding| &finding.code);
            assert_eq!(found, code, "{expected:?}, {traces:?}");
            let needs_remedy = outcome.is_bad();
            assert_eq!(
                seen.findings.iter().any(|f| f.remedy.is_some()),
                needs_remedy
            );
        }
    }

    #[test]
    fn settings_that_may_not_be_read_are_not_taken_for_none() {
        let hidden = DomainTraces {
            sssd_unreadable: true,
            ..traces(Keytab::Missing, &[])
        };
        assert_eq!(
            judge(None, &hidden).outcome,
            Outcome::Unknown(UnknownCause::CannotRun)
        );
    }

    #[tokio::test]
    async fn an_expected_domain_fails_on_a_machine_without_traces() {
        let root = tempfile::tempdir().unwrap();
        let check = Domain {
            expected: Some("a.org".to_owned()),
            root: root.path().to_owned(),
        };
        assert_eq!(check.run().await.outcome, Outcome::Fail);
    }
}
