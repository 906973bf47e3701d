//! `grpc`: a service says that it serves, by the standard health protocol (`grpc.health.v1`).

use std::{error::Error as _, io, path::PathBuf};

use futures_util::future::{BoxFuture, FutureExt as _};
use hyper_util::rt::TokioIo;
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy, clean_text},
};
use tokio::{net::TcpStream, time::timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::service_fn;

use super::{
    Definition, Place, Wrong, definition, failed, pass, secure, seen,
    tcp::{connect, wrong_address},
};
use crate::probe::tcp::Problem;

/// The one answer is a few bytes long.
const MAX_ANSWER: usize = 4096;

definition! {
    /// Keys of `kind = "grpc"`.
    Grpc {
        /// Where to connect, `host:port`.
        address: String,
        /// Service to ask about; the server as a whole unless set.
        #[serde(default)]
        service: String,
        /// Is it behind TLS?
        #[serde(default)]
        tls: bool,
        /// Name that the certificate must be for; the address's unless set.
        server_name: Option<String>,
        /// CA certificates to trust; those of this system unless set.
        ca_file: Option<PathBuf>,
    }
}

impl Definition for Grpc {
    const KIND: &'static str = "grpc";

    fn wrong(&self) -> Option<Wrong> {
        wrong_address(&self.address)
            .or_else(|| secure::wrong(self.ca_file.as_ref(), self.server_name.as_ref()))
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let mut steps = Vec::new();
            match self.ask(place, &mut steps).await {
                Ok(answer) => self.judge(answer, steps),
                Err(problem) => failed(&self.address, problem, steps),
            }
        }
        .boxed()
    }
}

impl Grpc {
    async fn ask(
        &self,
        place: &Place,
        steps: &mut Vec<String>,
    ) -> Result<Result<ServingStatus, Status>, Problem> {
        let limit = place.budget / 3;
        let stream = connect(&self.address, place, steps).await?;
        let name = secure::expected_name(self.server_name.as_ref(), &self.address);
        let channel = if self.tls {
            let ca_file = self.ca_file.as_deref();
            let stream = secure::connect(stream, name, ca_file, &[b"h2"], limit).await?;
            steps.push(format!("tls: the certificate is trusted for {name}"));
            channel(&self.address, stream).await
        } else {
            channel::<TcpStream>(&self.address, stream).await
        };
        let channel = channel.map_err(|error| not_spoken(&error))?;
        let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let request = HealthCheckRequest {
            service: self.service.clone(),
        };
        let answer = match timeout(limit, client.check(request)).await {
            Ok(answer) => answer.map(|answer| answer.into_inner().status()),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        };
        steps.push(match &answer {
            Ok(status) => format!("grpc: Check answered {}", status.as_str_name()),
            Err(status) => format!("grpc: Check answered {:?}", status.code()),
        });
        Ok(answer)
    }

    fn judge(&self, answer: Result<ServingStatus, Status>, steps: Vec<String>) -> Observation {
        let what = match &*self.service {
            "" => "the server".to_owned(),
            service => format!("service {service}"),
        };
        let fails = |code, message, remedy| {
            let remedy = Some(Remedy::text(remedy));
            seen(
                Outcome::Fail,
                &self.address,
                code,
                message,
                steps.clone(),
                remedy,
            )
        };
        match answer {
            Ok(ServingStatus::Serving) => pass(
                &self.address,
                "GRPC_SERVING",
                format!("{what} serves"),
                steps,
            ),
            Ok(status) => fails(
                "GRPC_NOT_SERVING",
                format!("{what} says {}", status.as_str_name()),
                "The log of the service there says why.",
            ),
            Err(status) => match status.code() {
                Code::NotFound => fails(
                    "GRPC_UNKNOWN_SERVICE",
                    format!("{what} is not known there"),
                    "Correct `service` in checks.d.",
                ),
                Code::Unimplemented => fails(
                    "GRPC_NO_HEALTH",
                    "the server has no grpc.health.v1".to_owned(),
                    "Let it serve grpc.health.v1, or use a check of kind tcp.",
                ),
                Code::DeadlineExceeded => fails(
                    "GRPC_SILENT",
                    "the server takes connections and does not answer".to_owned(),
                    "Look at its log, and whether the port is one of gRPC.",
                ),
                // A server's own word has no source: this one is about the connection.
                _ if status.source().is_some() => fails(
                    "GRPC_NOT_SPOKEN",
                    format!(
                        "what listens there does not speak gRPC: {}",
                        clean_text(status.message(), 120)
                    ),
                    "See whether the port is the right one, and whether it wants TLS.",
                ),
                code => fails(
                    "GRPC_FAILED",
                    format!("{code:?}: {}", clean_text(status.message(), 120)),
                    "The log of the service there says more; see whether the port is one of gRPC.",
                ),
            },
        }
    }
}

