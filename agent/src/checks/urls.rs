//! `urls`: are the brokers and the required URLs reachable, and if not, which step fails?
//!
//! For each URL the steps are told that a person would try: hosts file, name, TCP, TLS, HTTP, or
//! the proxy that the environment names. Redirects are followed, because who they point to has to
//! be reachable too. Any answer below 500 counts: the check is about the way
//! there. A broker that the session is open to needs no second connection; the others are tried by
//! TCP alone, and what the last attempt at a session met is told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream,
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy, RequiredUrl},
};
use reqwest::{Response, Url, header::LOCATION};
use tokio::sync::watch;

use super::{Check, Inputs};
use crate::{
    config::is_url,
    probe::{
        hosts_file, http,
        tcp::{self, Problem},
        tls,
    },
    session::LinkState,
};

/// Targets of one run: 16 brokers, 32 URLs of the file, and as many of the policy.
const MAX_TARGETS: usize = 80;
/// Redirects that are followed: services use one or two, browsers give up at twenty.
const MAX_REDIRECTS: usize = 4;
/// Targets tried at once: enough to be through in time, too few to look like an attack.
const AT_ONCE: usize = 16;

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let local = inputs.config.check.urls.required.clone();
    let of_pool = inputs.policy.urls.iter();
    let of_pool = of_pool.filter(|url| !local.iter().any(|known| known.url == url.url));
    Arc::new(Urls {
        brokers: inputs.config.brokers.clone(),
        of_pool: of_pool.cloned().collect(),
        local,
        link: inputs.link.clone(),
        budget: inputs.budget(),
    })
}

struct Urls {
    brokers: Vec<String>,
    /// What this machine's own file requires: any port.
    local: Vec<RequiredUrl>,
    /// What the pool requires: a broker must not make its hosts probe a network, so only the
    /// ports of the web.
    of_pool: Vec<RequiredUrl>,
    link: watch::Receiver<LinkState>,
    budget: Duration,
}

/// What is tried, and what came of it.
struct Tried {
    finding: Finding,
    is_broker: bool,
    reached: bool,
}

enum Target {
    Broker(String),
    Url(RequiredUrl),
    NotAllowed(RequiredUrl),
}

impl Check for Urls {
    fn run(&self) -> BoxFuture<'_, Observation> {
        self.look().boxed()
    }
}

impl Urls {
    async fn look(&self) -> Observation {
        let link = self.link.borrow().clone();
        let brokers = if link.brokers.is_empty() {
            self.brokers.clone()
        } else {
            link.brokers
                .iter()
                .map(|broker| broker.to_string())
                .collect()
        };
        let targets: Vec<_> = brokers
            .into_iter()
            .map(Target::Broker)
            .chain(self.local.iter().cloned().map(Target::Url))
            .chain(self.of_pool.iter().cloned().map(of_pool))
            .take(MAX_TARGETS)
            .collect();
        if targets.is_empty() {
            return Observation::new(
                Outcome::NotApplicable,
                "no broker is known and no URL is required",
            );
        }
        let tries: Vec<_> = targets
            .iter()
            .map(|target| self.try_one(target, &link))
            .collect();
        let tried: Vec<Tried> = stream::iter(tries).buffered(AT_ONCE).collect().await;
        judge(tried)
    }

    async fn try_one(&self, target: &Target, link: &LinkState) -> Tried {
        let mut steps = Vec::new();
        let (subject, is_broker, result) = match target {
            Target::Broker(endpoint) => {
                let result = self.try_broker(endpoint, link, &mut steps).await;
                (format!("broker {endpoint}"), true, result)
            }
            Target::Url(required) => {
                let subject = subject(required);
                (
                    subject,
                    false,
                    self.try_url(&required.url, &mut steps).await,
                )
            }
            Target::NotAllowed(required) => (subject(required), false, Err(not_allowed())),
        };
        let reached = result.is_ok();
        let finding = match result {
            Ok(()) => Finding {
                subject,
                code: "REACHED".to_owned(),
                message: "reachable".to_owned(),
                steps,
                remedy: None,
            },
            Err(problem) => Finding {
                subject,
                code: problem.code.to_owned(),
                message: problem.message,
                steps,
                remedy: Some(problem.remedy),
            },
        };
        Tried {
            finding,
            is_broker,
            reached,
        }
    }

