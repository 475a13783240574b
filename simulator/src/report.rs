//! What came of a run.

use serde::Serialize;

use crate::cloud::{Cloud, Hardships};

/// A wait of a job that never ended, in seconds.
const NEVER: f64 = 1e9;
const SHORT_LIFE: f64 = 600.0;

/// A look at a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// When, in seconds.
    pub time: f64,
    /// Jobs that wait.
    pub queued: usize,
    /// Instances, booting ones too.
    pub instances: usize,
    /// Their cores.
    pub capacity: f64,
    /// Cores that jobs hold.
    pub allocated: f64,
}

/// What a policy made of a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which policy.
    pub policy: String,
    /// Dollars.
    pub cost: f64,
    /// Waits in seconds: what a job took beyond its run, lost runs included.
    pub wait_mean: f64,
    /// Median wait.
    pub wait_p50: f64,
    /// 95th percentile.
    pub wait_p95: f64,
    /// 99th percentile.
    pub wait_p99: f64,
    /// Share of the jobs that waited longer than they may.
    pub missed: f64,
    /// CPU used of what was paid.
    pub cpu_occupancy: f64,
    /// GPU used of what was paid.
    pub gpu_occupancy: f64,
    /// Instances launched.
    pub launches: usize,
    /// Launches within ten minutes of the end of an instance of the same kind.
    pub flaps: usize,
    /// Instances that lived less than ten minutes.
    pub short_lived: usize,
    /// Instances that were taken away.
    pub interruptions: usize,
    /// Launches that found no capacity.
    pub refusals: usize,
    /// How it went.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Report {
    pub(crate) fn of(cloud: &Cloud<'_>, policy: String, hardships: &Hardships) -> Self {
        let (mut cost, mut paid_cpu, mut paid_gpu) = (0.0, 0.0, 0.0);
        for node in &cloud.nodes {
            let kind = &cloud.kinds[node.kind];
            let billed = cloud.billed(node);
            cost += billed * kind.price(node.is_spot) + hardships.per_instance;
            paid_cpu += billed * f64::from(kind.cpu);
            paid_gpu += billed * f64::from(kind.gpu);
        }
        let used = |amount: fn(&crate::workload::Job) -> u32| -> f64 {
            cloud.jobs.iter().map(|job| job.duration * f64::from(amount(job))).sum()
        };
        let waits = Waits::of(cloud);
        Self {
            policy,
            cost,
            wait_mean: waits.mean(),
            wait_p50: waits.quantile(0.5),
            wait_p95: waits.quantile(0.95),
            wait_p99: waits.quantile(0.99),
            missed: waits.missed,
            cpu_occupancy: used(|job| job.cpu) / f64::max(paid_cpu, 1.0),
            gpu_occupancy: if paid_gpu > 0.0 { used(|job| job.gpu) / paid_gpu } else { 0.0 },
            launches: cloud.nodes.len(),
            flaps: cloud.flaps,
            short_lived: cloud.nodes.iter().filter(|node| cloud.lived(node) < SHORT_LIFE).count(),
            interruptions: cloud.interruptions,
            refusals: cloud.refusals,
            samples: cloud.samples.clone(),
        }
    }
}

struct Waits {
    sorted: Vec<f64>,
    missed: f64,
}

impl Waits {
    fn of(cloud: &Cloud<'_>) -> Self {
        let wait = |finished: f64, arrival: f64, duration: f64| match finished {
            finished if finished < 0.0 => NEVER,
            finished => (finished - arrival - duration).max(0.0),
        };
        let mut missed = 0;
        let mut sorted = Vec::with_capacity(cloud.jobs.len());
        for (job, &finished) in cloud.jobs.iter().zip(&cloud.finished) {
            let waited = wait(finished, job.arrival, job.duration);
            missed += usize::from(waited > job.slack);
            sorted.push(waited);
        }
        sorted.sort_by(f64::total_cmp);
        let missed = missed as f64 / sorted.len().max(1) as f64;
        Self { sorted, missed }
    }

    fn quantile(&self, share: f64) -> f64 {
        let index = (self.sorted.len() as f64 * share) as usize;
        self.sorted.get(index.min(self.sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
    }

    fn mean(&self) -> f64 {
        self.sorted.iter().sum::<f64>() / self.sorted.len().max(1) as f64
    }
}
