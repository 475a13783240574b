//! What others do, written from their documented rules: the policies that ours is compared with.
//!
//! Jobs cannot be moved, so consolidation of instances with work is off for all of them.

mod demand;
mod groups;

use std::collections::BTreeMap;

use crate::catalog::Kind;
use crate::cloud::{Act, Cloud, Life, Policy};
use crate::workload::Job;

use demand::{first_fit_decreasing, unmet};
use groups::{Groups, shrink};

/// A baseline's name, as the command line has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Baseline {
    /// Karpenter; empty instances leave at once.
    Karpenter,
    /// Karpenter; empty instances leave after five minutes.
    KarpenterCalm,
    /// Kubernetes' cluster-autoscaler, least waste.
    ClusterAutoscaler,
    /// AWS target tracking at 70 % occupancy.
    TargetTracking,
    /// Jobs per instance, as Buildkite's scaler counts.
    QueueDepth,
    /// AWS Batch, best fit progressive.
    AwsBatch,
}

impl Baseline {
    /// All, in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::TargetTracking,
        Self::QueueDepth,
        Self::AwsBatch,
        Self::ClusterAutoscaler,
        Self::Karpenter,
        Self::KarpenterCalm,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Karpenter => "karpenter",
            Self::KarpenterCalm => "karpenter-300s",
            Self::ClusterAutoscaler => "cluster-autoscaler",
            Self::TargetTracking => "target-tracking",
            Self::QueueDepth => "queue-depth",
            Self::AwsBatch => "aws-batch",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|baseline| baseline.name() == name)
    }

    /// It, ready to run. Groups are cut for the jobs, as an operator who knows them would.
    pub fn policy(self, kinds: &[Kind], jobs: &[Job], is_spot: bool) -> Box<dyn Policy> {
        match self {
            Self::Karpenter => Box::new(Karpenter::new(is_spot, 0.0)),
            Self::KarpenterCalm => Box::new(Karpenter::new(is_spot, 300.0)),
            Self::ClusterAutoscaler => Box::new(ClusterAutoscaler { is_spot, last_added: f64::MIN }),
            Self::TargetTracking => Box::new(TargetTracking::new(Groups::new(jobs, kinds), is_spot)),
            Self::QueueDepth => Box::new(QueueDepth { groups: Groups::new(jobs, kinds), is_spot }),
            Self::AwsBatch => Box::new(AwsBatch { is_spot }),
        }
    }
}

fn launch(kind: usize, is_spot: bool, count: usize) -> Act {
    Act::Launch { kind, is_spot, count, expected_end: 0.0 }
}

/// Target tracking on occupancy, in points of a minute: out after three points above the target, in after fifteen below
/// nine tenths of it.
struct TargetTracking {
    groups: Groups,
    is_spot: bool,
    above: [u32; 3],
    below: [u32; 3],
    quiet_until: [f64; 3],
}

impl TargetTracking {
    const TARGET: f64 = 0.7;

    fn new(groups: Groups, is_spot: bool) -> Self {
        Self { groups, is_spot, above: [0; 3], below: [0; 3], quiet_until: [f64::MIN; 3] }
    }

    fn count(&mut self, group: usize, occupancy: f64) {
        let (above, below) = (occupancy > Self::TARGET, occupancy < 0.9 * Self::TARGET);
        self.above[group] = if above { self.above[group] + 1 } else { 0 };
        self.below[group] = if below && !above { self.below[group] + 1 } else { 0 };
    }
}

impl Policy for TargetTracking {
    fn name(&self) -> String {
        "target-tracking".to_owned()
    }

    fn interval(&self) -> f64 {
        60.0
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        let mut acts = Vec::new();
        for group in self.groups.distinct() {
            let (kind, nodes) = (self.groups.kinds[group], self.groups.nodes(cloud, group));
            if nodes.is_empty() {
                acts.push(launch(kind, self.is_spot, 1));
                continue;
            }
            let Some(occupancy) = Groups::occupancy(cloud, &nodes) else { continue };
            self.count(group, occupancy);
            let ready = nodes.iter().filter(|&&node| cloud.nodes[node].life == Life::Ready).count();
            let wanted = (ready as f64 * occupancy / Self::TARGET).ceil() as usize;
            if self.above[group] >= 3 && cloud.now > self.quiet_until[group] {
                if wanted > nodes.len() {
                    acts.push(launch(kind, self.is_spot, wanted - nodes.len()));
                    self.quiet_until[group] = cloud.now + 120.0;
                }
            } else if self.below[group] >= 15 && wanted.max(1) < nodes.len() {
                let surplus = nodes.len() - wanted.max(1);
                acts.extend(shrink(cloud, nodes, surplus));
                self.below[group] = 0;
            }
        }
        acts
    }
}

