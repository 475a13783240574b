//! The books of a region's autoscaler: one row with the caps' ledger, the money, what is remembered of pools, and where
//! the decisions are. Its version is the condition of everything the autoscaler writes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use telecine_domain::autoscale::caps::Ledger;
use telecine_domain::autoscale::{Spent, Trouble};
use telecine_domain::id::{PoolName, RegionName};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, Write};
use crate::record::{self, RecordError, Versioned};

/// What the autoscaler of a region must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Books {
    /// What was taken of the caps when something was last reserved; its version is the row's.
    pub ledger: Ledger,
    /// What this month has cost.
    pub spent: Spent,
    /// Pools that have made trouble.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<PoolName, Memory>,
    /// The number of the last recorded decision; 0 before the first.
    pub decisions: u64,
    /// SHA-256 of what that decision said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Tells one write from another.
    token: String,
}

/// What is remembered of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// Launches in a row that found no capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Trouble>,
    /// Boots in a row that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_failures: Option<Trouble>,
}

impl Books {
    /// Nothing was ever done.
    fn empty(now: Timestamp) -> Self {
        Self {
            ledger: Ledger::default(),
            spent: Spent::beginning(now),
            pools: BTreeMap::new(),
            decisions: 0,
            last: None,
            token: String::new(),
        }
    }

    /// A launch in this pool found no capacity.
    pub(super) fn refused(&mut self, pool: &PoolName, now: Timestamp) {
        let memory = self.pools.entry(pool.clone()).or_default();
        memory.refused = Some(once_more(memory.refused, now));
    }

    /// A boot in this pool failed.
    pub(super) fn boot_failed(&mut self, pool: &PoolName, now: Timestamp) {
        let memory = self.pools.entry(pool.clone()).or_default();
        memory.boot_failures = Some(once_more(memory.boot_failures, now));
    }

    /// A launch in this pool became an instance.
    pub(super) fn launched(&mut self, pool: &PoolName) {
        self.change(pool, |memory| memory.refused = None);
    }

    /// An instance of this pool has said hello.
    pub(super) fn booted(&mut self, pool: &PoolName) {
        self.change(pool, |memory| memory.boot_failures = None);
    }

    fn change(&mut self, pool: &PoolName, change: impl FnOnce(&mut Memory)) {
        let Some(memory) = self.pools.get_mut(pool) else { return };
        change(memory);
        if *memory == Memory::default() {
            self.pools.remove(pool);
        }
    }
}

fn once_more(before: Option<Trouble>, now: Timestamp) -> Trouble {
    Trouble { times: before.map_or(0, |trouble| trouble.times).saturating_add(1), last: now }
}

/// The books as they are; version 0 when there are none yet.
pub(super) async fn read(
    backend: &Backend,
    region: &RegionName,
    now: Timestamp,
) -> Result<Versioned<Books>, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::scaling(region)).await?;
    Ok(found.unwrap_or_else(|| Versioned { value: Books::empty(now), version: 0 }))
}

/// Writes the books and what belongs to them, on the version that was read. `None` when somebody else wrote since then:
/// nothing is written, and what was read is no longer so.
pub(super) async fn write(
    backend: &Backend,
    region: &RegionName,
    books: Versioned<Books>,
    writes: Vec<Write>,
) -> Result<Option<Versioned<Books>>, RecordError> {
    let (key, version) = (layout::scaling(region), books.version + 1);
    let token = format!("{:032x}", rand::random::<u128>());
    let ledger = Ledger { version, ..books.value.ledger };
    let value = Books { ledger, token, ..books.value };
    let condition = match books.version {
        0 => Condition::Absent,
        read => Condition::Version(read),
    };
    let mut all = vec![record::put(record::row(key.clone(), version, &value)?, condition)];
    all.extend(writes);
    let ours = || async {
        let found = record::get::<Books>(backend.table.as_ref(), &key).await?;
        Ok(found.is_some_and(|found| found.value.token == value.token))
    };
    let written = record::settle(backend.table.as_ref(), all, ours).await?;
    Ok(written.then_some(Versioned { value, version }))
}
