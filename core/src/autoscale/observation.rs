//! What waits, as the manager has seen it: written by the manager about once a tick, read by whoever decides.
//!
//! The head row names the observation and holds its first lines; the rest lies in chunks under the number of the
//! observation, written before the head. So a reader never mixes two. Numbers are the manager's term and a count under
//! it: what a manager still writes that was replaced is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::autoscale::Waiting;
use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, SortRange, Source, Write};
use crate::record::{self, RecordError, Versioned};

/// Most lines in one row, far below what a row may hold.
const LINES: usize = 1000;
/// Most chunks in one transaction, far below what one may hold.
const CHUNKS: usize = 10;
/// How long a chunk is kept; its head is too old to act on long before.
const KEPT: Duration = Duration::from_secs(600);

/// One observation of a region's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The term of the manager that made it.
    pub term: u64,
    /// Which one under that term.
    pub sequence: u64,
    /// When.
    pub observed_at: Timestamp,
    /// The jobs that may be placed now, alike ones in one line.
    pub lines: Vec<Waiting>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    term: u64,
    sequence: u64,
    observed_at: Timestamp,
    /// How many chunks follow.
    chunks: u32,
    lines: Vec<Waiting>,
}

/// Writes an observation. `false` when a newer one is there already: it is left.
///
/// # Errors
/// When the records are out of reach.
pub async fn observe(
    backend: &Backend,
    region: &RegionName,
    observation: &Observation,
) -> Result<bool, RecordError> {
    let Observation { term, sequence, observed_at, .. } = *observation;
    let mut chunks = observation.lines.chunks(LINES);
    let first = chunks.next().unwrap_or_default().to_vec();
    let rest: Vec<&[Waiting]> = chunks.collect();
    write_chunks(backend, region, observation, &rest).await?;
    let count = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let head = Head { term, sequence, observed_at, chunks: count, lines: first };
    let (key, mut written) = (layout::observation(region), true);
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Head>>| {
        let known = found.map(|found| (found.value.term, found.value.sequence));
        written = known <= Some((term, sequence));
        let is_new = known < Some((term, sequence));
        if is_new { Ok(Some(record::row(key.clone(), 1, &head)?)) } else { Ok::<_, RecordError>(None) }
    })
    .await?;
    Ok(written)
}

async fn write_chunks(
    backend: &Backend,
    region: &RegionName,
    observation: &Observation,
    chunks: &[&[Waiting]],
) -> Result<(), RecordError> {
    let Observation { term, sequence, observed_at, .. } = *observation;
    let mut writes = Vec::<Write>::new();
    for (index, lines) in (0..).zip(chunks) {
        let mut row = record::row(layout::observation_chunk(region, (term, sequence), index), 1, lines)?;
        row.expires_at = Some(observed_at.after(KEPT));
        writes.push(record::put(row, Condition::Any));
    }
    for some in writes.chunks(CHUNKS) {
        // Writing the same twice is no error, so that an unknown result is tried again.
        record::settle(backend.table.as_ref(), some.to_vec(), || async { Ok(false) }).await?;
    }
    Ok(())
}

/// The last observation; `None` when there is none, or when its chunks have expired.
///
/// # Errors
/// When the records are out of reach.
pub async fn observed(backend: &Backend, region: &RegionName) -> Result<Option<Observation>, RecordError> {
    for _ in 0..record::TRIES {
        let found = record::get::<Head>(backend.table.as_ref(), &layout::observation(region)).await?;
        let Some(Head { term, sequence, observed_at, chunks, mut lines }) = found.map(|found| found.value)
        else {
            return Ok(None);
        };
        let rest =
            if chunks == 0 { Vec::new() } else { read_chunks(backend, region, (term, sequence)).await? };
        // Fewer only when the head was replaced so long ago that they have expired.
        if rest.len() == chunks as usize {
            lines.extend(rest.into_iter().flatten());
            return Ok(Some(Observation { term, sequence, observed_at, lines }));
        }
    }
    Ok(None)
}

async fn read_chunks(
    backend: &Backend,
    region: &RegionName,
    number: (u64, u64),
) -> Result<Vec<Vec<Waiting>>, RecordError> {
    let mut query = record::page_of(Source::Rows, layout::observation(region).partition, 1000, None);
    query.range = SortRange::Prefix(layout::observation_chunks(number));
    let rows = record::all_rows(backend.table.as_ref(), query).await?;
    rows.iter().map(record::value).collect()
}
