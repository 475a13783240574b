//! Objects that arrive become jobs: exactly one per matching rule and object version, however often and in whatever
//! order the events come (SPEC 2.3).
//!
//! The row of (rule, object version) and the job are one transaction, so that of many deliveries one makes the job and
//! the others find it. The event only says where to look: the version that counts is the one that is there. What
//! matches nothing is kept for thirty days with the reasons; what lost its event is found by `reconcile`, which sees
//! everything in the store, objects older than the rule included.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::factory::{ArrivedObject, Factory, NoMatch, WatchRule};
use telecine_domain::id::{AccountId, FactoryId, JobId, StoreId, WatchRuleId};
use telecine_domain::job::Origin;
use telecine_domain::location::{Location, ObjectVersion};
use telecine_domain::store::{Permission, Store};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::jobs::draft::Draft;
use crate::jobs::{self, Catalog, Found, LookupError};
use crate::layout;
use crate::ports::table::{Condition, Key, PageToken, Query, Source};
use crate::problem::{self, Problem};
use crate::record::{self, Listed, RecordError};
use crate::stores::{self, StoresError};
use crate::{factories, produced, update};

/// How long objects that matched nothing are listed.
pub const UNMATCHED_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What a rule made of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The factory.
    pub factory: FactoryId,
    /// Its rule.
    pub rule: WatchRuleId,
    /// What came of it.
    pub verdict: Verdict,
}

/// What came of an object under a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It made this job.
    Accepted(JobId),
    /// It had made this job before.
    Duplicate(JobId),
    /// It is not meant.
    Unmatched(NoMatch),
    /// It is meant, but the factory cannot make a job of it.
    Refused(Vec<Problem>),
    /// It is not there any more.
    Gone,
}

/// An object that arrived, for lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// Where it is.
    pub location: Location,
    /// Which version of it.
    pub version: ObjectVersion,
    /// When it was first seen.
    pub at: Timestamp,
    /// The job it made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// By which factory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<FactoryId>,
    /// Why it made none, by rule; empty for one that made a job, and where no factory watches the store.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
}

/// Why an object made no job under a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// The factory.
    pub factory: FactoryId,
    /// Its rule.
    pub rule: WatchRuleId,
    /// The reason, for people.
    pub message: String,
}

/// What `reconcile` found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Objects looked at.
    pub seen: u64,
    /// Jobs made.
    pub accepted: u64,
}

/// An object was not dealt with; deliver the event again.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// There is no such store.
    #[error("there is no store {0}")]
    NoSuchStore(StoreId),
    /// The store could not be listed.
    #[error("store {store} cannot be listed: {problem}")]
    List {
        /// Its name.
        store: String,
        /// What it said.
        problem: String,
    },
    /// The records or a store did not answer.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

impl From<RecordError> for IngestError {
    fn from(error: RecordError) -> Self {
        Self::Lookup(error.into())
    }
}

/// Says what each rule that watches the object's store makes of it, and records it.
///
/// # Errors
/// When it could not be dealt with: deliver it again, nothing is done twice.
pub async fn arrived(
    backend: &Backend,
    object: ArrivedObject,
    now: Timestamp,
) -> Result<Vec<Outcome>, IngestError> {
    let id = object.location.store;
    let store = stores::find_anywhere(backend, id).await?.ok_or(IngestError::NoSuchStore(id))?;
    let factories = factories::watching(backend, id).await?;
    let catalog = Catalog::new(backend, store.account, now);
    consider(&catalog, &store, &factories, &object).await
}

/// Lists the store and deals with every object as if it had just arrived: finds those whose event was lost. A store
/// that nobody watches, or whose access was never proven, is left alone.
///
/// # Errors
/// When it could not be finished; begin again.
pub async fn reconcile(backend: &Backend, store: StoreId, now: Timestamp) -> Result<Reconciled, IngestError> {
    const PAGE: usize = 1000;
    let found = stores::find_anywhere(backend, store).await?.ok_or(IngestError::NoSuchStore(store))?;
    let mut result = Reconciled::default();
    if !is_proven(&found) || factories::watching(backend, store).await?.is_empty() {
        return Ok(result);
    }
    let unlistable = |problem: String| IngestError::List { store: found.name.clone(), problem };
    let opened = stores::open(backend, &found, now).await.map_err(|error| match error {
        StoresError::Record(error) => error.into(),
        error => unlistable(error.to_string()),
    })?;
    let catalog = Catalog::new(backend, found.account, now);
    let mut after: Option<String> = None;
    loop {
        let page = opened.list("", after.as_deref(), PAGE).await;
        let page = page.map_err(|error| unlistable(error.to_string()))?;
        let factories = factories::watching(backend, store).await?;
        for entry in &page {
            let location = Location { store, key: entry.key.clone() };
            let object = ArrivedObject { location, version: entry.version.clone() };
            let outcomes = consider(&catalog, &found, &factories, &object).await?;
            result.seen += 1;
            let made = |outcome: &&Outcome| matches!(outcome.verdict, Verdict::Accepted(_));
            result.accepted += outcomes.iter().filter(made).count() as u64;
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.key.to_string()),
            Some(_) | None => return Ok(result),
        }
    }
}

