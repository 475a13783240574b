//! Whether somebody has a file open for writing, in the system's own words.
//!
//! A read lease (`fcntl(2)`, `F_SETLEASE`) is refused while anybody, in whatever container, has the file open or mapped
//! for writing; one that is given is handed back at once. `/proc/*/fd` would show this machine's visible processes only.

use std::os::fd::{AsFd, AsRawFd};

use telecine_domain::location::ObjectKey;
use telecine_stores::FolderStore;

/// `F_SETSIG` of `fcntl.h`, the same on every Linux that this is built for.
const SET_SIGNAL: libc::c_int = 10;

/// What is known about the writers of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    /// Nobody writes.
    None,
    /// Somebody has it open for writing.
    Some,
    /// The file system has no leases (FUSE, some network file systems), or the file is another user's.
    Unknown,
}

/// Asks about the file of a key.
pub(super) async fn writers_of(folder: &FolderStore, key: &ObjectKey) -> Writers {
    let (dir, path) = (folder.dir.clone(), key.to_string());
    let asked = tokio::task::spawn_blocking(move || match dir.open(path) {
        Ok(file) => ask(&file),
        Err(_) => Writers::Unknown,
    });
    asked.await.unwrap_or(Writers::Unknown)
}

#[allow(unsafe_code)]
fn ask(file: &impl AsFd) -> Writers {
    let file = file.as_fd().as_raw_fd();
    // Who opens the file for writing while we hold the lease waits until it is closed, microseconds later, and we are
    // sent a signal: one that is ignored by default, in place of SIGIO, which would end this process.
    // SAFETY: `file` is open for as long as this borrows it, and both commands take an integer.
    let leased = unsafe {
        libc::fcntl(file, SET_SIGNAL, libc::SIGURG) == 0
            && libc::fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) == 0
    };
    if leased {
        return Writers::None;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN) => Writers::Some,
        _ => Writers::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen_until_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.mov");
        let writer = std::fs::File::create(&path).unwrap();
        let reader = || std::fs::File::open(&path).unwrap();
        assert_eq!(ask(&reader()), Writers::Some);
        drop(writer);
        let other_reader = reader();
        assert_eq!(ask(&reader()), Writers::None);
        drop(other_reader);
        std::fs::write(&path, "nothing holds up the next writer").unwrap();
    }
}
