//! Services and their engine versions.

use axum::extract::{Path, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use semver::Version;
use telecine_core::engines;
use telecine_domain::engine::{self, ImageReference, Lifecycle};
use telecine_domain::id::ServiceName;

use super::{named, paged};
use crate::auth::{Administrator, Reader};
use crate::body::{self, Json, NoBody};
use crate::idempotent::{Answer, Keyed, once};
use crate::page::{Listed, PageRequest};
use crate::problem::{FieldProblem, Problem};
use crate::query::Params;
use crate::state::ApiState;
use crate::view::engine::{EngineVersion, Launch, PublishEngineVersion, Service};

/// List the services that jobs can ask for.
#[utoipa::path(get, path = "/v1/services", operation_id = "list_services", tag = "engines",
    params(("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<Service>)))]
pub(crate) async fn services(
    State(state): State<ApiState>,
    caller: Reader,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let page = PageRequest::from_params(&uri, &params)?;
    let found = engines::services(&state.backend, caller.account()).await?;
    let found: Vec<Service> = found.into_iter().map(|name| Service { id: name.to_string() }).collect();
    body::answer(StatusCode::OK, &paged(&page, found, |service: &Service| service.id.clone()))
}

/// List the versions of a service, lowest first.
#[utoipa::path(get, path = "/v1/services/{service}/engine-versions", operation_id = "list_engine_versions", tag = "engines",
    params(("service" = String, Path, description = "The service"),
           ("limit" = Option<u64>, Query, description = "Most items, 1 to 200; 50 unless given"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses((status = 200, body = Listed<EngineVersion>)))]
pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Reader,
    Path(service): Path<String>,
    uri: Uri,
    params: Params,
) -> Result<Response, Problem> {
    let service: ServiceName = named("service", &service)?;
    let page = PageRequest::from_params(&uri, &params)?;
    let found = engines::list(&state.backend, caller.account(), &service).await?;
    let found = found.into_iter().map(EngineVersion::from).collect();
    body::answer(StatusCode::OK, &paged(&page, found, |engine: &EngineVersion| engine.version.clone()))
}

/// Show one version.
#[utoipa::path(get, path = "/v1/services/{service}/engine-versions/{version}", operation_id = "get_engine_version", tag = "engines",
    params(("service" = String, Path, description = "The service"), ("version" = String, Path, description = "The version")),
    responses((status = 200, body = EngineVersion)))]
pub(crate) async fn get(
    State(state): State<ApiState>,
    caller: Reader,
    Path((service, version)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (service, version) = version_named(&service, &version)?;
    let found = engines::find(&state.backend, caller.account(), &service, &version).await?;
    let found = found.ok_or_else(|| Problem::not_found("engine version", &format!("{service} {version}")))?;
    body::answer(StatusCode::OK, &EngineVersion::from(found))
}

/// Publish a version. What was published never changes; publishing the same again changes nothing.
#[utoipa::path(post, path = "/v1/services/{service}/engine-versions", operation_id = "publish_engine_version", tag = "engines",
    params(("service" = String, Path, description = "The service")),
    request_body = PublishEngineVersion, responses((status = 201, body = EngineVersion)))]
pub(crate) async fn publish(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(service): Path<String>,
    keyed: Keyed,
    Json { value, bytes }: Json<PublishEngineVersion>,
) -> Result<Response, Problem> {
    let service: ServiceName = named("service", &service)?;
    let engine = publication(service, value)?;
    once(&state, caller.account(), &keyed, &bytes, async |_| {
        let published = engines::publish(&state.backend, caller.account(), engine).await?;
        Answer::new(StatusCode::CREATED, None, &EngineVersion::from(published))
    })
    .await
}

/// Say that a version should be left; it still works.
#[utoipa::path(post, path = "/v1/services/{service}/engine-versions/{version}/deprecate", operation_id = "deprecate_engine_version",
    tag = "engines",
    params(("service" = String, Path, description = "The service"), ("version" = String, Path, description = "The version")),
    responses((status = 200, body = EngineVersion)))]
pub(crate) async fn deprecate(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(path): Path<(String, String)>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    move_to(&state, &caller, path, Lifecycle::Deprecated, &keyed, &bytes).await
}

/// Refuse a version from now on.
#[utoipa::path(post, path = "/v1/services/{service}/engine-versions/{version}/withdraw", operation_id = "withdraw_engine_version",
    tag = "engines",
    params(("service" = String, Path, description = "The service"), ("version" = String, Path, description = "The version")),
    responses((status = 200, body = EngineVersion)))]
