//! `domain`: is this machine joined to the domain that it should be joined to?
//!
//! Where nothing is expected and nothing speaks of a domain, the check does not apply. A machine
//! is joined when its keytab holds its own keys for the domain's realm, and trusted when a
//! controller gives a ticket for them, which is tried at the start, when the keys change, after a
//! failure, and every fifteen minutes. A controller that is not reached, and clocks that differ, are
//! warnings here and failures of `domain_reachable`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Mono, Outcome, Remedy},
};
use muster_runtime::clock;
use parking_lot::Mutex;

use super::{
    Check, Inputs, cannot_run,
    domain_reachable::{reach, told},
};
use crate::{
    platform::{
        domain::{self, DomainTraces, Keytab, MachineKey},
        kerberos::{self, Login},
        machine, units,
    },
    probe::tcp::Problem,
};

const SUBJECT: &str = "domain";

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let expected = inputs.config.check.domain.expected.as_ref();
    Arc::new(Domain {
        expected: expected.or(inputs.policy.expected_domain.as_ref()).cloned(),
        root: PathBuf::from("/"),
        hostname: machine::hostname(),
        budget: inputs.budget(),
        honoured: Mutex::default(),
    })
}

/// How long a controller's yes to the same keys counts: a fleet must not log in all the time.
const LOGIN_EVERY: Duration = Duration::from_mins(15);

struct Domain {
    expected: Option<String>,
    root: PathBuf,
    hostname: String,
    budget: Duration,
    /// Keys that a controller honoured, and when.
    honoured: Mutex<Option<(Mono, MachineKey)>>,
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
            if seen.outcome != Outcome::Pass {
                return seen;
            }
            let seen = self.with_controllers(seen, &traces).await;
            if seen.outcome != Outcome::Pass {
                return seen;
            }
            self.with_client(seen, &traces).await
        }
        .boxed()
    }
}

impl Domain {
    /// The keytab is good; fails if a controller refuses it, and warns if none is reached.
    async fn with_controllers(&self, seen: Observation, traces: &DomainTraces) -> Observation {
        let mut found = seen.findings.into_iter().next().unwrap_or_default();
        let realm = found.subject.clone();
        let mine = own_key(&traces.principals, &realm, &self.hostname);
        let Some((key, is_own)) = mine else {
            return Observation::new(seen.outcome, seen.message).with(found);
        };
        found.steps.push(format!(
            "newest key of {} has number {}",
            key.name, key.newest
        ));
        let warn = |steps, problem| told(Outcome::Warn, &realm, steps, problem);
        if let Err(problem) = reach(&realm, self.budget / 2, &mut found.steps).await {
            return warn(found.steps, problem);
        }
        if !self.still_honoured(key) {
            match kerberos::login(key, self.budget / 2).await {
                Login::Honoured => {
                    found
                        .steps
                        .push(format!("a controller gave {} a ticket", key.name));
                    *self.honoured.lock() = Some((clock::boot(), key.clone()));
                }
                Login::Refused(said) => {
                    return told(
                        Outcome::Fail,
                        &realm,
                        found.steps,
                        broken(&realm, key, &said),
                    );
                }
                Login::NotTold(why) => found.steps.push(format!("trust was not tried: {why}")),
            }
        }
        if !is_own {
            return warn(found.steps, other_host(key, &self.hostname));
        }
        Observation::new(Outcome::Pass, found.message.clone()).with(found)
    }

    fn still_honoured(&self, key: &MachineKey) -> bool {
        self.honoured
            .lock()
            .as_ref()
            .is_some_and(|(at, known)| known == key && clock::boot().since(*at) < LOGIN_EVERY)
    }

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

/// The domain that this machine shows itself, where none is expected.
pub(super) fn found(traces: &DomainTraces) -> Option<String> {
    configured(traces).or_else(|| traces.principals.first().map(|key| key.realm.clone()))
}

/// The key that controllers know this machine by, and whether it names this host.
fn own_key<'a>(
    keys: &'a [MachineKey],
    realm: &str,
    hostname: &str,
) -> Option<(&'a MachineKey, bool)> {
    /// Names of machines are cut to what NetBIOS takes.
    const NETBIOS: usize = 15;
    let short = hostname.split('.').next().unwrap_or_default();
    let short = short.get(..NETBIOS).unwrap_or(short);
    let mut of_realm = keys
        .iter()
        .filter(|key| key.realm.eq_ignore_ascii_case(realm) && key.name.ends_with('$'));
    let own = of_realm
        .clone()
        .find(|key| key.name.trim_end_matches('$').eq_ignore_ascii_case(short));
    own.map(|key| (key, true))
        .or_else(|| Some((of_realm.next()?, false)))
}

fn broken(realm: &str, key: &MachineKey, said: &str) -> Problem {
    Problem {
        code: "DOMAIN_TRUST_BROKEN",
        message: format!(
            "{realm} refuses the keys of {} (number {}): {said}",
            key.name, key.newest
        ),
        remedy: Remedy::text(
            "The account was reset, deleted or disabled, or another machine took its place: join \
             again.",
        )
        .command("realm leave")
        .command(format!("realm join {}", realm.to_lowercase()))
        .command("klist -k"),
    }
}

fn other_host(key: &MachineKey, hostname: &str) -> Problem {
    Problem {
        code: "DOMAIN_OTHER_HOST",
        message: format!("joined as {}, and the host is called {hostname}", key.name),
        remedy: Remedy::text(
            "If this machine is a clone, leave the domain and join it under its own name.",
        )
        .command("adcli testjoin")
        .command("klist -k"),
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

fn joined(domain: &str, steps: Vec<String>) -> Observation {
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
            principals: Vec::new(),
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
    fn the_key_of_this_host_is_chosen_by_its_name() {
        let key = |name: &str| MachineKey {
            name: name.to_owned(),
            realm: "A.ORG".to_owned(),
            newest: 2,
        };
        let keys = [key("host/vdi-01"), key("GOLD$"), key("VDI-01-WITH-LON$")];
        let chosen =
            |hostname| own_key(&keys, "a.org", hostname).map(|(key, own)| (&*key.name, own));
        assert_eq!(
            chosen("vdi-01-with-long-name.a.org"),
            Some(("VDI-01-WITH-LON$", true))
        );
        assert_eq!(chosen("other"), Some(("GOLD$", false)));
        assert_eq!(own_key(&keys, "b.org", "gold"), None);
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
            hostname: "vdi-01".to_owned(),
            budget: Duration::from_secs(5),
            honoured: Mutex::default(),
        };
        assert_eq!(check.run().await.outcome, Outcome::Fail);
    }
}
