//! Who may call what: one table, applied before any service sees a request.
//!
//! What is not in the table is refused. Identity comes from the certificate (or, on the Unix
//! socket, from its permissions) and from nothing in the request.

use std::{
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use muster_core::model::Role;
use muster_runtime::{
    accept::PeerInfo,
    identity::Identity,
    refusal::{self, Refusal},
    tls::Peer,
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::metrics::Metrics;

/// Who may call an rpc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a certificate too.
    Anyone,
    /// These roles.
    Roles(&'static [Role]),
}

const AGENTS: Access = Access::Roles(&[Role::Host]);
const ASKERS: Access = Access::Roles(&[Role::Frontend, Role::Viewer, Role::Operator]);
const FRONT_ENDS: Access = Access::Roles(&[Role::Frontend]);
const LOOKERS: Access = Access::Roles(&[Role::Viewer, Role::Operator]);
const ACTORS: Access = Access::Roles(&[Role::Operator]);
const EVERY_ROLE: Access =
    Access::Roles(&[Role::Host, Role::Frontend, Role::Viewer, Role::Operator]);

/// Every rpc that is served, with who may call it.
pub const TABLE: &[(&str, Access)] = &[
    ("/muster.v1.AgentService/Session", AGENTS),
    ("/muster.v1.EnrollmentService/Enroll", Access::Anyone),
    ("/muster.v1.ConnectionService/ListHosts", ASKERS),
    ("/muster.v1.ConnectionService/CheckHost", ASKERS),
    ("/muster.v1.ConnectionService/CheckHosts", ASKERS),
    ("/muster.v1.ConnectionService/WatchHosts", ASKERS),
    ("/muster.v1.ConnectionService/ReportOutcome", FRONT_ENDS),
    ("/muster.v1.FleetService/ListFleetHosts", LOOKERS),
    ("/muster.v1.FleetService/GetHost", LOOKERS),
    ("/muster.v1.FleetService/GetHostHistory", LOOKERS),
    ("/muster.v1.FleetService/DrainHost", ACTORS),
    ("/muster.v1.FleetService/UndrainHost", ACTORS),
    ("/muster.v1.FleetService/RemoveHost", ACTORS),
    ("/muster.v1.FleetService/CreateToken", ACTORS),
    ("/muster.v1.FleetService/RecheckHost", ACTORS),
    ("/muster.v1.FleetService/ListPools", LOOKERS),
    ("/muster.v1.FleetService/PreviewPool", LOOKERS),
    ("/muster.v1.FleetService/SetPool", ACTORS),
    ("/muster.v1.FleetService/GetBrokerStatus", LOOKERS),
    ("/muster.v1.FleetService/EndHolds", ACTORS),
    ("/muster.v1.FleetService/TrustHost", ACTORS),
    ("/muster.v1.FleetService/IssueCertificate", ACTORS),
    ("/grpc.health.v1.Health/Check", EVERY_ROLE),
    ("/grpc.health.v1.Health/Watch", EVERY_ROLE),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ASKERS,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ASKERS,
    ),
];

/// Who calls, as proven by the connection; in the extensions of each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who it is, as logs and journals name it.
    pub name: Arc<str>,
    /// The certificate's identity; none over the Unix socket and for enrolment.
    pub identity: Option<Identity>,
    /// Where the connection comes from.
    pub address: Option<SocketAddr>,
    /// That is an address of this very machine.
    pub is_local: bool,
}

impl Caller {
    /// The caller of a request that came through [`AccessLayer`].
    ///
    /// # Errors
    /// If it did not.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request
            .extensions()
            .get()
            .cloned()
            .ok_or_else(|| Status::internal("a request came past the access layer"))
    }
}

/// May this peer call `path`?
///
/// # Errors
/// A refusal that says why not.
pub fn admit(path: &str, info: &PeerInfo) -> Result<Caller, Refusal> {
    let Some((_, access)) = TABLE.iter().find(|(known, _)| *known == path) else {
        return Err(Refusal {
            code: tonic::Code::Unimplemented,
            ..Refusal::new(
                refusal::REQUEST_INVALID,
                format!("there is no rpc {path:?}"),
            )
        });
    };
    let roles = match access {
        Access::Anyone => {
            let name = info
                .peer
                .identity()
                .map_or_else(|| "anonymous".into(), Identity::to_string);
            return Ok(Caller {
                name: name.into(),
                identity: None,
                address: info.address,
                is_local: info.is_local,
            });
        }
        Access::Roles(roles) => *roles,
    };
    let (role, name, identity) = match &info.peer {
        Peer::Anonymous => {
            let message = "this service demands a client certificate of this fleet";
            return Err(Refusal::new(refusal::CERTIFICATE_REQUIRED, message));
        }
        Peer::Refused(refused) => {
            return Err(Refusal::new(refused.reason, refused.detail.clone()));
        }
        Peer::Local { uid } => (Role::Operator, format!("uid-{uid}"), None),
        Peer::Known(identity, _) => (
            identity.role,
            identity.name.to_string(),
            Some(identity.clone()),
        ),
    };
    if !roles.contains(&role) {
        let allowed: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
        let message = format!(
            "a certificate of role {role} may not call {path}; allowed: {}",
            allowed.join(", ")
        );
        return Err(Refusal::new(refusal::ROLE_NOT_ALLOWED, message).with("role", role.as_str()));
    }
    Ok(Caller {
        name: name.into(),
        identity,
        address: info.address,
        is_local: info.is_local,
    })
}

