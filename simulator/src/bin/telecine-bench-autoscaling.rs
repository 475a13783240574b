//! `make bench-autoscaling TRACES=DIR`: the autoscaler's targets, with the baselines in the same run.
//!
//! The media workloads come from the generator; public traces are read from the folder and skipped aloud when they are
//! not there. Costs are over the fractional bound, which nobody can go below.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use telecine_domain::autoscale::{
    self, Amounts, InstanceFacts, Life, Market, PoolFacts, Snapshot, Waiting, decide,
};
use telecine_domain::id::InstanceId;
use telecine_domain::time::Timestamp;
use telecine_simulator::baselines::Baseline;
use telecine_simulator::bound;
use telecine_simulator::catalog::{Kind, published};
use telecine_simulator::cloud::{Cloud, Hardships, Policy, Setup};
use telecine_simulator::report::Report;
use telecine_simulator::telecine::Telecine;
use telecine_simulator::workload::{Job, Media, read_trace, squeeze};

/// Where the jobs come from.
enum Source {
    Media(Media),
    File { name: &'static str, compress: f64, longest: f64 },
}

/// A workload with what it is to cost.
struct Case {
    name: &'static str,
    source: Source,
    seeds: &'static [u64],
    /// Highest cost over the bound: thrift, calm, and thrift over Karpenter in the hard model.
    thrift: f64,
    calm: f64,
    hard: f64,
}

const DAY: f64 = 86_400.0;
const CASES: [Case; 4] = [
    Case {
        name: "media_w1",
        source: Source::Media(Media { seed: 101, days: 7.0, per_hour: 240.0 }),
        seeds: &[1, 2, 3],
        thrift: 1.24,
        calm: 1.45,
        hard: 0.72,
    },
    Case {
        name: "openb ×20",
        source: Source::File { name: "openb_gpu2023_jobs.csv", compress: 20.0, longest: DAY },
        seeds: &[1, 2, 3],
        thrift: 1.50,
        calm: 1.60,
        hard: 0.92,
    },
    Case {
        name: "metacentrum_h1 ×8",
        source: Source::File { name: "metacentrum_2013_h1.csv", compress: 8.0, longest: DAY },
        seeds: &[1, 2, 3],
        thrift: 1.25,
        calm: 1.29,
        hard: 0.97,
    },
    Case {
        name: "media_busy",
        source: Source::Media(Media { seed: 102, days: 2.0, per_hour: 2400.0 }),
        seeds: &[1],
        thrift: 1.165,
        calm: 1.20,
        hard: 0.91,
    },
];
const SPOT_TARGET: f64 = 1.25;
const TICK_TARGET_MS: f64 = 200.0;

fn main() -> ExitCode {
    let folder = std::env::args().nth(1).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    match bench(folder.as_deref(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(folder: Option<&Path>, out: &mut impl Write) -> io::Result<()> {
    let kinds = published();
    for case in &CASES {
        match case.jobs(folder, case.seeds[0])? {
            Some(_) => run_case(case, folder, &kinds, out)?,
            None => writeln!(out, "\nskipped: {}: no such trace; give its folder as TRACES=DIR", case.name)?,
        }
    }
    spot(&kinds, out)?;
    tick(out)
}

impl Case {
    fn jobs(&self, folder: Option<&Path>, seed: u64) -> io::Result<Option<Vec<Job>>> {
        match &self.source {
            // Another seed is another week of the same factory.
            Source::Media(media) => {
                let seed = media.seed + seed - self.seeds[0];
                let mut jobs = Media { seed, ..*media }.jobs();
                squeeze(&mut jobs, 1.0, f64::MAX);
                Ok(Some(jobs))
            }
            Source::File { name, compress, longest } => {
                let Some(file) = folder.map(|folder| folder.join(name)).filter(|file| file.is_file()) else {
                    return Ok(None);
                };
                let text = std::fs::read_to_string(file)?;
                let mut jobs = read_trace(&text, seed).map_err(io::Error::other)?;
                squeeze(&mut jobs, *compress, *longest);
                Ok(Some(jobs))
            }
        }
    }
}

/// A policy's reports over the seeds, and its mean cost over the bound.
struct Row {
    over_bound: f64,
    reports: Vec<Report>,
}

impl Row {
    fn mean(&self, value: fn(&Report) -> f64) -> f64 {
        self.reports.iter().map(value).sum::<f64>() / self.reports.len() as f64
    }

    fn print(&self, name: &str, target: &str, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "| {name} | {:.3} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {target} |",
            self.over_bound,
            self.mean(|report| report.wait_p95),
            self.mean(|report| report.wait_p99),
            self.mean(|report| report.missed) * 100.0,
            self.mean(|report| report.launches as f64),
            self.mean(|report| report.flaps as f64),
        )
    }
}

type Maker<'a> = &'a dyn Fn(&[Job]) -> Box<dyn Policy>;

fn run(
    case: &Case,
    folder: Option<&Path>,
    kinds: &[Kind],
    is_spot: bool,
    hardships: Hardships,
    make: Maker<'_>,
) -> io::Result<Row> {
    let mut row = Row { over_bound: 0.0, reports: Vec::new() };
    for &seed in case.seeds {
        let mut jobs = case.jobs(folder, seed)?.unwrap_or_default();
        jobs.retain(|job| kinds.iter().any(|kind| kind.suits(job)));
        let setup = Setup { hardships, ..Setup::published(seed) };
        let report = Cloud::new(&jobs, kinds, setup).run(make(&jobs).as_mut());
        row.over_bound += report.cost / bound::fractional(&jobs, kinds, is_spot) / case.seeds.len() as f64;
        row.reports.push(report);
    }
    Ok(row)
}

fn run_case(case: &Case, folder: Option<&Path>, kinds: &[Kind], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n**{}**, seeds {:?}\n", case.name, case.seeds)?;
    writeln!(out, "| policy | cost ÷ bound | p95 wait s | p99 s | missed % | launches | flaps | target |")?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    let ours = |name: &'static str| {
        move |jobs: &[Job]| -> Box<dyn Policy> {
            let policy = autoscale::Policy::stock(name).expect("a stock policy");
            Box::new(Telecine::new(name, policy, kinds, jobs, false))
        }
    };
    let theirs = |baseline: Baseline| move |jobs: &[Job]| baseline.policy(kinds, jobs, false);
    let plain = |make: Maker<'_>| run(case, folder, kinds, false, Hardships::NONE, make);
    let mut patient = None;
    for baseline in Baseline::ALL {
        let row = plain(&theirs(baseline))?;
        row.print(baseline.name(), "", out)?;
        patient = (baseline == Baseline::KarpenterCalm).then_some(row).or(patient);
    }
    let thrift = plain(&ours("thrift"))?;
    let on_time =
        thrift.mean(|report| report.wait_p95) <= 120.0 && thrift.mean(|report| report.missed) <= 0.001;
    let met = met(thrift.over_bound <= case.thrift && on_time);
    thrift.print("thrift", &format!("≤ {}, p95 ≤ 120 s, missed ≤ 0.1 %: {met}", case.thrift), out)?;
    let calm = plain(&ours("calm"))?;
    calm.print("calm", &calm_target(&calm, patient.as_ref(), case), out)?;
    let hard = |make: Maker<'_>| run(case, folder, kinds, false, Hardships::USUAL, make);
    let (ours, karpenter) = (hard(&ours("thrift"))?, hard(&theirs(Baseline::Karpenter))?);
    karpenter.print("karpenter, hard model", "", out)?;
    let ratio = ours.over_bound / karpenter.over_bound;
    let verdict = self::met(ratio <= case.hard);
    ours.print("thrift, hard model", &format!("{ratio:.3} of Karpenter's, ≤ {}: {verdict}", case.hard), out)
}

fn calm_target(calm: &Row, karpenter: Option<&Row>, case: &Case) -> String {
    let of = |value: fn(&Report) -> f64| {
        karpenter.map_or(f64::NAN, |theirs| calm.mean(value) / theirs.mean(value).max(1.0))
    };
    let (launches, flaps) = (of(|report| report.launches as f64), of(|report| report.flaps as f64));
    let is_met = calm.over_bound <= case.calm && launches <= 1.3 && flaps <= 1.0;
    format!(
        "≤ {}, launches {launches:.2} ≤ 1.3, flaps {flaps:.2} ≤ 1.0 of Karpenter's (300 s): {}",
        case.calm,
        met(is_met)
    )
}

const fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "**not met**" }
}

