//! Decision records: what was decided when, with everything that it was decided on, so that it can be decided again.
//!
//! The row has what was decided; snapshot and policy lie in the system store, which is written first. A row is kept for
//! thirty days; then it and its object are removed, a few with each new one.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use telecine_domain::autoscale::{Policy, ScaleDecision, Snapshot, decide};
use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, PageToken, Row, Source, Write};
use crate::record::{self, Listed, RecordError};
use crate::system_store::{MAX_BODY_IN_ROW, Reference};

/// How long a decision is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most old decisions that are removed with a new one: more than come, so that their number falls.
const REMOVED_AT_ONCE: usize = 8;

/// A recorded decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Where.
    pub region: RegionName,
    /// Its number in the region, from 1.
    pub number: u64,
    /// What was decided.
    pub decision: ScaleDecision,
    /// Where what it was decided on lies.
    pub input: Reference,
}

/// A decision that was taken again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// As it was recorded.
    pub recorded: Decided,
    /// As it is with the same snapshot and policy now.
    pub again: ScaleDecision,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DecisionRow {
    region: RegionName,
    number: u64,
    at: Timestamp,
    /// `None` when it is too long for a row: then it is read from the input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decision: Option<ScaleDecision>,
    input: Reference,
}

/// What a decision was taken on. Region and number make each a different object, which its row owns.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    region: RegionName,
    number: u64,
    decision: ScaleDecision,
    policy: Policy,
    snapshot: Snapshot,
}

/// Keeps what a decision was taken on, and says what is to be written beside the books to record it.
pub(super) async fn recording(
    backend: &Backend,
    (region, number): (&RegionName, u64),
    snapshot: &Snapshot,
    policy: &Policy,
    decision: &ScaleDecision,
) -> Result<Write, RecordError> {
    let key = layout::decision(region, number);
    let input = Input {
        region: region.clone(),
        number,
        decision: decision.clone(),
        policy: policy.clone(),
        snapshot: snapshot.clone(),
    };
    let bytes = serde_json::to_vec(&input).map_err(|error| RecordError::damaged(&key, error))?;
    let is_short = serde_json::to_vec(decision).is_ok_and(|text| text.len() <= MAX_BODY_IN_ROW);
    let value = DecisionRow {
        region: region.clone(),
        number,
        at: decision.at,
        decision: is_short.then(|| decision.clone()),
        input: backend.system.put(Bytes::from(bytes)).await?,
    };
    let mut row = record::row(key, 1, &value)?;
    row.index1 = Some(layout::decision_by_time(region, number, decision.at));
    // The books alone decide whose number it is.
    Ok(record::put(row, Condition::Any))
}

/// The decisions of a region, or of all, newest first.
///
/// # Errors
/// When the records are out of reach; for a token of another list.
pub async fn list(
    backend: &Backend,
    region: Option<&RegionName>,
    limit: usize,
    after: Option<PageToken>,
) -> Result<Listed<Decided>, RecordError> {
    let (source, partition) = match region {
        Some(region) => (Source::Rows, layout::decisions_of(region)),
        None => (Source::Index1, layout::DECISIONS.to_owned()),
    };
    let mut query = record::page_of(source, partition, limit, after);
    query.descending = true;
    let page = backend.table.query(query).await?;
    let mut items = Vec::with_capacity(page.rows.len());
    for row in &page.rows {
        items.push(decided(backend, record::value(row)?).await?);
    }
    Ok(Listed { items, next: page.next })
}

/// One decision; `None` when there is none of this number, or none any more.
///
/// # Errors
/// When the records are out of reach.
pub async fn find(
    backend: &Backend,
    region: &RegionName,
    number: u64,
) -> Result<Option<Decided>, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::decision(region, number)).await?;
    match found {
        Some(found) => Ok(Some(decided(backend, found.value).await?)),
        None => Ok(None),
    }
}

/// Takes a decision again, on what it was taken on; `None` when there is none of this number, or none any more.
///
/// # Errors
/// When the records are out of reach.
pub async fn replay(
    backend: &Backend,
    region: &RegionName,
    number: u64,
) -> Result<Option<Replayed>, RecordError> {
    let Some(recorded) = find(backend, region, number).await? else { return Ok(None) };
    let Input { policy, snapshot, .. } = input(backend, region, number, &recorded.input).await?;
    let again = decide(&snapshot, &policy, recorded.decision.at);
    Ok(Some(Replayed { recorded, again }))
}

async fn decided(backend: &Backend, row: DecisionRow) -> Result<Decided, RecordError> {
    let DecisionRow { region, number, decision, input: reference, .. } = row;
    let decision = match decision {
        Some(decision) => decision,
        None => input(backend, &region, number, &reference).await?.decision,
    };
    Ok(Decided { region, number, decision, input: reference })
}

async fn input(
    backend: &Backend,
    region: &RegionName,
    number: u64,
    reference: &Reference,
) -> Result<Input, RecordError> {
    let bytes = backend.system.read(reference).await?;
    let damaged = |error| RecordError::damaged(&layout::decision(region, number), error);
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Removes a few of the oldest decisions of a region that are older than is kept. The object goes first: a row whose
/// object is gone is found again.
///
/// # Errors
/// When the records are out of reach; the rest is removed another time.
pub(super) async fn forget_old(
    backend: &Backend,
    region: &RegionName,
    now: Timestamp,
) -> Result<(), RecordError> {
    let oldest = record::page_of(Source::Rows, layout::decisions_of(region), REMOVED_AT_ONCE, None);
    let rows: Vec<Row> = backend.table.query(oldest).await?.rows;
    for row in rows {
        let DecisionRow { at, input, .. } = record::value(&row)?;
        if now < at.after(KEPT) {
            return Ok(());
        }
        backend.system.remove(&input).await?;
        let gone = || async { Ok(backend.table.get(&row.key).await?.is_none()) };
        record::settle(backend.table.as_ref(), vec![record::delete(row.key.clone())], gone).await?;
    }
    Ok(())
}
