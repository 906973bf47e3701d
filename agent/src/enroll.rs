//! `enroll`: trades a join token for the identity of a host.
//!
//! The key is made here and stays here. It is on disk before it is used, so that after a lost
//! reply the same command asks again with the same key, which the broker answers as it did before.
//! The old identity, if there is one, is replaced only when the new one is whole.

use std::time::Duration;

use muster_core::model::{HostId, HostName, NameError, PoolName, Role, TrustDomain};
use muster_proto::v1::{self, enrollment_service_client::EnrollmentServiceClient};
use muster_runtime::{
    channel::{ConnectError, ConnectOptions, connect_tls, explain_status},
    files::FileError,
    identity::{
        CertificateError, LocalIdentityError, Pin, RequestError, csr_for_key, from_certificate,
        new_key_and_csr, pin_of,
    },
    tls::{ClientTls, TlsError},
};
use tokio::time::timeout;
use tonic::Status;

use crate::{
    announce::new_id,
    platform::machine,
    store::{DataDir, ENROLMENT, Enrolment},
};

/// Time for the broker's answer: it writes to its store, and may be busy after a restart.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// A certificate and a bundle of roots fit many times.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// What is needed to enrol.
pub struct Wish {
    /// Brokers to try in turn, `HOST:PORT`.
    pub brokers: Vec<String>,
    /// The join token. A secret.
    pub token: String,
    /// Pin of the fleet's CA.
    pub ca_pin: Pin,
    /// Name wanted; the lower-cased hostname unless set.
    pub name: Option<HostName>,
    /// Replace an identity that is there.
    pub again: bool,
}

/// Why enrolling failed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// There is an identity.
    #[error(
        "this machine is enrolled already, as {name} in {trust_domain}; to enrol it anew, give \
         --again (the old identity is replaced once the new one is there)"
    )]
    Already {
        /// Its name.
        name: HostName,
        /// Its fleet.
        trust_domain: TrustDomain,
    },
    /// No broker.
    #[error(
        "no broker is named; give --broker HOST:PORT, or brokers = [\"HOST:PORT\"] in agent.toml"
    )]
    NoBroker,
    /// The machine's own name is no name of a host.
    #[error("this machine's hostname {hostname:?} cannot be the host's name; give --name")]
    Hostname {
        /// The hostname.
        hostname: String,
        /// Why not.
        #[source]
        source: NameError,
    },
    /// The data folder.
    #[error("the data folder cannot be used")]
    Data(#[from] FileError),
    /// Identity files.
    #[error(transparent)]
    Identity(#[from] LocalIdentityError),
    /// Key or certificate request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The broker refused.
    #[error("the broker refused: {}", explain_status(.0))]
    Refused(Box<Status>),
    /// The broker did not answer.
    #[error(
        "the broker did not answer within {0:?}; give the same command again: if the broker has \
         enrolled the host, it will answer with the same identity"
    )]
    Silent(Duration),
    /// The answer is not what was asked for.
    #[error("the broker's answer cannot be used: {0}")]
    Answer(String),
}

impl From<CertificateError> for EnrollError {
    fn from(error: CertificateError) -> Self {
        Self::Answer(muster_runtime::explain::explain(&error))
    }
}

/// Enrols this machine and keeps its identity in `data`.
///
/// # Errors
/// [`EnrollError`] says what is wrong and what to do.
pub async fn enroll(data: &DataDir, wish: Wish) -> Result<Enrolment, EnrollError> {
    if wish.brokers.is_empty() {
        return Err(EnrollError::NoBroker);
    }
    if !wish.again
        && data.identity().exists()
        && let Ok(identity) = data.identity().load()
    {
        let identity = identity.info.identity;
        return Err(EnrollError::Already {
            name: identity.name,
            trust_domain: identity.trust_domain,
        });
    }
    let name = match wish.name {
        Some(name) => name,
        None => default_name()?,
    };
    data.prepare()?;
    let pending = data.pending();
    let (key, csr) = match pending.load_key()? {
        Some(key) => {
            let csr = csr_for_key(&name, &key)?;
            (key, csr)
        }
        None => {
            let (key, csr) = new_key_and_csr(&name)?;
            pending.store_key(&key)?;
            (key, csr)
        }
    };
    let request = v1::EnrollRequest {
        token: wish.token,
        csr: csr.into(),
        name: name.to_string(),
        request_id: new_id(),
    };
    let (broker, answer) = ask_in_turn(&wish.brokers, wish.ca_pin, request).await?;
    let enrolment = checked(&answer, wish.ca_pin, wish.brokers, &broker)?;
    let identity = data.identity();
    identity.store_key(&key)?;
    let roots: Vec<Vec<u8>> = answer.ca_bundle.iter().map(|root| root.to_vec()).collect();
    identity.store_certificates(&[answer.certificate.to_vec()], &roots)?;
    // Key and certificate of another pair are found here, while the pending key is still there.
    identity.load()?;
    data.forget_session();
    data.write(ENROLMENT, &enrolment)?;
    pending.remove()?;
    Ok(enrolment)
}

