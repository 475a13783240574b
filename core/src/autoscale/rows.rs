//! Launches and purchases: what was asked for and is not there yet, and what is there, since when and for how much.
//!
//! Both are written in transactions of the books only, so they need no condition of their own.

use serde::{Deserialize, Serialize};
use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::time::Timestamp;

use crate::layout;
use crate::ports::table::{Condition, Key, Write};
use crate::record::{self, RecordError};

/// Instances that were asked for, or are about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Launch {
    /// The decision that asks for them.
    pub decision: u64,
    /// Which of its launches, from 0.
    pub index: u32,
    /// Of which pool.
    pub pool: PoolName,
    /// How many of them are not instances yet.
    pub left: u32,
    /// When they were reserved.
    pub requested_at: Timestamp,
    /// When the work they are bought for is expected to end.
    pub expected_end: Timestamp,
    /// What is known of it.
    pub state: LaunchState,
}

/// What is known of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LaunchState {
    /// It counts, and the provider is about to be asked, or was, if the tick died.
    Reserved,
    /// The provider has taken it on.
    Asked,
    /// The provider did not answer.
    Unknown,
}

/// An instance that the provider lists or has listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bought {
    /// Which one.
    pub instance: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// What it costs, in millionths of a dollar per hour.
    pub price_micros_per_hour: u64,
    /// When it was asked for, or else first seen.
    pub since: Timestamp,
    /// When the work it was bought for is expected to end.
    pub expected_end: Timestamp,
    /// How far it is.
    pub state: BoughtState,
}

/// How far an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum BoughtState {
    /// It has not said hello yet.
    Booting,
    /// It has said hello.
    Ready,
    /// It has not said hello in time, or is gone without.
    Failed {
        /// When that was found.
        at: Timestamp,
    },
}

impl Launch {
    pub(super) fn key(&self, region: &RegionName) -> Key {
        layout::launch(region, self.decision, self.index)
    }

    pub(super) fn put(&self, region: &RegionName) -> Result<Write, RecordError> {
        Ok(record::put(record::row(self.key(region), 1, self)?, Condition::Any))
    }
}

impl Bought {
    pub(super) fn put(&self, region: &RegionName) -> Result<Write, RecordError> {
        Ok(record::put(record::row(layout::bought(region, self.instance), 1, self)?, Condition::Any))
    }
}
