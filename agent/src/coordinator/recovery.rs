//! What a former coordinator left: attempts with living workers go on, dead ones are cleaned up, and what belongs to no
//! attempt is taken away. Nothing here holds up the start: finding is quick, the rest goes on beside the work.

use std::collections::BTreeSet;
use std::sync::Arc;

use telecine_proto::tasks::Tasks;

use super::assign::describe;
use super::desk::Desk;
use super::supervisor::{self, Origin};
use crate::folder::{Assignment, AttemptFolder};
use crate::mounts;

/// Finds the attempts of a former coordinator, each by its folder.
pub(super) fn find_attempts(desk: &Arc<Desk>, tasks: &Tasks) {
    for folder in folders(desk) {
        match folder.assignment() {
            Ok(Some(assignment)) => take_over(desk, tasks, folder, assignment),
            // It was never accepted: nobody waits for it.
            Ok(None) => discard(&folder, "it was never finished"),
            Err(error) => discard(&folder, &describe(&error)),
        }
    }
}

fn folders(desk: &Desk) -> Vec<AttemptFolder> {
    let attempts = desk.config.attempts_folder();
    let entries =
        std::fs::read_dir(&attempts).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    let entries = entries.unwrap_or_else(|error| {
        tracing::error!(path = %attempts.display(), %error, "the attempts cannot be listed");
        Vec::new()
    });
    entries.into_iter().map(|entry| AttemptFolder::at(entry.path())).collect()
}

fn take_over(desk: &Arc<Desk>, tasks: &Tasks, folder: AttemptFolder, assignment: Assignment) {
    let origin = match folder.try_lock() {
        Ok(None) => Origin::Alive,
        Ok(Some(_)) | Err(_) => Origin::Dead,
    };
    let alive = matches!(origin, Origin::Alive);
    tracing::info!(attempt = %assignment.attempt, alive, "an attempt of a former agent is found");
    let orders = desk.restore(&assignment);
    tasks.spawn(supervisor::supervise(desk.clone(), folder, assignment, origin, orders));
}

fn discard(folder: &AttemptFolder, why: &str) {
    tracing::warn!(folder = %folder.path().display(), why, "an attempt's folder is removed");
    if let Err(error) = mounts::unmount_all(&folder.engine_folder()) {
        tracing::error!(%error, "it is still mounted");
        return;
    }
    if let Err(error) = folder.remove() {
        tracing::error!(error = %describe(&error), "it stays behind");
    }
}

/// Removes containers and processes of this instance that belong to no attempt here.
pub(super) async fn remove_strays(desk: Arc<Desk>) {
    for runtime in desk.runtimes.values() {
        let found = match runtime.ours(&desk.instance).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "containers of a former agent cannot be listed");
                continue;
            }
        };
        // Looked at after the listing: what was assigned meanwhile is known by now.
        let known: BTreeSet<String> =
            desk.running().iter().map(|(id, _)| AttemptFolder::name_of(id)).collect();
        for name in found.into_iter().filter(|name| !known.contains(name)) {
            tracing::warn!(container = %name, "a container of a former agent is removed");
            if let Err(error) = runtime.remove(&name).await {
                tracing::error!(container = %name, %error, "it stays behind");
            }
        }
    }
}
