//! An API over a backend in memory, on a port of its own, and the binary run against it.

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use telecine_api::ApiState;
use telecine_core::access::{self, Scope};
use telecine_core::accounts;
use telecine_core::backend::Backend;
use telecine_domain::id::{AccountId, RegionName};
use telecine_domain::time::Timestamp;
use tokio::net::TcpListener;
use tokio::process::Command;

/// An API that ends with this value.
pub(crate) struct Server {
    pub(crate) backend: Backend,
    pub(crate) account: AccountId,
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap())
}

impl Server {
    pub(crate) async fn start() -> Self {
        let (backend, _) = Backend::memory(Arc::new(now));
        let region: RegionName = "local".parse().unwrap();
        let account = accounts::ensure_default(&backend, &region, now()).await.unwrap().id;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = ApiState::new(backend.clone(), Arc::new(now), vec![region.clone()], region);
        let task =
            tokio::spawn(async move { axum::serve(listener, telecine_api::router(state)).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { backend, account, url, key: String::new(), folder, task };
        server.key = server.make_key(Scope::Admin).await;
        server
    }

    pub(crate) async fn make_key(&self, scope: Scope) -> String {
        let scopes = BTreeSet::from([scope]);
        let made = access::create(&self.backend, self.account, "test", scopes, None, now()).await;
        made.unwrap().token.to_string()
    }

    /// The binary, pointed at this API.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = telecine(arguments);
        command.env("TELECINE_URL", &self.url).env("TELECINE_API_KEY", &self.key);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().await.unwrap().into()
    }

    /// A store `media` over the folder with `clip.mov`, an engine version of `transform`, and a composition's file.
    pub(crate) async fn furnish(&self) -> String {
        let folder = self.folder.path();
        std::fs::write(folder.join("clip.mov"), b"not really media").unwrap();
        self.run(&["stores", "create", "media", "--folder", folder.to_str().unwrap()]).await.expect(0);
        self.run(&["stores", "validate", "media"]).await.expect(0);
        let publish =
            ["engines", "publish", "transform", "--version", "1.0.0", "--program", "/bin/true", "--stable"];
        self.run(&publish).await.expect(0);
        let composition = serde_json::json!({
            "inputs": {"source": {"store": "media", "key": "clip.mov"}},
            "processing": {},
            "outputs": {"rendition": {"store": "media", "key": "out/clip.mp4"}},
        });
        let file = folder.join("composition.json");
        std::fs::write(&file, composition.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The binary without any API.
pub(crate) fn telecine(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_telecine"));
    command.args(arguments).kill_on_drop(true);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TELECINE_")) {
        command.env_remove(name);
    }
    command.env("TELECINE_DATA", "/nonexistent/telecine").env_remove("COLUMNS");
    command
}

/// What a run printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
