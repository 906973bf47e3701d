//! `domain_reachable`: can this machine reach a controller of its domain, and do the clocks agree?
//!
//! A check of its own beside `domain`, so that one dead controller cannot throw out a fleet: there
//! the same is a warning. Controllers are found as clients find them, by SRV records.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy},
};
use muster_runtime::clock;

use super::{Check, Inputs, domain};
use crate::{
    platform,
    probe::{
        dns::{self, ServiceError, ServiceHost},
        ldap,
        tcp::{self, Problem},
    },
};

/// Controllers that are tried in one run.
const MAX_CONTROLLERS: usize = 3;
/// Kerberos refuses tickets when the clocks differ by more than this.
const MAX_SKEW: Duration = Duration::from_mins(5);
const LDAP: u16 = 389;
const KERBEROS: u16 = 88;

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let expected = inputs.config.check.domain.expected.as_ref();
    Arc::new(DomainReachable {
        expected: expected.or(inputs.policy.expected_domain.as_ref()).cloned(),
        budget: inputs.budget(),
        root: PathBuf::from("/"),
    })
}

struct DomainReachable {
    expected: Option<String>,
    budget: Duration,
    root: PathBuf,
}

impl Check for DomainReachable {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            let root = self.root.clone();
            let look = move || platform::domain::traces(Path::new(&root));
            let traces = tokio::task::spawn_blocking(look).await.ok();
            let found = traces.as_ref().and_then(domain::found);
            let Some(wanted) = self.expected.clone().or(found) else {
                return Observation::new(
                    Outcome::NotApplicable,
                    "no domain is expected, and nothing on this machine speaks of one",
                );
            };
            let mut steps = Vec::new();
            match reach(&wanted, self.budget, &mut steps).await {
                Ok(controller) => Observation::new(
                    Outcome::Pass,
                    format!("{controller} of {wanted} answers, and the clocks agree"),
                ),
                Err(problem) => told(Outcome::Fail, &wanted, steps, problem),
            }
        }
        .boxed()
    }
}

/// A problem on the way to a domain, as an outcome.
pub(super) fn told(
    outcome: Outcome,
    domain: &str,
    steps: Vec<String>,
    problem: Problem,
) -> Observation {
    Observation::new(outcome, problem.message.clone()).with(Finding {
        subject: domain.to_owned(),
        code: problem.code.to_owned(),
        message: problem.message,
        steps,
        remedy: Some(problem.remedy),
    })
}

/// Finds a controller that answers on the ports of LDAP and Kerberos, and compares the clocks.
///
/// # Errors
/// What keeps this machine from it; of several controllers the first one's problem.
pub(super) async fn reach(
    domain: &str,
    budget: Duration,
    steps: &mut Vec<String>,
) -> Result<String, Problem> {
    let controllers = find(domain, budget / 4, steps).await?;
    let each = budget / 2 / u32::try_from(controllers.len()).unwrap_or(1).max(1);
    let mut first = None;
    for controller in &controllers {
        match try_one(controller, each, steps).await {
            Ok(()) => return Ok(controller.name.clone()),
            Err(problem) => first = first.or(Some(problem)),
        }
    }
    Err(first.unwrap_or_else(|| no_records(domain)))
}

async fn find(
    domain: &str,
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<Vec<ServiceHost>, Problem> {
    let read = || dns::servers(Path::new(dns::RESOLV_CONF));
    let servers = tokio::task::spawn_blocking(read).await.unwrap_or_default();
    let domain = domain.to_lowercase();
    // Active Directory's own name first; others have the plain one.
    for name in [
        format!("_ldap._tcp.dc._msdcs.{domain}"),
        format!("_ldap._tcp.{domain}"),
    ] {
        match dns::service(&name, &servers, limit / 2).await {
            Ok(mut hosts) if !hosts.is_empty() => {
                let shown: Vec<_> = hosts.iter().map(|host| host.name.clone()).collect();
                steps.push(format!("dns: {name} is {}", shown.join(", ")));
                hosts.truncate(MAX_CONTROLLERS);
                return Ok(hosts);
            }
            Ok(_) | Err(ServiceError::None) => steps.push(format!("dns: no records {name}")),
            Err(error) => {
                steps.push(format!("dns: {name}: {error}"));
                return Err(Problem {
                    code: "DOMAIN_DNS",
                    message: format!("controllers of {domain} cannot be looked up: {error}"),
                    remedy: Remedy::text(
                        "Let /etc/resolv.conf name the domain's DNS servers, and let this machine \
                         reach them on port 53.",
                    )
                    .command(format!("dig SRV {name}")),
                });
            }
        }
    }
    Err(no_records(&domain))
}

fn no_records(domain: &str) -> Problem {
    Problem {
        code: "DOMAIN_NO_RECORDS",
        message: format!("DNS knows no controller of {domain}"),
        remedy: Remedy::text(
            "Let /etc/resolv.conf name the domain's own DNS servers; others do not know its SRV \
             records.",
        )
        .command(format!("dig SRV _ldap._tcp.{domain}")),
    }
}

async fn try_one(
    controller: &ServiceHost,
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<(), Problem> {
    let name = &controller.name;
    let lost = |what: &str, problem: Problem| Problem {
        code: "DOMAIN_CONTROLLER_UNREACHABLE",
        message: format!("{what} of the controller {name}: {}", problem.message),
        remedy: Remedy {
            text: format!(
                "Start the controller, or open the way. {}",
                problem.remedy.text
            ),
            commands: problem.remedy.commands,
        },
    };
    let addresses = tcp::resolve(name, LDAP, limit / 4, steps).await;
    let mut addresses = addresses.map_err(|problem| lost("the name", problem))?;
    let directory = tcp::connect(&addresses, limit / 4, steps).await;
    let directory = directory.map_err(|problem| lost("LDAP", problem))?;
    for address in &mut addresses {
        address.set_port(KERBEROS);
    }
    let tickets = tcp::connect(&addresses, limit / 4, steps).await;
    tickets.map_err(|problem| lost("Kerberos", problem))?;
    match ldap::clock(directory, limit / 4).await {
        Ok(Some(theirs)) => {
            let skew = theirs.duration_since(clock::now().wall);
            steps.push(format!("clock: {name} is {} s ahead", skew.as_secs()));
            if skew.unsigned_abs() > MAX_SKEW {
                return Err(skewed(name, skew.as_secs()));
            }
        }
        Ok(None) => steps.push(format!("clock: {name} does not tell")),
        Err(error) => steps.push(format!("clock: {name} does not tell: {error}")),
    }
    Ok(())
}

fn skewed(controller: &str, ahead: i64) -> Problem {
    let which = if ahead > 0 { "behind" } else { "ahead of" };
    Problem {
        code: "DOMAIN_CLOCK_SKEW",
        message: format!(
            "this machine's clock is {} s {which} {controller}: Kerberos refuses it",
            ahead.abs()
        ),
        remedy: Remedy::text("Set the clock, and keep it by NTP.")
            .command("timedatectl set-ntp true")
            .command("chronyc makestep || systemctl restart systemd-timesyncd"),
    }
}
