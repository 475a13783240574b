//! The operations that change outputs.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use fuser::{Errno, FileAttr};
use rustix::fs::FallocateFlags;

use super::{Volume, What};
use crate::backing::{Backing, is_hidden_name};
use crate::journal::Entry;
use crate::output::{OutputFile, Place};
use crate::plan::{MAX_FOLDER_NAME_BYTES, check_name};
use crate::tree::{Entries, Kind, Zone};

/// Tries to find an unused hidden name before giving up.
const NAMES_TRIED: u32 = 10_000;

/// What the names of spill files begin with.
pub(crate) const SPILL_PREFIX: &str = "spill-";

/// What `setattr` asks for; absent means unchanged.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) modified: Option<SystemTime>,
}

impl Volume {
    /// Creates a file for one user; counts as a look-up.
    pub(crate) fn create(&self, parent: u64, name: &[u8], mode: u32) -> Result<FileAttr, Errno> {
        let _unfrozen = self.unfrozen()?;
        let output = self.check_new(parent, name)?;
        let file = Arc::new(self.new_file(output).map_err(|error| {
            let errno = Errno::from_i32(error.raw_os_error().unwrap_or(0));
            let (folder, _) = self.path_and_key(parent);
            let path = format!("{folder}/{}", String::from_utf8_lossy(name));
            self.record_output_failure(path, String::new(), "creating it", &error, errno);
            errno
        })?);
        let added = {
            let mut tree = self.tree();
            let added = tree.add(parent, name, Kind::File(file.clone()), permissions(mode));
            if let Ok(inode) = added {
                tree.remember(inode);
                tree.used(inode);
            }
            added
        };
        match added {
            Ok(inode) => self.attributes(inode),
            Err(errno) => {
                self.drop_bytes(Some(file));
                Err(errno)
            }
        }
    }

    /// Creates a folder; counts as a look-up.
    pub(crate) fn make_folder(&self, parent: u64, name: &[u8], mode: u32) -> Result<FileAttr, Errno> {
        let _unfrozen = self.unfrozen()?;
        self.check_new(parent, name)?;
        let inode = {
            let mut tree = self.tree();
            let inode = tree.add(parent, name, Kind::Folder(Entries::default()), permissions(mode))?;
            tree.remember(inode);
            inode
        };
        self.attributes(inode)
    }

    /// Removes a file.
    pub(crate) fn unlink(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        let _unfrozen = self.unfrozen()?;
        let dropped = self.tree().unlink(parent, name)?;
        self.drop_bytes(dropped);
        Ok(())
    }

    /// Removes an empty folder.
    pub(crate) fn remove_folder(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        let _unfrozen = self.unfrozen()?;
        self.tree().remove_folder(parent, name)
    }

