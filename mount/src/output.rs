//! Files being written: a hidden file in the root of a folder store, or a spill file that is uploaded later.
//!
//! Names in the mount and names on disk have nothing to do with each other, so renaming and replacing in the mount touch
//! no disk. A file on disk is open only while somebody has it open in the mount: thousands of segments cost no descriptors.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cap_std::fs::Dir;
use rustix::fs::FallocateFlags;

/// Where an output's bytes are while it is written.
#[derive(Debug)]
pub(crate) enum Place {
    /// `name` in the root of a folder store.
    Hidden { dir: Arc<Dir>, name: String },
    /// A file of the spill, charged against its budget.
    Spill { path: PathBuf, budget: Arc<SpillBudget> },
}

/// The bound on the sum of the sizes of all spill files of one mount.
#[derive(Debug)]
pub(crate) struct SpillBudget {
    limit: u64,
    used: AtomicU64,
}

impl SpillBudget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    pub(crate) fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn charge(&self, bytes: u64) -> bool {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One file of an output folder.
#[derive(Debug)]
pub(crate) struct OutputFile {
    place: Place,
    state: Mutex<State>,
    failed: AtomicI32,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    users: u32,
    /// Bytes of the spill's budget that this file holds.
    charged: u64,
    removed: bool,
}

impl OutputFile {
    /// Creates the file on disk, empty, for one user. The caller has recorded its name in the journal.
    pub(crate) fn create(place: Place) -> io::Result<Self> {
        let file = match &place {
            Place::Hidden { dir, name } => {
                let mut options = cap_std::fs::OpenOptions::new();
                dir.open_with(name, options.read(true).write(true).create_new(true))?.into_std()
            }
            Place::Spill { path, .. } => {
                OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?
            }
        };
        let state = State { file: Some(Arc::new(file)), users: 1, ..State::default() };
        Ok(Self { place, state: Mutex::new(state), failed: AtomicI32::new(0) })
    }

    /// Where it is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// One user more.
    pub(crate) fn open(&self) -> io::Result<()> {
        let mut state = self.lock();
        self.opened(&mut state)?;
        state.users += 1;
        Ok(())
    }

    /// One user less; the last one closes the file on disk.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.users = state.users.saturating_sub(1);
        if state.users == 0 {
            state.file = None;
        }
    }

    /// The file on disk, opened if nobody has it open.
    pub(crate) fn file(&self) -> io::Result<Arc<File>> {
        let mut state = self.lock();
        if state.users == 0 {
            // Kernel requests name no handle of ours; without a user there is nothing to keep open.
            return Ok(Arc::new(self.reopen()?));
        }
        self.opened(&mut state)
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> io::Result<u64> {
        let open = self.lock().file.clone();
        match (open, &self.place) {
            (Some(file), _) => Ok(file.metadata()?.len()),
            (None, Place::Hidden { dir, name }) => Ok(dir.symlink_metadata(name)?.len()),
            (None, Place::Spill { path, .. }) => Ok(std::fs::symlink_metadata(path)?.len()),
        }
    }

    /// Reads at `offset`; less than asked only at the end.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let file = self.file()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    /// Writes all of `data` at `offset`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(data.len() as u64).ok_or(rustix::io::Errno::FBIG)?;
        self.grow_charge(end)?;
        self.file()?.write_all_at(data, offset)
    }

    /// Cuts or extends with a hole.
    pub(crate) fn truncate(&self, size: u64) -> io::Result<()> {
        self.grow_charge(size)?;
        self.file()?.set_len(size)?;
        if let Place::Spill { budget, .. } = &self.place {
            let mut state = self.lock();
            budget.release(state.charged.saturating_sub(size));
            state.charged = state.charged.min(size);
        }
        Ok(())
    }

