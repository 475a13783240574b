//! Stores: registered, found by id or name, opened, validated, removed. A store's secret is sealed in its row and leaves it only through
//! the `Credentials` port.

mod folders;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{AccountId, RegionName, StoreId};
use telecine_domain::store::{Permission, PermissionCheck, Provider, S3Authentication, Store, Validation};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::fleet;
use crate::layout;
use crate::ports::credentials::{CredentialsError, Grants};
use crate::ports::keys::{Keys, KeysError};
use crate::ports::table::{Condition, Key, PageToken, Row, Source, Table, Write};
use crate::problem::{self, Problem};
use crate::record::{self, Listed, RecordError, Versioned};

// Those who may depend on core and not on the stores below it (api, backends) get them here.
pub use telecine_stores::{
    FolderStore, ObjectEntry, ObjectRead, OpenError, OpenedStore, StoreError, StoreErrorClass, StoreSecret,
    folder_etag, is_hidden, open as open_provider,
};

pub(crate) use folders::check as check_folder;

/// What is asked for when a store is registered.
#[derive(Clone, Debug)]
pub struct NewStore {
    /// A name, unique in the account.
    pub name: String,
    /// Where the objects are.
    pub provider: Provider,
    /// The region whose compute is near the data.
    pub region: RegionName,
    /// What authenticates requests.
    pub secret: StoreSecret,
}

/// A store could not be registered, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoresError {
    /// The request is wrong.
    #[error("the store was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// The account has no such store.
    #[error("there is no store {0}")]
    NotFound(String),
    /// A factory still watches it.
    #[error("store {store} is watched by factory {factory}; remove its watch rule first")]
    InUse {
        /// Name of the store.
        store: String,
        /// Id of the factory.
        factory: String,
    },
    /// Its secret could not be sealed or opened.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// No right to it could be made.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The row of a store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreRecord {
    store: Store,
    /// Sealed under `store:<id>`, hexadecimal.
    secret: String,
}

/// The row that keeps a name unique, and the one that finds the account of a store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    account: AccountId,
    store: StoreId,
}

/// Registers a store; nothing is tried yet (see `validate`).
///
/// # Errors
/// `Invalid` with everything that is wrong, a taken name among it.
pub async fn create(
    backend: &Backend,
    account: AccountId,
    new: NewStore,
    now: Timestamp,
) -> Result<Store, StoresError> {
    let mut problems = problems_of(&new, &backend.forbidden_folders);
    problems.extend(fleet::not_run(backend, &new.region, "/region"));
    if !problems.is_empty() {
        return Err(StoresError::Invalid(problems));
    }
    let id = StoreId::new(now, rand::random());
    let NewStore { name, provider, region, secret } = new;
    let store = Store { id, account, name, provider, region, validation: None, created_at: now };
    let row = store_row(&store, seal(backend.keys.as_ref(), id, &secret).await?, 1)?;
    let pointer = Pointer { account, store: id };
    let writes = vec![
        record::put_new(layout::store_name(account, &store.name), &pointer)?,
        record::put_new(layout::store_owner(id), &pointer)?,
        record::put(row, Condition::Absent),
    ];
    let ours = || async { Ok(find(backend, account, &id.to_string()).await?.is_some()) };
    if record::settle(backend.table.as_ref(), writes, ours).await? {
        Ok(store)
    } else {
        let message = format!("there is a store named {} already", store.name);
        Err(StoresError::Invalid(vec![Problem::new("/name", "name_taken", message)]))
    }
}

/// The store with this id or name.
///
/// # Errors
/// When the table is out of reach.
pub async fn find(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
) -> Result<Option<Versioned<Store>>, RecordError> {
    let table = backend.table.as_ref();
    let id = match id_or_name.parse::<StoreId>() {
        Ok(id) => id,
        Err(_) if !is_store_name(id_or_name) => return Ok(None),
        Err(_) => match record::get::<Pointer>(table, &layout::store_name(account, id_or_name)).await? {
            Some(pointer) => pointer.value.store,
            None => return Ok(None),
        },
    };
    let found = record::get::<StoreRecord>(table, &layout::store(account, id)).await?;
    Ok(found.map(|found| Versioned { value: found.value.store, version: found.version }))
}

/// The store with this id, whoever's it is: for events that name a store and nothing else.
///
/// # Errors
/// When the table is out of reach.
pub async fn find_anywhere(backend: &Backend, store: StoreId) -> Result<Option<Store>, RecordError> {
    let owner = record::get::<Pointer>(backend.table.as_ref(), &layout::store_owner(store)).await?;
    let Some(owner) = owner else { return Ok(None) };
    Ok(find(backend, owner.value.account, &store.to_string()).await?.map(|store| store.value))
}

