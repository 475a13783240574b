//! What jobs made: a row per declared output location, written with the grant, so that a factory is never set off by
//! its own outputs (SPEC 2.4).
//!
//! For an output file whose etag is known before it is published (local folders) only that version counts; otherwise
//! whatever lies under the key of an output file, or below an output folder, is taken for the output.

use serde::{Deserialize, Serialize};
use telecine_domain::id::{FactoryId, JobId, StoreId};
use telecine_domain::location::{ObjectKey, ObjectVersion};
use telecine_domain::manifest::Manifest;
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::job_row::Recorded;
use crate::layout;
use crate::ports::table::{Condition, Write};
use crate::record::{self, RecordError};

/// An output location and who writes there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Produced {
    /// The key of a file, or of a folder (with its slash).
    key: ObjectKey,
    /// The job that wrote there last.
    pub(crate) job: JobId,
    /// The factory that made that job.
    pub(crate) factory: Option<FactoryId>,
    /// The file's etag, where it is known before it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    /// When the right to write was given.
    at: Timestamp,
}

/// The rows of a job that is granted: one per declared output.
pub(crate) fn writes(
    recorded: &Recorded,
    manifest: &Manifest,
    now: Timestamp,
) -> Result<Vec<Write>, RecordError> {
    let job = &recorded.job;
    let rows = job.spec.composition.outputs.values().map(|output| {
        let object =
            manifest.objects.iter().find(|object| object.store == output.store && object.key == output.key);
        let produced = Produced {
            key: output.key.clone(),
            job: job.id,
            factory: recorded.factory,
            etag: object.and_then(|object| object.etag.clone()),
            at: now,
        };
        let key = layout::produced(output.store, output.key.as_str());
        // The last to write there is the one who counts; nobody compares versions of this row.
        Ok(record::put(record::row(key, 1, &produced)?, Condition::Any))
    });
    rows.collect()
}

/// The job of `factory` that made this object version, if one did.
pub(crate) async fn own_output(
    backend: &Backend,
    factory: FactoryId,
    store: StoreId,
    key: &ObjectKey,
    version: &ObjectVersion,
) -> Result<Option<JobId>, RecordError> {
    let key = key.as_str();
    let slashes: Vec<usize> = key.match_indices('/').map(|(slash, _)| slash).collect();
    for end in slashes.into_iter().map(|slash| slash + 1).chain([key.len()]) {
        let place = &key[..end];
        let found = record::get::<Produced>(backend.table.as_ref(), &layout::produced(store, place)).await?;
        let Some(found) = found.map(|found| found.value) else { continue };
        let same = found.etag.as_ref().is_none_or(|etag| *etag == version.etag);
        if found.factory == Some(factory) && same {
            return Ok(Some(found.job));
        }
    }
    Ok(None)
}
