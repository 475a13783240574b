//! A draft: what is asked for, read from a request or from a factory, before anything was looked up.

use serde_json::Value;
use telecine_domain::composition::{Composition, InvalidComposition};
use telecine_domain::factory::{CompositionError, Factory, JobDefaults};
use telecine_domain::id::{FactoryId, JobId, RegionName, ServiceName, StoreId};
use telecine_domain::job::{Job, MAX_DEPENDENCIES, Origin, RetryPolicy, Timeouts};
use telecine_domain::location::ObjectKey;
use telecine_domain::resources::Resources;

use super::catalog::{Catalog, LookupError};
use crate::jobs::{check_labels, check_priority};
use crate::problem::{Fields, Problem, child, wrong_type};

/// Where problems of dependencies are.
pub(crate) const DEPENDS_ON: &str = "/depends_on";

/// What is asked for. A part that could not be read is `None`; then there is a problem that says so.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) service: Option<ServiceName>,
    /// The recommended one when nobody named a version.
    pub(crate) version: Option<semver::Version>,
    pub(crate) composition: Option<Composition>,
    /// Where problems of the composition are: `/composition`, or the factory or input that it comes from.
    pub(crate) at: &'static str,
    pub(crate) region: Option<RegionName>,
    /// Where problems of the region are: `/region`, or the factory that it comes from.
    pub(crate) region_at: &'static str,
    /// The engine version's when absent.
    pub(crate) resources: Option<Resources>,
    /// What the request changes of them.
    pub(crate) resources_patch: Option<Value>,
    pub(crate) priority: u16,
    pub(crate) labels: std::collections::BTreeMap<String, String>,
    pub(crate) retry: RetryPolicy,
    pub(crate) timeouts: Timeouts,
    pub(crate) origin: Origin,
    /// The factory whose job it is, a retry's original included.
    pub(crate) factory: Option<FactoryId>,
    pub(crate) hold: bool,
    pub(crate) depends_on: Vec<JobId>,
}

impl Draft {
    fn empty() -> Self {
        let defaults = JobDefaults::default();
        Self {
            service: None,
            version: None,
            composition: None,
            at: "/composition",
            region: None,
            region_at: "/region",
            resources: None,
            resources_patch: None,
            priority: defaults.priority,
            labels: defaults.labels,
            retry: defaults.retry,
            timeouts: defaults.timeouts,
            origin: Origin::Api,
            factory: None,
            hold: false,
            depends_on: Vec::new(),
        }
    }

    fn of_factory(factory: &Factory) -> Self {
        let defaults = factory.defaults.clone();
        Self {
            service: Some(factory.service.clone()),
            version: Some(factory.engine_version.clone()),
            region: factory.region.clone(),
            region_at: "/factory",
            resources: defaults.resources,
            priority: defaults.priority,
            labels: defaults.labels,
            retry: defaults.retry,
            timeouts: defaults.timeouts,
            origin: Origin::Factory(factory.id),
            factory: Some(factory.id),
            at: "/factory",
            ..Self::empty()
        }
    }

    /// The job that `factory` makes for the object under `key`.
    pub(crate) fn arrival(
        factory: &Factory,
        key: &ObjectKey,
        origin: Origin,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let composition = inflated(factory, key, "/factory", problems);
        Self { composition, origin, ..Self::of_factory(factory) }
    }

    /// The same work as `job` once more.
    pub(crate) fn retry(job: &Job, factory: Option<FactoryId>) -> Self {
        let spec = job.spec.clone();
        Self {
            service: Some(spec.service),
            version: Some(spec.engine.version),
            composition: Some(spec.composition),
            at: "/composition",
            region: Some(spec.region),
            region_at: "/region",
            resources: Some(spec.resources),
            resources_patch: None,
            priority: spec.priority,
            labels: spec.labels,
            retry: spec.retry,
            timeouts: spec.timeouts,
            origin: Origin::Retry(job.id),
            factory,
            hold: false,
            depends_on: spec.depends_on.into_iter().collect(),
        }
    }
}

