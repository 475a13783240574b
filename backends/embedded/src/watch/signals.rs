//! What the system says happened in a folder, one word for each name: the last one counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RemoveKind, RenameMode};
use notify::{Config, Event, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

/// Names kept before giving up on them and listing instead.
const MOST_NAMES: usize = 100_000;

/// What happened to a name last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Closed after writing, or renamed into place.
    Whole,
    /// Made.
    Made,
    /// Written to, or cut.
    Written,
    /// A folder appeared.
    Folder,
    /// Removed or renamed away.
    Gone,
}

#[derive(Default)]
struct Gathered {
    names: BTreeMap<PathBuf, Seen>,
    lost: bool,
}

#[derive(Default)]
struct Shared {
    gathered: Mutex<Gathered>,
    changed: Notify,
}

/// Watches until it is dropped.
pub(super) struct Signals {
    shared: Arc<Shared>,
    _watcher: INotifyWatcher,
}

impl Signals {
    /// Watches a folder and all below it.
    pub(super) fn watch(root: &Path) -> Result<Self, String> {
        let shared = Arc::new(Shared::default());
        let sink = Arc::clone(&shared);
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher =
            INotifyWatcher::new(move |event| sink.gather(event), config).map_err(|error| words(&error))?;
        watcher.watch(root, RecursiveMode::Recursive).map_err(|error| words(&error))?;
        Ok(Self { shared, _watcher: watcher })
    }

    /// What was gathered since the last time, and whether something was lost.
    pub(super) fn take(&self) -> (BTreeMap<PathBuf, Seen>, bool) {
        let gathered = std::mem::take(&mut *self.shared.gathered());
        (gathered.names, gathered.lost)
    }

    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }
}

fn words(error: &notify::Error) -> String {
    match error.kind {
        notify::ErrorKind::MaxFilesWatch => {
            "the limit of watched folders is reached: raise fs.inotify.max_user_watches with sysctl"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

impl Shared {
    fn gathered(&self) -> std::sync::MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gather(&self, event: notify::Result<Event>) {
        let mut gathered = self.gathered();
        match event {
            Ok(event) if !event.need_rescan() => {
                let Some(seen) = seen(event.kind) else { return };
                for path in event.paths {
                    gathered.names.insert(path, seen);
                }
                if gathered.names.len() > MOST_NAMES {
                    *gathered = Gathered { names: BTreeMap::new(), lost: true };
                }
            }
            // An error may have kept a folder from being watched.
            Ok(_) | Err(_) => gathered.lost = true,
        }
        drop(gathered);
        self.changed.notify_one();
    }
}

fn seen(kind: EventKind) -> Option<Seen> {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(Seen::Whole),
        EventKind::Create(CreateKind::Folder) => Some(Seen::Folder),
        EventKind::Create(_) => Some(Seen::Made),
        EventKind::Modify(ModifyKind::Data(_)) => Some(Seen::Written),
        EventKind::Remove(RemoveKind::File) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => {
            Some(Seen::Gone)
        }
        _ => None,
    }
}