/// Jobs ÷ jobs per instance; instances leave by themselves after ten minutes without work.
struct QueueDepth {
    groups: Groups,
    is_spot: bool,
}

impl Policy for QueueDepth {
    fn name(&self) -> String {
        "queue-depth".to_owned()
    }

    fn interval(&self) -> f64 {
        10.0
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        let mut acts = Vec::new();
        for group in self.groups.distinct() {
            let nodes = self.groups.nodes(cloud, group);
            let pending = self.groups.pending(cloud, group);
            let running: usize = nodes.iter().map(|&node| cloud.nodes[node].jobs.len()).sum();
            let mut need = ((pending + running) as f64 / self.groups.slots[group]).ceil() as usize;
            // A queued job that fits no free host still needs one.
            if pending > 0 && nodes.iter().all(|&node| cloud.nodes[node].life == Life::Ready) {
                need = need.max(nodes.len() + 1);
            }
            if need > nodes.len() {
                acts.push(launch(self.groups.kinds[group], self.is_spot, need - nodes.len()));
            }
            let leaves =
                |&node: &usize| pending == 0 && cloud.idle_for(node).is_some_and(|idle| idle >= 600.0);
            acts.extend(nodes.into_iter().filter(leaves).map(Act::Kill));
        }
        acts
    }
}

/// Every ten seconds one group by least waste; empty instances leave after ten minutes, not within ten minutes of an
/// addition, ten at a time.
struct ClusterAutoscaler {
    is_spot: bool,
    last_added: f64,
}

impl ClusterAutoscaler {
    fn least_waste(&self, cloud: &Cloud<'_>, unmet: &[usize]) -> Option<(usize, usize)> {
        let mut best: Option<(f64, usize, usize)> = None;
        for (index, kind) in cloud.kinds.iter().enumerate() {
            let (count, placed) = first_fit_decreasing(cloud, kind, unmet);
            if count == 0 {
                continue;
            }
            let share = |amount: fn(&Job) -> u32, whole: u32| {
                let used: f64 = placed.iter().map(|&job| f64::from(amount(&cloud.jobs[job]))).sum();
                used / (count as f64 * f64::from(whole))
            };
            let waste = 2.0 - share(|job| job.cpu, kind.cpu) - share(|job| job.memory, kind.memory);
            if best.is_none_or(|(least, _, _)| waste < least) {
                best = Some((waste, index, count));
            }
        }
        best.map(|(_, kind, count)| (kind, count))
    }
}

impl Policy for ClusterAutoscaler {
    fn name(&self) -> String {
        "cluster-autoscaler".to_owned()
    }

    fn interval(&self) -> f64 {
        10.0
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        let unmet = unmet(cloud);
        if !unmet.is_empty() {
            let Some((kind, count)) = self.least_waste(cloud, &unmet) else { return Vec::new() };
            self.last_added = cloud.now;
            return vec![launch(kind, self.is_spot, count)];
        }
        if cloud.now - self.last_added < 600.0 {
            return Vec::new();
        }
        let leaves = |&node: &usize| cloud.idle_for(node).is_some_and(|idle| idle >= 600.0);
        cloud.live.iter().copied().filter(leaves).take(10).map(Act::Kill).collect()
    }
}

/// Pending jobs in a batch, large ones first, into claims (fewest jobs first); a claim is the cheapest type that holds
/// it. Empty instances leave after a while and 15 s of validation, a tenth of all per ten seconds.
struct Karpenter {
    is_spot: bool,
    empty_after: f64,
    seen: Option<u64>,
    last_pass: f64,
}

#[derive(Default)]
struct NodeClaim {
    sizes: [u64; 3],
    jobs: usize,
}

impl NodeClaim {
    fn with(&self, job: &Job) -> [u64; 3] {
        let [cpu, memory, gpu] = self.sizes;
        [cpu + u64::from(job.cpu), memory + u64::from(job.memory), gpu + u64::from(job.gpu)]
    }
}

fn holds(kind: &Kind, [cpu, memory, gpu]: [u64; 3]) -> bool {
    u64::from(kind.cpu) >= cpu
        && u64::from(kind.memory) >= memory
        && u64::from(kind.gpu) >= gpu
        && (gpu > 0 || kind.gpu == 0)
}