    async fn try_broker(
        &self,
        endpoint: &str,
        link: &LinkState,
        steps: &mut Vec<String>,
    ) -> Result<(), Problem> {
        if link.connected.as_deref() == Some(endpoint) {
            steps.push("the session is open there".to_owned());
            return Ok(());
        }
        if let Some(problem) = link.problems.get(endpoint) {
            steps.push(format!("the last attempt at a session: {problem}"));
        }
        let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, ""));
        let port = port.parse().unwrap_or(0);
        self.open(host, port, steps).await.map(drop)
    }

    async fn open(
        &self,
        host: &str,
        port: u16,
        steps: &mut Vec<String>,
    ) -> Result<Vec<SocketAddr>, Problem> {
        let addresses = tcp::resolve(host, port, self.budget / 3, steps)
            .await
            .map_err(|problem| blame_hosts_file(problem, steps))?;
        let stream = tcp::connect(&addresses, self.budget / 3, steps)
            .await
            .map_err(|problem| blame_hosts_file(problem, steps))?;
        Ok(stream.peer_addr().map_or(addresses, |peer| vec![peer]))
    }

    async fn try_url(&self, text: &str, steps: &mut Vec<String>) -> Result<(), Problem> {
        let mut next = Url::parse(text).map_err(|_| invalid())?;
        for _ in 0..=MAX_REDIRECTS {
            let response = self.request(&next, steps).await?;
            let status = response.status();
            let target = response
                .headers()
                .get(LOCATION)
                .filter(|_| status.is_redirection())
                .and_then(|location| location.to_str().ok())
                .and_then(|location| next.join(location).ok());
            if let Some(target) = target.filter(|target| may_follow(&next, target)) {
                // Another machine that has to be reachable too. Never its query: it may hold keys.
                let host = target.host_str().unwrap_or_default();
                steps.push(format!("redirect: to {}://{host}", target.scheme()));
                next = target;
                continue;
            }
            return judge_status(status.as_u16(), &status.to_string());
        }
        Err(Problem {
            code: "HTTP_REDIRECTS",
            message: format!("redirects more than {MAX_REDIRECTS} times"),
            remedy: Remedy::text(
                "A login page or a loop answers for the service: look at proxies on the way and \
                 at the service.",
            ),
        })
    }

    /// One request, directly or by the proxy that is in force.
    async fn request(&self, url: &Url, steps: &mut Vec<String>) -> Result<Response, Problem> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(invalid());
        };
        let proxy = url
            .as_str()
            .parse()
            .ok()
            .and_then(|uri| Matcher::from_env().intercept(&uri));
        let mut client = http::builder(self.budget / 3);
        let mut addresses = Vec::new();
        if let Some(proxy) = &proxy {
            self.reach_proxy(proxy, steps).await?;
        } else {
            addresses = self.open(host, port, steps).await?;
            client = client.no_proxy().resolve_to_addrs(host, &addresses);
        }
        let client = client.build().map_err(|error| http::no_client(&error))?;
        let what = format!("GET {}", url.path());
        match http::send(client.get(url.clone()), &what, steps).await {
            Ok(response) => Ok(response),
            Err(problem) if proxy.is_some() && problem.code == "HTTP_FAILED" => Err(Problem {
                code: "PROXY_FAILED",
                remedy: Remedy::text(format!(
                    "See whether the proxy may reach this URL, or exempt it: no_proxy={host}"
                )),
                ..problem
            }),
            Err(problem) => {
                let problem = self
                    .with_certificate(problem, host, &addresses, steps)
                    .await;
                Err(blame_hosts_file(problem, steps))
            }
        }
    }

    /// A proxy is looked up and connected to by itself first: when it is down, nothing else is.
    async fn reach_proxy(&self, proxy: &Intercept, steps: &mut Vec<String>) -> Result<(), Problem> {
        let host = proxy.uri().host().unwrap_or_default();
        let default = if proxy.uri().scheme_str() == Some("https") {
            443
        } else {
            80
        };
        let port = proxy.uri().port_u16().unwrap_or(default);
        steps.push(format!("proxy: {host}:{port} by this environment"));
        match self.open(host, port, steps).await {
            Ok(_) => Ok(()),
            Err(problem) => Err(Problem {
                code: "PROXY_UNREACHABLE",
                message: format!(
                    "the proxy {host}:{port} is not reached: {}",
                    problem.message
                ),
                remedy: Remedy::text(format!(
                    "Start the proxy {host}:{port}, or correct http_proxy and https_proxy of the \
                     agent."
                ))
                .command("systemctl show-environment; systemctl cat muster-agent"),
            }),
        }
    }

    /// A refused certificate is named: whose it is, who issued it, and until when.
    async fn with_certificate(
        &self,
        mut problem: Problem,
        host: &str,
        addresses: &[SocketAddr],
        steps: &mut Vec<String>,
    ) -> Problem {
        if !matches!(
            problem.code,
            "TLS_UNKNOWN_CA" | "TLS_EXPIRED" | "TLS_WRONG_NAME"
        ) {
            return problem;
        }
        let limit = self.budget / 6;
        let Ok(stream) = tcp::connect(addresses, limit, &mut Vec::new()).await else {
            return problem;
        };
        let Ok(shown) = tls::look(stream, host.trim_matches(['[', ']']), limit).await else {
            return problem;
        };
        steps.push(format!(
            "tls: certificate of {} for {}, issued by {}, valid {} to {}",
            shown.subject,
            shown.names.join(", "),
            shown.issuer,
            shown.not_before,
            shown.not_after
        ));
        match problem.code {
            "TLS_UNKNOWN_CA" if shown.self_signed => {
                problem.message = format!("certificate signed by itself: {}", shown.subject);
            }
            "TLS_UNKNOWN_CA" => {
                problem.message = format!(
                    "certificate by {}, whom this machine does not trust: a proxy that looks \
                     into connections, or the service's own authority",
                    shown.issuer
                );
                problem.remedy = Remedy::text(format!(
                    "If {} is your site's, put its certificate in \
                     /usr/local/share/ca-certificates; else exempt this URL from the proxy.",
                    shown.issuer
                ))
                .command("update-ca-certificates");
            }
            "TLS_EXPIRED" => {
                problem.message = format!("the certificate is valid until {}", shown.not_after);
                problem.remedy = problem.remedy.command("timedatectl");
            }
            _ => {
                let names = shown.names.join(", ");
                problem.message = format!("the certificate is for {names}, not for {host}");
            }
        }
        problem
    }
}