/// The account's stores, oldest first.
///
/// # Errors
/// When the table is out of reach, or the token is not one of this list.
pub async fn list(
    backend: &Backend,
    account: AccountId,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Store>, RecordError> {
    listed(backend, Source::Rows, &layout::stores_of(account), limit, after).await
}

/// Every account's stores: for watchers and the reconcile pass.
///
/// # Errors
/// When the table is out of reach, or the token is not one of this list.
pub async fn list_everywhere(
    backend: &Backend,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Store>, RecordError> {
    listed(backend, Source::Index1, layout::ALL_STORES, limit, after).await
}

/// How long the rights live that core makes for itself.
const OWN_LIFE: Duration = Duration::from_secs(15 * 60);

/// Opens a store for core's own use: looking at objects, listing, reading and writing for the API.
///
/// # Errors
/// `Credentials`, `Open`.
pub async fn open(backend: &Backend, store: &Store, now: Timestamp) -> Result<OpenedStore, StoresError> {
    check_folder(&store.provider, &backend.forbidden_folders)?;
    let minted = backend.credentials.mint(store, &Grants::whole(), OWN_LIFE, now).await?;
    Ok(telecine_stores::open(&store.provider, &minted.secret)?)
}

/// Tries each permission for real and records what came of it.
///
/// # Errors
/// `NotFound`, `Credentials`. A store that refuses is no error but a validation that says so.
pub async fn validate(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
    now: Timestamp,
) -> Result<Store, StoresError> {
    let not_found = || StoresError::NotFound(id_or_name.chars().take(80).collect());
    let store = find(backend, account, id_or_name).await?.ok_or_else(not_found)?.value;
    let mut validation = match check_folder(&store.provider, &backend.forbidden_folders) {
        Ok(()) => {
            let minted = backend.credentials.mint(&store, &Grants::whole(), OWN_LIFE, now).await?;
            telecine_stores::validate(&store.provider, &minted.secret, now).await
        }
        Err(refused) => refused_validation(&refused, now),
    };
    // The row is rewritten on every validation; a hostile endpoint's words may not fill it.
    for problem in validation.checks.iter_mut().filter_map(|check| check.problem.as_mut()) {
        *problem = problem.chars().take(2000).collect();
    }
    let key = layout::store(account, store.id);
    let mut validated = None;
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<StoreRecord>>| {
        let found = &found.ok_or_else(not_found)?.value;
        let store = Store { validation: Some(validation.clone()), ..found.store.clone() };
        validated = Some(store.clone());
        Ok::<_, StoresError>(Some(store_row(&store, found.secret.clone(), 1)?))
    })
    .await?;
    Ok(validated.expect("it was replaced"))
}

/// Nothing was tried, and nothing is allowed.
fn refused_validation(refused: &OpenError, now: Timestamp) -> Validation {
    let all = [Permission::List, Permission::Read, Permission::Write, Permission::Delete];
    let checks = all.map(|permission| PermissionCheck { permission, problem: Some(refused.to_string()) });
    Validation { at: now, checks: checks.into(), notes: Vec::new() }
}

/// Removes a store that no factory watches; its objects stay where they are.
///
/// # Errors
/// `NotFound`, `InUse`.
pub async fn remove(backend: &Backend, account: AccountId, id_or_name: &str) -> Result<(), StoresError> {
    let table = backend.table.as_ref();
    let not_found = || StoresError::NotFound(id_or_name.chars().take(80).collect());
    let found = find(backend, account, id_or_name).await?.ok_or_else(not_found)?;
    let store = found.value;
    let watchers = record::page_of(Source::Rows, layout::watchers_of(store.id), 1, None);
    if let Some(watcher) = table.query(watchers).await.map_err(RecordError::from)?.rows.first() {
        return Err(StoresError::InUse { store: store.name, factory: watcher.key.sort.clone() });
    }
    let writes = vec![
        Write::Delete { key: layout::store(account, store.id), condition: Condition::Version(found.version) },
        record::delete(layout::store_name(account, &store.name)),
        record::delete(layout::store_owner(store.id)),
    ];
    let gone = || async { Ok(find(backend, account, &store.id.to_string()).await?.is_none()) };
    if record::settle(table, writes, gone).await? {
        Ok(())
    } else {
        Err(RecordError::contended(&layout::store(account, store.id)).into())
    }
}

/// The secret that was sealed in a store's row.
///
/// # Errors
/// `NotFound`, or when the secret does not open.
pub(crate) async fn stored_secret(
    table: &dyn Table,
    keys: &dyn Keys,
    account: AccountId,
    store: StoreId,
) -> Result<StoreSecret, StoresError> {
    let key = layout::store(account, store);
    let found = record::get::<StoreRecord>(table, &key).await?;
    let found = found.ok_or_else(|| StoresError::NotFound(store.to_string()))?;
    let sealed = hex::decode(&found.value.secret).map_err(|error| RecordError::damaged(&key, error))?;
    let plain = keys.open(&context(store), &sealed).await?;
    // The error of a secret that does not parse would repeat parts of it.
    let secret = serde_json::from_slice(&plain);
    Ok(secret.map_err(|_| RecordError::damaged(&key, "the secret is not one"))?)
}

async fn listed(
    backend: &Backend,
    source: Source,
    partition: &str,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Store>, RecordError> {
    let page = backend.table.query(record::page_of(source, partition, limit, after)).await?;
    let stores = page.rows.iter().map(|row| Ok(record::value::<StoreRecord>(row)?.store));
    Ok(Listed { items: stores.collect::<Result<_, RecordError>>()?, next: page.next })
}

fn store_row(store: &Store, secret: String, version: u64) -> Result<Row, RecordError> {
    let key = layout::store(store.account, store.id);
    let mut row = record::row(key, version, &StoreRecord { store: store.clone(), secret })?;
    row.index1 = Some(Key::new(layout::ALL_STORES, store.id.to_string()));
    Ok(row)
}

async fn seal(keys: &dyn Keys, store: StoreId, secret: &StoreSecret) -> Result<String, StoresError> {
    let plain = zeroize::Zeroizing::new(serde_json::to_vec(secret).expect("a secret is JSON"));
    Ok(hex::encode(keys.seal(&context(store), &plain).await?))
}

/// What a store's secret is bound to.
fn context(store: StoreId) -> String {
    format!("store:{store}")
}

/// 1 to 64 characters of a-z, A-Z, 0-9, `-`, `_` and `.`, beginning with a letter or a digit; no id.
fn is_store_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.parse::<StoreId>().is_err()
}

fn problems_of(new: &NewStore, forbidden: &[PathBuf]) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !is_store_name(&new.name) {
        let message =
            "a store's name has 1 to 64 letters, digits, `-`, `_` or `.` and begins with a letter or a digit";
        problems.push(Problem::new("/name", "invalid_value", message));
    }
    match &new.provider {
        Provider::Local { folder } => local_problems(folder, &new.secret, forbidden, &mut problems),
        Provider::S3 { bucket, prefix, endpoint, allow_http, authentication, .. } => {
            s3_problems(bucket, prefix, &mut problems);
            if let Some(endpoint) = endpoint {
                endpoint_problems(endpoint, *allow_http, &mut problems);
            }
            secret_problems(*authentication, &new.secret, &mut problems);
        }
    }
    problems
}