pub(crate) async fn withdraw(
    State(state): State<ApiState>,
    caller: Administrator,
    Path(path): Path<(String, String)>,
    keyed: Keyed,
    NoBody { bytes }: NoBody,
) -> Result<Response, Problem> {
    move_to(&state, &caller, path, Lifecycle::Withdrawn, &keyed, &bytes).await
}

async fn move_to(
    state: &ApiState,
    caller: &Administrator,
    (service, version): (String, String),
    lifecycle: Lifecycle,
    keyed: &Keyed,
    bytes: &[u8],
) -> Result<Response, Problem> {
    let (service, version) = version_named(&service, &version)?;
    once(state, caller.account(), keyed, bytes, async |_| {
        let found = engines::find(&state.backend, caller.account(), &service, &version).await?;
        let expires_at = found.and_then(|found| found.expires_at);
        let account = caller.account();
        let moved =
            engines::set_lifecycle(&state.backend, account, &service, &version, lifecycle, expires_at)
                .await?;
        Answer::new(StatusCode::OK, None, &EngineVersion::from(moved))
    })
    .await
}

fn version_named(service: &str, version: &str) -> Result<(ServiceName, Version), Problem> {
    Ok((named("service", service)?, named("engine version", version)?))
}

fn publication(
    service: ServiceName,
    request: PublishEngineVersion,
) -> Result<engine::EngineVersion, Problem> {
    let mut problems = Vec::new();
    let version = Version::parse(&request.version).map_err(|error| {
        let detail = format!("not a semantic version such as 1.4.2: {error}");
        problems.push(FieldProblem::at("/version", "invalid_value", detail));
    });
    let lifecycle = match request.lifecycle.as_deref() {
        None | Some("candidate") => Ok(Lifecycle::Candidate),
        Some("stable") => Ok(Lifecycle::Stable),
        Some(_) => {
            let detail = "a version is published as `candidate` or `stable`";
            problems.push(FieldProblem::at("/lifecycle", "invalid_value", detail));
            Err(())
        }
    };
    let launch = launch(request.launch, &mut problems);
    let (Ok(version), Ok(lifecycle), Some(launch)) = (version, lifecycle, launch) else {
        return Err(Problem::invalid(problems));
    };
    Ok(engine::EngineVersion {
        service,
        version,
        launch,
        resources: request.resources.into(),
        processing_schema: request.processing_schema,
        lifecycle,
        expires_at: request.expires_at,
        changelog: request.changelog,
    })
}

fn launch(launch: Launch, problems: &mut Vec<FieldProblem>) -> Option<engine::Launch> {
    let Launch { kind, image, program, arguments } = launch;
    let before = problems.len();
    let mut wrong =
        |pointer: &str, code: &str, detail: String| problems.push(FieldProblem::at(pointer, code, detail));
    let contained = kind != "command";
    match (&image, contained) {
        (None, true) => wrong("/launch/image", "missing_field", "name the image by its digest".to_owned()),
        (Some(_), false) => wrong("/launch/image", "not_needed", "a command has no image".to_owned()),
        (Some(_), true) | (None, false) => {}
    }
    match (&program, contained) {
        (Some(_), true) => {
            wrong("/launch/program", "not_needed", "only a command names a program".to_owned())
        }
        (None, false) => {
            wrong("/launch/program", "missing_field", "name the program by its absolute path".to_owned())
        }
        (None, true) | (Some(_), false) => {}
    }
    if kind == "grpc" && !arguments.is_empty() {
        wrong(
            "/launch/arguments",
            "not_needed",
            "a gRPC engine gets its job over the socket, not as arguments".to_owned(),
        );
    }
    let image = image.and_then(|image| {
        image
            .parse::<ImageReference>()
            .map_err(|error| wrong("/launch/image", "invalid_value", error.to_string()))
            .ok()
    });
    if !matches!(kind.as_str(), "grpc" | "plain" | "command") {
        wrong("/launch/kind", "invalid_value", "a launch is `grpc`, `plain` or `command`".to_owned());
    }
    if problems.len() > before {
        return None;
    }
    match (kind.as_str(), image, program) {
        ("grpc", Some(image), _) => Some(engine::Launch::Grpc { image }),
        ("plain", Some(image), _) => Some(engine::Launch::Plain { image, arguments }),
        (_, _, Some(program)) => Some(engine::Launch::Command { program, arguments }),
        (_, _, None) => None,
    }
}
