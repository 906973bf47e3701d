//! `urls`: are the brokers and the required URLs reachable, and if not, which step fails?
//!
//! For each URL the steps are told that a person would try: hosts file, name, TCP, TLS, HTTP, or
//! the proxy that the environment names. Any answer below 500 counts: the check is about the way
//! there. A broker that the session is open to needs no second connection; the others are tried by
//! TCP alone, and what the last attempt at a session met is told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream,
};
use hyper_util::client::proxy::matcher::Matcher;
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy, RequiredUrl},
};
use reqwest::Url;
use tokio::sync::watch;

use super::{Check, Inputs};
use crate::{
    config::is_url,
    probe::{
        hosts_file, http,
        tcp::{self, Problem},
    },
    session::LinkState,
};

/// Targets of one run: 16 brokers, 32 URLs of the file, and as many of the policy.
const MAX_TARGETS: usize = 80;
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
        let parts = Url::parse(text).ok().and_then(|url| {
            let host = url.host_str()?.to_owned();
            Some((host, url.port_or_known_default()?, url))
        });
        let Some((host, port, url)) = parts else {
            return Err(Problem {
                code: "URL_INVALID",
                message: "not an http or https URL".to_owned(),
                remedy: Remedy::text("Correct the URL in agent.toml or in the pool's policy."),
            });
        };
        let proxy = text
            .parse()
            .ok()
            .and_then(|uri| Matcher::from_env().intercept(&uri));
        let mut client = http::builder(self.budget / 3);
        if let Some(proxy) = &proxy {
            // Who is behind the proxy is for the proxy to look up.
            let shown = format!(
                "{}:{}",
                proxy.uri().host().unwrap_or("?"),
                proxy.uri().port_u16().unwrap_or(0)
            );
            steps.push(format!("proxy: {shown} by this environment"));
        } else {
            let addresses = self.open(&host, port, steps).await?;
            client = client.no_proxy().resolve_to_addrs(&host, &addresses);
        }
        let client = client.build().map_err(|error| http::no_client(&error))?;
        let what = format!("GET {}", url.path());
        let response = http::send(client.get(url), &what, steps).await.map_err(|mut problem| {
            if proxy.is_some() && problem.code == "HTTP_FAILED" {
                problem.code = "PROXY_FAILED";
                problem.remedy = Remedy::text(
                    "See whether the proxy is up and may reach this URL, or exempt it by no_proxy.",
                );
            }
            blame_hosts_file(problem, steps)
        })?;
        let status = response.status();
        if status.as_u16() == 407 {
            return Err(Problem {
                code: "PROXY_REFUSED",
                message: "the proxy wants a login".to_owned(),
                remedy: Remedy::text(
                    "Let the proxy pass this URL without login, or exempt it by no_proxy.",
                ),
            });
        }
        if status.is_server_error() {
            return Err(Problem {
                code: "HTTP_STATUS",
                message: format!("answers {status}"),
                remedy: Remedy::text(
                    "The way there is open: look at the service itself, or at the proxy that answers for it.",
                ),
            });
        }
        Ok(())
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
    let Some(step) = steps.iter().find(|step| step.starts_with("hosts file: ")) else {
        return problem;
    };
    Problem {
        code: "HOSTS_FILE",
        message: format!("{}; {step}", problem.message),
        remedy: Remedy::text(format!(
            "Take the entry out of {} if it is not meant: it wins over DNS.",
            hosts_file::PATH
        )),
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
mod tests {
    use std::collections::BTreeMap;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    fn urls(brokers: &[String], required: &[String], link: LinkState) -> Urls {
        muster_runtime::tls::install_provider();
        let required = required.iter().map(|url| RequiredUrl {
            url: url.clone(),
            role: "custom".to_owned(),
        });
        Urls {
            brokers: brokers.to_vec(),
            local: required.collect(),
            of_pool: Vec::new(),
            link: watch::channel(link).1,
            budget: Duration::from_secs(9),
        }
    }

    async fn serve(answer: &'static [u8]) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4];
                let _ = stream.read_exact(&mut head).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        port
    }

    async fn closed() -> u16 {
        TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    fn at(scheme: &str, port: u16) -> String {
        format!("{scheme}://127.0.0.1:{port}/x")
    }

    #[tokio::test]
    async fn any_answer_but_a_server_error_counts() {
        let not_found = serve(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await;
        let broken = serve(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        let seen = urls(&[], &[at("http", not_found)], LinkState::default())
            .look()
            .await;
        assert_eq!(seen.outcome, Outcome::Pass, "{seen:?}");
        let steps = &seen.findings[0].steps;
        assert!(
            steps[0].starts_with("tcp: connected") && steps[1].contains("404"),
            "{steps:?}"
        );
        let seen = urls(&[], &[at("http", broken)], LinkState::default())
            .look()
            .await;
        assert_eq!(
            (seen.outcome, &*seen.findings[0].code),
            (Outcome::Fail, "HTTP_STATUS")
        );
    }

    #[tokio::test]
    async fn the_step_that_fails_is_named() {
        let plain = serve(b"this is no TLS at all, not even close to it").await;
        let table = [
            (at("http", closed().await), "TCP_REFUSED"),
            (at("https", plain), "TLS_NOT_SPOKEN"),
            ("https://nowhere.invalid/".to_owned(), "DNS_"),
        ];
        for (url, code) in table {
            let seen = urls(&[], std::slice::from_ref(&url), LinkState::default())
                .look()
                .await;
            assert_eq!(seen.outcome, Outcome::Fail);
            let found = &seen.findings[0];
            assert!(found.code.starts_with(code), "{url}: {found:?}");
            assert!(found.remedy.is_some() && !found.steps.is_empty());
        }
    }

    #[tokio::test]
    async fn a_broker_with_an_open_session_is_not_connected_to_again() {
        let (here, gone) = (
            "127.0.0.1:1".to_owned(),
            format!("127.0.0.1:{}", closed().await),
        );
        let link = LinkState {
            brokers: vec![here.as_str().into(), gone.as_str().into()],
            connected: Some(here.as_str().into()),
            problems: BTreeMap::from([(gone.clone(), "certificate expired".to_owned())]),
        };
        let seen = urls(&[], &[], link).look().await;
        assert_eq!(seen.outcome, Outcome::Warn, "a spare is missing: {seen:?}");
        assert!(seen.findings[0].steps[0].contains("certificate expired"));
        assert!(seen.findings[1].steps[0].contains("session is open"));
        let seen = urls(&[gone], &[], LinkState::default()).look().await;
        assert_eq!(seen.outcome, Outcome::Fail, "no broker at all");
    }

    #[tokio::test]
    async fn nothing_to_reach_does_not_apply() {
        let seen = urls(&[], &[], LinkState::default()).look().await;
        assert_eq!(seen.outcome, Outcome::NotApplicable);
    }

    #[tokio::test]
    async fn a_pool_cannot_make_its_hosts_probe_other_ports_or_show_credentials() {
        let required = |url: &str| RequiredUrl {
            url: url.to_owned(),
            role: "custom".to_owned(),
        };
        let mut check = urls(&[], &[], LinkState::default());
        check.of_pool = vec![
            required("http://127.0.0.1:22/"),
            required("https://user:secret@127.0.0.1/?key=secret"),
        ];
        let seen = check.look().await;
        assert_eq!(seen.findings.len(), 2);
        for found in &seen.findings {
            assert_eq!(found.code, "URL_NOT_ALLOWED");
            assert!(found.steps.is_empty());
        }
        assert!(!format!("{seen:?}").contains("secret"), "{seen:?}");
    }

    #[test]
    fn an_entry_of_the_hosts_file_is_blamed_by_line() {
        let problem = Problem {
            code: "TCP_REFUSED",
            message: "0.0.0.0:443 refused".to_owned(),
            remedy: Remedy::default(),
        };
        let steps = ["hosts file: /etc/hosts:4 points x.example to 0.0.0.0".to_owned()];
        let blamed = blame_hosts_file(problem, &steps);
        assert_eq!(blamed.code, "HOSTS_FILE");
        assert!(blamed.message.contains("/etc/hosts:4"));
    }
}
