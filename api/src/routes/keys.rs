//! API keys.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use telecine_core::access::{self, Scope};
use telecine_domain::id::ApiKeyId;

use super::{named, paged};
use crate::auth::{Administrator, Reader, scope_name};
use crate::body::{self, Json, NoBody};
use crate::idempotent::{Answer, Keyed, Try, once};
use crate::page::{Listed, PageRequest};
use crate::problem::{FieldProblem, Problem};
use crate::query::Params;
use crate::state::ApiState;
use crate::view::key::{ApiKey, CreateApiKey, CreatedApiKey};

/// Make a key. The answer holds it; nothing else ever does.
#[utoipa::path(post, path = "/v1/api-keys", operation_id = "create_api_key", tag = "access", request_body = CreateApiKey,
    responses((status = 201, body = CreatedApiKey)))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Administrator,
    keyed: Keyed,
    Json { value, bytes }: Json<CreateApiKey>,
) -> Result<Response, Problem> {
    let scopes = scopes(value.scopes, &caller.0.scopes)?;
    once(&state, caller.account(), &keyed, &bytes, async |Try { at, .. }| {
        let made =
            access::create(&state.backend, caller.account(), &value.name, scopes, value.expires_at, at)
                .await?;
        let created = CreatedApiKey { api_key: view(made.key), secret: made.token.to_string() };
        Answer::new(StatusCode::CREATED, None, &created)
    })
    .await
}

/// List the keys, without their secrets, oldest first.
#[utoipa::path(get, path = "/v1/api-keys", operation_id = "list_api_keys", tag = "access",
    params(("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<ApiKey>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let keys = access::list(&state.backend, caller.account()).await?;
    let keys = keys.into_iter().map(view).collect();
    body::answer(StatusCode::OK, &paged(&page, keys, |key: &ApiKey| key.id.to_string()))
}

/// End a key at once.
#[utoipa::path(post, path = "/v1/api-keys/{id}/revoke", operation_id = "revoke_api_key", tag = "access",
    params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, body = ApiKey)))]
pub(crate) async fn revoke(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(id): Path<String>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    let id: ApiKeyId = named("API key", &id)?;
    once(&state, caller.account(), &keyed, &bytes, async |_| {
        let keys = access::list(&state.backend, caller.account()).await?;
        let key = keys.into_iter().find(|key| key.id == id);
        let key = key.ok_or_else(|| Problem::not_found("API key", &id.to_string()))?;
        access::revoke(&state.backend, caller.account(), id).await?;
        Answer::new(StatusCode::OK, None, &view(key))
    })
    .await
}

fn view(key: access::ApiKey) -> ApiKey {
    ApiKey {
        id: key.id,
        name: key.name,
        scopes: key.scopes.into_iter().map(|scope| scope_name(scope).to_owned()).collect(),
        created_at: key.created_at,
        expires_at: key.expires_at,
    }
}

/// The scopes asked for; those of the caller when nothing is said.
fn scopes(asked: Option<Vec<String>>, own: &BTreeSet<Scope>) -> Result<BTreeSet<Scope>, Problem> {
    let Some(asked) = asked else { return Ok(own.clone()) };
    let (mut scopes, mut wrong) = (BTreeSet::new(), Vec::new());
    for (index, text) in asked.iter().enumerate() {
        match [Scope::Read, Scope::Write, Scope::Admin].into_iter().find(|&scope| scope_name(scope) == text) {
            Some(scope) => {
                scopes.insert(scope);
            }
            None => wrong.push(FieldProblem::at(
                format!("/scopes/{index}"),
                "invalid_value",
                "scopes are `read`, `write` and `admin`",
            )),
        }
    }
    if wrong.is_empty() { Ok(scopes) } else { Err(Problem::invalid(wrong)) }
}