/// The first workload on spot, where an interrupted job starts again from nothing.
fn spot(kinds: &[Kind], out: &mut impl Write) -> io::Result<()> {
    let make = |jobs: &[Job]| -> Box<dyn Policy> {
        Box::new(Telecine::new("thrift", autoscale::Policy::thrift(), kinds, jobs, true))
    };
    let row = run(&CASES[0], None, kinds, true, Hardships::NONE, &make)?;
    writeln!(out, "\n**{} on spot**\n", CASES[0].name)?;
    writeln!(
        out,
        "| policy | cost ÷ spot bound | p95 wait s | p99 s | missed % | launches | flaps | target |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    let verdict = met(row.over_bound <= SPOT_TARGET);
    row.print("thrift", &format!("≤ {SPOT_TARGET}: {verdict}"), out)
}

/// How long one decision takes over a large region: 10,000 instances, nine in ten full, and 100,000 queued in 500 lines.
fn tick(out: &mut impl Write) -> io::Result<()> {
    let snapshot = large_region();
    let policy = autoscale::Policy::thrift();
    let mut times = Vec::new();
    let mut actions = 0;
    for _ in 0..5 {
        let begun = Instant::now();
        actions = decide(&snapshot, &policy, snapshot.observed_at).actions.len();
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let verdict = met(times[2] <= TICK_TARGET_MS);
    writeln!(
        out,
        "\nOne decision, 10,000 instances and 100,000 queued in 500 shapes: {:.0} ms (median of 5, {actions} actions), \
         target ≤ {TICK_TARGET_MS} ms: {verdict}",
        times[2]
    )
}

fn large_region() -> Snapshot {
    let now = Timestamp::from_millis(1_767_225_600_000);
    let later = |seconds: u64| Timestamp::from_millis(now.as_millis() + seconds * 1000);
    let cores = |cpu: u64, memory: u64| Amounts { cpu_milli: cpu, memory_mib: memory, ..Amounts::ZERO };
    let pools: Vec<PoolFacts> = published().iter().map(pool_of).collect();
    let instance = |number: u64| {
        let pool = &pools[number as usize % 15];
        let is_full = !number.is_multiple_of(10);
        InstanceFacts {
            id: InstanceId::new(now, u128::from(number)),
            pool: pool.name.clone(),
            life: Life::Ready,
            launched_at: now,
            capacity: pool.capacity,
            free: if is_full { cores(500, 512) } else { pool.capacity },
            leases: u32::from(is_full),
            idle_since: now,
            expected_end: later(if is_full { number % 7200 } else { 0 }),
            last_cordon: 0,
            cordon: None,
            notice: None,
            rebalance: false,
        }
    };
    let waiting = |number: u64| Waiting {
        need: cores(1000 + number % 25 * 600, 1024 + number % 20 * 1500),
        interruptible: true,
        count: 200,
        expected_ms: 60_000 + number * 10_000,
        oldest: now,
        start_by: None,
    };
    Snapshot {
        observed_at: now,
        queue: (0..500).map(waiting).collect(),
        instances: (0..10_000).map(instance).collect(),
        launches: Vec::new(),
        pools: pools.clone(),
        spent_this_month_micros: 0,
    }
}

fn pool_of(kind: &Kind) -> PoolFacts {
    PoolFacts {
        name: kind.name.parse().expect("the catalogue has names of pools"),
        capacity: Amounts {
            cpu_milli: u64::from(kind.cpu),
            memory_mib: u64::from(kind.memory),
            scratch_mib: 0,
            gpu_milli: u64::from(kind.gpu),
        },
        market: Market::OnDemand,
        price_micros_per_hour: (kind.on_demand * 3.6e9).round() as u64,
        speed_milli: 1000,
        boot_ms: 90_000,
        interruptions_per_1000_hours: 0,
        min: 0,
        max: 1_000_000,
        standby: 0,
        refused: None,
        boot_failures: None,
    }
}
