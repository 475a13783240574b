//! Docker through its API. See `sandbox` for what a container is allowed and `pull` for images.
//!
//! Facts that shaped it (Docker 20.10 to 28): a wait answers exit codes above 0 as an error; an out-of-memory kill and
//! a SIGKILL are both 137 and only inspect tells them apart; events have one-second resolution and are not used;
//! output is attached before the start, so that its first byte cannot be missed.

mod pull;
mod sandbox;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::{AttachContainerResults, LogOutput};
use bollard::errors::Error;
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, KillContainerOptions,
    ListContainersOptions, ListImagesOptions, RemoveContainerOptions, StartContainerOptions, StatsOptions,
    WaitContainerOptions,
};
use futures::StreamExt;
use telecine_domain::engine::ImageReference;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::RuntimeKind;
use tokio::sync::{mpsc, watch};

use super::{
    ContainerRuntime, ContainerSpec, EngineSignal, Exit, OUTPUT_PIECES, Output, PullProgress, RuntimeError,
    Usage,
};

pub use sandbox::{LABEL_ATTEMPT, LABEL_INSTANCE};

const NAME: &str = "Docker";
/// Seconds after which an unanswered call fails (waits and attachments last as long as they last).
const CALL_TIMEOUT: u64 = 120;
/// An exit code that may mean an out-of-memory kill.
const KILLED: i32 = 137;

/// The local Docker engine.
#[derive(Clone, Debug)]
pub struct Docker {
    client: bollard::Docker,
}

impl Docker {
    /// The API version (major, minor) of Docker 20.10, the oldest engine we support.
    pub const OLDEST_VERSION: (usize, usize) = (1, 41);

    /// Connects and agrees on the newest version of the API that both sides speak.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn connect(socket: &Path) -> Result<Self, RuntimeError> {
        let client = Self::speaking(socket, Self::OLDEST_VERSION)?.client;
        let client = client.negotiate_version().await.map_err(|error| unavailable(&error))?;
        Ok(Self { client })
    }

    /// A client that speaks this version (major, minor), agreed on before; nothing is connected yet.
    ///
    /// # Errors
    /// When the path cannot be a socket's.
    pub fn speaking(socket: &Path, version: (usize, usize)) -> Result<Self, RuntimeError> {
        let version = bollard::ClientVersion { major_version: version.0, minor_version: version.1 };
        let path = socket.to_string_lossy();
        let client = bollard::Docker::connect_with_unix(&path, CALL_TIMEOUT, &version);
        Ok(Self { client: client.map_err(|error| unavailable(&error))? })
    }

    /// The version of the API that is spoken (major, minor).
    pub fn version(&self) -> (usize, usize) {
        let version = self.client.client_version();
        (version.major_version, version.minor_version)
    }

    async fn create_once(&self, spec: &ContainerSpec) -> Result<(), Error> {
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
        self.client.create_container(Some(options), sandbox::body(spec)).await.map(drop)
    }

    /// Somebody has made a container of this name: ours, when an answer was lost.
    async fn adopt(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let inspected = self.client.inspect_container(&spec.name, None::<InspectContainerOptions>).await;
        let untouched = inspected.is_ok_and(|found| {
            let status = found.state.and_then(|state| state.status).map(|status| status.to_string());
            let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
            status.as_deref() == Some("created") && sandbox::is_of(&labels, spec)
        });
        if untouched {
            return Ok(());
        }
        self.remove(&spec.name).await?;
        self.create_once(spec).await.map_err(|error| create_error(&error, spec))
    }

    /// An out-of-memory event may arrive a moment after the exit it caused, so it is looked for twice.
    async fn was_out_of_memory(&self, name: &str) -> bool {
        for pause in [0, 100] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let inspected = self.client.inspect_container(name, None::<InspectContainerOptions>).await;
            let state = inspected.ok().and_then(|found| found.state);
            if state.and_then(|state| state.oom_killed) == Some(true) {
                return true;
            }
        }
        false
    }

    async fn exit_code(&self, name: &str) -> Result<i32, RuntimeError> {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut waiting = Box::pin(self.client.wait_container(name, Some(options)));
        let code = match waiting.next().await {
            Some(Ok(answer)) => answer.status_code,
            Some(Err(Error::DockerContainerWaitError { code, .. })) => code,
            Some(Err(error)) => return Err(refused("wait for", name, &error)),
            None => {
                return Err(RuntimeError::Unavailable {
                    runtime: NAME,
                    answer: "the wait ended early".into(),
                });
            }
        };
        Ok(i32::try_from(code).unwrap_or(i32::MAX))
    }
}

