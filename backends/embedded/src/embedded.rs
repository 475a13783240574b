//! Opens a data folder and gives the ports on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telecine_core::Backend;
use telecine_core::memory::{MemoryQueue, StoredCredentials};
use telecine_core::ports::Clock;
use telecine_core::system_store::SystemStore;
use telecine_domain::id::RegionName;
use telecine_domain::store::Provider;
use telecine_domain::time::Timestamp;
use telecine_stores::{OpenError, OpenedStore, StoreSecret};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::instances::{AgentCommand, LocalInstances, LocalInstancesError, LocalPool, Provisioner};
use crate::keys::{FileKeys, KeyFileError};
use crate::lock::{FolderLock, LockError};
use crate::table::{SchemaError, SqliteTable};

const DATABASE: &str = "telecine.db";
const KEY_FILE: &str = "master.key";
const SYSTEM_FOLDER: &str = "system";
const AGENTS_FOLDER: &str = "agents";
/// A folder with one of these is a data folder.
const OURS: [&str; 3] = [DATABASE, KEY_FILE, "telecine.toml"];
/// Expired rows are hidden at once; this is only when their space is won back.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What an operator decides.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// The data folder; made when it is missing, for its owner only.
    pub folder: PathBuf,
    /// Pools of agents on this machine; may be empty.
    pub pools: Vec<LocalPool>,
    /// The regions that are run; empty when nobody minds.
    pub regions: Vec<RegionName>,
    /// How an agent is started.
    pub agent: AgentCommand,
    /// Writes what an agent needs to join.
    pub provisioner: Arc<dyn Provisioner>,
    /// Time that a retired agent has for what it runs, before it is killed.
    pub drain_limit: Duration,
    /// Time that an agent has to make way for one with another configuration, before it is killed; its workers go on
    /// all the same.
    pub leave_limit: Duration,
}

