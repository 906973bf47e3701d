//! One HTTP request, and what its failure means.

use std::{
    error::Error,
    io,
    time::{Duration, Instant},
};

use muster_core::model::Remedy;
use reqwest::{Client, ClientBuilder, Response, redirect::Policy};

use super::tcp::{Problem, took};

/// A client that follows nothing and keeps nothing, so that one request is one request.
pub fn builder(limit: Duration) -> ClientBuilder {
    Client::builder()
        .redirect(Policy::none())
        .pool_max_idle_per_host(0)
        .timeout(limit)
        .user_agent(concat!("muster-agent/", env!("CARGO_PKG_VERSION")))
}

/// Sends one request and writes down how it went. The body stays unread.
///
/// # Errors
/// If there is no answer.
pub async fn send(
    request: reqwest::RequestBuilder,
    what: &str,
    steps: &mut Vec<String>,
) -> Result<Response, Problem> {
    let begun = Instant::now();
    match request.send().await {
        Ok(response) => {
            steps.push(format!(
                "http: {what} answered {} ({})",
                response.status(),
                took(begun)
            ));
            Ok(response)
        }
        Err(error) => {
            let problem = problem(&error);
            steps.push(format!(
                "http: {what}: {} ({})",
                problem.message,
                took(begun)
            ));
            Err(problem)
        }
    }
}

/// At most `limit` bytes of a body.
///
/// # Errors
/// If the connection breaks.
pub async fn bounded_body(mut response: Response, limit: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while body.len() < limit {
        let Some(chunk) = response.chunk().await? else {
            break;
        };
        body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
    }
    Ok(body)
}

/// A problem that kept a client from being made: there are no roots to trust.
#[must_use]
pub fn no_client(error: &reqwest::Error) -> Problem {
    Problem {
        code: "TLS_NO_ROOTS",
        message: format!("HTTPS cannot be spoken: {}", root_cause(error)),
        remedy: Remedy::text("Install the CA certificates of this system.")
            .command("apt-get install ca-certificates"),
    }
}

fn problem(error: &reqwest::Error) -> Problem {
    if let Some(tls) = tls_error(error) {
        return tls_problem(tls);
    }
    if error.is_timeout() {
        return Problem {
            code: "HTTP_TIMED_OUT",
            message: "no answer in time".to_owned(),
            remedy: Remedy::text(
                "The connection is accepted and then silent: look at the service, and at proxies \
                 and firewalls that look into connections.",
            ),
        };
    }
    Problem {
        code: "HTTP_FAILED",
        message: format!("the exchange failed: {}", root_cause(error)),
        remedy: Remedy::text("Look at what listens there, and at proxies on the way."),
    }
}

/// The TLS library's word, wherever it hides: an I/O error does not count what it carries among
/// its sources.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        let carried = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match carried {
            Some(carried) => Some(carried),
            None => error.source(),
        };
    }
    None
}

fn tls_problem(error: &rustls::Error) -> Problem {
    use rustls::CertificateError as Bad;
    let (code, remedy) = match error {
        rustls::Error::InvalidMessage(_) => {
            return Problem {
                code: "TLS_NOT_SPOKEN",
                message: "what listens there does not speak TLS".to_owned(),
                remedy: Remedy::text(
                    "See whether the URL should begin with http:// or has another port.",
                ),
            };
        }
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => (
            "TLS_UNKNOWN_CA",
            "A proxy may look into the connection: install its CA certificate, or exempt this URL.",
        ),
        rustls::Error::InvalidCertificate(
            Bad::Expired
            | Bad::ExpiredContext { .. }
            | Bad::NotValidYet
            | Bad::NotValidYetContext { .. },
        ) => (
            "TLS_EXPIRED",
            "See whether this machine's clock is right; if so, the service must renew its certificate.",
        ),
        rustls::Error::InvalidCertificate(
            Bad::NotValidForName | Bad::NotValidForNameContext { .. },
        ) => (
            "TLS_WRONG_NAME",
            "Somebody else answers there: look at the hosts file, DNS and proxies.",
        ),
        _ => (
            "TLS_FAILED",
            "Look at what listens there, and at proxies on the way.",
        ),
    };
    Problem {
        code,
        message: format!("the TLS handshake failed: {error}"),
        remedy: Remedy::text(remedy),
    }
}

fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
