//! FleetService: what administrators see and do.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use muster_core::{
    host::{Admin, DRAINS, Drain, Event, Undrain},
    model::{CheckName, Intent, MAX_CHECKS, PoolName, Role, clean_text},
};
use muster_proto::{border::timestamp, v1};
use muster_runtime::{
    clock,
    config::HumanDuration,
    identity::Identity,
    refusal::{self, Refusal},
};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};

use super::{
    access::Caller,
    connection::{after, page_size, pool_of},
    durable, find, invalid, refuse, stalled, store_failed,
};
use crate::{
    ca::{Ca, CaError, Subject},
    registry::{Cell, Registry, SessionWord},
    store::{Applied, Batch, Store, TokenRecord, encode, keys},
    token::Token,
};

/// Hosts on a page unless asked otherwise, and at most: their checks make them large.
const PAGE: usize = 200;
const PAGE_MAX: usize = 500;
/// Journal entries unless asked otherwise, and at most.
const HISTORY: usize = 50;
const HISTORY_MAX: usize = 1000;
/// A token lasts an hour unless asked otherwise, and at most 30 days.
const TOKEN_TTL: Duration = Duration::from_secs(3600);
const TOKEN_TTL_MAX: Duration = Duration::from_secs(30 * 86_400);
/// Uses of one token at most; each is remembered.
const TOKEN_USES_MAX: u32 = 100_000;
/// A certificate lasts 30 days unless asked otherwise, and at most a year.
const CERTIFICATE_TTL: Duration = Duration::from_secs(30 * 86_400);
const CERTIFICATE_TTL_MAX: Duration = Duration::from_secs(365 * 86_400);
/// How long a recheck is waited for unless asked otherwise, and at most.
const RECHECK_WAIT: Duration = Duration::from_secs(30);
const RECHECK_WAIT_MAX: Duration = Duration::from_secs(300);
/// Between two questions for its results.
const RECHECK_ASK: Duration = Duration::from_millis(500);
/// Characters of a drain's owner, and bytes of its reason.
const OWNER_MAX: usize = 64;
const REASON_MAX: usize = 256;

/// The service.
#[derive(Clone)]
pub struct FleetEdge {
    pub(super) registry: Arc<Registry>,
    pub(super) store: Arc<dyn Store>,
    ca: Arc<Ca>,
    endpoints: Arc<[String]>,
    pub(super) trust_domain: Arc<str>,
    /// Operators' words that read, change and write are taken one at a time.
    words: Arc<Mutex<()>>,
}

impl std::fmt::Debug for FleetEdge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetEdge").finish_non_exhaustive()
    }
}

impl FleetEdge {
    /// A service for `registry`; `endpoints` are told to whoever makes a token.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        store: Arc<dyn Store>,
        ca: Arc<Ca>,
        endpoints: Arc<[String]>,
        trust_domain: Arc<str>,
    ) -> Self {
        Self {
            registry,
            store,
            ca,
            endpoints,
            trust_domain,
            words: Arc::default(),
        }
    }

    pub(super) fn verdict(&self, cell: &Cell) -> Result<v1::Verdict, Status> {
        self.registry
            .verdict(cell, Intent::New)
            .map(Into::into)
            .map_err(|error| stalled(&self.registry, error))
    }

    /// The owner of a drain: as named, else the caller.
    fn owner(&self, named: &str, caller: &Caller) -> Result<String, Status> {
        let owner = if named.is_empty() {
            &*caller.name
        } else {
            named
        };
        let clean = clean_text(owner, OWNER_MAX);
        if clean != owner {
            let problem = format!("an owner has at most {OWNER_MAX} printable characters");
            return Err(invalid(&self.registry, "owner", problem));
        }
        Ok(clean)
    }

    pub(super) fn log(&self, caller: &Caller, what: &'static str, about: &str) {
        tracing::info!(
            operator.name = %caller.name,
            operator.address = caller.address.map(tracing::field::display),
            subject = about,
            action = what,
            "operator acted"
        );
    }
}

#[tonic::async_trait]
impl v1::fleet_service_server::FleetService for FleetEdge {
    async fn list_fleet_hosts(
        &self,
        request: Request<v1::ListFleetHostsRequest>,
    ) -> Result<Response<v1::ListFleetHostsResponse>, Status> {
        let request = request.into_inner();
        let pool = pool_of(&self.registry, &request.pool)?;
        let after = after(&self.registry, &request.page_token)?;
        let size = page_size(request.page_size, PAGE, PAGE_MAX);
        let cells = self.registry.page(after.as_ref(), size, |published| {
            pool.as_ref()
                .is_none_or(|pool| published.snapshot.facts.identity.pool == *pool)
        });
        let hosts = cells
            .iter()
            .map(|cell| self.detail(cell))
            .collect::<Result<Vec<_>, _>>()?;
        let next_page_token = match cells.last() {
            Some(cell) if cells.len() == size => {
                cell.published().snapshot.facts.identity.name.to_string()
            }
            _ => String::new(),
        };
        Ok(Response::new(v1::ListFleetHostsResponse {
            hosts,
            next_page_token,
        }))
    }

