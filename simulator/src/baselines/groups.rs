//! Groups of one kind each, as an operator of Auto Scaling groups would cut them: general, memory-heavy, GPU.

use crate::catalog::Kind;
use crate::cloud::{Act, Cloud, Life};
use crate::workload::Job;

const GPU: usize = 2;
/// MiB for each thousandth of a core above which a job is memory-heavy.
const HEAVY: f64 = 4.2;

pub(super) struct Groups {
    /// Kind of each group; `usize::MAX` for a group without jobs.
    pub(super) kinds: [usize; 3],
    /// How many of its mean jobs an instance holds.
    pub(super) slots: [f64; 3],
    of_job: Vec<usize>,
}

impl Groups {
    pub(super) fn new(jobs: &[Job], kinds: &[Kind]) -> Self {
        let of_job: Vec<usize> = jobs.iter().map(group_of).collect();
        let (mut chosen, mut slots) = ([usize::MAX; 3], [1.0; 3]);
        for group in 0..3 {
            let members: Vec<&Job> =
                jobs.iter().zip(&of_job).filter(|(_, of)| **of == group).map(|(job, _)| job).collect();
            if !members.is_empty() {
                chosen[group] = kind_for(group, &members, kinds);
                slots[group] = slots_of(group, &members, &kinds[chosen[group]]);
            }
        }
        Self { kinds: chosen, slots, of_job }
    }

    /// The groups that have a kind that no group before them has.
    pub(super) fn distinct(&self) -> Vec<usize> {
        let is_first = |&group: &usize| {
            let kind = self.kinds[group];
            kind != usize::MAX && !self.kinds[..group].contains(&kind)
        };
        (0..3).filter(is_first).collect()
    }

    pub(super) fn nodes(&self, cloud: &Cloud<'_>, group: usize) -> Vec<usize> {
        let is_member = |&node: &usize| {
            let node = &cloud.nodes[node];
            node.kind == self.kinds[group] && !node.draining
        };
        cloud.live.iter().copied().filter(is_member).collect()
    }

    /// Occupancy of the scarcest resource of those that are ready; `None` when none is.
    pub(super) fn occupancy(cloud: &Cloud<'_>, nodes: &[usize]) -> Option<f64> {
        let (mut whole, mut used) = ([0.0; 3], [0.0; 3]);
        for node in nodes.iter().map(|&node| &cloud.nodes[node]).filter(|node| node.life == Life::Ready) {
            let kind = &cloud.kinds[node.kind];
            let sizes = [kind.cpu, kind.memory, kind.gpu].map(f64::from);
            for index in 0..3 {
                whole[index] += sizes[index];
                used[index] += sizes[index] - node.free[index] as f64;
            }
        }
        let shares = (0..3).filter(|&index| whole[index] > 0.0).map(|index| used[index] / whole[index]);
        (whole[0] > 0.0).then(|| shares.fold(0.0, f64::max))
    }

    pub(super) fn pending(&self, cloud: &Cloud<'_>, group: usize) -> usize {
        let belongs = |&&job: &&usize| self.kinds[self.of_job[job]] == self.kinds[group];
        cloud.pending.iter().filter(belongs).count()
    }
}

fn group_of(job: &Job) -> usize {
    match job {
        job if job.gpu > 0 => GPU,
        job if f64::from(job.memory) / f64::from(job.cpu) > HEAVY => 1,
        _ => 0,
    }
}

/// The cheapest kind that holds every job of the group, else the largest.
fn kind_for(group: usize, members: &[&Job], kinds: &[Kind]) -> usize {
    let largest = |amount: fn(&Job) -> u32| members.iter().map(|job| amount(job)).max().unwrap_or(0);
    let (cpu, memory, gpu) = (largest(|job| job.cpu), largest(|job| job.memory), largest(|job| job.gpu));
    let all = Job { cpu, memory, gpu, ..members[0].clone() };
    let cheapest = (0..kinds.len())
        .filter(|&kind| kinds[kind].suits(&all))
        .min_by(|&a, &b| kinds[a].on_demand.total_cmp(&kinds[b].on_demand));
    let largest = || {
        let of_group = (0..kinds.len()).filter(|&kind| (kinds[kind].gpu > 0) == (group == GPU));
        of_group.max_by_key(|&kind| kinds[kind].cpu).unwrap_or(0)
    };
    cheapest.unwrap_or_else(largest)
}

fn slots_of(group: usize, members: &[&Job], kind: &Kind) -> f64 {
    let count = members.len() as f64;
    let mean =
        |amount: fn(&Job) -> u32| members.iter().map(|job| f64::from(amount(job)) / count).sum::<f64>();
    let mut slots =
        (f64::from(kind.cpu) / mean(|job| job.cpu)).min(f64::from(kind.memory) / mean(|job| job.memory));
    if group == GPU {
        slots = slots.min(f64::from(kind.gpu) / mean(|job| job.gpu));
    }
    slots.floor().max(1.0)
}

/// Removes some: booting ones first, then idle ones, then the least busy by draining.
pub(super) fn shrink(cloud: &Cloud<'_>, mut nodes: Vec<usize>, count: usize) -> Vec<Act> {
    nodes.sort_by_key(|&node| (cloud.nodes[node].jobs.len(), cloud.nodes[node].life != Life::Booting));
    let end =
        |node: usize| if cloud.nodes[node].jobs.is_empty() { Act::Kill(node) } else { Act::Drain(node) };
    nodes.into_iter().take(count).map(end).collect()
}
