//! Whether this process can mount, found out by mounting: a device that opens proves little, since the kernel, a security
//! module or a missing capability may still refuse.
//!
//! The trial happens in a mount namespace of its thread's own: nobody else sees it, nothing propagates, no service
//! manager notes it, and whatever becomes of this process, nothing stays behind.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    Config, FileAttr, FileHandle, FileType, Filesystem, INodeNo, ReplyAttr, Request, Session, SessionACL,
};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::device::{mount_device, open_device};

/// Why this process cannot mount. `mend` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no device.
    #[error("/dev/fuse cannot be opened: {0}")]
    Device(#[source] io::Error),
    /// The process may not mount.
    #[error("mounting is refused: {0}")]
    Refused(#[source] io::Error),
    /// Kernel and process did not agree on how to talk.
    #[error("the kernel's FUSE does not begin to serve: {0}")]
    Handshake(#[source] io::Error),
    /// The mount is there and cannot be looked at.
    #[error("a mount was made and cannot be used: {0}")]
    Look(#[source] io::Error),
    /// Nothing came back in time.
    #[error("a mount was tried and did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// No thread can be started.
    #[error("the trial cannot be started: {0}")]
    Thread(#[source] io::Error),
}

impl ProbeError {
    /// What a person can do about it.
    pub fn mend(&self) -> &'static str {
        match self {
            Self::Device(error) if error.kind() == io::ErrorKind::NotFound => {
                "load the module with `modprobe fuse`; in a container pass `--device /dev/fuse`"
            }
            Self::Device(_) | Self::Refused(_) => {
                "run the agent as root (with sudo); in a container also pass `--cap-add SYS_ADMIN --device /dev/fuse \
                 --security-opt apparmor=unconfined`"
            }
            Self::Handshake(_) | Self::Look(_) | Self::Silent(_) => {
                "see `dmesg` for FUSE; restart the machine, or use a kernel of 5.15 or later"
            }
            Self::Thread(_) => "raise the limit on processes, or free memory",
        }
    }
}

/// Mounts a file system with nothing in it, looks at it and unmounts it, unseen by others. `folder` must be there and is
/// not touched. Takes about a millisecond, at most twice `patience`.
///
/// # Errors
/// What the machine refuses.
pub fn try_mount(folder: &Path, patience: Duration) -> Result<(), ProbeError> {
    let folder = folder.to_owned();
    let (answer, answered) = mpsc::sync_channel(1);
    let trial = move || {
        // Nobody may listen any more.
        let _ = answer.send(trial(&folder, patience));
    };
    thread::Builder::new().name("mount-trial".to_owned()).spawn(trial).map_err(ProbeError::Thread)?;
    answered.recv_timeout(patience * 2).unwrap_or(Err(ProbeError::Silent(patience * 2)))
}

fn trial(folder: &Path, patience: Duration) -> Result<(), ProbeError> {
    let device = open_device().map_err(ProbeError::Device)?;
    own_mount_namespace().map_err(ProbeError::Refused)?;
    mount_device(&device, folder).map_err(ProbeError::Refused)?;
    let looked = look(folder.to_owned(), device, patience);
    // `FORCE` fails whoever still waits for an answer, so that the threads end.
    let ended = rustix::mount::unmount(folder, UnmountFlags::DETACH | UnmountFlags::FORCE);
    looked.and(ended.map_err(|error| ProbeError::Refused(error.into())))
}

/// Leaves the namespace that all threads share; only this thread, and those it starts, see what it mounts from now on.
fn own_mount_namespace() -> io::Result<()> {
    // SAFETY: no memory and no descriptor is concerned; this thread's view of the mounts and its working directory
    // become its own, and nothing in it relies on sharing them.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

fn look(folder: PathBuf, device: OwnedFd, patience: Duration) -> Result<(), ProbeError> {
    let session = Session::from_fd(Empty, device, SessionACL::All, Config::default());
    // Its thread ends with the mount.
    let _serving = session.and_then(Session::spawn).map_err(ProbeError::Handshake)?;
    let (answer, answered) = mpsc::sync_channel(1);
    // A thread of its own: when nobody answers, it hangs, and not the trial.
    let looking = move || {
        let _ = answer.send(std::fs::metadata(folder));
    };
    thread::Builder::new().name("mount-look".to_owned()).spawn(looking).map_err(ProbeError::Thread)?;
    match answered.recv_timeout(patience) {
        Ok(Ok(found)) if found.is_dir() => Ok(()),
        Ok(Ok(_)) => Err(ProbeError::Look(io::Error::from(io::ErrorKind::NotADirectory))),
        Ok(Err(error)) => Err(ProbeError::Look(error)),
        Err(_) => Err(ProbeError::Silent(patience)),
    }
}

/// A file system that is one empty folder.
struct Empty;

impl Filesystem for Empty {
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let never = SystemTime::UNIX_EPOCH;
        let attributes = FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: never,
            mtime: never,
            ctime: never,
            crtime: never,
            kind: FileType::Directory,
            perm: 0o555,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::ZERO, &attributes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn mounts() -> Vec<u8> {
        std::fs::read("/proc/self/mountinfo").unwrap()
    }

    #[test]
    fn a_trial_leaves_nothing_behind_and_a_refusal_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let tried = try_mount(folder.path(), PATIENCE);
        let place = folder.path().to_str().unwrap().to_owned();
        assert!(!String::from_utf8_lossy(&mounts()).contains(&place));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let Some(()) = telecine_test_support::available(tried) else { return };
        let error = try_mount(&folder.path().join("absent"), PATIENCE).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn who_may_not_mount_is_told_so() {
        let error = ProbeError::Refused(io::Error::from_raw_os_error(libc::EPERM));
        assert!(error.mend().contains("root"));
        let absent = ProbeError::Device(io::ErrorKind::NotFound.into());
        assert!(absent.mend().contains("modprobe fuse"));
    }
}
