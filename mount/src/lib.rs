//! Object stores and folders as a file system, for one attempt: `inputs/<slot>/<file>` read-only and pinned to one
//! version each, `outputs/<slot>/…` writable in any pattern a muxer uses.
//!
//! What the engine writes stays invisible: in a folder store under hidden names in the store's root, for an object store
//! in a bounded spill that [`MountSession::seal`] uploads as multipart uploads nobody completes yet. [`complete`] makes a
//! sealed file appear under its key and [`abort`] takes it away; both are idempotent and need nothing but the
//! [`SealedFile`], so another process can publish what a lost one has sealed.
//!
//! The crate knows stores and files; it knows no jobs and no other part of Telecine.

mod backing;
mod blocks;
mod counters;
mod device;
mod failure;
mod filesystem;
mod input;
mod journal;
mod object;
mod output;
mod plan;
mod probe;
mod publish;
mod readahead;
mod seal;
mod session;
mod tree;
mod upload;
mod volume;

pub use backing::{Backing, folder_etag};
pub use counters::Counters;
pub use device::{abort_connection, open_device_and_mount, raise_readahead, unmount};
pub use failure::MountFailure;
pub use plan::{InputFile, InvalidPath, MountPath, MountPlan, OutputFolder, OutputTarget, PlanError, Tuning};
pub use probe::{ProbeError, try_mount};
pub use publish::{AbortError, CompleteError, Completed, abort, abort_journal, complete};
pub use seal::{LeftOut, SealError, SealedBytes, SealedFile, SealedOutputs};
pub use session::{MountSession, ServeError};
