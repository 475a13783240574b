//! The pools as offers: which can be bought from now, and what a job would cost on an instance of its own.

use std::collections::BTreeMap;

use super::fit::{Cost, Load, Terms, price_with_redo};
use super::{Market as Kind, Policy, PoolFacts, PoolProblem, Reason, Snapshot, Trouble};
use crate::id::PoolName;
use crate::time::Timestamp;

/// Shortest run that a purchase is justified with, so that very short jobs count at all.
const SHORTEST_RUN_MS: u64 = 20_000;
/// Longest time for which a pool without capacity is avoided.
const LONGEST_AVOIDANCE_MS: u64 = 3_600_000;

/// A pool and how it stands.
#[derive(Debug)]
pub(super) struct Offer<'a> {
    pub(super) pool: &'a PoolFacts,
    /// Instances that are there or asked for.
    pub(super) present: u32,
    /// Fewest it is to have now.
    pub(super) min: u32,
    /// Whether its description makes sense.
    pub(super) valid: bool,
    /// Whether it can be bought from now.
    pub(super) open: bool,
}

impl Offer<'_> {
    pub(super) const fn terms(&self) -> Terms {
        Terms {
            price: self.pool.price_micros_per_hour,
            speed_milli: self.pool.speed_milli,
            is_spot: matches!(self.pool.market, Kind::Spot),
        }
    }

    /// Whether an empty instance of it may take the job. GPUs are not bought for jobs that need none.
    pub(super) fn suits(&self, load: &Load) -> bool {
        self.valid
            && load.need.fits_in(&self.pool.capacity)
            && (load.need.gpu_milli > 0 || self.pool.capacity.gpu_milli == 0)
            && (load.interruptible || self.pool.market != Kind::Spot)
    }

    pub(super) fn price_for(&self, run_ms: u64, policy: &Policy) -> u64 {
        let pool = self.pool;
        price_with_redo(
            pool.price_micros_per_hour,
            pool.interruptions_per_1000_hours,
            run_ms,
            policy.redo_milli,
        )
    }

    /// How many more it may have.
    pub(super) fn left(&self) -> u32 {
        if self.open { self.pool.max.saturating_sub(self.present) } else { 0 }
    }
}

/// Every pool, by position in the snapshot and by name.
#[derive(Debug)]
pub(super) struct Market<'a> {
    pub(super) offers: Vec<Offer<'a>>,
    by_name: BTreeMap<&'a PoolName, usize>,
}

impl<'a> Market<'a> {
    /// Opens what can be bought from, and tells why the rest is closed.
    pub(super) fn open(
        snapshot: &'a Snapshot,
        policy: &Policy,
        now: Timestamp,
        reasons: &mut Vec<Reason>,
    ) -> Self {
        let mut market = Self { offers: Vec::new(), by_name: BTreeMap::new() };
        for pool in &snapshot.pools {
            let problem = market.problem(pool);
            let closed = problem
                .map(|problem| Reason::PoolInvalid { pool: pool.name.clone(), problem })
                .or_else(|| closed(pool, policy, now));
            let (valid, open) = (problem.is_none(), closed.is_none());
            reasons.extend(closed);
            let min = minimum(pool, policy, now);
            market.by_name.entry(&pool.name).or_insert(market.offers.len());
            market.offers.push(Offer { pool, present: 0, min, valid, open });
        }
        for instance in &snapshot.instances {
            market.add_present(&instance.pool, 1);
        }
        for launch in &snapshot.launches {
            market.add_present(&launch.pool, launch.count);
        }
        market
    }

    fn add_present(&mut self, pool: &PoolName, count: u32) {
        if let Some(&index) = self.by_name.get(pool) {
            let offer = &mut self.offers[index];
            offer.present = offer.present.saturating_add(count);
        }
    }

