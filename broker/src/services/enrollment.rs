//! EnrollmentService: a join token for a certificate.
//!
//! The token's use, the name and the new host are written in one conditional batch: of two racers
//! one wins, and a crash leaves either all or nothing. The same token with the same key is
//! answered again, so that a lost reply locks nobody out.

use std::{sync::Arc, time::Duration};

use muster_core::{
    host::{Admin, Host, Identity as HostIdentity},
    model::{HostId, HostName, PoolName, Role},
};
use muster_proto::{border::timestamp, v1};
use muster_runtime::{
    clock,
    identity::Identity,
    refusal::{self, Refusal},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{access::Caller, refuse, store_failed};
use crate::{
    ca::{Ca, HOST_LIFETIME, Issued, Subject, csr_key_sha256},
    registry::{HOSTS_MAX, Registry},
    store::{Applied, Batch, Store, StoreError, TokenRecord, TokenUse, decode, encode, keys},
    token::Token,
};

/// Enrolments at once: each costs a signature, and beats come first.
const AT_ONCE: usize = 8;
/// Enrolments that wait for a place.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);
/// Tries while others use the same token: each loses only to one who won.
const TRIES: usize = 200;
/// Between two looks for a host that another request is just making: that takes microseconds.
const UNDER_WAY: Duration = Duration::from_millis(5);

/// The service.
#[derive(Clone)]
pub struct EnrollmentEdge {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    ca: Arc<Ca>,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for EnrollmentEdge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrollmentEdge").finish_non_exhaustive()
    }
}

/// What an enrolment gives.
struct Enrolled {
    host: HostIdentity,
    issued: Issued,
}

