//! The coordinator: one process per instance, between the manager and the workers.
//!
//! It enrols, says what the instance has, accepts attempts within it, mounts, launches workers, relays their requests
//! for certificates, and cleans up after them: container first, then mount, then scratch, then the report. It keeps
//! nothing in memory that its successor could not find again: an attempt is its folder, a living worker a held lock.

mod aftermath;
mod assign;
mod cordon;
mod desk;
mod enrol;
mod notice;
mod orders;
mod outputs;
mod recovery;
mod session;
mod supervisor;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use telecine_domain::id::InstanceId;
use telecine_proto::net::Network;
use telecine_proto::tasks::Tasks;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::AgentConfig;
use crate::folder::write_file;
use crate::inventory::InventoryError;
use crate::launcher::WorkerLauncher;
use crate::mounts;
use crate::runtime::Runtimes;

use desk::Desk;

/// Between two looks at the machine's health.
const HEALTH_PERIOD: Duration = Duration::from_secs(10);

/// What the coordinator works with.
pub struct CoordinatorParts {
    /// The way to managers.
    pub network: Arc<dyn Network>,
    /// The ways to run engines.
    pub runtimes: Runtimes,
    /// Docker's API version that was agreed on.
    pub docker_version: Option<(usize, usize)>,
    /// How workers come to be.
    pub launcher: Arc<dyn WorkerLauncher>,
    /// The clocks.
    pub clock: Clock,
}

/// How to end a coordinator.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Take nothing new, finish what runs, then end.
    pub drain: CancellationToken,
    /// End at once and leave the workers to the next coordinator.
    pub now: CancellationToken,
}

/// Why a coordinator cannot run.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The data folder cannot be used.
    #[error("data folder: cannot {action} {path}")]
    Data {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent works in the data folder.
    #[error(
        "data folder {folder}: the agent with process id {pid} works there already; stop it or choose another folder"
    )]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// The other agent.
        pid: String,
    },
    /// The folder belongs to another instance.
    #[error(
        "data folder {folder} belongs to instance {found}, the configuration says {configured}; correct instance_id or data_folder"
    )]
    OtherInstance {
        /// The folder.
        folder: PathBuf,
        /// Whose it is.
        found: InstanceId,
        /// Who was expected.
        configured: InstanceId,
    },
    /// The machine cannot be measured.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A file that the agent needs cannot be used.
    #[error("{field} {path}: {problem}")]
    File {
        /// The configuration's key.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A task of the coordinator panicked.
    #[error("a task of the agent panicked, so the agent ends; running attempts go on, start it again: {0}")]
    Panicked(String),
}

/// Runs the coordinator until it has drained or is told to leave.
///
/// # Errors
/// When it cannot begin: the data folder, the authority's certificate or the join token cannot be used. When one of its
/// tasks panics: its workers live on for the next coordinator.
pub async fn run(
    config: AgentConfig,
    parts: CoordinatorParts,
    shutdown: Shutdown,
) -> Result<(), CoordinatorError> {
    let data = config.data_folder.clone();
    make_folders(&config)?;
    let _lock = lock(&data)?;
    let instance = instance_id(&data, config.instance_id, parts.clock)?;
    let dialer = enrol::dialer(&config, &parts)?;
    let shares_mounts =
        parts.runtimes.keys().any(|kind| matches!(kind, telecine_domain::instance::RuntimeKind::Docker));
    let shared = if shares_mounts { mounts::share(&config.attempts_folder()) } else { Ok(()) };
    if let Err(error) = shared {
        tracing::warn!(%error, "mounts cannot be shared with containers; run the agent as root");
    }
    let desk = Desk::open(config, parts, instance).await?;
    tracing::info!(%instance, capacity = %desk.capacity(), "the agent starts");

    let tasks = Tasks::default();
    recovery::find_attempts(&desk, &tasks);
    tasks.spawn(session::keep(desk.clone(), dialer, tasks.clone()));
    tasks.spawn(recovery::remove_strays(desk.clone()));
    tasks.spawn(aftermath::settle_journals(desk.clone()));
    tasks.spawn(watch_health(desk.clone()));
    tasks.spawn(notice::watch(desk.clone()));
    let ended = tokio::select! {
        () = shutdown.now.cancelled() => { tracing::info!("leaving; workers go on"); Ok(()) }
        () = drained(&desk, &shutdown) => { tracing::info!("drained"); Ok(()) }
        message = tasks.panicked() => Err(CoordinatorError::Panicked(message)),
    };
    tasks.end().await;
    if desk.is_empty() {
        let unmounted = mounts::unmount_all(&desk.config.attempts_folder());
        unmounted.unwrap_or_else(|error| tracing::warn!(%error, "a mount stays behind"));
    }
    ended
}

