//! `tls`: a server speaks TLS with a certificate that is trusted and does not expire soon.

use std::{path::PathBuf, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::Timestamp;
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};
use muster_runtime::config::HumanDuration;

use super::{
    Definition, Place, Wrong, definition, failed, pass, secure, seen,
    tcp::{connect, wrong_address},
};
use crate::probe::tls::{self, Certificate};

definition! {
    /// Keys of `kind = "tls"`.
    Tls {
        /// Where to connect, `host:port`.
        address: String,
        /// Name that the certificate must be for; the address's unless set.
        server_name: Option<String>,
        /// CA certificates to trust; those of this system unless set.
        ca_file: Option<PathBuf>,
        /// Must the certificate be trusted?
        #[serde(default = "yes")]
        verify: bool,
        /// Warns when the certificate ends sooner.
        #[serde(default = "three_weeks")]
        warn_before: HumanDuration,
        /// Fails when the certificate ends sooner.
        #[serde(default = "one_week")]
        fail_before: HumanDuration,
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn yes() -> bool {
    true
}

fn three_weeks() -> HumanDuration {
    HumanDuration(DAY * 21)
}

fn one_week() -> HumanDuration {
    HumanDuration(DAY * 7)
}

impl Definition for Tls {
    const KIND: &'static str = "tls";

    fn wrong(&self) -> Option<Wrong> {
        wrong_address(&self.address)
            .or_else(|| secure::wrong(self.ca_file.as_ref(), self.server_name.as_ref()))
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        self.look_twice(place).boxed()
    }
}

impl Tls {
    /// First at the certificate whatever it is worth, so that it can be told; then, by a second
    /// connection, whether it is trusted.
    async fn look_twice(&self, place: &Place) -> Observation {
        let mut steps = Vec::new();
        let subject = &self.address;
        let name = secure::expected_name(self.server_name.as_ref(), subject);
        let limit = place.budget / 3;
        let stream = match connect(subject, place, &mut steps).await {
            Ok(stream) => stream,
            Err(problem) => return failed(subject, problem, steps),
        };
        let shown = match tls::look(stream, name, limit).await {
            Ok(shown) => shown,
            Err(error) => return failed(subject, secure::no_handshake(&error), steps),
        };
        steps.push(format!(
            "certificate: {} by {}, until {}",
            shown.subject, shown.issuer, shown.not_after
        ));
        let dates = self.judge_dates(&shown, Timestamp::now(), &steps);
        if dates.outcome == Outcome::Fail || !self.verify {
            return dates;
        }
        let stream = match connect(subject, place, &mut Vec::new()).await {
            Ok(stream) => stream,
            Err(problem) => return failed(subject, problem, steps),
        };
        let ca_file = self.ca_file.as_deref();
        match secure::connect(stream, name, ca_file, &[], limit).await {
            Ok(_stream) => dates,
            Err(problem) => failed(subject, problem, steps),
        }
    }

    fn judge_dates(&self, shown: &Certificate, now: Timestamp, steps: &[String]) -> Observation {
        let left = shown.not_after.as_second() - now.as_second();
        let before =
            |limit: HumanDuration| left < i64::try_from(limit.0.as_secs()).unwrap_or(i64::MAX);
        let days = left / 86_400;
        let renew = || Some(Remedy::text("Renew the certificate of the service there."));
        let seen = |outcome, code, message: String| {
            seen(
                outcome,
                &self.address,
                code,
                message,
                steps.to_vec(),
                renew(),
            )
        };
        let until = shown.not_after;
        if left <= 0 {
            seen(
                Outcome::Fail,
                "TLS_EXPIRED",
                format!("the certificate ended at {until}"),
            )
        } else if now < shown.not_before {
            let from = shown.not_before;
            seen(
                Outcome::Fail,
                "TLS_NOT_YET_VALID",
                format!("the certificate begins at {from}"),
            )
        } else if before(self.fail_before) {
            seen(
                Outcome::Fail,
                "TLS_EXPIRES",
                format!("the certificate ends in {days} days"),
            )
        } else if before(self.warn_before) {
            seen(
                Outcome::Warn,
                "TLS_EXPIRES",
                format!("the certificate ends in {days} days"),
            )
        } else {
            let message = format!("the certificate is good for {days} days");
            pass(&self.address, "TLS_GOOD", message, steps.to_vec())
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, sync::Arc};

    use rcgen::{CertificateParams, Issuer, KeyPair};
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tempfile::TempDir;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::super::testing::{look, refused};
    use super::*;

    /// A server's configuration whose certificate ends in so many days, and the file of its CA.
    pub(in super::super) fn server_config(days: i64) -> (ServerConfig, TempDir, String) {
        muster_runtime::tls::install_provider();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        fs::write(&file, ca_certificate.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let start = std::time::SystemTime::now() - DAY * 100;
        leaf.not_before = start.into();
        let days = u32::try_from(days + 100).unwrap();
        leaf.not_after = (start + DAY * days + Duration::from_secs(60)).into();
        let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        (config, folder, file.display().to_string())
    }

    async fn server(days: i64) -> (String, TempDir, String) {
        let (config, folder, file) = server_config(days);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let keys = format!("kind = 'tls'\naddress = 'localhost:{port}'");
        (keys, folder, format!("ca_file = '{file}'"))
    }

    #[tokio::test]
    async fn each_way_in_which_a_certificate_is_bad_is_told_apart() {
        let (long, _kept, ca) = server(100).await;
        let (short, _kept_too, short_ca) = server(10).await;
        let (shorter, _kept_three, shorter_ca) = server(2).await;
        let (ended, _kept_four, ended_ca) = server(-1).await;
        let (pass, warn, fail) = (Outcome::Pass, Outcome::Warn, Outcome::Fail);
        let wrong_name = "server_name = 'other.example'";
        let table = [
            (format!("{long}\n{ca}"), pass, "TLS_GOOD"),
            (long.clone(), fail, "TLS_UNKNOWN_CA"),
            (format!("{long}\nverify = false"), pass, "TLS_GOOD"),
            (
                format!("{long}\n{ca}\n{wrong_name}"),
                fail,
                "TLS_WRONG_NAME",
            ),
            (
                format!("{long}\nca_file = '/nonexistent'"),
                fail,
                "TLS_NO_ROOTS",
            ),
            (format!("{short}\n{short_ca}"), warn, "TLS_EXPIRES"),
            (format!("{shorter}\n{shorter_ca}"), fail, "TLS_EXPIRES"),
            (format!("{ended}\n{ended_ca}"), fail, "TLS_EXPIRED"),
        ];
        for (keys, outcome, code) in table {
            let seen = look(&keys).await;
            let found = (seen.outcome, &*seen.findings[0].code);
            assert_eq!(found, (outcome, code), "{keys}: {seen:?}");
        }
    }

    #[tokio::test]
    async fn what_speaks_no_tls_is_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                use tokio::io::AsyncWriteExt as _;
                let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n").await;
            }
        });
        let seen = look(&format!("kind = 'tls'\naddress = '{address}'")).await;
        assert_eq!(seen.findings[0].code, "TLS_NOT_SPOKEN", "{seen:?}");
    }

    #[test]
    fn keys_are_checked() {
        let keys = "kind = 'tls'\naddress = 'a:1'";
        assert!(refused(&format!("{keys}\nca_file = 'ca.pem'")).contains("absolute"));
        assert!(refused(&format!("{keys}\nserver_name = 'a b'")).contains("DNS name"));
    }
}
