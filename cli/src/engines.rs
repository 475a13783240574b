//! `telecine engines`: publish and retire engine versions.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};
use telecine_api::view::engine::EngineVersion;
use telecine_domain::resources::Resources;

use crate::cli::Global;
use crate::client::Call;
use crate::connection;
use crate::document;
use crate::failure::Failure;
use crate::output::{self, Format, fields, or_dash, time};
use crate::pages;
use crate::quantity;

const PUBLISH_EXAMPLES: &str = r#"Examples:
  An engine that serves telecine.engine.v1.Engine, named by digest:
      telecine engines publish transform --version 1.0.0 --cpu 2 --memory 2GiB --stable \
          --image registry.example.com/telecine/transform@sha256:9f86d081884c7d65... --schema schema.json
  Any ffmpeg image, as a plain program:
      telecine engines publish transcode --version 1.0.0 --cpu 2 --memory 2GiB --plain \
          --image registry.example.com/ffmpeg@sha256:9f86d081884c7d65... \
          --argument=-i --argument={input.source} --argument={output.rendition}
  From the description beside its source, with the image just pushed; options win over what it says:
      telecine engines publish transform --file engine-version.json --version 1.0.1 \
          --image registry.example.com/transform@sha256:9f86..."#;

/// What can be done with engine versions.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Publish a version
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish(Box<PublishArguments>),
    /// List the versions of a service
    #[command(after_help = "Examples:\n  telecine engines list transform")]
    List {
        /// The service
        service: String,
        /// Which page
        #[command(flatten)]
        page: pages::Arguments,
    },
    /// Show one version
    #[command(after_help = "Examples:\n  telecine engines get transform 1.0.0 -o json")]
    Get(Named),
    /// Say that a version should be left; it still works
    #[command(after_help = "Examples:\n  telecine engines deprecate transform 1.0.0")]
    Deprecate(Named),
    /// Refuse a version from now on
    #[command(after_help = "Examples:\n  telecine engines withdraw transform 1.0.0")]
    Withdraw(Named),
}

/// Names one version.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// The service
    service: String,
    /// The version
    version: String,
}

/// Arguments of `engines publish`.
#[derive(Debug, Args)]
pub(crate) struct PublishArguments {
    /// The service whose work it does
    service: String,
    /// File with the request as JSON, or `-`; options win over what it says
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Semantic version
    #[arg(long, required_unless_present = "file")]
    version: Option<String>,
    /// Image, by digest
    #[arg(long, conflicts_with = "program", required_unless_present_any = ["file", "program"])]
    image: Option<String>,
    /// The image is a plain program, not a gRPC engine
    #[arg(long, requires = "image")]
    plain: bool,
    /// Absolute path of a program of the instance itself, without a sandbox
    #[arg(long, value_name = "PATH")]
    program: Option<String>,
    /// An argument of a plain engine or program; may be given several times
    #[arg(long = "argument", value_name = "ARGUMENT", allow_hyphen_values = true)]
    arguments: Vec<String>,
    /// Cores a job needs [default: 1]
    #[arg(long, value_parser = quantity::cores, value_name = "CORES")]
    cpu: Option<u64>,
    /// Memory a job needs [default: 1GiB]
    #[arg(long, value_parser = quantity::size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Scratch space a job needs [default: 0]
    #[arg(long, value_parser = quantity::size, value_name = "SIZE")]
    scratch: Option<u64>,
    /// GPUs a job needs [default: 0]
    #[arg(long, value_name = "COUNT")]
    gpus: Option<u64>,
    /// File with the JSON Schema (2020-12) of a composition's `processing`
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Publish it as stable, not as a candidate
    #[arg(long)]
    stable: bool,
    /// What changed, for people
    #[arg(long, value_name = "TEXT")]
    changelog: Option<String>,
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let (client, format) = (connection::client(global)?, global.output);
    let engines = |rest: &[&str], method: Method, service: &str| {
        let path: Vec<&str> = ["services", service, "engine-versions"].iter().chain(rest).copied().collect();
        Call::new(method, &path)
    };
    let act = |named: &Named, action: &str| engines(&[&named.version, action], Method::POST, &named.service);
    match command {
        Command::Publish(arguments) => {
            let body = publication(&arguments).await?;
            print(format, &client.json(engines(&[], Method::POST, &arguments.service).json(&body)?).await?)
        }
        Command::List { service, page } => {
            let call = engines(&[], Method::GET, &service);
            let versions = pages::read::<EngineVersion>(&client, call, &page).await?;
            format.print(&versions, |versions| pages::table(versions, table(&versions.data)))
        }
        Command::Get(named) => {
            print(format, &client.get(engines(&[&named.version], Method::GET, &named.service)).await?)
        }
        Command::Deprecate(named) => print(format, &client.json(act(&named, "deprecate")).await?),
        Command::Withdraw(named) => print(format, &client.json(act(&named, "withdraw")).await?),
    }
}

/// The document, with what the options say in place of what it says.
async fn publication(arguments: &PublishArguments) -> Result<Value, Failure> {
    let mut body = match &arguments.file {
        Some(file) => described(file, &arguments.service).await?,
        None => {
            Map::from_iter([("resources".to_owned(), json!({"cpu_milli": 1000, "memory_bytes": 1 << 30}))])
        }
    };
    let launch = launch(arguments, body.get("launch"));
    let mut set = |name: &str, value: Option<Value>| body.extend(value.map(|value| (name.to_owned(), value)));
    set("version", arguments.version.clone().map(Value::from));
    set("launch", launch);
    set("lifecycle", arguments.stable.then(|| "stable".into()));
    set("changelog", arguments.changelog.clone().map(Value::from));
    if let Some(schema) = &arguments.schema {
        set("processing_schema", Some(document::read(schema).await?));
    }
    let needs = [
        ("cpu_milli", arguments.cpu),
        ("memory_bytes", arguments.memory),
        ("scratch_bytes", arguments.scratch),
        ("gpus", arguments.gpus),
    ];
    if let Some(resources) = body.entry("resources").or_insert_with(|| json!({})).as_object_mut() {
        resources
            .extend(needs.into_iter().filter_map(|(name, amount)| Some((name.to_owned(), amount?.into()))));
    }
    Ok(Value::Object(body))
}

