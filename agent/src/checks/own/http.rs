//! `http`: a URL answers as it should. Redirects are not followed, and the body stays here.

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};

use super::{Definition, Place, Wrong, definition, failed, pass, seen};
use crate::{
    config::is_url,
    probe::{
        http::{bounded_body, builder, no_client, send},
        tcp,
    },
};

/// Bytes of an answer in which `contains` is looked for: health pages are short.
const MAX_BODY: usize = 64 << 10;
/// Statuses that can be named.
const MAX_STATUSES: usize = 16;

definition! {
    /// Keys of `kind = "http"`.
    Http {
        /// The URL, http or https.
        url: String,
        /// Statuses that pass; 200 to 399 unless set.
        #[serde(default)]
        status: Vec<u16>,
        /// Text that the answer must contain.
        contains: Option<String>,
    }
}

impl Definition for Http {
    const KIND: &'static str = "http";

    fn wrong(&self) -> Option<Wrong> {
        if !is_url(&self.url) {
            // Not the value itself: it may carry a password.
            let allowed = "http:// and https:// URLs without user name and password";
            return Some(("url", "this".to_owned(), allowed.to_owned()));
        }
        let bad = self
            .status
            .iter()
            .find(|status| !(100..600).contains(*status));
        bad.map(|status| ("status", status.to_string(), "100 to 599".to_owned()))
            .or_else(|| {
                let count = self.status.len();
                (count > MAX_STATUSES).then(|| {
                    (
                        "status",
                        count.to_string(),
                        "at most 16 statuses".to_owned(),
                    )
                })
            })
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        self.ask(place).boxed()
    }
}

impl Http {
    async fn ask(&self, place: &Place) -> Observation {
        let mut steps = Vec::new();
        // What follows may be a token.
        let subject = self.url.split('?').next().unwrap_or_default();
        let client = match builder(place.budget).build() {
            Ok(client) => client,
            Err(error) => return failed(subject, no_client(&error), steps),
        };
        let response = match send(client.get(&self.url), "GET", &mut steps).await {
            Ok(response) => response,
            Err(problem) => {
                // The reason why there is no connection is told better by trying one.
                let problem = self.connect(place, &mut steps).await.unwrap_or(problem);
                return failed(subject, problem, steps);
            }
        };
        let status = response.status();
        let wanted = if self.status.is_empty() {
            (200..400).contains(&status.as_u16())
        } else {
            self.status.contains(&status.as_u16())
        };
        if !wanted {
            return seen(
                Outcome::Fail,
                subject,
                "HTTP_STATUS",
                format!("answered {status}"),
                steps,
                Some(Remedy::text("The log of the service there says why.")),
            );
        }
        if let Some(text) = &self.contains {
            let body = bounded_body(response, MAX_BODY).await.unwrap_or_default();
            if !String::from_utf8_lossy(&body).contains(text) {
                steps.push(format!("looked at {} bytes of the answer", body.len()));
                return seen(
                    Outcome::Fail,
                    subject,
                    "HTTP_TEXT_MISSING",
                    format!("answered {status}, but without the text that it must contain"),
                    steps,
                    Some(Remedy::text("The log of the service there says why.")),
                );
            }
        }
        pass(
            subject,
            "HTTP_ANSWERED",
            format!("answered {status}"),
            steps,
        )
    }

    /// What a plain connection to the host meets, if anything.
    async fn connect(&self, place: &Place, steps: &mut Vec<String>) -> Option<tcp::Problem> {
        let url = reqwest::Url::parse(&self.url).ok()?;
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        let limit = place.budget / 8;
        let addresses = match tcp::resolve(host, port, limit, steps).await {
            Ok(addresses) => addresses,
            Err(problem) => return Some(problem),
        };
        tcp::connect(&addresses, limit, steps).await.err()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::super::testing::{look, refused};
    use super::*;

    async fn server(status: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/health", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: 7\r\nconnection: close\r\n\r\nhealthy"
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn status_and_text_must_be_as_wanted() {
        let good = server("200 OK").await;
        let bad = server("503 Busy").await;
        let table = [
            (format!("url = '{good}'"), "HTTP_ANSWERED"),
            (
                format!("url = '{good}'\ncontains = 'health'"),
                "HTTP_ANSWERED",
            ),
            (
                format!("url = '{good}'\ncontains = 'ill'"),
                "HTTP_TEXT_MISSING",
            ),
            (format!("url = '{bad}'"), "HTTP_STATUS"),
            (format!("url = '{bad}'\nstatus = [503]"), "HTTP_ANSWERED"),
            ("url = 'http://127.0.0.1:1/'".to_owned(), "TCP_REFUSED"),
        ];
        for (keys, code) in table {
            let seen = look(&format!("kind = 'http'\n{keys}")).await;
            assert_eq!(seen.findings[0].code, code, "{seen:?}");
            assert_eq!(seen.outcome == Outcome::Pass, code == "HTTP_ANSWERED");
            assert!(!format!("{seen:?}").contains("healthy"), "the body is told");
        }
    }

    #[test]
    fn keys_are_checked_and_passwords_not_repeated() {
        let error = refused("kind = 'http'\nurl = 'http://u:hunter2@h/'");
        assert!(error.contains("without user name") && !error.contains("hunter2"));
        assert!(refused("kind = 'http'\nurl = 'http://h/'\nstatus = [7]").contains("100 to 599"));
    }
}
