//! `telecine factories`: make jobs of arriving objects.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use reqwest::header::IF_MATCH;
use serde_json::{Map, Value, json};
use telecine_api::view::factory::Factory;

use crate::cli::Global;
use crate::client::{Call, Client};
use crate::connection;
use crate::document;
use crate::failure::Failure;
use crate::output::{self, Format, fields, or_dash, time};
use crate::pages;

const CREATE_EXAMPLES: &str = r#"Examples:
  Make a rendition of everything that arrives below incoming/ in the store `media`:
      telecine factories create --name renditions --service transform --engine-version 1.0.0 \
          --file template.json --watch media:incoming/ --suffix .mov --suffix .mxf
  From a document with everything in it:
      telecine factories create --document factory.json

A template is a composition with placeholders: {input.key}, {input.folder}, {input.name}, {input.stem},
{input.extension}."#;

/// What can be done with factories.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a factory
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArguments>),
    /// List the factories
    #[command(after_help = "Examples:\n  telecine factories list")]
    List(pages::Arguments),
    /// Show one factory
    #[command(after_help = "Examples:\n  telecine factories get fac_01kaj... -o json")]
    Get {
        /// Its id or name
        factory: String,
    },
    /// Change a factory
    #[command(
        after_help = "Examples:\n  telecine factories update fac_01kaj... --engine-version 1.1.0\n  telecine factories update fac_01kaj... --enabled false"
    )]
    Update(UpdateArguments),
    /// Remove a factory; its jobs stay
    #[command(after_help = "Examples:\n  telecine factories delete fac_01kaj...")]
    Delete {
        /// Its id or name
        factory: String,
    },
}

/// Arguments of `factories create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// File with the whole request as JSON, or `-`
    #[arg(long, conflicts_with_all = ["name", "service", "engine_version", "file", "watch"], value_name = "FILE")]
    document: Option<PathBuf>,
    /// A name for people
    #[arg(long, required_unless_present = "document")]
    name: Option<String>,
    /// The kind of work, such as `transform`
    #[arg(long, required_unless_present = "document")]
    service: Option<String>,
    /// The engine version that its jobs run
    #[arg(long, required_unless_present = "document", value_name = "VERSION")]
    engine_version: Option<String>,
    /// File with the template, or `-`
    #[arg(short, long, required_unless_present = "document", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Watch a store (id or name), below a prefix; may be given several times
    #[arg(long, value_name = "STORE[:PREFIX]")]
    watch: Vec<String>,
    /// With --watch: only keys that end with this; may be given several times
    #[arg(long, value_name = "SUFFIX", requires = "watch")]
    suffix: Vec<String>,
    /// Region of its jobs; follows the data when left out
    #[arg(long)]
    region: Option<String>,
    /// Priority of its jobs, 0 to 1000
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=1000))]
    priority: Option<u16>,
}

/// Arguments of `factories update`.
#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// Its id or name
    factory: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// Another production version
    #[arg(long, value_name = "VERSION")]
    engine_version: Option<String>,
    /// File with another template, or `-`
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// On or off
    #[arg(long)]
    enabled: Option<bool>,
    /// Only if nothing has changed since this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let (client, format) = (connection::client(global)?, global.output);
    match command {
        Command::Create(arguments) => {
            let call = Call::new(Method::POST, &["factories"]).json(&creation(*arguments).await?)?;
            print(format, &client.json(call).await?)
        }
        Command::List(page) => {
            let call = Call::new(Method::GET, &["factories"]);
            let factories = pages::read::<Factory>(&client, call, &page).await?;
            format.print(&factories, |factories| pages::table(factories, table(&factories.data)))
        }
        Command::Get { factory } => {
            print(format, &client.get(Call::new(Method::GET, &["factories", &factory])).await?)
        }
        Command::Update(arguments) => update(&client, format, arguments).await,
        Command::Delete { factory } => {
            client.send(Call::new(Method::DELETE, &["factories", &factory])).await?;
            format.print(&json!({"deleted": factory}), |_| format!("deleted {factory}"))
        }
    }
}

async fn update(client: &Client, format: Format, arguments: UpdateArguments) -> Result<(), Failure> {
    let mut body = Map::new();
    body.extend(arguments.name.map(|name| ("name".to_owned(), json!(name))));
    body.extend(arguments.engine_version.map(|version| ("engine_version".to_owned(), json!(version))));
    body.extend(arguments.enabled.map(|enabled| ("enabled".to_owned(), json!(enabled))));
    if let Some(file) = &arguments.file {
        body.insert("composition".to_owned(), document::read(file).await?);
    }
    if body.is_empty() {
        return Err(Failure::usage("nothing to change: give --name, --engine-version, --file or --enabled"));
    }
    let etag = arguments.if_version.map(|version| format!("\"{version}\""));
    let call = Call::new(Method::PATCH, &["factories", &arguments.factory]).json(&body)?;
    print(format, &client.json(call.header(IF_MATCH, etag.as_deref())?).await?)
}

async fn creation(arguments: CreateArguments) -> Result<Value, Failure> {
    if let Some(document) = &arguments.document {
        return document::read(document).await;
    }
    let composition: Value = match &arguments.file {
        Some(file) => document::read(file).await?,
        None => Value::Null,
    };
    let watch: Vec<Value> = arguments.watch.iter().map(|rule| watch_rule(rule, &arguments.suffix)).collect();
    let mut body = json!({
        "name": arguments.name,
        "service": arguments.service,
        "engine_version": arguments.engine_version,
        "composition": composition,
        "watch": watch,
    });
    if let Some(region) = arguments.region {
        body["region"] = region.into();
    }
    if let Some(priority) = arguments.priority {
        body["defaults"] = json!({"priority": priority});
    }
    Ok(body)
}

fn watch_rule(rule: &str, suffixes: &[String]) -> Value {
    let (store, prefix) = rule.split_once(':').unwrap_or((rule, ""));
    json!({"store": store, "prefix": prefix, "suffixes": suffixes})
}

fn print(format: Format, factory: &Factory) -> Result<(), Failure> {
    format.print(factory, one)
}

fn table(factories: &[Factory]) -> String {
    output::rows(
        ["ID", "NAME", "ENGINE", "WATCHES", "ENABLED"],
        factories.iter().map(|factory| {
            [
                factory.id.to_string(),
                factory.name.clone(),
                format!("{} {}", factory.service, factory.engine_version),
                factory.watch.len().to_string(),
                factory.enabled.to_string(),
            ]
        }),
    )
}

fn one(factory: &Factory) -> String {
    let mut text = fields([
        ("id", factory.id.to_string()),
        ("name", factory.name.clone()),
        ("engine", format!("{} {}", factory.service, factory.engine_version)),
        ("enabled", factory.enabled.to_string()),
        ("region", or_dash(factory.region.as_ref())),
        ("priority", factory.defaults.priority.to_string()),
        ("created", time(factory.created_at)),
        ("version", factory.version.to_string()),
    ]);
    for rule in &factory.watch {
        let suffixes =
            if rule.suffixes.is_empty() { "any suffix".to_owned() } else { rule.suffixes.join(", ") };
        let off = if rule.enabled { "" } else { ", off" };
        text += &format!("\nwatch  {}/{} ({suffixes}{off})", rule.store_id, output::printable(&rule.prefix));
    }
    let template = serde_json::to_string_pretty(&factory.composition).unwrap_or_default();
    text + "\n" + &template
}
