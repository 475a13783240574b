//! Inputs: a pinned version of a file in a folder store, read through its descriptor, or of an object (see `object`).
//!
//! Invariant: no reader ever gets bytes of two versions. Every read of a folder file is followed by a look at its
//! inode, time and size, which change no later than its bytes do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt};

use crate::backing::{etag_of_file, folder_etag};
use crate::object::Object;
use crate::plan::MountPath;

/// An input as the mount keeps it.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) path: MountPath,
    pub(crate) key: String,
    pub(crate) size: u64,
    pub(crate) source: InputSource,
}

/// Where its bytes come from.
#[derive(Debug)]
pub(crate) enum InputSource {
    Folder(FolderInput),
    Object(Arc<Object>),
}

/// A file in a folder store.
#[derive(Debug)]
pub(crate) struct FolderInput {
    dir: Arc<Dir>,
    key: String,
    etag: String,
    size: u64,
    open: Mutex<OpenState>,
    was_opened: AtomicBool,
}

#[derive(Debug, Default)]
struct OpenState {
    file: Option<Arc<File>>,
    users: u32,
}

/// Why an input in a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error(
        "the file {key:?} has changed since the job was submitted: its etag was {pinned}, now it is {found}; submit the job again"
    )]
    Changed { key: String, pinned: String, found: String },
    #[error("the file {0:?} is gone from its store; put it back or submit the job again")]
    Gone(String),
    #[error("{0:?} is not a regular file")]
    NotAFile(String),
    #[error("reading the file {key:?}: {source}")]
    Io { key: String, source: io::Error },
}

impl FolderInput {
    pub(crate) fn new(dir: Arc<Dir>, key: String, etag: String, size: u64) -> Self {
        Self { dir, key, etag, size, open: Mutex::default(), was_opened: AtomicBool::new(false) }
    }

    /// Opens the file for one more reader, after checking that it is the pinned version.
    pub(crate) fn open(&self) -> Result<(), InputError> {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if state.file.is_none() {
            state.file = Some(Arc::new(self.open_pinned()?));
        }
        state.users += 1;
        self.was_opened.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// One reader less.
    pub(crate) fn close(&self) -> Result<(), InputError> {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        state.users = state.users.saturating_sub(1);
        if state.users > 0 {
            return Ok(());
        }
        match state.file.take() {
            Some(file) => self.verify(&file),
            None => Ok(()),
        }
    }

    /// Reads at `offset` into `buffer` up to the pinned size; returns how many bytes there are.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, InputError> {
        let file = self.file()?;
        let wanted = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut buffer[filled..wanted], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        self.verify(&file)?;
        if filled < wanted {
            return Err(self.changed(format!("a file that ends after {} bytes", offset + filled as u64)));
        }
        Ok(filled)
    }

    /// Whether the key still leads to the pinned version, if it was ever read: what the job saw is what is there.
    pub(crate) fn verify_at_seal(&self) -> Result<(), InputError> {
        if !self.was_opened.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.dir.metadata(&self.key) {
            Ok(meta) if folder_etag(&meta) == self.etag => Ok(()),
            Ok(meta) => Err(self.changed(folder_etag(&meta))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(InputError::Gone(self.key.clone())),
            Err(error) => Err(self.io(error)),
        }
    }

    /// The open file.
    pub(crate) fn file(&self) -> Result<Arc<File>, InputError> {
        let mut state = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &state.file {
            return Ok(file.clone());
        }
        let file = Arc::new(self.open_pinned()?);
        state.file = Some(file.clone());
        Ok(file)
    }

    fn open_pinned(&self) -> Result<File, InputError> {
        // A FIFO under the key would block the open without O_NONBLOCK; on regular files it means nothing.
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32);
        let file = match self.dir.open_with(&self.key, &options) {
            Ok(file) => file.into_std(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(InputError::Gone(self.key.clone()));
            }
            Err(error) => return Err(self.io(error)),
        };
        if !file.metadata().map_err(|error| self.io(error))?.is_file() {
            return Err(InputError::NotAFile(self.key.clone()));
        }
        self.verify(&file)?;
        Ok(file)
    }

    fn verify(&self, file: &File) -> Result<(), InputError> {
        let found = etag_of_file(file).map_err(|error| self.io(error))?;
        if found == self.etag { Ok(()) } else { Err(self.changed(found)) }
    }

    fn changed(&self, found: String) -> InputError {
        InputError::Changed { key: self.key.clone(), pinned: self.etag.clone(), found }
    }

    fn io(&self, source: io::Error) -> InputError {
        InputError::Io { key: self.key.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(folder: &tempfile::TempDir, key: &str) -> FolderInput {
        let dir = Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).unwrap();
        let meta = dir.metadata(key).unwrap();
        FolderInput::new(Arc::new(dir), key.into(), folder_etag(&meta), meta.len())
    }

    #[test]
    fn a_change_in_place_is_seen_by_the_next_read_and_names_both_versions() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let input = input(&folder, "a");
        input.open().unwrap();
        let mut buffer = [0; 4];
        assert_eq!(input.read(8, &mut buffer).unwrap(), 2);
        assert_eq!(input.read(10, &mut buffer).unwrap(), 0);
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        let error = input.read(0, &mut buffer).unwrap_err().to_string();
        assert!(error.contains(&input.etag) && error.contains("now it is"), "{error}");
        assert!(input.close().is_err());
        assert!(input.open().is_err(), "a changed file cannot be opened");
        assert!(input.verify_at_seal().is_err());
    }

    #[test]
    fn links_out_of_the_store_and_special_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("fifo"), rustix::fs::Mode::RWXU).unwrap();
        let dir = Arc::new(Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).unwrap());
        let open =
            |key: &str| FolderInput::new(dir.clone(), key.into(), "1-2-3".into(), 3).open().unwrap_err();
        assert!(matches!(open("link"), InputError::Io { .. }));
        assert!(matches!(open("fifo"), InputError::NotAFile(_)));
        assert!(matches!(open("missing"), InputError::Gone(_)));
    }
}