    async fn get_host(
        &self,
        request: Request<v1::GetHostRequest>,
    ) -> Result<Response<v1::GetHostResponse>, Status> {
        let cell = find(&self.registry, &request.into_inner().name)?;
        self.freshen(&cell).await;
        let host = Some(self.whole_detail(&cell).await?);
        Ok(Response::new(v1::GetHostResponse { host }))
    }

    async fn get_host_history(
        &self,
        request: Request<v1::GetHostHistoryRequest>,
    ) -> Result<Response<v1::GetHostHistoryResponse>, Status> {
        let request = request.into_inner();
        let cell = find(&self.registry, &request.name)?;
        let since = request
            .since
            .and_then(|since| Timestamp::new(since.seconds, since.nanos).ok())
            .unwrap_or(Timestamp::MIN);
        let limit = page_size(request.limit, HISTORY, HISTORY_MAX);
        let entries = self.journal(&cell, limit).await?;
        let transitions = entries
            .into_iter()
            .filter(|transition| transition.at >= since)
            .map(Into::into)
            .collect();
        Ok(Response::new(v1::GetHostHistoryResponse { transitions }))
    }

    async fn drain_host(
        &self,
        request: Request<v1::DrainHostRequest>,
    ) -> Result<Response<v1::DrainHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let owner = self.owner(&request.owner, &caller)?;
        let now = self.registry.now().wall;
        let until = match request.until {
            None => None,
            Some(until) => Some(
                Timestamp::new(until.seconds, until.nanos)
                    .ok()
                    .filter(|until| *until > now)
                    .ok_or_else(|| {
                        invalid(&self.registry, "until", "a drain ends in the future")
                    })?,
            ),
        };
        let _one = self.words.lock().await;
        let cell = find(&self.registry, &request.name)?;
        let admin = cell.published().snapshot.facts.admin.clone();
        let known = admin.drains.iter().any(|drain| drain.owner == owner);
        if !known && admin.drains.len() >= DRAINS {
            let message = format!("a host has at most {DRAINS} drains; lift one first");
            return Err(refuse(
                &self.registry,
                Refusal::new(refusal::DRAIN_LIMIT, message),
            ));
        }
        let reason = clean_text(&request.reason, REASON_MAX);
        // It acts at once; only the word that it does waits for the disk.
        let drain = Drain {
            owner,
            reason,
            since: now,
            until,
        };
        let outcome = self.registry.apply(&cell, Event::Drain(drain));
        durable(&self.registry, outcome.ticket).await?;
        self.log(&caller, "drain", &request.name);
        Ok(Response::new(v1::DrainHostResponse {
            verdict: Some(self.verdict(&cell)?),
        }))
    }

    async fn undrain_host(
        &self,
        request: Request<v1::UndrainHostRequest>,
    ) -> Result<Response<v1::UndrainHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let which = if request.all {
            Undrain::All
        } else {
            Undrain::Owner(self.owner(&request.owner, &caller)?)
        };
        let _one = self.words.lock().await;
        let cell = find(&self.registry, &request.name)?;
        let facts = cell.published().snapshot.facts.clone();
        let mut admin: Admin = (*facts.admin).clone();
        match &which {
            Undrain::All => admin.drains.clear(),
            Undrain::Owner(owner) => {
                let before = admin.drains.len();
                admin.drains.retain(|drain| drain.owner != *owner);
                if admin.drains.len() == before {
                    let owners: Vec<&str> = admin
                        .drains
                        .iter()
                        .map(|drain| drain.owner.as_str())
                        .collect();
                    let message = format!(
                        "{owner} does not drain {}; drained by: {}",
                        request.name,
                        if owners.is_empty() {
                            "nobody".to_owned()
                        } else {
                            owners.join(", ")
                        }
                    );
                    let refusal = Refusal::new(refusal::DRAIN_UNKNOWN, message);
                    return Err(refuse(&self.registry, refusal));
                }
            }
        }
        // It turns a no into a yes: first durable, then it acts.
        let write = vec![(keys::admin(facts.identity.id), Some(encode(&admin)))];
        self.registry
            .queue()
            .commit(Batch {
                require: Vec::new(),
                write,
            })
            .await
            .map_err(|_| store_failed(&self.registry))?;
        let outcome = self.registry.apply(&cell, Event::Undrain(which));
        durable(&self.registry, outcome.ticket).await?;
        self.log(&caller, "undrain", &request.name);
        Ok(Response::new(v1::UndrainHostResponse {
            verdict: Some(self.verdict(&cell)?),
        }))
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemoveHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let name = request.into_inner().name;
        let _one = self.words.lock().await;
        let cell = find(&self.registry, &name)?;
        let identity = cell.published().snapshot.facts.identity.clone();
        let id = identity.id;
        // It is cut at once; only the word that it is waits for the disk. Both before the first
        // wait, so that a caller who goes away leaves nothing half done.
        self.registry.remove(&cell);
        let keys = [keys::host(id), keys::admin(id), keys::name(&identity.name)];
        let ticket = self.registry.queue().put(keys.map(|key| (key, None)));
        durable(&self.registry, Some(ticket)).await?;
        // Its journal is of no use to anybody now. What is left of it after a crash harms nobody:
        // no other host will ever have its id.
        let store = self.store.clone();
        let scan =
            tokio::task::spawn_blocking(move || store.scan(&keys::journal(id), usize::MAX, false));
        if let Ok(Ok(journal)) = scan.await {
            let _ = self
                .registry
                .queue()
                .put(journal.into_iter().map(|(key, _)| (key, None)));
        }
        self.log(&caller, "remove", &name);
        Ok(Response::new(v1::RemoveHostResponse {
            host_id: id.to_string(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let pool = pool_of(&self.registry, &request.pool)?.unwrap_or_else(PoolName::default_pool);
        let host_name = match request.host_name.as_str() {
            "" => None,
            name => Some(
                name.parse()
                    .map_err(|error: muster_core::model::NameError| {
                        let refusal = Refusal::new(refusal::NAME_INVALID, error.to_string());
                        refuse(&self.registry, refusal.with("field", "host_name"))
                    })?,
            ),
        };
        let uses = request.uses.max(1);
        if uses > TOKEN_USES_MAX {
            let problem = format!("a token may be used at most {TOKEN_USES_MAX} times");
            return Err(invalid(&self.registry, "uses", problem));
        }
        if host_name.is_some() && uses > 1 {
            let problem = "a token for one host name may be used once";
            return Err(invalid(&self.registry, "uses", problem));
        }
        let ttl = self.ttl(request.ttl_ms, TOKEN_TTL, TOKEN_TTL_MAX)?;
        let now = clock::now().wall;
        let token = Token::from_random(rand::random(), rand::random());
        let record = TokenRecord {
            secret_sha256: token.secret_sha256(),
            pool,
            host_name,
            uses,
            expires_at: now.checked_add(ttl).unwrap_or(Timestamp::MAX),
            created_at: now,
            created_by: caller.name.to_string(),
            used: Vec::new(),
        };
        let key = keys::token(token.id());
        let batch = Batch {
            require: vec![(key.clone(), None)],
            write: vec![(key, Some(encode(&record)))],
        };
        match self.registry.queue().commit(batch).await {
            Ok(Applied::Yes) => {}
            Ok(Applied::Conflict) | Err(_) => return Err(store_failed(&self.registry)),
        }
        self.log(&caller, "token create", token.id());
        Ok(Response::new(v1::CreateTokenResponse {
            token: token.reveal(),
            token_id: token.id().to_owned(),
            expires_at: Some(timestamp(record.expires_at)),
            ca_pin: self.ca.pin().to_string(),
            endpoints: self.endpoints.to_vec(),
        }))
    }

    async fn recheck_host(
        &self,
        request: Request<v1::RecheckHostRequest>,
    ) -> Result<Response<v1::RecheckHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let cell = find(&self.registry, &request.name)?;
        let checks = request
            .checks
            .iter()
            .take(MAX_CHECKS)
            .map(|name| name.parse())
            .collect::<Result<Vec<CheckName>, _>>()
            .map_err(|error| invalid(&self.registry, "checks", error.to_string()))?;
        let wait = self.ttl(request.wait_ms, RECHECK_WAIT, RECHECK_WAIT_MAX)?;
        self.log(&caller, "recheck", &request.name);
        let complete = self.recheck(&cell, &checks, wait).await?;
        let host = Some(self.whole_detail(&cell).await?);
        Ok(Response::new(v1::RecheckHostResponse { host, complete }))
    }

    async fn list_pools(
        &self,
        request: Request<v1::ListPoolsRequest>,
    ) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let pools = self.pools(&request.into_inner().name).await?;
        Ok(Response::new(v1::ListPoolsResponse { pools }))
    }

    async fn preview_pool(
        &self,
        request: Request<v1::PreviewPoolRequest>,
    ) -> Result<Response<v1::PreviewPoolResponse>, Status> {
        let request = request.into_inner();
        let (pool, policy) = self.policy_for(&request.name, &request.policy_toml)?;
        Ok(Response::new(self.preview(&pool, &policy)?))
    }

    async fn set_pool(
        &self,
        request: Request<v1::SetPoolRequest>,
    ) -> Result<Response<v1::SetPoolResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let _one = self.words.lock().await;
        let answer = self.set(&caller, &request).await?;
        self.log(&caller, "pool set", &request.name);
        Ok(Response::new(answer))
    }

    async fn get_broker_status(
        &self,
        _: Request<v1::GetBrokerStatusRequest>,
    ) -> Result<Response<v1::GetBrokerStatusResponse>, Status> {
        let status = Some(self.state());
        Ok(Response::new(v1::GetBrokerStatusResponse { status }))
    }

    async fn end_holds(
        &self,
        request: Request<v1::EndHoldsRequest>,
    ) -> Result<Response<v1::EndHoldsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let ended = self.end_hold(&caller, request.get_ref())?;
        Ok(Response::new(v1::EndHoldsResponse { ended }))
    }

    async fn trust_host(
        &self,
        request: Request<v1::TrustHostRequest>,
    ) -> Result<Response<v1::TrustHostResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _one = self.words.lock().await;
        let verdict = Some(self.trust(&caller, request.get_ref())?);
        Ok(Response::new(v1::TrustHostResponse { verdict }))
    }

    async fn issue_certificate(
        &self,
        request: Request<v1::IssueCertificateRequest>,
    ) -> Result<Response<v1::IssueCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let role = match Role::parse(&request.role) {
            Some(role @ (Role::Frontend | Role::Viewer | Role::Operator)) => role,
            Some(Role::Host | Role::Broker) | None => {
                let problem = "certificates are issued for the roles frontend, viewer, operator";
                return Err(invalid(&self.registry, "role", problem));
            }
        };
        let name = request
            .name
            .parse()
            .map_err(|error: muster_core::model::NameError| {
                let refusal = Refusal::new(refusal::NAME_INVALID, error.to_string());
                refuse(&self.registry, refusal.with("field", "name"))
            })?;
        let lifetime = self.ttl(request.ttl_ms, CERTIFICATE_TTL, CERTIFICATE_TTL_MAX)?;
        let identity = Identity {
            role,
            trust_domain: self.ca.trust_domain().clone(),
            name,
            host_id: None,
        };
        let subject = Subject {
            identity,
            lifetime,
            server_names: &[],
        };
        let issued = self
            .ca
            .sign(&request.csr, &subject, clock::now().wall)
            .map_err(|error| {
                let refusal = match &error {
                    CaError::Request { .. } => {
                        Refusal::new(refusal::CSR_INVALID, error.to_string())
                    }
                    _ => Refusal::new(refusal::REQUEST_INVALID, error.to_string()),
                };
                refuse(&self.registry, refusal.with("field", "csr"))
            })?;
        self.log(&caller, "cert issue", &subject.identity.to_string());
        Ok(Response::new(v1::IssueCertificateResponse {
            certificate: issued.der.to_vec().into(),
            ca_bundle: vec![self.ca.root().to_vec().into()],
            not_after: Some(timestamp(issued.not_after)),
        }))
    }
}