/// A redirect must not make this host probe other ports than those of the web.
fn may_follow(from: &Url, to: &Url) -> bool {
    let port = to.port_or_known_default();
    let same = from.host_str() == to.host_str() && from.port_or_known_default() == port;
    is_url(to.as_str()) && (same || matches!(port, Some(80 | 443)))
}

fn judge_status(status: u16, shown: &str) -> Result<(), Problem> {
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

fn invalid() -> Problem {
    Problem {
        code: "URL_INVALID",
        message: "not an http or https URL".to_owned(),
        remedy: Remedy::text("Correct the URL in agent.toml or in the pool's policy."),
    }
}

/// A URL of the pool, if it may be tried.
fn of_pool(required: RequiredUrl) -> Target {
    let allowed = is_url(&required.url)
        && Url::parse(&required.url)
            .is_ok_and(|url| matches!(url.port_or_known_default(), Some(80 | 443)));
    if allowed {
        Target::Url(required)
    } else {
        Target::NotAllowed(required)
    }
}

fn not_allowed() -> Problem {
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
fn subject(required: &RequiredUrl) -> String {
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
fn blame_hosts_file(problem: Problem, steps: &[String]) -> Problem {
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

fn judge(mut tried: Vec<Tried>) -> Observation {
    let brokers = tried.iter().filter(|one| one.is_broker).count();
    let brokers_reached = tried
        .iter()
        .filter(|one| one.is_broker && one.reached)
        .count();
    let urls_lost = tried
        .iter()
        .filter(|one| !one.is_broker && !one.reached)
        .count();
    let lost = tried.iter().filter(|one| !one.reached).count();
    // One broker is enough to be heard; the others are a spare that is missing.
    let outcome = if urls_lost > 0 || (brokers > 0 && brokers_reached == 0) {
        Outcome::Fail
    } else if lost > 0 {
        Outcome::Warn
    } else {
        Outcome::Pass
    };
    let message = match tried.iter().find(|one| !one.reached) {
        None => format!("all {} reachable", tried.len()),
        Some(first) => format!(
            "{lost} of {} not reachable: {}: {}",
            tried.len(),
            first.finding.subject,
            first.finding.message
        ),
    };
    tried.sort_by_key(|one| one.reached);
    let mut seen = Observation::new(outcome, message);
    seen.findings = tried.into_iter().map(|one| one.finding).collect();
    seen
}

#[cfg(test)]
#[path = "urls_tests.rs"]
mod tests;
