//! `telecine jobs estimate`.

use clap::Args;
use reqwest::Method;
use telecine_api::view::estimate::{Cost, Estimate, ExpectedDuration};
use telecine_domain::learn::Basis;
use telecine_domain::resources::{Resources, display_bytes};

use super::submit::Request;
use crate::client::{Call, Client};
use crate::failure::Failure;
use crate::output::{Format, fields};
use crate::pools::dollars;
use crate::quantity::display_millis;

const EXAMPLES: &str = "Examples:
  What a composition would take, before it is submitted:
      telecine jobs estimate --service transform --file composition.json
  The same for the work of a factory, as JSON:
      telecine jobs estimate --factory renditions --input incoming/clip.mov -o json";

/// Arguments of `jobs estimate`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    request: Request,
}

/// Says what would become of a job.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) async fn run(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    let call = Call::new(Method::POST, &["jobs", "estimate"]).json(&arguments.request.body().await?)?;
    let estimate: Estimate = client.json(call).await?;
    format.print(&estimate, table)
}

fn table(estimate: &Estimate) -> String {
    fields([
        ("service", format!("{} {}", estimate.service, estimate.engine_version)),
        ("image", estimate.engine_image.clone().unwrap_or_default()),
        ("region", estimate.region.clone()),
        ("needs", Resources::from(estimate.resources).to_string()),
        ("reads", display_bytes(estimate.input_bytes)),
        ("runs", duration(&estimate.duration)),
        ("costs", estimate.cost.as_ref().map_or_else(|| "unknown: no pool has a price".to_owned(), cost)),
        ("starts", estimate.start.as_ref().map(|start| start.text.clone()).unwrap_or_default()),
        ("waits for", estimate.summary.clone()),
        ("next step", estimate.next_step.clone()),
    ])
}

fn duration(expected: &ExpectedDuration) -> String {
    let (p50, p90) = (display_millis(expected.p50_ms), display_millis(expected.p90_ms));
    let whose = match expected.basis {
        Basis::Factory => "of this factory with inputs of like length",
        Basis::Length => "of this engine version with inputs of like length",
        Basis::Version => "of this engine version",
        Basis::Default => return format!("{p50}, by default: nothing was learned of such jobs yet"),
    };
    let runs = if expected.samples == 1 { "run" } else { "runs" };
    format!("{p50}, in nine of ten cases at most {p90} ({} {runs} {whose})", expected.samples)
}

fn cost(cost: &Cost) -> String {
    let (p50, p90) = (dollars(cost.p50_micros), dollars(cost.p90_micros));
    format!("${p50}, in nine of ten cases at most ${p90}, alone on an instance of pool {}", cost.pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_said() {
        let expected = |basis, samples| ExpectedDuration { p50_ms: 61_000, p90_ms: 90_000, samples, basis };
        assert_eq!(
            duration(&expected(Basis::Default, 0)),
            "1 m 01 s, by default: nothing was learned of such jobs yet"
        );
        assert_eq!(
            duration(&expected(Basis::Version, 1)),
            "1 m 01 s, in nine of ten cases at most 1 m 30 s (1 run of this engine version)"
        );
        let pool = "spot".to_owned();
        let costs = Cost { pool, price_micros_per_hour: 1, p50_micros: 40_000, p90_micros: 1_250_001 };
        let told = "$0.04, in nine of ten cases at most $1.250001, alone on an instance of pool spot";
        assert_eq!(cost(&costs), told);
    }
}
