//! Factories: created, found by id or name, replaced, removed. Along with its row a factory has one that keeps its name
//! unique and one under each store that it watches, so that an arriving object finds it.

use std::collections::BTreeSet;

use semver::Version;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use telecine_domain::composition::inflate;
use telecine_domain::factory::{Factory, JobDefaults, WatchRule};
use telecine_domain::id::{AccountId, FactoryId, RegionName, ServiceName, StoreId, WatchRuleId};
use telecine_domain::location::ObjectKey;
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::fleet;
use crate::jobs::{Catalog, LookupError, check_labels, check_priority, draft};
use crate::layout;
use crate::ports::table::{Condition, PageToken, Source, Write};
use crate::problem::{self, Fields, Problem, child};
use crate::record::{self, Listed, RecordError};

/// A factory was not created, found or changed.
#[derive(Debug, thiserror::Error)]
pub enum FactoriesError {
    /// The request is wrong.
    #[error("the factory was refused: {}", problem::join(.0))]
    Invalid(Vec<Problem>),
    /// The account has no such factory.
    #[error("there is no factory {0}")]
    NotFound(String),
    /// It was changed since the caller read it.
    #[error("factory {name} was changed since you read it: it has version {version} now")]
    Outdated {
        /// Its name.
        name: String,
        /// Its version now.
        version: u64,
    },
    /// The records were out of reach.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl From<RecordError> for FactoriesError {
    fn from(error: RecordError) -> Self {
        Self::Lookup(error.into())
    }
}

/// Most watch rules of a factory.
const MAX_RULES: usize = 20;
/// Most suffixes of a watch rule.
const MAX_SUFFIXES: usize = 50;

/// The row that keeps a name unique, and the one under a watched store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    account: AccountId,
    factory: FactoryId,
    /// The factory's version, where a watcher must see that it changed.
    #[serde(default)]
    version: u64,
}

/// Creates a factory from `{name, service, engine_version, composition, watch, defaults, region, enabled}`. Stores are
/// named by id or name; a watch rule is `{store, prefix, suffixes, enabled}`; the recommended engine version is pinned
/// when none is named.
///
/// # Errors
/// `Invalid` with everything that is wrong, a taken name among it.
pub async fn create(
    backend: &Backend,
    account: AccountId,
    body: &Value,
    now: Timestamp,
) -> Result<Factory, FactoriesError> {
    let factory = read(backend, account, body, None, now).await?;
    let key = layout::factory(account, factory.id);
    let mut writes = vec![
        record::put_new(key.clone(), &factory)?,
        record::put_new(layout::factory_name(account, &factory.name), &pointer(&factory))?,
    ];
    writes.extend(watchers(&BTreeSet::new(), &watched(&factory), &factory)?);
    let there = || async { Ok(backend.table.get(&key).await?.is_some()) };
    if record::settle(backend.table.as_ref(), writes, there).await? {
        Ok(factory)
    } else {
        Err(name_taken(&factory.name))
    }
}

/// The factory with this id or name.
///
/// # Errors
/// When the records are out of reach.
pub async fn find(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
) -> Result<Option<Factory>, RecordError> {
    let table = backend.table.as_ref();
    let id = match id_or_name.parse::<FactoryId>() {
        Ok(id) => id,
        Err(_) if !is_factory_name(id_or_name) => return Ok(None),
        Err(_) => {
            let name = layout::factory_name(account, id_or_name);
            match record::get::<Pointer>(table, &name).await? {
                Some(pointer) => pointer.value.factory,
                None => return Ok(None),
            }
        }
    };
    Ok(record::get(table, &layout::factory(account, id)).await?.map(|found| found.value))
}

