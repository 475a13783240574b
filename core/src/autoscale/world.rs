//! Everything a tick looks at, in an order that never counts too little: the books before the launches, the launches
//! before the provider. What becomes an instance in between is seen twice, or the books have changed.

use std::collections::BTreeMap;

use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::instance::Instance;
use telecine_domain::pool::Pool;
use telecine_domain::time::Timestamp;

use super::TickError;
use super::books::{self, Books};
use super::observation::{self, Observation};
use super::rows::{Bought, Launch};
use crate::backend::Backend;
use crate::cordon::{self, Cordoned};
use crate::ports::instances::{InstancesError, PoolStatus, ProvidedInstance};
use crate::ports::table::Source;
use crate::record::{self, Versioned};
use crate::{fleet, layout, pools};

/// A region at one moment.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) region: RegionName,
    pub(super) books: Versioned<Books>,
    /// The oldest first.
    pub(super) launches: Vec<Launch>,
    pub(super) bought: BTreeMap<InstanceId, Bought>,
    /// The pools that the provider knows, and what it knows of them.
    pub(super) pools: Vec<(Pool, PoolStatus)>,
    /// What the manager has written of instances.
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    pub(super) cordons: BTreeMap<InstanceId, Cordoned>,
    pub(super) observation: Option<Observation>,
    /// What somebody ought to know, for people.
    pub(super) notes: Vec<String>,
}

impl World {
    pub(super) async fn read(
        backend: &Backend,
        region: &RegionName,
        now: Timestamp,
    ) -> Result<Self, TickError> {
        let table = backend.table.as_ref();
        let books = books::read(backend, region, now).await?;
        let launches = record::all(table, Source::Rows, layout::launches_of(region)).await?;
        let bought: Vec<Bought> = record::all(table, Source::Rows, layout::bought_of(region)).await?;
        let (mut known, mut notes) = (Vec::new(), Vec::new());
        for pool in pools::list(backend).await?.into_iter().filter(|pool| pool.region == *region) {
            match backend.instances.status(&pool.name).await {
                Ok(status) => known.push((pool, status)),
                Err(InstancesError::NoSuchPool(pool)) => {
                    notes.push(format!("the provider knows no pool {pool}"))
                }
                Err(error) => return Err(error.into()),
            }
        }
        let instances = fleet::instances(backend, region).await?;
        let cordons = cordon::of_region(backend, region).await?;
        Ok(Self {
            region: region.clone(),
            books,
            launches,
            bought: bought.into_iter().map(|bought| (bought.instance, bought)).collect(),
            pools: known,
            instances: instances.into_iter().map(|instance| (instance.profile.id, instance)).collect(),
            cordons: cordons.into_iter().map(|cordoned| (cordoned.instance, cordoned)).collect(),
            observation: observation::observed(backend, region).await?,
            notes,
        })
    }

    /// What the provider knows of a pool.
    pub(super) fn status(&self, pool: &PoolName) -> Option<&PoolStatus> {
        self.pools.iter().find(|(known, _)| known.name == *pool).map(|(_, status)| status)
    }

    /// Every instance that the provider lists, with its pool.
    pub(super) fn listed(&self) -> impl Iterator<Item = (&Pool, &ProvidedInstance)> {
        self.pools.iter().flat_map(|(pool, status)| status.instances.iter().map(move |one| (pool, one)))
    }
}