async fn drained(desk: &Arc<Desk>, shutdown: &Shutdown) {
    shutdown.drain.cancelled().await;
    tracing::info!("draining: no new work is taken");
    desk.drain();
    desk.until_empty().await;
}

async fn watch_health(desk: Arc<Desk>) {
    loop {
        tokio::time::sleep(HEALTH_PERIOD).await;
        desk.look().await;
    }
}

fn data_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CoordinatorError {
    let path = path.to_owned();
    move |source| CoordinatorError::Data { action, path, source }
}

fn make_folders(config: &AgentConfig) -> Result<(), CoordinatorError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let folders =
        [config.data_folder.clone(), config.attempts_folder(), pulls_folder(config), journals_folder(config)];
    for folder in folders {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(data_error("make", &folder))?;
    }
    Ok(())
}

fn pulls_folder(config: &AgentConfig) -> PathBuf {
    config.data_folder.join("pulls")
}

/// Journals of dead attempts, until their epochs are closed.
fn journals_folder(config: &AgentConfig) -> PathBuf {
    config.data_folder.join("journals")
}

/// One agent per data folder, for as long as the file stays open.
fn lock(data: &Path) -> Result<File, CoordinatorError> {
    let path = data.join("agent.lock");
    let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
    let mut file = opened.map_err(data_error("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            return Err(CoordinatorError::Taken { folder: data.to_owned(), pid: pid.trim().to_owned() });
        }
        Err(error) => return Err(data_error("lock", &path)(error.into())),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(data_error("write", &path))?;
    Ok(file)
}

/// Made once, kept in the data folder.
fn instance_id(
    data: &Path,
    configured: Option<InstanceId>,
    clock: Clock,
) -> Result<InstanceId, CoordinatorError> {
    let path = data.join("instance-id");
    let found = match std::fs::read_to_string(&path) {
        Ok(text) => Some(text.trim().parse::<InstanceId>().map_err(|error| CoordinatorError::File {
            field: "instance id",
            path: path.clone(),
            problem: format!(
                "{:?} is no instance id ({error}); write the id that the platform knows this instance by into the \
                 file, or remove it to enrol as a new instance",
                text.trim()
            ),
        })?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(data_error("read", &path)(error)),
    };
    match (found, configured) {
        (Some(found), Some(configured)) if found != configured => {
            Err(CoordinatorError::OtherInstance { folder: data.to_owned(), found, configured })
        }
        (Some(found), _) => Ok(found),
        (None, configured) => {
            let id = configured.unwrap_or_else(|| InstanceId::new(clock.now(), rand::random()));
            write_file(&path, id.to_string().as_bytes()).map_err(data_error("write", &path))?;
            Ok(id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_agent_and_one_instance() {
        let data = tempfile::tempdir().unwrap();
        let held = lock(data.path()).unwrap();
        let error = lock(data.path()).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(held);
        lock(data.path()).unwrap();
        let id = instance_id(data.path(), None, Clock::default()).unwrap();
        assert_eq!(instance_id(data.path(), None, Clock::default()).unwrap(), id);
        assert_eq!(instance_id(data.path(), Some(id), Clock::default()).unwrap(), id);
        let other = InstanceId::new(Clock::default().now(), 1);
        let error = instance_id(data.path(), Some(other), Clock::default()).unwrap_err();
        assert!(error.to_string().contains(&other.to_string()), "{error}");
        for damaged in ["", "nonsense"] {
            std::fs::write(data.path().join("instance-id"), damaged).unwrap();
            let error = instance_id(data.path(), None, Clock::default()).unwrap_err().to_string();
            assert!(error.contains("instance-id") && error.contains(&format!("{damaged:?}")), "{error}");
        }
    }
}
