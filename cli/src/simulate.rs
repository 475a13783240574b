//! `telecine simulate`: what a policy would cost on a workload, beside what others would.
//!
//! Needs no running platform: jobs come from a trace or a generator, instances from a catalogue. With `--serve` it is
//! the policy of a foreign simulator instead.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use telecine_domain::autoscale;
use telecine_simulator::baselines::Baseline;
use telecine_simulator::bound;
use telecine_simulator::catalog::{self, Kind, PoolsFile};
use telecine_simulator::cloud::{Cloud, Hardships, Policy, Setup};
use telecine_simulator::outside;
use telecine_simulator::picture;
use telecine_simulator::report::Report;
use telecine_simulator::telecine::Telecine;
use telecine_simulator::workload::{Job, Media, read_trace, squeeze};

use crate::cli::Global;
use crate::failure::{Exit, Failure};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  A generated week of a media factory, the stock policy, and what Karpenter would do:
      telecine simulate --trace media:101:7:240 --compare karpenter,cluster-autoscaler
  A trace, pools and a policy of one's own, with a picture:
      telecine simulate --trace jobs.csv --pools pools.toml --policy policy.toml --svg week.svg
  As the policy of another simulator, on standard input and output:
      telecine simulate --serve --policy thrift

A trace has lines of arrival_s,cpu_milli,mem_mib,gpu_milli,duration_s[,slo_s]. A pools file has [[pool]] entries with
name, cpu, memory_gib, price_per_hour, and if wanted gpus, spot_price_per_hour, interruptions_per_hour, max.";

/// Arguments of `simulate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The jobs: a CSV file, or media:SEED:DAYS:JOBS_PER_HOUR for generated ones
    #[arg(long, value_name = "FILE", required_unless_present = "serve")]
    trace: Option<String>,
    /// What can be bought: a TOML file [default: the published catalogue of 21 types]
    #[arg(long, value_name = "FILE")]
    pools: Option<PathBuf>,
    /// How to scale: thrift, calm, or a TOML file
    #[arg(long, default_value = "thrift", value_name = "NAME|FILE")]
    policy: String,
    /// Others to run on the same jobs, separated by commas, or `all`: karpenter, karpenter-300s, cluster-autoscaler,
    /// target-tracking, queue-depth, aws-batch, thrift, calm
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    compare: Vec<String>,
    /// Market in which everything is bought
    #[arg(long, value_enum, default_value_t)]
    market: MarketChoice,
    /// Seed of boots, interruptions and estimates
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Let time between arrivals run so many times as fast
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    compress: f64,
    /// Bound run times, in seconds
    #[arg(long, default_value_t = 1e9, value_name = "SECONDS")]
    longest: f64,
    /// Ration and refuse launches, and charge for cold images and each instance
    #[arg(long)]
    hard: bool,
    /// Write a picture of queue, capacity and occupancy over time
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Be the policy of a foreign simulator on standard input and output
    #[arg(long, conflicts_with_all = ["trace", "compare", "svg"])]
    serve: bool,
}

/// A market.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum MarketChoice {
    /// Paid by the second.
    #[default]
    OnDemand,
    /// Cheap, and may be taken away.
    Spot,
}

#[derive(Debug, Serialize)]
struct Answer {
    jobs: usize,
    dropped: usize,
    bound: f64,
    bound_without_waiting: f64,
    policies: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    over_bound: f64,
    #[serde(flatten)]
    report: Report,
}

/// Simulates.
///
/// # Errors
/// When a file cannot be read or makes no sense, or the picture cannot be written.
pub(crate) fn run(global: &Global, arguments: &Arguments) -> Result<ExitCode, Failure> {
    let policy = policy(&arguments.policy)?;
    let is_spot = arguments.market == MarketChoice::Spot;
    if arguments.serve {
        let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
        return match outside::serve(input, output, &policy, is_spot) {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(Failure::from(anyhow::Error::from(error))),
        };
    }
    let kinds = kinds(arguments.pools.as_deref())?;
    let (jobs, dropped) = jobs(arguments, &kinds)?;
    let contenders = contenders(arguments, &policy, &kinds, &jobs, is_spot)?;
    let answer = compare(arguments, &kinds, &jobs, dropped, contenders, is_spot);
    if let Some(file) = &arguments.svg {
        let reports: Vec<Report> = answer.policies.iter().map(|row| row.report.clone()).collect();
        let title = format!("{}: {} jobs", arguments.trace.as_deref().unwrap_or_default(), answer.jobs);
        std::fs::write(file, picture::draw(&title, &reports)).map_err(|error| {
            Failure::new(Exit::Failed, format!("{} cannot be written: {error}", file.display()))
        })?;
    }
    global.output.print(&answer, table)?;
    Ok(ExitCode::SUCCESS)
}