/// The account's factories, oldest first.
///
/// # Errors
/// When the records are out of reach, or the token is not one of this list.
pub async fn list(
    backend: &Backend,
    account: AccountId,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Factory>, RecordError> {
    let query = record::page_of(Source::Rows, layout::factories_of(account), limit, after);
    let page = backend.table.query(query).await?;
    let items = page.rows.iter().map(record::value).collect::<Result<_, _>>()?;
    Ok(Listed { items, next: page.next })
}

/// The factories that watch a store, as they are now.
///
/// # Errors
/// When the records are out of reach.
pub async fn watching(backend: &Backend, store: StoreId) -> Result<Vec<Factory>, RecordError> {
    let table = backend.table.as_ref();
    let pointers: Vec<Pointer> = record::all(table, Source::Rows, layout::watchers_of(store)).await?;
    let mut factories = Vec::with_capacity(pointers.len());
    for pointer in pointers {
        let key = layout::factory(pointer.account, pointer.factory);
        factories.extend(record::get::<Factory>(table, &key).await?.map(|found| found.value));
    }
    Ok(factories)
}

/// The factories that watch a store, with their versions: what changes when a rule does.
pub(crate) async fn watch_marks(
    backend: &Backend,
    store: StoreId,
) -> Result<Vec<(FactoryId, u64)>, RecordError> {
    let pointers: Vec<Pointer> =
        record::all(backend.table.as_ref(), Source::Rows, layout::watchers_of(store)).await?;
    Ok(pointers.into_iter().map(|pointer| (pointer.factory, pointer.version)).collect())
}

/// Puts `body` (as for `create`) in place of what the factory is; with `if_match`, only of that version. Watch rules
/// that stay as they are (store, prefix, suffixes) keep their id, and with it what they have seen.
///
/// # Errors
/// `Invalid`, `NotFound`, `Outdated`.
pub async fn replace(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
    body: &Value,
    if_match: Option<u64>,
    now: Timestamp,
) -> Result<Factory, FactoriesError> {
    let before = existing(backend, account, id_or_name, if_match).await?;
    let read = read(backend, account, body, Some(&before), now).await?;
    let after = Factory { created_at: before.created_at, version: before.version + 1, ..read };
    write(backend, &before, after).await
}

/// Switches a factory on or off.
///
/// # Errors
/// `NotFound`, `Outdated` when it was changed at the same moment.
pub async fn set_enabled(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
    enabled: bool,
) -> Result<Factory, FactoriesError> {
    let before = existing(backend, account, id_or_name, None).await?;
    if before.enabled == enabled {
        return Ok(before);
    }
    let after = Factory { enabled, version: before.version + 1, ..before.clone() };
    write(backend, &before, after).await
}

/// Removes a factory; its jobs go on.
///
/// # Errors
/// `NotFound`, `Outdated`.
pub async fn remove(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
    if_match: Option<u64>,
) -> Result<(), FactoriesError> {
    let factory = existing(backend, account, id_or_name, if_match).await?;
    let key = layout::factory(account, factory.id);
    let mut writes = vec![
        Write::Delete { key: key.clone(), condition: Condition::Version(factory.version) },
        record::delete(layout::factory_name(account, &factory.name)),
    ];
    writes.extend(watchers(&watched(&factory), &BTreeSet::new(), &factory)?);
    let gone = || async { Ok(backend.table.get(&key).await?.is_none()) };
    if record::settle(backend.table.as_ref(), writes, gone).await? {
        Ok(())
    } else {
        Err(outdated(backend, &factory).await?)
    }
}

async fn existing(
    backend: &Backend,
    account: AccountId,
    id_or_name: &str,
    if_match: Option<u64>,
) -> Result<Factory, FactoriesError> {
    let not_found = || FactoriesError::NotFound(id_or_name.chars().take(80).collect());
    let factory = find(backend, account, id_or_name).await?.ok_or_else(not_found)?;
    match if_match {
        Some(version) if version != factory.version => {
            Err(FactoriesError::Outdated { name: factory.name, version: factory.version })
        }
        Some(_) | None => Ok(factory),
    }
}

/// Writes `after` in place of `before`, with the rows that go with it.
async fn write(backend: &Backend, before: &Factory, after: Factory) -> Result<Factory, FactoriesError> {
    let (table, account) = (backend.table.as_ref(), after.account);
    let key = layout::factory(account, after.id);
    let row = record::row(key.clone(), after.version, &after)?;
    let mut writes = vec![record::put(row, Condition::Version(before.version))];
    if before.name != after.name {
        writes.push(record::delete(layout::factory_name(account, &before.name)));
        writes.push(record::put_new(layout::factory_name(account, &after.name), &pointer(&after))?);
    }
    writes.extend(watchers(&watched(before), &watched(&after), &after)?);
    let ours = || async {
        let found = record::get::<Factory>(table, &key).await?;
        Ok(found.is_some_and(|found| found.value == after))
    };
    if record::settle(table, writes, ours).await? {
        return Ok(after);
    }
    let found = record::get::<Factory>(table, &key).await?;
    match found {
        Some(found) if found.version == before.version => Err(name_taken(&after.name)),
        Some(_) | None => Err(outdated(backend, before).await?),
    }
}

async fn outdated(backend: &Backend, factory: &Factory) -> Result<FactoriesError, RecordError> {
    let found = find(backend, factory.account, &factory.id.to_string()).await?;
    Ok(match found {
        Some(found) => FactoriesError::Outdated { name: found.name, version: found.version },
        None => FactoriesError::NotFound(factory.name.clone()),
    })
}

fn name_taken(name: &str) -> FactoriesError {
    let message = format!("there is a factory named {name} already");
    FactoriesError::Invalid(vec![Problem::new("/name", "name_taken", message)])
}

fn pointer(factory: &Factory) -> Pointer {
    Pointer { account: factory.account, factory: factory.id, version: factory.version }
}

fn watched(factory: &Factory) -> BTreeSet<StoreId> {
    factory.watch.iter().map(|rule| rule.store).collect()
}

fn watchers(
    before: &BTreeSet<StoreId>,
    after: &BTreeSet<StoreId>,
    factory: &Factory,
) -> Result<Vec<Write>, RecordError> {
    let left = before.difference(after).map(|&store| Ok(record::delete(layout::watcher(store, factory.id))));
    // Those that stay are told the new version, too.
    let now = after.iter().map(|&store| {
        let row = record::row(layout::watcher(store, factory.id), factory.version, &pointer(factory))?;
        Ok(record::put(row, Condition::Any))
    });
    left.chain(now).collect()
}

async fn read(
    backend: &Backend,
    account: AccountId,
    body: &Value,
    before: Option<&Factory>,
    now: Timestamp,
) -> Result<Factory, FactoriesError> {
    let id = before.map_or_else(|| FactoryId::new(now, rand::random()), |before| before.id);
    let rules = before.map_or(&[][..], |before| &before.watch);
    let catalog = Catalog::new(backend, account, now);
    let mut problems = Vec::new();
    let mut fields = Fields::of(body, "", &mut problems);
    let name: Option<String> = fields.parsed("name", &mut problems);
    let service: Option<ServiceName> = fields.parsed("service", &mut problems);
    let version: Option<Version> = fields.parsed("engine_version", &mut problems);
    let composition = fields.raw("composition").cloned();
    let watch = read_rules(&catalog, fields.raw("watch"), rules, now, &mut problems).await?;
    let defaults: JobDefaults = fields.parsed("defaults", &mut problems).unwrap_or_default();
    let region: Option<RegionName> = fields.parsed("region", &mut problems);
    // One that is not run any more may stay, so that the factory can still be disabled.
    if region.is_some() && region.as_ref() != before.and_then(|before| before.region.as_ref()) {
        problems.extend(region.as_ref().and_then(|region| fleet::not_run(backend, region, "/region")));
    }
    let enabled: bool = fields.parsed("enabled", &mut problems).unwrap_or(true);
    let missing = [
        ("name", name.is_some() || fields.raw("name").is_some()),
        ("service", service.is_some() || fields.raw("service").is_some()),
        ("composition", composition.is_some()),
    ];
    for (field, _) in missing.iter().filter(|(_, there)| !there) {
        problems.push(Problem::new(fields.at(field), "missing", format!("`{field}` is needed")));
    }
    fields.finish(&mut problems);
    if name.as_deref().is_some_and(|name| !is_factory_name(name)) {
        let message = "a factory's name has 1 to 64 letters, digits, `-`, `_` or `.` and begins with a letter or a digit";
        problems.push(Problem::new("/name", "invalid_value", message));
    }
    check_priority(defaults.priority, "/defaults/priority", &mut problems);
    check_labels(&defaults.labels, "/defaults/labels", &mut problems);
    let version = pinned_version(&catalog, service.as_ref(), version, &mut problems).await?;
    let composition = read_template(&catalog, composition, &mut problems).await?;
    let (Some(name), Some(service), Some(engine_version), Some(composition), true) =
        (name, service, version, composition, problems.is_empty())
    else {
        return Err(FactoriesError::Invalid(problems));
    };
    let (created_at, version) = (now, 1);
    Ok(Factory {
        id,
        account,
        name,
        service,
        engine_version,
        composition,
        watch,
        defaults,
        region,
        enabled,
        created_at,
        version,
    })
}

async fn pinned_version(
    catalog: &Catalog<'_>,
    service: Option<&ServiceName>,
    version: Option<Version>,
    problems: &mut Vec<Problem>,
) -> Result<Option<Version>, FactoriesError> {
    let Some(service) = service else { return Ok(None) };
    let found = catalog.engine(service, version.as_ref()).await?;
    let problem = match &found {
        Some(engine) => engine.version.usable(catalog.now).err().map(|unusable| unusable.to_string()),
        None => match &version {
            Some(version) => Some(format!("service {service} has no engine version {version}")),
            None => {
                Some(format!("service {service} has no stable engine version; publish one or name a version"))
            }
        },
    };
    if let Some(message) = problem {
        problems.push(Problem::new("/engine_version", "engine_version_unusable", message));
        return Ok(None);
    }
    Ok(found.map(|engine| engine.version.version.clone()))
}

/// The composition with stores named by id. It is tried on a key that means nothing, so that what is wrong with it is
/// said now and not when an object arrives.
async fn read_template(
    catalog: &Catalog<'_>,
    template: Option<Value>,
    problems: &mut Vec<Problem>,
) -> Result<Option<Value>, FactoriesError> {
    let Some(mut template) = template else { return Ok(None) };
    let unknown = draft::name_stores_by_id(catalog, &mut template, "/composition").await?;
    let sample: ObjectKey = "folder/name.extension".parse().expect("a plain key");
    match inflate(&template, &sample) {
        Ok(document) => {
            // This says again what was unknown.
            draft::read_composition(catalog, &document, "/composition", problems).await?;
        }
        Err(error) => {
            problems.extend(unknown);
            let pointer = format!("/composition{}", error.pointer);
            problems.push(Problem::new(pointer, "unknown_placeholder", error.to_string()));
        }
    }
    Ok(Some(template))
}

async fn read_rules(
    catalog: &Catalog<'_>,
    rules: Option<&Value>,
    before: &[WatchRule],
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Result<Vec<WatchRule>, FactoriesError> {
    let Some(rules) = rules else { return Ok(Vec::new()) };
    let Some(rules) = rules.as_array() else {
        problems.push(problem::wrong_type("/watch", "an array", rules));
        return Ok(Vec::new());
    };
    if rules.len() > MAX_RULES {
        let message = format!("{} watch rules; at most {MAX_RULES} are allowed", rules.len());
        problems.push(Problem::new("/watch", "too_many", message));
        return Ok(Vec::new());
    }
    let mut read = Vec::<WatchRule>::new();
    for (index, rule) in rules.iter().enumerate() {
        let pointer = format!("/watch/{index}");
        let Some(rule) = read_rule(catalog, rule, &pointer, now, problems).await? else { continue };
        let same = |other: &&WatchRule| {
            (other.store, &other.prefix, &other.suffixes) == (rule.store, &rule.prefix, &rule.suffixes)
        };
        if read.iter().find(same).is_some() {
            problems.push(Problem::new(pointer, "duplicate", "this rule is there twice; each makes a job"));
        }
        let id = before.iter().find(same).map_or(rule.id, |known| known.id);
        read.push(WatchRule { id, ..rule });
    }
    Ok(read)
}

async fn read_rule(
    catalog: &Catalog<'_>,
    rule: &Value,
    pointer: &str,
    now: Timestamp,
    problems: &mut Vec<Problem>,
) -> Result<Option<WatchRule>, FactoriesError> {
    let mut fields = Fields::of(rule, pointer, problems);
    // An id is shown when a factory is read; giving it back is no error, and changes nothing.
    fields.raw("id");
    let store: Option<String> = fields.parsed("store", problems);
    let prefix: String = fields.parsed("prefix", problems).unwrap_or_default();
    let suffixes: Vec<String> = fields.parsed("suffixes", problems).unwrap_or_default();
    let enabled = fields.parsed("enabled", problems).unwrap_or(true);
    let at_store = fields.at("store");
    fields.finish(problems);
    if prefix.len() > telecine_domain::location::MAX_KEY_BYTES || prefix.starts_with('/') {
        let message = "a prefix has at most 1,024 bytes and no leading slash";
        problems.push(Problem::new(child(pointer, "prefix"), "invalid_value", message));
    }
    if suffixes.len() > MAX_SUFFIXES || suffixes.iter().any(|suffix| !(1..=64).contains(&suffix.len())) {
        let message = "at most 50 suffixes of 1 to 64 bytes, such as `.mov`";
        problems.push(Problem::new(child(pointer, "suffixes"), "invalid_value", message));
    }
    let Some(name) = store else {
        if !problems.iter().any(|problem| problem.pointer == at_store) {
            problems.push(Problem::new(at_store, "missing", "say which store to watch"));
        }
        return Ok(None);
    };
    let Some(store) = catalog.store(&name).await? else {
        problems.push(draft::no_store(at_store, &name));
        return Ok(None);
    };
    let id = WatchRuleId::new(now, rand::random());
    Ok(Some(WatchRule { id, store: store.id, prefix, suffixes, enabled }))
}

/// 1 to 64 characters of a-z, A-Z, 0-9, `-`, `_` and `.`, beginning with a letter or a digit; no id.
fn is_factory_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name.parse::<FactoryId>().is_err()
}
