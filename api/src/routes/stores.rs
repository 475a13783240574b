//! Stores and the objects in them.

use std::io;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, TryStreamExt};
use http::{StatusCode, Uri};
use telecine_core::ports::table::PageToken;
use telecine_core::stores::{self, NewStore, OpenedStore, StoreSecret, StoresError};
use telecine_domain::id::{AccountId, RegionName};
use telecine_domain::location::ObjectKey;
use telecine_domain::store::{Provider, S3Authentication, Store as DomainStore};
use telecine_domain::time::Timestamp;

use crate::auth::{Administrator, Reader, Writer};
use crate::body::{self, Json, NoBody};
use crate::errors;
use crate::idempotent::{Answer, Keyed, Try, once};
use crate::page::{Listed, PageRequest};
use crate::problem::{FieldProblem, Problem};
use crate::query::Params;
use crate::state::ApiState;
use crate::view::store::{CreateStore, ObjectEntry, Store, Validation};

/// Register a store. Its secret is sealed and never shown again.
#[utoipa::path(post, path = "/v1/stores", operation_id = "create_store", tag = "stores", request_body = CreateStore,
    responses((status = 201, body = Store)))]
pub(crate) async fn create(
    State(state): State<ApiState>,
    caller: Administrator,
    keyed: Keyed,
    Json { value, bytes }: Json<CreateStore>,
) -> Result<Response, Problem> {
    let account = caller.account();
    let new = registration(value, &state.default_region)?;
    once(&state, account, &keyed, &bytes, async |Try { at, again }| {
        let made = match stores::create(&state.backend, account, new.clone(), at).await {
            Err(StoresError::Invalid(findings)) if again && errors::name_taken(&findings) => {
                made_before(&state, account, &new, at).await?.ok_or_else(|| errors::invalid(findings))?
            }
            made => made?,
        };
        Answer::new(StatusCode::CREATED, None, &Store::from(made))
    })
    .await
}

/// List the stores, oldest first.
#[utoipa::path(get, path = "/v1/stores", operation_id = "list_stores", tag = "stores",
    params(("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Store>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let found = stores::list(&state.backend, caller.account(), page.limit, page.after.clone()).await?;
    let items = found.items.into_iter().map(Store::from).collect();
    body::answer(StatusCode::OK, &page.listed(items, found.next))
}

/// Show one store.
#[utoipa::path(get, path = "/v1/stores/{id}", operation_id = "get_store", tag = "stores",
    params(("id" = String, Path, description = "The store's id or name")),
    responses((status = 200, body = Store)))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    body::answer(StatusCode::OK, &Store::from(find(&state, caller.account(), &id).await?))
}

/// Forget a store that no factory watches; its objects stay.
#[utoipa::path(delete, path = "/v1/stores/{id}", operation_id = "delete_store", tag = "stores",
    params(("id" = String, Path, description = "The store's id or name")), responses((status = 204)))]
pub(crate) async fn delete(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    stores::remove(&state.backend, caller.account(), &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Try each permission for real and say which is missing. Only a store that was proven so is watched.
#[utoipa::path(post, path = "/v1/stores/{id}/validate", operation_id = "validate_store", tag = "stores",
    params(("id" = String, Path, description = "The store's id or name")),
    responses((status = 200, body = Validation)))]
pub(crate) async fn validate(
    State(state): State<ApiState>,
    caller: Writer,
    Path(id): Path<String>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    let account = caller.account();
    once(&state, account, &keyed, &bytes, async |_| {
        let store = stores::validate(&state.backend, account, &id, state.now()).await?;
        let validation = store.validation.ok_or_else(|| Problem::internal(&"validate recorded nothing"))?;
        Answer::new(StatusCode::OK, None, &Validation::from(validation))
    })
    .await
}

/// List the objects of a store by key.
#[utoipa::path(get, path = "/v1/stores/{id}/objects", operation_id = "list_objects", tag = "stores",
    params(("id" = String, Path, description = "The store's id or name"),
           ("prefix" = Option<String>, Query, description = "Only keys that begin with this"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<ObjectEntry>)))]
pub(crate) async fn objects(
    State(state): State<ApiState>,
    caller: Reader,
    Path(id): Path<String>,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let store = open(&state, caller.account(), &id).await?;
    let after = page.after.as_ref().map(|token| token.0.as_str());
    // One more than asked for tells whether there is more.
    let mut found = store.list(params.text("prefix").unwrap_or(""), after, page.limit + 1).await?;
    let more = found.len() > page.limit;
    found.truncate(page.limit);
    let next = found.last().filter(|_| more).map(|last| PageToken(last.key.to_string()));
    let entries = found.into_iter().map(|entry| ObjectEntry {
        key: entry.key.to_string(),
        size_bytes: entry.version.size_bytes,
        etag: entry.version.etag,
        version_id: entry.version.version_id,
        modified_at: Some(entry.modified),
    });
    body::answer(StatusCode::OK, &page.listed(entries.collect(), next))
}

/// Put an object into a store: the body, whole or not at all.
#[utoipa::path(put, path = "/v1/stores/{id}/objects/{*key}", operation_id = "put_object", tag = "stores",
    params(("id" = String, Path, description = "The store's id or name"),
           ("key" = String, Path, description = "The object's key; its slashes are those of the path")),
    request_body(content = String, content_type = "application/octet-stream", description = "The bytes"),
    responses((status = 201, body = ObjectEntry)))]
