//! The API's listener.

use std::sync::Arc;

use telecine_api::ApiState;
use telecine_core::backend::Backend;
use telecine_domain::id::RegionName;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::process;

/// Serves the API until `shutdown`, then ends event streams and waits for requests under way.
///
/// # Errors
/// When the listener dies.
pub(super) async fn run(
    listener: TcpListener,
    backend: Backend,
    regions: Vec<RegionName>,
    shutdown: CancellationToken,
) -> Result<(), String> {
    let default_region = regions.first().cloned().ok_or_else(|| "there is no region".to_owned())?;
    let state = ApiState::new(backend, Arc::new(process::now), regions, default_region);
    let router = telecine_api::router(state.ending_with(shutdown.clone()));
    let served = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    served.await.map_err(|problem| format!("the API's listener: {problem}"))
}
