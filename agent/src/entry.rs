//! What the command line calls: the coordinator as a process, and a worker as a process.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::DumpableBehavior;
use telecine_domain::engine::Launch;
use telecine_domain::instance::RuntimeKind;
use telecine_proto::net::TcpNetwork;
use telecine_proto::tasks::Tasks;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::clock::Clock;
use crate::config::{AgentConfig, LogFormat};
use crate::control;
use crate::coordinator::{self, CoordinatorError, CoordinatorParts, Shutdown};
use crate::folder::{Assignment, AttemptFolder, FolderError};
use crate::launcher::ProcessLauncher;
use crate::metrics_endpoint::{self, MetricsError};
use crate::remains::WORKER_ARGUMENT;
use crate::runtime::{ContainerRuntime, Docker, Process, Runtimes};
use crate::worker::{self, FuseMounts, WorkerError, WorkerParts};

/// Exit code of a worker whose attempt another worker has.
pub const EXIT_TAKEN: u8 = 75;
/// How long Docker is looked for at the start.
const DOCKER_PATIENCE: Duration = Duration::from_secs(5);

/// Why an agent process ended badly.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The operating system refused something basic.
    #[error("the agent cannot start: {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The coordinator cannot run.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// Metrics cannot be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The worker cannot run.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// Another worker has the attempt; exit with [`EXIT_TAKEN`].
    #[error("attempt folder {0}: another worker has it")]
    Taken(PathBuf),
}

fn system(action: &'static str) -> impl FnOnce(io::Error) -> EntryError {
    move |source| EntryError::System { action, source }
}

/// Writes log lines to stderr, as much as `RUST_LOG` asks for (`info` without it). Later calls change nothing.
pub fn init_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    let installed = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    // Whoever came first has set up logging for the process.
    let _ = installed;
}

/// `telecine agent`: runs the coordinator until SIGTERM or SIGINT has drained it; a second signal, or SIGHUP or SIGQUIT
/// at once, leaves the workers to the next agent.
///
/// # Errors
/// When it cannot begin; see [`CoordinatorError`].
pub fn agent_main(config: AgentConfig) -> Result<(), EntryError> {
    init_logging(config.log_format);
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(system("no runtime"))?;
    let result = runtime.block_on(run_agent(config));
    // A worker's log or a blocked file system call must not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn run_agent(config: AgentConfig) -> Result<(), EntryError> {
    let shutdown = Shutdown::default();
    let tasks = Tasks::default();
    tasks.spawn(take_signals(shutdown.clone()));
    if let Some(address) = config.metrics_listen {
        tasks.spawn(metrics_endpoint::open(address).await?);
    }
    let (runtimes, docker_version) = find_runtimes(&config).await;
    let launcher = ProcessLauncher {
        program: std::env::current_exe().map_err(system("the program's own path"))?,
        arguments: vec!["worker".to_owned(), WORKER_ARGUMENT.to_owned()],
    };
    let parts = CoordinatorParts {
        network: Arc::new(TcpNetwork),
        runtimes,
        docker_version,
        launcher: Arc::new(launcher),
        clock: Clock::default(),
    };
    let ended = tokio::select! {
        ended = coordinator::run(config, parts, shutdown) => ended,
        words = tasks.panicked() => Err(CoordinatorError::Panicked(words)),
    };
    tasks.end().await;
    Ok(ended?)
}

async fn take_signals(shutdown: Shutdown) {
    let listen = |kind| signal(kind).inspect_err(|error| tracing::error!(%error, "a signal cannot be taken"));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup), Ok(mut quit)) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
        listen(SignalKind::quit()),
    ) else {
        return;
    };
    loop {
        let leave = tokio::select! {
            _ = terminate.recv() => shutdown.drain.is_cancelled(),
            _ = interrupt.recv() => shutdown.drain.is_cancelled(),
            _ = hangup.recv() => true,
            _ = quit.recv() => true,
        };
        if leave {
            return shutdown.now.cancel();
        }
        shutdown.drain.cancel();
    }
}

/// The allowed runtimes that can be spoken to, and Docker's version.
async fn find_runtimes(config: &AgentConfig) -> (Runtimes, Option<(usize, usize)>) {
    let mut runtimes = Runtimes::new();
    let mut version = None;
    for kind in &config.runtimes {
        let runtime: Arc<dyn ContainerRuntime> = match kind {
            RuntimeKind::Process => Arc::new(Process::new(&config.attempts_folder())),
            RuntimeKind::Docker => match connect_docker(config).await {
                Ok(docker) => {
                    version = Some(docker.version());
                    Arc::new(docker)
                }
                Err(error) => {
                    tracing::warn!(%error, "Docker does not answer: jobs in containers do not run here until it does");
                    match Docker::speaking(&config.docker_socket, Docker::OLDEST_VERSION) {
                        Ok(docker) => Arc::new(docker),
                        Err(_) => continue,
                    }
                }
            },
        };
        runtimes.insert(*kind, runtime);
    }
    (runtimes, version)
}

