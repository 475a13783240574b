//! What may be chosen about scaling, and the two stock policies.
//!
//! Shares are in thousandths, money in millionths of a dollar, times in milliseconds.

use serde::{Deserialize, Serialize};

use super::{Amounts, Cap};
use crate::id::PoolName;
use crate::time::Timestamp;

/// How a region is scaled. Unset fields are those of [`Policy::thrift`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Occupancy marks.
    pub marks: Marks,
    /// The most that may be bought.
    pub caps: Caps,
    /// When a queued job waits for something cheaper than what has room for it.
    pub patience: Patience,
    /// Demand is bought for only after it has waited so long, unless it could be late: what runs may end meanwhile.
    pub settle_ms: u64,
    /// How long an instance may be idle.
    pub idle: IdleRule,
    /// What is kept free for jobs to come.
    pub headroom: Vec<Headroom>,
    /// Minima that hold at certain times.
    pub schedules: Vec<Schedule>,
    /// What a launch costs beside its time, for example in image pulls and in people's calm.
    pub launch_cost_micros: u64,
    /// Share of a run that is lost when it is interrupted: 500 without checkpoints, 0 with perfect ones.
    pub redo_milli: u32,
    /// CPU that is left for each GPU that is free, when jobs without GPU use an instance that has some.
    pub cpu_milli_per_free_gpu: u64,
    /// How long a pool that had no capacity is avoided; doubled each further time in a row, up to an hour.
    pub refusal_memory_ms: u64,
    /// When a pool whose instances do not boot is closed.
    pub breaker: Breaker,
    /// Most instances that are cordoned for idleness in one decision, of those that are there (at least one).
    pub retire_milli: u32,
    /// Most instances that are asked for in one decision.
    pub launches_at_once: u32,
    /// Cordon instances that are emptier than this while the fleet is below the low mark; 0 never does.
    pub consolidate_below_milli: u32,
    /// An observation older than this is not acted upon, nor one that is this far ahead of the clock.
    pub stale_after_ms: u64,
}

/// Occupancy marks: allocated ÷ capacity of the scarcest resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Marks {
    /// Idle instances are retired only below this.
    pub low: u32,
    /// Buying for the high mark ends at this, and no retirement may lift occupancy above it.
    pub middle: u32,
    /// Above this, more is bought although nothing waits; 1000 never does.
    pub high: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self { low: 1000, middle: 1000, high: 1000 }
    }
}

/// The most that may be bought. Unset: no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caps {
    /// Instances at once.
    pub instances: Option<u32>,
    /// Money per hour.
    pub micros_per_hour: Option<u64>,
    /// Money per month.
    pub micros_per_month: Option<u64>,
}

/// When a queued job waits for something cheaper. It never does when that could make it late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patience {
    /// A job is not added to an instance when that keeps the instance alive for more than so many thousandths of what
    /// the job costs on the cheapest instance of its own; 0 adds it wherever it fits.
    pub extension_milli: u64,
    /// A job is patient only while so much is left before it ought to start.
    pub reserve_ms: u64,
    /// A job without a time to start by ought to start within this, or half of its run if that is longer, …
    pub least_wait_ms: u64,
    /// … but within this.
    pub most_wait_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self { extension_milli: 1050, reserve_ms: 200_000, least_wait_ms: 180_000, most_wait_ms: 1_800_000 }
    }
}

impl Patience {
    /// When a job that entered the queue at `queued_at` ought to have started.
    pub fn start_by(&self, queued_at: Timestamp, expected_ms: u64) -> Timestamp {
        let wait = (expected_ms / 2).max(self.least_wait_ms).min(self.most_wait_ms);
        Timestamp::from_millis(queued_at.as_millis().saturating_add(wait))
    }

    /// Whether a job that ought to start by then may still wait for something cheaper.
    pub fn may_wait(&self, start_by: Timestamp, now: Timestamp) -> bool {
        self.extension_milli > 0 && self.has_slack(start_by, now)
    }

