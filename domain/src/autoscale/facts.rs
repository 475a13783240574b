//! What the autoscaler looks at: one observation of the queue, the instances, the launches and the pools.

use serde::{Deserialize, Serialize};

use super::Amounts;
use crate::id::{InstanceId, PoolName};
use crate::time::Timestamp;

/// One observation of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// When it was made.
    pub observed_at: Timestamp,
    /// The queued jobs that may be placed now, alike ones in one line.
    pub queue: Vec<Waiting>,
    /// Every instance that is paid for.
    pub instances: Vec<InstanceFacts>,
    /// What was asked for and is not an instance yet.
    pub launches: Vec<LaunchFacts>,
    /// What can be bought.
    pub pools: Vec<PoolFacts>,
    /// What this month has cost so far, in millionths of a dollar.
    pub spent_this_month_micros: u64,
}

/// Queued jobs that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// What each needs.
    pub need: Amounts,
    /// Whether they may run where they can be interrupted.
    pub interruptible: bool,
    /// How many.
    pub count: u32,
    /// How long one is expected to run at speed 1000, in milliseconds.
    pub expected_ms: u64,
    /// When the oldest entered the queue.
    pub oldest: Timestamp,
    /// When the first of them ought to have started; `None` takes the policy's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_by: Option<Timestamp>,
}

/// Where an instance is in its life, as far as buying and retiring are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Life {
    /// Launched, and not ready yet.
    Booting,
    /// Takes work, unless it is cordoned.
    Ready,
    /// Does not answer, or is unhealthy: counts as cost and not as capacity, and is left alone.
    Away,
    /// Its end was claimed.
    Terminating,
}

/// Why an instance was cordoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CordonCause {
    /// It was idle.
    Idle,
    /// Its work fits on fewer instances.
    Consolidation,
    /// The market says that it may be taken away.
    Rebalance,
    /// The market takes it away.
    Notice,
    /// A person did it.
    Operator,
}

impl CordonCause {
    /// Whether new demand may take the cordon back.
    pub const fn is_revocable(self) -> bool {
        matches!(self, Self::Idle | Self::Consolidation)
    }
}

/// A cordon that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cordon {
    /// Its number.
    pub number: u64,
    /// Why.
    pub cause: CordonCause,
    /// Whether the agent has said that it holds no lease at this number.
    pub acknowledged: bool,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceFacts {
    /// Which one.
    pub id: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// Where it is.
    pub life: Life,
    /// When it was asked for.
    pub launched_at: Timestamp,
    /// What it has: what it reported, or what the pool promises.
    pub capacity: Amounts,
    /// What is not allocated.
    pub free: Amounts,
    /// How many leases it holds.
    pub leases: u32,
    /// Since when it holds none.
    pub idle_since: Timestamp,
    /// When the last of its work is expected to end; for a booting one, the work it was bought for.
    pub expected_end: Timestamp,
    /// Its last cordon number; 0 when it never had one.
    pub last_cordon: u64,
    /// The cordon that stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordon: Option<Cordon>,
    /// The market will take it at this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<Timestamp>,
    /// The market recommends to leave it.
    #[serde(default)]
    pub rebalance: bool,
}

/// Instances that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchFacts {
    /// Of which pool.
    pub pool: PoolName,
    /// How many of them are not instances yet.
    pub count: u32,
    /// When.
    pub requested_at: Timestamp,
    /// When the work they were bought for is expected to end.
    pub expected_end: Timestamp,
}

/// How instances of a pool are paid for, and whether they can be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Market {
    /// Paid by the second, kept as long as wanted.
    OnDemand,
    /// Paid for in advance.
    Reserved,
    /// Cheap, and may be taken away.
    Spot,
}

/// What a pool offers, and what is remembered of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolFacts {
    /// Its name.
    pub name: PoolName,
    /// What jobs may use of one instance.
    pub capacity: Amounts,
    /// How it is paid for.
    pub market: Market,
    /// Millionths of a dollar for one instance and hour.
    pub price_micros_per_hour: u64,
    /// How fast it works; 1000 is what expected run times are measured at.
    pub speed_milli: u32,
    /// Usual time from asking to ready, in milliseconds.
    pub boot_ms: u64,
    /// How many of a thousand instances are taken away in an hour.
    pub interruptions_per_1000_hours: u32,
    /// Fewest instances.
    pub min: u32,
    /// Most instances.
    pub max: u32,
    /// How many idle ones are kept.
    pub standby: u32,
    /// Launches in a row that found no capacity, and the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Trouble>,
    /// Boots in a row that failed, and the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_failures: Option<Trouble>,
}

/// Something that went wrong several times in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trouble {
    /// How often in a row.
    pub times: u32,
    /// When last.
    pub last: Timestamp,
}
