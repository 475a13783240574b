//! `telecine pools`: what instances there can be, what they cost, how many there are, and what was decided about them.

mod decisions;

use clap::Subcommand;
use reqwest::Method;
use telecine_api::view::pool::Pool;
use telecine_domain::autoscale::Market;
use telecine_domain::resources::Resources;

use crate::cli::Global;
use crate::client::Call;
use crate::connection;
use crate::failure::Failure;
use crate::output;
use crate::pages;

/// What can be seen of pools.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the pools
    #[command(after_help = "Examples:\n  telecine pools list\n  telecine pools list --region local -o json")]
    List {
        /// Only those of this region
        #[arg(long)]
        region: Option<String>,
        /// Which page
        #[command(flatten)]
        page: pages::Arguments,
    },
    /// Show what was launched and given back, and why
    Decisions(decisions::Arguments),
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let client = connection::client(global)?;
    match command {
        Command::List { region, page } => {
            let call = Call::new(Method::GET, &["pools"]).query("region", region);
            let pools = pages::read::<Pool>(&client, call, &page).await?;
            global.output.print(&pools, |pools| pages::table(pools, table(&pools.data)))
        }
        Command::Decisions(arguments) => decisions::run(&client, global.output, arguments).await,
    }
}

fn table(pools: &[Pool]) -> String {
    output::rows(
        ["POOL", "REGION", "MARKET", "SHAPE", "USD PER HOUR", "BOOT", "MIN", "MAX", "RUNNING", "CHANGING"],
        pools.iter().map(|pool| {
            [
                pool.id.clone(),
                pool.region.clone(),
                market(pool),
                Resources::from(pool.shape).to_string(),
                dollars(pool.price_micros_per_hour),
                format!("{} s", pool.boot_seconds),
                pool.min.to_string(),
                pool.max.to_string(),
                pool.running.to_string(),
                pool.changing.to_string(),
            ]
        }),
    )
}

fn market(pool: &Pool) -> String {
    match pool.market {
        Market::OnDemand => "on demand",
        Market::Reserved => "reserved",
        Market::Spot => "spot",
    }
    .to_owned()
}

/// Millionths of a dollar as dollars, with no more digits than there are.
fn dollars(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let short = text.trim_end_matches('0');
    if short.ends_with('.') { format!("{short}00") } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact() {
        for (micros, text) in [(0, "0.00"), (40_000, "0.04"), (1, "0.000001"), (12_500_000, "12.5")] {
            assert_eq!(dollars(micros), text);
        }
    }
}
