//! Clients of every service, each with what it proves itself with.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use muster_core::model::HostName;
use muster_proto::v1::{
    CheckHostRequest, EnrollRequest, EnrollResponse, Intent, IssueCertificateRequest, Verdict,
    WatchHostsRequest, WatchHostsResponse, connection_service_client::ConnectionServiceClient,
    enrollment_service_client::EnrollmentServiceClient, fleet_service_client::FleetServiceClient,
};
use muster_runtime::{
    channel::{self, ConnectOptions},
    identity::{IdentityFiles, KeyPem, LocalIdentity, from_certificate, new_key_and_csr},
    tls::ClientTls,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tonic::{Status, Streaming, transport::Channel};

use crate::broker::Broker;

/// The operators' client.
pub type FleetClient = FleetServiceClient<Channel>;

/// A join token with the pin that goes with it.
#[derive(Clone)]
pub struct Token {
    /// The secret.
    pub token: String,
    /// Pin of the CA.
    pub ca_pin: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("ca_pin", &self.ca_pin)
            .finish_non_exhaustive()
    }
}

/// How a machine without an identity reaches a broker.
#[derive(Clone, Debug)]
pub struct WayIn {
    endpoint: String,
}

/// An identity with its way to the broker.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Name in the certificate.
    pub name: String,
    /// Id of the host; empty for other roles.
    pub host_id: String,
    /// Where the broker is.
    pub endpoint: String,
    /// The private key.
    pub key: KeyPem,
    /// Certificate and root certificates, DER, in this order.
    pub certificates: Arc<Vec<Vec<u8>>>,
    tls: ClientTls,
}

impl WayIn {
    /// The way to the broker at `host:port`.
    #[must_use]
    pub fn new(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
        }
    }

    /// An enrolment client that believes the CA with this pin.
    ///
    /// # Errors
    /// When the pin is none, or the broker is not the one with that CA.
    pub async fn enrolment(&self, ca_pin: &str) -> Result<EnrollmentServiceClient<Channel>> {
        Ok(EnrollmentServiceClient::new(self.anonymous(ca_pin).await?))
    }

    /// A connection without a certificate to the broker whose CA has this pin.
    ///
    /// # Errors
    /// When the pin is none, or the broker is not the one with that CA.
    pub async fn anonymous(&self, ca_pin: &str) -> Result<Channel> {
        let tls = ClientTls::pinned(ca_pin.parse()?)?;
        Ok(channel::connect_tls(&self.endpoint, tls, ConnectOptions::default()).await?)
    }

    /// Enrols a host with a new key.
    ///
    /// # Errors
    /// The broker's refusal, as a [`Status`] where it is one.
    pub async fn enrol(&self, token: &Token, name: &str) -> Result<Credentials> {
        let (key, csr) = new_key_and_csr(&HostName::new(name)?)?;
        let request = EnrollRequest {
            token: token.token.clone(),
            csr: csr.into(),
            name: name.to_owned(),
            request_id: uuid::Uuid::from_u128(rand::random()).to_string(),
        };
        let mut client = self.enrolment(&token.ca_pin).await?;
        let answer: EnrollResponse = client.enroll(request).await?.into_inner();
        let mut credentials =
            Credentials::new(&self.endpoint, key, &answer.certificate, &answer.ca_bundle)?;
        credentials.host_id = answer.host_id;
        Ok(credentials)
    }
}

impl Credentials {
    /// An identity made of a key, its certificate and the roots that the broker is verified with.
    ///
    /// # Errors
    /// When they do not belong together or carry no identity.
    pub fn new<C: AsRef<[u8]>>(
        endpoint: &str,
        key: KeyPem,
        certificate: &[u8],
        roots: &[C],
    ) -> Result<Self> {
        let identity = identity(&key, certificate, roots)?;
        let mut certificates = vec![certificate.to_vec()];
        certificates.extend(roots.iter().map(|root| root.as_ref().to_vec()));
        Ok(Self {
            name: identity.info.identity.name.to_string(),
            host_id: String::new(),
            endpoint: endpoint.to_owned(),
            key,
            certificates: Arc::new(certificates),
            tls: ClientTls::mutual(&identity)?,
        })
    }