    /// Moves a file or folder inside one output.
    pub(crate) fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), replace: bool) -> Result<(), Errno> {
        let _unfrozen = self.unfrozen()?;
        self.check_name(to.0, to.1)?;
        let dropped = self.tree().rename(from, to, replace)?;
        self.drop_bytes(dropped);
        Ok(())
    }

    /// Writes all of `data`.
    pub(crate) fn write(&self, inode: u64, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let _unfrozen = self.unfrozen()?;
        let file = self.output_file(inode)?;
        file.write(offset, data).map_err(|error| self.output_failed(inode, &file, "writing it", &error))?;
        self.counters.written(data.len());
        if matches!(file.place(), Place::Hidden { .. }) {
            self.counters.store_written(data.len());
        }
        self.touch(inode);
        Ok(())
    }

    /// Preallocates, punches or zeroes.
    pub(crate) fn allocate(&self, inode: u64, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        let _unfrozen = self.unfrozen()?;
        let file = self.output_file(inode)?;
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        match file.allocate(mode, offset, length) {
            Ok(()) => {
                self.touch(inode);
                Ok(())
            }
            Err(error) => {
                let errno = Errno::from_i32(error.raw_os_error().unwrap_or(0));
                if errno == Errno::EOPNOTSUPP || errno == Errno::EINVAL {
                    return Err(errno);
                }
                Err(self.output_failed(inode, &file, "preallocating it", &error))
            }
        }
    }

    /// Makes a file durable where it is.
    pub(crate) fn sync(&self, inode: u64) -> Result<(), Errno> {
        match self.what(inode)? {
            What::File(file) => {
                file.sync().map_err(|error| self.output_failed(inode, &file, "making it durable", &error))
            }
            What::Folder | What::Input(_) => Ok(()),
        }
    }

    /// What `close` answers: the error of an earlier write, so that careful programs see it too.
    pub(crate) fn flush(&self, inode: u64) -> Result<(), Errno> {
        match self.what(inode)? {
            What::File(file) => file.failed().map_or(Ok(()), |errno| Err(Errno::from_i32(errno))),
            What::Folder | What::Input(_) => Ok(()),
        }
    }

    /// Changes attributes. Owners can only be set to what they are.
    pub(crate) fn set_attributes(&self, inode: u64, wanted: Wanted) -> Result<FileAttr, Errno> {
        let _unfrozen = self.unfrozen()?;
        if self.tree().node(inode)?.zone == Zone::Fixed {
            return Err(Errno::EROFS);
        }
        let other_owner = wanted.uid.is_some_and(|uid| uid != self.uid);
        if other_owner || wanted.gid.is_some_and(|gid| gid != self.gid) {
            return Err(Errno::EPERM);
        }
        if let Some(size) = wanted.size {
            let file = self.output_file(inode)?;
            file.truncate(size).map_err(|error| self.output_failed(inode, &file, "truncating it", &error))?;
            self.touch(inode);
        }
        {
            let mut tree = self.tree();
            let node = tree.node_mut(inode)?;
            node.mode = wanted.mode.map_or(node.mode, permissions);
            node.modified = wanted.modified.unwrap_or(node.modified);
        }
        self.attributes(inode)
    }

    /// Forbids every further change, after those under way.
    pub(crate) fn freeze(&self) {
        *self.frozen.write().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Whether changes are forbidden.
    pub(crate) fn is_frozen(&self) -> bool {
        *self.frozen.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every file of an output with its path below the output folder.
    pub(crate) fn files_of(&self, output: &super::Output) -> Vec<(Vec<u8>, u64, Arc<OutputFile>)> {
        self.tree().files_below(output.inode)
    }

    /// Deletes the bytes of every output file from where they are; used when the mount closes.
    pub(crate) fn remove_spill(&self) {
        for output in &self.outputs {
            for (_, _, file) in self.files_of(output) {
                if matches!(file.place(), Place::Spill { .. }) {
                    self.drop_bytes(Some(file));
                }
            }
        }
    }

    fn unfrozen(&self) -> Result<std::sync::RwLockReadGuard<'_, bool>, Errno> {
        let frozen = self.frozen.read().unwrap_or_else(PoisonError::into_inner);
        if *frozen { Err(Errno::EROFS) } else { Ok(frozen) }
    }

    fn output_file(&self, inode: u64) -> Result<Arc<OutputFile>, Errno> {
        match self.what(inode)? {
            What::File(file) => Ok(file),
            What::Folder => Err(Errno::EISDIR),
            What::Input(_) => Err(Errno::EROFS),
        }
    }

    fn touch(&self, inode: u64) {
        if let Ok(node) = self.tree().node_mut(inode) {
            node.modified = SystemTime::now();
        }
    }

    fn check_new(&self, parent: u64, name: &[u8]) -> Result<usize, Errno> {
        self.check_name(parent, name)?;
        match self.tree().check_new(parent, name)? {
            Zone::Output(number) => Ok(number),
            Zone::Fixed => Err(Errno::EROFS),
        }
    }

    /// Names that could never be published are refused where the engine can still react.
    fn check_name(&self, parent: u64, name: &[u8]) -> Result<(), Errno> {
        let Zone::Output(number) = self.tree().node(parent)?.zone else { return Err(Errno::EROFS) };
        let in_folder = matches!(self.outputs[number].plan.backing, Backing::Folder { .. });
        if check_name(name).is_err() || (in_folder && name.len() > MAX_FOLDER_NAME_BYTES) {
            return Err(Errno::ENAMETOOLONG);
        }
        if is_hidden_name(name) { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// A new empty file for an output, its name in the journal first.
    fn new_file(&self, output: usize) -> std::io::Result<OutputFile> {
        let plan = &self.outputs[output].plan;
        let Backing::Folder { dir } = &plan.backing else {
            let number = self.next_file.fetch_add(1, Ordering::Relaxed);
            let path = self.spill.join(format!("{SPILL_PREFIX}{number}"));
            return OutputFile::create(Place::Spill { path, budget: self.budget.clone() });
        };
        for _ in 0..NAMES_TRIED {
            let number = self.next_file.fetch_add(1, Ordering::Relaxed);
            let name = format!(".telecine-upload-{}-{number}", plan.hidden_tag);
            let taken = dir.symlink_metadata(&name).is_ok();
            if taken {
                continue;
            }
            let entry = Entry::HiddenFile { output: plan.name.clone(), hidden_key: name.clone() };
            self.journal.append(&entry)?;
            match OutputFile::create(Place::Hidden { dir: dir.clone(), name }) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
        Err(rustix::io::Errno::EXIST.into())
    }
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o777) as u16
}
