//! Brings the rows up to what the provider says: launches become instances or end, boots succeed or fail, money is
//! counted. A pure step on the world as it was read, then one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::time::Timestamp;

use super::books;
use super::rows::{Bought, BoughtState, Launch, LaunchState};
use super::world::World;
use crate::backend::Backend;
use crate::layout;
use crate::ports::instances::ProvidedInstance;
use crate::ports::table::{MAX_WRITES, Write};
use crate::record::{self, RecordError};

/// Most rows that change in one transaction, with the books.
const MOST: usize = MAX_WRITES - 10;
/// Nobody asks the provider after this, see `act`; then a launch of which nothing is known and that the provider says
/// nothing of is none.
pub(super) const UNSURE: Duration = Duration::from_secs(45);

/// Brings the rows up to date, in `world` too. `false` when the world must be read again: somebody else was faster, or
/// there is more to bring up than goes into one transaction.
pub(super) async fn bring_up(
    backend: &Backend,
    world: &mut World,
    boot_limit: Duration,
    now: Timestamp,
) -> Result<bool, RecordError> {
    let before = world.books.value.clone();
    let (writes, more) = reconcile(world, boot_limit, now)?;
    if writes.is_empty() && (world.books.value == before) {
        return Ok(true);
    }
    match books::write(backend, &world.region, world.books.clone(), writes).await? {
        Some(written) => {
            world.books = written;
            Ok(!more)
        }
        None => Ok(false),
    }
}

/// What is to be written so that the rows are as `world` is afterwards, and whether more is to be done than that.
fn reconcile(
    world: &mut World,
    boot_limit: Duration,
    now: Timestamp,
) -> Result<(Vec<Write>, bool), RecordError> {
    let mut step = Step { world, now, launches: BTreeSet::new(), bought: BTreeSet::new() };
    let all_seen = step.see_new();
    step.follow_boots(boot_limit);
    step.end_launches(boot_limit);
    step.count_money();
    Ok((step.writes()?, !all_seen))
}

struct Step<'w> {
    world: &'w mut World,
    now: Timestamp,
    /// Launches and purchases that have changed.
    launches: BTreeSet<(u64, u32)>,
    bought: BTreeSet<InstanceId>,
}

