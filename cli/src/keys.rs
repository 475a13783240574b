//! `telecine keys`: API keys.

use clap::Subcommand;
use reqwest::Method;
use telecine_api::page::Listed;
use telecine_api::view::key::{ApiKey, CreateApiKey, CreatedApiKey};
use telecine_domain::time::Timestamp;

use crate::cli::Global;
use crate::client::Call;
use crate::connection;
use crate::failure::Failure;
use crate::output::{self, or_dash, time};
use crate::pages;

/// What can be done with API keys.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key; it is shown this once
    #[command(
        after_help = "Examples:\n  telecine keys create --name build\n  telecine keys create --name reports --scope read --expires-at 2027-01-01T00:00:00Z"
    )]
    Create {
        /// What it is for
        #[arg(long)]
        name: String,
        /// `read`, `write` or `admin`; what your key may do when left out
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// When it ends (RFC 3339)
        #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
        expires_at: Option<Timestamp>,
    },
    /// List the keys, without their secrets
    #[command(after_help = "Examples:\n  telecine keys list")]
    List(pages::Arguments),
    /// End a key at once
    #[command(after_help = "Examples:\n  telecine keys revoke key_01kaj...")]
    Revoke {
        /// Its id
        key: String,
    },
}

/// Does it.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn run(global: &Global, command: Command) -> Result<(), Failure> {
    let client = connection::client(global)?;
    match command {
        Command::Create { name, scopes, expires_at } => {
            let scopes = (!scopes.is_empty()).then_some(scopes);
            let body = CreateApiKey { name, scopes, expires_at };
            let created: CreatedApiKey =
                client.json(Call::new(Method::POST, &["api-keys"]).json(&body)?).await?;
            global.output.print(&created, |created| {
                output::note("keep it: it is not shown again");
                created.secret.clone()
            })
        }
        Command::List(page) => {
            let keys = pages::read::<ApiKey>(&client, Call::new(Method::GET, &["api-keys"]), &page).await?;
            global.output.print(&keys, |keys| pages::table(keys, table(keys)))
        }
        Command::Revoke { key } => {
            let key: ApiKey = client.json(Call::new(Method::POST, &["api-keys", &key, "revoke"])).await?;
            global.output.print(&key, |key| format!("{} is revoked", key.id))
        }
    }
}

fn table(keys: &Listed<ApiKey>) -> String {
    output::rows(
        ["ID", "NAME", "SCOPES", "CREATED", "EXPIRES"],
        keys.data.iter().map(|key| {
            [
                key.id.to_string(),
                key.name.clone(),
                key.scopes.join(" "),
                time(key.created_at),
                or_dash(key.expires_at.map(time)),
            ]
        }),
    )
}
