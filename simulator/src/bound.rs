//! What nobody can go below, and what somebody who knows the future reaches.

use crate::catalog::Kind;
use crate::workload::Job;

/// Prices of a unit of each resource at which no instance is worth more than it costs: corners of the dual of the
/// covering program. The value of a demand is its largest value over them.
#[derive(Clone, Debug)]
pub struct Duals(Vec<[f64; 3]>);

impl Duals {
    /// All corners, by trying every three constraints that can be tight at once.
    pub fn of(kinds: &[Kind], is_spot: bool) -> Self {
        let offers: Vec<([f64; 3], f64)> =
            kinds.iter().map(|kind| (capacity(kind), kind.price(is_spot))).collect();
        let mut rows = offers.clone();
        for axis in 0..3 {
            let mut unit = [0.0; 3];
            unit[axis] = 1.0;
            rows.push((unit, 0.0));
        }
        let mut corners = Vec::new();
        for first in 0..rows.len() {
            for second in first + 1..rows.len() {
                for third in second + 1..rows.len() {
                    let corner = intersection([&rows[first], &rows[second], &rows[third]]);
                    corners.extend(corner.filter(|corner| is_feasible(corner, &offers)));
                }
            }
        }
        Self(corners)
    }

    fn value(&self, demand: &[f64; 3]) -> f64 {
        self.0.iter().map(|corner| dot(corner, demand)).fold(0.0, f64::max)
    }
}

fn capacity(kind: &Kind) -> [f64; 3] {
    [f64::from(kind.cpu), f64::from(kind.memory), f64::from(kind.gpu)]
}

fn need(job: &Job) -> [f64; 3] {
    [f64::from(job.cpu), f64::from(job.memory), f64::from(job.gpu)]
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0])
        + m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0])
}

/// Where three planes meet, by Cramer's rule.
fn intersection(rows: [&([f64; 3], f64); 3]) -> Option<[f64; 3]> {
    let matrix = rows.map(|row| row.0);
    let whole = determinant(&matrix);
    if whole.abs() < 1e-9 {
        return None;
    }
    let mut point = [0.0; 3];
    for axis in 0..3 {
        let mut replaced = matrix;
        for (row, (_, right)) in replaced.iter_mut().zip(rows) {
            row[axis] = *right;
        }
        point[axis] = determinant(&replaced) / whole;
    }
    Some(point)
}

fn is_feasible(point: &[f64; 3], offers: &[([f64; 3], f64)]) -> bool {
    point.iter().all(|&price| price >= -1e-15)
        && offers.iter().all(|(capacity, price)| dot(capacity, point) <= price * (1.0 + 1e-9))
}

/// The fractional bound in dollars: all resource-seconds at the cheapest mix, at any time. Nobody can go below.
pub fn fractional(jobs: &[Job], kinds: &[Kind], is_spot: bool) -> f64 {
    let total = jobs.iter().fold([0.0; 3], |mut total, job| {
        let need = need(job);
        (0..3).for_each(|axis| total[axis] += need[axis] * job.duration);
        total
    });
    Duals::of(kinds, is_spot).value(&total)
}

/// The same when every job starts on arrival.
pub fn without_waiting(jobs: &[Job], kinds: &[Kind], is_spot: bool) -> f64 {
    let duals = Duals::of(kinds, is_spot);
    let mut changes: Vec<(f64, f64, usize)> = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        changes.push((job.arrival, 1.0, index));
        changes.push((job.arrival + job.duration, -1.0, index));
    }
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut demand, mut since, mut cost) = ([0.0; 3], 0.0, 0.0);
    for (time, sign, index) in changes {
        if time > since {
            cost += duals.value(&demand) * (time - since);
            since = time;
        }
        let need = need(&jobs[index]);
        (0..3).for_each(|axis| demand[axis] += sign * need[axis]);
    }
    cost
}

/// What a greedy packer reaches that knows every arrival and run time: no waits, instances booted ahead (and the boot
/// paid for), each job where it costs least. The best of twelve settings.
pub fn clairvoyant(jobs: &[Job], kinds: &[Kind], is_spot: bool, boot: f64) -> f64 {
    let mut least = f64::MAX;
    for most_cpu in [8_000, 16_000, 32_000, 64_000] {
        for keep in [0.0, 60.0, 180.0] {
            let setting = Setting { kinds, is_spot, boot, most_cpu, keep };
            least = least.min(setting.pack(jobs));
        }
    }
    least
}