impl Karpenter {
    const fn new(is_spot: bool, empty_after: f64) -> Self {
        Self { is_spot, empty_after, seen: None, last_pass: 0.0 }
    }

    fn claims(cloud: &Cloud<'_>) -> Vec<NodeClaim> {
        let mut unmet = unmet(cloud);
        let size = |job: usize| (cloud.jobs[job].cpu, cloud.jobs[job].memory);
        unmet.sort_by_key(|&job| std::cmp::Reverse(size(job)));
        let mut claims: Vec<NodeClaim> = Vec::new();
        for job in unmet {
            let job = &cloud.jobs[job];
            let mut best: Option<usize> = None;
            for (index, claim) in claims.iter().enumerate() {
                let is_emptier = best.is_none_or(|best| claims[best].jobs > claim.jobs);
                let is_alike = (claim.sizes[2] > 0) == (job.gpu > 0);
                if is_alike && is_emptier && cloud.kinds.iter().any(|kind| holds(kind, claim.with(job))) {
                    best = Some(index);
                }
            }
            let index = best.unwrap_or_else(|| {
                claims.push(NodeClaim::default());
                claims.len() - 1
            });
            let sizes = claims[index].with(job);
            claims[index] = NodeClaim { sizes, jobs: claims[index].jobs + 1 };
        }
        claims
    }
}

impl Policy for Karpenter {
    fn name(&self) -> String {
        if self.empty_after > 0.0 {
            format!("karpenter-{:.0}s", self.empty_after)
        } else {
            "karpenter".to_owned()
        }
    }

    fn interval(&self) -> f64 {
        5.0
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        let mut acts = Vec::new();
        if self.seen != Some(cloud.version) && !cloud.pending.is_empty() {
            self.seen = Some(cloud.version);
            for claim in Self::claims(cloud) {
                let fitting = (0..cloud.kinds.len()).filter(|&kind| holds(&cloud.kinds[kind], claim.sizes));
                let cheapest =
                    fitting.min_by(|&a, &b| cloud.kinds[a].on_demand.total_cmp(&cloud.kinds[b].on_demand));
                acts.extend(cheapest.map(|kind| launch(kind, self.is_spot, 1)));
            }
        }
        if cloud.now - self.last_pass >= 10.0 {
            self.last_pass = cloud.now;
            let budget = ((cloud.live.len() as f64 * 0.1).ceil() as usize).max(1);
            let hold = self.empty_after + 15.0;
            let leaves = |&node: &usize| cloud.idle_for(node).is_some_and(|idle| idle >= hold);
            acts.extend(cloud.live.iter().copied().filter(leaves).take(budget).map(Act::Kill));
        }
        acts
    }
}

/// Every minute: the kind with the cheapest CPU that is large enough for each job, larger ones on ties; instances leave
/// after five minutes without work.
struct AwsBatch {
    is_spot: bool,
}

impl Policy for AwsBatch {
    fn name(&self) -> String {
        "aws-batch".to_owned()
    }

    fn interval(&self) -> f64 {
        60.0
    }

    fn tick(&mut self, cloud: &Cloud<'_>) -> Vec<Act> {
        let mut of_kind: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for job in unmet(cloud) {
            let fitting = (0..cloud.kinds.len()).filter(|&kind| cloud.kinds[kind].suits(&cloud.jobs[job]));
            let per_cpu = |kind: usize| {
                let kind = &cloud.kinds[kind];
                (kind.on_demand * 3.6e9 / f64::from(kind.cpu)).round()
            };
            let larger = |a: usize, b: usize| cloud.kinds[b].cpu.cmp(&cloud.kinds[a].cpu);
            let best = fitting.min_by(|&a, &b| per_cpu(a).total_cmp(&per_cpu(b)).then(larger(a, b)));
            if let Some(kind) = best {
                of_kind.entry(kind).or_default().push(job);
            }
        }
        let counted = of_kind.into_iter().map(|(kind, jobs)| {
            let (count, _) = first_fit_decreasing(cloud, &cloud.kinds[kind], &jobs);
            launch(kind, self.is_spot, count)
        });
        let mut acts: Vec<Act> = counted.collect();
        let leaves = |&node: &usize| cloud.idle_for(node).is_some_and(|idle| idle >= 300.0);
        acts.extend(cloud.live.iter().copied().filter(leaves).map(Act::Kill));
        acts
    }
}
