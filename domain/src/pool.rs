//! A pool: instances of one shape and one market, in one region.
//!
//! What an operator declares; what there is of it just now is the provider's matter. Money is in millionths of a US
//! dollar, so that nothing is rounded twice.

use serde::{Deserialize, Serialize};

use crate::autoscale::Market;
use crate::id::{PoolName, RegionName};
use crate::resources::Resources;

/// Most instances of one pool.
pub const MAX_INSTANCES: u32 = 10_000;
/// Longest usual time from asking for an instance to having it, in seconds.
pub const MAX_BOOT_SECONDS: u32 = 3600;
/// Highest price of an instance and hour, in millionths of a US dollar.
pub const MAX_PRICE_MICROS: u64 = 10_000_000_000;

/// A pool, as it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// Its name, unique on the platform.
    pub name: PoolName,
    /// Where its instances are.
    pub region: RegionName,
    /// What jobs may use of one instance.
    pub shape: Resources,
    /// How it is paid for.
    pub market: Market,
    /// The price of one instance and hour, in millionths of a US dollar.
    pub price_micros_per_hour: u64,
    /// Usual time from asking for an instance to having it, in seconds.
    pub boot_seconds: u32,
    /// Fewest instances.
    pub min: u32,
    /// Most instances.
    pub max: u32,
}

/// What is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPool {
    /// No job could ever run there.
    #[error("its instances need CPU and memory, both above 0, or no job fits")]
    EmptyShape,
    /// It can never hold what it must.
    #[error("`min` is {min} and `max` is {max}; the fewest may not be more than the most")]
    MinAboveMax {
        /// Fewest.
        min: u32,
        /// Most.
        max: u32,
    },
    /// It could never have an instance.
    #[error("`max` is {0}; 1 to {MAX_INSTANCES} instances are possible")]
    Most(u32),
    /// It costs more than anything does.
    #[error("the price of {0} millionths of a dollar is above {MAX_PRICE_MICROS}")]
    Price(u64),
    /// It takes longer than anybody waits.
    #[error("a boot of {0} s is longer than {MAX_BOOT_SECONDS} s")]
    Boot(u32),
}

impl Pool {
    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<InvalidPool> {
        let (min, max) = (self.min, self.max);
        let found = [
            (self.shape.cpu_milli == 0 || self.shape.memory_bytes == 0, InvalidPool::EmptyShape),
            (min > max, InvalidPool::MinAboveMax { min, max }),
            (!(1..=MAX_INSTANCES).contains(&max), InvalidPool::Most(max)),
            (self.price_micros_per_hour > MAX_PRICE_MICROS, InvalidPool::Price(self.price_micros_per_hour)),
            (self.boot_seconds > MAX_BOOT_SECONDS, InvalidPool::Boot(self.boot_seconds)),
        ];
        found.into_iter().filter(|(wrong, _)| *wrong).map(|(_, problem)| problem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool {
            name: "small".parse().unwrap(),
            region: "local".parse().unwrap(),
            shape: Resources { cpu_milli: 1000, memory_bytes: 1 << 30, ..Resources::ZERO },
            market: Market::Spot,
            price_micros_per_hour: 40_000,
            boot_seconds: 30,
            min: 0,
            max: 4,
        }
    }

    #[test]
    fn everything_that_cannot_be_is_named() {
        assert_eq!(pool().problems(), []);
        assert_eq!(Pool { min: 4, boot_seconds: 0, price_micros_per_hour: 0, ..pool() }.problems(), []);
        let impossible = Pool {
            shape: Resources { cpu_milli: 0, ..pool().shape },
            price_micros_per_hour: u64::MAX,
            boot_seconds: u32::MAX,
            min: 3,
            max: 0,
            ..pool()
        };
        assert_eq!(
            impossible.problems(),
            [
                InvalidPool::EmptyShape,
                InvalidPool::MinAboveMax { min: 3, max: 0 },
                InvalidPool::Most(0),
                InvalidPool::Price(u64::MAX),
                InvalidPool::Boot(u32::MAX),
            ]
        );
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let text = serde_json::to_string(&pool()).unwrap();
        assert!(text.contains("\"market\":\"spot\""), "{text}");
        assert_eq!(serde_json::from_str::<Pool>(&text).unwrap(), pool());
    }
}
