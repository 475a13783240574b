//! The ways to run an engine: a port with two implementations, Docker and plain processes.
//!
//! A container is named by its attempt, so that whoever comes later (a worker that lost an answer, the coordinator after
//! a worker's death, the next agent after a crash) finds it by name. Every operation on a container that is gone is done
//! already and says so by succeeding.

mod docker;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use telecine_domain::engine::ImageReference;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::RuntimeKind;
use telecine_domain::resources::Resources;
use tokio::sync::{mpsc, watch};

pub use docker::{Docker, LABEL_ATTEMPT, LABEL_INSTANCE};
pub use process::Process;

/// Pieces of output waiting for their reader; the engine waits when it is full.
pub const OUTPUT_PIECES: usize = 64;

/// Everything that decides how an engine is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Name, unique on the machine: the attempt's.
    pub name: String,
    /// The instance it belongs to, for those who clean up.
    pub instance: InstanceId,
    /// What runs.
    pub program: Program,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Folder of the machine that appears as `/telecine`; the process runtime uses it where it is.
    pub folder: PathBuf,
    /// What it may use.
    pub resources: Resources,
    /// Ids of its GPUs.
    pub gpus: Vec<String>,
    /// User and group it runs as.
    pub user: (u32, u32),
    /// Most processes and threads.
    pub pids_limit: u32,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// An image's entry point.
    Image(ImageReference),
    /// A program of the machine.
    Path(PathBuf),
}

/// A piece of an engine's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Whether it came on stdout.
    pub stdout: bool,
    /// The bytes.
    pub data: Bytes,
}

/// How an engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + number for a signal.
    pub code: i32,
    /// The kernel killed it, or a process of it, for want of memory.
    pub out_of_memory: bool,
}

/// A signal for an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineSignal {
    /// Please end (SIGTERM).
    Terminate,
    /// End now (SIGKILL), with everything it started.
    Kill,
}

/// How far a pull is; totals grow while layers become known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes fetched.
    pub done_bytes: u64,
    /// Bytes known to be needed.
    pub total_bytes: u64,
}

/// What an engine uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processor time since its start, in milliseconds.
    pub cpu_millis: u64,
}

/// Why a runtime could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The image is not on the machine.
    #[error("image {0} is not on this instance")]
    ImageAbsent(String),
    /// The registry has no such image, or does not show it.
    #[error("image {image}: the registry does not have it: {answer}")]
    ImageNotFound {
        /// The image.
        image: String,
        /// What the registry said.
        answer: String,
    },
    /// The registry does not answer.
    #[error("image {image}: the registry does not answer: {answer}")]
    RegistryUnreachable {
        /// The image.
        image: String,
        /// What was heard.
        answer: String,
    },
    /// The runtime itself does not answer.
    #[error("{runtime} does not answer: {answer}")]
    Unavailable {
        /// Which runtime.
        runtime: &'static str,
        /// What was heard.
        answer: String,
    },
    /// The runtime refused: the program cannot be started, the container is not there.
    #[error("{runtime} refused to {action} {name}: {answer}")]
    Refused {
        /// Which runtime.
        runtime: &'static str,
        /// What was asked.
        action: &'static str,
        /// The container.
        name: String,
        /// Why.
        answer: String,
    },
}

/// A way to run engines.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// Which one.
    fn kind(&self) -> RuntimeKind;

    /// Whether it answers.
    async fn check(&self) -> Result<(), RuntimeError>;

    /// Digests of the images that are there.
    async fn images(&self) -> Result<BTreeSet<String>, RuntimeError>;

    /// Fetches an image by digest and tells how far it is.
    async fn pull(
        &self,
        image: &ImageReference,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<(), RuntimeError>;

    /// Makes the container without starting it. One of the same name and attempt that was never started is taken as
    /// made; any other of that name is removed first.
    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// Starts it. Its output ends when it ends.
    async fn start(&self, name: &str) -> Result<mpsc::Receiver<Output>, RuntimeError>;

    /// Waits for its end; any number may wait, also after the end.
    async fn wait(&self, name: &str) -> Result<Exit, RuntimeError>;

    /// Sends a signal; one that ended already has had it.
    async fn signal(&self, name: &str, signal: EngineSignal) -> Result<(), RuntimeError>;

    /// What it uses now.
    async fn usage(&self, name: &str) -> Result<Usage, RuntimeError>;

    /// Kills and removes it with everything it started; one that is not there is removed already.
    async fn remove(&self, name: &str) -> Result<(), RuntimeError>;

    /// Names of all containers of this instance, running or not.
    async fn ours(&self, instance: &InstanceId) -> Result<Vec<String>, RuntimeError>;
}

/// The runtimes of an instance, by kind.
pub type Runtimes = BTreeMap<RuntimeKind, Arc<dyn ContainerRuntime>>;