/// A data folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// It cannot be made or looked at.
    #[error("the data folder {folder:?} cannot be used: {source}")]
    Folder {
        /// Which.
        folder: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// Others may look into it, and it is not certain that it is only ours.
    #[error(
        "the data folder {folder:?} holds other files and may be read by others (mode {mode:03o}), and secrets would lie in it: choose a folder of its own, or run `chmod 700` on this one"
    )]
    Open {
        /// Which.
        folder: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It lies on a file system of the network.
    #[error(
        "the data folder {folder:?} is on a network file system ({kind}), which cannot hold the database safely: choose a folder on a local disk"
    )]
    NetworkFileSystem {
        /// Which.
        folder: PathBuf,
        /// Which sort.
        kind: &'static str,
    },
    /// Somebody else has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its database.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Its key.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The platform's own objects.
    #[error(transparent)]
    System(#[from] OpenError),
    /// Its agents.
    #[error(transparent)]
    Instances(#[from] LocalInstancesError),
}

/// An open data folder. `close` it: what runs behind it ends then.
pub struct Embedded {
    /// The truth.
    pub table: Arc<SqliteTable>,
    /// Hints; empty at start, filled again by the sweep.
    pub queue: Arc<MemoryQueue>,
    /// Seals secrets.
    pub keys: Arc<FileKeys>,
    /// Agents on this machine, those of the process before among them.
    pub instances: Arc<LocalInstances>,
    /// The platform's own objects.
    pub system: OpenedStore,
    folder: PathBuf,
    regions: Arc<[RegionName]>,
    background: TaskTracker,
    ending: CancellationToken,
}

impl Embedded {
    /// Takes the folder, opens or makes what is in it, and finds the agents again that run from it.
    ///
    /// # Errors
    /// See [`EmbeddedError`]; every message names the folder or the file and what to do.
    pub async fn open(config: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        let clock: Clock = Arc::new(system_time);
        let folder = prepare(&config.folder)?;
        let lock = FolderLock::take(&folder)?;
        let database = folder.join(DATABASE);
        let keys = Arc::new(FileKeys::open(&folder.join(KEY_FILE), !database.exists())?);
        let table = Arc::new(SqliteTable::open(&database, clock, Some(lock))?);
        let system = folder_inside(&folder, SYSTEM_FOLDER)?;
        let provider = Provider::Local { folder: system.to_string_lossy().into_owned() };
        let system = telecine_stores::open(&provider, &StoreSecret::None)?;
        let agents = folder_inside(&folder, AGENTS_FOLDER)?;
        let limits = (config.drain_limit, config.leave_limit);
        let instances = LocalInstances::open(agents, config.pools, config.agent, config.provisioner, limits);
        let instances = Arc::new(instances.await?);
        let (background, ending) = (TaskTracker::new(), CancellationToken::new());
        background.spawn(sweep(Arc::clone(&table), ending.clone()));
        background.spawn(Arc::clone(&instances).supervise(ending.clone()));
        background.close();
        let queue = Arc::new(MemoryQueue::default());
        let regions = config.regions.into();
        Ok(Self { table, queue, keys, instances, system, folder, regions, background, ending })
    }

    /// One of each port.
    pub fn backend(&self) -> Backend {
        Backend {
            table: self.table.clone(),
            queue: self.queue.clone(),
            keys: self.keys.clone(),
            credentials: Arc::new(StoredCredentials::new(self.table.clone(), self.keys.clone())),
            instances: self.instances.clone(),
            system: SystemStore::over(self.system.clone()),
            forbidden_folders: Arc::from([self.folder.clone()]),
            regions: self.regions.clone(),
        }
    }

    /// Ends what runs in the background; agents go on. The folder is free for the next process when this value and
    /// every `Backend` made of it are dropped.
    pub async fn close(&self) {
        self.ending.cancel();
        self.background.wait().await;
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

/// Asks the agents of a data folder that no process is using to finish and end, waits up to `limit`, and says how many
/// still run.
///
/// # Errors
/// When the folder is in use or cannot be read.
pub async fn drain_agents(folder: &Path, limit: Duration) -> Result<usize, EmbeddedError> {
    let folder = prepare(folder)?;
    let _lock = FolderLock::take(&folder)?;
    let agents = folder_inside(&folder, AGENTS_FOLDER)?;
    Ok(LocalInstances::found_in(agents).await?.drain_all(limit).await)
}

fn system_time() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

async fn sweep(table: Arc<SqliteTable>, ending: CancellationToken) {
    loop {
        tokio::select! {
            () = ending.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        match table.sweep_expired().await {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "expired rows removed"),
            Err(error) => tracing::warn!(%error, "expired rows were not removed; they are tried again"),
        }
    }
}

/// The folder's absolute path, made when it is missing.
fn prepare(folder: &Path) -> Result<PathBuf, EmbeddedError> {
    let failed = |source| EmbeddedError::Folder { folder: folder.to_owned(), source };
    make_private(folder).map_err(failed)?;
    let folder = folder.canonicalize().map_err(failed)?;
    let system = rustix::fs::statfs(&folder).map_err(|error| failed(error.into()))?;
    if let Some(kind) = network_kind(system.f_type) {
        return Err(EmbeddedError::NetworkFileSystem { folder, kind });
    }
    close_to_others(&folder)?;
    Ok(folder)
}

/// A folder that was there already may be open to others. One that is empty, or has been a data folder before, or was made
/// for its settings, is closed; one with anything else in it may be somebody's home, and is refused.
fn close_to_others(folder: &Path) -> Result<(), EmbeddedError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| EmbeddedError::Folder { folder: folder.to_owned(), source };
    let mode = std::fs::metadata(folder).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let is_empty = std::fs::read_dir(folder).map_err(failed)?.next().is_none();
    if !is_empty && !OURS.iter().any(|name| folder.join(name).exists()) {
        return Err(EmbeddedError::Open { folder: folder.to_owned(), mode });
    }
    tracing::info!(folder = %folder.display(), mode = format_args!("{mode:03o}"), "the data folder was open to others and is closed to them now");
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed)
}

/// File systems on which neither locks nor shared memory can be trusted (numbers of `statfs(2)`).
fn network_kind(magic: i64) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b => Some("SMB"),
        0xff53_4d42 => Some("CIFS"),
        0xfe53_4d42 => Some("SMB2"),
        0x0102_1997 => Some("9P"),
        _ => None,
    }
}

fn folder_inside(folder: &Path, name: &str) -> Result<PathBuf, EmbeddedError> {
    let inside = folder.join(name);
    match make_private(&inside) {
        Ok(()) => Ok(inside),
        Err(source) => Err(EmbeddedError::Folder { folder: inside, source }),
    }
}

fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
