//! A small cloud, a manager and agents that do what a test says, and ticks over them.

mod cloud;
mod drains;
mod launching;
mod records;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde_json::json;
use telecine_domain::autoscale::{Amounts, Caps, Policy, ScaleAction, Waiting};
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::instance::Instance;
use telecine_domain::pool::Pool;
use telecine_domain::time::Timestamp;

use super::{Observation, Settings, TickError, Ticked, observe, tick};
use crate::backend::Backend;
use crate::contract::HandClock;
use crate::cordon::{self, CordonState};
use crate::fixture::region;
use crate::memory::MemoryTable;
use crate::{fleet, pools};

use cloud::Cloud;

/// Time between two ticks.
const TICK: Duration = Duration::from_secs(5);
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// A region that is scaled.
struct Sky {
    clock: HandClock,
    backend: Backend,
    table: Arc<MemoryTable>,
    cloud: Arc<Cloud>,
    settings: Settings,
    observed: u64,
    jobs: u32,
}

fn name(name: &str) -> PoolName {
    name.parse().unwrap()
}

/// One job fills an instance of `small`; `large` is for the same job, and dearer.
fn declared(name: &str, cpu: u64, price_micros_per_hour: u64, max: u32) -> Pool {
    serde_json::from_value(json!({
        "name": name, "region": "local", "shape": {"cpu_milli": cpu, "memory_bytes": 1_u64 << 33},
        "market": "on_demand", "price_micros_per_hour": price_micros_per_hour, "boot_seconds": 10,
        "min": 0, "max": max,
    }))
    .unwrap()
}

impl Sky {
    async fn new() -> Self {
        let clock = HandClock::at(Timestamp::from_millis(1_795_359_845_120));
        let (mut backend, table) = Backend::memory(clock.clock());
        let cloud = Arc::new(Cloud::new(&["small", "large"]));
        backend.instances = cloud.clone();
        let pools = [declared("small", 2000, 100_000, 9), declared("large", 8000, 900_000, 9)];
        pools::declare(&backend, &pools).await.unwrap();
        let settings = Settings { policy: Policy::thrift(), boot_limit: BOOT_LIMIT };
        Self { clock, backend, table, cloud, settings, observed: 0, jobs: 0 }
    }

    /// The same with a cap on instances, after a first tick: there are books.
    async fn capped(instances: u32) -> Self {
        let mut sky = Self::new().await;
        sky.settings.policy.caps = Caps { instances: Some(instances), ..Caps::default() };
        sky.tick().await;
        sky
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// So many jobs wait, each of which fills an instance of `small`.
    async fn wait(&mut self, jobs: u32) {
        self.jobs = jobs;
        self.look().await;
    }

    /// The manager writes down what waits.
    async fn look(&mut self) {
        self.observed += 1;
        let waiting = Waiting {
            need: Amounts { cpu_milli: 2000, memory_mib: 100, ..Amounts::ZERO },
            interruptible: true,
            count: self.jobs,
            expected_ms: 60_000,
            oldest: self.now(),
            start_by: None,
        };
        let lines = if self.jobs == 0 { Vec::new() } else { vec![waiting] };
        let observation = Observation { term: 1, sequence: self.observed, observed_at: self.now(), lines };
        assert!(observe(&self.backend, &region(), &observation).await.unwrap());
    }

    async fn try_tick(&self) -> Result<Ticked, TickError> {
        tick(&self.backend, &region(), &self.settings, self.now()).await
    }

    /// A tick, some time after the one before, on a fresh look.
    async fn tick(&mut self) -> Ticked {
        self.clock.advance(TICK);
        self.look().await;
        self.try_tick().await.unwrap()
    }

    async fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.tick().await;
        }
    }

    /// A tick whose process dies after so many steps. `false` when it was over before.
    async fn dies_at(&mut self, steps: u32) -> bool {
        self.clock.advance(TICK);
        self.look().await;
        let mut ticking = pin!(self.try_tick());
        let mut left = steps;
        std::future::poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(true);
            }
            left -= 1;
            match ticking.as_mut().poll(context) {
                Poll::Ready(_) => Poll::Ready(false),
                Poll::Pending => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// An agent has said hello, or holds so many leases now.
    async fn seen(&self, id: InstanceId, leases: u32, state: &str) {
        let allocated = if leases > 0 { json!({"cpu_milli": 2000}) } else { json!({}) };
        let expected_end = (leases > 0).then(|| self.now().after(Duration::from_secs(60)));
        let seen: Instance = serde_json::from_value(json!({
            "profile": {
                "id": id, "region": region(), "pool": self.cloud.pool_of(id), "host": "box",
                "agent_version": "0.1.0", "capacity": {"cpu_milli": 2000, "memory_bytes": 1_u64 << 33},
                "runtimes": ["process"],
            },
            "state": state, "allocated": allocated, "state_since": self.now(), "leases": leases,
            "idle_since": self.now(), "expected_end": expected_end,
        }))
        .unwrap();
        fleet::put_instance(&self.backend, &seen).await.unwrap();
    }

    /// Everybody that is there is ready and idle.
    async fn all_ready(&self) {
        for id in self.cloud.ids() {
            self.seen(id, 0, "ready").await;
        }
    }

    /// The manager relays what stands, and agents without leases acknowledge it.
    async fn acknowledge(&self) {
        for cordoned in cordon::of_region(&self.backend, &region()).await.unwrap() {
            let seen = fleet::instance(&self.backend, cordoned.instance).await.unwrap();
            if seen.is_some_and(|seen| seen.leases == 0) {
                let (id, number) = (cordoned.instance, cordoned.number);
                let done = cordon::acknowledge(&self.backend, &region(), id, number, self.now()).await;
                let _stale_is_normal = done.unwrap();
            }
        }
    }

    async fn cordon_of(&self, id: InstanceId) -> Option<CordonState> {
        cordon::of(&self.backend, &region(), id).await.unwrap().map(|cordoned| cordoned.state)
    }

    /// Rows whose partition ends like this.
    fn rows(&self, partition: &str) -> usize {
        self.table.rows().iter().filter(|row| row.key.partition.ends_with(partition)).count()
    }
}

fn actions(ticked: &Ticked) -> Vec<&'static str> {
    ticked.decision.actions.iter().map(|planned| planned.action.code()).collect()
}

fn launches(ticked: &Ticked) -> Vec<(String, u32)> {
    let actions = ticked.decision.actions.iter();
    actions
        .filter_map(|planned| match &planned.action {
            ScaleAction::Launch { pool, count, .. } => Some((pool.to_string(), *count)),
            ScaleAction::Cordon { .. } | ScaleAction::Uncordon { .. } | ScaleAction::Terminate { .. } => None,
        })
        .collect()
}

fn codes(ticked: &Ticked) -> Vec<&'static str> {
    ticked.decision.reasons.iter().map(telecine_domain::autoscale::Reason::code).collect()
}