/// Reads a request; what is wrong with it goes to `problems`.
pub(crate) async fn read(
    catalog: &Catalog<'_>,
    body: &Value,
    problems: &mut Vec<Problem>,
) -> Result<Draft, LookupError> {
    let mut fields = Fields::of(body, "", problems);
    let service: Option<ServiceName> = fields.parsed("service", problems);
    let named: Option<String> = fields.parsed("factory", problems);
    let composition = fields.raw("composition");
    let input: Option<ObjectKey> = fields.parsed("input", problems);
    let mut draft = match &named {
        Some(name) => from_factory(catalog, name, input.as_ref(), service.as_ref(), problems).await?,
        None => Draft { service: service.clone(), ..Draft::empty() },
    };
    match (&named, composition) {
        (None, Some(document)) => {
            draft.composition = read_composition(catalog, document, "/composition", problems).await?;
        }
        (Some(_), Some(_)) => {
            let message = "a factory brings its own composition; give `input`, or leave `factory` out";
            problems.push(Problem::new("/composition", "not_needed", message));
        }
        (None, None) => problems.push(Problem::new("/composition", "missing", "a composition is needed")),
        (Some(_), None) => {}
    }
    if named.is_none() && fields.raw("service").is_none() {
        let message = "say what to do: a `service` with a `composition`, or a `factory` with an `input`";
        problems.push(Problem::new("/service", "missing", message));
    }
    if named.is_none() && fields.raw("input").is_some() {
        let message = "`input` goes with a factory; a composition names its inputs itself";
        problems.push(Problem::new("/input", "not_needed", message));
    }
    read_rest(&mut fields, &mut draft, problems);
    fields.finish(problems);
    Ok(draft)
}

/// Reads a composition whose locations may name stores by id or name.
pub(crate) async fn read_composition(
    catalog: &Catalog<'_>,
    document: &Value,
    at: &str,
    problems: &mut Vec<Problem>,
) -> Result<Option<Composition>, LookupError> {
    let mut document = document.clone();
    let unknown = name_stores_by_id(catalog, &mut document, at).await?;
    let read = Composition::from_value(&document);
    let placed = read.as_ref().err().map(|invalid| placed(invalid, at)).unwrap_or_default();
    // A name that is no store is said once, better than `is not a store id`.
    let covered = |problem: &Problem| unknown.iter().any(|known| known.pointer == problem.pointer);
    problems.extend(placed.into_iter().filter(|problem| !covered(problem)));
    let clean = unknown.is_empty();
    problems.extend(unknown);
    Ok(read.ok().filter(|_| clean))
}

/// Replaces the names of stores in the locations of `document` by their ids; gives the names that are none.
pub(crate) async fn name_stores_by_id(
    catalog: &Catalog<'_>,
    document: &mut Value,
    at: &str,
) -> Result<Vec<Problem>, LookupError> {
    let mut unknown = Vec::new();
    for side in ["inputs", "outputs"] {
        let Some(slots) = document.get_mut(side).and_then(Value::as_object_mut) else { continue };
        for (slot, location) in slots {
            let Some(store) = location.get_mut("store") else { continue };
            let Some(name) = store.as_str().map(str::to_owned) else { continue };
            if name.parse::<StoreId>().is_ok() {
                continue;
            }
            match catalog.store(&name).await? {
                Some(found) => *store = Value::String(found.id.to_string()),
                None => {
                    let pointer = child(&child(&child(at, side), slot), "store");
                    unknown.push(no_store(pointer, &name));
                }
            }
        }
    }
    Ok(unknown)
}

pub(crate) fn no_store(pointer: String, name: &str) -> Problem {
    let name: String = name.chars().take(80).collect();
    Problem::new(pointer, "unknown_store", format!("there is no store `{name}`; register it first"))
}

fn read_rest(fields: &mut Fields<'_>, draft: &mut Draft, problems: &mut Vec<Problem>) {
    if let Some(version) = fields.parsed("engine_version", problems) {
        draft.version = Some(version);
    }
    if let Some(region) = fields.parsed("region", problems) {
        (draft.region, draft.region_at) = (Some(region), "/region");
    }
    if let Some(resources) = fields.raw("resources") {
        draft.resources_patch = Some(resources.clone());
    }
    if let Some(priority) = fields.parsed("priority", problems) {
        draft.priority = priority;
        check_priority(priority, "/priority", problems);
    }
    if let Some(labels) = fields.parsed::<std::collections::BTreeMap<_, _>>("labels", problems) {
        draft.labels.extend(labels);
        check_labels(&draft.labels, "/labels", problems);
    }
    if let Some(retry) = fields.raw("retry") {
        draft.retry = overlaid(&draft.retry, retry, "/retry", problems);
    }
    if let Some(timeouts) = fields.raw("timeouts") {
        draft.timeouts = overlaid(&draft.timeouts, timeouts, "/timeouts", problems);
    }
    draft.hold = fields.parsed("hold", problems).unwrap_or(false);
    draft.depends_on =
        fields.raw("depends_on").map(|named| dependencies(named, problems)).unwrap_or_default();
    if draft.hold && !draft.depends_on.is_empty() {
        let message = "a job with dependencies is held until they have succeeded anyway; leave `hold` out";
        problems.push(Problem::new("/hold", "conflict", message));
    }
}

