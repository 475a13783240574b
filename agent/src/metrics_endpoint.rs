//! Prometheus metrics and liveness of the coordinator, where the operator wants them.

use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

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

/// Listens at `address`; what is returned serves `/metrics` and `/healthz` there until it is dropped.
pub(crate) async fn open(address: SocketAddr) -> Result<impl Future<Output = ()> + Send, MetricsError> {
    let handle = PrometheusBuilder::new().install_recorder()?;
    let listener =
        TcpListener::bind(address).await.map_err(|source| MetricsError::Listen { address, source })?;
    tracing::info!(%address, "metrics are served");
    Ok(async move {
        if let Err(error) = axum::serve(listener, router(handle)).await {
            tracing::error!(%error, "metrics are served no more");
        }
    })
}

fn router(handle: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(move || std::future::ready(handle.render())))
}
