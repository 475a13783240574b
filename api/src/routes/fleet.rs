//! Regions and instances.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::{fleet, leader};
use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::instance::{self as domain, InstanceState};
use telecine_domain::resources::Resources;

use super::{named, paged};
use crate::auth::{Administrator, Reader};
use crate::body::{self, Json};
use crate::idempotent::{Answer, Keyed, once};
use crate::page::{Listed, PageRequest};
use crate::problem::{FieldProblem, Problem};
use crate::query::Params;
use crate::state::ApiState;
use crate::view::place::{Instance, InterruptInstance, Region, RegionManager};

/// Longest time until an instance is taken away on request, in seconds.
const LONGEST_NOTICE: u32 = 86_400;

/// List the instances.
#[utoipa::path(get, path = "/v1/instances", operation_id = "list_instances", tag = "fleet",
    params(("region" = Option<String>, Query, description = "Only those of this region"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Instance>)))]
pub(crate) async fn instances(
    State(state): State<ApiState>,
    _caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let regions = match params.parsed::<RegionName>("region")? {
        Some(region) => vec![region],
        None => known_regions(&state).await?,
    };
    let mut found = Vec::new();
    for region in regions {
        found.extend(fleet::instances(&state.backend, &region).await?.into_iter().map(Instance::from));
    }
    body::answer(StatusCode::OK, &paged(&page, found, |instance: &Instance| instance.id.to_string()))
}

/// Show one instance.
#[utoipa::path(get, path = "/v1/instances/{id}", operation_id = "get_instance", tag = "fleet",
    params(("id" = String, Path, description = "The instance's id")),
    responses((status = 200, body = Instance)))]
pub(crate) async fn instance(
    State(state): State<ApiState>,
    _caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: InstanceId = named("instance", &id)?;
    let found = fleet::instance(&state.backend, id).await?;
    let found = found.ok_or_else(|| Problem::not_found("instance", &id.to_string()))?;
    body::answer(StatusCode::OK, &Instance::from(found))
}

/// Have an instance taken away as a spot market does: announced to it now, done after so many seconds whatever runs there.
/// Only where the provider can be made to, as local instances can. Of two requests for one instance the earlier time counts.
#[utoipa::path(post, path = "/v1/instances/{id}/interrupt", operation_id = "interrupt_instance", tag = "fleet",
    params(("id" = String, Path, description = "The instance's id")),
    request_body = InterruptInstance, responses((status = 202, body = Instance)))]
pub(crate) async fn interrupt(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(id): Path<String>,
    keyed: Keyed,
    Json { value, bytes }: Json<InterruptInstance>,
) -> Result<Response, Problem> {
    let id: InstanceId = named("instance", &id)?;
    if value.in_seconds > LONGEST_NOTICE {
        let detail = format!("0 to {LONGEST_NOTICE} seconds are possible");
        return Err(Problem::invalid(vec![FieldProblem::at("/in_seconds", "invalid_value", detail)]));
    }
    let at = state.now().after(Duration::from_secs(value.in_seconds.into()));
    once(&state, caller.account(), &keyed, &bytes, async |_| {
        let found = fleet::instance(&state.backend, id).await?;
        let found = found.ok_or_else(|| Problem::not_found("instance", &id.to_string()))?;
        state.backend.instances.interrupt(&found.profile.pool, id, at).await?;
        Answer::new(StatusCode::ACCEPTED, None, &Instance::from(found))
    })
    .await
}

/// List the regions with their managers and their load.
#[utoipa::path(get, path = "/v1/regions", operation_id = "list_regions", tag = "fleet",
    params(("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Region>)))]
pub(crate) async fn regions(
    State(state): State<ApiState>,
    _caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let mut found = Vec::new();
    for region in known_regions(&state).await? {
        found.push(describe(&state, region).await?);
    }
    body::answer(StatusCode::OK, &paged(&page, found, |region: &Region| region.id.clone()))
}

/// Show one region.
#[utoipa::path(get, path = "/v1/regions/{id}", operation_id = "get_region", tag = "fleet",
    params(("id" = String, Path, description = "The region's name")),
    responses((status = 200, body = Region)))]
pub(crate) async fn region(
    State(state): State<ApiState>,
    _caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let region: RegionName = named("region", &id)?;
    if !known_regions(&state).await?.contains(&region) {
        return Err(Problem::not_found("region", &id));
    }
    body::answer(StatusCode::OK, &describe(&state, region).await?)
}

/// The regions of the configuration, and those that have had a manager.
async fn known_regions(state: &ApiState) -> Result<Vec<RegionName>, Problem> {
    let mut regions = fleet::regions(&state.backend).await?;
    regions.extend(state.regions.iter().cloned());
    regions.sort_unstable();
    regions.dedup();
    Ok(regions)
}

async fn describe(state: &ApiState, region: RegionName) -> Result<Region, Problem> {
    let now = state.now();
    let leadership =
        leader::current(&state.backend, &region).await?.filter(|leadership| leadership.until > now);
    let depth = state.backend.queue.depth(&region).await.map_err(|error| {
        tracing::warn!(%error, %region, "the queue is out of reach");
        Problem::unavailable("the queue is out of reach just now; try again")
    })?;
    let connected = fleet::instances(&state.backend, &region).await?.into_iter().filter(is_connected);
    let (mut instances, mut capacity, mut allocated) = (0, Resources::ZERO, Resources::ZERO);
    for instance in connected {
        instances += 1;
        capacity = capacity.saturating_add(&instance.profile.capacity);
        allocated = allocated.saturating_add(&instance.allocated);
    }
    Ok(Region {
        is_default: region == state.default_region,
        id: region.to_string(),
        manager: leadership.map(|leadership| RegionManager {
            id: leadership.holder,
            term: leadership.term.0,
            addresses: leadership.addresses,
        }),
        queued_jobs: depth.visible + depth.in_flight,
        instances,
        capacity: capacity.into(),
        allocated: allocated.into(),
        occupancy_thousandths: allocated.dominant_share(&capacity),
    })
}

fn is_connected(instance: &domain::Instance) -> bool {
    match instance.state {
        InstanceState::Ready
        | InstanceState::Unhealthy
        | InstanceState::Draining
        | InstanceState::Cordoned => true,
        InstanceState::Disconnected | InstanceState::Lost => false,
    }
}
