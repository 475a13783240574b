//! Pools.

use axum::extract::State;
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::pools;
use telecine_domain::id::RegionName;

use super::paged;
use crate::auth::Reader;
use crate::body;
use crate::page::{Listed, PageRequest};
use crate::problem::Problem;
use crate::query::Params;
use crate::state::ApiState;
use crate::view::pool::Pool;

/// List the pools with how many instances each has.
#[utoipa::path(get, path = "/v1/pools", operation_id = "list_pools", tag = "fleet",
    params(("region" = Option<String>, Query, description = "Only those of this region"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Pool>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    _caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let region = params.parsed::<RegionName>("region")?;
    let mut found = Vec::new();
    for pool in pools::list(&state.backend).await? {
        if region.as_ref().is_some_and(|region| *region != pool.region) {
            continue;
        }
        let now = pools::now(&state.backend, pool).await.map_err(|error| {
            tracing::warn!(%error, "the instance provider is out of reach");
            Problem::unavailable("the provider of instances is out of reach just now; try again")
        })?;
        found.push(Pool::from(now));
    }
    body::answer(StatusCode::OK, &paged(&page, found, |pool: &Pool| pool.id.clone()))
}
