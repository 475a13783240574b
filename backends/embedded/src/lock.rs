//! One process at a time over a data folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

const LOCK_FILE: &str = "telecine.lock";

/// The folder is not ours to use.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "the data folder {folder:?} is in use by process {holder}: end that one first, or choose another folder"
    )]
    Held {
        /// Which folder.
        folder: PathBuf,
        /// The other's process id, or `?` while it is starting.
        holder: String,
    },
    /// The lock cannot be taken at all.
    #[error("the data folder {folder:?} cannot be locked: {source}")]
    Io {
        /// Which folder.
        folder: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

/// Held for as long as this value lives; the system lets it go when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the lock or says who has it.
    ///
    /// # Errors
    /// `Held`, `Io`.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { folder: folder.to_owned(), source };
        let path = folder.join(LOCK_FILE);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).to_owned();
        let mut file = options.open(path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Held { folder: folder.to_owned(), holder: holder_of(&mut file) });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // The text is for people and for `Held`; the lock itself is the truth.
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(failed)?;
        Ok(Self { file })
    }
}

impl Drop for FolderLock {
    /// Said aloud, because closing is not enough: a process that is just being started has a copy of the descriptor
    /// until it runs its own program.
    fn drop(&mut self) {
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(%error, "the lock of the data folder is let go when this process ends");
        }
    }
}

fn holder_of(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    match text.trim() {
        pid if read.is_ok() && !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) => {
            pid.to_owned()
        }
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
        let copy = first.file.try_clone().unwrap();
        drop(first);
        FolderLock::take(folder.path()).expect("a copy of the descriptor holds nothing");
        drop(copy);
    }
}
