//! The instances of a region, as its manager saw them last. The truth about an instance is its agent; these rows are
//! for people, for `explain` and for the autoscaler.

use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::instance::Instance;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::Source;
use crate::problem::Problem;
use crate::record::{self, RecordError, Versioned};

/// Records an instance as it is now; nothing is written when nothing changed.
///
/// # Errors
/// When the records are out of reach.
pub async fn put_instance(backend: &Backend, instance: &Instance) -> Result<(), RecordError> {
    let id = instance.profile.id;
    let key = layout::instance(&instance.profile.region, id);
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Instance>>| {
        if found.is_some_and(|found| found.value == *instance) {
            return Ok(None);
        }
        let mut row = record::row(key.clone(), 1, instance)?;
        row.index1 = Some(layout::instance_by_id(id));
        Ok(Some(row))
    })
    .await
}

/// The instances of a region, oldest first.
///
/// # Errors
/// When the records are out of reach.
pub async fn instances(backend: &Backend, region: &RegionName) -> Result<Vec<Instance>, RecordError> {
    record::all(backend.table.as_ref(), Source::Rows, layout::instances_of(region)).await
}

/// The instance with this id.
///
/// # Errors
/// When the records are out of reach.
pub async fn instance(backend: &Backend, instance: InstanceId) -> Result<Option<Instance>, RecordError> {
    let partition = layout::instance_by_id(instance).partition;
    let page = backend.table.query(record::page_of(Source::Index1, partition, 1, None)).await?;
    page.rows.first().map(record::value).transpose()
}

/// Forgets an instance that is gone for good.
///
/// # Errors
/// When the records are out of reach.
pub async fn remove_instance(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
) -> Result<(), RecordError> {
    let key = layout::instance(region, instance);
    let gone = || async { Ok(backend.table.get(&key).await?.is_none()) };
    record::settle(backend.table.as_ref(), vec![record::delete(key.clone())], gone).await?;
    Ok(())
}

/// The problem of a request that names a region which nobody runs: its jobs would wait for ever.
pub(crate) fn not_run(backend: &Backend, region: &RegionName, pointer: &str) -> Option<Problem> {
    if backend.regions.is_empty() || backend.regions.contains(region) {
        return None;
    }
    let known: Vec<&str> = backend.regions.iter().map(RegionName::as_str).collect();
    let message = format!("no manager here runs region `{region}`; choose one of {}", known.join(", "));
    Some(Problem::new(pointer, "unknown_region", message))
}

/// Every region that has had a manager, by name.
///
/// # Errors
/// When the records are out of reach.
pub async fn regions(backend: &Backend) -> Result<Vec<RegionName>, RecordError> {
    record::all(backend.table.as_ref(), Source::Rows, layout::REGIONS).await
}
