//! What a job is expected to cost.

use serde::{Deserialize, Serialize};

use crate::autoscale::caps::money;
use crate::explain::AskedPool;
use crate::id::PoolName;
use crate::learn::Expected;

/// What a job costs on an instance of its own, of the cheapest pool that would run it. It costs less where it shares an
/// instance, and booting and idling come on top.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// The pool.
    pub pool: PoolName,
    /// The price of one of its instances and hour, in millionths of a US dollar.
    pub price_micros_per_hour: u64,
    /// For a run that half of the runs keep within, in millionths of a US dollar.
    pub p50_micros: u64,
    /// For one that nine of ten keep within.
    pub p90_micros: u64,
}

/// The cost of a job that is expected to run so long; `None` where no pool that would run it has a price.
pub fn cost(pools: &[AskedPool], expected: &Expected) -> Option<Cost> {
    let priced = pools.iter().filter(|pool| pool.fits() && pool.price_micros_per_hour > 0);
    let cheapest = priced.min_by_key(|pool| (pool.price_micros_per_hour, &pool.pool))?;
    let price = cheapest.price_micros_per_hour;
    let of = |ms: u64| money(u128::from(price) * u128::from(ms));
    Some(Cost {
        pool: cheapest.pool.clone(),
        price_micros_per_hour: price,
        p50_micros: of(expected.p50_ms),
        p90_micros: of(expected.p90_ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::{NeverFits, PoolAnswer};
    use crate::fixture::cores;
    use crate::instance::RuntimeKind;
    use crate::learn::Basis;

    fn pool(name: &str, price_micros_per_hour: u64, answer: PoolAnswer) -> AskedPool {
        let (shape, boot_seconds) = (cores(4, 8), 30);
        AskedPool { pool: name.parse().unwrap(), shape, price_micros_per_hour, boot_seconds, answer }
    }

    #[test]
    fn the_cheapest_pool_that_would_run_it_says_what_it_costs() {
        let hour = 3_600_000;
        let expected = Expected { p50_ms: hour / 2, p90_ms: hour, samples: 9, basis: Basis::Version };
        let never = PoolAnswer::Refuses(NeverFits::RuntimeMissing { runtime: RuntimeKind::Docker });
        let mut pools = vec![
            pool("unknown", 0, PoolAnswer::MayLaunch),
            pool("unfit", 1, never),
            pool("dear", 90_000, PoolAnswer::MayLaunch),
            pool("full", 40_000, PoolAnswer::Full { max: 1 }),
        ];
        let told = cost(&pools, &expected).unwrap();
        assert_eq!((told.pool.as_str(), told.p50_micros, told.p90_micros), ("full", 20_000, 40_000));
        pools.truncate(2);
        assert_eq!(cost(&pools, &expected), None, "no price is known");
        let endless = Expected { p50_ms: u64::MAX, p90_ms: u64::MAX, ..expected };
        let told = cost(&[pool("dear", u64::MAX, PoolAnswer::MayLaunch)], &endless).unwrap();
        assert_eq!(told.p90_micros, u64::MAX);
    }
}