impl Step<'_> {
    fn has_room(&self) -> bool {
        // A purchase comes with the launch it came from.
        self.launches.len() + self.bought.len() + 2 <= MOST
    }

    /// Notes what the provider lists for the first time. `false` when there is more than goes at once.
    fn see_new(&mut self) -> bool {
        let known = &self.world.bought;
        let new: Vec<(PoolName, u64, InstanceId)> = self
            .world
            .listed()
            .filter(|(_, one)| !known.contains_key(&one.id))
            .map(|(pool, one)| (pool.name.clone(), pool.price_micros_per_hour, one.id))
            .collect();
        for (pool, price_micros_per_hour, instance) in new {
            if !self.has_room() {
                return false;
            }
            let (since, expected_end) = self.take_from_launch(&pool).unwrap_or((self.now, self.now));
            let state = BoughtState::Booting;
            let bought = Bought { instance, pool, price_micros_per_hour, since, expected_end, state };
            self.world.bought.insert(instance, bought);
            self.bought.insert(instance);
        }
        true
    }

    /// One instance of the oldest launch in the pool is there: when it was asked for, and until when it has work.
    fn take_from_launch(&mut self, pool: &PoolName) -> Option<(Timestamp, Timestamp)> {
        let launches = &mut self.world.launches;
        let index = launches.iter().position(|launch| launch.pool == *pool)?;
        let launch = &mut launches[index];
        launch.left = launch.left.saturating_sub(1);
        let found = (launch.requested_at, launch.expected_end);
        self.launches.insert((launch.decision, launch.index));
        if launch.left == 0 {
            launches.remove(index);
        }
        self.world.books.value.launched(pool);
        Some(found)
    }

    /// What has said hello is ready; what has not for too long, or is gone without, has failed.
    fn follow_boots(&mut self, boot_limit: Duration) {
        let words = |one: &ProvidedInstance| one.failed.clone();
        let listed: BTreeMap<InstanceId, Option<String>> =
            self.world.listed().map(|(_, one)| (one.id, words(one))).collect();
        let ids: Vec<InstanceId> = self.world.bought.keys().copied().collect();
        for id in ids {
            let bought = &self.world.bought[&id];
            let said_hello = self.world.instances.contains_key(&id);
            let is_known = self.world.status(&bought.pool).is_some();
            // The provider may know before the time is up.
            let comes_up = listed.get(&id).is_some_and(Option::is_none);
            let in_time = comes_up && self.now < bought.since.after(boot_limit);
            let next = match bought.state {
                BoughtState::Booting | BoughtState::Failed { .. } if said_hello => BoughtState::Ready,
                BoughtState::Booting if is_known && !in_time => BoughtState::Failed { at: self.now },
                same @ (BoughtState::Booting | BoughtState::Ready | BoughtState::Failed { .. }) => same,
            };
            if next != bought.state && self.has_room() {
                let words = listed.get(&id).cloned().flatten();
                self.enter(id, next, words.as_deref());
            }
        }
    }

    /// An instance comes to another state; `words` are the provider's, if it has failed.
    fn enter(&mut self, id: InstanceId, state: BoughtState, words: Option<&str>) {
        let Some(bought) = self.world.bought.get_mut(&id) else { return };
        bought.state = state;
        self.bought.insert(id);
        let books = &mut self.world.books.value;
        match state {
            BoughtState::Ready => books.booted(&bought.pool),
            BoughtState::Failed { at } => {
                books.boot_failed(&bought.pool, at);
                let words = words.unwrap_or("it has not said hello in time, or is gone");
                self.world
                    .notes
                    .push(format!("instance {id} of pool {} does not boot: {words}", bought.pool));
            }
            BoughtState::Booting => {}
        }
    }

    /// Launches that cannot become instances any more.
    fn end_launches(&mut self, boot_limit: Duration) {
        let launches = std::mem::take(&mut self.world.launches);
        for launch in launches {
            let ending = self.has_room().then(|| self.ending(&launch, boot_limit)).flatten();
            let Some(ending) = ending else {
                self.world.launches.push(launch);
                continue;
            };
            self.launches.insert((launch.decision, launch.index));
            match ending {
                Ending::NoCapacity => self.world.books.value.refused(&launch.pool, self.now),
                Ending::Forgotten => {}
            }
        }
    }

    fn ending(&self, launch: &Launch, boot_limit: Duration) -> Option<Ending> {
        let Some(status) = self.world.status(&launch.pool) else { return Some(Ending::Forgotten) };
        let age = self.now.since(launch.requested_at);
        match launch.state {
            LaunchState::Asked if age >= boot_limit => Some(Ending::NoCapacity),
            LaunchState::Reserved | LaunchState::Unknown if age >= UNSURE && status.pending == 0 => {
                Some(Ending::Forgotten)
            }
            LaunchState::Reserved | LaunchState::Unknown if age >= boot_limit.max(UNSURE) => {
                Some(Ending::NoCapacity)
            }
            LaunchState::Asked | LaunchState::Reserved | LaunchState::Unknown => None,
        }
    }

    fn count_money(&mut self) {
        let world = &mut *self.world;
        let running: Vec<(u64, Timestamp)> = world
            .listed()
            .filter_map(|(_, one)| world.bought.get(&one.id))
            .map(|bought| (bought.price_micros_per_hour, bought.since))
            .collect();
        // Nothing to count needs no write, what comes later counts from when it comes; but a month that is over is over
        // for those too who wait for the next one.
        let spent = &world.books.value.spent;
        if !running.is_empty() || spent.is_over(self.now) {
            world.books.value.spent = spent.counted(running, self.now);
        }
    }

    fn writes(&self) -> Result<Vec<Write>, RecordError> {
        let region: &RegionName = &self.world.region;
        let mut writes = Vec::new();
        for &(decision, index) in &self.launches {
            let left = |launch: &&Launch| (launch.decision, launch.index) == (decision, index);
            writes.push(match self.world.launches.iter().find(left) {
                Some(launch) => launch.put(region)?,
                None => record::delete(layout::launch(region, decision, index)),
            });
        }
        for id in &self.bought {
            writes.push(self.world.bought[id].put(region)?);
        }
        Ok(writes)
    }
}

/// Why a launch ends without its instances.
enum Ending {
    /// The provider has taken it on, and nothing came.
    NoCapacity,
    /// It was never taken on, or its pool is gone.
    Forgotten,
}
