//! The published model: our figures for its baselines, pinned on a generated trace, and what must hold of every run.

use telecine_domain::autoscale;
use telecine_simulator::baselines::Baseline;
use telecine_simulator::bound;
use telecine_simulator::catalog::{Kind, published};
use telecine_simulator::cloud::{Cloud, Hardships, Setup};
use telecine_simulator::report::Report;
use telecine_simulator::telecine::Telecine;
use telecine_simulator::workload::{Job, Media, squeeze};

/// Baseline, dollars, launches, flaps.
const PUBLISHED: [(Baseline, &str, usize, usize); 6] = [
    (Baseline::TargetTracking, "132.59", 151, 17),
    (Baseline::QueueDepth, "105.38", 179, 38),
    (Baseline::AwsBatch, "157.03", 74, 25),
    (Baseline::ClusterAutoscaler, "101.73", 294, 23),
    (Baseline::Karpenter, "95.63", 224, 76),
    (Baseline::KarpenterCalm, "104.97", 151, 36),
];
/// Fractional bound, the same without waiting, clairvoyant packing.
const BOUNDS: [&str; 3] = ["60.75", "60.80", "72.75"];

fn half_a_day() -> Vec<Job> {
    let mut jobs = Media { seed: 5, days: 0.5, per_hour: 200.0 }.jobs();
    squeeze(&mut jobs, 1.0, f64::MAX);
    jobs
}

fn run_baseline(baseline: Baseline, jobs: &[Job], kinds: &[Kind]) -> Report {
    let mut policy = baseline.policy(kinds, jobs, false);
    Cloud::new(jobs, kinds, Setup::published(1)).run(policy.as_mut())
}

fn run_ours(policy: autoscale::Policy, jobs: &[Job], kinds: &[Kind], setup: Setup, is_spot: bool) -> Report {
    let mut policy = Telecine::new("ours", policy, kinds, jobs, is_spot);
    Cloud::new(jobs, kinds, setup).run(&mut policy)
}

/// To the cent and the launch, as the published program prints them for `media:5:0.5:200` and seed 1.
#[test]
fn the_baselines_cost_what_the_published_model_says() {
    let (jobs, kinds) = (half_a_day(), published());
    for (baseline, cost, launches, flaps) in PUBLISHED {
        let report = run_baseline(baseline, &jobs, &kinds);
        let figures = (format!("{:.2}", report.cost), report.launches, report.flaps);
        assert_eq!(figures, (cost.to_owned(), launches, flaps), "{}", baseline.name());
    }
}

#[test]
fn the_bounds_are_those_of_the_published_model() {
    let (jobs, kinds) = (half_a_day(), published());
    let fractional = bound::fractional(&jobs, &kinds, false);
    let without_waiting = bound::without_waiting(&jobs, &kinds, false);
    let clairvoyant = bound::clairvoyant(&jobs, &kinds, false, 90.0);
    let figures = [fractional, without_waiting, clairvoyant].map(|dollars| format!("{dollars:.2}"));
    assert_eq!(figures, BOUNDS);
    assert!(fractional <= without_waiting && without_waiting <= clairvoyant);
}

#[test]
fn ours_costs_less_than_every_baseline_and_is_on_time() {
    let (jobs, kinds) = (half_a_day(), published());
    let bound = bound::fractional(&jobs, &kinds, false);
    let thrift = run_ours(autoscale::Policy::thrift(), &jobs, &kinds, Setup::published(1), false);
    for baseline in Baseline::ALL {
        let theirs = run_baseline(baseline, &jobs, &kinds);
        assert!(thrift.cost < theirs.cost, "{} against {} of {}", thrift.cost, theirs.cost, theirs.policy);
    }
    assert!(thrift.cost > bound && thrift.cost < 1.35 * bound, "{} of {bound}", thrift.cost);
    assert!(thrift.wait_p95 <= 125.0 && thrift.missed <= 0.002, "{thrift:?}");
}

#[test]
fn every_job_is_done_although_the_cloud_refuses_and_interrupts() {
    let (jobs, kinds) = (half_a_day(), published());
    let hardships = Hardships { refused: 0.2, ..Hardships::USUAL };
    let setup = Setup { hardships, ..Setup::published(3) };
    let report = run_ours(autoscale::Policy::thrift(), &jobs, &kinds, setup, true);
    assert!(report.refusals > 0, "{report:?}");
    assert!(report.wait_p99 < 3600.0, "a job that never ends would wait for years: {report:?}");
}

#[test]
fn caps_hold_all_the_way() {
    let (jobs, kinds) = (half_a_day(), published());
    let caps = autoscale::Caps { instances: Some(12), ..autoscale::Caps::default() };
    let policy = autoscale::Policy { caps, ..autoscale::Policy::thrift() };
    let report = run_ours(policy, &jobs, &kinds, Setup::published(1), false);
    let most = report.samples.iter().map(|sample| sample.instances).max().unwrap();
    assert!((10..=12).contains(&most), "{most}");
    assert!(report.wait_p99 < 1e8, "and every job is done");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (jobs, kinds) = (half_a_day(), published());
    let run = || run_ours(autoscale::Policy::calm(), &jobs, &kinds, Setup::published(2), false);
    assert_eq!(run(), run());
}
