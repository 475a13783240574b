//! Objects that arrive in a local folder.
//!
//! A file has arrived when its writer closes it or when it is renamed into place. What no event told (it was there
//! before, the queue of events ran over, a whole folder was moved in) a listing finds: such a file has arrived when its
//! size and modification time have stood still for a while and nobody is known to be writing it. A file that was made or
//! changed with no close (a hard link, a truncation by name) has arrived when it has stood still for as long and the
//! system says that nobody has it open for writing; where the system cannot say, a file that was written to waits for
//! its close. An arrival is told at least once for each version; whoever takes it makes it exactly once
//! (`telecine-core`'s ingest).
//!
//! What it is not: a judge of what arrives. Hidden names are ignored; everything else is passed on.

mod signals;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use telecine_domain::factory::ArrivedObject;
use telecine_domain::id::StoreId;
use telecine_domain::location::{Location, ObjectKey, ObjectVersion, is_hidden};
use telecine_stores::{FolderStore, ObjectEntry, OpenedStore, StoreError};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use signals::{Seen, Signals};
use writers::{Writers, writers_of};

/// Keys of a listing at a time.
const PAGE: usize = 1000;
/// A folder that appears is listed after this, when the system watches it too.
const FOLDER_DELAY: Duration = Duration::from_millis(300);
/// A file that was touched and not closed is first looked at after this.
const FIRST_LOOK: Duration = Duration::from_millis(200);
/// Without events, listings are all there is.
const RECONCILE_WITHOUT_EVENTS: Duration = Duration::from_secs(5);
/// When files of dead writers are looked for, and how old they must be.
const CLEAN_EVERY: Duration = Duration::from_secs(3600);
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How patient a watcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchSettings {
    /// How long a file that a listing found, or that was touched and not closed, must stand still.
    pub settle: Duration,
    /// Time between listings of everything.
    pub reconcile: Duration,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self { settle: Duration::from_secs(2), reconcile: Duration::from_secs(30) }
    }
}

/// A folder being watched; dropping it ends that.
pub struct LocalWatcher {
    ending: CancellationToken,
    watching: Option<JoinHandle<()>>,
    asked: Arc<Asked>,
}

/// What the watcher was asked to tell again.
#[derive(Default)]
struct Asked {
    keys: Mutex<Vec<ObjectKey>>,
    everything: AtomicBool,
    wake: Notify,
}

impl LocalWatcher {
    /// Watches `folder` and sends what arrives, first what is there already. Waits while `arrivals` is full: what
    /// happens meanwhile is remembered, or found by the next listing.
    pub fn start(
        store: StoreId,
        folder: FolderStore,
        settings: WatchSettings,
        arrivals: mpsc::Sender<ArrivedObject>,
    ) -> Self {
        let ending = CancellationToken::new();
        let asked = Arc::new(Asked::default());
        let signals = Signals::watch(&folder.root);
        if let Err(problem) = &signals {
            tracing::warn!(folder = %folder.root.display(), %problem, "no events from this folder; it is listed every few seconds instead");
        }
        let watch = Watch {
            store,
            opened: OpenedStore::Folder(folder.clone()),
            folder,
            settings,
            signals: signals.ok(),
            arrivals,
            asked: Arc::clone(&asked),
            writing: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            told: BTreeMap::new(),
            folders: BTreeMap::new(),
            reconcile_at: Instant::now(),
            clean_at: Instant::now(),
            was_listed: true,
        };
        let run = watch.run(ending.clone());
        Self { ending, watching: Some(tokio::spawn(run)), asked }
    }

    /// The arrival of this key could not be recorded: the next listing tells it again.
    pub fn tell_again(&self, key: &ObjectKey) {
        self.asked.keys.lock().unwrap_or_else(PoisonError::into_inner).push(key.clone());
    }

    /// Somebody else wants to know: everything that is there is told again, soon. What is still being written is told
    /// when it is whole.
    pub fn tell_everything_again(&self) {
        self.asked.everything.store(true, Ordering::Release);
        self.asked.wake.notify_one();
    }

    /// Ends it, and returns when nothing more is sent.
    pub async fn stop(mut self) {
        self.ending.cancel();
        if let Some(watching) = self.watching.take()
            && let Err(error) = watching.await
        {
            tracing::error!(%error, "a folder's watcher died");
        }
    }
}