enum Problem {
    Refused(Refusal),
    Store(StoreError),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What a token's record says of the key that asks.
enum Again {
    /// Nothing: it asks for the first time.
    New,
    /// Its host was made.
    Made(Enrolled),
    /// Its host is being made.
    UnderWay,
}

impl EnrollmentEdge {
    /// A service that enrols into `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, store: Arc<dyn Store>, ca: Arc<Ca>) -> Self {
        Self {
            registry,
            store,
            ca,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    async fn enrol(&self, request: &v1::EnrollRequest) -> Result<Enrolled, Problem> {
        let token = Token::parse(&request.token).ok_or_else(unknown_token)?;
        let key_sha256 = csr_key_sha256(&request.csr).map_err(bad_csr)?;
        for _ in 0..TRIES {
            let now = clock::now().wall;
            let key = keys::token(token.id());
            let stored = self.store.get(&key)?.ok_or_else(unknown_token)?;
            let mut record: TokenRecord = decode(&key, &stored)?;
            if !token.matches(&record.secret_sha256) {
                return Err(unknown_token().into());
            }
            match self.again(&record, &key_sha256, &request.csr)? {
                Again::New => {}
                Again::Made(enrolled) => return Ok(enrolled),
                Again::UnderWay => {
                    tokio::time::sleep(UNDER_WAY).await;
                    continue;
                }
            }
            if now >= record.expires_at {
                let message = format!("the token ended at {}; make a new one", record.expires_at);
                return Err(Refusal::new(refusal::TOKEN_EXPIRED, message).into());
            }
            if record.used.len() >= usize::try_from(record.uses).unwrap_or(usize::MAX) {
                let message = format!("the token may be used {} times and was", record.uses);
                return Err(Refusal::new(refusal::TOKEN_USED, message).into());
            }
            let name = match self.name_for(&record, &request.name) {
                // Taken by this very token since it was read: then the name is the request's own.
                Err(_) if self.store.get(&key)?.as_ref() != Some(&stored) => continue,
                name => name?,
            };
            if self.registry.len() >= HOSTS_MAX {
                let message = format!("the fleet has {HOSTS_MAX} hosts, and takes no more");
                return Err(Refusal::new(refusal::BROKER_BUSY, message).into());
            }
            let host = HostIdentity {
                name: name.clone(),
                id: HostId::from_random(rand::random()),
                pool: record.pool.clone(),
                enrolled_at: now,
            };
            let issued = self.issue(&host, &request.csr)?;
            record.used.push(TokenUse {
                key_sha256: key_sha256.clone(),
                host_id: host.id,
                name,
            });
            if self.admit(&host, (key, stored, encode(&record))).await? {
                return Ok(Enrolled { host, issued });
            }
            // Another use of the token, or of the name, came first: look again.
            tokio::task::yield_now().await;
        }
        let message = "too many enrolments with one token at once";
        Err(Refusal::new(refusal::BROKER_BUSY, message)
            .retry_after(Duration::from_secs(2))
            .into())
    }

    /// The answer to a request that was answered before: the same token and the same key.
    fn again(&self, record: &TokenRecord, key_sha256: &str, csr: &[u8]) -> Result<Again, Problem> {
        let Some(used) = record
            .used
            .iter()
            .find(|used| used.key_sha256 == key_sha256)
        else {
            return Ok(Again::New);
        };
        let Some(cell) = self.registry.get(used.name.as_str()) else {
            // Durable, and not yet among the hosts: the request before this one is just about to.
            if self.store.get(&keys::host(used.host_id))?.is_some() {
                return Ok(Again::UnderWay);
            }
            let message = "the host that this token made was removed";
            return Err(Refusal::new(refusal::TOKEN_USED, message).into());
        };
        let host = cell.published().snapshot.facts.identity.clone();
        if host.id != used.host_id {
            let message = "the host that this token made was enrolled anew";
            return Err(Refusal::new(refusal::TOKEN_USED, message).into());
        }
        let issued = self.issue(&host, csr)?;
        Ok(Again::Made(Enrolled { host, issued }))
    }

    fn name_for(&self, record: &TokenRecord, asked: &str) -> Result<HostName, Problem> {
        let asked = match asked {
            "" => None,
            text => Some(HostName::new(text).map_err(|error| {
                Refusal::new(refusal::NAME_INVALID, error.to_string()).with("field", "name")
            })?),
        };
        let name = match (&record.host_name, asked) {
            (Some(fixed), Some(asked)) if *fixed != asked => {
                let message = format!("the token enrols the host {fixed}, not {asked}");
                return Err(Refusal::new(refusal::TOKEN_FOR_OTHER_NAME, message).into());
            }
            (Some(fixed), _) => fixed.clone(),
            (None, Some(asked)) => asked,
            (None, None) => {
                let message = "neither the token nor the request names the host";
                let refusal = Refusal::new(refusal::NAME_INVALID, message);
                return Err(refusal.with("field", "name").into());
            }
        };
        if self.registry.get(name.as_str()).is_some() {
            let message = format!(
                "a host {name} is enrolled; choose another name, or remove it first: \
                 muster-broker remove {name}"
            );
            return Err(Refusal::new(refusal::NAME_TAKEN, message)
                .with("host", name.as_str())
                .into());
        }
        Ok(name)
    }

    fn issue(&self, host: &HostIdentity, csr: &[u8]) -> Result<Issued, Refusal> {
        let identity = Identity {
            role: Role::Host,
            trust_domain: self.ca.trust_domain().clone(),
            name: host.name.clone(),
            host_id: Some(host.id),
        };
        let subject = Subject {
            identity,
            lifetime: HOST_LIFETIME,
            server_names: &[],
        };
        self.ca
            .sign(csr, &subject, clock::now().wall)
            .map_err(bad_csr)
    }

    /// Writes token, name and host at once; true if nobody came first.
    async fn admit(
        &self,
        identity: &HostIdentity,
        (token_key, token_before, token_after): (Vec<u8>, Vec<u8>, Vec<u8>),
    ) -> Result<bool, StoreError> {
        let now = self.registry.now();
        let (host, effects, writes) = {
            let policy = self.registry.policy(&identity.pool);
            let context = self.registry.context(now, &policy);
            let (host, effects) = Host::enrolled(identity.clone(), Admin::default(), &context);
            let writes = self.registry.writes(&host, &effects, &context);
            (host, effects, writes)
        };
        let name_key = keys::name(&identity.name);
        let id = identity.id.as_bytes().to_vec();
        let batch = Batch {
            require: vec![
                (token_key.clone(), Some(token_before)),
                (name_key.clone(), None),
            ],
            write: [(token_key, Some(token_after)), (name_key, Some(id))]
                .into_iter()
                .chain(writes)
                .collect(),
        };
        if self.registry.queue().commit(batch).await? == Applied::Conflict {
            return Ok(false);
        }
        self.registry.enrol(host, &effects);
        Ok(true)
    }
}

fn unknown_token() -> Refusal {
    let message = "there is no such join token; make one with: muster-broker token create";
    Refusal::new(refusal::TOKEN_UNKNOWN, message)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err asks for"
)]
fn bad_csr(error: crate::ca::CaError) -> Refusal {
    Refusal::new(refusal::CSR_INVALID, error.to_string()).with("field", "csr")
}

#[tonic::async_trait]
impl v1::enrollment_service_server::EnrollmentService for EnrollmentEdge {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let address = Caller::of(&request)?.address;
        let request = request.into_inner();
        let places = self.places.clone();
        let place = tokio::time::timeout(WAIT_AT_MOST, places.acquire_owned()).await;
        let Ok(Ok(place)) = place else {
            let message = "too many enrolments at once";
            let refusal = Refusal::new(refusal::BROKER_BUSY, message);
            return Err(refuse(
                &self.registry,
                refusal.retry_after(Duration::from_secs(5)),
            ));
        };
        // A task of its own, bounded by the places: a client that goes away in between must not
        // leave a host in the store that the registry does not know.
        let edge = self.clone();
        let enrolment = tokio::spawn(async move {
            let _place = place;
            edge.enrol(&request).await
        });
        match enrolment
            .await
            .unwrap_or(Err(Problem::Store(StoreError::Overloaded)))
        {
            Ok(Enrolled { host, issued }) => {
                tracing::info!(
                    host.name = %host.name,
                    host.id = %host.id,
                    host.pool = %host.pool,
                    peer.address = address.map(tracing::field::display),
                    certificate.serial = %issued.serial_hex,
                    "host enrolled"
                );
                let pool: PoolName = host.pool;
                Ok(Response::new(v1::EnrollResponse {
                    certificate: issued.der.to_vec().into(),
                    ca_bundle: vec![self.ca.root().to_vec().into()],
                    name: host.name.to_string(),
                    host_id: host.id.to_string(),
                    pool: pool.to_string(),
                    trust_domain: self.ca.trust_domain().to_string(),
                    not_after: Some(timestamp(issued.not_after)),
                }))
            }
            Err(Problem::Refused(refusal)) => {
                tracing::warn!(
                    peer.address = address.map(tracing::field::display),
                    reason = %refusal.reason,
                    "enrolment refused"
                );
                Err(refuse(&self.registry, refusal))
            }
            Err(Problem::Store(error)) => {
                tracing::error!(
                    error = %muster_runtime::explain::explain(&error),
                    "enrolment failed"
                );
                Err(store_failed(&self.registry))
            }
        }
    }
}
