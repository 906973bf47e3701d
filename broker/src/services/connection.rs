//! ConnectionService: is this host connectable, and if not, why and what mends it?

use std::sync::Arc;

use futures_util::StreamExt as _;
use muster_core::{
    fleet::{Counted, Met},
    model::{HostName, PoolName},
};
use muster_proto::v1;
use muster_runtime::{
    refusal::{self, Refusal},
    shutdown::Shutdown,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{access::Caller, find, intent, invalid, refuse, stalled, watch};
use crate::registry::Registry;

/// Hosts on a page unless asked otherwise.
const PAGE: usize = 500;
/// Hosts on a page at most; a page of long verdicts ends earlier.
const PAGE_MAX: usize = 1000;
/// Names in one question: the answer stays under the 4 MiB that gRPC clients take.
const NAMES_MAX: usize = 500;

/// The service.
#[derive(Clone, Debug)]
pub struct ConnectionEdge {
    registry: Arc<Registry>,
    shutdown: Shutdown,
}

impl ConnectionEdge {
    /// A service for `registry`; its watches end at shutdown.
    #[must_use]
    pub fn new(registry: Arc<Registry>, shutdown: Shutdown) -> Self {
        Self { registry, shutdown }
    }
}

/// The pool that a request asks for; none for all.
pub(super) fn pool_of(registry: &Registry, name: &str) -> Result<Option<PoolName>, Status> {
    if name.is_empty() {
        return Ok(None);
    }
    PoolName::new(name).map(Some).map_err(|error| {
        refuse(
            registry,
            Refusal::new(refusal::NAME_INVALID, error.to_string()),
        )
    })
}

/// Where a page begins: after the host that the token names.
pub(super) fn after(registry: &Registry, page_token: &str) -> Result<Option<HostName>, Status> {
    if page_token.is_empty() {
        return Ok(None);
    }
    HostName::new(page_token).map(Some).map_err(|_| {
        let message = "the page token is not one of this listing";
        refuse(registry, Refusal::new(refusal::PAGE_TOKEN_INVALID, message))
    })
}

/// How many hosts a page has.
pub(super) fn page_size(asked: u32, usual: usize, most: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) | Err(_) => usual,
        Ok(asked) => asked.min(most),
    }
}

#[tonic::async_trait]
impl v1::connection_service_server::ConnectionService for ConnectionEdge {
    type WatchHostsStream = watch::Outbound;

    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        let request = request.into_inner();
        let pool = pool_of(&self.registry, &request.pool)?;
        let after = after(&self.registry, &request.page_token)?;
        let size = page_size(request.page_size, PAGE, PAGE_MAX);
        let cells = self.registry.page(after.as_ref(), size, |published| {
            pool.as_ref()
                .is_none_or(|pool| published.snapshot.facts.identity.pool == *pool)
        });
        let mut verdicts = Vec::with_capacity(cells.len());
        let mut bytes = 0;
        for cell in &cells {
            let verdict = self
                .registry
                .verdict(cell, intent(request.intent))
                .map_err(|error| stalled(&self.registry, error))?;
            let verdict = v1::Verdict::from(verdict);
            bytes += verdict.encoded_len();
            verdicts.push(verdict);
            if bytes >= watch::CHUNK_BYTES {
                break;
            }
        }
        let more = verdicts.len() == size || verdicts.len() < cells.len();
        let last = verdicts.last().filter(|_| more);
        let next_page_token = last.map(|verdict| verdict.name.clone()).unwrap_or_default();
        Ok(Response::new(v1::ListHostsResponse {
            verdicts,
            next_page_token,
        }))
    }

    async fn check_host(
        &self,
        request: Request<v1::CheckHostRequest>,
    ) -> Result<Response<v1::CheckHostResponse>, Status> {
        let request = request.into_inner();
        let cell = find(&self.registry, &request.name)?;
        let verdict = self
            .registry
            .verdict(&cell, intent(request.intent))
            .map_err(|error| stalled(&self.registry, error))?;
        Ok(Response::new(v1::CheckHostResponse {
            verdict: Some(verdict.into()),
        }))
    }

    async fn check_hosts(
        &self,
        request: Request<v1::CheckHostsRequest>,
    ) -> Result<Response<v1::CheckHostsResponse>, Status> {
        let request = request.into_inner();
        if request.names.len() > NAMES_MAX {
            let count = request.names.len();
            let problem = format!("{count} names were asked for; at most {NAMES_MAX} are allowed");
            return Err(invalid(&self.registry, "names", problem));
        }
        let mut results = Vec::with_capacity(request.names.len());
        for name in request.names {
            let verdict = match self.registry.get(&name) {
                Some(cell) => Some(
                    self.registry
                        .verdict(&cell, intent(request.intent))
                        .map_err(|error| stalled(&self.registry, error))?
                        .into(),
                ),
                None => None,
            };
            results.push(v1::CheckHostsResult { name, verdict });
        }
        Ok(Response::new(v1::CheckHostsResponse { results }))
    }

    async fn watch_hosts(
        &self,
        request: Request<v1::WatchHostsRequest>,
    ) -> Result<Response<watch::Outbound>, Status> {
        let request = request.into_inner();
        let pools = request
            .pools
            .iter()
            .filter_map(|pool| pool_of(&self.registry, pool).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let watch = watch::Watch::begin(
            self.registry.clone(),
            &self.shutdown,
            pools,
            intent(request.intent),
            &request.position,
        )?;
        Ok(Response::new(watch.into_stream().boxed()))
    }

    async fn report_outcome(
        &self,
        request: Request<v1::ReportOutcomeRequest>,
    ) -> Result<Response<v1::ReportOutcomeResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let met = match request.outcome() {
            v1::ConnectOutcome::Ok => Met::Ok,
            v1::ConnectOutcome::Refused => Met::Refused,
            v1::ConnectOutcome::Timeout => Met::TimedOut,
            v1::ConnectOutcome::ProtocolError => Met::ProtocolError,
            v1::ConnectOutcome::Unspecified => {
                let problem = "one of ok, refused, timeout, protocol error";
                return Err(invalid(&self.registry, "outcome", problem));
            }
        };
        let cell = find(&self.registry, &request.name)?;
        if !self.registry.has_said_yes(&request.verdict_id, &cell) {
            let message = "no verdict of this broker from the last five minutes called this host \
                           connectable under that id";
            let refusal = Refusal::new(refusal::OUTCOME_UNKNOWN, message);
            return Err(refuse(&self.registry, refusal.with("field", "verdict_id")));
        }
        let counted = self.registry.take_outcome(&cell, &caller.name, met);
        let (word, counted) = match counted {
            Counted::Yes => ("yes", v1::OutcomeCounted::Yes),
            Counted::NotThisKind => ("not this kind", v1::OutcomeCounted::NotThisKind),
            Counted::TooSoon => ("too soon", v1::OutcomeCounted::TooSoon),
            Counted::Discounted => ("discounted", v1::OutcomeCounted::Discounted),
            Counted::NoHost => {
                // Removed in between.
                return Err(find(&self.registry, &request.name)
                    .err()
                    .unwrap_or_else(|| invalid(&self.registry, "name", "the host is gone")));
            }
        };
        self.registry.metrics().counted(word);
        tracing::info!(
            host.name = request.name,
            front_end.name = %caller.name,
            front_end.address = caller.address.map(tracing::field::display),
            outcome = met.as_str(),
            counted = word,
            "a front end reported what it met"
        );
        Ok(Response::new(v1::ReportOutcomeResponse {
            counted: counted.into(),
        }))
    }
}
