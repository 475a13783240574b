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
  From the description beside its source, with the image just pushed:
      telecine engines publish transform --file engine-version.json --image registry.example.com/transform@sha256:9f86..."#;

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
    /// File with the version as JSON, or `-`; --version and --image win over what it says
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["program", "schema"])]
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
    /// Cores a job needs
    #[arg(long, value_parser = quantity::cores, default_value = "1", value_name = "CORES")]
    cpu: u64,
    /// Memory a job needs
    #[arg(long, value_parser = quantity::size, default_value = "1GiB", value_name = "SIZE")]
    memory: u64,
    /// Scratch space a job needs
    #[arg(long, value_parser = quantity::size, default_value = "0", value_name = "SIZE")]
    scratch: u64,
    /// GPUs a job needs
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    gpus: u64,
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

async fn publication(arguments: &PublishArguments) -> Result<Value, Failure> {
    if let Some(file) = &arguments.file {
        return described(file, arguments).await;
    }
    let mut body = json!({
        "version": arguments.version,
        "launch": launch(arguments),
        "resources": {
            "cpu_milli": arguments.cpu,
            "memory_bytes": arguments.memory,
            "scratch_bytes": arguments.scratch,
            "gpus": arguments.gpus,
        },
        "lifecycle": if arguments.stable { "stable" } else { "candidate" },
        "changelog": arguments.changelog.as_deref().unwrap_or(""),
    });
    if let Some(schema) = &arguments.schema {
        body["processing_schema"] = document::read(schema).await?;
    }
    Ok(body)
}

/// A file as it lies beside an engine's source: `launch` may be just `grpc` or `plain`, with the image on the command
/// line, and `processing_schema` the path of the schema beside the file.
async fn described(file: &Path, arguments: &PublishArguments) -> Result<Value, Failure> {
    let mut body: Map<String, Value> = document::read(file).await?;
    if let Some(service) = body.remove("service")
        && service != arguments.service
    {
        return Err(Failure::usage(format!(
            "{} describes service {service}, not {}",
            file.display(),
            arguments.service
        )));
    }
    if let Some(version) = &arguments.version {
        body.insert("version".to_owned(), json!(version));
    }
    if let Some(Value::String(schema)) = body.get("processing_schema") {
        let schema = file.parent().unwrap_or(Path::new("")).join(schema);
        body.insert("processing_schema".to_owned(), document::read(&schema).await?);
    }
    if let Some(image) = &arguments.image {
        let launch = body.entry("launch").or_insert_with(|| json!("grpc"));
        if let Value::String(kind) = launch {
            *launch = json!({"kind": kind, "arguments": []});
        }
        launch["image"] = json!(image);
    }
    Ok(Value::Object(body))
}

fn launch(arguments: &PublishArguments) -> Value {
    match (&arguments.program, arguments.plain) {
        (Some(program), _) => {
            json!({"kind": "command", "program": program, "arguments": arguments.arguments})
        }
        (None, true) => json!({"kind": "plain", "image": arguments.image, "arguments": arguments.arguments}),
        (None, false) => json!({"kind": "grpc", "image": arguments.image, "arguments": arguments.arguments}),
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
