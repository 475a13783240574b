//! What waits and fits nothing that is there or booting, and how many instances of a kind would hold it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::Kind;
use crate::cloud::Cloud;
use crate::workload::Job;

/// Most instances that are reckoned with at once.
const MOST: usize = 1000;

struct Bin {
    free: [i64; 3],
    has_gpu: bool,
}

impl Bin {
    fn of(kind: &Kind) -> Self {
        let free = [i64::from(kind.cpu), i64::from(kind.memory), i64::from(kind.gpu)];
        Self { free, has_gpu: kind.gpu > 0 }
    }

    /// Takes the job if it fits.
    fn take(&mut self, job: &Job) -> bool {
        let sizes = [i64::from(job.cpu), i64::from(job.memory), i64::from(job.gpu)];
        let fits = (0..3).all(|index| self.free[index] >= sizes[index]) && (job.gpu > 0 || !self.has_gpu);
        if fits {
            (0..3).for_each(|index| self.free[index] -= sizes[index]);
        }
        fits
    }
}

fn size(job: &Job) -> (u32, u32, u32) {
    (job.gpu, job.cpu, job.memory)
}

/// The jobs that free room, on booting instances too, will not absorb.
pub(super) fn unmet(cloud: &Cloud<'_>) -> Vec<usize> {
    let staying = cloud.live.iter().map(|&node| &cloud.nodes[node]).filter(|node| !node.draining);
    let bins = staying.map(|node| Bin { free: node.free, has_gpu: cloud.kinds[node.kind].gpu > 0 });
    let mut bins: Vec<Bin> = bins.filter(|bin| bin.free[0] >= 50).collect();
    let mut refused = BTreeSet::new();
    let mut unmet = Vec::new();
    for &index in &cloud.pending {
        let job = &cloud.jobs[index];
        if refused.contains(&size(job)) || !bins.iter_mut().any(|bin| bin.take(job)) {
            refused.insert(size(job));
            unmet.push(index);
        }
    }
    unmet
}

/// First fit decreasing on new instances of a kind: how many, and the jobs they hold.
pub(super) fn first_fit_decreasing(cloud: &Cloud<'_>, kind: &Kind, jobs: &[usize]) -> (usize, Vec<usize>) {
    let mut sorted: Vec<usize> = jobs.iter().copied().filter(|&job| kind.suits(&cloud.jobs[job])).collect();
    sorted.sort_by_key(|&job| Reverse(size(&cloud.jobs[job])));
    let mut bins: Vec<Bin> = Vec::new();
    // Jobs of one size never fit an earlier bin that refused one of them.
    let mut first: BTreeMap<(u32, u32, u32), usize> = BTreeMap::new();
    let mut placed = Vec::new();
    for index in sorted {
        let job = &cloud.jobs[index];
        let from = first.get(&size(job)).copied().unwrap_or(0);
        let known = (from..bins.len()).find(|&bin| bins[bin].take(job));
        if known.is_none() {
            if bins.len() >= MOST {
                first.insert(size(job), bins.len());
                continue;
            }
            let mut bin = Bin::of(kind);
            bin.take(job);
            bins.push(bin);
        }
        first.insert(size(job), known.unwrap_or(bins.len() - 1));
        placed.push(index);
    }
    (bins.len(), placed)
}
