//! The connection of a command to its broker.

use std::time::Duration;

use muster_proto::v1::{
    connection_service_client::ConnectionServiceClient, fleet_service_client::FleetServiceClient,
};
use muster_runtime::{
    channel::{ConnectOptions, Keepalive, connect_tls, connect_unix, explain_status},
    identity::LocalIdentity,
    tls::ClientTls,
};
use tonic::{Status, transport::Channel};

use super::{Failure, Global};
use crate::Config;

/// A page of 500 hosts with their checks.
const ANSWER_MAX_BYTES: usize = 32 << 20;

/// `watch` asks a silent broker for a word after this time, and waits as long for it: a person sees
/// that it is gone.
const PING_AFTER: Duration = Duration::from_secs(15);

/// Connects as the flags say.
pub(super) async fn connect(global: &Global, config: &Config) -> Result<Channel, Failure> {
    let options = ConnectOptions {
        keepalive: Some(Keepalive {
            after: PING_AFTER,
            patience: PING_AFTER,
        }),
        ..ConnectOptions::default()
    };
    let Some(endpoint) = &global.endpoint else {
        let path = global.socket.as_ref().unwrap_or(&config.operator_socket);
        return connect_unix(path, options).await.map_err(|error| {
            Failure::new(format!(
                "{}; is the broker running? (muster-broker serve)",
                muster_runtime::explain::explain(&error)
            ))
        });
    };
    let (Some(ca), Some(cert), Some(key)) = (&global.ca, &global.cert, &global.key) else {
        return Err(Failure::new("--endpoint needs --ca, --cert and --key").coded(super::USAGE));
    };
    let identity = LocalIdentity::load(cert, key, ca)?;
    Ok(connect_tls(endpoint, ClientTls::mutual(&identity)?, options).await?)
}

/// A client for administrators' questions.
pub(super) fn fleet(channel: Channel) -> FleetServiceClient<Channel> {
    FleetServiceClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES)
}

/// A client for front ends' questions.
pub(super) fn connection(channel: Channel) -> ConnectionServiceClient<Channel> {
    ConnectionServiceClient::new(channel).max_decoding_message_size(ANSWER_MAX_BYTES)
}

/// What the broker said no with.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err asks for"
)]
pub(super) fn refused(status: Status) -> Failure {
    Failure::new(explain_status(&status))
}
