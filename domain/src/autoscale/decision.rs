//! What the autoscaler decided: actions with their reasons, and reasons for what it left undone.

use serde::{Deserialize, Serialize};

use super::{Amounts, CordonCause, Life};
use crate::id::{InstanceId, PoolName};
use crate::time::Timestamp;

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleDecision {
    /// When.
    pub at: Timestamp,
    /// What to do, in this order.
    pub actions: Vec<Planned>,
    /// Why the rest was not done.
    pub reasons: Vec<Reason>,
}

/// An action and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// What to do.
    pub action: ScaleAction,
    /// Why.
    pub because: Reason,
}

/// Something to do. None of them may be done on an older snapshot than the one that it was decided on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ScaleAction {
    /// Reserve in the caps' ledger, then ask the pool for so many more.
    Launch {
        /// Of which pool.
        pool: PoolName,
        /// How many.
        count: u32,
        /// When the work they are bought for is expected to end.
        expected_end: Timestamp,
    },
    /// Let it take no new work.
    Cordon {
        /// Which one.
        instance: InstanceId,
        /// The number of the cordon.
        cordon: u64,
        /// Why, for the row.
        cause: CordonCause,
    },
    /// Take a cordon back, if it still has this number and its end was not claimed.
    Uncordon {
        /// Which one.
        instance: InstanceId,
        /// The number of the cordon.
        cordon: u64,
    },
    /// Claim its end on the condition that this cordon stands and is acknowledged, then end it.
    Terminate {
        /// Which one.
        instance: InstanceId,
        /// The number of the acknowledged cordon.
        cordon: u64,
    },
}

/// Which cap was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    /// Instances.
    Instances,
    /// Money per hour.
    MoneyPerHour,
    /// Money per month.
    MoneyPerMonth,
    /// Launches in one decision.
    LaunchesAtOnce,
}

/// Why something was done or left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reason {
    /// Jobs wait that nothing present would start sooner, for less.
    Demand {
        /// How many jobs these instances are for.
        jobs: u32,
        /// What the instances cost for each thousand that the jobs would cost each on an instance of its own.
        cost_milli: u64,
        /// The next best pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<PoolName>,
    },
    /// The pool has fewer than its minimum, or than a schedule asks for.
    Minimum {
        /// How many it is to have.
        min: u32,
    },
    /// Room for jobs that are not there yet.
    Headroom,
    /// The fleet is fuller than the high mark.
    AboveHighMark {
        /// Occupancy in thousandths.
        occupancy: u64,
        /// The mark.
        high: u64,
    },
    /// An instance will be taken away.
    Replaces {
        /// Which one.
        instance: InstanceId,
    },
    /// It is idle longer than is worth paying for.
    Idle {
        /// For how long, in milliseconds.
        idle_ms: u64,
    },
    /// What it does would be cheaper elsewhere.
    Consolidation {
        /// What is saved in an hour, in millionths of a dollar.
        saved_micros_per_hour: u64,
    },
    /// The market may take it away.
    Rebalance,
    /// The market takes it away.
    Notice {
        /// When.
        at: Timestamp,
    },
    /// Its agent has acknowledged that it holds nothing.
    Acknowledged,
    /// Jobs have come that run there.
    WantedAgain,
    /// The observation cannot be trusted.
    Stale {
        /// When it was made.
        observed_at: Timestamp,
    },
    /// Jobs wait for what is ready, booting or asked for.
    Expected {
        /// How many.
        jobs: u32,
    },
    /// Jobs wait a little before anything is bought for them: what runs may end meanwhile.
    Settling {
        /// How many.
        jobs: u32,
    },
    /// Jobs wait, and no pool could ever hold one of them.
    NothingFits {
        /// What one needs.
        need: Amounts,
        /// How many.
        jobs: u32,
    },
    /// Jobs wait, and every pool that could hold them is full, refused or closed.
    NoPoolOpen {
        /// What one needs.
        need: Amounts,
        /// How many.
        jobs: u32,
    },
    /// More would have been bought.
    CapReached {
        /// Which cap.
        cap: Cap,
        /// How many jobs wait because of it.
        jobs: u32,
    },
    /// The pool is not used: it had no capacity.
    PoolRefused {
        /// Which pool.
        pool: PoolName,
        /// Until when.
        until: Timestamp,
    },
    /// The pool is not used: its instances do not boot.
    PoolBroken {
        /// Which pool.
        pool: PoolName,
        /// Until when.
        until: Timestamp,
    },
    /// The pool is not used: its description makes no sense.
    PoolInvalid {
        /// Which pool.
        pool: PoolName,
        /// What is wrong.
        problem: PoolProblem,
    },
    /// The instance is left alone.
    Kept {
        /// Which one.
        instance: InstanceId,
        /// Why.
        because: Keep,
    },
}

/// What is wrong with the description of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolProblem {
    /// An instance of it has no CPU or no memory.
    ImpossibleShape,
    /// It has no price, and is not paid for in advance.
    PriceMissing,
    /// Its minimum is above its maximum.
    MinAboveMax,
    /// Its speed is zero.
    SpeedZero,
    /// There are two of this name.
    Duplicate,
}

/// Why an instance without work, or one that is cordoned, is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Keep {
    /// Queued jobs go there.
    Demand,
    /// It is room for jobs to come.
    Headroom,
    /// The pool would have fewer than its minimum.
    Minimum,
    /// The pool would have fewer idle ones than it is to have.
    Standby,
    /// It is not idle long enough yet.
    Hold {
        /// Until when it is kept.
        until: Timestamp,
    },
    /// The fleet would be fuller than the middle mark.
    MiddleMark,
    /// The fleet is fuller than the low mark.
    LowMark,
    /// Enough are retired at once.
    Pace,
    /// Its agent has not acknowledged the cordon yet.
    NotAcknowledged,
    /// It is cordoned and still has work.
    StillBusy,
    /// A person cordoned it.
    Operator,
    /// Its pool is not known.
    UnknownPool,
    /// It is not where it could be retired.
    Life {
        /// Where it is.
        life: Life,
    },
}
