//! The policy under test: the platform's own autoscaler, with jobs placed by the same reckoning.

use std::collections::BTreeMap;

use telecine_domain::autoscale::fit::{Cost, Load, Room, Terms};
use telecine_domain::autoscale::{
    self as autoscale, Amounts, Cordon, CordonCause, InstanceFacts, Market, PoolFacts, ScaleAction, Snapshot,
    Trouble, Waiting, decide,
};
use telecine_domain::id::InstanceId;
use telecine_domain::time::Timestamp;

use crate::catalog::Kind;
use crate::cloud::{Act, Cloud, Life, Node, Policy, Rank};
use crate::workload::Job;

/// 2026-01-01T00:00:00Z: when simulated time begins, in milliseconds. A Thursday.
const BEGINNING: u64 = 1_767_225_600_000;
const MICROS: f64 = 1e6;
/// The speed that run times are measured at.
const SPEED: u32 = 1000;
/// How finely run times are told apart in the queue: steps per factor of e.
const LENGTHS: f64 = 4.0;

/// The platform's autoscaler in a simulated cloud.
#[derive(Debug)]
pub struct Telecine {
    name: String,
    policy: autoscale::Policy,
    is_spot: bool,
    pools: Vec<PoolFacts>,
    /// By job: what it costs on the cheapest instance of its own.
    alone: Vec<Option<Cost>>,
    /// By instance: the number of its last cordon, and the one that stands.
    cordons: BTreeMap<usize, (u64, Option<Cordon>)>,
    last_decision: Option<autoscale::ScaleDecision>,
    /// The cloud's version at the last look, and until when the answer stays the same while nothing happens.
    settled: Option<(u64, f64)>,
}

impl Telecine {
    /// A policy over all kinds in one market.
    ///
    /// # Panics
    /// When a kind's name is not the name of a pool: catalogues are checked when they are read.
    pub fn new(name: &str, policy: autoscale::Policy, kinds: &[Kind], jobs: &[Job], is_spot: bool) -> Self {
        let pools: Vec<PoolFacts> = kinds.iter().map(|kind| pool(kind, is_spot)).collect();
        let alone = jobs.iter().map(|job| autoscale::alone(&pools, &load(job), &policy)).collect();
        Self {
            name: name.to_owned(),
            policy,
            is_spot,
            pools,
            alone,
            cordons: BTreeMap::new(),
            last_decision: None,
            settled: None,
        }
    }

    /// The last decision that did something.
    pub const fn last_decision(&self) -> Option<&autoscale::ScaleDecision> {
        self.last_decision.as_ref()
    }

    /// Replaces the jobs; what is known of instances by their positions is forgotten.
    pub(crate) fn expect(&mut self, jobs: &[Job]) {
        self.alone = jobs.iter().map(|job| autoscale::alone(&self.pools, &load(job), &self.policy)).collect();
        self.cordons.clear();
    }

    fn snapshot(&self, cloud: &Cloud<'_>) -> Snapshot {
        Snapshot {
            observed_at: stamp(cloud.now),
            queue: self.queue(cloud),
            instances: cloud.live.iter().map(|&index| self.instance(cloud, index)).collect(),
            launches: Vec::new(),
            pools: self.pools.clone(),
            spent_this_month_micros: 0,
        }
    }

    /// The queue, alike jobs in one line.
    fn queue(&self, cloud: &Cloud<'_>) -> Vec<Waiting> {
        struct Alike {
            count: u32,
            total: f64,
            oldest: f64,
            start_by: f64,
        }
        let mut lines: BTreeMap<(u32, u32, u32, i32, bool), Alike> = BTreeMap::new();
        let reserve = self.policy.patience.reserve_ms as f64 / 1000.0;
        for &index in &cloud.pending {
            let job = &cloud.jobs[index];
            let start_by = job.arrival + job.slack;
            let length = (job.estimate.max(1.0).ln() * LENGTHS) as i32;
            let key = (job.cpu, job.memory, job.gpu, length, cloud.now + reserve < start_by);
            let line =
                lines.entry(key).or_insert(Alike { count: 0, total: 0.0, oldest: job.arrival, start_by });
            line.count += 1;
            line.total += job.estimate;
            line.oldest = line.oldest.min(job.arrival);
            line.start_by = line.start_by.min(start_by);
        }
        let waiting = |((cpu, memory, gpu, _, _), alike): ((u32, u32, u32, i32, bool), Alike)| Waiting {
            need: amounts([u64::from(cpu), u64::from(memory), u64::from(gpu)]),
            interruptible: true,
            count: alike.count,
            expected_ms: millis(alike.total / f64::from(alike.count)),
            oldest: stamp(alike.oldest),
            start_by: Some(stamp(alike.start_by)),
        };
        lines.into_iter().map(waiting).collect()
    }