struct Setting<'a> {
    kinds: &'a [Kind],
    is_spot: bool,
    boot: f64,
    /// No larger instances, unless a job needs one.
    most_cpu: u32,
    /// How long an instance is kept without work.
    keep: f64,
}

struct Open {
    kind: usize,
    start: f64,
    end: f64,
    free: [f64; 3],
    running: Vec<(f64, usize)>,
}

impl Setting<'_> {
    fn pack(&self, jobs: &[Job]) -> f64 {
        let (mut open, mut cost) = (Vec::new(), 0.0);
        for (index, job) in jobs.iter().enumerate() {
            cost += self.advance(&mut open, jobs, job.arrival);
            let end = job.arrival + job.duration;
            let known = self.cheapest_open(&open, job, end);
            let fresh = self.cheapest_fresh(job);
            match (known, fresh) {
                (Some((extension, at)), fresh) if fresh.is_none_or(|(price, _)| extension <= price) => {
                    open[at].end = open[at].end.max(end);
                    occupy(&mut open[at], job, end, index);
                }
                (_, Some((_, kind))) => {
                    let free = capacity(&self.kinds[kind]);
                    let mut new = Open { kind, start: job.arrival, end, free, running: Vec::new() };
                    occupy(&mut new, job, end, index);
                    open.push(new);
                }
                (_, None) => {}
            }
        }
        cost + open.iter().map(|open| self.price(open)).sum::<f64>()
    }

    /// Ends what has ended by then, and returns what the closed instances cost.
    fn advance(&self, open: &mut Vec<Open>, jobs: &[Job], now: f64) -> f64 {
        let (mut cost, mut at) = (0.0, 0);
        while at < open.len() {
            let here = &mut open[at];
            let mut running = 0;
            while running < here.running.len() {
                let (end, job) = here.running[running];
                if end > now {
                    running += 1;
                    continue;
                }
                let need = need(&jobs[job]);
                (0..3).for_each(|axis| here.free[axis] += need[axis]);
                here.running.swap_remove(running);
            }
            if here.running.is_empty() && now - here.end > self.keep {
                cost += self.price(here);
                open.swap_remove(at);
            } else {
                at += 1;
            }
        }
        cost
    }

    fn price(&self, open: &Open) -> f64 {
        (open.end - open.start + self.boot).max(60.0) * self.kinds[open.kind].price(self.is_spot)
    }

    fn cheapest_open(&self, open: &[Open], job: &Job, end: f64) -> Option<(f64, usize)> {
        let mut best: Option<(f64, f64, usize)> = None;
        let need = need(job);
        for (at, here) in open.iter().enumerate() {
            let kind = &self.kinds[here.kind];
            let fits = (0..3).all(|axis| here.free[axis] >= need[axis]);
            if !fits || (job.gpu == 0 && kind.gpu > 0 && here.end < end) {
                continue;
            }
            let extension = (end - here.end).max(0.0) * kind.price(self.is_spot);
            let left = (here.free[0] - need[0]) / f64::from(kind.cpu)
                + (here.free[1] - need[1]) / f64::from(kind.memory);
            if best.is_none_or(|(least, tightest, _)| (extension, left) < (least, tightest)) {
                best = Some((extension, left, at));
            }
        }
        best.map(|(extension, _, at)| (extension, at))
    }

    /// Price of a new instance for the job alone, and of which kind. A larger one is discounted by what it leaves to
    /// others when they are compared.
    fn cheapest_fresh(&self, job: &Job) -> Option<(f64, usize)> {
        let need = need(job);
        let capped = self.kinds.iter().any(|kind| kind.suits(job) && kind.cpu <= self.most_cpu);
        let lived = job.duration + self.boot;
        let fitting = self
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| kind.suits(job) && (!capped || kind.cpu <= self.most_cpu || job.gpu > 0));
        let discounted = fitting.map(|(index, kind)| {
            let capacity = capacity(kind);
            let share = (0..3).filter(|&axis| capacity[axis] > 0.0);
            let share = share.map(|axis| need[axis] / capacity[axis]).fold(0.0, f64::max);
            (lived * kind.price(self.is_spot) * (0.35 + 0.65 * share), index)
        });
        let (_, kind) = discounted.min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some((lived * self.kinds[kind].price(self.is_spot), kind))
    }
}

fn occupy(open: &mut Open, job: &Job, end: f64, index: usize) {
    let need = need(job);
    (0..3).for_each(|axis| open.free[axis] -= need[axis]);
    open.running.push((end, index));
}