    /// The same, but for a broker of another fleet, which it would not believe otherwise.
    ///
    /// # Errors
    /// When the other's certificates cannot be used.
    pub fn turned_to(&self, other: &Self) -> Result<Self> {
        let (own, _) = self.certificates.split_at(1);
        let (other_own, roots) = other.certificates.split_at(1);
        let mut identity = identity(&self.key, &own[0], roots)?;
        identity.info.identity.trust_domain =
            from_certificate(&other_own[0])?.identity.trust_domain;
        Ok(Self {
            endpoint: other.endpoint.clone(),
            tls: ClientTls::mutual(&identity)?,
            ..self.clone()
        })
    }

    /// The same, but showing another certificate, whatever it is.
    ///
    /// # Errors
    /// When it is not for the same key.
    pub fn showing(&self, certificate: &[u8]) -> Result<Self> {
        let (own, roots) = self.certificates.split_at(1);
        let mut identity = identity(&self.key, &own[0], roots)?;
        identity.chain = vec![CertificateDer::from(certificate.to_vec())];
        Ok(Self {
            tls: ClientTls::mutual(&identity)?,
            ..self.clone()
        })
    }

    pub(crate) fn tls(&self) -> &ClientTls {
        &self.tls
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When the broker is not there or is not believed.
    pub async fn connect(&self) -> Result<Channel> {
        Ok(
            channel::connect_tls(&self.endpoint, self.tls.clone(), ConnectOptions::default())
                .await?,
        )
    }

    /// Writes `key.pem`, `cert.pem` and `ca.pem` into a folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn store(&self, folder: &Path) -> Result<()> {
        let files = IdentityFiles::new(folder);
        files.store_key(&self.key)?;
        let (own, roots) = self.certificates.split_at(1);
        files.store_certificates(own, roots)?;
        Ok(())
    }
}

fn identity<C: AsRef<[u8]>>(
    key: &KeyPem,
    certificate: &[u8],
    roots: &[C],
) -> Result<LocalIdentity> {
    let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
    Ok(LocalIdentity {
        info: from_certificate(certificate)?,
        chain: vec![der(certificate)],
        key: PrivateKeyDer::from_pem_slice(key.as_str().as_bytes())?,
        roots: roots.iter().map(|root| der(root.as_ref())).collect(),
    })
}

/// A channel over a Unix socket.
///
/// # Errors
/// When nobody answers there.
pub async fn unix(socket: &Path) -> Result<Channel> {
    channel::connect_unix(socket, ConnectOptions::default())
        .await
        .with_context(|| format!("cannot reach {}", socket.display()))
}

/// The operators' client over the Unix socket.
///
/// # Errors
/// When nobody answers there.
pub async fn operator(socket: &Path) -> Result<FleetClient> {
    Ok(FleetServiceClient::new(unix(socket).await?))
}

/// Has a certificate issued for a role.
///
/// # Errors
/// The broker's refusal.
pub async fn issue(broker: &Broker, role: &str, name: &str) -> Result<Credentials> {
    let (key, csr) = new_key_and_csr(&HostName::new(name)?)?;
    let request = IssueCertificateRequest {
        role: role.to_owned(),
        name: name.to_owned(),
        ttl_ms: 0,
        csr: csr.into(),
    };
    let answer = broker.operator().await?.issue_certificate(request).await?;
    let answer = answer.into_inner();
    let endpoint = &broker.endpoints.grpc;
    Credentials::new(endpoint, key, &answer.certificate, &answer.ca_bundle)
}

/// A front end's client.
#[derive(Clone, Debug)]
pub struct Connections(ConnectionServiceClient<Channel>);

impl Connections {
    /// A client over this channel.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self(ConnectionServiceClient::new(channel))
    }

    /// The service itself.
    pub fn service(&mut self) -> &mut ConnectionServiceClient<Channel> {
        &mut self.0
    }

    /// The verdict for a new session.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn check(&mut self, name: &str) -> Result<Verdict, Status> {
        let request = CheckHostRequest {
            name: name.to_owned(),
            intent: Intent::New.into(),
            user_key: String::new(),
        };
        let verdict = self.0.check_host(request).await?.into_inner().verdict;
        verdict.ok_or_else(|| Status::internal("an answer without verdict"))
    }

    /// Everything from a snapshot on.
    ///
    /// # Errors
    /// The broker's refusal.
    pub async fn watch(&mut self) -> Result<Streaming<WatchHostsResponse>, Status> {
        let request = WatchHostsRequest::default();
        Ok(self.0.watch_hosts(request).await?.into_inner())
    }
}