    /// Preallocates, punches or zeroes. Modes that move bytes are refused with EOPNOTSUPP.
    pub(crate) fn allocate(&self, mode: FallocateFlags, offset: u64, length: u64) -> io::Result<()> {
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let reserves_beyond_the_end =
            mode.contains(FallocateFlags::KEEP_SIZE) && !mode.contains(FallocateFlags::PUNCH_HOLE);
        let in_spill = matches!(self.place, Place::Spill { .. });
        if !known.contains(mode) || (in_spill && reserves_beyond_the_end) {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        if !mode.contains(FallocateFlags::KEEP_SIZE) {
            self.grow_charge(offset.checked_add(length).ok_or(rustix::io::Errno::FBIG)?)?;
        }
        Ok(rustix::fs::fallocate(&*self.file()?, mode, offset, length)?)
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file()?.sync_all()
    }

    /// Deletes the file on disk; what is open stays readable until it is closed.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut state = self.lock();
        if state.removed {
            return Ok(());
        }
        let removed = match &self.place {
            Place::Hidden { dir, name } => dir.remove_file(name),
            Place::Spill { path, .. } => std::fs::remove_file(path),
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => state.removed = true,
        }
        if let Place::Spill { budget, .. } = &self.place {
            budget.release(std::mem::take(&mut state.charged));
        }
        Ok(())
    }

    /// Remembers that a write failed, so that `close` fails too.
    pub(crate) fn fail(&self, errno: i32) {
        self.failed.store(errno, Ordering::Relaxed);
    }

    /// The error number of a failed write, if there was one.
    pub(crate) fn failed(&self) -> Option<i32> {
        Some(self.failed.load(Ordering::Relaxed)).filter(|errno| *errno != 0)
    }

    fn grow_charge(&self, end: u64) -> io::Result<()> {
        let Place::Spill { budget, .. } = &self.place else { return Ok(()) };
        let mut state = self.lock();
        let more = end.saturating_sub(state.charged);
        if !budget.charge(more) {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        state.charged += more;
        Ok(())
    }

    fn opened(&self, state: &mut State) -> io::Result<Arc<File>> {
        if let Some(file) = &state.file {
            return Ok(file.clone());
        }
        let file = Arc::new(self.reopen()?);
        state.file = Some(file.clone());
        Ok(file)
    }

    fn reopen(&self) -> io::Result<File> {
        match &self.place {
            Place::Hidden { dir, name } => {
                let mut options = cap_std::fs::OpenOptions::new();
                Ok(dir.open_with(name, options.read(true).write(true))?.into_std())
            }
            Place::Spill { path, .. } => OpenOptions::new().read(true).write(true).open(path),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spill_is_charged_by_size_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let budget = Arc::new(SpillBudget::new(100));
        let place = |name: &str| Place::Spill { path: folder.path().join(name), budget: budget.clone() };
        let one = OutputFile::create(place("1")).unwrap();
        let two = OutputFile::create(place("2")).unwrap();
        one.write(40, b"0123456789").unwrap();
        assert_eq!(budget.free(), 50);
        two.truncate(50).unwrap();
        assert_eq!(one.write(45, b"0123456789").unwrap_err().raw_os_error(), Some(28));
        assert_eq!((one.size().unwrap(), budget.free()), (50, 0));
        one.write(0, b"patch").unwrap();
        two.truncate(10).unwrap();
        assert_eq!(budget.free(), 40);
        one.remove().unwrap();
        one.remove().unwrap();
        assert_eq!(budget.free(), 90);
        assert!(!folder.path().join("1").exists());
    }

    #[test]
    fn a_closed_file_is_reopened_for_its_next_user() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Arc::new(Dir::open_ambient_dir(folder.path(), cap_std::ambient_authority()).unwrap());
        let name = ".telecine-upload-a-0".to_owned();
        let file = OutputFile::create(Place::Hidden { dir, name }).unwrap();
        file.write(0, b"hello").unwrap();
        file.close();
        assert!(file.lock().file.is_none());
        assert_eq!(file.size().unwrap(), 5);
        file.open().unwrap();
        let mut buffer = [0; 9];
        assert_eq!(file.read(1, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"ello");
    }
}