fn default_name() -> Result<HostName, EnrollError> {
    let hostname = machine::hostname();
    HostName::new(&hostname).map_err(|source| EnrollError::Hostname { hostname, source })
}

/// Asks each broker until one answers. A refusal is an answer.
async fn ask_in_turn(
    brokers: &[String],
    pin: Pin,
    request: v1::EnrollRequest,
) -> Result<(String, v1::EnrollResponse), EnrollError> {
    let mut last = EnrollError::NoBroker;
    for broker in brokers {
        match timeout(ANSWER_WITHIN, ask(broker, pin, request.clone())).await {
            Ok(Ok(answer)) => return Ok((broker.clone(), answer)),
            Ok(Err(error @ EnrollError::Connect(_))) => last = error,
            Ok(Err(error)) => return Err(error),
            Err(_) => last = EnrollError::Silent(ANSWER_WITHIN),
        }
    }
    Err(last)
}

async fn ask(
    broker: &str,
    pin: Pin,
    request: v1::EnrollRequest,
) -> Result<v1::EnrollResponse, EnrollError> {
    let channel = connect_tls(broker, ClientTls::pinned(pin)?, ConnectOptions::default()).await?;
    let mut client =
        EnrollmentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let answer = client.enroll(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| EnrollError::Refused(Box::new(status)))
}

/// The enrolment that the answer makes, if it hangs together.
fn checked(
    answer: &v1::EnrollResponse,
    pin: Pin,
    mut brokers: Vec<String>,
    broker: &str,
) -> Result<Enrolment, EnrollError> {
    let wrong = |what: &str| EnrollError::Answer(what.to_owned());
    let info = from_certificate(&answer.certificate)?;
    let mut pinned = false;
    for root in &answer.ca_bundle {
        pinned |= pin_of(root)? == pin;
    }
    if !pinned {
        return Err(wrong(
            "none of its CA certificates has the pin that was given",
        ));
    }
    if info.identity.role != Role::Host {
        return Err(wrong("its certificate is not for a host"));
    }
    let host_id: HostId = info
        .identity
        .host_id
        .ok_or_else(|| wrong("its certificate has no host id"))?;
    // The one that answered is tried first.
    brokers.retain(|other| other != broker);
    brokers.insert(0, broker.to_owned());
    Ok(Enrolment {
        name: info.identity.name,
        host_id,
        pool: PoolName::new(&answer.pool).map_err(|error| wrong(&error.to_string()))?,
        trust_domain: info.identity.trust_domain,
        brokers,
        not_after: info.not_after,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(brokers: &[&str]) -> Wish {
        muster_runtime::tls::install_provider();
        Wish {
            brokers: brokers.iter().map(|broker| (*broker).to_owned()).collect(),
            token: "secret".to_owned(),
            ca_pin: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            name: Some(HostName::new("vdi-01").unwrap()),
            again: false,
        }
    }

    #[tokio::test]
    async fn the_key_is_kept_before_the_broker_is_asked_and_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(folder.path());
        let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = gone.local_addr().unwrap().to_string();
        drop(gone);
        let error = enroll(&data, wish(&[&broker])).await.unwrap_err();
        assert!(matches!(error, EnrollError::Connect(_)), "{error}");
        let key = data.pending().load_key().unwrap().expect("kept");
        enroll(&data, wish(&[&broker])).await.unwrap_err();
        assert!(data.pending().load_key().unwrap() == Some(key));
        assert!(!data.identity().exists());
    }

    #[tokio::test]
    async fn without_a_broker_the_next_step_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = enroll(&DataDir::new(folder.path()), wish(&[]))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--broker HOST:PORT"), "{error}");
    }

    #[tokio::test]
    async fn a_data_folder_that_cannot_be_written_is_named() {
        let error = enroll(&DataDir::new("/proc/nowhere"), wish(&["127.0.0.1:1"]))
            .await
            .unwrap_err();
        let text = muster_runtime::explain::explain(&error);
        assert!(text.contains("/proc/nowhere"), "{text}");
    }
}
