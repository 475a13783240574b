//! A worker: one process per attempt, from its certificate to its last report.
//!
//! It prepares (certificate, stores, mount, container, all at the same time), runs and watches the engine, seals,
//! asks for the grant, publishes and reports, on a connection and identity of its own. What it may do hangs on its
//! lease: when that ends, or the manager says `stale`, it kills the engine and publishes nothing. Only after the grant
//! it goes on whatever happens, since publishing is idempotent and nobody else may do anything different.
//!
//! `run` touches no global state, so that a whole system of workers can run in one process under simulated time.

mod attempt;
mod document;
mod engine;
mod finish;
mod mount;
mod pull;
mod renewal;
mod session;
mod shared;
mod stores;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use telecine_proto::net::Network;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::control::WorkerEnd;
use crate::folder::{AttemptFolder, AttemptLock, FolderError, Outcome};
use crate::runtime::Runtimes;

pub use mount::{FuseMounts, Mounted, Mounts};

/// What the coordinator needs to publish or take away the outputs of a dead worker.
pub(crate) mod outputs {
    pub(crate) use super::mount::sealed_file;
    pub(crate) use super::stores::{Backings, open};
}

/// Everything a worker works with.
pub struct WorkerParts {
    /// The attempt's folder.
    pub folder: AttemptFolder,
    /// Its lock, held until the worker is done.
    pub lock: AttemptLock,
    /// The mount's device, when the attempt has a mount.
    pub device: Option<OwnedFd>,
    /// The way to the manager.
    pub network: Arc<dyn Network>,
    /// The ways to run engines.
    pub runtimes: Runtimes,
    /// The way to serve a mount.
    pub mounts: Arc<dyn Mounts>,
    /// The clocks.
    pub clock: Clock,
    /// The way to the coordinator.
    pub control: WorkerEnd,
}

/// Why a worker could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Its folder holds no assignment.
    #[error("attempt folder {0} holds no assignment; it was never accepted")]
    Unassigned(String),
    /// The authority's certificate in the assignment cannot be used.
    #[error("the assignment's authority certificate cannot be used: {0}")]
    Authority(String),
}

/// Runs the attempt to its end; `result.json` says how that was also to those who come later.
///
/// # Errors
/// When the worker could not begin, or could not record its end.
pub async fn run(parts: WorkerParts) -> Result<Outcome, WorkerError> {
    let span = tracing::info_span!("worker", attempt = %parts.folder.name(), trace = tracing::field::Empty);
    attempt::run(parts).instrument(span).await
}