    fn instance(&self, cloud: &Cloud<'_>, index: usize) -> InstanceFacts {
        let node = &cloud.nodes[index];
        let (last_cordon, cordon) = self.cordons.get(&index).copied().unwrap_or((0, None));
        InstanceFacts {
            id: id_of(index),
            pool: self.pools[node.kind].name.clone(),
            life: match node.life {
                Life::Booting => autoscale::Life::Booting,
                Life::Ready => autoscale::Life::Ready,
                Life::Gone => autoscale::Life::Terminating,
            },
            launched_at: stamp(node.launched),
            capacity: self.pools[node.kind].capacity,
            free: free(node),
            leases: u32::try_from(node.jobs.len()).unwrap_or(u32::MAX),
            idle_since: stamp(node.idle_since),
            expected_end: stamp(node.expected_end),
            last_cordon,
            cordon,
            notice: None,
            rebalance: false,
        }
    }

    /// When the same cloud would be answered differently only because time has passed: a hold is over, or the patience
    /// of a job.
    fn settled_until(&self, cloud: &Cloud<'_>) -> f64 {
        let hold = |node: usize| {
            let boot_ms = self.pools[cloud.nodes[node].kind].boot_ms;
            let idle = cloud.idle_for(node).map(|_| cloud.nodes[node].idle_since);
            idle.map_or(f64::MAX, |since| since + self.policy.idle.hold_ms(boot_ms) as f64 / 1000.0)
        };
        let holds = cloud.live.iter().map(|&node| hold(node));
        let reserve = self.policy.patience.reserve_ms as f64 / 1000.0;
        let patience = cloud.pending.iter().map(|&job| {
            let over = cloud.jobs[job].arrival + cloud.jobs[job].slack - reserve;
            if over >= cloud.now { over } else { f64::MAX }
        });
        let settle = self.policy.settle_ms as f64 / 1000.0;
        let settling = cloud.pending.iter().map(|&job| {
            let over = cloud.jobs[job].arrival + settle;
            if over >= cloud.now { over } else { f64::MAX }
        });
        let refusals = self.pools.iter().filter(|pool| pool.refused.is_some()).map(|_| cloud.now);
        holds.chain(patience).chain(settling).chain(refusals).fold(f64::MAX, f64::min)
    }

    /// Carries out cordons in the books: an agent without leases acknowledges at once.
    fn cordon(&mut self, cloud: &Cloud<'_>, node: usize, number: u64, cause: CordonCause) {
        let acknowledged = cloud.nodes[node].jobs.is_empty();
        self.cordons.insert(node, (number, Some(Cordon { number, cause, acknowledged })));
    }

    fn acts(&mut self, cloud: &Cloud<'_>, decision: &autoscale::ScaleDecision, acts: &mut Vec<Act>) {
        for planned in &decision.actions {
            match &planned.action {
                ScaleAction::Launch { pool, count, expected_end } => {
                    let kind = self.pools.iter().position(|facts| facts.name == *pool);
                    let kind = kind.expect("only offered pools are launched");
                    let (count, expected_end) = (*count as usize, seconds(*expected_end));
                    acts.push(Act::Launch { kind, is_spot: self.is_spot, count, expected_end });
                }
                ScaleAction::Cordon { instance, cordon, cause } => {
                    let node = index_of(*instance);
                    self.cordon(cloud, node, *cordon, *cause);
                    if !cloud.nodes[node].jobs.is_empty() {
                        acts.push(Act::Drain(node));
                    }
                }
                ScaleAction::Uncordon { instance, cordon } => {
                    let node = index_of(*instance);
                    self.cordons.insert(node, (*cordon, None));
                    acts.push(Act::Undrain(node));
                }
                ScaleAction::Terminate { instance, .. } => {
                    let node = index_of(*instance);
                    assert!(cloud.nodes[node].jobs.is_empty(), "a busy instance would be ended");
                    self.cordons.remove(&node);
                    acts.push(Act::Kill(node));
                }
            }
        }
    }
}

impl Policy for Telecine {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn interval(&self) -> f64 {
        5.0
    }

