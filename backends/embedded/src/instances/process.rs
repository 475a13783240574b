//! A process that outlives us: started in a session of its own, known again by process id, start time and boot, and
//! signalled through a descriptor that can mean no other process.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::AgentCommand;

/// A log larger than this is put aside at the next start.
const MOST_LOG_BYTES: u64 = 64 * 1024 * 1024;

/// What tells a process from every other, before and after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Started {
    /// Process id.
    pub(super) pid: i32,
    /// Clock ticks from boot to its start (field 22 of `/proc/<pid>/stat`).
    pub(super) start_ticks: u64,
    /// Which boot.
    pub(super) boot_id: String,
}

/// A process, and whether it is our child (then we must reap it).
pub(super) struct Process {
    started: Started,
    handle: OwnedFd,
    child: Option<Child>,
    /// How it ended, if it was our child and has.
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts an agent; its output goes to `agent.log` in its folder.
    pub(super) fn start(command: &AgentCommand, config: &Path, folder: &Path) -> io::Result<Self> {
        keep_log_small(&folder.join("agent.log"))?;
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(folder.join("agent.log"))?;
        let mut start = Command::new(&command.program);
        start
            .args(&command.arguments)
            .arg(config)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        in_session_of_its_own(&mut start);
        let mut child = start.spawn()?;
        match Self::of_pid(child.id().cast_signed()) {
            Ok(process) => Ok(Self { child: Some(child), ..process }),
            Err(error) => {
                // Without a handle it could never be ended for certain.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The process that was started before, if it still runs.
    pub(super) fn adopt(started: &Started) -> Option<Self> {
        let process = Self::of_pid(started.pid).ok()?;
        (process.started == *started).then_some(process)
    }

    /// The process whose last argument is this configuration file.
    pub(super) fn find(config: &Path) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let wanted = config.as_os_str().as_bytes();
        std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let mut arguments = line.strip_suffix(&[0])?.split(|&byte| byte == 0);
            (arguments.next_back() == Some(wanted)).then(|| Self::of_pid(pid).ok()).flatten()
        })
    }

    fn of_pid(pid: i32) -> io::Result<Self> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        // The handle first: what is read after it belongs to this process or to nobody.
        let handle = pidfd_open(raw, PidfdFlags::empty())?;
        let start_ticks = start_ticks(pid)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { started: Started { pid, start_ticks, boot_id }, handle, child: None, ended: None })
    }

    pub(super) fn started(&self) -> &Started {
        &self.started
    }

    /// Whether it runs; reaps it when it has ended and is ours.
    pub(super) fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => match child.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    tracing::info!(pid = self.started.pid, %status, "an agent ended");
                    self.ended = Some(status);
                    false
                }
                Err(error) => {
                    tracing::warn!(pid = self.started.pid, %error, "an agent could not be waited for");
                    false
                }
            },
            None => has_not_ended(&self.handle),
        }
    }

    /// How it ended, if that is known.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        self.ended
    }

    pub(super) fn ask_to_end(&self) {
        self.signal(Signal::TERM);
    }

    /// At once, without its workers: the next agent finds them.
    pub(super) fn ask_to_leave(&self) {
        self.signal(Signal::HUP);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = self.started.pid, %error, "an agent could not be signalled"),
        }
    }
}

/// The log of the runs before is kept once when it has grown large; a running agent's file is never touched.
fn keep_log_small(log: &Path) -> io::Result<()> {
    match std::fs::metadata(log) {
        Ok(meta) if meta.len() > MOST_LOG_BYTES => std::fs::rename(log, log.with_extension("log.1")),
        _ => Ok(()),
    }
}

/// A process descriptor is readable once the process has ended, a zombie included.
fn has_not_ended(handle: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::new(handle, PollFlags::IN)];
    matches!(poll(&mut watched, Some(&now)), Ok(0))
}

fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything, spaces and parentheses included.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
    let ticks = fields.and_then(|fields| fields.split(' ').nth(19)?.parse().ok());
    ticks.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/<pid>/stat has another form"))
}

/// So that neither a signal to our session nor our own end reaches it.
#[allow(unsafe_code)]
fn in_session_of_its_own(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: between fork and exec only `setsid` is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from));
    }
}
