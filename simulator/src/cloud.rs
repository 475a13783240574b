//! A cloud in simulated time: instances boot, are billed and interrupted; jobs queue, run and are run again.
//!
//! Boot to ready is lognormal (median 90 s, from 60 to 180 s). Billing is per second from ten seconds after the launch,
//! for at least a minute. Interruptions on spot are exponential and come without warning; an interrupted job starts
//! again from nothing. With [`Hardships`] launches are rationed and sometimes refused, and images must be pulled.
//! It is the published model of the project's benchmark: with the same seed it gives the same figures.

use std::cmp::Ordering;
use std::collections::{BTreeSet, BinaryHeap, HashSet, VecDeque};

use crate::catalog::Kind;
use crate::report::{Report, Sample};
use crate::rng::Rng;
use crate::workload::Job;

const BILLED_AFTER: f64 = 10.0;
const LEAST_BILLED: f64 = 60.0;
/// A launch this soon after the end of an instance of the same kind is a flap.
const FLAP_WITHIN: f64 = 600.0;
/// After the last job a policy has this long to give everything back.
const WIND_DOWN: f64 = 7200.0;
const LONGEST_RUN: f64 = 400.0 * 86_400.0;
const BOOT_SIGMA: f64 = 0.3;
const SHORTEST_BOOT: f64 = 60.0;
const LONGEST_BOOT: f64 = 180.0;
/// How far apart samples for the picture are at most, as a share of the trace.
const SAMPLES: f64 = 1500.0;

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Launched, not ready.
    Booting,
    /// Takes work.
    Ready,
    /// Gone.
    Gone,
}

/// One instance.
#[derive(Clone, Debug)]
pub struct Node {
    /// Position of its kind in the catalogue.
    pub kind: usize,
    /// Its market.
    pub is_spot: bool,
    /// When it was launched.
    pub launched: f64,
    /// Where it is.
    pub life: Life,
    /// Whether it takes no new work and leaves when it is empty.
    pub draining: bool,
    /// Free CPU, memory and GPU.
    pub free: [i64; 3],
    /// The jobs on it, and when each began.
    pub jobs: Vec<(usize, f64)>,
    /// Since when it has none.
    pub idle_since: f64,
    /// When its work is expected to end, by the estimates.
    pub expected_end: f64,
    ended: f64,
    images: Vec<u32>,
}

impl Node {
    /// An instance of somebody else's cloud.
    pub(crate) const fn observed(
        kind: usize,
        is_spot: bool,
        life: Life,
        free: [i64; 3],
        idle_since: f64,
    ) -> Self {
        Self {
            kind,
            is_spot,
            launched: 0.0,
            life,
            draining: false,
            free,
            jobs: Vec::new(),
            idle_since,
            expected_end: 0.0,
            ended: 0.0,
            images: Vec::new(),
        }
    }
}

/// What a policy can do.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Launch so many.
    Launch {
        /// Of which kind.
        kind: usize,
        /// In which market.
        is_spot: bool,
        /// How many.
        count: usize,
        /// When the work they are for is expected to end.
        expected_end: f64,
    },
    /// Give it no new work, and end it when it is empty.
    Drain(usize),
    /// Take a drain back.
    Undrain(usize),
    /// End it now; what runs there starts again elsewhere.
    Kill(usize),
    /// Start a job on an instance.
    Place {
        /// The job.
        job: usize,
        /// The instance.
        node: usize,
    },
}

/// How well a job goes to an instance; smaller is better.
pub type Rank = (u128, u64);

/// Something that buys, gives back and places.
pub trait Policy {
    /// What it is called.
    fn name(&self) -> String;
    /// How often it is asked, in seconds.
    fn interval(&self) -> f64;
    /// What to do now.
    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act>;
    /// How well a job that fits goes to an instance; `None` keeps it away.
    fn rank(&self, cloud: &Cloud<'_>, node: usize, job: usize) -> Option<Rank> {
        best_fit(cloud, node, job)
    }
    /// Whether it places all jobs itself, by [`Act::Place`].
    fn places_itself(&self) -> bool {
        false
    }
    /// Whether what does not go to a freed instance depends on more than its size.
    fn weighs_each_job(&self) -> bool {
        false
    }
    /// A launch found no capacity.
    fn refused(&mut self, _kind: usize, _now: f64) {}
    /// A launch found capacity.
    fn accepted(&mut self, _kind: usize) {}
}