pub(crate) async fn connect_docker(config: &AgentConfig) -> Result<Docker, String> {
    let connected = tokio::time::timeout(DOCKER_PATIENCE, Docker::connect(&config.docker_socket)).await;
    connected.map_err(|_| "no answer within 5 s".to_owned())?.map_err(|error| error.to_string())
}

/// `telecine worker --attempt-folder DIR`: runs one attempt; its stdin is the mount's device when the assignment says
/// so, its stderr the attempt's `worker.log`.
///
/// # Errors
/// When it cannot begin, or [`EntryError::Taken`].
pub fn worker_main(attempt_folder: &Path) -> Result<(), EntryError> {
    // A session of its own: what happens to the coordinator's terminal or group does not happen here. A worker that is
    // its session's leader already is as good.
    let _ = rustix::process::setsid();
    // Its memory holds keys: no core file, no debugger. (Rust programs ignore SIGPIPE from the start.)
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| system("memory cannot be protected")(error.into()))?;
    let folder = AttemptFolder::at(attempt_folder.to_owned());
    let lock = folder.try_lock().map_err(WorkerError::Folder)?;
    let lock = lock.ok_or_else(|| EntryError::Taken(attempt_folder.to_owned()))?;
    let assignment = folder.assignment().map_err(WorkerError::Folder)?;
    let assignment = assignment.ok_or_else(|| WorkerError::Unassigned(folder.name()))?;
    init_logging(if assignment.surroundings.json_logs { LogFormat::Json } else { LogFormat::Text });
    end_on_panic();
    let device = assignment.mounted.then(take_device).transpose()?;
    let runtime = worker_runtime(&assignment).map_err(system("no runtime"))?;
    let result = runtime.block_on(async {
        let control =
            control::listen(&folder.socket(), assignment.attempt).map_err(system("no control socket"))?;
        let parts = WorkerParts {
            runtimes: worker_runtimes(&folder, &assignment),
            folder: folder.clone(),
            lock,
            device,
            network: Arc::new(TcpNetwork),
            mounts: Arc::new(FuseMounts),
            clock: Clock::default(),
            control,
        };
        worker::run(parts).await.map(drop).map_err(EntryError::from)
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// A panic in any task ends the process: a worker that lives on with a part missing would hold its instance's resources
/// until its lease ends. Its coordinator sees to the rest.
fn end_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Without a mount nothing here needs a second thread.
fn worker_runtime(assignment: &Assignment) -> io::Result<Runtime> {
    if assignment.mounted {
        Builder::new_multi_thread().worker_threads(2).enable_all().build()
    } else {
        Builder::new_current_thread().enable_all().build()
    }
}

/// Takes the device out of stdin, which becomes `/dev/null`: nothing that is started later inherits it.
fn take_device() -> Result<OwnedFd, EntryError> {
    let stdin = io::stdin();
    let device = stdin.as_fd().try_clone_to_owned().map_err(system("no mount device as stdin"))?;
    let null = std::fs::File::open("/dev/null").map_err(system("no /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|error| system("stdin cannot be replaced")(error.into()))?;
    Ok(device)
}

fn worker_runtimes(folder: &AttemptFolder, assignment: &Assignment) -> Runtimes {
    let around = &assignment.surroundings;
    let runtime: Arc<dyn ContainerRuntime> = match assignment.spec.engine.launch {
        Launch::Command { .. } => Arc::new(Process::new(folder.path().parent().unwrap_or(Path::new("/")))),
        Launch::Grpc { .. } | Launch::Plain { .. } => {
            let version = around.docker_version.unwrap_or(Docker::OLDEST_VERSION);
            match Docker::speaking(&around.docker_socket, version) {
                Ok(docker) => Arc::new(docker),
                Err(error) => {
                    tracing::error!(%error, "no Docker");
                    return Runtimes::new();
                }
            }
        }
    };
    Runtimes::from([(runtime.kind(), runtime)])
}

impl From<FolderError> for EntryError {
    fn from(error: FolderError) -> Self {
        Self::Worker(error.into())
    }
}
