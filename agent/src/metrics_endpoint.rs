//! Prometheus metrics and liveness of the coordinator, where the operator wants them.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The recorder cannot be installed.
    #[error("metrics: another recorder is installed")]
    Recorder(#[from] metrics_exporter_prometheus::BuildError),
    /// The address cannot be bound.
    #[error("metrics_listen {address}: cannot listen there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
}

/// Serves `/metrics` and `/healthz` at `address` until `stop`.
pub(crate) async fn serve(address: SocketAddr, stop: CancellationToken) -> Result<(), MetricsError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    let listener =
        TcpListener::bind(address).await.map_err(|source| MetricsError::Listen { address, source })?;
    tracing::info!(%address, "metrics are served");
    tokio::spawn(async move {
        let served =
            axum::serve(listener, router(handle)).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "metrics are served no more");
        }
    });
    Ok(())
}

fn router(handle: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || std::future::ready(handle.render())))
}