/// Objects that made a job, newest first.
///
/// # Errors
/// When the records are out of reach, or the token is not one of this list.
pub async fn matched(
    backend: &Backend,
    account: AccountId,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Arrival>, RecordError> {
    listed(backend, layout::arrivals_of(account), limit, after).await
}

/// Objects of the last thirty days that made none, newest first, with the reasons.
///
/// # Errors
/// When the records are out of reach, or the token is not one of this list.
pub async fn unmatched(
    backend: &Backend,
    account: AccountId,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Arrival>, RecordError> {
    listed(backend, layout::unmatched_of(account), limit, after).await
}

async fn listed(
    backend: &Backend,
    partition: String,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Arrival>, RecordError> {
    let query = record::page_of(Source::Index1, partition, limit, after);
    let page = backend.table.query(Query { descending: true, ..query }).await?;
    let items = page.rows.iter().map(record::value).collect::<Result<_, _>>()?;
    Ok(Listed { items, next: page.next })
}

fn is_proven(store: &Store) -> bool {
    let allows = |permission| store.validation.as_ref().is_some_and(|found| found.allows(permission));
    allows(Permission::Read) && allows(Permission::List)
}

async fn consider(
    catalog: &Catalog<'_>,
    store: &Store,
    factories: &[Factory],
    object: &ArrivedObject,
) -> Result<Vec<Outcome>, IngestError> {
    let mut outcomes = Vec::new();
    for factory in factories {
        for rule in &factory.watch {
            if factory.account == store.account && rule.store == store.id {
                let verdict = judge(catalog, store, factory, rule, object).await?;
                outcomes.push(Outcome { factory: factory.id, rule: rule.id, verdict });
            }
        }
    }
    let kept = |outcome: &Outcome| {
        matches!(outcome.verdict, Verdict::Accepted(_) | Verdict::Duplicate(_) | Verdict::Gone)
    };
    if !outcomes.iter().any(kept) && !telecine_stores::is_hidden(object.location.key.as_str()) {
        list_unmatched(catalog, object, &outcomes).await?;
    }
    Ok(outcomes)
}

async fn judge(
    catalog: &Catalog<'_>,
    store: &Store,
    factory: &Factory,
    rule: &WatchRule,
    object: &ArrivedObject,
) -> Result<Verdict, IngestError> {
    if let Err(reason) = factory.match_object(rule, object) {
        return Ok(Verdict::Unmatched(reason));
    }
    if !is_proven(store) {
        return Ok(Verdict::Unmatched(NoMatch::StoreNotValidated));
    }
    if let Some(job) = made_before(catalog.backend, rule, object).await? {
        return Ok(Verdict::Duplicate(job));
    }
    let version = match catalog.object(store, &object.location.key).await? {
        Found::Object(version) => version,
        Found::Nothing => return Ok(Verdict::Gone),
        Found::Refused(problem) => {
            return Ok(Verdict::Refused(vec![Problem::new("/input", "input_unreadable", problem)]));
        }
    };
    let object = ArrivedObject { version, ..object.clone() };
    if let Err(reason) = meant(catalog.backend, factory, rule, &object).await? {
        return Ok(Verdict::Unmatched(reason));
    }
    fire(catalog, factory, rule, object).await
}

/// Whether the rule means this object, which is there, and the factory did not make it itself.
async fn meant(
    backend: &Backend,
    factory: &Factory,
    rule: &WatchRule,
    object: &ArrivedObject,
) -> Result<Result<(), NoMatch>, RecordError> {
    let Location { store, key } = &object.location;
    let own = produced::own_output(backend, factory.id, *store, key, &object.version).await?;
    Ok(match own {
        Some(job) => Err(NoMatch::OwnOutput { job }),
        None => factory.match_object(rule, object),
    })
}

/// Makes the job of a rule and an object that is there.
async fn fire(
    catalog: &Catalog<'_>,
    factory: &Factory,
    rule: &WatchRule,
    object: ArrivedObject,
) -> Result<Verdict, IngestError> {
    let (backend, now) = (catalog.backend, catalog.now);
    let origin = Origin::Arrival { factory: factory.id, rule: rule.id };
    let mut problems = Vec::new();
    let draft = Draft::arrival(factory, &object.location.key, origin, &mut problems);
    let resolved = match jobs::resolve(catalog, draft, problems).await? {
        Ok(resolved) => resolved,
        Err(problems) => return Ok(Verdict::Refused(problems)),
    };
    // What the job is pinned to counts: the object may have been replaced a moment ago.
    let pinned = resolved.spec.inputs.values().find(|input| input.location == object.location);
    let version = pinned.map_or(object.version, |input| input.version.clone());
    let object = ArrivedObject { version, location: object.location };
    if let Err(reason) = meant(backend, factory, rule, &object).await? {
        return Ok(Verdict::Unmatched(reason));
    }
    if let Some(job) = made_before(backend, rule, &object).await? {
        return Ok(Verdict::Duplicate(job));
    }
    let id = JobId::new(now, rand::random());
    let recorded = jobs::recorded(factory.account, id, resolved, now);
    let token = jobs::new_token();
    let mut writes = update::accepted(backend, &recorded, &token).await?.to_vec();
    let Location { store, key } = &object.location;
    writes.push(match_write(factory, rule, &object, id, now)?);
    writes.push(record::delete(layout::ingest_unmatched(*store, key, &object.version)));
    if jobs::settle(backend, writes, &recorded.job, &token).await? {
        update::hint(backend, &[&recorded.job]).await;
        return Ok(Verdict::Accepted(id));
    }
    let contended = || RecordError::contended(&layout::ingest_match(*store, rule.id, key, &object.version));
    Ok(Verdict::Duplicate(made_before(backend, rule, &object).await?.ok_or_else(contended)?))
}

async fn made_before(
    backend: &Backend,
    rule: &WatchRule,
    object: &ArrivedObject,
) -> Result<Option<JobId>, RecordError> {
    let Location { store, key } = &object.location;
    let row = layout::ingest_match(*store, rule.id, key, &object.version);
    let found = record::get::<Arrival>(backend.table.as_ref(), &row).await?;
    Ok(found.and_then(|found| found.value.job))
}

fn match_write(
    factory: &Factory,
    rule: &WatchRule,
    object: &ArrivedObject,
    job: JobId,
    now: Timestamp,
) -> Result<crate::ports::table::Write, RecordError> {
    let Location { store, key } = &object.location;
    let place = layout::ingest_match(*store, rule.id, key, &object.version);
    let arrival = Arrival {
        location: object.location.clone(),
        version: object.version.clone(),
        at: now,
        job: Some(job),
        factory: Some(factory.id),
        reasons: Vec::new(),
    };
    let mut row = record::row(place, 1, &arrival)?;
    row.index1 = Some(Key::new(layout::arrivals_of(factory.account), layout::moment(now, &job.to_string())));
    Ok(record::put(row, Condition::Absent))
}

async fn list_unmatched(
    catalog: &Catalog<'_>,
    object: &ArrivedObject,
    outcomes: &[Outcome],
) -> Result<(), RecordError> {
    let Location { store, key } = &object.location;
    let place = layout::ingest_unmatched(*store, key, &object.version);
    let reasons: Vec<Reason> = outcomes.iter().filter_map(reason).collect();
    let (account, now) = (catalog.account, catalog.now);
    record::replace(catalog.backend.table.as_ref(), &place, |found: Option<&record::Versioned<Arrival>>| {
        if found.is_some_and(|found| found.value.reasons == reasons) {
            return Ok(None);
        }
        let at = found.map_or(now, |found| found.value.at);
        let arrival = Arrival {
            location: object.location.clone(),
            version: object.version.clone(),
            at,
            job: None,
            factory: None,
            reasons: reasons.clone(),
        };
        let mut row = record::row(place.clone(), 1, &arrival)?;
        row.index1 = Some(Key::new(layout::unmatched_of(account), layout::moment(at, &place.sort)));
        row.expires_at = Some(at.after(UNMATCHED_LIFE));
        Ok(Some(row))
    })
    .await
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    let message = match &outcome.verdict {
        Verdict::Unmatched(reason) => reason.to_string(),
        Verdict::Refused(problems) => problem::join(problems).chars().take(2000).collect(),
        Verdict::Accepted(_) | Verdict::Duplicate(_) | Verdict::Gone => return None,
    };
    Some(Reason { factory: outcome.factory, rule: outcome.rule, message })
}

/// A store that some factory watches and whose access was proven.
#[derive(Clone, Debug)]
pub struct WatchedStore {
    /// The store.
    pub store: Arc<Store>,
    /// Another one: what is in the store already must be looked at again.
    pub mark: WatchMark,
}

/// Who watches a store, and since which proof of its access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchMark {
    proven_at: Option<Timestamp>,
    /// The factories that watch it, with their versions.
    factories: Vec<(FactoryId, u64)>,
}

/// What a watcher watches.
///
/// # Errors
/// When the records are out of reach.
pub async fn watched_stores(backend: &Backend) -> Result<Vec<WatchedStore>, RecordError> {
    let (mut watched, mut after) = (Vec::new(), None);
    loop {
        let page = stores::list_everywhere(backend, 1000, after).await?;
        for store in page.items {
            if !is_proven(&store) {
                continue;
            }
            let factories = factories::watch_marks(backend, store.id).await?;
            if !factories.is_empty() {
                let proven_at = store.validation.as_ref().map(|validation| validation.at);
                watched
                    .push(WatchedStore { store: Arc::new(store), mark: WatchMark { proven_at, factories } });
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(watched),
        }
    }
}

#[cfg(test)]
mod tests;