    /// Whether so much is left before the job ought to start that a boot cannot make it late.
    pub fn has_slack(&self, start_by: Timestamp, now: Timestamp) -> bool {
        now.as_millis().saturating_add(self.reserve_ms) < start_by.as_millis()
    }
}

/// How long an instance may be idle: ski-rental, a multiple of what it takes to boot another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdleRule {
    /// Thousandths of the pool's boot time. 1000 costs at most twice what knowing the future would.
    pub boots_milli: u64,
    /// At least this.
    pub least_ms: u64,
    /// At most this.
    pub most_ms: u64,
}

impl Default for IdleRule {
    fn default() -> Self {
        Self { boots_milli: 0, least_ms: 0, most_ms: 3_600_000 }
    }
}

impl IdleRule {
    /// How long an instance that boots in `boot_ms` may be idle.
    pub fn hold_ms(&self, boot_ms: u64) -> u64 {
        (boot_ms.saturating_mul(self.boots_milli) / 1000).min(self.most_ms).max(self.least_ms)
    }
}

/// Room that is kept free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Headroom {
    /// For jobs that need this …
    pub need: Amounts,
    /// … and run so long, in milliseconds, …
    pub expected_ms: u64,
    /// … so many.
    pub count: u32,
}

/// A pool has at least so many instances at certain times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The pool.
    pub pool: PoolName,
    /// Days of the week, 1 (Monday) to 7 (Sunday).
    pub days: Vec<u8>,
    /// First minute of the day, in UTC.
    pub from_minute: u16,
    /// The minute after the last; up to 1440.
    pub to_minute: u16,
    /// How many.
    pub min: u32,
}

impl Schedule {
    /// Whether it holds at this time.
    pub fn holds_at(&self, time: Timestamp) -> bool {
        let minutes = time.as_millis() / 60_000;
        // The first of January 1970 was a Thursday.
        let day = (minutes / 1440 + 3) % 7 + 1;
        let minute = minutes % 1440;
        self.days.iter().any(|&wanted| u64::from(wanted) == day)
            && (u64::from(self.from_minute)..u64::from(self.to_minute)).contains(&minute)
    }
}

/// When a pool whose instances do not boot is closed, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// After so many failures in a row.
    pub failures: u32,
    /// For so long.
    pub pause_ms: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 3, pause_ms: 900_000 }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::thrift()
    }
}

/// A policy contradicts itself.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// The marks are not in order, so that a removal could trigger an addition.
    #[error("marks must be low <= middle <= high <= 1000, they are {low}, {middle}, {high}")]
    Marks {
        /// Low mark.
        low: u32,
        /// Middle mark.
        middle: u32,
        /// High mark.
        high: u32,
    },
    /// A share is above the whole.
    #[error("{field} is in thousandths and at most 1000, it is {value}")]
    Share {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u32,
    },
    /// A schedule has no such time.
    #[error("schedules[{index}]: days are 1 to 7, and from_minute < to_minute <= 1440")]
    Schedule {
        /// Which one.
        index: usize,
    },
    /// An idle rule that cannot hold.
    #[error("idle: least_ms {least_ms} is above most_ms {most_ms}")]
    Idle {
        /// At least.
        least_ms: u64,
        /// At most.
        most_ms: u64,
    },
}

impl Policy {
    /// The least money that starts jobs on time: right-sized instances, nothing idle, jobs with slack wait for them.
    pub fn thrift() -> Self {
        Self {
            marks: Marks::default(),
            caps: Caps::default(),
            patience: Patience::default(),
            settle_ms: 0,
            idle: IdleRule::default(),
            headroom: Vec::new(),
            schedules: Vec::new(),
            launch_cost_micros: 0,
            redo_milli: 500,
            cpu_milli_per_free_gpu: 3000,
            refusal_memory_ms: 120_000,
            breaker: Breaker::default(),
            retire_milli: 1000,
            launches_at_once: 1000,
            consolidate_below_milli: 0,
            stale_after_ms: 60_000,
        }
    }

