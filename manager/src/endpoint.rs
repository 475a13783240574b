//! What operators and load balancers ask a manager over plain HTTP: metrics, whether it lives, whether it is ready.
//!
//! Nothing here is secret and nothing can be changed here; it belongs on an address that only operators reach.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use telecine_core::backend::Backend;
use telecine_core::leader;
use telecine_domain::id::RegionName;
use telecine_proto::clock::Clock;
use tokio_util::sync::CancellationToken;

use crate::config::ManagerConfig;
use crate::metrics;
use crate::sessions::Leads;

/// What is told of.
#[derive(Clone)]
pub(crate) struct Observed {
    backend: Backend,
    leads: Leads,
    regions: Vec<RegionName>,
    id: String,
    clock: Clock,
}

impl Observed {
    /// What the manager of `config` is asked about.
    pub(crate) fn new(config: &ManagerConfig, backend: Backend, leads: Leads) -> Self {
        let regions = if config.observed.is_empty() { &config.regions } else { &config.observed };
        let (regions, id) = (regions.clone(), config.id.clone());
        Self { backend, leads, regions, id, clock: config.clock }
    }
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    observed: Observed,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness))
        .with_state(observed);
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn show_metrics() -> impl IntoResponse {
    match metrics::recorder() {
        Some(recorder) => {
            recorder.run_upkeep();
            (StatusCode::OK, [("content-type", "text/plain; version=0.0.4")], recorder.render())
        }
        None => {
            let text = "this program records its metrics elsewhere\n".to_owned();
            (StatusCode::NOT_FOUND, [("content-type", "text/plain")], text)
        }
    }
}

/// Ready: every region is led, by this manager or by another one.
async fn readiness(State(observed): State<Observed>) -> impl IntoResponse {
    let led = observed.leads.led();
    let mut lines = String::new();
    let mut is_ready = true;
    for region in &observed.regions {
        let state = if led.contains(region) {
            "leading".to_owned()
        } else {
            match leader::current(&observed.backend, region).await {
                Ok(Some(there)) if there.holder != observed.id && there.until > observed.clock.now() => {
                    format!("led by manager {}", there.holder)
                }
                // One that this manager leads and has not loaded yet among them.
                Ok(Some(_) | None) => {
                    is_ready = false;
                    "not led".to_owned()
                }
                Err(error) => {
                    is_ready = false;
                    format!("not known: {error}")
                }
            }
        };
        lines.push_str(&format!("{region}: {state}\n"));
    }
    (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, lines)
}
