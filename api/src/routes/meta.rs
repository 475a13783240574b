//! The API about itself.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::Value;
use telecine_core::ports::table::Key;

use crate::body;
use crate::problem::Problem;
use crate::state::ApiState;
use crate::view::place::{Health, Version};

/// Whether the API works: it reads a row.
#[utoipa::path(get, path = "/v1/health", operation_id = "health", tag = "about", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(state): State<ApiState>) -> Result<Response, Problem> {
    let read = state.backend.table.get(&Key::new("health", "health")).await;
    read.map_err(|error| {
        tracing::warn!(%error, "the table is out of reach");
        Problem::unavailable("the records are out of reach")
    })?;
    body::answer(StatusCode::OK, &Health { status: "ok".to_owned() })
}

/// Which version answers.
#[utoipa::path(get, path = "/v1/version", operation_id = "version", tag = "about", responses((status = 200, body = Version)))]
pub(crate) async fn version() -> Result<Response, Problem> {
    let version = Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: "v1".to_owned() };
    body::answer(StatusCode::OK, &version)
}

/// The OpenAPI 3.1 document of this API.
#[derive(Clone)]
pub(crate) struct Served(pub(crate) Arc<Value>);

/// This document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "about", responses((status = 200, body = Object)))]
pub(crate) async fn document(Extension(Served(document)): Extension<Served>) -> Result<Response, Problem> {
    body::answer(StatusCode::OK, document.as_ref())
}