/// Best fit; jobs without GPU stay off instances with one.
pub fn best_fit(cloud: &Cloud<'_>, node: usize, job: usize) -> Option<Rank> {
    let left = leftover(cloud, node, job)?;
    // Never negative, so that the order of the bits is the order of the numbers.
    Some((0, left.to_bits()))
}

fn leftover(cloud: &Cloud<'_>, node: usize, job: usize) -> Option<f64> {
    let (node, job) = (&cloud.nodes[node], &cloud.jobs[job]);
    let kind = &cloud.kinds[node.kind];
    if job.gpu == 0 && kind.gpu > 0 {
        return None;
    }
    let mut left = (node.free[0] - i64::from(job.cpu)) as f64 / f64::from(kind.cpu)
        + (node.free[1] - i64::from(job.memory)) as f64 / f64::from(kind.memory);
    if kind.gpu > 0 {
        left += (node.free[2] - i64::from(job.gpu)) as f64 / f64::from(kind.gpu);
    }
    Some(left)
}

/// What the published model leaves out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hardships {
    /// Launches per second once the bucket is empty.
    pub launches_per_second: f64,
    /// Launches that the bucket holds.
    pub launches_at_once: f64,
    /// Which share of the launches finds no capacity.
    pub refused: f64,
    /// How long it takes to pull the image of a kind of job to an instance that does not have it.
    pub pull_seconds: f64,
    /// Dollars that an instance costs beside its price: address, root disk, share of the log.
    pub per_instance: f64,
}

impl Hardships {
    /// None: the published model.
    pub const NONE: Self = Self {
        launches_per_second: f64::INFINITY,
        launches_at_once: f64::INFINITY,
        refused: 0.0,
        pull_seconds: 0.0,
        per_instance: 0.0,
    };
    /// Two launches a second after a burst of 100, one in fifty refused, 15 s to pull an image, a tenth of a cent each.
    pub const USUAL: Self = Self {
        launches_per_second: 2.0,
        launches_at_once: 100.0,
        refused: 0.02,
        pull_seconds: 15.0,
        per_instance: 0.001,
    };
}

/// How a run is set up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    /// Seed of boots, interruptions and refusals.
    pub seed: u64,
    /// Median time to boot, in seconds.
    pub boot_median: f64,
    /// What makes it harder than the published model.
    pub hardships: Hardships,
}

impl Setup {
    /// The published model.
    pub const fn published(seed: u64) -> Self {
        Self { seed, boot_median: 90.0, hardships: Hardships::NONE }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Event {
    Arrival(usize),
    End { node: usize, job: usize, epoch: u32 },
    Ready(usize),
    Interrupted(usize),
    Tick,
}

#[derive(Debug)]
struct Due {
    time: f64,
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.order.cmp(&self.order))
    }
}

/// The cloud, and what has happened in it.
#[derive(Debug)]
pub struct Cloud<'a> {
    /// What time it is, in seconds.
    pub now: f64,
    /// Every job, by arrival.
    pub jobs: &'a [Job],
    /// What can be bought.
    pub kinds: &'a [Kind],
    /// Every instance there ever was.
    pub nodes: Vec<Node>,
    /// Those that are not gone.
    pub live: Vec<usize>,
    /// The jobs that wait.
    pub pending: BTreeSet<usize>,
    /// Grows whenever something happens.
    pub version: u64,
    pub(crate) finished: Vec<f64>,
    pub(crate) interruptions: usize,
    pub(crate) flaps: usize,
    pub(crate) refusals: usize,
    pub(crate) samples: Vec<Sample>,
    epochs: Vec<u32>,
    due: BinaryHeap<Due>,
    order: u64,
    rng: Rng,
    setup: Setup,
    done: usize,
    ends: Vec<VecDeque<f64>>,
    tokens: (f64, f64),
    live_of_kind: Vec<u32>,
    next_sample: f64,
}