/// The jobs that are named; what names none is a problem where it stands.
fn dependencies(named: &Value, problems: &mut Vec<Problem>) -> Vec<JobId> {
    let Some(named) = named.as_array() else {
        problems.push(wrong_type(DEPENDS_ON, "an array of job ids", named));
        return Vec::new();
    };
    if named.len() > MAX_DEPENDENCIES {
        let message = format!("{} dependencies; at most {MAX_DEPENDENCIES} are allowed", named.len());
        problems.push(Problem::new(DEPENDS_ON, "too_many", message));
        return Vec::new();
    }
    let mut found = Vec::with_capacity(named.len());
    for (index, one) in named.iter().enumerate() {
        match one.as_str().and_then(|id| id.parse().ok()) {
            Some(id) => found.push(id),
            None => {
                let message = "this is not the id of a job; an id looks like job_01kaj…";
                problems.push(Problem::new(child(DEPENDS_ON, &index.to_string()), "invalid_value", message));
            }
        }
    }
    found
}

/// `base` with the fields of `patch` in place of its own; what does not fit is a problem and changes nothing.
pub(crate) fn overlaid<T>(base: &T, patch: &Value, pointer: &str, problems: &mut Vec<Problem>) -> T
where
    T: Clone + serde::Serialize + serde::de::DeserializeOwned,
{
    let Some(patch) = patch.as_object() else {
        problems.push(wrong_type(pointer, "an object", patch));
        return base.clone();
    };
    let mut whole = serde_json::to_value(base).expect("plain values are JSON");
    let mut result = base.clone();
    for (name, value) in patch {
        let before = whole.clone();
        whole[name.as_str()] = value.clone();
        // One by one, so that each field that does not fit is named.
        match T::deserialize(&whole) {
            Ok(fits) => result = fits,
            Err(error) => {
                problems.push(Problem::new(child(pointer, name), "invalid_value", error.to_string()));
                whole = before;
            }
        }
    }
    result
}

async fn from_factory(
    catalog: &Catalog<'_>,
    name: &str,
    input: Option<&ObjectKey>,
    service: Option<&ServiceName>,
    problems: &mut Vec<Problem>,
) -> Result<Draft, LookupError> {
    let Some(factory) = catalog.factory(name).await? else {
        let name: String = name.chars().take(80).collect();
        problems.push(Problem::new("/factory", "unknown_factory", format!("there is no factory `{name}`")));
        return Ok(Draft::empty());
    };
    if !factory.enabled {
        let message = format!("factory `{}` is disabled; enable it first", factory.name);
        problems.push(Problem::new("/factory", "factory_disabled", message));
    }
    if service.is_some_and(|service| *service != factory.service) {
        let message = format!("factory `{}` does {}; leave `service` out", factory.name, factory.service);
        problems.push(Problem::new("/service", "conflict", message));
    }
    let draft = Draft::of_factory(&factory);
    let Some(key) = input else {
        let message = "a factory needs the key of an object as its `input`";
        problems.push(Problem::new("/input", "missing", message));
        return Ok(draft);
    };
    Ok(Draft { composition: inflated(&factory, key, "/factory", problems), ..draft })
}

fn inflated(
    factory: &Factory,
    key: &ObjectKey,
    at: &str,
    problems: &mut Vec<Problem>,
) -> Option<Composition> {
    match factory.composition_for(key) {
        Ok(composition) => Some(composition),
        Err(CompositionError::Placeholder(error)) => {
            problems.push(Problem::new(at, "unknown_placeholder", error.to_string()));
            None
        }
        Err(CompositionError::Invalid(invalid)) => {
            for problem in &invalid.problems {
                let message = format!("in the factory's composition, {problem}");
                problems.push(Problem::new(at, "invalid_composition", message));
            }
            None
        }
    }
}

fn placed(invalid: &InvalidComposition, at: &str) -> Vec<Problem> {
    let place = |problem: &telecine_domain::composition::CompositionProblem| {
        Problem::new(format!("{at}{}", problem.pointer), "invalid_composition", problem.message.clone())
    };
    invalid.problems.iter().map(place).collect()
}
