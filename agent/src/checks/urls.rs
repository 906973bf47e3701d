//! `urls`: are the brokers and the required URLs reachable, and if not, which step fails?
//!
//! For each URL the steps are told that a person would try: hosts file, name, TCP, TLS, HTTP, or
//! the proxy that the environment names. Redirects are followed, because who they point to has to
//! be reachable too. Any answer below 500 counts: the check is about the way
//! there. A broker that the session is open to needs no second connection; the others are tried by
//! TCP alone, and what the last attempt at a session met is told. A wildcard is tried by the names
//! under it that this machine has been seen to use; without one there is nothing to fail.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream,
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy, RequiredUrl, Wildcard},
};
use reqwest::{Response, Url, header::LOCATION};
use tokio::sync::watch;

use super::{
    Check, Inputs,
    urls_observed::{Name, Observed},
    urls_told::{
        Kind, Tried, blame_hosts_file, invalid, judge, judge_status, not_allowed, subject,
        too_many_redirects, unseen, without_the_gone,
    },
};
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
pub(super) const MAX_REDIRECTS: usize = 4;
/// Targets tried at once: enough to be through in time, too few to look like an attack.
const AT_ONCE: usize = 16;

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let local = inputs.config.check.urls.required.clone();
    let of_pool = inputs.policy.urls.iter();
    let of_pool = of_pool.filter(|url| !local.iter().any(|known| known.url == url.url));
    let of_pool: Vec<_> = of_pool.cloned().collect();
    let all = local.iter().chain(&of_pool);
    let hosts: Vec<_> = all.filter_map(host_of).collect();
    let files = inputs.config.check.urls.observed_in.clone();
    Arc::new(Urls {
        brokers: inputs.config.brokers.clone(),
        observed: Arc::new(Observed::new(files, hosts.into_iter())),
        of_pool,
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
    observed: Arc<Observed>,
    link: watch::Receiver<LinkState>,
    budget: Duration,
}

enum Target {
    Broker(String),
    Url(RequiredUrl),
    NotAllowed(RequiredUrl),
    /// A name under a wildcard.
    Observed(RequiredUrl, Name, String),
    /// A wildcard of which no name is known.
    Unseen(String),
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
        let mut targets: Vec<_> = brokers.into_iter().map(Target::Broker).collect();
        let local = self.local.iter().cloned().map(Target::Url);
        let required = local.chain(self.of_pool.iter().cloned().map(of_pool));
        for target in required {
            targets.extend(self.expanded(target).await);
        }
        targets.truncate(MAX_TARGETS);
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
        judge(without_the_gone(tried))
    }

    /// The target itself, or what is known to stand behind its wildcard.
    async fn expanded(&self, target: Target) -> Vec<Target> {
        let Target::Url(required) = target else {
            return vec![target];
        };
        let Wildcard::Under(suffix) = required.wildcard() else {
            return vec![Target::Url(required)];
        };
        let suffix = suffix.to_ascii_lowercase();
        let wildcard = format!("*.{suffix}");
        let observed = Arc::clone(&self.observed);
        let look = move || observed.names(&suffix, Path::new(hosts_file::PATH));
        let names = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        if names.is_empty() {
            return vec![Target::Unseen(wildcard)];
        }
        let of = |name: Name| {
            let required = RequiredUrl {
                url: with_host(&required.url, &name.host),
                role: required.role.clone(),
            };
            Target::Observed(required, name, wildcard.clone())
        };
        names.into_iter().map(of).collect()
    }

    async fn try_one(&self, target: &Target, link: &LinkState) -> Tried {
        let mut steps = Vec::new();
        let (mut kind, mut behind) = (Kind::Url, None);
        let (subject, result) = match target {
            Target::Broker(endpoint) => {
                kind = Kind::Broker;
                let result = self.try_broker(endpoint, link, &mut steps).await;
                (format!("broker {endpoint}"), result)
            }
            Target::Url(required) => {
                let result = self.try_url(&required.url, &mut steps).await;
                (subject(required), result)
            }
            Target::NotAllowed(required) => (subject(required), Err(not_allowed())),
            Target::Unseen(wildcard) => return unseen(wildcard),
            Target::Observed(required, name, wildcard) => {
                steps.push(format!("observed: {wildcard} by {}", name.place));
                behind = Some(wildcard.clone());
                let result = self.try_url(&required.url, &mut steps).await;
                if matches!(&result, Err(problem) if problem.code == "DNS_NXDOMAIN") {
                    kind = Kind::Doubtful;
                }
                (subject(required), result)
            }
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
            kind,
            reached,
            wildcard: behind,
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
        if next.host_str().is_some_and(|host| host.contains('*')) {
            return Err(invalid());
        }
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
                self.observed.meet(host);
                next = target;
                continue;
            }
            return judge_status(status.as_u16(), &status.to_string());
        }
        Err(too_many_redirects())
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

/// The host of a URL that has no wildcard.
fn host_of(required: &RequiredUrl) -> Option<String> {
    let host = Url::parse(&required.url).ok()?.host_str()?.to_owned();
    (required.wildcard() == Wildcard::None).then_some(host)
}

/// The URL with `host` in the place of its wildcard.
fn with_host(url: &str, host: &str) -> String {
    match Url::parse(url) {
        Ok(mut url) => match url.set_host(Some(host)) {
            Ok(()) => url.to_string(),
            Err(_) => String::new(),
        },
        Err(_) => String::new(),
    }
}

#[cfg(test)]
#[path = "urls_tests.rs"]
mod tests;