impl<'a> Cloud<'a> {
    /// A cloud without instances. The jobs must be in the order of their arrivals.
    pub fn new(jobs: &'a [Job], kinds: &'a [Kind], setup: Setup) -> Self {
        let mut cloud = Self {
            now: 0.0,
            jobs,
            kinds,
            nodes: Vec::new(),
            live: Vec::new(),
            pending: BTreeSet::new(),
            version: 0,
            finished: vec![-1.0; jobs.len()],
            interruptions: 0,
            flaps: 0,
            refusals: 0,
            samples: Vec::new(),
            epochs: vec![0; jobs.len()],
            due: BinaryHeap::new(),
            order: 0,
            rng: Rng::new(setup.seed ^ 0xC10D),
            setup,
            done: 0,
            ends: vec![VecDeque::new(); kinds.len()],
            tokens: (setup.hardships.launches_at_once, 0.0),
            live_of_kind: vec![0; kinds.len()],
            next_sample: 0.0,
        };
        for (index, job) in jobs.iter().enumerate() {
            cloud.at(job.arrival, Event::Arrival(index));
        }
        cloud
    }

    /// Somebody else's cloud at a time: all jobs wait.
    pub(crate) fn observed(now: f64, jobs: &'a [Job], kinds: &'a [Kind], nodes: Vec<Node>) -> Self {
        let mut cloud = Self::new(&[], kinds, Setup::published(0));
        cloud.jobs = jobs;
        cloud.now = now;
        cloud.version = now.to_bits();
        cloud.pending = (0..jobs.len()).collect();
        cloud.epochs = vec![0; jobs.len()];
        cloud.live = (0..nodes.len()).filter(|&node| !nodes[node].draining).collect();
        cloud.nodes = nodes;
        cloud
    }

    /// Places a job in an observed cloud.
    pub(crate) fn place(&mut self, node: usize, job: usize) {
        self.start(node, job);
    }

    fn at(&mut self, time: f64, event: Event) {
        self.order += 1;
        self.due.push(Due { time, order: self.order, event });
    }

    /// Whether a job fits what is free on an instance.
    pub fn fits(&self, node: usize, job: usize) -> bool {
        let (free, job) = (&self.nodes[node].free, &self.jobs[job]);
        free[0] >= i64::from(job.cpu) && free[1] >= i64::from(job.memory) && free[2] >= i64::from(job.gpu)
    }

    /// How long an instance has been without work; `None` while it boots or works.
    pub fn idle_for(&self, node: usize) -> Option<f64> {
        let node = &self.nodes[node];
        (node.life == Life::Ready && node.jobs.is_empty()).then_some(self.now - node.idle_since)
    }

    /// Runs everything, and says what it cost.
    pub fn run(&mut self, policy: &mut dyn Policy) -> Report {
        self.at(0.0, Event::Tick);
        let mut after_last = 0.0;
        while let Some(Due { time, event, .. }) = self.due.pop() {
            self.now = time;
            match event {
                Event::Arrival(job) => self.arrived(job, policy),
                Event::End { node, job, epoch } => self.ended(node, job, epoch, policy),
                Event::Ready(node) => self.ready(node, policy),
                Event::Interrupted(node) => self.interrupted(node),
                Event::Tick => {
                    self.tick(policy);
                    let all_done = self.done == self.jobs.len();
                    after_last += if all_done { policy.interval() } else { 0.0 };
                    if (all_done && (self.live.is_empty() || after_last > WIND_DOWN)) || time > LONGEST_RUN {
                        break;
                    }
                    self.at(time + policy.interval(), Event::Tick);
                }
            }
        }
        for node in self.live.clone() {
            self.kill(node);
        }
        Report::of(self, policy.name(), &self.setup.hardships)
    }

    fn arrived(&mut self, job: usize, policy: &dyn Policy) {
        self.pending.insert(job);
        self.version += 1;
        if policy.places_itself() {
            return;
        }
        let mut best: Option<(Rank, usize)> = None;
        for &node in &self.live {
            let takes = self.nodes[node].life == Life::Ready && !self.nodes[node].draining;
            if !takes || !self.fits(node, job) {
                continue;
            }
            let rank = policy.rank(self, node, job);
            if let Some(rank) = rank.filter(|rank| best.is_none_or(|(least, _)| *rank < least)) {
                best = Some((rank, node));
            }
        }
        if let Some((_, node)) = best {
            self.start(node, job);
        }
    }