/// A channel over a connection that is there already.
async fn channel<S>(address: &str, stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(stream);
    let connector = service_fn(move |_: Uri| {
        // The one connection; a second would be another check.
        let stream = stream.take().map(TokioIo::new);
        async move { stream.ok_or_else(|| io::Error::other("the connection has ended")) }
    });
    Endpoint::from_shared(format!("http://{address}"))?
        .connect_with_connector(connector)
        .await
}

fn not_spoken(error: &tonic::transport::Error) -> Problem {
    Problem {
        code: "GRPC_NOT_SPOKEN",
        message: format!(
            "what listens there does not speak gRPC: {}",
            muster_runtime::explain::explain(error)
        ),
        remedy: Remedy::text("See whether the port is the right one, and whether it wants TLS."),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::{service::Routes, transport::Server};

    use super::super::testing::{look, look_within};
    use super::*;

    /// A server with the health service of tonic, in which `up` serves and `down` does not.
    async fn server() -> String {
        let (reporter, health) = tonic_health::server::health_reporter();
        for (service, status) in [
            ("up", tonic_health::ServingStatus::Serving),
            ("down", tonic_health::ServingStatus::NotServing),
        ] {
            reporter.set_service_status(service, status).await;
        }
        serve(Routes::new(health)).await
    }

    async fn serve(routes: Routes) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            Server::builder()
                .add_routes(routes)
                .serve_with_incoming(incoming),
        );
        format!("kind = 'grpc'\naddress = '{address}'")
    }

    #[tokio::test]
    async fn a_service_is_as_well_as_it_says() {
        let server = server().await;
        let table = [
            ("", Outcome::Pass, "GRPC_SERVING"),
            ("service = 'up'", Outcome::Pass, "GRPC_SERVING"),
            ("service = 'down'", Outcome::Fail, "GRPC_NOT_SERVING"),
            ("service = 'nosuch'", Outcome::Fail, "GRPC_UNKNOWN_SERVICE"),
        ];
        for (keys, outcome, code) in table {
            let seen = look(&format!("{server}\n{keys}")).await;
            let found = (seen.outcome, &*seen.findings[0].code);
            assert_eq!(found, (outcome, code), "{keys}: {seen:?}");
        }
        let without = serve(Routes::default()).await;
        assert_eq!(look(&without).await.findings[0].code, "GRPC_NO_HEALTH");
        let seen = look("kind = 'grpc'\naddress = '127.0.0.1:1'").await;
        assert_eq!(seen.findings[0].code, "TCP_REFUSED");
    }

    #[tokio::test]
    async fn a_listener_that_is_silent_is_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let keys = format!(
            "kind = 'grpc'\naddress = '{}'",
            listener.local_addr().unwrap()
        );
        let seen = look_within(&keys, std::time::Duration::from_millis(300)).await;
        assert_eq!(seen.findings[0].code, "GRPC_SILENT", "{seen:?}");
    }
}