/// A file as it lies beside an engine's source: `launch` may be just `grpc` or `plain`, with the image on the command
/// line, and `processing_schema` the path of the schema beside the file.
async fn described(file: &Path, service: &str) -> Result<Map<String, Value>, Failure> {
    let mut body: Map<String, Value> = document::read(file).await?;
    if let Some(named) = body.remove("service")
        && named != service
    {
        return Err(Failure::usage(format!("{} describes service {named}, not {service}", file.display())));
    }
    if let Some(Value::String(schema)) = body.get("processing_schema") {
        let schema = file.parent().unwrap_or(Path::new("")).join(schema);
        body.insert("processing_schema".to_owned(), document::read(&schema).await?);
    }
    if let Some(Value::String(kind)) = body.get("launch") {
        let launch = json!({"kind": kind});
        body.insert("launch".to_owned(), launch);
    }
    Ok(body)
}

/// How it is started, when an option says so. An image alone takes the place of the document's image.
fn launch(arguments: &PublishArguments, document: Option<&Value>) -> Option<Value> {
    let own = &arguments.arguments;
    match (&arguments.image, &arguments.program) {
        (_, Some(program)) => Some(json!({"kind": "command", "program": program, "arguments": own})),
        (Some(image), None) if arguments.plain => {
            Some(json!({"kind": "plain", "image": image, "arguments": own}))
        }
        (Some(image), None) => {
            let described = document.filter(|document| document.is_object() && own.is_empty());
            let mut launch = described.cloned().unwrap_or_else(|| json!({"kind": "grpc", "arguments": own}));
            launch["image"] = image.as_str().into();
            Some(launch)
        }
        (None, None) => None,
    }
}

fn print(format: Format, version: &EngineVersion) -> Result<(), Failure> {
    format.print(version, one)
}

fn lifecycle(version: &EngineVersion) -> String {
    format!("{:?}", version.lifecycle).to_lowercase()
}

fn table(versions: &[EngineVersion]) -> String {
    output::rows(
        ["SERVICE", "VERSION", "LIFECYCLE", "KIND", "NEEDS", "EXPIRES"],
        versions.iter().map(|version| {
            [
                version.service.clone(),
                version.version.clone(),
                lifecycle(version),
                version.launch.kind.clone(),
                Resources::from(version.resources).to_string(),
                or_dash(version.expires_at.map(time)),
            ]
        }),
    )
}

fn one(version: &EngineVersion) -> String {
    fields([
        ("service", version.service.clone()),
        ("version", version.version.clone()),
        ("lifecycle", lifecycle(version)),
        ("kind", version.launch.kind.clone()),
        ("image", version.launch.image.clone().unwrap_or_default()),
        ("program", version.launch.program.clone().unwrap_or_default()),
        ("arguments", version.launch.arguments.join(" ")),
        ("needs", Resources::from(version.resources).to_string()),
        ("expires", version.expires_at.map(time).unwrap_or_default()),
        ("changelog", version.changelog.clone()),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as Top};

    async fn published(arguments: &[&str]) -> Value {
        let all = ["telecine", "engines", "publish", "transform"].iter().chain(arguments);
        let Top::Engines(Command::Publish(arguments)) = Cli::parse_from(all).command else {
            panic!("publish")
        };
        publication(&arguments).await.unwrap()
    }

    #[tokio::test]
    async fn options_win_over_the_document() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engine.json");
        let document = json!({
            "version": "1.0.0", "launch": {"kind": "plain", "image": "old", "arguments": ["-i"]},
            "resources": {"cpu_milli": 500, "memory_bytes": 7}, "lifecycle": "candidate",
        });
        std::fs::write(&file, document.to_string()).unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(published(&["--file", file]).await, document);
        let changed =
            published(&["-f", file, "--version", "1.1.0", "--image", "new", "--cpu", "2", "--stable"]).await;
        let expected = json!({
            "version": "1.1.0", "launch": {"kind": "plain", "image": "new", "arguments": ["-i"]},
            "resources": {"cpu_milli": 2000, "memory_bytes": 7}, "lifecycle": "stable",
        });
        assert_eq!(changed, expected);
        let beside = json!({"service": "transform", "launch": "grpc", "processing_schema": "schema.json", "version": "1.0.0"});
        std::fs::write(file, beside.to_string()).unwrap();
        std::fs::write(folder.path().join("schema.json"), "{\"type\": \"object\"}").unwrap();
        let described = published(&["--file", file, "--image", "new"]).await;
        assert_eq!(described["launch"], json!({"kind": "grpc", "image": "new"}));
        assert_eq!(described["processing_schema"], json!({"type": "object"}));
        let plain = published(&["--version", "1.0.0", "--program", "/bin/true", "--argument=-x"]).await;
        assert_eq!(plain["launch"], json!({"kind": "command", "program": "/bin/true", "arguments": ["-x"]}));
        assert_eq!(plain["resources"]["cpu_milli"], 1000);
    }
}
