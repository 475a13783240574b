//! Engine versions: published, found, listed, moved through their life. An account sees its own and the platform's; its
//! own wins.

use std::collections::BTreeMap;

use semver::Version;
use telecine_domain::engine::{EngineVersion, Lifecycle};
use telecine_domain::id::{AccountId, ServiceName};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, Source};
use crate::problem::{self, Problem};
use crate::record::{self, RecordError, Versioned};

/// Most bytes of a processing schema or a changelog.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// An engine version was not published or changed.
#[derive(Debug, thiserror::Error)]
pub enum EnginesError {
    /// The request is wrong.
    #[error("the engine version was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// There is one with another content already; what was published never changes.
    #[error(
        "version {version} of service {service} is published already, with another content; publish a new version"
    )]
    Published {
        /// The service.
        service: ServiceName,
        /// The version.
        version: Version,
    },
    /// There is no such version.
    #[error("there is no version {version} of service {service} in this account")]
    NotFound {
        /// The service.
        service: ServiceName,
        /// The version.
        version: Version,
    },
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Publishes a version. Publishing the same again changes nothing, its place in its life included.
///
/// # Errors
/// `Invalid`, `Published`.
pub async fn publish(
    backend: &Backend,
    account: AccountId,
    engine: EngineVersion,
) -> Result<EngineVersion, EnginesError> {
    let problems = problems_of(&engine);
    if !problems.is_empty() {
        return Err(EnginesError::Invalid(problems));
    }
    let key = layout::engine_version(account, &engine.service, &engine.version);
    let service = record::row(layout::service(account, &engine.service), 1, &engine.service)?;
    let writes = vec![record::put_new(key.clone(), &engine)?, record::put(service, Condition::Any)];
    let table = backend.table.as_ref();
    let there = || async { Ok(table.get(&key).await?.is_some()) };
    if record::settle(table, writes, there).await? {
        return Ok(engine);
    }
    let found = record::get::<EngineVersion>(table, &key).await?;
    let same = |found: &EngineVersion| {
        *found == EngineVersion { lifecycle: found.lifecycle, expires_at: found.expires_at, ..engine.clone() }
    };
    let (service, version) = (engine.service.clone(), engine.version.clone());
    match found.map(|found| found.value).filter(same) {
        Some(found) => Ok(found),
        None => Err(EnginesError::Published { service, version }),
    }
}

/// The version that the account means: its own, else the platform's.
///
/// # Errors
/// When the records are out of reach.
pub async fn find(
    backend: &Backend,
    account: AccountId,
    service: &ServiceName,
    version: &Version,
) -> Result<Option<EngineVersion>, RecordError> {
    for account in [account, AccountId::PLATFORM] {
        let key = layout::engine_version(account, service, version);
        if let Some(found) = record::get(backend.table.as_ref(), &key).await? {
            return Ok(Some(found.value));
        }
    }
    Ok(None)
}

/// The versions of a service that the account sees, by precedence, lowest first.
///
/// # Errors
/// When the records are out of reach.
pub async fn list(
    backend: &Backend,
    account: AccountId,
    service: &ServiceName,
) -> Result<Vec<EngineVersion>, RecordError> {
    let mut versions = BTreeMap::new();
    for account in [AccountId::PLATFORM, account] {
        let partition = layout::engine_versions_of(account, service);
        let found: Vec<EngineVersion> = record::all(backend.table.as_ref(), Source::Rows, partition).await?;
        versions.extend(found.into_iter().map(|engine| (engine.version.clone(), engine)));
    }
    Ok(versions.into_values().collect())
}

/// The services that the account can ask for, by name.
///
/// # Errors
/// When the records are out of reach.
pub async fn services(backend: &Backend, account: AccountId) -> Result<Vec<ServiceName>, RecordError> {
    let mut services = std::collections::BTreeSet::new();
    for account in [AccountId::PLATFORM, account] {
        let partition = layout::services_of(account);
        services.extend(record::all::<ServiceName>(backend.table.as_ref(), Source::Rows, partition).await?);
    }
    Ok(services.into_iter().collect())
}

/// The version that is meant when nobody names one: the highest stable one that may be used.
///
/// # Errors
/// When the records are out of reach.
pub async fn recommended(
    backend: &Backend,
    account: AccountId,
    service: &ServiceName,
    now: Timestamp,
) -> Result<Option<EngineVersion>, RecordError> {
    let stable = |engine: &EngineVersion| engine.lifecycle == Lifecycle::Stable && engine.usable(now).is_ok();
    Ok(list(backend, account, service).await?.into_iter().rev().find(stable))
}

/// Moves a version of the account's own through its life.
///
/// # Errors
/// `NotFound`.
pub async fn set_lifecycle(
    backend: &Backend,
    account: AccountId,
    service: &ServiceName,
    version: &Version,
    lifecycle: Lifecycle,
    expires_at: Option<Timestamp>,
) -> Result<EngineVersion, EnginesError> {
    let key = layout::engine_version(account, service, version);
    let mut changed = None;
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<EngineVersion>>| {
        let not_found = || EnginesError::NotFound { service: service.clone(), version: version.clone() };
        let engine = found.ok_or_else(not_found)?.value.clone();
        let engine = EngineVersion { lifecycle, expires_at, ..engine };
        changed = Some(engine.clone());
        Ok::<_, EnginesError>(Some(record::row(key.clone(), 1, &engine)?))
    })
    .await?;
    Ok(changed.expect("it was replaced"))
}

fn problems_of(engine: &EngineVersion) -> Vec<Problem> {
    let mut problems = Vec::new();
    if let Err(error) = jsonschema::validator_for(&engine.processing_schema) {
        let message = format!("this is no JSON Schema (draft 2020-12): {error}");
        problems.push(Problem::new("/processing_schema", "invalid_schema", message));
    }
    let too_long = |text: &str| text.len() > MAX_TEXT_BYTES;
    if too_long(&engine.processing_schema.to_string()) || too_long(&engine.changelog) {
        let message = "schema and changelog may have at most 64 KiB each";
        problems.push(Problem::new("", "too_large", message));
    }
    if let telecine_domain::engine::Launch::Command { program, .. } = &engine.launch
        && !program.starts_with('/')
    {
        let message = "a command is named by the absolute path of its program";
        problems.push(Problem::new("/launch/command/program", "invalid_value", message));
    }
    let padded = layout::engine_version(AccountId::PLATFORM, &engine.service, &engine.version);
    if padded.sort.len() > 512 {
        let message = "the pre-release and build parts are too long";
        problems.push(Problem::new("/version", "too_large", message));
    }
    problems
}
