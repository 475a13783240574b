//! The HTTP API: one axum router over core, served by `up` and by a Lambda function alike.
//!
//! It speaks to core's use cases and ports only; it knows no database, no cloud and no transport of the agents. The way
//! of a request: `edge` (name, log, panics, problems) → `edge::conform` (query, Accept) → the handler's extractors
//! (`auth`, then headers, then `body`) → core → `view` → the answer.

mod auth;
mod body;
mod edge;
mod errors;
mod etag;
mod idempotent;
mod openapi;
mod operations;
pub mod page;
pub mod problem;
mod query;
mod routes;
mod state;
pub mod view;

use std::sync::Arc;

use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::operations::Operations;
use crate::routes::{
    arrivals, engines, factories, fleet, jobs, keys, logs, meta, pools, scaling, stores, watch,
};

pub use body::MAX_BODY_BYTES;
pub use edge::REQUEST_ID;
pub use state::ApiState;

/// The API, ready to be served.
pub fn router(state: ApiState) -> Router {
    let (router, document) = operations();
    let operations = Arc::new(Operations::from_document(&document));
    let served = meta::Served(Arc::new(openapi::published(document)));
    router
        .layer(Extension(served))
        .layer(from_fn_with_state(operations, edge::conform))
        .layer(from_fn(edge::finish))
        .with_state(state)
}

/// The OpenAPI 3.1 document that the API serves at `/openapi.json`.
pub fn openapi() -> Value {
    openapi::published(operations().1)
}

/// The routes, and the completed document whose paths are still routes.
fn operations() -> (Router<ApiState>, Value) {
    let (router, document) = OpenApiRouter::new()
        .routes(routes!(jobs::list, jobs::submit::submit))
        .routes(routes!(jobs::submit::batch))
        .routes(routes!(jobs::get, jobs::update))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::submit::retry))
        .routes(routes!(jobs::hold))
        .routes(routes!(jobs::release))
        .routes(routes!(jobs::attempts))
        .routes(routes!(jobs::explain))
        .routes(routes!(jobs::document))
        .routes(routes!(watch::events))
        .routes(routes!(logs::logs))
        .routes(routes!(factories::list, factories::create))
        .routes(routes!(factories::get, factories::update, factories::delete))
        .routes(routes!(arrivals::list))
        .routes(routes!(stores::list, stores::create))
        .routes(routes!(stores::get, stores::delete))
        .routes(routes!(stores::validate))
        .routes(routes!(stores::objects))
        .routes(routes!(stores::put))
        .routes(routes!(engines::services))
        .routes(routes!(engines::list, engines::publish))
        .routes(routes!(engines::get))
        .routes(routes!(engines::deprecate))
        .routes(routes!(engines::withdraw))
        .routes(routes!(fleet::instances))
        .routes(routes!(fleet::instance))
        .routes(routes!(fleet::interrupt))
        .routes(routes!(fleet::regions))
        .routes(routes!(fleet::region))
        .routes(routes!(scaling::drain))
        .routes(routes!(scaling::undrain))
        .routes(routes!(pools::list))
        .routes(routes!(scaling::decisions))
        .routes(routes!(scaling::replay))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::revoke))
        .routes(routes!(meta::document))
        .routes(routes!(meta::health))
        .routes(routes!(meta::version))
        .split_for_parts();
    let document = serde_json::to_value(document).unwrap_or_default();
    (router, openapi::complete(document))
}