    fn ended(&mut self, node: usize, job: usize, epoch: u32, policy: &dyn Policy) {
        if self.epochs[job] != epoch || self.finished[job] >= 0.0 {
            return;
        }
        self.finished[job] = self.now;
        self.done += 1;
        self.version += 1;
        let (now, sizes) = (self.now, sizes(&self.jobs[job]));
        let here = &mut self.nodes[node];
        here.jobs.retain(|&(running, _)| running != job);
        (0..3).for_each(|index| here.free[index] += sizes[index]);
        if here.jobs.is_empty() {
            here.idle_since = now;
            here.expected_end = now;
            if here.draining {
                self.kill(node);
                return;
            }
        }
        self.fill(node, policy);
    }

    fn ready(&mut self, node: usize, policy: &dyn Policy) {
        if self.nodes[node].life == Life::Booting {
            self.nodes[node].life = Life::Ready;
            self.nodes[node].idle_since = self.now;
            self.version += 1;
            self.fill(node, policy);
        }
    }

    fn interrupted(&mut self, node: usize) {
        if self.nodes[node].life != Life::Gone {
            self.interruptions += 1;
            self.version += 1;
            self.kill(node);
        }
    }

    /// Starts what waits on an instance that has room: in the order of the queue, skipping what does not go.
    fn fill(&mut self, node: usize, policy: &dyn Policy) {
        let here = &self.nodes[node];
        if here.life != Life::Ready || here.draining || policy.places_itself() {
            return;
        }
        let mut skipped: HashSet<(u32, u32, u32, i32)> = HashSet::new();
        let waiting: Vec<usize> = self.pending.iter().copied().collect();
        for job in waiting {
            let free = &self.nodes[node].free;
            if free[0] < 50 || free[1] < 16 {
                return;
            }
            let sizes = &self.jobs[job];
            let length = if policy.weighs_each_job() { (sizes.estimate.ln() * 4.0) as i32 } else { 0 };
            let alike = (sizes.cpu, sizes.memory, sizes.gpu, length);
            if skipped.contains(&alike) {
                continue;
            }
            if self.fits(node, job) && policy.rank(self, node, job).is_some() {
                self.start(node, job);
            } else {
                skipped.insert(alike);
            }
        }
    }

    fn start(&mut self, node: usize, job: usize) {
        let (now, epoch) = (self.now, self.epochs[job]);
        let pull = self.pull_seconds(node, job);
        let (sizes, asked) = (sizes(&self.jobs[job]), &self.jobs[job]);
        let here = &mut self.nodes[node];
        (0..3).for_each(|index| here.free[index] -= sizes[index]);
        here.jobs.push((job, now));
        here.expected_end = here.expected_end.max(now + asked.estimate);
        self.pending.remove(&job);
        self.at(now + asked.duration + pull, Event::End { node, job, epoch });
    }

    /// Jobs of the same size share an image.
    fn pull_seconds(&mut self, node: usize, job: usize) -> f64 {
        let seconds = self.setup.hardships.pull_seconds;
        if seconds > 0.0 {
            let job = &self.jobs[job];
            let image = job.cpu ^ job.memory.rotate_left(9) ^ job.gpu.rotate_left(18);
            let images = &mut self.nodes[node].images;
            if !images.contains(&image) {
                images.push(image);
                return seconds;
            }
        }
        0.0
    }

    fn tick(&mut self, policy: &mut dyn Policy) {
        self.sample();
        for act in policy.tick(self) {
            match act {
                Act::Launch { kind, is_spot, count, expected_end } => {
                    for _ in 0..count {
                        if self.launch(kind, is_spot, expected_end) {
                            policy.accepted(kind);
                        } else {
                            policy.refused(kind, self.now);
                        }
                    }
                }
                Act::Drain(node) => {
                    self.nodes[node].draining = true;
                    if self.nodes[node].jobs.is_empty() {
                        self.kill(node);
                    }
                }
                Act::Undrain(node) => {
                    self.nodes[node].draining = false;
                    self.fill(node, policy);
                }
                Act::Kill(node) => self.kill(node),
                Act::Place { job, node } => {
                    let is_ready = self.nodes.get(node).is_some_and(|node| node.life == Life::Ready);
                    if is_ready && self.pending.contains(&job) && self.fits(node, job) {
                        self.start(node, job);
                    }
                }
            }
        }
    }

