//! A draft becomes the specification of a job: everything it names is looked up, checked and pinned.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use telecine_domain::composition::Composition;
use telecine_domain::id::{FactoryId, JobId, RegionName, SlotName, StoreId};
use telecine_domain::job::{HoldReason, JobSpec, MAX_SPEC_BYTES, PinnedEngine, PinnedInput};
use telecine_domain::location::Location;
use telecine_domain::resources::Resources;
use telecine_domain::store::{Permission, Store};

use super::catalog::{Catalog, Engine, Found, LookupError};
use super::draft::{DEPENDS_ON, Draft, no_store, overlaid};
use crate::fleet;
use crate::problem::{Problem, child};
use crate::sweep::{self, Fate};

/// Most of a schema's complaints that are repeated.
const MAX_SCHEMA_PROBLEMS: usize = 50;

/// What is accepted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resolved {
    pub(crate) spec: JobSpec,
    pub(crate) factory: Option<FactoryId>,
    /// Why it is not queued at once.
    pub(crate) hold: Option<HoldReason>,
}

/// Looks up and checks everything that `draft` names. `problems` are those that were found before; with any, or with
/// more, there is no job.
pub(crate) async fn resolve(
    catalog: &Catalog<'_>,
    draft: Draft,
    mut problems: Vec<Problem>,
) -> Result<Result<Resolved, Vec<Problem>>, LookupError> {
    let engine = engine_of(catalog, &draft, &mut problems).await?;
    let resources = resources_of(&draft, engine.as_deref(), &mut problems);
    let mut inputs = BTreeMap::new();
    let mut region = draft.region.clone().map(|region| (region, draft.region_at.to_owned()));
    if let Some(composition) = &draft.composition {
        check_processing(composition, engine.as_deref(), draft.at, &mut problems);
        let stores = stores_of(catalog, composition, draft.at, &mut problems).await?;
        inputs = pinned_inputs(catalog, composition, &stores, draft.at, &mut problems).await?;
        region = region.or_else(|| region_of(composition, &stores, draft.at));
    }
    let waits = waits_for(catalog, &draft.depends_on, &mut problems).await?;
    if region.is_none() && draft.composition.is_some() {
        region = catalog.default_region().await?.map(|region| (region, "/region".to_owned()));
    }
    if region.is_none() && problems.is_empty() {
        let message = "neither the request, nor its stores, nor the account says in which region to run it";
        problems.push(Problem::new("/region", "missing", message));
    }
    problems.extend(region.as_ref().and_then(|(region, at)| fleet::not_run(catalog.backend, region, at)));
    let parts = (draft.service, engine, draft.composition, region);
    let (Some(service), Some(engine), Some(composition), Some((region, _))) = parts else {
        return Ok(Err(problems));
    };
    if !problems.is_empty() {
        return Ok(Err(problems));
    }
    let version = &engine.version;
    let spec = JobSpec {
        service,
        engine: PinnedEngine { version: version.version.clone(), launch: version.launch.clone() },
        composition,
        inputs,
        region,
        resources,
        priority: draft.priority,
        labels: draft.labels,
        retry: draft.retry,
        timeouts: draft.timeouts,
        origin: draft.origin,
        depends_on: draft.depends_on.into_iter().collect(),
    };
    // Everything that was pinned counts: a job that no message can carry would wait for ever.
    if let Some(problem) = too_large(&spec, "the job with its pinned inputs", draft.at) {
        return Ok(Err(vec![problem]));
    }
    let waits = waits.then_some(HoldReason::Dependencies);
    let hold = draft.hold.then_some(HoldReason::Manual).or(waits);
    Ok(Ok(Resolved { spec, factory: draft.factory, hold }))
}

/// Whether the job has to wait for one of those it depends on. They are there already, so that no cycle can be made.
async fn waits_for(
    catalog: &Catalog<'_>,
    depends_on: &[JobId],
    problems: &mut Vec<Problem>,
) -> Result<bool, LookupError> {
    let mut waits = false;
    for (index, id) in depends_on.iter().enumerate() {
        let mut wrong = |code, message: String| {
            problems.push(Problem::new(child(DEPENDS_ON, &index.to_string()), code, message));
        };
        match super::find(catalog.backend, catalog.account, *id).await? {
            None => wrong("unknown_job", format!("there is no job {id}; submit it first")),
            Some(job) => match sweep::fate(job.state.name()) {
                Fate::Succeeded => {}
                Fate::Open => waits = true,
                Fate::Lost => {
                    let state = job.state.name();
                    wrong(
                        "dependency_failed",
                        format!("{id} is {state} and will not succeed; retry it and name that job"),
                    );
                }
            },
        }
    }
    Ok(waits)
}