    fn problem(&self, pool: &PoolFacts) -> Option<PoolProblem> {
        if self.by_name.contains_key(&pool.name) {
            return Some(PoolProblem::Duplicate);
        }
        if pool.capacity.cpu_milli == 0 || pool.capacity.memory_mib == 0 {
            return Some(PoolProblem::ImpossibleShape);
        }
        if pool.price_micros_per_hour == 0 && pool.market != Kind::Reserved {
            return Some(PoolProblem::PriceMissing);
        }
        if pool.min > pool.max {
            return Some(PoolProblem::MinAboveMax);
        }
        (pool.speed_milli == 0).then_some(PoolProblem::SpeedZero)
    }

    pub(super) fn index(&self, pool: &PoolName) -> Option<usize> {
        self.by_name.get(pool).copied()
    }

    pub(super) fn offer(&self, pool: &PoolName) -> Option<&Offer<'a>> {
        self.index(pool).map(|index| &self.offers[index])
    }

    /// What the job costs on the cheapest instance of its own that can be bought now, boot included.
    pub(super) fn alone(&self, load: &Load, policy: &Policy) -> Option<Cost> {
        let cost = |offer: &Offer<'_>| {
            let run = load.run_ms(offer.pool.speed_milli);
            Cost::from(offer.price_for(run, policy)) * Cost::from(run.saturating_add(offer.pool.boot_ms))
        };
        self.offers.iter().filter(|offer| offer.left() > 0 && offer.suits(load)).map(cost).min()
    }

    /// What running the job is worth: its run on the cheapest instance that could hold it.
    pub(super) fn worth(&self, load: &Load, policy: &Policy) -> Cost {
        let cost = |offer: &Offer<'_>| {
            let run = load.run_ms(offer.pool.speed_milli).max(SHORTEST_RUN_MS);
            Cost::from(offer.price_for(run, policy)) * Cost::from(run)
        };
        self.offers.iter().filter(|offer| offer.open && offer.suits(load)).map(cost).min().unwrap_or(0)
    }

    /// Whether some pool could ever hold the job.
    pub(super) fn could_hold(&self, load: &Load) -> bool {
        self.offers.iter().any(|offer| offer.pool.max > 0 && offer.suits(load))
    }
}

fn minimum(pool: &PoolFacts, policy: &Policy, now: Timestamp) -> u32 {
    // What a schedule asks for is to be ready when its time begins.
    let ahead = Timestamp::from_millis(now.as_millis().saturating_add(pool.boot_ms));
    let scheduled = policy
        .schedules
        .iter()
        .filter(|schedule| schedule.pool == pool.name)
        .filter(|schedule| schedule.holds_at(now) || schedule.holds_at(ahead))
        .map(|schedule| schedule.min);
    scheduled.max().unwrap_or(0).max(pool.min).min(pool.max)
}

/// Why a pool that makes sense cannot be bought from now.
fn closed(pool: &PoolFacts, policy: &Policy, now: Timestamp) -> Option<Reason> {
    let name = || pool.name.clone();
    let broken = pool.boot_failures.filter(|trouble| trouble.times >= policy.breaker.failures.max(1));
    let broken = broken.map(|trouble| after(trouble.last, policy.breaker.pause_ms));
    if let Some(until) = broken.filter(|&until| now < until) {
        return Some(Reason::PoolBroken { pool: name(), until });
    }
    let refused = pool.refused.map(|trouble| after(trouble.last, avoidance_ms(trouble, policy)));
    refused.filter(|&until| now < until).map(|until| Reason::PoolRefused { pool: name(), until })
}

fn avoidance_ms(trouble: Trouble, policy: &Policy) -> u64 {
    let doublings = trouble.times.saturating_sub(1).min(16);
    let longest = LONGEST_AVOIDANCE_MS.max(policy.refusal_memory_ms);
    policy.refusal_memory_ms.saturating_mul(1 << doublings).min(longest)
}

fn after(time: Timestamp, ms: u64) -> Timestamp {
    Timestamp::from_millis(time.as_millis().saturating_add(ms))
}
