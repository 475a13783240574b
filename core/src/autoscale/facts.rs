//! The world as the pure decision looks at it.

use std::time::Duration;

use telecine_domain::autoscale::{
    Amounts, Cordon, InstanceFacts, LaunchFacts, Life, Market, PoolFacts, Snapshot,
};
use telecine_domain::instance::{Instance, InstanceState};
use telecine_domain::pool::Pool;
use telecine_domain::time::Timestamp;

use super::rows::{Bought, BoughtState};
use super::world::World;
use crate::cordon::{CordonState, Cordoned};
use crate::ports::instances::PoolStatus;

/// What runs longer than expected is expected to take as long again as it is overdue, at least this.
const OVERDUE: Duration = Duration::from_secs(60);
/// Of a thousand spot instances so many are taken away in an hour, as long as nothing better is known.
const SPOT_INTERRUPTIONS: u32 = 10;
/// Expected run times are measured at this speed; pools have no other yet.
const SPEED_MILLI: u32 = 1000;

/// One observation of the region, for [`telecine_domain::autoscale::decide`]. Without an observation of the queue its
/// time is the beginning of time, which no policy acts upon.
pub(super) fn snapshot(world: &World, now: Timestamp) -> Snapshot {
    let observation = world.observation.as_ref();
    Snapshot {
        observed_at: observation.map_or(Timestamp::default(), |observation| observation.observed_at),
        queue: observation.map(|observation| observation.lines.clone()).unwrap_or_default(),
        instances: world
            .listed()
            .filter_map(|(pool, one)| Some(instance(world, pool, world.bought.get(&one.id)?, now)))
            .collect(),
        launches: launches(world, now),
        pools: world.pools.iter().map(|(declared, _)| pool(world, declared)).collect(),
        spent_this_month_micros: world.books.value.spent.micros,
    }
}

/// What was asked for here, and what the provider still means to bring beyond that.
fn launches(world: &World, now: Timestamp) -> Vec<LaunchFacts> {
    let ours = world.launches.iter().filter(|launch| world.status(&launch.pool).is_some());
    let mut launches: Vec<LaunchFacts> = ours
        .map(|launch| LaunchFacts {
            pool: launch.pool.clone(),
            count: launch.left,
            requested_at: launch.requested_at,
            expected_end: launch.expected_end,
        })
        .collect();
    for (declared, PoolStatus { pending, .. }) in &world.pools {
        let of_pool = launches.iter().filter(|launch| launch.pool == declared.name);
        let asked = of_pool.map(|launch| launch.count).fold(0, u32::saturating_add);
        let count = pending.saturating_sub(asked);
        if count > 0 {
            let pool = declared.name.clone();
            launches.push(LaunchFacts { pool, count, requested_at: now, expected_end: now });
        }
    }
    launches
}

fn pool(world: &World, declared: &Pool) -> PoolFacts {
    let memory = world.books.value.pools.get(&declared.name).copied().unwrap_or_default();
    // What is declared to cost nothing costs next to nothing: comparisons of money go on holding.
    let price = match declared.market {
        Market::Reserved => declared.price_micros_per_hour,
        Market::OnDemand | Market::Spot => declared.price_micros_per_hour.max(1),
    };
    PoolFacts {
        name: declared.name.clone(),
        capacity: Amounts::offered(&declared.shape),
        market: declared.market,
        price_micros_per_hour: price,
        speed_milli: SPEED_MILLI,
        boot_ms: u64::from(declared.boot_seconds) * 1000,
        interruptions_per_1000_hours: if declared.market == Market::Spot { SPOT_INTERRUPTIONS } else { 0 },
        min: declared.min,
        max: declared.max,
        standby: 0,
        refused: memory.refused,
        boot_failures: memory.boot_failures,
    }
}

fn instance(world: &World, pool: &Pool, bought: &Bought, now: Timestamp) -> InstanceFacts {
    let id = bought.instance;
    let cordoned = world.cordons.get(&id);
    let shape = Amounts::offered(&pool.shape);
    let common = InstanceFacts {
        id,
        pool: pool.name.clone(),
        life: life(bought, world.instances.get(&id), cordoned),
        launched_at: bought.since,
        capacity: shape,
        free: shape,
        leases: 0,
        idle_since: bought.since,
        expected_end: bought.expected_end,
        last_cordon: cordoned.map_or(0, |cordoned| cordoned.number),
        cordon: cordoned.and_then(standing),
        notice: None,
        rebalance: false,
    };
    match world.instances.get(&id) {
        Some(seen) => described(common, seen, now),
        None => common,
    }
}

/// With what the manager has written of it.
fn described(facts: InstanceFacts, seen: &Instance, now: Timestamp) -> InstanceFacts {
    let capacity = Amounts::offered(&seen.profile.capacity);
    InstanceFacts {
        capacity,
        free: capacity.minus(&Amounts::needed(&seen.allocated)),
        leases: seen.leases,
        // A record of before this was recorded says nothing of it.
        idle_since: seen.idle_since.max(facts.launched_at),
        expected_end: expected_end(seen, now),
        notice: seen.notice,
        rebalance: seen.rebalance,
        ..facts
    }
}

fn expected_end(seen: &Instance, now: Timestamp) -> Timestamp {
    match seen.expected_end {
        None => now,
        Some(end) if end > now => end,
        Some(end) => now.after(now.since(end).max(OVERDUE)),
    }
}

fn life(bought: &Bought, seen: Option<&Instance>, cordoned: Option<&Cordoned>) -> Life {
    let is_claimed = |cordoned: &Cordoned| matches!(cordoned.state, CordonState::Terminating { .. });
    if cordoned.is_some_and(is_claimed) {
        return Life::Terminating;
    }
    match (bought.state, seen.map(|seen| seen.state)) {
        (BoughtState::Failed { .. }, _) => Life::Terminating,
        (BoughtState::Booting, _) => Life::Booting,
        (BoughtState::Ready, Some(InstanceState::Ready | InstanceState::Cordoned)) => Life::Ready,
        (
            BoughtState::Ready,
            Some(
                InstanceState::Unhealthy
                | InstanceState::Draining
                | InstanceState::Disconnected
                | InstanceState::Lost,
            )
            | None,
        ) => Life::Away,
    }
}

fn standing(cordoned: &Cordoned) -> Option<Cordon> {
    let acknowledged = match cordoned.state {
        CordonState::Standing { acknowledged_at } => acknowledged_at.is_some(),
        CordonState::Terminating { .. } => true,
        CordonState::Lifted => return None,
    };
    Some(Cordon { number: cordoned.number, cause: cordoned.cause, acknowledged })
}