    /// Launches one; `false` when there was no capacity.
    fn launch(&mut self, kind: usize, is_spot: bool, expected_end: f64) -> bool {
        let hardships = self.setup.hardships;
        let is_refused = hardships.refused > 0.0 && self.rng.uniform() < hardships.refused;
        if is_refused || self.live_of_kind[kind] >= self.kinds[kind].max {
            self.refusals += 1;
            return false;
        }
        let boot = self.rng.lognormal(self.setup.boot_median, BOOT_SIGMA).clamp(SHORTEST_BOOT, LONGEST_BOOT);
        let launched = self.now + self.rationed();
        let what = &self.kinds[kind];
        let node = self.nodes.len();
        self.nodes.push(Node {
            kind,
            is_spot,
            launched,
            life: Life::Booting,
            draining: false,
            free: [i64::from(what.cpu), i64::from(what.memory), i64::from(what.gpu)],
            jobs: Vec::new(),
            idle_since: launched + boot,
            expected_end,
            ended: 0.0,
            images: Vec::new(),
        });
        self.live.push(node);
        self.live_of_kind[kind] += 1;
        self.count_flap(kind);
        self.at(launched + boot, Event::Ready(node));
        if is_spot {
            let interrupted = self.now + self.rng.exponential(what.interruptions);
            self.at(interrupted, Event::Interrupted(node));
        }
        true
    }

    fn count_flap(&mut self, kind: usize) {
        let ends = &mut self.ends[kind];
        while ends.front().is_some_and(|&end| self.now - end > FLAP_WITHIN) {
            ends.pop_front();
        }
        self.flaps += usize::from(ends.pop_front().is_some());
    }

    /// How long a launch waits for its turn: a bucket of tokens.
    fn rationed(&mut self) -> f64 {
        let hardships = self.setup.hardships;
        if hardships.launches_per_second.is_infinite() {
            return 0.0;
        }
        let (tokens, since) = self.tokens;
        let refilled = tokens + (self.now - since) * hardships.launches_per_second;
        let left = refilled.min(hardships.launches_at_once) - 1.0;
        self.tokens = (left, self.now);
        (-left).max(0.0) / hardships.launches_per_second
    }

    fn kill(&mut self, node: usize) {
        if self.nodes[node].life == Life::Gone {
            return;
        }
        for (job, _) in std::mem::take(&mut self.nodes[node].jobs) {
            self.epochs[job] += 1;
            self.pending.insert(job);
        }
        self.nodes[node].life = Life::Gone;
        self.nodes[node].ended = self.now;
        self.live.retain(|&live| live != node);
        let kind = self.nodes[node].kind;
        self.live_of_kind[kind] -= 1;
        self.ends[kind].push_back(self.now);
    }

    fn sample(&mut self) {
        if self.now < self.next_sample {
            return;
        }
        let length = self.jobs.last().map_or(0.0, |job| job.arrival);
        self.next_sample = self.now + (length / SAMPLES).max(1.0);
        let (mut capacity, mut free) = (0.0, 0.0);
        for &node in &self.live {
            capacity += f64::from(self.kinds[self.nodes[node].kind].cpu) / 1000.0;
            free += self.nodes[node].free[0] as f64 / 1000.0;
        }
        let (instances, queued) = (self.live.len(), self.pending.len());
        self.samples.push(Sample { time: self.now, queued, instances, capacity, allocated: capacity - free });
    }

    /// How long an instance is billed, in seconds.
    pub(crate) fn billed(&self, node: &Node) -> f64 {
        let end = if node.life == Life::Gone { node.ended } else { self.now };
        (end - node.launched - BILLED_AFTER).max(LEAST_BILLED)
    }

    /// How long it lived.
    pub(crate) fn lived(&self, node: &Node) -> f64 {
        node.ended - node.launched
    }
}

fn sizes(job: &Job) -> [i64; 3] {
    [i64::from(job.cpu), i64::from(job.memory), i64::from(job.gpu)]
}
