//! What a decision costs with 10,000 full instances, and how that depends on the length of the queue.
//!
//! A decision is a whole turn: an attempt ends, the region says which job takes its place, and the new attempt is
//! recorded. Arrivals, which keep the queue at its length, are measured beside it.

use std::io::{self, Write};
use std::sync::Arc;

use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{AccountId, AttemptNumber, Epoch, InstanceId, JobId};
use telecine_domain::instance::{InstanceProfile, RuntimeKind};
use telecine_domain::placement::Request;
use telecine_domain::region::{Action, LiveAttempt, QueuedJob, Region, RegionConfig, RegionEvent};
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;

use crate::machine::{cost_of_asking, cpu_nanos, resident_bytes};
use crate::random::Random;

const INSTANCES: u128 = 10_000;
const SHAPES: usize = 500;
const DECISIONS: usize = 100_000;
/// Decisions between two refills of the queue: so few that even the shortest queue hardly changes.
const BATCH: usize = 100;
const GIB: u64 = 1 << 30;

/// How the queue is made up.
#[derive(Clone, Copy)]
struct Mix {
    accounts: u64,
    priorities: u64,
}

struct World {
    region: Region,
    random: Random,
    shapes: Vec<Arc<Request>>,
    mix: Mix,
    live: Vec<AttemptId>,
    jobs: u128,
    ticks: u64,
}

/// What was measured with one length of the queue.
struct Figures {
    decision_nanos: u64,
    arrival_nanos: u64,
}

/// Prints the rows about decisions and memory.
pub(crate) fn measure(out: &mut impl Write) -> io::Result<()> {
    let one = Mix { accounts: 1, priorities: 1 };
    writeln!(
        out,
        "| 10,000 instances, 500 shapes | decisions per CPU second | ns per decision | ns per arrival |"
    )?;
    writeln!(out, "| --- | --- | --- | --- |")?;
    let mut world = World::new(one);
    let mut costs = Vec::new();
    for queued in [1_000, 10_000, 100_000, 1_000_000] {
        let before = (resident_bytes(), world.region.queue_length());
        world.fill(queued);
        let grown = resident_bytes().saturating_sub(before.0);
        let figures = world.turns(DECISIONS, queued);
        row(out, &format!("{queued} queued"), &figures)?;
        costs.push(figures.decision_nanos);
        if queued == 1_000_000 {
            let per_job = grown / u64::try_from(queued - before.1).unwrap_or(1);
            writeln!(out, "| memory per queued job (from {} to {queued}) | {per_job} B | | |", before.1)?;
        }
    }
    let (first, last) = (costs[0], costs[costs.len() - 1]);
    let growth = i128::from(last) * 100 / i128::from(first.max(1)) - 100;
    writeln!(out, "| growth of cost per decision, 1,000 to 1,000,000 queued | {growth} % | | |")?;
    drop(world);
    let mut mixed = World::new(Mix { accounts: 20, priorities: 3 });
    mixed.fill(100_000);
    let figures = mixed.turns(DECISIONS / 20, 100_000);
    row(out, "100000 queued of 20 accounts in 3 priorities", &figures)
}

fn row(out: &mut impl Write, name: &str, figures: &Figures) -> io::Result<()> {
    let Figures { decision_nanos, arrival_nanos } = figures;
    let per_second = 1_000_000_000 / decision_nanos.max(&1);
    writeln!(out, "| {name} | {per_second} | {decision_nanos} | {arrival_nanos} |")
}

impl World {
    /// A region with idle instances.
    fn new(mix: Mix) -> Self {
        let mut random = Random::new(42);
        let shapes = (0..SHAPES).map(|_| Arc::new(shape(&mut random))).collect();
        let region = Region::new(RegionConfig::default());
        let mut world = Self { region, random, shapes, mix, live: Vec::new(), jobs: 0, ticks: 0 };
        for number in 0..INSTANCES {
            let event = RegionEvent::InstanceAttached { profile: profile(number), running: Vec::new() };
            let now = world.now();
            let actions = world.region.handle(event, now);
            assert!(actions.is_empty(), "nothing is queued yet");
        }
        world
    }

    /// A thousand events a millisecond: leases outlast the measurement.
    fn now(&mut self) -> Timestamp {
        self.ticks += 1;
        Timestamp::from_millis(1_767_225_600_000 + self.ticks / 1000)
    }

