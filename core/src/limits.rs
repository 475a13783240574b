//! The limits of concurrency that a region's manager goes by, as a row, so that `explain` can name them.

use telecine_domain::id::RegionName;
use telecine_domain::region::Limits;

use crate::backend::Backend;
use crate::layout;
use crate::record::{self, RecordError, Versioned};

/// Records the limits of a region; nothing is written when nothing has changed.
///
/// # Errors
/// When the records are out of reach.
pub async fn declare(backend: &Backend, region: &RegionName, limits: &Limits) -> Result<(), RecordError> {
    let key = layout::limits(region);
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Limits>>| {
        if found.is_some_and(|found| found.value == *limits) {
            return Ok::<_, RecordError>(None);
        }
        Ok(Some(record::row(key.clone(), 1, limits)?))
    })
    .await
}

/// The limits of a region; none while no manager has led it.
///
/// # Errors
/// When the records are out of reach.
pub async fn of(backend: &Backend, region: &RegionName) -> Result<Limits, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::limits(region)).await?;
    Ok(found.map(|found: Versioned<Limits>| found.value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use telecine_domain::id::AccountId;
    use telecine_domain::time::Timestamp;

    use super::*;
    use crate::contract::HandClock;
    use crate::fixture::{FAULTS, region};

    #[tokio::test]
    async fn the_row_follows_the_manager_whatever_fails() {
        let account = AccountId::new(Timestamp::from_millis(1), 1);
        for fault in FAULTS {
            let clock = HandClock::at(Timestamp::from_millis(1_000_000));
            let (backend, table) = Backend::memory(clock.clock());
            assert_eq!(of(&backend, &region()).await.unwrap(), Limits::default());
            table.fail_transaction(1, fault);
            let limits = Limits { accounts: [(account, 3)].into(), ..Limits::default() };
            declare(&backend, &region(), &limits).await.unwrap();
            assert_eq!(of(&backend, &region()).await.unwrap(), limits, "{fault:?}");
            let writes = table.transactions();
            declare(&backend, &region(), &limits).await.unwrap();
            assert_eq!(table.transactions(), writes, "nothing has changed");
        }
    }
}