/// Puts [`admit`] before all services.
#[derive(Clone, Debug)]
pub struct AccessLayer {
    metrics: Arc<Metrics>,
}

impl AccessLayer {
    /// A layer that counts its refusals.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = AccessService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AccessService {
            inner,
            metrics: self.metrics.clone(),
        }
    }
}

/// A service behind the table.
#[derive(Clone, Debug)]
pub struct AccessService<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, B> Service<http::Request<B>> for AccessService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let admitted = match request.extensions().get::<PeerInfo>() {
            Some(info) => admit(request.uri().path(), info),
            None => Err(Refusal::new(
                refusal::CERTIFICATE_REQUIRED,
                "the connection is not known",
            )),
        };
        match admitted {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                Either::Left(self.inner.call(request))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal.reason);
                tracing::debug!(
                    path = request.uri().path(),
                    reason = %refusal.reason,
                    "request refused"
                );
                Either::Right(ready(Ok(Status::from(refusal).into_http())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use muster_core::model::{HostId, HostName, TrustDomain};
    use muster_runtime::tls::RefusedPeer;
    use prost::Message as _;

    use super::*;

    fn peer(role: Role) -> PeerInfo {
        let identity = Identity {
            role,
            trust_domain: TrustDomain::from_random([0; 4]),
            name: HostName::new("somebody").unwrap(),
            host_id: (role == Role::Host).then(|| HostId::from_random([1; 16])),
        };
        PeerInfo {
            address: None,
            is_local: true,
            peer: Peer::Known(identity, "01".into()),
        }
    }

    #[test]
    fn every_rpc_of_the_contract_stands_in_the_table_and_nothing_else_of_ours() {
        let set = prost_types::FileDescriptorSet::decode(muster_proto::DESCRIPTOR_SET).unwrap();
        let mut contract = BTreeSet::new();
        for file in set.file.iter().filter(|file| file.package() == "muster.v1") {
            for service in &file.service {
                for method in &service.method {
                    contract.insert(format!("/muster.v1.{}/{}", service.name(), method.name()));
                }
            }
        }
        let table: BTreeSet<String> = TABLE
            .iter()
            .map(|(path, _)| (*path).to_owned())
            .filter(|path| path.starts_with("/muster."))
            .collect();
        assert_eq!(contract, table);
        assert!(contract.len() >= 14);
    }

    #[test]
    fn a_role_reaches_only_its_services() {
        for (path, access) in TABLE {
            for role in Role::ALL {
                let allowed = match access {
                    Access::Anyone => true,
                    Access::Roles(roles) => roles.contains(&role),
                };
                let admitted = admit(path, &peer(role));
                assert_eq!(admitted.is_ok(), allowed, "{role} on {path}");
                if let Err(refusal) = admitted {
                    assert_eq!(refusal.reason, refusal::ROLE_NOT_ALLOWED);
                }
            }
            let open = *access == Access::Anyone;
            let nobody = PeerInfo {
                address: None,
                is_local: true,
                peer: Peer::Anonymous,
            };
            assert_eq!(admit(path, &nobody).is_ok(), open, "nobody on {path}");
            let expired = PeerInfo {
                address: None,
                is_local: true,
                peer: Peer::Refused(RefusedPeer {
                    reason: refusal::CERTIFICATE_EXPIRED,
                    detail: "it ended".to_owned(),
                    identity: peer(Role::Operator).peer.identity().cloned(),
                    serial_hex: None,
                }),
            };
            match admit(path, &expired) {
                Ok(caller) => assert!(open && caller.identity.is_none(), "{path}"),
                Err(refusal) => assert_eq!(refusal.reason, refusal::CERTIFICATE_EXPIRED),
            }
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_refused_to_everybody() {
        for path in [
            "/muster.v1.FleetService/DropEverything",
            "/",
            "",
            "/grpc.health.v1.Health/List2",
        ] {
            for role in Role::ALL {
                assert!(admit(path, &peer(role)).is_err(), "{path}");
            }
        }
    }

    #[test]
    fn the_table_in_the_documentation_is_this_one() {
        let roles = [Role::Host, Role::Frontend, Role::Viewer, Role::Operator];
        let expected: Vec<String> = TABLE
            .iter()
            .map(|(path, access)| {
                let mark = |role: Role| match access {
                    Access::Anyone => "yes",
                    Access::Roles(allowed) if allowed.contains(&role) => "yes",
                    Access::Roles(_) => "",
                };
                let nobody = if *access == Access::Anyone { "yes" } else { "" };
                let marks: Vec<&str> = std::iter::once(nobody).chain(roles.map(mark)).collect();
                let path = path.trim_start_matches('/');
                format!("| `{path}` | {} |", marks.join(" | "))
                    .replace("|  |", "| |")
                    .replace("|  |", "| |")
            })
            .collect();
        let documented: Vec<&str> = include_str!("../../../docs/roles.md")
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        assert_eq!(
            documented,
            expected,
            "docs/roles.md must read:\n{}",
            expected.join("\n")
        );
    }
}