impl Drop for LocalWatcher {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

/// A file that was seen and may still be written.
struct Unsettled {
    version: ObjectVersion,
    since: Instant,
}

/// A file that was made or written to, and not closed since.
struct Touched {
    /// Whether it was written to; one that was only made may be a link to a file that is whole.
    written: bool,
    /// The version that stood there when it was looked at last.
    version: Option<ObjectVersion>,
    look_at: Instant,
}

struct Watch {
    store: StoreId,
    opened: OpenedStore,
    folder: FolderStore,
    settings: WatchSettings,
    signals: Option<Signals>,
    arrivals: mpsc::Sender<ArrivedObject>,
    asked: Arc<Asked>,
    writing: BTreeMap<ObjectKey, Touched>,
    unsettled: BTreeMap<ObjectKey, Unsettled>,
    /// The version of each key that was sent last.
    told: BTreeMap<ObjectKey, String>,
    /// Folders to list, and when.
    folders: BTreeMap<String, Instant>,
    reconcile_at: Instant,
    clean_at: Instant,
    /// Whether the last listing worked; a change is worth a line in the log.
    was_listed: bool,
}

/// Nobody takes arrivals any more.
struct Ended;

impl Watch {
    async fn run(mut self, ending: CancellationToken) {
        loop {
            let step = tokio::select! {
                () = ending.cancelled() => return,
                step = self.step() => step,
            };
            if let Err(Ended) = step {
                return;
            }
            let wake = self.next_wake();
            tokio::select! {
                () = ending.cancelled() => return,
                () = changed(self.signals.as_ref()) => {}
                () = self.asked.wake.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    async fn step(&mut self) -> Result<(), Ended> {
        self.take_signals().await?;
        let now = Instant::now();
        let due: Vec<String> =
            self.folders.iter().filter(|(_, at)| **at <= now).map(|(folder, _)| folder.clone()).collect();
        for folder in due {
            self.folders.remove(&folder);
            self.list(&folder).await?;
        }
        if self.asked.everything.swap(false, Ordering::AcqRel) {
            self.told.clear();
            self.reconcile_at = now;
        }
        if self.reconcile_at <= now {
            for key in std::mem::take(&mut *self.asked.keys.lock().unwrap_or_else(PoisonError::into_inner)) {
                self.told.remove(&key);
            }
            self.list("").await?;
            let every = match self.signals {
                Some(_) => self.settings.reconcile,
                None => self.settings.reconcile.min(RECONCILE_WITHOUT_EVENTS),
            };
            self.reconcile_at = Instant::now() + every;
        }
        self.settle().await?;
        self.settle_touched().await?;
        if self.clean_at <= now {
            self.clean().await;
        }
        Ok(())
    }

    fn next_wake(&self) -> Instant {
        let settled = self.unsettled.values().map(|file| file.since + self.settings.settle);
        let touched = self.writing.values().map(|file| file.look_at);
        let listed = self.folders.values().copied();
        let next = settled.chain(touched).chain(listed).min();
        let next = next.map_or(self.reconcile_at, |next| next.min(self.reconcile_at));
        next.min(self.clean_at)
    }

    async fn take_signals(&mut self) -> Result<(), Ended> {
        let Some(signals) = &self.signals else { return Ok(()) };
        let (seen, lost) = signals.take();
        if lost {
            // Events were lost, closes among them: only a listing knows, and only time tells who is done.
            self.writing.clear();
            self.reconcile_at = Instant::now();
        }
        for (path, what) in seen {
            let Some(key) = self.key_of(&path) else { continue };
            match what {
                Seen::Whole => {
                    self.writing.remove(&key);
                    self.look(key).await?;
                }
                Seen::Made => self.touched(key, false),
                Seen::Written => self.touched(key, true),
                Seen::Folder => self.list_soon(&key),
                Seen::Gone => {
                    self.writing.remove(&key);
                    self.unsettled.remove(&key);
                    self.told.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn touched(&mut self, key: ObjectKey, written: bool) {
        self.unsettled.remove(&key);
        let look_at = Instant::now() + FIRST_LOOK.min(self.settings.settle);
        let touched = self.writing.entry(key).or_insert(Touched { written, version: None, look_at });
        *touched = Touched { written: written || touched.written, version: None, look_at };
    }

    /// Names that are no keys cannot be named by a job; listings leave them out too.
    fn key_of(&self, path: &Path) -> Option<ObjectKey> {
        let relative = path.strip_prefix(&self.folder.root).ok()?.to_str()?;
        relative.parse().ok().filter(|key| !is_hidden(key))
    }

    fn list_soon(&mut self, folder: &ObjectKey) {
        self.folders.insert(format!("{folder}/"), Instant::now() + FOLDER_DELAY);
    }

    /// An event says that the object is whole.
    async fn look(&mut self, key: ObjectKey) -> Result<(), Ended> {
        match self.opened.head(&key).await {
            Ok(Some(version)) => self.tell(key, version).await,
            // What was renamed into place is a folder, or gone again.
            Ok(None) => {
                self.list_soon(&key);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "an object that arrived cannot be looked at; the next listing tries again");
                Ok(())
            }
        }
    }

    async fn tell(&mut self, key: ObjectKey, version: ObjectVersion) -> Result<(), Ended> {
        self.unsettled.remove(&key);
        if self.told.get(&key) == Some(&version.etag) {
            return Ok(());
        }
        let etag = version.etag.clone();
        let location = Location { store: self.store, key: key.clone() };
        self.arrivals.send(ArrivedObject { location, version }).await.map_err(|_| Ended)?;
        self.told.insert(key, etag);
        Ok(())
    }

    async fn list(&mut self, prefix: &str) -> Result<(), Ended> {
        let mut listed = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.opened.list(prefix, after.as_deref(), PAGE).await;
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    self.not_listed(&error);
                    return Ok(());
                }
            };
            let end = page.len() < PAGE;
            after = page.last().map(|entry| entry.key.to_string());
            for entry in page {
                listed.insert(entry.key.clone());
                self.found(entry).await?;
            }
            if end {
                break;
            }
        }
        if prefix.is_empty() {
            self.told.retain(|key, _| listed.contains(key));
            self.writing.retain(|key, _| listed.contains(key));
            self.was_listed = true;
        }
        Ok(())
    }

    fn not_listed(&mut self, error: &StoreError) {
        if self.was_listed {
            tracing::error!(store = %self.store, %error, "a watched folder cannot be listed; nothing arrives until it can");
        }
        self.was_listed = false;
    }

    async fn found(&mut self, entry: ObjectEntry) -> Result<(), Ended> {
        let ObjectEntry { key, version, modified } = entry;
        if self.told.get(&key) == Some(&version.etag) || self.writing.contains_key(&key) {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let still_for = now.saturating_sub(u128::from(modified.as_millis()));
        if still_for >= self.settings.settle.as_millis() {
            return self.tell(key, version).await;
        }
        match self.unsettled.get(&key) {
            Some(file) if file.version == version => {}
            _ => {
                self.unsettled.insert(key, Unsettled { version, since: Instant::now() });
            }
        }
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        let waited = |file: &Unsettled| file.since + self.settings.settle <= now;
        let due: Vec<ObjectKey> =
            self.unsettled.iter().filter(|(_, file)| waited(file)).map(|(key, _)| key.clone()).collect();
        for key in due {
            let Some(file) = self.unsettled.remove(&key) else { continue };
            match self.opened.head(&key).await {
                Ok(Some(version)) if version == file.version => self.tell(key, version).await?,
                Ok(Some(version)) => {
                    self.unsettled.insert(key, Unsettled { version, since: Instant::now() });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "a found object cannot be looked at; the next listing tries again")
                }
            }
        }
        Ok(())
    }

    /// Files that were touched and stood still since, with no close: links, truncations, and writers that pause.
    async fn settle_touched(&mut self) -> Result<(), Ended> {
        let now = Instant::now();
        let due: Vec<ObjectKey> =
            self.writing.iter().filter(|(_, file)| file.look_at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            let version = match self.opened.head(&key).await {
                Ok(Some(version)) => version,
                Ok(None) => {
                    self.writing.remove(&key);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "a file that was written to cannot be looked at; it is tried again");
                    self.look_again(&key, None);
                    continue;
                }
            };
            let still = self.writing.get(&key).is_some_and(|file| file.version.as_ref() == Some(&version));
            if still && self.is_whole(&key, &version).await {
                self.writing.remove(&key);
                self.tell(key, version).await?;
            } else {
                self.look_again(&key, Some(version));
            }
        }
        Ok(())
    }

    fn look_again(&mut self, key: &ObjectKey, version: Option<ObjectVersion>) {
        if let Some(file) = self.writing.get_mut(key) {
            file.version = version;
            file.look_at = Instant::now() + self.settings.settle;
        }
    }

    /// Whether a file that stands still and was not closed is nobody's work in progress.
    async fn is_whole(&self, key: &ObjectKey, version: &ObjectVersion) -> bool {
        match writers_of(&self.folder, key).await {
            Writers::None => true,
            Writers::Some => false,
            // What has bytes and was never written to under this name is a link. Its writer, if it has one, cannot be
            // known here; who writes under this name closes it some day.
            Writers::Unknown => {
                version.size_bytes > 0 && self.writing.get(key).is_some_and(|file| !file.written)
            }
        }
    }

    async fn clean(&mut self) {
        self.clean_at = Instant::now() + CLEAN_EVERY;
        match self.folder.remove_abandoned(ABANDONED_AFTER).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(store = %self.store, removed, "files of dead writers removed"),
            Err(error) => tracing::warn!(%error, "files of dead writers could not be looked for"),
        }
    }
}

async fn changed(signals: Option<&Signals>) {
    match signals {
        Some(signals) => signals.changed().await,
        None => std::future::pending().await,
    }
}