#[async_trait]
impl ContainerRuntime for Docker {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Docker
    }

    async fn check(&self) -> Result<(), RuntimeError> {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.client.ping()).await;
        match answer {
            Ok(answer) => answer.map(drop).map_err(|error| unavailable(&error)),
            Err(_) => {
                Err(RuntimeError::Unavailable { runtime: NAME, answer: "no answer to a ping in 10 s".into() })
            }
        }
    }

    async fn images(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let options = ListImagesOptions { digests: true, ..Default::default() };
        let images = self.client.list_images(Some(options)).await.map_err(|error| unavailable(&error))?;
        let digests = images.into_iter().flat_map(|image| image.repo_digests);
        Ok(digests.filter_map(|name| name.split_once('@').map(|(_, digest)| digest.to_owned())).collect())
    }

    async fn pull(
        &self,
        image: &ImageReference,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<(), RuntimeError> {
        pull::pull(&self.client, image, progress).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        match self.create_once(spec).await {
            Ok(()) => Ok(()),
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => self.adopt(spec).await,
            Err(error) => Err(create_error(&error, spec)),
        }
    }

    async fn start(&self, name: &str) -> Result<mpsc::Receiver<Output>, RuntimeError> {
        let options =
            AttachContainerOptions { stream: true, stdout: true, stderr: true, ..Default::default() };
        let attached = self.client.attach_container(name, Some(options)).await;
        let AttachContainerResults { mut output, input: _ } =
            attached.map_err(|error| refused("attach to", name, &error))?;
        let (sender, receiver) = mpsc::channel(OUTPUT_PIECES);
        // Ends with the container's output, or as soon as nobody reads it.
        tokio::spawn(async move {
            while let Some(Ok(piece)) = output.next().await {
                let stdout = matches!(piece, LogOutput::StdOut { .. } | LogOutput::Console { .. });
                if sender.send(Output { stdout, data: piece.into_bytes() }).await.is_err() {
                    return;
                }
            }
        });
        let started = self.client.start_container(name, None::<StartContainerOptions>).await;
        started.map_err(|error| refused("start", name, &error))?;
        Ok(receiver)
    }

    async fn wait(&self, name: &str) -> Result<Exit, RuntimeError> {
        let code = self.exit_code(name).await?;
        let out_of_memory = code == KILLED && self.was_out_of_memory(name).await;
        Ok(Exit { code, out_of_memory })
    }

    async fn signal(&self, name: &str, signal: EngineSignal) -> Result<(), RuntimeError> {
        let word = match signal {
            EngineSignal::Terminate => "SIGTERM",
            EngineSignal::Kill => "SIGKILL",
        };
        let options = KillContainerOptions { signal: word.to_owned() };
        match self.client.kill_container(name, Some(options)).await {
            // 404: removed; 409: not running.
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(refused("signal", name, &error)),
        }
    }

    async fn usage(&self, name: &str) -> Result<Usage, RuntimeError> {
        let options = StatsOptions { stream: false, one_shot: true };
        let mut stats = Box::pin(self.client.stats(name, Some(options)));
        let stats = match stats.next().await {
            Some(Ok(stats)) => stats,
            Some(Err(error)) => return Err(refused("measure", name, &error)),
            None => return Ok(Usage::default()),
        };
        let memory_bytes = stats.memory_stats.and_then(|memory| memory.usage).unwrap_or(0);
        let cpu_nanos =
            stats.cpu_stats.and_then(|cpu| cpu.cpu_usage).and_then(|cpu| cpu.total_usage).unwrap_or(0);
        Ok(Usage { memory_bytes, cpu_millis: cpu_nanos / 1_000_000 })
    }

    async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.client.remove_container(name, Some(options)).await {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            // Somebody else removes it right now.
            Err(Error::DockerResponseServerError { status_code: 409, message })
                if message.contains("already in progress") =>
            {
                Ok(())
            }
            Err(error) => Err(refused("remove", name, &error)),
        }
    }

    async fn ours(&self, instance: &InstanceId) -> Result<Vec<String>, RuntimeError> {
        let label = format!("{LABEL_INSTANCE}={instance}");
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let found = self.client.list_containers(Some(options)).await.map_err(|error| unavailable(&error))?;
        let names = found.into_iter().filter_map(|container| container.names?.into_iter().next());
        Ok(names.map(|name| name.trim_start_matches('/').to_owned()).collect())
    }
}

fn unavailable(error: &Error) -> RuntimeError {
    RuntimeError::Unavailable { runtime: NAME, answer: error.to_string() }
}

fn refused(action: &'static str, name: &str, error: &Error) -> RuntimeError {
    match error {
        Error::DockerResponseServerError { message, .. } => {
            RuntimeError::Refused { runtime: NAME, action, name: name.to_owned(), answer: message.clone() }
        }
        other => unavailable(other),
    }
}

fn create_error(error: &Error, spec: &ContainerSpec) -> RuntimeError {
    match (error, &spec.program) {
        (Error::DockerResponseServerError { status_code: 404, .. }, super::Program::Image(image)) => {
            RuntimeError::ImageAbsent(image.to_string())
        }
        _ => refused("create", &spec.name, error),
    }
}
