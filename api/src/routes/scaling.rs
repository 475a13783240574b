//! Decisions of the autoscaler, and drains by hand.

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::drain::{self, DrainError};
use telecine_core::{autoscale, fleet};
use telecine_domain::id::{InstanceId, RegionName};

use super::named;
use crate::auth::{Administrator, Reader};
use crate::body::{self, NoBody};
use crate::idempotent::{Answer, Keyed, Try, once};
use crate::page::{Listed, PageRequest};
use crate::problem::Problem;
use crate::query::Params;
use crate::state::ApiState;
use crate::view::scaling::{Cordon, Decision, Replay};

/// List what the autoscaler decided and why, newest first. A decision that says the same as the one before it and does
/// nothing is not there.
#[utoipa::path(get, path = "/v1/pools/decisions", operation_id = "list_decisions", tag = "fleet",
    params(("region" = Option<String>, Query, description = "Only those of this region"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Decision>)))]
pub(crate) async fn decisions(
    State(state): State<ApiState>,
    _caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let region = params.parsed::<RegionName>("region")?;
    let found = autoscale::list(&state.backend, region.as_ref(), page.limit, page.after.clone()).await?;
    let decisions = found.items.iter().map(Decision::from).collect();
    body::answer(StatusCode::OK, &page.listed(decisions, found.next))
}

/// Take a decision again, on the snapshot and the policy that it was taken on, and say whether it is the same.
#[utoipa::path(get, path = "/v1/pools/decisions/{number}/replay", operation_id = "replay_decision", tag = "fleet",
    params(("number" = u64, Path, description = "The decision's number"),
           ("region" = Option<String>, Query, description = "Its region; the default one unless given")),
    responses((status = 200, body = Replay)))]
pub(crate) async fn replay(
    State(state): State<ApiState>,
    _caller: Reader,
    Path(number): Path<String>,
    params: Params,
) -> Result<Response, Problem> {
    let region = params.parsed::<RegionName>("region")?.unwrap_or_else(|| state.default_region.clone());
    let number: u64 = named("decision", &number)?;
    let found = autoscale::replay(&state.backend, &region, number).await?;
    let found = found.ok_or_else(|| Problem::not_found("decision", &format!("{number} of {region}")))?;
    body::answer(StatusCode::OK, &Replay::from(&found))
}

/// Let an instance take no new work until that is taken back. What it has goes on, and the autoscaler leaves it alone.
#[utoipa::path(post, path = "/v1/instances/{id}/drain", operation_id = "drain_instance", tag = "fleet",
    params(("id" = String, Path, description = "The instance's id")),
    responses((status = 200, body = Cordon)))]
pub(crate) async fn drain(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(id): Path<String>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    let id: InstanceId = named("instance", &id)?;
    once(&state, caller.account(), &keyed, &bytes, async |Try { at, .. }| {
        let cordoned = drain::begin(&state.backend, id, at).await?;
        Answer::new(StatusCode::OK, None, &Cordon::from(cordoned))
    })
    .await
}

/// Take the cordon of an instance back, whoever placed it, so that it takes work again.
#[utoipa::path(post, path = "/v1/instances/{id}/undrain", operation_id = "undrain_instance", tag = "fleet",
    params(("id" = String, Path, description = "The instance's id")),
    responses((status = 200, body = Cordon)))]
pub(crate) async fn undrain(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(id): Path<String>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    let id: InstanceId = named("instance", &id)?;
    once(&state, caller.account(), &keyed, &bytes, async |Try { at, .. }| {
        let cordon = match drain::revoke(&state.backend, id, at).await? {
            Some(cordoned) => Cordon::from(cordoned),
            None => Cordon::none(id, &region_of(&state, id).await?),
        };
        Answer::new(StatusCode::OK, None, &cordon)
    })
    .await
}

async fn region_of(state: &ApiState, id: InstanceId) -> Result<RegionName, Problem> {
    let found = fleet::instance(&state.backend, id).await?;
    found.map(|found| found.profile.region).ok_or_else(|| Problem::from(DrainError::NotFound(id)))
}