impl FleetEdge {
    /// Has the host's agent run checks now; true if all that were asked for come from runs that
    /// began since.
    async fn recheck(
        &self,
        cell: &Cell,
        checks: &[CheckName],
        wait: Duration,
    ) -> Result<bool, Status> {
        let since = self.registry.now().mono;
        if !cell.say(SessionWord::Recheck(checks.to_vec())) {
            let message =
                "the host has no session with this broker; its checks run when it is back";
            return Err(refuse(
                &self.registry,
                Refusal::new(refusal::HOST_NOT_CONNECTED, message),
            ));
        }
        let fresh = || {
            let published = cell.published();
            let held = &published.snapshot.facts.health.held;
            let wanted = |name| checks.is_empty() || checks.contains(name);
            let mut asked = held
                .iter()
                .filter(|held| wanted(&held.result.name))
                .peekable();
            asked.peek().is_some() && asked.all(|held| held.began >= Some(since))
        };
        let complete = async {
            loop {
                let reported = cell.reported().notified();
                if fresh() {
                    return;
                }
                // A run that finds what the one before found is reported only on demand.
                if tokio::time::timeout(RECHECK_ASK, reported).await.is_err() {
                    cell.say(SessionWord::Resync("recheck"));
                }
            }
        };
        Ok(tokio::time::timeout(wait, complete).await.is_ok())
    }

    fn ttl(&self, asked_ms: u64, usual: Duration, most: Duration) -> Result<Duration, Status> {
        let ttl = if asked_ms == 0 {
            usual
        } else {
            Duration::from_millis(asked_ms)
        };
        if ttl > most {
            let problem = format!("at most {} is allowed", HumanDuration(most));
            return Err(invalid(&self.registry, "ttl_ms", problem));
        }
        Ok(ttl)
    }
}
