//! Objects that arrive become jobs: a watcher for each local folder that a factory watches, a listing now and then for
//! every other watched store.
//!
//! Level-triggered: which stores are watched is read again whenever something was written, so that a new factory needs no
//! restart; what arrives is handed to `core::ingest`, which makes one job of it however often it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_core::ingest;
use telecine_core::stores;
use telecine_domain::factory::ArrivedObject;
use telecine_domain::id::StoreId;
use telecine_embedded::{LocalWatcher, WatchSettings};
use telecine_stores::OpenedStore;
use tokio::sync::mpsc;
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

/// How a watched store is watched.
enum Watched {
    Folder(LocalWatcher),
    Listed { next: Instant },
}

/// Runs until `shutdown`.
///
/// # Errors
/// Never; what fails is tried again.
pub(super) async fn run(backend: Backend, shutdown: CancellationToken) -> Result<(), String> {
    let (sender, mut arrivals) = mpsc::channel(WAITING_ARRIVALS);
    let mut revision = backend.table.revision();
    let mut watched: BTreeMap<StoreId, Watched> = BTreeMap::new();
    let mut look_at = Instant::now();
    let mut written = true;
    loop {
        if look_at <= Instant::now() {
            look(&backend, &mut watched, &sender).await;
            list(&backend, &mut watched).await;
            look_at = Instant::now() + LOOK_AT_LEAST_EVERY;
            written = false;
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(object) = arrivals.recv() => arrived(&backend, &watched, object).await,
            () = sleep_until(look_at) => {}
            // A table that is gone changes no more; the timer still runs.
            Ok(()) = revision.changed(), if !written => {
                written = true;
                look_at = look_at.min(Instant::now() + LOOK_AT_MOST_EVERY);
            }
        }
    }
    drop(arrivals);
    for (_, watching) in watched {
        if let Watched::Folder(watcher) = watching {
            watcher.stop().await;
        }
    }
    Ok(())
}

/// Begins to watch what is watched now, and ends watching what is not.
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
        watched.keys().filter(|id| !wanted.iter().any(|store| store.id == **id)).copied().collect();
    for store in gone {
        if let Some(Watched::Folder(watcher)) = watched.remove(&store) {
            watcher.stop().await;
        }
    }
    for store in wanted {
        if watched.contains_key(&store.id) {
            continue;
        }
        match stores::open(backend, &store, process::now()).await {
            Ok(OpenedStore::Folder(folder)) => {
                let watcher = LocalWatcher::start(store.id, folder, WatchSettings::default(), sender.clone());
                watched.insert(store.id, Watched::Folder(watcher));
            }
            Ok(OpenedStore::Objects(_)) => {
                watched.insert(store.id, Watched::Listed { next: Instant::now() });
            }
            Err(problem) => {
                warn!(store = store.name, %problem, "a watched store cannot be opened; it is tried again")
            }
        }
    }
}

/// Lists the stores without events whose time has come.
async fn list(backend: &Backend, watched: &mut BTreeMap<StoreId, Watched>) {
    for (store, watching) in watched {
        let Watched::Listed { next } = watching else { continue };
        if *next > Instant::now() {
            continue;
        }
        match ingest::reconcile(backend, *store, process::now()).await {
            Ok(found) => debug!(%store, seen = found.seen, accepted = found.accepted, "store listed"),
            Err(problem) => warn!(%store, %problem, "a watched store could not be listed; it is tried again"),
        }
        *next = Instant::now() + LIST_EVERY;
    }
}

async fn arrived(backend: &Backend, watched: &BTreeMap<StoreId, Watched>, object: ArrivedObject) {
    let location = object.location.clone();
    if let Err(problem) = ingest::arrived(backend, object, process::now()).await {
        warn!(%location, %problem, "an arrival could not be recorded; it is told again");
        if let Some(Watched::Folder(watcher)) = watched.get(&location.store) {
            watcher.tell_again(&location.key);
        }
    }
}
