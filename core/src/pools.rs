//! The pools of the platform: a row each, written from the configuration at start, read by whoever scales and shows
//! them. How many instances a pool has is the provider's answer, never a row.

use telecine_domain::id::PoolName;
use telecine_domain::pool::Pool;

use crate::backend::Backend;
use crate::layout;
use crate::ports::instances::{InstancesError, PoolStatus};
use crate::ports::table::{MAX_WRITES, Source};
use crate::record::{self, RecordError, Versioned};

/// A pool and what the provider knows of it; nothing when it knows of no such pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolNow {
    /// As it was declared.
    pub pool: Pool,
    /// What there is.
    pub status: PoolStatus,
}

/// Makes the rows those of the configuration: what is new or changed is written, what is gone is deleted. Done again it
/// changes nothing; a death in between is mended by the next one.
///
/// # Errors
/// When the records are out of reach.
pub async fn declare(backend: &Backend, pools: &[Pool]) -> Result<(), RecordError> {
    for pool in pools {
        let key = layout::pool(&pool.name);
        record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Pool>>| {
            if found.is_some_and(|found| found.value == *pool) {
                return Ok::<_, RecordError>(None);
            }
            Ok(Some(record::row(key.clone(), 1, pool)?))
        })
        .await?;
    }
    let gone: Vec<PoolName> = list(backend).await?.into_iter().map(|pool| pool.name).collect();
    let gone = gone.into_iter().filter(|name| !pools.iter().any(|pool| pool.name == *name));
    let deletes: Vec<_> = gone.map(|name| record::delete(layout::pool(&name))).collect();
    for some in deletes.chunks(MAX_WRITES) {
        // Deleting twice is no error, so that an unknown result is tried again.
        record::settle(backend.table.as_ref(), some.to_vec(), || async { Ok(false) }).await?;
    }
    Ok(())
}

/// Every pool, by name.
///
/// # Errors
/// When the records are out of reach.
pub async fn list(backend: &Backend) -> Result<Vec<Pool>, RecordError> {
    record::all(backend.table.as_ref(), Source::Rows, layout::POOLS).await
}

/// What the provider knows of a pool.
///
/// # Errors
/// When it does not answer.
pub async fn now(backend: &Backend, pool: Pool) -> Result<PoolNow, InstancesError> {
    let status = match backend.instances.status(&pool.name).await {
        Ok(status) => status,
        Err(InstancesError::NoSuchPool(_)) => PoolStatus::default(),
        Err(error) => return Err(error),
    };
    Ok(PoolNow { pool, status })
}

#[cfg(test)]
mod tests {
    use telecine_domain::autoscale::Market;
    use telecine_domain::resources::Resources;
    use telecine_domain::time::Timestamp;

    use super::*;
    use crate::contract::HandClock;
    use crate::fixture::FAULTS;

    fn pool(name: &str, max: u32) -> Pool {
        Pool {
            name: name.parse().unwrap(),
            region: "local".parse().unwrap(),
            shape: Resources { cpu_milli: 1000, memory_bytes: 1 << 30, ..Resources::ZERO },
            market: Market::OnDemand,
            price_micros_per_hour: 40_000,
            boot_seconds: 0,
            min: 0,
            max,
        }
    }

    #[tokio::test]
    async fn the_rows_follow_the_configuration_whatever_fails() {
        for fault in FAULTS {
            let clock = HandClock::at(Timestamp::from_millis(1_000_000));
            let (backend, table) = Backend::memory(clock.clock());
            table.fail_transaction(2, fault);
            declare(&backend, &[pool("a", 1), pool("b", 2), pool("c", 3)]).await.unwrap();
            table.fail_transaction(1, fault);
            let after = [pool("a", 1), pool("b", 9)];
            declare(&backend, &after).await.unwrap();
            assert_eq!(list(&backend).await.unwrap(), after, "{fault:?}");
            let before = format!("{:?}", table.rows());
            declare(&backend, &after).await.unwrap();
            assert_eq!(format!("{:?}", table.rows()), before, "again changes nothing");
            declare(&backend, &[]).await.unwrap();
            assert!(list(&backend).await.unwrap().is_empty());
        }
    }

    #[tokio::test]
    async fn a_pool_that_the_provider_does_not_know_has_no_instances() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let found = now(&backend, pool("a", 1)).await.unwrap();
        assert_eq!(found.status, PoolStatus::default());
    }
}
