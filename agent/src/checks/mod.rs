//! The checks, one file each, behind one trait.
//!
//! A check looks and says what it saw; it never decides what that means for the host. Each ends by
//! itself within its budget, which is less than the limit at which its run is ended from outside,
//! so that a slow network is told as such, with the steps that were tried. To add one: write the
//! file, and add its line to [`REGISTRY`].

pub mod domain;
pub mod domain_reachable;
pub mod metadata_service;
pub mod monitoring_agent;
pub mod own;
pub mod session_listener;
pub mod urls;
mod urls_observed;
mod urls_told;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use muster_core::{
    agent::{CheckSpec, HostPolicy, Observation},
    model::{CheckName, CheckPace, Finding, Outcome, Remedy, UnknownCause},
};
use tokio::sync::watch;

use crate::{config::Config, session::LinkState};

/// One check.
pub trait Check: Send + Sync {
    /// Looks once. Dropped when the run takes too long.
    fn run(&self) -> BoxFuture<'_, Observation>;
}

/// What checks are made of.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// The machine's own configuration.
    pub config: &'a Config,
    /// What the pool wants.
    pub policy: &'a HostPolicy,
    /// How the session with the broker fares.
    pub link: &'a watch::Receiver<LinkState>,
    /// The check's own pace.
    pub pace: CheckPace,
}

impl Inputs<'_> {
    /// Time that a run may take by its own reckoning: what is left of the limit is for the machine
    /// being slow.
    #[must_use]
    pub fn budget(&self) -> Duration {
        budget(self.pace)
    }
}

fn budget(pace: CheckPace) -> Duration {
    pace.timeout * 4 / 5
}

/// A kind of check that this agent has.
struct Registration {
    name: &'static str,
    make: fn(Inputs<'_>) -> Arc<dyn Check>,
}

/// Every check that this agent has, one line each, in the order in which they are shown.
const REGISTRY: &[Registration] = &[
    Registration {
        name: "session_listener",
        make: session_listener::make,
    },
    Registration {
        name: "domain",
        make: domain::make,
    },
    Registration {
        name: "domain_reachable",
        make: domain_reachable::make,
    },
    Registration {
        name: "monitoring_agent",
        make: monitoring_agent::make,
    },
    Registration {
        name: "metadata_service",
        make: metadata_service::make,
    },
    Registration {
        name: "urls",
        make: urls::make,
    },
];

/// A check that is to run, with its place in the schedule.
#[derive(Clone)]
pub struct Planned {
    /// Its place.
    pub spec: CheckSpec,
    /// None where this agent has no such check.
    pub check: Option<Arc<dyn Check>>,
}

/// Names of all checks that this agent has.
#[must_use]
pub fn names() -> Vec<&'static str> {
    REGISTRY
        .iter()
        .map(|registration| registration.name)
        .collect()
}

/// The checks that run under this configuration and policy: all that this agent has, the own ones
/// of this machine, and those of the policy that are neither, which are told as unsupported.
#[must_use]
pub fn plan(
    config: &Config,
    policy: &HostPolicy,
    link: &watch::Receiver<LinkState>,
) -> Vec<Planned> {
    let own = config.check.paces();
    let mut planned = Vec::new();
    for registration in REGISTRY {
        let Ok(name) = CheckName::new(registration.name) else {
            continue;
        };
        let base = policy
            .check(registration.name)
            .map_or_else(CheckPace::default, |check| check.pace());
        let set = own.iter().find(|(name, _)| *name == registration.name);
        let pace = set.map_or(base, |(_, set)| set.over(base));
        planned.push(Planned {
            spec: CheckSpec {
                name,
                kind: registration.name.into(),
                pace,
                supported: true,
            },
            check: Some((registration.make)(Inputs {
                config,
                policy,
                link,
                pace,
            })),
        });
    }
    for own in config.own.iter() {
        let name = &own.common.name;
        let base = policy
            .check(name.as_str())
            .map_or_else(CheckPace::default, |check| check.pace());
        let pace = own.common.pace.over(base);
        planned.push(Planned {
            spec: CheckSpec {
                name: name.clone(),
                kind: own.kind.into(),
                pace,
                supported: true,
            },
            check: Some(own.make(config, budget(pace))),
        });
    }
    for check in &policy.checks {
        if !planned.iter().any(|known| known.spec.name == check.name) {
            planned.push(Planned {
                spec: CheckSpec {
                    name: check.name.clone(),
                    kind: check.name.as_str().into(),
                    pace: check.pace(),
                    supported: false,
                },
                check: None,
            });
        }
    }
    planned
}