    /// Submits until so many jobs wait, the instances being full.
    fn fill(&mut self, queued: usize) {
        while self.region.queue_length() < queued {
            self.arrive();
        }
    }

    fn arrive(&mut self) {
        let job = self.new_job();
        let now = self.now();
        let actions = self.region.handle(RegionEvent::JobQueued(job), now);
        self.record(&actions);
    }

    fn new_job(&mut self) -> QueuedJob {
        self.jobs += 1;
        let now = self.now();
        let account = self.random.below(self.mix.accounts);
        QueuedJob {
            id: JobId::new(now, self.jobs),
            account: AccountId::new(now_zero(), account.into()),
            factory: None,
            request: Arc::clone(&self.shapes[index(self.random.below(SHAPES as u64))]),
            priority: 500 + u16::try_from(self.random.below(self.mix.priorities)).unwrap_or(0),
            queued_at: now,
            not_before: None,
            queue_deadline: Some(Timestamp::from_millis(now.as_millis() + 7 * 86_400_000)),
            total_deadline: None,
            epoch: Epoch(0),
        }
    }

    /// Records what was assigned.
    fn record(&mut self, actions: &[Action]) -> usize {
        let mut assigned = 0;
        for action in actions {
            let &Action::Assign { job, instance } = action else { panic!("{action:?}") };
            let queued = self.region.assigned(job).expect("just assigned");
            let attempt = LiveAttempt {
                id: AttemptId { job, attempt: AttemptNumber(1), epoch: Epoch(1) },
                account: queued.account,
                factory: None,
                instance,
                resources: queued.request.resources,
                total_deadline: None,
                granted: false,
            };
            let now = self.now();
            let more = self.region.handle(RegionEvent::AttemptLive(attempt), now);
            assert!(more.is_empty(), "a recorded attempt makes no room");
            self.live.push(attempt.id);
            assigned += 1;
        }
        assigned
    }

    /// Ends attempts until so many decisions are taken, and keeps the queue at its length.
    fn turns(&mut self, decisions: usize, queued: usize) -> Figures {
        let (mut decided, mut deciding, mut arrived, mut arriving) = (0, 0, 0, 0);
        let asking = cost_of_asking();
        while decided < decisions {
            let before = cpu_nanos();
            let mut batch = 0;
            while batch < BATCH {
                let ended = index(self.random.below(self.live.len() as u64));
                let over = self.live.swap_remove(ended);
                let now = self.now();
                let actions = self.region.handle(RegionEvent::AttemptOver(over), now);
                batch += self.record(&actions);
            }
            let between = cpu_nanos();
            (decided, deciding) = (decided + batch, deciding + (between - before).saturating_sub(asking));
            let jobs = self.jobs;
            self.fill(queued);
            arrived += usize::try_from(self.jobs - jobs).expect("few jobs arrive in a batch");
            arriving += cpu_nanos() - between;
        }
        Figures { decision_nanos: deciding / decided as u64, arrival_nanos: arriving / arrived.max(1) as u64 }
    }
}

fn now_zero() -> Timestamp {
    Timestamp::from_millis(1_767_225_600_000)
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("a small number")
}

fn shape(random: &mut Random) -> Request {
    let gpus = if random.below(5) == 0 { 1 + random.below(4) } else { 0 };
    let cpu_milli = 250 * (1 + random.below(48));
    let memory_bytes = GIB / 4 * (1 + random.below(96));
    let scratch_bytes = GIB * random.below(200);
    let image = format!("sha256:{:064x}", random.below(20));
    Request {
        resources: Resources { cpu_milli, memory_bytes, scratch_bytes, gpus },
        runtime: RuntimeKind::Docker,
        image: Some(image),
    }
}

fn profile(number: u128) -> InstanceProfile {
    InstanceProfile {
        id: InstanceId::new(now_zero(), number),
        region: "local".parse().expect("a name"),
        pool: "default".parse().expect("a name"),
        host: format!("host-{number}"),
        agent_version: "0.1.0".to_owned(),
        capacity: Resources {
            cpu_milli: 64_000,
            memory_bytes: 128 * GIB,
            scratch_bytes: 2_000 * GIB,
            gpus: 8,
        },
        runtimes: [RuntimeKind::Docker].into(),
        cached_images: (0..5).map(|image| format!("sha256:{:064x}", (number + image) % 20)).collect(),
        problems: Vec::new(),
    }
}
