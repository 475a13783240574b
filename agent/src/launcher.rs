//! How workers come to be: as processes that outlive the coordinator, with a mount of the kernel's each. A seam, so that a
//! whole system can run in one process, without a kernel's mount.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use telecine_domain::attempt::AttemptId;
use telecine_domain::engine::Launch;

use crate::control::{self, CoordinatorEnd};
use crate::folder::{Assignment, AttemptFolder};
use crate::mounts;

const RETRY: Duration = Duration::from_millis(3);
const BIND_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_secs(1);

/// A worker that lives.
pub struct LiveWorker {
    /// The way to it.
    pub control: CoordinatorEnd,
    /// Done when it is dead.
    pub gone: BoxFuture<'static, ()>,
    /// Kills it.
    pub kill: Arc<dyn Fn() + Send + Sync>,
}

/// Brings workers to life and finds living ones.
#[async_trait]
pub trait WorkerLauncher: Send + Sync {
    /// Whether attempts can be mounted here, found out by mounting.
    ///
    /// # Errors
    /// Why not and what to do, in words.
    async fn can_mount(&self) -> Result<(), String>;

    /// Mounts what the attempt needs; answers the device that its worker is to serve.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn mount(&self, folder: &AttemptFolder, assignment: &Assignment) -> io::Result<Option<OwnedFd>>;

    /// Starts the worker of `attempt` in `folder`; `device` is the mount's, for the worker alone.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    async fn launch(
        &self,
        folder: &AttemptFolder,
        attempt: AttemptId,
        device: Option<OwnedFd>,
    ) -> io::Result<LiveWorker>;

    /// Finds the living worker of a former coordinator's attempt.
    async fn adopt(&self, folder: &AttemptFolder, attempt: AttemptId) -> LiveWorker;
}

/// Workers as processes: `<program> <arguments…> <attempt folder>`, the device as their stdin.
#[derive(Clone, Debug)]
pub struct ProcessLauncher {
    /// The binary.
    pub program: PathBuf,
    /// What stands before the attempt folder.
    pub arguments: Vec<String>,
}

#[async_trait]
impl WorkerLauncher for ProcessLauncher {
    async fn can_mount(&self) -> Result<(), String> {
        crate::health::try_mount(std::env::temp_dir()).await
    }

    fn mount(&self, folder: &AttemptFolder, assignment: &Assignment) -> io::Result<Option<OwnedFd>> {
        if let Launch::Grpc { .. } = assignment.spec.engine.launch {
            mounts::mount_run_folder(&folder.run_folder(), assignment.surroundings.engine_user)?;
        }
        assignment.mounted.then(|| telecine_mount::open_device_and_mount(&folder.mountpoint())).transpose()
    }

    async fn launch(
        &self,
        folder: &AttemptFolder,
        attempt: AttemptId,
        device: Option<OwnedFd>,
    ) -> io::Result<LiveWorker> {
        // A file and not our own stderr: that may be a pipe which ends with us.
        let log = File::create(folder.path().join("worker.log"))?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(folder.path())
            .stdin(device.map_or_else(Stdio::null, Stdio::from))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(false)
            .spawn()?;
        let began = tokio::time::Instant::now();
        let (control, pid) = loop {
            match control::connect(&folder.socket(), attempt).await {
                Ok(connected) => break connected,
                Err(error) if began.elapsed() > BIND_PATIENCE => {
                    child.start_kill()?;
                    return Err(io::Error::other(error));
                }
                Err(_) => {}
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!(
                    "the worker ended at once ({status}): {}",
                    last_words(folder)
                )));
            }
            tokio::time::sleep(RETRY).await;
        };
        let kill = killer(pid);
        let gone = async move {
            if let Err(error) = child.wait().await {
                tracing::error!(%error, "a worker cannot be waited for");
            }
        };
        Ok(LiveWorker { control, gone: gone.boxed(), kill })
    }

    async fn adopt(&self, folder: &AttemptFolder, attempt: AttemptId) -> LiveWorker {
        match control::connect(&folder.socket(), attempt).await {
            Ok((control, pid)) => {
                let gone = death_of(pid, folder.clone()).boxed();
                LiveWorker { control, gone, kill: killer(pid) }
            }
            Err(error) => {
                tracing::warn!(attempt = %attempt, %error, "a living worker does not answer; its lease ends it");
                let (control, _) = control::pair();
                LiveWorker { control, gone: freed(folder.clone()).boxed(), kill: Arc::new(|| ()) }
            }
        }
    }
}

/// The end of a worker's own log, for the coordinator's.
pub(crate) fn last_words(folder: &AttemptFolder) -> String {
    let log = std::fs::read(folder.path().join("worker.log")).unwrap_or_default();
    String::from_utf8_lossy(&log[log.len().saturating_sub(1000)..]).trim().to_owned()
}

fn pidfd(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn killer(pid: i32) -> Arc<dyn Fn() + Send + Sync> {
    // Opened while the worker is known to live: a number alone may mean another process later.
    let pidfd = pidfd(pid);
    Arc::new(move || {
        if let Some(pidfd) = &pidfd {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    })
}

/// A process that is not our child: its descriptor becomes readable when it ends.
async fn death_of(pid: i32, folder: AttemptFolder) {
    // SAFETY: the descriptor is owned by the `AsyncFd` alone and stays open and the same until that is dropped.
    let watched = pidfd(pid).and_then(|pidfd| unsafe { AsyncFd::register(pidfd) }.ok());
    if let Some(watched) = watched {
        let _ = watched.readable().await;
    }
    freed(folder).await;
}

/// The lock is the truth.
async fn freed(folder: AttemptFolder) {
    while let Ok(None) = folder.try_lock() {
        tokio::time::sleep(LOOK).await;
    }
}