/// The check could not look at all.
fn cannot_run(subject: &str, message: String, remedy: Remedy) -> Observation {
    Observation::new(Outcome::Unknown(UnknownCause::CannotRun), message.clone()).with(Finding {
        subject: subject.to_owned(),
        code: "CANNOT_RUN".to_owned(),
        message,
        steps: Vec::new(),
        remedy: Some(remedy),
    })
}

#[cfg(test)]
mod tests {
    use muster_core::{agent::CheckPolicy, model::Severity, model::default_check_names};

    use super::*;

    #[test]
    fn all_checks_of_the_design_are_registered() {
        let names = names();
        for name in default_check_names() {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn the_file_wins_over_the_policy_and_unknown_checks_are_unsupported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, "[check.urls]\ninterval = \"7s\"\n").unwrap();
        let config = Config::load(&path, true).unwrap();
        let check = |name: &str| CheckPolicy {
            name: CheckName::new(name).unwrap(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(3),
            rise: 1,
            fall: 4,
            severity: Severity::Fatal,
        };
        let policy = HostPolicy {
            checks: vec![check("urls"), check("domain"), check("gpu")],
            ..HostPolicy::default()
        };
        let (_sender, link) = watch::channel(LinkState::default());
        let planned = plan(&config, &policy, &link);
        let find = |name: &str| {
            let found = planned
                .iter()
                .find(|known| known.spec.name.as_str() == name);
            &found.unwrap().spec
        };
        assert_eq!(find("urls").pace.interval, Duration::from_secs(7));
        assert_eq!(find("urls").pace.fall, 4);
        assert_eq!(find("domain").pace.interval, Duration::from_secs(60));
        assert_eq!(find("session_listener").pace, CheckPace::default());
        assert!(!find("gpu").supported && find("urls").supported);
    }

    #[test]
    fn a_policy_sets_the_pace_of_an_own_check_and_nothing_makes_one() {
        let folder = tempfile::tempdir().unwrap();
        let text = "[[check]]\nname = 'mine'\nkind = 'memory'\nfall = 3\ntime_to_live = '1h'\n";
        std::fs::write(folder.path().join("a.toml"), text).unwrap();
        let mut config = Config {
            checks_dir: folder.path().to_owned(),
            ..Config::default()
        };
        config.load_own_checks().unwrap();
        let check = |name: &str| CheckPolicy {
            name: CheckName::new(name).unwrap(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(3),
            rise: 2,
            fall: 4,
            severity: Severity::Fatal,
        };
        let policy = HostPolicy {
            checks: vec![check("mine"), check("yours")],
            ..HostPolicy::default()
        };
        let (_sender, link) = watch::channel(LinkState::default());
        let planned = plan(&config, &policy, &link);
        let find = |name: &str| {
            planned
                .iter()
                .find(|known| known.spec.name.as_str() == name)
        };
        let mine = &find("mine").unwrap().spec;
        assert_eq!((&*mine.kind, mine.supported), ("memory", true));
        assert_eq!(mine.pace.interval, Duration::from_secs(60));
        assert_eq!((mine.pace.rise, mine.pace.fall), (2, 3));
        assert_eq!(mine.pace.time_to_live(), Duration::from_secs(3600));
        let yours = find("yours").unwrap();
        assert!(!yours.spec.supported && yours.check.is_none());
    }
}
