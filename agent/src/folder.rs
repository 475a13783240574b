//! The folder of an attempt: all that outlives the processes that work on it.
//!
//! ```text
//! <data>/attempts/<job>-<attempt>-<epoch>/
//!   assignment.json   what is to be done, as accepted; written before the manager is told so
//!   lock              held by the living worker: a lock that is free means that the worker is dead
//!   worker.sock       the worker listens for the coordinator
//!   result.json       how it ended, written before the worker exits
//!   journal           uploads and hidden files begun, written by the mount before their first byte
//!   spill/            outputs on their way to an object store
//!   m/                what the engine sees as /telecine: job.json, data/ (the mount), run/ (the engine's socket)
//! ```
//! Invariant: no secret is ever written here.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use telecine_domain::attempt::{AttemptId, Counters};
use telecine_domain::failure::Failure;
use telecine_domain::id::{AccountId, AttemptNumber, Epoch, InstanceId, RegionName};
use telecine_domain::job::JobSpec;
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;
use telecine_domain::trace::TraceId;

/// What a worker needs to know to run its attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The attempt.
    pub attempt: AttemptId,
    /// Whose job it is.
    pub account: AccountId,
    /// What is to be done.
    pub spec: JobSpec,
    /// What it may use.
    pub resources: Resources,
    /// Ids of its GPUs.
    pub gpus: Vec<String>,
    /// Length of its lease, in milliseconds.
    pub lease_millis: u32,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The trace of its job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceId>,
    /// Whether `data/` is a mount, whose device the worker finds as its stdin.
    pub mounted: bool,
    /// The surroundings.
    pub surroundings: Surroundings,
}

/// What the coordinator tells each worker about the instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    /// The instance.
    pub instance: InstanceId,
    /// Its region.
    pub region: RegionName,
    /// Managers, in the order to try.
    pub managers: Vec<String>,
    /// Certificate of the platform's authority, PEM.
    pub ca_pem: String,
    /// Docker's socket.
    pub docker_socket: PathBuf,
    /// Version of Docker's API that was agreed on, when Docker is used.
    pub docker_version: Option<(usize, usize)>,
    /// User and group of engines.
    pub engine_user: (u32, u32),
    /// Most processes of an engine.
    pub pids_limit: u32,
    /// Bytes of memory for the block cache.
    pub cache_bytes: u64,
    /// Bytes of disk for outputs on their way to an object store.
    pub spill_bytes: u64,
    /// Folder of the lock files that let one pull serve several attempts.
    pub pulls_folder: PathBuf,
    /// JSON log lines instead of text.
    pub json_logs: bool,
}

/// How an attempt ended, as its worker saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Its outputs are published.
    Published,
    /// Its outputs were granted; not all could be published.
    Granted(Failure),
    /// It failed without a grant.
    Failed(Failure),
    /// Its instance is taken away; nothing of it counts.
    Interrupted(Failure),
    /// It was stopped as asked.
    Stopped,
    /// It lost its right; nothing of it counts.
    Fenced,
}

/// The content of `result.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptResult {
    /// How it ended.
    pub outcome: Outcome,
    /// What it moved.
    pub counters: Counters,
    /// Whether the manager has answered that it knows.
    pub acknowledged: bool,
    /// Whether nothing of its uploads is left that would have to be taken away.
    pub clean: bool,
    /// When.
    pub at: Timestamp,
}

/// Why an attempt's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The file system refused.
    #[error("attempt folder: cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the folder cannot be understood.
    #[error("attempt folder: {path} is damaged: {message}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The folder of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptFolder {
    path: PathBuf,
}

/// The lock of an attempt, held until dropped.
#[derive(Debug)]
pub struct AttemptLock {
    _file: File,
}

impl AttemptFolder {
    /// The name of an attempt's folder and of its container.
    pub fn name_of(attempt: &AttemptId) -> String {
        format!("{}-{}-{}", attempt.job, attempt.attempt, attempt.epoch)
    }

    /// The attempt of a name that `name_of` made.
    pub fn attempt_of(name: &str) -> Option<AttemptId> {
        let mut parts = name.split('-');
        let attempt = AttemptId {
            job: parts.next()?.parse().ok()?,
            attempt: AttemptNumber(parts.next()?.parse().ok()?),
            epoch: Epoch(parts.next()?.parse().ok()?),
        };
        (Self::name_of(&attempt) == name).then_some(attempt)
    }

    /// The folder of `attempt` below `attempts`; it need not be there.
    pub fn of(attempts: &Path, attempt: &AttemptId) -> Self {
        Self { path: attempts.join(Self::name_of(attempt)) }
    }

