//! Metrics and health over HTTP, on loopback: `/metrics`, `/healthz`, `/readyz`.
//!
//! `/healthz` is constant while the process serves. `/readyz` says whether answers can be relied
//! on: the store is loaded and can be written, and the broker is not shutting down.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use muster_runtime::shutdown::Shutdown;
use tokio::net::TcpListener;

use crate::{registry::Registry, stop::ended};

#[derive(Clone)]
struct Web {
    registry: Arc<Registry>,
    shutdown: Shutdown,
}

/// Serves until shortly after the cut. From the request to shut down until then `/readyz` says so:
/// who asks over a connection of its own must be answered too.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    shutdown: Shutdown,
    cut: Shutdown,
) -> io::Result<()> {
    let web = Web { registry, shutdown };
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(web);
    let server = axum::serve(listener, router).with_graceful_shutdown(cut.requested());
    ended(server.into_future(), &cut).await
}

async fn metrics(State(web): State<Web>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, kind)],
        web.registry.metrics().render(),
    )
}

async fn ready(State(web): State<Web>) -> impl IntoResponse {
    if web.shutdown.is_requested() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: shutting down\n",
        )
    } else if web.registry.queue().is_failing() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the store cannot be written\n",
        )
    } else {
        (StatusCode::OK, "ready\n")
    }
}
