//! Objects that arrive become jobs: a watcher for each local folder that a factory watches, a listing now and then for
//! every other watched store.
//!
//! Level-triggered: which stores are watched, and by which rules, is read again whenever something was written, so that a
//! new factory needs no restart. A rule that is new, changed or switched on again sees what is in its store already: the
//! store is looked through once more, and again from the beginning after a restart. What arrives is handed to
//! `core::ingest`, which makes one job of it however often it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_core::ingest::{self, WatchMark, WatchedStore};
use telecine_core::stores;
use telecine_domain::factory::ArrivedObject;
use telecine_domain::id::StoreId;
use telecine_embedded::{LocalWatcher, WatchSettings};
use telecine_stores::OpenedStore;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::process;

/// Stores are looked through at most this often.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(500);
/// And at least this often.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);
/// Stores without events are listed this often.
const LIST_EVERY: Duration = Duration::from_secs(30);
const WAITING_ARRIVALS: usize = 256;

/// A store being watched.
struct Watched {
    /// Under which everything in it was last looked at.
    mark: WatchMark,
    how: How,
}

/// How a watched store is watched.
enum How {
    Folder(LocalWatcher),
    /// `next` is absent while it is being listed.
    Listed {
        next: Option<Instant>,
    },
}

/// Runs until `shutdown`.
///
/// # Errors
/// When a listing dies of a defect; what merely fails is tried again.
pub(super) async fn run(backend: Backend, shutdown: CancellationToken) -> Result<(), String> {
    let (sender, mut arrivals) = mpsc::channel(WAITING_ARRIVALS);
    let mut revision = backend.table.revision();
    let mut watched: BTreeMap<StoreId, Watched> = BTreeMap::new();
    let mut listings = JoinSet::new();
    let mut look_at = Instant::now();
    let mut written = true;
    loop {
        if look_at <= Instant::now() {
            look(&backend, &mut watched, &sender).await;
            list(&backend, &mut watched, &mut listings);
            look_at = Instant::now() + LOOK_AT_LEAST_EVERY;
            written = false;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(object) = arrivals.recv() => arrived(&backend, &watched, object).await,
            Some(ended) = listings.join_next() => {
                let (store, mark) = ended.map_err(|problem| format!("the listing of a store: {problem}"))?;
                look_at = look_at.min(listed(&mut watched, store, &mark));
            }
            () = sleep_until(look_at) => {}
            // A table that is gone changes no more; the timer still runs.
            Ok(()) = revision.changed(), if !written => {
                written = true;
                look_at = look_at.min(Instant::now() + LOOK_AT_MOST_EVERY);
            }
        }
    }
    drop(arrivals);
    // What a listing was about to record, the next one finds again.
    listings.shutdown().await;
    for (_, Watched { how, .. }) in watched {
        if let How::Folder(watcher) = how {
            watcher.stop().await;
        }
    }
    Ok(())
}

/// Begins to watch what is watched now, looks again at everything where a rule or the store has changed, and ends
/// watching what is not watched any more.
async fn look(
    backend: &Backend,
    watched: &mut BTreeMap<StoreId, Watched>,
    sender: &mpsc::Sender<ArrivedObject>,
) {
    let wanted = match ingest::watched_stores(backend).await {
        Ok(wanted) => wanted,
        Err(problem) => return warn!(%problem, "the watched stores could not be read; they are read again"),
    };
    let gone: Vec<StoreId> =
        watched.keys().filter(|id| !wanted.iter().any(|it| it.store.id == **id)).copied().collect();
    for store in gone {
        if let Some(Watched { how: How::Folder(watcher), .. }) = watched.remove(&store) {
            watcher.stop().await;
        }
    }
    for WatchedStore { store, mark } in wanted {
        if let Some(there) = watched.get_mut(&store.id) {
            there.look_again(mark);
            continue;
        }
        match stores::open(backend, &store, process::now()).await {
            Ok(OpenedStore::Folder(folder)) => {
                let watcher = LocalWatcher::start(store.id, folder, WatchSettings::default(), sender.clone());
                watched.insert(store.id, Watched { mark, how: How::Folder(watcher) });
            }
            Ok(OpenedStore::Objects(_)) => {
                let how = How::Listed { next: Some(Instant::now()) };
                watched.insert(store.id, Watched { mark, how });
            }
            Err(problem) => {
                warn!(store = store.name, %problem, "a watched store cannot be opened; it is tried again")
            }
        }
    }
}

impl Watched {
    /// A rule that is new, or was changed or switched on, is for what is there already, too.
    fn look_again(&mut self, mark: WatchMark) {
        if self.mark == mark {
            return;
        }
        self.mark = mark;
        match &mut self.how {
            How::Folder(watcher) => watcher.tell_everything_again(),
            How::Listed { next: Some(next) } => *next = Instant::now(),
            // Its end finds that the mark is another one.
            How::Listed { next: None } => {}
        }
    }
}

type Listings = JoinSet<(StoreId, WatchMark)>;

/// Starts to list the stores without events whose time has come; other stores and arrivals do not wait for it.
fn list(backend: &Backend, watched: &mut BTreeMap<StoreId, Watched>, listings: &mut Listings) {
    for (&store, watching) in watched {
        let How::Listed { next } = &mut watching.how else { continue };
        if next.is_none_or(|next| next > Instant::now()) {
            continue;
        }
        *next = None;
        let (backend, mark) = (backend.clone(), watching.mark.clone());
        listings.spawn(async move {
            match ingest::reconcile(&backend, store, process::now()).await {
                Ok(found) => debug!(%store, seen = found.seen, accepted = found.accepted, "store listed"),
                Err(problem) => {
                    warn!(%store, %problem, "a watched store could not be listed; it is tried again")
                }
            }
            (store, mark)
        });
    }
}

/// When a store that was listed under `mark` is to be listed next: at once when its rules have changed meanwhile.
fn listed(watched: &mut BTreeMap<StoreId, Watched>, store: StoreId, mark: &WatchMark) -> Instant {
    let now = Instant::now();
    let next = match watched.get_mut(&store) {
        Some(watching) if watching.mark != *mark => now,
        Some(_) | None => now + LIST_EVERY,
    };
    if let Some(Watched { how: How::Listed { next: at }, .. }) = watched.get_mut(&store) {
        *at = Some(next);
    }
    next
}

async fn arrived(backend: &Backend, watched: &BTreeMap<StoreId, Watched>, object: ArrivedObject) {
    let location = object.location.clone();
    if let Err(problem) = ingest::arrived(backend, object, process::now()).await {
        warn!(%location, %problem, "an arrival could not be recorded; it is told again");
        if let Some(Watched { how: How::Folder(watcher), .. }) = watched.get(&location.store) {
            watcher.tell_again(&location.key);
        }
    }
}