    /// The folder at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes the folder with everything a worker expects. Done before, it is done again without harm.
    ///
    /// # Errors
    /// When the file system refuses (no space, no permission).
    pub fn create(attempts: &Path, assignment: &Assignment) -> Result<Self, FolderError> {
        let folder = Self::of(attempts, &assignment.attempt);
        make_folder(&folder.path, 0o700)?;
        make_folder(&folder.spill(), 0o700)?;
        // The engine passes through these; what it may do below is the mount's matter.
        make_folder(&folder.engine_folder(), 0o755)?;
        make_folder(&folder.mountpoint(), 0o755)?;
        make_folder(&folder.run_folder(), 0o755)?;
        let lock = folder.lock_file();
        File::create(&lock).map_err(at("make", &lock))?;
        // Last: a folder without it was never accepted.
        folder.write("assignment.json", assignment)?;
        sync_folder(attempts).map_err(at("sync", attempts))?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name of the folder and of the container.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What the engine sees as `/telecine`.
    pub fn engine_folder(&self) -> PathBuf {
        self.path.join("m")
    }

    /// Where inputs and outputs are mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.path.join("m/data")
    }

    /// Where the engine binds its socket.
    pub fn run_folder(&self) -> PathBuf {
        self.path.join("m/run")
    }

    /// Where the worker listens.
    pub fn socket(&self) -> PathBuf {
        self.path.join("worker.sock")
    }

    /// What the mount has begun.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Outputs on their way.
    pub fn spill(&self) -> PathBuf {
        self.path.join("spill")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// What is to be done; `None` when the folder was never finished.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn assignment(&self) -> Result<Option<Assignment>, FolderError> {
        self.read("assignment.json")
    }

    /// How it ended; `None` while nobody has said so.
    ///
    /// # Errors
    /// When the file cannot be read or understood.
    pub fn result(&self) -> Result<Option<AttemptResult>, FolderError> {
        self.read("result.json")
    }

    /// Records how it ended.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_result(&self, result: &AttemptResult) -> Result<(), FolderError> {
        self.write("result.json", result)
    }

    /// Writes the document that the engine may read.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write_job(&self, job: &serde_json::Value) -> Result<(), FolderError> {
        let path = self.path.join("m/job.json");
        // Not made to outlive a power loss: after one nobody reads it.
        replace(&path, &encode(&path, job)?).map_err(at("write", &path))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))
            .map_err(at("open to the engine", &path))
    }

    /// Takes the lock, or says by `None` that a worker holds it.
    ///
    /// # Errors
    /// When there is no such folder, or it was removed in the same moment.
    pub fn try_lock(&self) -> Result<Option<AttemptLock>, FolderError> {
        let path = self.lock_file();
        let file = File::options().read(true).write(true).open(&path).map_err(at("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(at("lock", &path)(error.into())),
        }
        // The folder may have been removed, and made again, between the opening and the lock.
        let (mine, there) = (file.metadata(), std::fs::metadata(&path));
        let same = matches!((&mine, &there), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()));
        if !same {
            return Err(at("lock", &path)(io::ErrorKind::NotFound.into()));
        }
        Ok(Some(AttemptLock { _file: file }))
    }

    /// Removes the folder. Mounts inside must be gone: what is mounted is never removed through here.
    ///
    /// # Errors
    /// When something is still mounted in it or the file system refuses.
    pub fn remove(&self) -> Result<(), FolderError> {
        match remove_tree(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }

    fn read<T: DeserializeOwned>(&self, file: &str) -> Result<Option<T>, FolderError> {
        let path = self.path.join(file);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("read", &path)(error)),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| FolderError::Damaged { path, message: error.to_string() })
    }

    fn write<T: Serialize>(&self, file: &str, value: &T) -> Result<(), FolderError> {
        let path = self.path.join(file);
        write_file(&path, &encode(&path, value)?).map_err(at("write", &path))
    }
}

fn encode<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, FolderError> {
    serde_json::to_vec(value)
        .map_err(|error| FolderError::Damaged { path: path.to_owned(), message: error.to_string() })
}

/// Writes a file so that readers see all of it or none of it, also after the death of this process or a loss of power;
/// once this has returned, they see all of it.
///
/// # Errors
/// When the file system refuses.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // The content first: a file system may keep a rename and lose what was written before it.
    let temporary = prepare(path, bytes)?;
    File::open(&temporary)?.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path.parent().unwrap_or(path))
}

/// As [`write_file`], except that a loss of power may leave the old file or an empty one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::rename(prepare(path, bytes)?, path)
}

fn prepare(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.set_permissions(PermissionsExt::from_mode(0o600))?;
    file.write_all(bytes)?;
    Ok(temporary)
}

