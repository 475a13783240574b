//! Factories.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri};
use serde_json::{Value, json};
use telecine_core::factories::{self, FactoriesError};
use telecine_domain::factory as domain;
use telecine_domain::id::AccountId;
use telecine_domain::time::Timestamp;

use crate::auth::{Reader, Writer};
use crate::body::{self, Json};
use crate::errors;
use crate::etag::{self, IfMatch};
use crate::idempotent::{Answer, Keyed, Try, once};
use crate::page::{Listed, PageRequest};
use crate::problem::{Code, Problem};
use crate::query::Params;
use crate::state::ApiState;
use crate::view::factory::{CreateFactory, Factory, UpdateFactory};

/// Times that a change without `If-Match` is tried when others change the factory at the same moment.
const TRIES: u32 = 5;

/// Make a factory.
#[utoipa::path(post, path = "/v1/factories", operation_id = "create_factory", tag = "factories", request_body = CreateFactory,
    responses((status = 201, body = Factory)))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Writer,
    keyed: Keyed,
    Json { value, bytes }: Json<Value>,
) -> Result<Response, Problem> {
    let account = caller.account();
    once(&state, account, &keyed, &bytes, async |Try { at, again }| {
        let made = match factories::create(&state.backend, account, &value, at).await {
            Err(FactoriesError::Invalid(findings)) if again && errors::name_taken(&findings) => {
                made_before(&state, account, &value, at).await?.ok_or_else(|| errors::invalid(findings))?
            }
            made => made?,
        };
        Answer::new(StatusCode::CREATED, Some(made.version), &Factory::from(made))
    })
    .await
}

/// List the factories, oldest first.
#[utoipa::path(get, path = "/v1/factories", operation_id = "list_factories", tag = "factories",
    params(("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Factory>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let found = factories::list(&state.backend, caller.account(), page.limit, page.after.clone()).await?;
    let items = found.items.into_iter().map(Factory::from).collect();
    body::answer(StatusCode::OK, &page.listed(items, found.next))
}

/// Show one factory.
#[utoipa::path(get, path = "/v1/factories/{id}", operation_id = "get_factory", tag = "factories",
    params(("id" = String, Path, description = "The factory's id or name")),
    responses((status = 200, body = Factory)))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let factory = Factory::from(find(&state, caller.account(), &id).await?);
    Ok(etag::tagged(body::answer(StatusCode::OK, &factory)?, factory.version))
}

/// Change a factory; what is absent stays. Watch rules that stay as they are remember what they have seen.
#[utoipa::path(patch, path = "/v1/factories/{id}", operation_id = "update_factory", tag = "factories",
    params(("id" = String, Path, description = "The factory's id or name"),
           ("If-Match" = Option<String>, Header, description = "The ETag that was read")),
    request_body = UpdateFactory, responses((status = 200, body = Factory)))]
pub(crate) async fn update(
    State(state): State<ApiState>,
    caller: Writer,
    Path(id): Path<String>,
    if_match: IfMatch,
    Json { value, .. }: Json<UpdateFactory>,
) -> Result<Response, Problem> {
    let account = caller.account();
    let mut last = None;
    for _ in 0..TRIES {
        let before = find(&state, account, &id).await?;
        let asked = if_match.check(before.version)?;
        let (name, version) = (before.id.to_string(), before.version);
        let body = merged(&before, &value)?;
        match factories::replace(&state.backend, account, &name, &body, Some(version), state.now()).await {
            Ok(factory) => {
                let factory = Factory::from(factory);
                return Ok(etag::tagged(body::answer(StatusCode::OK, &factory)?, factory.version));
            }
            Err(error @ FactoriesError::Outdated { .. }) if asked.is_none() => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    tracing::debug!(error = ?last, "a factory is changed by others again and again");
    Err(Problem::new(Code::Contended, "others change the factory at the same moment; try again")
        .worth_retrying())
}

/// Remove a factory; its jobs go on.
#[utoipa::path(delete, path = "/v1/factories/{id}", operation_id = "delete_factory", tag = "factories",
    params(("id" = String, Path, description = "The factory's id or name"),
           ("If-Match" = Option<String>, Header, description = "The ETag that was read")),
    responses((status = 204)))]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Writer,
    Path(id): Path<String>,
    if_match: IfMatch,
) -> Result<Response, Problem> {
    let before = find(&state, caller.account(), &id).await?;
    let asked = if_match.check(before.version)?;
    factories::remove(&state.backend, caller.account(), &before.id.to_string(), asked).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn find(state: &ApiState, account: AccountId, id: &str) -> Result<domain::Factory, Problem> {
    let found = factories::find(&state.backend, account, id).await?;
    found.ok_or_else(|| Problem::not_found("factory", id))
}

/// What an earlier try of the same request made before it died: it has the request's own time.
async fn made_before(
    state: &ApiState,
    account: AccountId,
    request: &Value,
    at: Timestamp,
) -> Result<Option<domain::Factory>, Problem> {
    let Some(name) = request["name"].as_str() else { return Ok(None) };
    let found = factories::find(&state.backend, account, name).await?;
    Ok(found.filter(|found| found.created_at == at && found.version == 1))
}

/// The factory as core takes it, with the fields of `change` in place of its own.
fn merged(factory: &domain::Factory, change: &UpdateFactory) -> Result<Value, Problem> {
    let rules = factory.watch.iter().map(|rule| {
        json!({"store": rule.store, "prefix": rule.prefix, "suffixes": rule.suffixes, "enabled": rule.enabled})
    });
    let mut body = json!({
        "name": factory.name,
        "service": factory.service,
        "engine_version": factory.engine_version,
        "composition": factory.composition,
        "watch": rules.collect::<Vec<_>>(),
        "defaults": factory.defaults,
        "region": factory.region,
        "enabled": factory.enabled,
    });
    let change = serde_json::to_value(change).map_err(|error| Problem::internal(&error))?;
    for (name, value) in change.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    Ok(body)
}

impl From<FactoriesError> for Problem {
    fn from(error: FactoriesError) -> Self {
        match error {
            FactoriesError::Invalid(findings) => errors::invalid(findings),
            FactoriesError::NotFound(name) => Self::not_found("factory", &name),
            FactoriesError::Outdated { version, .. } => etag::mismatch(version),
            FactoriesError::Lookup(error) => error.into(),
        }
    }
}
