//! `telecine stores`: register the buckets and folders that jobs read and write.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;
use telecine_api::view::store::{CreateStore, ObjectEntry, Store, Validation};
use telecine_domain::resources::display_bytes;
use tokio::io::AsyncReadExt;

use crate::cli::Global;
use crate::client::{Call, Client};
use crate::connection;
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, fields, or_dash, time};
use crate::pages;

const CREATE_EXAMPLES: &str = "\
Examples:
  A folder of this machine:
      telecine stores create media --folder /srv/media
  A bucket of an S3-compatible service; the secret key comes from the environment:
      export TELECINE_SECRET_ACCESS_KEY=...
      telecine stores create media --bucket media --endpoint https://objects.example.com --access-key-id AKIA...
  Then prove that it works:
      telecine stores validate media";

/// What can be done with stores.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Register a store
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArguments>),
    /// List the stores
    #[command(after_help = "Examples:\n  telecine stores list")]
    List(pages::Arguments),
    /// Show one store
    #[command(after_help = "Examples:\n  telecine stores get media")]
    Get(Named),
    /// Try each permission for real and say which is missing (exit code 1 then)
    #[command(after_help = "Examples:\n  telecine stores validate media")]
    Validate(Named),
    /// Put a file into a store
    #[command(
        after_help = "Examples:\n  telecine stores put media clip.mov incoming/clip.mov\n  generate | telecine stores put media - incoming/clip.mov"
    )]
    Put {
        /// The store's id or name
        store: String,
        /// The file, or `-` for standard input
        file: PathBuf,
        /// The key; the file's name when left out
        key: Option<String>,
    },
    /// List the objects of a store
    #[command(after_help = "Examples:\n  telecine stores ls media --prefix incoming/")]
    Ls {
        /// The store's id or name
        store: String,
        /// Only keys that begin with this
        #[arg(long)]
        prefix: Option<String>,
        /// Which page
        #[command(flatten)]
        page: pages::Arguments,
    },
    /// Forget a store; its objects stay
    #[command(after_help = "Examples:\n  telecine stores delete media")]
    Delete(Named),
}

/// Names one store.
#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Its id or name
    store: String,
}

/// Arguments of `stores create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArguments {
    /// A name, unique in the account
    name: String,
    /// A folder
    #[arg(long, value_name = "DIR", conflicts_with = "bucket", required_unless_present = "bucket")]
    folder: Option<PathBuf>,
    /// A bucket
    #[arg(long)]
    bucket: Option<String>,
    /// Keys start below this; ends with `/`
    #[arg(long, requires = "bucket")]
    prefix: Option<String>,
    /// Base URL of a compatible service; AWS when left out
    #[arg(long, requires = "bucket", value_name = "URL")]
    endpoint: Option<String>,
    /// The bucket's AWS region, used for signing [default: us-east-1]
    #[arg(long, requires = "bucket", value_name = "REGION")]
    signing_region: Option<String>,
    /// An http:// endpoint is meant so
    #[arg(long, requires = "endpoint")]
    allow_http: bool,
    /// Unsigned requests
    #[arg(long, requires = "bucket", conflicts_with = "access_key_id")]
    anonymous: bool,
    /// Access key id
    #[arg(long, requires = "bucket", env = "TELECINE_ACCESS_KEY_ID")]
    access_key_id: Option<String>,
    /// The region whose compute is near the data; the default region when left out
    #[arg(long)]
    region: Option<String>,
}

/// The secret key has no option: arguments are seen by every user of the machine.
const SECRET_VARIABLE: &str = "TELECINE_SECRET_ACCESS_KEY";
/// The token of temporary keys.
const TOKEN_VARIABLE: &str = "TELECINE_SESSION_TOKEN";

