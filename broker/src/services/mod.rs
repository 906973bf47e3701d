//! The gRPC services: bytes to words and back. What may be asked by whom stands in [`access`].

pub mod access;
mod agent;
mod connection;
mod detail;
mod enrollment;
mod fleet;
mod pools;
mod state;
mod watch;

pub use agent::MESSAGE_MAX_BYTES;

use std::{sync::Arc, time::Duration};

pub use agent::AgentEdge;
pub use connection::ConnectionEdge;
pub use enrollment::EnrollmentEdge;
pub use fleet::FleetEdge;
use muster_core::model::{HostName, Intent};
use muster_proto::v1;
use muster_runtime::refusal::{self, Refusal};
use tonic::Status;

use crate::{
    registry::{Cell, Registry, Stalled},
    store::Ticket,
};

/// How long an operator waits for durability before being told that the store fails.
const DURABLE_WITHIN: Duration = Duration::from_secs(10);

/// The cell of the host called `name`.
fn find(registry: &Registry, name: &str) -> Result<Arc<Cell>, Status> {
    // Names that cannot be are no names of hosts: a clear word for a typing error.
    HostName::new(name).map_err(|error| {
        refuse(
            registry,
            Refusal::new(refusal::NAME_INVALID, error.to_string()),
        )
    })?;
    registry.get(name).ok_or_else(|| {
        let message = format!("there is no host {name:?}");
        refuse(
            registry,
            Refusal::new(refusal::HOST_UNKNOWN, message).with("host", name),
        )
    })
}

/// Counts a refusal and makes it a status.
fn refuse(registry: &Registry, refusal: Refusal) -> Status {
    registry.metrics().refused(&refusal.reason);
    refusal.into()
}

fn stalled(registry: &Registry, _: Stalled) -> Status {
    let message =
        "the broker's own clock is late by more than a lease; nothing it knows is current";
    let refusal = Refusal::new(refusal::BROKER_STALLED, message);
    refuse(registry, refusal.retry_after(Duration::from_secs(1)))
}

fn store_failed(registry: &Registry) -> Status {
    let message = "the broker cannot write its store; see its log and the disk it is on";
    refuse(registry, Refusal::new(refusal::STORE_FAILED, message))
}

fn invalid(registry: &Registry, field: &str, problem: impl Into<String>) -> Status {
    refuse(
        registry,
        Refusal::new(refusal::REQUEST_INVALID, problem).with("field", field),
    )
}

/// Waits until `ticket` is durable.
async fn durable(registry: &Registry, ticket: Option<Ticket>) -> Result<(), Status> {
    let Some(ticket) = ticket else { return Ok(()) };
    tokio::time::timeout(DURABLE_WITHIN, registry.queue().durable(ticket))
        .await
        .map_err(|_| store_failed(registry))
}

fn intent(value: i32) -> Intent {
    match v1::Intent::try_from(value) {
        Ok(v1::Intent::Reconnect) => Intent::Reconnect,
        // A newer kind of question is answered as the strictest one.
        Ok(v1::Intent::New | v1::Intent::Unspecified) | Err(_) => Intent::New,
    }
}
