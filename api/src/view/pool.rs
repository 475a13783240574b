//! Pools, as callers see them.

use serde::{Deserialize, Serialize};
use telecine_core::pools::PoolNow;
use telecine_domain::autoscale::Market;
use utoipa::ToSchema;

use super::values::Resources;

/// Instances of one shape and one market.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name.
    pub id: String,
    /// Its region.
    pub region: String,
    /// `on_demand`, `reserved` or `spot`.
    #[schema(value_type = String)]
    pub market: Market,
    /// What jobs may use of one instance.
    pub shape: Resources,
    /// The price of one instance and hour, in millionths of a US dollar.
    pub price_micros_per_hour: u64,
    /// Usual time from asking for an instance to having it.
    pub boot_seconds: u32,
    /// Fewest instances.
    pub min: u32,
    /// Most instances.
    pub max: u32,
    /// Instances that run.
    pub running: u32,
    /// Instances that start or go away, and launches that have no instance yet.
    pub changing: u32,
}

impl From<PoolNow> for Pool {
    fn from(from: PoolNow) -> Self {
        let PoolNow { pool, status } = from;
        let running = status.instances.iter().filter(|instance| instance.running).count();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            id: pool.name.to_string(),
            region: pool.region.to_string(),
            market: pool.market,
            shape: pool.shape.into(),
            price_micros_per_hour: pool.price_micros_per_hour,
            boot_seconds: pool.boot_seconds,
            min: pool.min,
            max: pool.max,
            running: count(running),
            changing: count(status.instances.len() - running).saturating_add(status.pending),
        }
    }
}
