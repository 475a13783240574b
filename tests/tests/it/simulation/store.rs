//! The store that all attempts publish to: a folder whose every rename the kernel notes down, so that no publishing is
//! missed however short it shows. Hidden names carry their attempt and epoch; a rename from a hidden name is a
//! publishing under that epoch.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use telecine_agent::folder::AttemptFolder;
use telecine_domain::attempt::AttemptId;

const HIDDEN: &str = ".telecine-upload-";

/// An object appeared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// Under which right; `None` when it did not come from a hidden file.
    pub(super) attempt: Option<AttemptId>,
    pub(super) key: String,
}

pub(super) struct WatchedFolder {
    folder: tempfile::TempDir,
    watch: OwnedFd,
    /// Left names by the cookie of their rename.
    leaving: BTreeMap<u32, String>,
}

impl WatchedFolder {
    pub(super) fn new() -> Self {
        // Not `scratch`: the platform refuses stores below the system's own folders.
        let folder = tempfile::tempdir().unwrap();
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        let flags = WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, folder.path(), flags).unwrap();
        Self { folder, watch, leaving: BTreeMap::new() }
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What was published since the last call, in order.
    pub(super) fn published(&mut self) -> Vec<Published> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.watch, &mut buffer);
        let mut found = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::WOULDBLOCK) => return found,
                Err(error) => panic!("the folder cannot be watched: {error}"),
            };
            assert!(!event.events().contains(ReadFlags::QUEUE_OVERFLOW), "renames were missed");
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if event.events().contains(ReadFlags::MOVED_FROM) {
                self.leaving.insert(event.cookie(), name);
            } else {
                let from = self.leaving.remove(&event.cookie()).unwrap_or_default();
                found.push(Published { attempt: attempt_of_hidden(&from), key: name });
            }
        }
    }

    /// Names of hidden files.
    pub(super) fn hidden(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.path()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(HIDDEN)).collect()
    }
}

/// The hidden name of the `nth` output of a worker whose tag is `tag`.
pub(super) fn hidden_name(tag: &str, nth: usize) -> String {
    format!("{HIDDEN}{tag}-{nth}")
}

fn attempt_of_hidden(name: &str) -> Option<AttemptId> {
    AttemptFolder::attempt_of(name.strip_prefix(HIDDEN)?.rsplit_once('-')?.0)
}

#[cfg(test)]
mod tests {
    use telecine_domain::id::{AttemptNumber, Epoch, JobId};
    use telecine_domain::time::Timestamp;

    use super::*;

    #[test]
    fn every_rename_is_noted_with_its_attempt() {
        let mut store = WatchedFolder::new();
        let job = JobId::new(Timestamp::from_millis(1), 7);
        let attempt = AttemptId { job, attempt: AttemptNumber(2), epoch: Epoch(3) };
        let hidden = hidden_name(&AttemptFolder::name_of(&attempt), 0);
        for _ in 0..2 {
            std::fs::write(store.path().join(&hidden), "x").unwrap();
            assert_eq!(store.hidden(), std::slice::from_ref(&hidden));
            std::fs::rename(store.path().join(&hidden), store.path().join("out")).unwrap();
        }
        let once = Published { attempt: Some(attempt), key: "out".to_owned() };
        assert_eq!(store.published(), [once.clone(), once], "the second time hides nothing");
        assert!(store.published().is_empty() && store.hidden().is_empty());
    }
}