fn compare(
    arguments: &Arguments,
    kinds: &[Kind],
    jobs: &[Job],
    dropped: usize,
    contenders: Vec<Box<dyn Policy>>,
    is_spot: bool,
) -> Answer {
    let hardships = if arguments.hard { Hardships::USUAL } else { Hardships::NONE };
    let setup = Setup { hardships, ..Setup::published(arguments.seed) };
    let bound = bound::fractional(jobs, kinds, is_spot);
    let row = |mut policy: Box<dyn Policy>| {
        let report = Cloud::new(jobs, kinds, setup).run(policy.as_mut());
        Row { over_bound: report.cost / bound, report }
    };
    Answer {
        jobs: jobs.len(),
        dropped,
        bound,
        bound_without_waiting: bound::without_waiting(jobs, kinds, is_spot),
        policies: contenders.into_iter().map(row).collect(),
    }
}

fn policy(name: &str) -> Result<autoscale::Policy, Failure> {
    let policy = match autoscale::Policy::stock(name) {
        Some(policy) => policy,
        None => read_toml(Path::new(name), "policy")?,
    };
    policy.check().map_err(|error| Failure::usage(format!("policy {name}: {error}")))?;
    Ok(policy)
}

fn kinds(file: Option<&Path>) -> Result<Vec<Kind>, Failure> {
    let Some(file) = file else { return Ok(catalog::published()) };
    let pools: PoolsFile = read_toml(file, "pools file")?;
    pools.kinds().map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}

fn read_toml<T: DeserializeOwned>(file: &Path, what: &str) -> Result<T, Failure> {
    let text = read(file)?;
    toml::from_str(&text).map_err(|error| {
        let failure = Failure::usage(format!("{} is not a {what}", file.display()));
        error.to_string().lines().fold(failure, Failure::detail)
    })
}

fn read(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))
}

/// The jobs, and how many were dropped because nothing could ever hold them.
fn jobs(arguments: &Arguments, kinds: &[Kind]) -> Result<(Vec<Job>, usize), Failure> {
    let trace = arguments.trace.as_deref().unwrap_or_default();
    let fine = arguments.compress > 0.0 && arguments.compress <= 1e6 && arguments.longest >= 1.0;
    if !fine {
        return Err(Failure::usage("--compress must be above 0 and --longest at least 1"));
    }
    let mut jobs = if trace.starts_with("media:") {
        let media: Media = trace.parse().map_err(|error| Failure::usage(format!("--trace: {error}")))?;
        media.jobs()
    } else {
        let text = read(Path::new(trace))?;
        read_trace(&text, arguments.seed).map_err(|error| Failure::usage(format!("{trace}: {error}")))?
    };
    squeeze(&mut jobs, arguments.compress, arguments.longest);
    let all = jobs.len();
    jobs.retain(|job| kinds.iter().any(|kind| kind.suits(job)));
    let dropped = all - jobs.len();
    if jobs.is_empty() {
        return Err(Failure::usage("no pool could hold any of the jobs"));
    }
    if dropped > 0 {
        output::note(&format!("{dropped} jobs fit no pool and were left out"));
    }
    Ok((jobs, dropped))
}

fn contenders(
    arguments: &Arguments,
    policy: &autoscale::Policy,
    kinds: &[Kind],
    jobs: &[Job],
    is_spot: bool,
) -> Result<Vec<Box<dyn Policy>>, Failure> {
    let ours = |name: &str, policy: autoscale::Policy| -> Box<dyn Policy> {
        Box::new(Telecine::new(name, policy, kinds, jobs, is_spot))
    };
    let mut contenders = vec![ours(&arguments.policy, policy.clone())];
    for name in &arguments.compare {
        if name == "all" {
            contenders.extend(Baseline::ALL.map(|baseline| baseline.policy(kinds, jobs, is_spot)));
        } else if let Some(baseline) = Baseline::named(name) {
            contenders.push(baseline.policy(kinds, jobs, is_spot));
        } else if let Some(stock) = autoscale::Policy::stock(name) {
            contenders.push(ours(name, stock));
        } else {
            let known: Vec<&str> = Baseline::ALL.iter().map(|baseline| baseline.name()).collect();
            let known = known.join(", ");
            return Err(Failure::usage(format!("--compare: `{name}` is none of all, thrift, calm, {known}")));
        }
    }
    Ok(contenders)
}

fn table(answer: &Answer) -> String {
    let headers = [
        "POLICY", "COST $", "× BOUND", "P50 s", "P95 s", "P99 s", "LATE %", "CPU %", "GPU %", "LAUNCHES",
        "FLAPS",
    ];
    let rows = answer.policies.iter().map(|Row { over_bound, report }| {
        [
            report.policy.clone(),
            format!("{:.2}", report.cost),
            format!("{over_bound:.3}"),
            format!("{:.0}", report.wait_p50),
            format!("{:.0}", report.wait_p95),
            format!("{:.0}", report.wait_p99),
            format!("{:.2}", report.missed * 100.0),
            format!("{:.0}", report.cpu_occupancy * 100.0),
            format!("{:.0}", report.gpu_occupancy * 100.0),
            report.launches.to_string(),
            report.flaps.to_string(),
        ]
    });
    let bounds = format!(
        "{} jobs; nobody can pay less than ${:.2}, or ${:.2} without waiting",
        answer.jobs, answer.bound, answer.bound_without_waiting
    );
    format!("{bounds}\n{}", output::rows(headers, rows))
}
