//! A provider of instances that does as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::time::Timestamp;

use crate::ports::instances::{Instances, InstancesError, PoolStatus, ProvidedInstance};

/// How the next launch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weather {
    /// There is no capacity.
    Full,
    /// No answer, and nothing done.
    LostBefore,
    /// No answer, and everything done.
    LostAfter,
    /// It is taken on, and nobody hears of it until `deliver`.
    Slow,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, PoolName>,
    pools: Vec<PoolName>,
    weather: VecDeque<Weather>,
    slow: Vec<(PoolName, u32)>,
    broken: Vec<InstanceId>,
    made: u128,
    most: usize,
    asked: u32,
}

pub(super) struct Cloud {
    state: Mutex<State>,
}

impl Cloud {
    pub(super) fn new(pools: &[&str]) -> Self {
        let pools = pools.iter().map(|pool| pool.parse().unwrap()).collect();
        Self { state: Mutex::new(State { pools, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn add(&self, pool: &PoolName) {
        self.state().pools.push(pool.clone());
    }

    /// How the next launches go.
    pub(super) fn next(&self, weather: impl IntoIterator<Item = Weather>) {
        self.state().weather.extend(weather);
    }

    pub(super) fn ids(&self) -> Vec<InstanceId> {
        self.state().instances.keys().copied().collect()
    }

    pub(super) fn pool_of(&self, id: InstanceId) -> PoolName {
        self.state().instances.get(&id).cloned().unwrap_or_else(|| "small".parse().unwrap())
    }

    /// Most instances that there ever were at once.
    pub(super) fn most(&self) -> usize {
        self.state().most
    }

    /// Instances that were asked for, ever.
    pub(super) fn asked(&self) -> u32 {
        self.state().asked
    }

    fn asked_for(&self, pool: &PoolName, count: u32) -> Result<(), InstancesError> {
        let mut state = self.state();
        state.asked += count;
        let silent = || Err(InstancesError::Unavailable("made to fail".to_owned()));
        match state.weather.pop_front() {
            None => {
                state.make(pool, count);
                Ok(())
            }
            Some(Weather::Full) => {
                let problem = "made to fail".to_owned();
                Err(InstancesError::NoCapacity { pool: pool.clone(), problem })
            }
            Some(Weather::LostBefore) => silent(),
            Some(Weather::LostAfter) => {
                state.make(pool, count);
                silent()
            }
            Some(Weather::Slow) => {
                state.slow.push((pool.clone(), count));
                Ok(())
            }
        }
    }

    /// An instance does not come up, and the provider knows.
    pub(super) fn break_down(&self, id: InstanceId) {
        self.state().broken.push(id);
    }

    /// What was slow is there.
    pub(super) fn deliver(&self) {
        let slow = std::mem::take(&mut self.state().slow);
        slow.into_iter().for_each(|(pool, count)| self.state().make(&pool, count));
    }

    /// The market takes an instance away.
    pub(super) fn take(&self, id: InstanceId) {
        self.state().instances.remove(&id);
    }
}

impl State {
    fn make(&mut self, pool: &PoolName, count: u32) {
        for _ in 0..count {
            self.made += 1;
            let id = InstanceId::new(Timestamp::from_millis(1), self.made);
            self.instances.insert(id, pool.clone());
        }
        self.most = self.most.max(self.instances.len());
    }
}

#[async_trait]
impl Instances for Cloud {
    async fn status(&self, pool: &PoolName) -> Result<PoolStatus, InstancesError> {
        tokio::task::yield_now().await;
        let state = self.state();
        if !state.pools.contains(pool) {
            return Err(InstancesError::NoSuchPool(pool.clone()));
        }
        let of_pool = state.instances.iter().filter(|(_, of)| *of == pool);
        let broken = |id: &InstanceId| state.broken.contains(id).then(|| "exit status: 1".to_owned());
        let provided = |id: &InstanceId| ProvidedInstance { id: *id, running: true, failed: broken(id) };
        let instances = of_pool.map(|(id, _)| provided(id)).collect();
        Ok(PoolStatus { instances, pending: 0 })
    }

    async fn launch(&self, pool: &PoolName, count: u32) -> Result<(), InstancesError> {
        tokio::task::yield_now().await;
        let done = self.asked_for(pool, count);
        // The answer is on its way: whoever dies now never hears it.
        tokio::task::yield_now().await;
        done
    }

    async fn retire(&self, _pool: &PoolName, instance: InstanceId) -> Result<(), InstancesError> {
        tokio::task::yield_now().await;
        self.take(instance);
        Ok(())
    }
}