fn local_problems(folder: &str, secret: &StoreSecret, forbidden: &[PathBuf], problems: &mut Vec<Problem>) {
    let climbs = folder.split('/').any(|segment| segment == "..");
    if !folder.starts_with('/') || folder.contains('\0') || climbs {
        let message = "a local folder is named by its absolute path, without `..`";
        problems.push(Problem::new("/provider/folder", "invalid_value", message));
    } else if let Some(problem) = folders::problem_of(Path::new(folder), forbidden) {
        let message = format!("the folder {folder:?} is refused: {problem}");
        problems.push(Problem::new("/provider/folder", "folder_refused", message));
    }
    if *secret != StoreSecret::None {
        problems.push(Problem::new("/secret", "not_needed", "a local folder needs no secret; leave it out"));
    }
}

fn s3_problems(bucket: &str, prefix: &str, problems: &mut Vec<Problem>) {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(allowed) {
        let message = "a bucket's name has 3 to 63 lower-case letters, digits, dots, hyphens or underscores";
        problems.push(Problem::new("/provider/bucket", "invalid_value", message));
    }
    let prefix_is_folder =
        prefix.parse::<telecine_domain::location::ObjectKey>().is_ok_and(|key| key.is_folder());
    if !prefix.is_empty() && !prefix_is_folder {
        let message = "a prefix is empty or a key that ends with `/`, without `.` and `..` segments";
        problems.push(Problem::new("/provider/prefix", "invalid_value", message));
    }
}

fn endpoint_problems(endpoint: &str, allow_http: bool, problems: &mut Vec<Problem>) {
    let at = "/provider/endpoint";
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
    if host.is_none_or(|host| host.is_empty() || host.contains(['@', ' '])) {
        let message =
            "an endpoint is a base URL such as https://objects.example.com, without user and password";
        problems.push(Problem::new(at, "invalid_value", message));
    } else if endpoint.starts_with("http://") && !allow_http {
        let message = "this endpoint is not encrypted; use https:// or set `allow_http` to true";
        problems.push(Problem::new(at, "http_refused", message));
    }
}

fn secret_problems(authentication: S3Authentication, secret: &StoreSecret, problems: &mut Vec<Problem>) {
    match (authentication, secret) {
        (S3Authentication::StaticKeys, StoreSecret::S3Keys { access_key_id, secret_access_key, .. }) => {
            if access_key_id.is_empty() || secret_access_key.is_empty() {
                let message = "`access_key_id` and `secret_access_key` may not be empty";
                problems.push(Problem::new("/secret", "invalid_value", message));
            }
        }
        (S3Authentication::StaticKeys, StoreSecret::None) => {
            let message = "static keys are needed: `access_key_id` and `secret_access_key` (or anonymous authentication)";
            problems.push(Problem::new("/secret", "missing", message));
        }
        (S3Authentication::Anonymous, StoreSecret::S3Keys { .. }) => {
            problems.push(Problem::new(
                "/secret",
                "not_needed",
                "anonymous requests need no secret; leave it out",
            ));
        }
        (S3Authentication::Anonymous, StoreSecret::None) => {}
    }
}
