//! The row of a job: the job itself, except that parts over 64 KiB lie in the system store.
//!
//! The domain's `Job` is always whole: what was cut out when the row was written is put back when it is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use telecine_domain::id::{AccountId, FactoryId, JobId};
use telecine_domain::job::Job;
use telecine_domain::trace::TraceId;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Key, Query, Row, SortRange, Source};
use crate::record::{self, RecordError};
use crate::system_store::{MAX_BODY_IN_ROW, Reference, SystemStore};

/// A job and what core keeps beside it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) job: Job,
    /// The factory that made it, or made the first of the jobs that it is a retry of.
    pub(crate) factory: Option<FactoryId>,
}

impl Recorded {
    /// The same, submitted in a trace.
    pub(crate) fn in_trace(self, trace: Option<TraceId>) -> Self {
        Self { job: Job { trace, ..self.job }, ..self }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    job: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    factory: Option<FactoryId>,
    /// What was cut out of `job`, by JSON pointer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    bulk: BTreeMap<String, Reference>,
}

/// The parts of a job that may be large.
const LARGE: [&str; 3] = ["/spec/composition", "/state/finalizing/manifest", "/state/succeeded/manifest"];

/// The row of `recorded`, with its places in the indexes. Large parts are in the system store when this returns.
pub(crate) async fn write(system: &SystemStore, recorded: &Recorded) -> Result<Row, RecordError> {
    let job = &recorded.job;
    let key = layout::job(job.id, job.account);
    let mut whole = serde_json::to_value(job).map_err(|error| RecordError::damaged(&key, error))?;
    let mut bulk = BTreeMap::new();
    for pointer in LARGE {
        let Some(part) = whole.pointer_mut(pointer) else { continue };
        let bytes = serde_json::to_vec(part).map_err(|error| RecordError::damaged(&key, error))?;
        if bytes.len() > MAX_BODY_IN_ROW {
            bulk.insert(pointer.to_owned(), system.put(bytes.into()).await?);
            *part = Value::Null;
        }
    }
    let body = Body { job: whole, factory: recorded.factory, bulk };
    let mut row = record::row(key, job.version, &body)?;
    row.index1 = Some(Key::new(layout::jobs_of(job.account), job.id.to_string()));
    row.index2 = layout::job_section(&job.spec.region, &job.state)
        .map(|section| Key::new(section, job.id.to_string()));
    Ok(row)
}

/// The job of a row, whole.
pub(crate) async fn read(system: &SystemStore, row: &Row) -> Result<Recorded, RecordError> {
    let mut body: Body = record::value(row)?;
    for (pointer, reference) in &body.bulk {
        let bytes = system.read(reference).await?;
        let part = serde_json::from_slice(&bytes).map_err(|error| RecordError::damaged(&row.key, error))?;
        let place = body.job.pointer_mut(pointer);
        *place.ok_or_else(|| RecordError::damaged(&row.key, format!("nothing at {pointer}")))? = part;
    }
    let job = Job::deserialize(body.job).map_err(|error| RecordError::damaged(&row.key, error))?;
    Ok(Recorded { job, factory: body.factory })
}

/// The account's job.
pub(crate) async fn find(
    backend: &Backend,
    account: AccountId,
    job: JobId,
) -> Result<Option<Recorded>, RecordError> {
    match backend.table.get(&layout::job(job, account)).await? {
        Some(row) => Ok(Some(read(&backend.system, &row).await?)),
        None => Ok(None),
    }
}

/// The job, whoever's it is: for those who have a hint and no account.
pub(crate) async fn load(backend: &Backend, job: JobId) -> Result<Option<Recorded>, RecordError> {
    let query = Query {
        source: Source::Rows,
        partition: layout::job_partition(job),
        range: SortRange::Prefix(layout::JOB.to_owned()),
        descending: false,
        limit: 1,
        after: None,
    };
    match backend.table.query(query).await?.rows.first() {
        Some(row) => Ok(Some(read(&backend.system, row).await?)),
        None => Ok(None),
    }
}
