//! What an agent that is gone for good has left on its machine: workers, engines, containers, mounts. Taken away without
//! a manager: whoever ends an instance that shares its machine with others does this, so that nothing of it stays.
//!
//! Everything is known by the instance or its folder and by nothing else. Done before, it is done already.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use telecine_domain::id::InstanceId;
use telecine_domain::instance::RuntimeKind;

use crate::config::AgentConfig;
use crate::entry;
use crate::folder::AttemptFolder;
use crate::mounts;
use crate::runtime::{ContainerRuntime, Process, RuntimeError};

/// What stands before the folder of an attempt on a worker's command line.
pub(crate) const WORKER_ARGUMENT: &str = "--attempt-folder";
/// Looks for workers: one that is being started while it is looked is found by the next.
const LOOKS: u32 = 100;

/// Something of an agent is still there.
#[derive(Debug, thiserror::Error)]
pub enum RemainsError {
    /// Its workers do not die.
    #[error("{count} of its workers still live")]
    Workers {
        /// How many.
        count: usize,
    },
    /// Engines of it cannot be listed or removed.
    #[error("its engines are not gone: {0}")]
    Engines(#[from] RuntimeError),
    /// Something stays mounted.
    #[error("something below {folder} stays mounted: {source}")]
    Mounts {
        /// Where.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Ends and takes away everything that the agent with this configuration has left outside of its files. It must not run
/// any more.
///
/// # Errors
/// What is still there; trying again may help.
pub async fn clear(config: &AgentConfig, instance: InstanceId) -> Result<(), RemainsError> {
    let attempts = config.attempts_folder();
    kill_workers(&attempts)?;
    remove_engines(&Process::new(&attempts), instance).await?;
    if config.runtimes.contains(&RuntimeKind::Docker) {
        match entry::connect_docker(config).await {
            Ok(docker) => remove_engines(&docker, instance).await?,
            // An agent without Docker had no containers either.
            Err(problem) => tracing::debug!(problem, "Docker does not answer; no containers are looked for"),
        }
    }
    unmount(&config.data_folder, &attempts)
        .map_err(|source| RemainsError::Mounts { folder: config.data_folder.clone(), source })
}

fn kill_workers(attempts: &Path) -> Result<(), RemainsError> {
    let mut count = 0;
    for _ in 0..LOOKS {
        let found = workers(attempts);
        if found.is_empty() {
            return Ok(());
        }
        count = found.len();
        for worker in found {
            if let Err(error) = pidfd_send_signal(&worker, Signal::KILL)
                && error != rustix::io::Errno::SRCH
            {
                tracing::warn!(%error, "a worker cannot be killed");
            }
        }
        std::thread::yield_now();
    }
    Err(RemainsError::Workers { count })
}

/// The living workers of attempts in this folder. What is read of a process after its descriptor was opened is its own.
fn workers(attempts: &Path) -> Vec<OwnedFd> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(|id| {
        let handle = pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()?;
        let line = std::fs::read(format!("/proc/{id}/cmdline")).ok()?;
        is_worker(&line, attempts).then_some(handle)
    })
    .collect()
}

/// Whether a command line, its arguments each ended by a zero, is that of a worker of an attempt in this folder.
fn is_worker(line: &[u8], attempts: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let arguments: Vec<&[u8]> = line.strip_suffix(&[0]).unwrap_or(line).split(|&byte| byte == 0).collect();
    let [.., argument, folder] = arguments[..] else { return false };
    let folder = Path::new(std::ffi::OsStr::from_bytes(folder));
    argument == WORKER_ARGUMENT.as_bytes() && folder.parent() == Some(attempts)
}

async fn remove_engines(runtime: &dyn ContainerRuntime, instance: InstanceId) -> Result<(), RuntimeError> {
    for name in runtime.ours(&instance).await? {
        tracing::info!(name, %instance, "an engine of an agent that is gone is removed");
        runtime.remove(&name).await?;
    }
    Ok(())
}

/// Aborts first: nobody may hang in a mount whose worker is dead.
fn unmount(data: &Path, attempts: &Path) -> io::Result<()> {
    let entries =
        std::fs::read_dir(attempts).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    for entry in entries.unwrap_or_default() {
        let mountpoint = AttemptFolder::at(entry.path()).mountpoint();
        if let Err(error) = telecine_mount::abort_connection(&mountpoint) {
            tracing::debug!(%error, "no connection to abort");
        }
    }
    mounts::unmount_all(data)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn line(arguments: &[&str]) -> Vec<u8> {
        arguments.iter().flat_map(|argument| [argument.as_bytes(), &[0]].concat()).collect()
    }

    #[test]
    fn a_worker_is_known_by_its_own_folder_alone() {
        let attempts = Path::new("/data/ins/attempts");
        let is = |arguments: &[&str]| is_worker(&line(arguments), attempts);
        assert!(is(&["telecine", "worker", "--attempt-folder", "/data/ins/attempts/a-1"]));
        assert!(!is(&["telecine", "worker", "--attempt-folder", "/data/other/attempts/a-1"]));
        assert!(!is(&["telecine", "worker", "--attempt-folder", "/data/ins/attempts-2/a-1"]));
        assert!(!is(&["tail", "-f", "/data/ins/attempts/a-1"]));
        assert!(!is(&["cat", "--attempt-folder", "/data/ins/attempts/a-1/worker.log"]));
        assert!(!is(&["--attempt-folder"]) && !is(&[]));
    }

    #[tokio::test]
    async fn workers_and_engines_of_the_instance_die_and_others_live() {
        let data = tempfile::tempdir().unwrap();
        let config = AgentConfig {
            data_folder: data.path().to_owned(),
            runtimes: [RuntimeKind::Process].into(),
            ..AgentConfig::default()
        };
        let attempts = config.attempts_folder();
        let sleeper = |folder: &Path, job: &Path| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", "sleep 300; exit 0", "worker", WORKER_ARGUMENT]).arg(folder);
            command.env("TELECINE_JOB", job).stdin(Stdio::null()).spawn().unwrap()
        };
        let nobody = Path::new("/nowhere/job.json");
        let mut worker = sleeper(&attempts.join("a-1"), nobody);
        let mut engine = sleeper(Path::new("/elsewhere/a-1"), &attempts.join("a-1/m/job.json"));
        let mut other = sleeper(Path::new("/elsewhere/a-1"), nobody);
        let instance = InstanceId::new(telecine_domain::time::Timestamp::from_millis(1), 1);
        clear(&config, instance).await.unwrap();
        let killed = |status: std::process::ExitStatus| {
            std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
        };
        assert!(killed(worker.wait().unwrap()) && killed(engine.wait().unwrap()));
        assert!(other.try_wait().unwrap().is_none(), "another instance's");
        clear(&config, instance).await.expect("once more does no harm");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