    /// Few launches, and none soon after a removal: larger instances that stay a while, jobs go wherever there is room.
    pub fn calm() -> Self {
        Self {
            patience: Patience { extension_milli: 0, reserve_ms: 150_000, ..Patience::default() },
            settle_ms: 120_000,
            idle: IdleRule { boots_milli: 3300, ..IdleRule::default() },
            launch_cost_micros: 20_000,
            retire_milli: 100,
            ..Self::thrift()
        }
    }

    /// The stock policy of this name.
    pub fn stock(name: &str) -> Option<Self> {
        match name {
            "thrift" => Some(Self::thrift()),
            "calm" => Some(Self::calm()),
            _ => None,
        }
    }

    /// Whether it makes sense.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), PolicyError> {
        let Marks { low, middle, high } = self.marks;
        if !(low <= middle && middle <= high && high <= 1000) {
            return Err(PolicyError::Marks { low, middle, high });
        }
        for (field, value) in [
            ("redo_milli", self.redo_milli),
            ("retire_milli", self.retire_milli),
            ("consolidate_below_milli", self.consolidate_below_milli),
        ] {
            if value > 1000 {
                return Err(PolicyError::Share { field, value });
            }
        }
        let IdleRule { least_ms, most_ms, .. } = self.idle;
        if least_ms > most_ms {
            return Err(PolicyError::Idle { least_ms, most_ms });
        }
        let wrong = |schedule: &Schedule| {
            let days = schedule.days.iter().all(|day| (1..=7).contains(day));
            !days || schedule.from_minute >= schedule.to_minute || schedule.to_minute > 1440
        };
        match self.schedules.iter().position(wrong) {
            Some(index) => Err(PolicyError::Schedule { index }),
            None => Ok(()),
        }
    }

    /// The cap of one decision.
    pub(super) const fn at_once(&self) -> (Cap, u32) {
        (Cap::LaunchesAtOnce, self.launches_at_once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stock_policies_make_sense() {
        for name in ["thrift", "calm"] {
            assert_eq!(Policy::stock(name).unwrap().check(), Ok(()), "{name}");
        }
        assert_eq!(Policy::stock("generous"), None);
    }

    #[test]
    fn contradictions_are_named() {
        let marks = Policy { marks: Marks { low: 500, middle: 900, high: 800 }, ..Policy::thrift() };
        assert!(marks.check().unwrap_err().to_string().contains("500, 900, 800"));
        let share = Policy { redo_milli: 1001, ..Policy::thrift() };
        assert_eq!(share.check(), Err(PolicyError::Share { field: "redo_milli", value: 1001 }));
        let idle = IdleRule { boots_milli: 0, least_ms: 2, most_ms: 1 };
        assert!(Policy { idle, ..Policy::thrift() }.check().is_err());
    }

    #[test]
    fn a_schedule_knows_the_day() {
        // 2026-01-01 was a Thursday.
        let new_year = Timestamp::parse("2026-01-01T08:30:00Z").unwrap();
        let pool: PoolName = "p".parse().unwrap();
        let schedule = Schedule { pool, days: vec![4], from_minute: 510, to_minute: 511, min: 1 };
        assert!(schedule.holds_at(new_year));
        assert!(!Schedule { days: vec![5], ..schedule.clone() }.holds_at(new_year));
        assert!(!Schedule { from_minute: 511, to_minute: 520, ..schedule.clone() }.holds_at(new_year));
        let policy = Policy { schedules: vec![Schedule { days: vec![0], ..schedule }], ..Policy::thrift() };
        assert_eq!(policy.check(), Err(PolicyError::Schedule { index: 0 }));
    }

    #[test]
    fn a_job_without_a_deadline_ought_to_start_within_half_its_run() {
        let patience = Patience::default();
        let at = Timestamp::from_millis;
        assert_eq!(patience.start_by(at(0), 10_000), at(180_000));
        assert_eq!(patience.start_by(at(0), 1_000_000), at(500_000));
        assert_eq!(patience.start_by(at(0), u64::MAX), at(1_800_000));
        assert!(patience.may_wait(at(300_000), at(99_999)));
        assert!(!patience.may_wait(at(300_000), at(100_000)));
    }
}
