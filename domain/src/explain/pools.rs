//! What the pools of a region answer to a job: which would give it an instance, and why the others would not.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::autoscale::{Cap, Reason};
use crate::forecast::Launchable;
use crate::id::PoolName;
use crate::instance::{Instance, RuntimeKind};
use crate::placement::{RefusalReason, Request};
use crate::pool::Pool;
use crate::resources::Resources;
use crate::time::Timestamp;

/// A pool as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolNow {
    /// As it was declared.
    pub pool: Pool,
    /// Instances that run.
    pub running: u32,
    /// Instances that start or go away, and launches that have no instance yet.
    pub changing: u32,
    /// Why nothing is launched there now, where something keeps it.
    pub closed: Option<Closed>,
}

/// Why nothing is launched in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Closed {
    /// The provider had no capacity.
    NoCapacity {
        /// It is asked again then.
        until: Timestamp,
    },
    /// Its instances do not boot.
    BootsFail {
        /// It is tried again then.
        until: Timestamp,
    },
    /// The region's cap is reached.
    Cap(Cap),
}

/// What a pool answers, the nearest to taking the job first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PoolAnswer {
    /// Instances that would take the job are starting.
    Starting {
        /// How many start or go away.
        instances: u32,
    },
    /// It may have more instances, and one would take the job.
    MayLaunch,
    /// It has all the instances that it may have.
    Full {
        /// How many those are.
        max: u32,
    },
    /// The provider had no capacity.
    NoCapacity {
        /// It is asked again then.
        until: Timestamp,
    },
    /// Its instances do not boot.
    BootsFail {
        /// It is tried again then.
        until: Timestamp,
    },
    /// The region's cap is reached.
    Cap(Cap),
    /// One of its instances would not take the job.
    Refuses(NeverFits),
}

/// Why an instance of a pool would not take the job even if nothing ran there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NeverFits {
    /// It is too small.
    TooSmall {
        /// Of this resource.
        resource: crate::resources::ResourceKind,
        /// What the job needs of it.
        need: u64,
        /// What an instance has of it.
        capacity: u64,
    },
    /// The instances it has do not run such engines.
    RuntimeMissing {
        /// The way that is missing.
        runtime: RuntimeKind,
    },
}

/// A pool and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedPool {
    /// Its name.
    pub pool: PoolName,
    /// What jobs may use of one instance.
    pub shape: Resources,
    /// The price of one instance and hour, in millionths of a US dollar; 0 when it is not known.
    pub price_micros_per_hour: u64,
    /// Usual time from asking for an instance to having it, in seconds.
    pub boot_seconds: u32,
    /// Its answer.
    pub answer: PoolAnswer,
}

impl AskedPool {
    /// Whether one of its instances would take the job.
    pub const fn fits(&self) -> bool {
        match self.answer {
            PoolAnswer::Starting { .. }
            | PoolAnswer::MayLaunch
            | PoolAnswer::Full { .. }
            | PoolAnswer::NoCapacity { .. }
            | PoolAnswer::BootsFail { .. }
            | PoolAnswer::Cap(_) => true,
            PoolAnswer::Refuses(_) => false,
        }
    }

    /// Whether it gives, or may give, an instance that would take the job.
    pub const fn is_open(&self) -> bool {
        matches!(self.answer, PoolAnswer::Starting { .. } | PoolAnswer::MayLaunch)
    }
}

/// Asks every pool, the nearest first, the cheaper of two alike first. `instances` are those of the region.
pub(super) fn ask(request: &Request, pools: &[PoolNow], instances: &[Instance]) -> Vec<AskedPool> {
    let mut asked: Vec<(AskedPool, Reverse<u64>)> = pools
        .iter()
        .map(|now| {
            let answer = answer(request, now, runtimes(&now.pool, instances).as_ref());
            let covered = Reverse(covered(&answer));
            let Pool { name, shape, price_micros_per_hour, boot_seconds, .. } = now.pool.clone();
            (AskedPool { pool: name, shape, price_micros_per_hour, boot_seconds, answer }, covered)
        })
        .collect();
    asked.sort_by_key(|(asked, covered)| {
        (rank(&asked.answer), *covered, asked.price_micros_per_hour, asked.pool.clone())
    });
    asked.into_iter().map(|(asked, _)| asked).collect()
}

impl Closed {
    /// What keeps a pool from being launched, by the reasons of the autoscaler's last decision.
    pub fn by(reasons: &[Reason], name: &PoolName, now: Timestamp) -> Option<Self> {
        let of_pool = reasons.iter().find_map(|reason| {
            let (closed, pool, until) = if let Reason::PoolRefused { pool, until } = reason {
                (Self::NoCapacity { until: *until }, pool, until)
            } else if let Reason::PoolBroken { pool, until } = reason {
                (Self::BootsFail { until: *until }, pool, until)
            } else {
                return None;
            };
            (pool == name && *until > now).then_some(closed)
        });
        of_pool.or_else(|| reasons.iter().find_map(cap_of).map(Self::Cap))
    }
}

/// The cap of a reason; launches at once are no cap that lasts.
fn cap_of(reason: &Reason) -> Option<Cap> {
    let Reason::CapReached { cap, .. } = reason else { return None };
    (*cap != Cap::LaunchesAtOnce).then_some(*cap)
}