/// Does it; the code of `validate` is 1 when a permission is missing.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<ExitCode, Failure> {
    let (client, format) = (connection::client(global)?, global.output);
    match command {
        Command::Create(arguments) => {
            let call = Call::new(Method::POST, &["stores"]).json(&creation(*arguments)?)?;
            format.print(&client.json(call).await?, one)?;
        }
        Command::List(page) => {
            let stores = pages::read::<Store>(&client, Call::new(Method::GET, &["stores"]), &page).await?;
            format.print(&stores, |stores| pages::table(stores, table(&stores.data)))?;
        }
        Command::Get(Named { store }) => {
            format.print(&client.get(Call::new(Method::GET, &["stores", &store])).await?, one)?;
        }
        Command::Validate(Named { store }) => return validate(&client, format, &store).await,
        Command::Put { store, file, key } => put(&client, format, &store, &file, key).await?,
        Command::Ls { store, prefix, page } => {
            let call = Call::new(Method::GET, &["stores", &store, "objects"]).query("prefix", prefix);
            let objects = pages::read::<ObjectEntry>(&client, call, &page).await?;
            format.print(&objects, |objects| pages::table(objects, objects_table(&objects.data)))?;
        }
        Command::Delete(Named { store }) => {
            client.send(Call::new(Method::DELETE, &["stores", &store])).await?;
            format.print(&json!({"deleted": store}), |_| format!("deleted {store}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn creation(arguments: CreateArguments) -> Result<CreateStore, Failure> {
    let secret = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let keys = arguments.access_key_id.is_some();
    if keys && secret(SECRET_VARIABLE).is_none() {
        return Err(Failure::usage(format!("--access-key-id needs the secret key in {SECRET_VARIABLE}")));
    }
    let folder = arguments.folder.map(|folder| {
        let absolute = std::path::absolute(&folder).unwrap_or(folder);
        absolute.to_string_lossy().into_owned()
    });
    Ok(CreateStore {
        name: arguments.name,
        provider: if folder.is_some() { "local" } else { "s3" }.to_owned(),
        folder,
        bucket: arguments.bucket,
        prefix: arguments.prefix,
        endpoint: arguments.endpoint,
        signing_region: arguments.signing_region,
        allow_http: arguments.allow_http.then_some(true),
        authentication: arguments.anonymous.then(|| "anonymous".to_owned()),
        access_key_id: arguments.access_key_id,
        secret_access_key: keys.then(|| secret(SECRET_VARIABLE)).flatten(),
        session_token: keys.then(|| secret(TOKEN_VARIABLE)).flatten(),
        region: arguments.region,
    })
}

async fn validate(client: &Client, format: Format, store: &str) -> Result<ExitCode, Failure> {
    let validation: Validation = client.json(Call::new(Method::POST, &["stores", store, "validate"])).await?;
    format.print(&validation, validation_table)?;
    Ok(if validation.ok { ExitCode::SUCCESS } else { ExitCode::from(Exit::Failed as u8) })
}

async fn put(
    client: &Client,
    format: Format,
    store: &str,
    file: &Path,
    key: Option<String>,
) -> Result<(), Failure> {
    let name =
        file.file_name().filter(|_| file != Path::new("-")).map(|name| name.to_string_lossy().into_owned());
    let key = key.or(name).ok_or_else(|| Failure::usage("give a key for what comes from standard input"))?;
    let segments: Vec<&str> = ["stores", store, "objects"].into_iter().chain(key.split('/')).collect();
    let call = Call::new(Method::PUT, &segments);
    let opened = open(file).await;
    let opened =
        opened.map_err(|error| Failure::usage(format!("{} cannot be read: {error}", file.display())))?;
    let answer = client.upload(&call, stream(opened)).await?;
    let entry: ObjectEntry = answer
        .json()
        .await
        .map_err(|error| Failure::new(Exit::Failed, format!("the answer was not understood: {error}")))?;
    format.print(&entry, |entry| {
        format!("{} {}", output::printable(&entry.key), display_bytes(entry.size_bytes))
    })
}

async fn open(file: &Path) -> std::io::Result<tokio::fs::File> {
    if file == Path::new("-") {
        let descriptor = std::io::stdin().as_fd().try_clone_to_owned()?;
        return Ok(std::fs::File::from(descriptor).into());
    }
    tokio::fs::File::open(file).await
}

const CHUNK_BYTES: usize = 256 * 1024;

fn stream(reader: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> reqwest::Body {
    let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = reader.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then_some((chunk, reader)))
    });
    reqwest::Body::wrap_stream(chunks)
}

fn place(store: &Store) -> String {
    match (&store.folder, &store.bucket) {
        (Some(folder), _) => folder.clone(),
        (None, Some(bucket)) => format!("s3://{bucket}/{}", store.prefix.as_deref().unwrap_or("")),
        (None, None) => String::new(),
    }
}

fn proven(store: &Store) -> &'static str {
    match &store.validation {
        None => "not validated",
        Some(validation) if validation.ok => "works",
        Some(_) => "something is missing",
    }
}

fn table(stores: &[Store]) -> String {
    output::rows(
        ["ID", "NAME", "PLACE", "REGION", "ACCESS"],
        stores.iter().map(|store| {
            [
                store.id.to_string(),
                store.name.clone(),
                place(store),
                store.region.clone(),
                proven(store).to_owned(),
            ]
        }),
    )
}

fn one(store: &Store) -> String {
    let text = fields([
        ("id", store.id.to_string()),
        ("name", store.name.clone()),
        ("place", place(store)),
        ("endpoint", store.endpoint.clone().unwrap_or_default()),
        ("authentication", store.authentication.clone().unwrap_or_default()),
        ("region", store.region.clone()),
        ("created", time(store.created_at)),
        ("access", proven(store).to_owned()),
    ]);
    match &store.validation {
        Some(validation) => format!("{text}\n\n{}", validation_table(validation)),
        None => text,
    }
}

fn validation_table(validation: &Validation) -> String {
    let rows = validation.checks.iter().map(|check| {
        let problem = check.problem.clone().unwrap_or_else(|| "works".to_owned());
        [format!("{:?}", check.permission).to_lowercase(), problem]
    });
    let mut text = output::rows(["PERMISSION", "RESULT"], rows);
    for note in &validation.notes {
        text += &format!("\nnote: {note}");
    }
    text
}

fn objects_table(objects: &[ObjectEntry]) -> String {
    output::rows(
        ["KEY", "SIZE", "MODIFIED", "ETAG"],
        objects.iter().map(|object| {
            [
                object.key.clone(),
                display_bytes(object.size_bytes),
                or_dash(object.modified_at.map(time)),
                object.etag.clone(),
            ]
        }),
    )
}