/// Makes the names in a folder outlive a loss of power.
fn sync_folder(folder: &Path) -> io::Result<()> {
    // The parent of a bare name is empty and means this folder.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

fn make_folder(path: &Path, mode: u32) -> Result<(), FolderError> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(at("make", path))?,
    }
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(at("set the mode of", path))
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

/// Removes a tree without crossing into another file system: a mount that could not be taken away keeps its content.
fn remove_tree(path: &Path) -> io::Result<()> {
    let device = std::fs::symlink_metadata(path)?.dev();
    remove_on(path, device)
}

fn remove_on(path: &Path, device: u64) -> io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.dev() != device {
            return Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is mounted", entry.path().display()),
            ));
        }
        if metadata.is_dir() {
            remove_on(&entry.path(), device)?
        } else {
            std::fs::remove_file(entry.path())?
        }
    }
    std::fs::remove_dir(path)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;
    use telecine_domain::failure::FailureClass;

    use super::*;

    /// An assignment of a plain command without inputs and outputs.
    pub(crate) fn assignment() -> Assignment {
        let spec = json!({
            "service": "transform",
            "engine": {"version": "1.0.0", "launch": {"command": {"program": "/bin/true"}}},
            "composition": {"inputs": {}, "outputs": {}},
            "inputs": {},
            "region": "local",
            "resources": {"cpu_milli": 100},
            "priority": 500,
            "origin": "api"
        });
        Assignment {
            attempt: AttemptId {
                job: "job_00000000000000000000000001".parse().unwrap(),
                attempt: telecine_domain::id::AttemptNumber(1),
                epoch: telecine_domain::id::Epoch(7),
            },
            account: AccountId::PLATFORM,
            spec: serde_json::from_value(spec).unwrap(),
            resources: Resources { cpu_milli: 100, ..Resources::ZERO },
            gpus: Vec::new(),
            lease_millis: 60_000,
            accepted_at: Timestamp::from_millis(5),
            trace: None,
            mounted: false,
            surroundings: Surroundings {
                instance: "ins_00000000000000000000000001".parse().unwrap(),
                region: "local".parse().unwrap(),
                managers: vec!["manager:1".to_owned()],
                ca_pem: String::new(),
                docker_socket: "/var/run/docker.sock".into(),
                docker_version: None,
                engine_user: (65534, 65534),
                pids_limit: 64,
                cache_bytes: 1 << 20,
                spill_bytes: 1 << 20,
                pulls_folder: "/tmp".into(),
                json_logs: false,
            },
        }
    }

    #[test]
    fn what_is_accepted_is_found_again() {
        let attempts = tempfile::tempdir().unwrap();
        let assignment = assignment();
        let folder = AttemptFolder::create(attempts.path(), &assignment).unwrap();
        assert_eq!(folder.name(), "job_00000000000000000000000001-1-7");
        assert_eq!(AttemptFolder::create(attempts.path(), &assignment).unwrap(), folder);
        let found = AttemptFolder::at(folder.path().to_owned());
        assert_eq!(found.assignment().unwrap(), Some(assignment));
        assert_eq!(found.result().unwrap(), None);
        let result = AttemptResult {
            outcome: Outcome::Failed(Failure::new(FailureClass::Engine, "engine_exit", "exit code 1")),
            counters: Counters::default(),
            acknowledged: false,
            clean: true,
            at: Timestamp::from_millis(9),
        };
        folder.write_result(&result).unwrap();
        assert_eq!(found.result().unwrap(), Some(result));
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_half_made_folder_and_a_damaged_file_are_told_apart() {
        let attempts = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::create(attempts.path(), &assignment()).unwrap();
        std::fs::write(folder.path().join("assignment.json"), "{\"attempt\":").unwrap();
        assert!(matches!(folder.assignment(), Err(FolderError::Damaged { .. })));
        std::fs::remove_file(folder.path().join("assignment.json")).unwrap();
        assert_eq!(folder.assignment().unwrap(), None);
    }

    #[test]
    fn the_lock_has_one_holder_and_dies_with_the_folder() {
        let attempts = tempfile::tempdir().unwrap();
        let folder = AttemptFolder::create(attempts.path(), &assignment()).unwrap();
        let held = folder.try_lock().unwrap();
        assert!(held.is_some());
        assert!(folder.try_lock().unwrap().is_none());
        drop(held);
        assert!(folder.try_lock().unwrap().is_some());
        folder.remove().unwrap();
        assert!(folder.try_lock().is_err());
    }

    #[test]
    fn removal_follows_no_link() {
        let attempts = tempfile::tempdir().unwrap();
        let outside = attempts.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "1").unwrap();
        let folder = AttemptFolder::create(attempts.path(), &assignment()).unwrap();
        std::os::unix::fs::symlink(&outside, folder.run_folder().join("link")).unwrap();
        folder.remove().unwrap();
        assert!(outside.join("precious").exists());
    }
}