pub(crate) async fn put(
    State(state): State<ApiState>,
    caller: Writer,
    Path((id, key)): Path<(String, String)>,
    body: Body,
) -> Result<Response, Problem> {
    let key: ObjectKey =
        key.parse().map_err(|error| Problem::parameter("key", "invalid_value", format!("{error}")))?;
    let store = open(&state, caller.account(), &id).await?;
    let bytes = body.into_data_stream().map_err(io::Error::other).boxed();
    let version = store.put_stream(&key, bytes).await?;
    let entry = ObjectEntry {
        key: key.to_string(),
        size_bytes: version.size_bytes,
        etag: version.etag,
        version_id: version.version_id,
        modified_at: None,
    };
    body::answer(StatusCode::CREATED, &entry)
}

async fn find(state: &ApiState, account: AccountId, id: &str) -> Result<DomainStore, Problem> {
    let found = stores::find(&state.backend, account, id).await?;
    Ok(found.ok_or_else(|| Problem::not_found("store", id))?.value)
}

async fn open(state: &ApiState, account: AccountId, id: &str) -> Result<OpenedStore, Problem> {
    let store = find(state, account, id).await?;
    Ok(stores::open(&state.backend, &store, state.now()).await?)
}

/// What an earlier try of the same request made before it died: it has the request's own time.
async fn made_before(
    state: &ApiState,
    account: AccountId,
    new: &NewStore,
    at: Timestamp,
) -> Result<Option<DomainStore>, Problem> {
    let found = stores::find(&state.backend, account, &new.name).await?.map(|found| found.value);
    Ok(found.filter(|found| found.created_at == at && found.provider == new.provider))
}

fn registration(request: CreateStore, default_region: &RegionName) -> Result<NewStore, Problem> {
    let mut problems = Vec::new();
    let region = match request.region.as_deref().map(str::parse::<RegionName>) {
        None => Some(default_region.clone()),
        Some(Ok(region)) => Some(region),
        Some(Err(error)) => {
            problems.push(FieldProblem::at("/region", "invalid_value", error.to_string()));
            None
        }
    };
    let name = request.name.clone();
    let parts = match request.provider.as_str() {
        "local" => local(request, &mut problems),
        "s3" => s3(request, &mut problems),
        _ => {
            problems.push(FieldProblem::at("/provider", "invalid_value", "a provider is `local` or `s3`"));
            None
        }
    };
    match (parts, region) {
        (Some((provider, secret)), Some(region)) if problems.is_empty() => {
            Ok(NewStore { name, provider, region, secret })
        }
        _ => Err(Problem::invalid(problems)),
    }
}

fn local(request: CreateStore, problems: &mut Vec<FieldProblem>) -> Option<(Provider, StoreSecret)> {
    let foreign = [
        ("bucket", request.bucket.is_some()),
        ("prefix", request.prefix.is_some()),
        ("endpoint", request.endpoint.is_some()),
        ("signing_region", request.signing_region.is_some()),
        ("allow_http", request.allow_http.is_some()),
        ("authentication", request.authentication.is_some()),
        ("access_key_id", request.access_key_id.is_some()),
        ("secret_access_key", request.secret_access_key.is_some()),
        ("session_token", request.session_token.is_some()),
    ];
    refuse_foreign(&foreign, "a local folder", problems);
    if request.folder.is_none() {
        problems.push(FieldProblem::at("/folder", "missing_field", "name the folder by its absolute path"));
    }
    Some((Provider::Local { folder: request.folder? }, StoreSecret::None))
}

fn s3(request: CreateStore, problems: &mut Vec<FieldProblem>) -> Option<(Provider, StoreSecret)> {
    refuse_foreign(&[("folder", request.folder.is_some())], "a bucket", problems);
    let authentication = match request.authentication.as_deref() {
        None | Some("static_keys") => S3Authentication::StaticKeys,
        Some("anonymous") => S3Authentication::Anonymous,
        Some(_) => {
            let detail = "authentication is `static_keys` or `anonymous`";
            problems.push(FieldProblem::at("/authentication", "invalid_value", detail));
            S3Authentication::Anonymous
        }
    };
    let secret = match (request.access_key_id, request.secret_access_key) {
        (Some(access_key_id), Some(secret_access_key)) => {
            StoreSecret::S3Keys { access_key_id, secret_access_key, session_token: request.session_token }
        }
        (None, None) => StoreSecret::None,
        (Some(_), None) => {
            problems.push(FieldProblem::at(
                "/secret_access_key",
                "missing_field",
                "the access key needs its secret key",
            ));
            StoreSecret::None
        }
        (None, Some(_)) => {
            problems.push(FieldProblem::at(
                "/access_key_id",
                "missing_field",
                "the secret key needs its access key id",
            ));
            StoreSecret::None
        }
    };
    if request.bucket.is_none() {
        problems.push(FieldProblem::at("/bucket", "missing_field", "name the bucket"));
    }
    let provider = Provider::S3 {
        bucket: request.bucket?,
        prefix: request.prefix.unwrap_or_default(),
        endpoint: request.endpoint,
        signing_region: request.signing_region.unwrap_or_else(|| "us-east-1".to_owned()),
        allow_http: request.allow_http.unwrap_or(false),
        authentication,
    };
    Some((provider, secret))
}

fn refuse_foreign(fields: &[(&str, bool)], kind: &str, problems: &mut Vec<FieldProblem>) {
    for (name, _) in fields.iter().filter(|(_, given)| *given) {
        problems.push(FieldProblem::at(format!("/{name}"), "not_needed", format!("{kind} has no `{name}`")));
    }
}
