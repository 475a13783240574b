//! `telecine instances`: the instances and what they hold, and drains by hand.

use clap::Subcommand;
use reqwest::Method;
use telecine_api::view::place::{Instance, InterruptInstance};
use telecine_api::view::scaling::Cordon;
use telecine_domain::resources::Resources;

use crate::cli::Global;
use crate::client::{Call, Client};
use crate::connection;
use crate::failure::Failure;
use crate::output::{self, fields, time};
use crate::pages;

/// What can be seen of instances.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the instances
    #[command(
        after_help = "Examples:\n  telecine instances list\n  telecine instances list --region local -o json"
    )]
    List {
        /// Only those of this region
        #[arg(long)]
        region: Option<String>,
        /// Which page
        #[command(flatten)]
        page: pages::Arguments,
    },
    /// Show one instance
    #[command(after_help = "Examples:\n  telecine instances get ins_01kaj...")]
    Get {
        /// Its id
        instance: String,
    },
    /// Have the provider take an instance away, as a spot market does: announced now, done after a while
    #[command(after_help = "Examples:\n  telecine instances interrupt ins_01kaj... --in 120")]
    Interrupt {
        /// Its id
        instance: String,
        /// Seconds until it is gone, whatever runs there
        #[arg(long = "in", value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(0..=86_400))]
        in_seconds: u32,
    },
    /// Let an instance take no new work; what it has goes on, and it stays until you say otherwise
    #[command(
        after_help = "Examples:\n  telecine instances drain ins_01kaj...\n  telecine instances drain ins_01kaj... -o json"
    )]
    Drain {
        /// Its id
        instance: String,
    },
    /// Let an instance take work again, whoever drained it
    #[command(after_help = "Examples:\n  telecine instances undrain ins_01kaj...")]
    Undrain {
        /// Its id
        instance: String,
    },
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let client = connection::client(global)?;
    match command {
        Command::List { region, page } => {
            let call = Call::new(Method::GET, &["instances"]).query("region", region);
            let instances = pages::read::<Instance>(&client, call, &page).await?;
            global.output.print(&instances, |instances| pages::table(instances, table(&instances.data)))
        }
        Command::Get { instance } => {
            let instance: Instance = client.get(Call::new(Method::GET, &["instances", &instance])).await?;
            global.output.print(&instance, one)
        }
        Command::Interrupt { instance, in_seconds } => {
            let call = Call::new(Method::POST, &["instances", &instance, "interrupt"]);
            let instance: Instance = client.json(call.json(&InterruptInstance { in_seconds })?).await?;
            global.output.print(&instance, |instance| {
                format!("{} ({}) will be taken away in {in_seconds} s", instance.id, instance.host)
            })
        }
        Command::Drain { instance } => cordon(&client, global, &instance, "drain").await,
        Command::Undrain { instance } => cordon(&client, global, &instance, "undrain").await,
    }
}

async fn cordon(client: &Client, global: &Global, instance: &str, action: &str) -> Result<(), Failure> {
    let cordon: Cordon = client.json(Call::new(Method::POST, &["instances", instance, action])).await?;
    global.output.print(&cordon, |cordon| {
        fields([
            ("instance", cordon.instance_id.to_string()),
            ("region", cordon.region.clone()),
            ("cordon", cordon.number.to_string()),
            ("state", cordon.state.clone()),
            ("since", cordon.at.map(time).unwrap_or_default()),
        ])
    })
}

fn table(instances: &[Instance]) -> String {
    output::rows(
        ["ID", "REGION", "POOL", "HOST", "STATE", "CAPACITY", "ALLOCATED"],
        instances.iter().map(|instance| {
            [
                instance.id.to_string(),
                instance.region.clone(),
                instance.pool.clone(),
                instance.host.clone(),
                standing(instance),
                Resources::from(instance.capacity).to_string(),
                Resources::from(instance.allocated).to_string(),
            ]
        }),
    )
}

fn one(instance: &Instance) -> String {
    let mut text = fields([
        ("id", instance.id.to_string()),
        ("region", instance.region.clone()),
        ("pool", instance.pool.clone()),
        ("host", instance.host.clone()),
        ("agent", instance.agent_version.clone()),
        ("state", format!("{} since {}", state(instance), time(instance.state_since))),
        ("capacity", Resources::from(instance.capacity).to_string()),
        ("allocated", Resources::from(instance.allocated).to_string()),
        (
            "runtimes",
            instance
                .runtimes
                .iter()
                .map(|runtime| format!("{runtime:?}").to_lowercase())
                .collect::<Vec<_>>()
                .join(", "),
        ),
        ("images", instance.cached_images.len().to_string()),
    ]);
    if let Some(at) = instance.notice {
        text += &format!("\nnotice   its provider takes it away at {}", time(at));
    }
    if instance.rebalance {
        text += "\nhint     its provider may soon take it away";
    }
    for problem in &instance.problems {
        text += &format!("\nproblem  {}: {}", problem.gate, problem.message);
    }
    text
}

/// The state, and in a table what was announced.
fn standing(instance: &Instance) -> String {
    match instance.notice {
        Some(at) => format!("{} (ends {})", state(instance), time(at)),
        None if instance.rebalance => format!("{} (may end)", state(instance)),
        None => state(instance),
    }
}

fn state(instance: &Instance) -> String {
    format!("{:?}", instance.state).to_lowercase()
}