    fn weighs_each_job(&self) -> bool {
        self.policy.patience.extension_milli > 0
    }

    fn rank(&self, cloud: &Cloud<'_>, node: usize, job: usize) -> Option<Rank> {
        let (here, asked) = (&cloud.nodes[node], &cloud.jobs[job]);
        let now = stamp(cloud.now);
        let pool = &self.pools[here.kind];
        let room = Room {
            capacity: pool.capacity,
            free: free(here),
            from: now,
            until: stamp(here.expected_end),
            terms: Terms { price: pool.price_micros_per_hour, speed_milli: SPEED, is_spot: here.is_spot },
        };
        let score = room.score(&load(asked), self.alone[job], &self.policy, now)?;
        Some((score.extension, score.left))
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        if self.settled.is_some_and(|(version, until)| version == cloud.version && cloud.now < until) {
            return Vec::new();
        }
        let mut acts = Vec::new();
        let now = stamp(cloud.now);
        let snapshot = self.snapshot(cloud);
        let decision = decide(&snapshot, &self.policy, now);
        self.acts(cloud, &decision, &mut acts);
        let cordoned = |planned: &autoscale::Planned| matches!(planned.action, ScaleAction::Cordon { .. });
        if decision.actions.iter().any(cordoned) {
            // What has acknowledged meanwhile is ended by the next look, which an acknowledgement brings about.
            let instances = cloud.live.iter().map(|&index| self.instance(cloud, index)).collect();
            let seen = Snapshot { instances, queue: Vec::new(), ..snapshot };
            let ends = |planned: &autoscale::Planned| matches!(planned.action, ScaleAction::Terminate { .. });
            let mut next = decide(&seen, &self.policy, now);
            next.actions.retain(ends);
            self.acts(cloud, &next, &mut acts);
        }
        self.settled = None;
        if decision.actions.is_empty() {
            self.settled = Some((cloud.version, self.settled_until(cloud)));
        } else {
            self.last_decision = Some(decision);
        }
        acts
    }

    fn accepted(&mut self, kind: usize) {
        self.pools[kind].refused = None;
    }

    fn refused(&mut self, kind: usize, now: f64) {
        let last = stamp(now);
        let times = self.pools[kind].refused.map_or(0, |trouble| trouble.times) + 1;
        self.pools[kind].refused = Some(Trouble { times, last });
    }
}

fn pool(kind: &Kind, is_spot: bool) -> PoolFacts {
    let interruptions = if is_spot { kind.interruptions * 3600.0 * 1000.0 } else { 0.0 };
    PoolFacts {
        name: kind.name.parse().expect("a catalogue's names are names of pools"),
        capacity: amounts([u64::from(kind.cpu), u64::from(kind.memory), u64::from(kind.gpu)]),
        market: if is_spot { Market::Spot } else { Market::OnDemand },
        price_micros_per_hour: (kind.price(is_spot) * 3600.0 * MICROS).round() as u64,
        speed_milli: SPEED,
        boot_ms: 90_000,
        interruptions_per_1000_hours: interruptions.round() as u32,
        min: 0,
        max: kind.max,
        standby: 0,
        refused: None,
        boot_failures: None,
    }
}

fn load(job: &Job) -> Load {
    Load {
        need: amounts([u64::from(job.cpu), u64::from(job.memory), u64::from(job.gpu)]),
        expected_ms: millis(job.estimate),
        interruptible: true,
        start_by: stamp(job.arrival + job.slack),
    }
}

const fn amounts([cpu_milli, memory_mib, gpu_milli]: [u64; 3]) -> Amounts {
    Amounts { cpu_milli, memory_mib, scratch_mib: 0, gpu_milli }
}

fn free(node: &Node) -> Amounts {
    amounts(node.free.map(|free| u64::try_from(free).unwrap_or(0)))
}

fn millis(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64
}

fn stamp(seconds: f64) -> Timestamp {
    Timestamp::from_millis(BEGINNING + millis(seconds))
}

fn seconds(time: Timestamp) -> f64 {
    (time.as_millis() - BEGINNING) as f64 / 1000.0
}

/// The index is the time of creation, so that the id leads back to it.
fn id_of(index: usize) -> InstanceId {
    InstanceId::new(Timestamp::from_millis(index as u64), 1)
}

fn index_of(id: InstanceId) -> usize {
    usize::try_from(id.created_at().as_millis()).expect("made from an index")
}
