//! The files of a folder in the bytewise order of their keys, a page at a time.
//!
//! A folder `d` sorts as `d/`, so that a walk in that order gives whole keys in order. Symbolic links to files are
//! listed when they lead to a file beneath the root; linked folders are not entered, so that no walk is endless. A
//! folder below the root that may not be read is left out, as are names that are no keys.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cap_std::fs::{Dir, DirEntry, Metadata, MetadataExt};
use telecine_domain::location::{HIDDEN_PREFIX, MAX_KEY_BYTES, ObjectKey};
use telecine_domain::time::Timestamp;

use super::version_of;
use crate::ObjectEntry;

struct Walk<'a> {
    root: &'a Dir,
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
    entries: Vec<ObjectEntry>,
}

pub(super) fn list(
    root: &Dir,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> io::Result<Vec<ObjectEntry>> {
    let mut walk = Walk { root, prefix, after, limit, entries: Vec::new() };
    walk.enter("", root.entries()?)?;
    Ok(walk.entries)
}

impl Walk<'_> {
    fn enter(&mut self, folder: &str, entries: cap_std::fs::ReadDir) -> io::Result<()> {
        for name in names(entries)? {
            if self.entries.len() == self.limit {
                break;
            }
            let key = format!("{folder}{name}");
            if key.len() > MAX_KEY_BYTES || !self.wants(&key) {
                continue;
            }
            if key.ends_with('/') {
                match self.root.read_dir(&key) {
                    Ok(entries) => self.enter(&key, entries)?,
                    Err(error) if may_be_left_out(&error) => {}
                    Err(error) => return Err(error),
                }
            } else {
                self.add(&key)?;
            }
        }
        Ok(())
    }

    /// Whether the key, or something below it when it is a folder, can belong to the page.
    fn wants(&self, key: &str) -> bool {
        let begins = key.starts_with(self.prefix) || (key.ends_with('/') && self.prefix.starts_with(key));
        let comes_after = match self.after {
            None => true,
            Some(after) => key > after || (key.ends_with('/') && after.starts_with(key)),
        };
        begins && comes_after
    }

    fn add(&mut self, key: &str) -> io::Result<()> {
        let Ok(parsed) = key.parse::<ObjectKey>() else { return Ok(()) };
        match self.root.metadata(key) {
            Ok(meta) if meta.is_file() => {
                let entry =
                    ObjectEntry { key: parsed, version: version_of(&meta), modified: modified(&meta) };
                self.entries.push(entry);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if may_be_left_out(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Gone since the folder was read, not for us, or a link that leads out or in circles.
fn may_be_left_out(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::NotFound
            | Kind::NotADirectory
            | Kind::PermissionDenied
            | Kind::CrossesDevices
            | Kind::InvalidFilename
    ) || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The visible names of a folder, folders with a slash, sorted.
fn names(entries: cap_std::fs::ReadDir) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with(HIDDEN_PREFIX) {
            continue;
        }
        let slash = if is_folder(&entry) { "/" } else { "" };
        names.push(name + slash);
    }
    names.sort_unstable();
    Ok(names)
}

fn is_folder(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn modified(meta: &Metadata) -> Timestamp {
    let millis = i128::from(meta.mtime()) * 1000 + i128::from(meta.mtime_nsec()) / 1_000_000;
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Removes files whose names begin with `prefix` and that are older than `older_than`, in every folder.
pub(super) fn remove_abandoned(root: &Dir, prefix: &str, older_than: Duration) -> io::Result<usize> {
    let mut folders = vec![".".to_owned()];
    let mut removed = 0;
    while let Some(folder) = folders.pop() {
        let entries = match root.read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if folder != "." && may_be_left_out(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_folder(&entry) && folder.len() < MAX_KEY_BYTES {
                folders.push(format!("{folder}/{name}"));
            } else if name.starts_with(prefix) && is_older(&entry, older_than) {
                match root.remove_file(Path::new(&folder).join(&name)) {
                    Ok(()) => removed += 1,
                    Err(error) if may_be_left_out(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(removed)
}

fn is_older(entry: &DirEntry, older_than: Duration) -> bool {
    let age = || {
        let modified = entry.metadata().ok()?.modified().ok()?.into_std();
        SystemTime::now().duration_since(modified).ok()
    };
    age().is_some_and(|age| age >= older_than)
}
