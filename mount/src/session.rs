//! Serving a mount: from the descriptor of `/dev/fuse` to sealed outputs.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use tokio::runtime::Handle;

use crate::backing::Backing;
use crate::counters::Counters;
use crate::failure::MountFailure;
use crate::filesystem::MountedVolume;
use crate::journal::Journal;
use crate::plan::{MountPlan, PlanError};
use crate::seal::{SealError, SealedOutputs, seal};
use crate::volume::{SPILL_PREFIX, Volume};

/// Threads that take requests from the kernel.
const THREADS: usize = 4;

/// A mount being served. Dropping it stops fetching, but not serving: see [`MountSession::close`].
pub struct MountSession {
    volume: Arc<Volume>,
    serving: Mutex<Option<BackgroundSession>>,
    sealed: tokio::sync::Mutex<Option<SealedOutputs>>,
}

/// Why a mount could not be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The plan makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The journal cannot be written.
    #[error("opening the mount's journal {path}: {source}")]
    Journal {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The folder for the spill cannot be made.
    #[error("creating the spill folder {path}: {source}")]
    Spill {
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel and this program did not come to an agreement over the descriptor.
    #[error("starting to serve the mount (is the descriptor that of a fresh mount?): {0}")]
    Handshake(io::Error),
}

impl fmt::Debug for MountSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MountSession").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl MountSession {
    /// Serves `plan` on `device`, the descriptor of a fresh mount ([`crate::open_device_and_mount`], perhaps in another
    /// process). Requests to object stores run on `runtime`. Returns once the kernel has agreed; touches no store.
    ///
    /// # Errors
    /// When the plan is wrong, the journal or spill cannot be written, or the descriptor is not that of a fresh mount.
    pub fn serve(plan: MountPlan, device: OwnedFd, runtime: Handle) -> Result<Self, ServeError> {
        plan.check()?;
        let journal = Journal::open(&plan.journal)
            .map_err(|source| ServeError::Journal { path: plan.journal.display().to_string(), source })?;
        if plan.outputs.iter().any(|output| matches!(output.backing, Backing::Objects { .. })) {
            empty_spill(&plan.spill)
                .map_err(|source| ServeError::Spill { path: plan.spill.display().to_string(), source })?;
        }
        let volume = Arc::new(Volume::new(plan, journal, runtime)?);
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        // Clones of the descriptor lose requests in flight when a session is taken over.
        config.clone_fd = false;
        let adapter = MountedVolume { volume: volume.clone() };
        let serving = Session::from_fd(adapter, device, SessionACL::All, config)
            .and_then(Session::spawn)
            .map_err(ServeError::Handshake)?;
        Ok(Self { volume, serving: Mutex::new(Some(serving)), sealed: tokio::sync::Mutex::default() })
    }

    /// What has been moved so far.
    pub fn counters(&self) -> Counters {
        self.volume.counters.snapshot()
    }

    /// What has failed so far, whether or not the engine noticed: at most 100, the first ones.
    pub fn failures(&self) -> Vec<MountFailure> {
        self.volume.failures.all()
    }

    /// Whether requests are still answered (they are until the file system is unmounted or its connection aborted).
    pub fn is_serving(&self) -> bool {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        serving.as_ref().is_some_and(|session| !session.guard.is_finished())
    }

    /// Puts every output's bytes into its store, durable but visible to nobody. Call it after the engine has exited:
    /// from now on writes fail with EROFS. Repeating a successful call gives the same answer.
    ///
    /// # Errors
    /// When a declared file is missing, anything failed under the mount since it began, or a store refuses. Nothing is
    /// published then; take the rest away with [`crate::abort_journal`].
    pub async fn seal(&self) -> Result<SealedOutputs, SealError> {
        let mut sealed = self.sealed.lock().await;
        if let Some(outputs) = &*sealed {
            return Ok(outputs.clone());
        }
        let outputs = seal(&self.volume).await?;
        *sealed = Some(outputs.clone());
        Ok(outputs)
    }

    /// Fails every read that waits for an object store, now and from now on, so that a canceled engine can die at once.
    pub fn interrupt(&self) {
        self.volume.blocks.close();
    }

    /// Stops: waiting reads fail, fetches end, nothing can be written, spill files go. Sealed outputs stay where they are.
    ///
    /// Unmount first ([`crate::unmount`]). While anybody still uses the file system its requests go on being answered
    /// (reads of objects with EIO), because an unanswered request would hang its caller; the threads end with the mount.
    pub fn close(self) {
        self.volume.freeze();
        self.volume.blocks.close();
        self.volume.remove_spill();
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(session) = serving.filter(|session| session.guard.is_finished())
            && let Err(error) = session.join()
        {
            tracing::debug!(%error, "the mount's session ended with an error");
        }
    }
}

/// Makes the spill folder, without the files of a predecessor.
fn empty_spill(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(SPILL_PREFIX.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl Drop for MountSession {
    fn drop(&mut self) {
        self.volume.blocks.close();
    }
}
