//! `urls`: what became of each target, what that is called, and what it comes to.

use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy, RequiredUrl},
};
use reqwest::Url;

use super::urls::MAX_REDIRECTS;
use crate::probe::{hosts_file, tcp::Problem};

/// What is tried, and what came of it.
pub(super) struct Tried {
    pub(super) finding: Finding,
    pub(super) kind: Kind,
    pub(super) reached: bool,
    /// The wildcard that it stands for.
    pub(super) wildcard: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Broker,
    Url,
    /// It may be gone for good: not reaching it is a warning.
    Doubtful,
}

pub(super) fn judge_status(status: u16, shown: &str) -> Result<(), Problem> {
    match status {
        407 => Err(Problem {
            code: "PROXY_REFUSED",
            message: "the proxy wants a login".to_owned(),
            remedy: Remedy::text(
                "Let the proxy pass this URL without login, or exempt it by no_proxy.",
            ),
        }),
        500.. => Err(Problem {
            code: "HTTP_STATUS",
            message: format!("answers {shown}"),
            remedy: Remedy::text(
                "The way there is open: look at the service itself, or at the proxy that answers \
                 for it.",
            ),
        }),
        _ => Ok(()),
    }
}

pub(super) fn too_many_redirects() -> Problem {
    Problem {
        code: "HTTP_REDIRECTS",
        message: format!("redirects more than {MAX_REDIRECTS} times"),
        remedy: Remedy::text(
            "A login page or a loop answers for the service: look at proxies on the way and \
                 at the service.",
        ),
    }
}

pub(super) fn invalid() -> Problem {
    Problem {
        code: "URL_INVALID",
        message: "not an http or https URL".to_owned(),
        remedy: Remedy::text("Correct the URL in agent.toml or in the pool's policy."),
    }
}

pub(super) fn not_allowed() -> Problem {
    Problem {
        code: "URL_NOT_ALLOWED",
        message: "not tried: a pool may name http and https URLs on ports 80 and 443, without \
                  user name and password"
            .to_owned(),
        remedy: Remedy::text(
            "If it is meant, name it in this machine's own agent.toml under [check.urls] required.",
        ),
    }
}

/// What a target is called. Credentials and queries of a URL are nobody else's business.
pub(super) fn subject(required: &RequiredUrl) -> String {
    let shown = match Url::parse(&required.url) {
        Ok(mut url) => {
            let cleared = url.set_username("").and_then(|()| url.set_password(None));
            url.set_query(None);
            match cleared {
                Ok(()) => url.to_string(),
                Err(()) => "a URL".to_owned(),
            }
        }
        Err(_) => "a URL that cannot be read".to_owned(),
    };
    format!("{shown} ({})", required.role)
}

/// An entry of the hosts file that led astray is the first thing to mend.
pub(super) fn blame_hosts_file(problem: Problem, steps: &[String]) -> Problem {
    let entry = steps
        .iter()
        .find_map(|step| step.strip_prefix("hosts file: "));
    let Some(entry) = entry else {
        return problem;
    };
    let line = entry
        .split_once(" line ")
        .and_then(|(_, rest)| rest.split_once(':'))
        .map_or("", |(line, _)| line);
    Problem {
        code: "HOSTS_FILE",
        message: format!("blocked by {entry} ({})", problem.message),
        remedy: Remedy::text(format!(
            "Take line {line} out of {} if it is not meant: it wins over DNS.",
            hosts_file::PATH
        ))
        .command(format!("sed -i '{line}d' {}", hosts_file::PATH)),
    }
}

/// A name under a wildcard that no name server knows while others of it are reached is gone, not
/// blocked: a log remembers longer than a service lives.
pub(super) fn without_the_gone(tried: Vec<Tried>) -> Vec<Tried> {
    let alive: Vec<_> = tried
        .iter()
        .filter(|one| one.reached)
        .filter_map(|one| one.wildcard.clone())
        .collect();
    tried
        .into_iter()
        .filter(|one| {
            let wildcard = one.wildcard.as_ref();
            one.kind != Kind::Doubtful || !wildcard.is_some_and(|known| alive.contains(known))
        })
        .collect()
}

pub(super) fn unseen(wildcard: &str) -> Tried {
    let message = format!("no name of {wildcard} has been seen here yet: nothing can be tried");
    Tried {
        finding: Finding {
            subject: wildcard.to_owned(),
            code: NOT_OBSERVED.to_owned(),
            message,
            steps: Vec::new(),
            remedy: Some(Remedy::text(
                "Name one that matters as a URL of its own, or a file that holds such names, as \
                 observed_in under [check.urls] of agent.toml.",
            )),
        },
        kind: Kind::Url,
        reached: true,
        wildcard: None,
    }
}

/// Code of a wildcard of which no name is known.
const NOT_OBSERVED: &str = "URL_NOT_OBSERVED";

pub(super) fn judge(mut tried: Vec<Tried>) -> Observation {
    // What certainly fails first, then what may be gone, then what is well.
    tried.sort_by_key(|one| (one.reached, one.kind == Kind::Doubtful));
    let count = |kind: Kind, reached: bool| {
        tried
            .iter()
            .filter(|one| one.kind == kind && one.reached == reached)
            .count()
    };
    let (brokers_reached, urls_lost) = (count(Kind::Broker, true), count(Kind::Url, false));
    let brokers = brokers_reached + count(Kind::Broker, false);
    let lost = tried.iter().filter(|one| !one.reached).count();
    let unseen: Vec<_> = tried
        .iter()
        .filter(|one| one.finding.code == NOT_OBSERVED)
        .map(|one| one.finding.subject.clone())
        .collect();
    let all = tried.len() - unseen.len();
    // One broker is enough to be heard; the others are a spare that is missing.
    let outcome = if urls_lost > 0 || (brokers > 0 && brokers_reached == 0) {
        Outcome::Fail
    } else if lost > 0 {
        Outcome::Warn
    } else {
        Outcome::Pass
    };
    let outcome = if all == 0 {
        Outcome::NotApplicable
    } else {
        outcome
    };
    let mut message = match tried.iter().find(|one| !one.reached) {
        None if all == 0 => "nothing can be tried".to_owned(),
        None => format!("all {all} reachable"),
        Some(first) => format!(
            "{lost} of {all} not reachable: {}: {}",
            first.finding.subject, first.finding.message
        ),
    };
    if !unseen.is_empty() {
        let unseen = unseen.join(", ");
        message = format!("{message}; no name of {unseen} has been seen here yet");
    }
    let mut seen = Observation::new(outcome, message);
    seen.findings = tried.into_iter().map(|one| one.finding).collect();
    seen
}