async fn engine_of(
    catalog: &Catalog<'_>,
    draft: &Draft,
    problems: &mut Vec<Problem>,
) -> Result<Option<Arc<Engine>>, LookupError> {
    let Some(service) = &draft.service else { return Ok(None) };
    let found = catalog.engine(service, draft.version.as_ref()).await?;
    let at = "/engine_version";
    match (&found, &draft.version) {
        (Some(engine), _) => {
            if let Err(unusable) = engine.version.usable(catalog.now) {
                let message = format!("{unusable}; choose another version");
                problems.push(Problem::new(at, "engine_version_unusable", message));
            }
        }
        (None, Some(version)) => {
            let message =
                format!("service {service} has no engine version {version}; publish it or choose another");
            problems.push(Problem::new(at, "unknown_engine_version", message));
        }
        (None, None) => {
            let message =
                format!("service {service} has no stable engine version; publish one or name a version");
            problems.push(Problem::new(at, "no_engine_version", message));
        }
    }
    Ok(found)
}

fn resources_of(draft: &Draft, engine: Option<&Engine>, problems: &mut Vec<Problem>) -> Resources {
    let engine = engine.map_or(Resources::ZERO, |engine| engine.version.resources);
    let base = draft.resources.unwrap_or(engine);
    match &draft.resources_patch {
        Some(patch) => overlaid(&base, patch, "/resources", problems),
        None => base,
    }
}

fn check_processing(
    composition: &Composition,
    engine: Option<&Engine>,
    at: &str,
    problems: &mut Vec<Problem>,
) {
    if let Some(problem) = too_large(composition, "the composition", at) {
        problems.push(problem);
        return;
    }
    let Some(engine) = engine else { return };
    for error in engine.schema.iter_errors(&composition.processing).take(MAX_SCHEMA_PROBLEMS) {
        let pointer = format!("{at}/processing{}", error.instance_path());
        let message: String = error.to_string().chars().take(500).collect();
        problems.push(Problem::new(pointer, "schema_violation", message));
    }
}

/// The problem of a document that is larger than a specification may be.
fn too_large(document: &impl Serialize, what: &str, at: &str) -> Option<Problem> {
    let bytes = serde_json::to_vec(document).map_or(usize::MAX, |bytes| bytes.len());
    let message = format!(
        "{what} has {bytes} bytes; at most {MAX_SPEC_BYTES} are allowed: shorten it, or split it into several jobs"
    );
    (bytes > MAX_SPEC_BYTES).then(|| Problem::new(at, "too_large", message))
}

/// The stores that exist; the others are problems.
async fn stores_of(
    catalog: &Catalog<'_>,
    composition: &Composition,
    at: &str,
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<StoreId, Arc<Store>>, LookupError> {
    let mut stores = BTreeMap::new();
    let side = |name: &'static str, slots: &BTreeMap<SlotName, Location>| {
        slots.iter().map(|(slot, location)| (name, slot.clone(), location.clone())).collect::<Vec<_>>()
    };
    let locations = [side("inputs", &composition.inputs), side("outputs", &composition.outputs)].concat();
    for (side, slot, location) in locations {
        let pointer = child(&child(&child(at, side), slot.as_str()), "store");
        let Some(store) = catalog.store(&location.store.to_string()).await? else {
            problems.push(no_store(pointer, &location.store.to_string()));
            continue;
        };
        let refused = |validation: &telecine_domain::store::Validation| !validation.allows(Permission::Write);
        if side == "outputs" && store.validation.as_ref().is_some_and(refused) {
            let message = format!(
                "store {} cannot be written, `validate` found; mend its access and validate it again",
                store.name
            );
            problems.push(Problem::new(pointer, "store_not_writable", message));
        }
        stores.insert(location.store, store);
    }
    Ok(stores)
}

async fn pinned_inputs(
    catalog: &Catalog<'_>,
    composition: &Composition,
    stores: &BTreeMap<StoreId, Arc<Store>>,
    at: &str,
    problems: &mut Vec<Problem>,
) -> Result<BTreeMap<SlotName, PinnedInput>, LookupError> {
    let mut pinned = BTreeMap::new();
    for (slot, location) in &composition.inputs {
        let Some(store) = stores.get(&location.store) else { continue };
        let pointer = child(&child(at, "inputs"), slot.as_str());
        match catalog.object(store, &location.key).await? {
            Found::Object(version) => {
                pinned.insert(slot.clone(), PinnedInput { location: location.clone(), version });
            }
            Found::Nothing => {
                let message =
                    format!("there is no object {:?} in store {}", location.key.as_str(), store.name);
                problems.push(Problem::new(pointer, "input_missing", message));
            }
            Found::Refused(problem) => problems.push(Problem::new(pointer, "input_unreadable", problem)),
        }
    }
    Ok(pinned)
}

/// Where the data is (SPEC 5.1): the first input's store, else the first output's; and where the request names that.
fn region_of(
    composition: &Composition,
    stores: &BTreeMap<StoreId, Arc<Store>>,
    at: &str,
) -> Option<(RegionName, String)> {
    let side = |name: &'static str, slots: &BTreeMap<SlotName, Location>| {
        slots.iter().find_map(|(slot, location)| {
            let pointer = child(&child(&child(at, name), slot.as_str()), "store");
            Some((stores.get(&location.store)?.region.clone(), pointer))
        })
    };
    side("inputs", &composition.inputs).or_else(|| side("outputs", &composition.outputs))
}