/// What starts in the pools, or may be launched, for a forecast.
pub fn launchable(pools: &[PoolNow], instances: &[Instance]) -> Vec<Launchable> {
    let some = |now: &PoolNow, count| Launchable {
        capacity: now.pool.shape,
        runtimes: runtimes(&now.pool, instances),
        count,
        boot_ms: u64::from(now.pool.boot_seconds) * 1000,
    };
    let count = |now: &PoolNow| match now.closed {
        Some(_) => now.changing,
        None => now.pool.max.saturating_sub(now.running),
    };
    pools.iter().map(|now| some(now, count(now))).filter(|some| some.count > 0).collect()
}

/// The ways in which the pool's instances run engines, as those that are known say; unknown when there are none.
fn runtimes(pool: &Pool, instances: &[Instance]) -> Option<BTreeSet<RuntimeKind>> {
    let of_pool = instances.iter().filter(|instance| instance.profile.pool == pool.name);
    of_pool.map(|instance| instance.profile.runtimes.clone()).reduce(|all, some| &all | &some)
}

fn answer(request: &Request, now: &PoolNow, runtimes: Option<&BTreeSet<RuntimeKind>>) -> PoolAnswer {
    let (need, shape) = (&request.resources, &now.pool.shape);
    if let Some(resource) = need.first_shortage(shape) {
        let (need, capacity) = (need.amount(resource), shape.amount(resource));
        return PoolAnswer::Refuses(NeverFits::TooSmall { resource, need, capacity });
    }
    if runtimes.is_some_and(|runtimes| !runtimes.contains(&request.runtime)) {
        return PoolAnswer::Refuses(NeverFits::RuntimeMissing { runtime: request.runtime });
    }
    match now.closed {
        _ if now.changing > 0 => PoolAnswer::Starting { instances: now.changing },
        _ if now.running >= now.pool.max => PoolAnswer::Full { max: now.pool.max },
        Some(Closed::NoCapacity { until }) => PoolAnswer::NoCapacity { until },
        Some(Closed::BootsFail { until }) => PoolAnswer::BootsFail { until },
        Some(Closed::Cap(cap)) => PoolAnswer::Cap(cap),
        None => PoolAnswer::MayLaunch,
    }
}

/// How near an answer is to taking the job.
const fn rank(answer: &PoolAnswer) -> u8 {
    match answer {
        PoolAnswer::Starting { .. } => 0,
        PoolAnswer::MayLaunch => 1,
        PoolAnswer::Full { .. } => 2,
        PoolAnswer::NoCapacity { .. } => 3,
        PoolAnswer::BootsFail { .. } => 4,
        PoolAnswer::Cap(_) => 5,
        PoolAnswer::Refuses(NeverFits::TooSmall { .. }) => 6,
        PoolAnswer::Refuses(NeverFits::RuntimeMissing { .. }) => 7,
    }
}

/// How much of what is short is there, in thousandths.
fn covered(answer: &PoolAnswer) -> u64 {
    match answer {
        PoolAnswer::Refuses(NeverFits::TooSmall { need, capacity, .. }) => {
            u64::try_from(u128::from(*capacity) * 1000 / u128::from((*need).max(1))).unwrap_or(u64::MAX)
        }
        PoolAnswer::Starting { .. }
        | PoolAnswer::MayLaunch
        | PoolAnswer::Full { .. }
        | PoolAnswer::NoCapacity { .. }
        | PoolAnswer::BootsFail { .. }
        | PoolAnswer::Cap(_)
        | PoolAnswer::Refuses(NeverFits::RuntimeMissing { .. }) => 0,
    }
}

impl From<NeverFits> for RefusalReason {
    fn from(from: NeverFits) -> Self {
        match from {
            NeverFits::TooSmall { resource, need, capacity } => Self::TooSmall { resource, need, capacity },
            NeverFits::RuntimeMissing { runtime } => Self::RuntimeMissing { runtime },
        }
    }
}

/// In words, to follow the name of the pool.
impl fmt::Display for AskedPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.answer {
            PoolAnswer::Starting { instances: 1 } => {
                write!(f, "an instance is starting, which takes about {} s", self.boot_seconds)
            }
            PoolAnswer::Starting { instances } => {
                write!(f, "{instances} instances are starting, which takes about {} s", self.boot_seconds)
            }
            PoolAnswer::MayLaunch => {
                write!(f, "would be launched, which takes about {} s", self.boot_seconds)
            }
            PoolAnswer::Full { max: 1 } => f.write_str("has the one instance that it may have"),
            PoolAnswer::Full { max } => write!(f, "has the {max} instances that it may have"),
            PoolAnswer::NoCapacity { until } => {
                write!(f, "the provider has no capacity; it is asked again at {until}")
            }
            PoolAnswer::BootsFail { until } => {
                write!(f, "its instances do not boot; it is tried again at {until}")
            }
            PoolAnswer::Cap(cap) => write!(f, "is not launched: the cap {} is reached", cap_words(*cap)),
            PoolAnswer::Refuses(never) => RefusalReason::from(never.clone()).fmt(f),
        }
    }
}

pub(super) const fn cap_words(cap: Cap) -> &'static str {
    match cap {
        Cap::Instances => "on instances",
        Cap::MoneyPerHour => "on money per hour",
        Cap::MoneyPerMonth => "on money per month",
        Cap::LaunchesAtOnce => "on launches at once",
    }
}
