//! Outputs of attempts whose workers are gone: publishing what was granted, and taking away what never will be. Both may
//! be asked for twice, and for attempts that ran elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::job::JobSpec;
use telecine_domain::manifest::{Manifest, Sealed, SealedObject};
use telecine_mount::{Backing, CompleteError};
use telecine_proto::convert;
use telecine_proto::coordinator::v1::{CloseEpoch, Done, Publish, PublishReply};

use super::aftermath::journal_of;
use super::desk::Desk;
use super::orders::Order;
use super::supervisor::CLOSE_PATIENCE;
use crate::failure::infrastructure;
use crate::folder::AttemptFolder;
use crate::worker::outputs::{Backings, open, sealed_file};

/// Code of the refusal to publish when nothing is left to do but some sealed bytes are gone; the manager judges.
const BYTES_GONE: &str = "sealed_bytes_gone";
const HIDDEN: &str = ".telecine-upload-";

/// Publishes the granted outputs of an attempt.
pub(super) async fn publish(desk: &Desk, asked: Publish) -> PublishReply {
    match try_publish(desk, asked).await {
        Ok(()) => PublishReply { published: true, failure: None },
        Err(failure) => {
            tracing::warn!(%failure, "granted outputs are not published");
            PublishReply { published: false, failure: Some(failure.into()) }
        }
    }
}

async fn try_publish(desk: &Desk, asked: Publish) -> Result<(), Failure> {
    let wrong = |error: convert::ConvertError| {
        Failure::new(FailureClass::Internal, "invalid_manifest", error.to_string())
    };
    let attempt = convert::attempt_id(asked.id).map_err(wrong)?;
    let manifest: Manifest =
        convert::required("manifest", asked.manifest).and_then(TryInto::try_into).map_err(wrong)?;
    let backings = open(asked.stores, |_| ())?;
    // One that cannot be published keeps no other from being published.
    let (mut failed, mut gone) = (None, None);
    for object in &manifest.objects {
        match complete(attempt, &backings, object).await {
            Ok(()) => {}
            Err(failure) if failure.code == BYTES_GONE => gone = gone.or(Some(failure)),
            Err(failure) => {
                tracing::warn!(%attempt, key = %object.key, %failure, "a granted output is not published");
                failed = failed.or(Some(failure));
            }
        }
    }
    if let Some(failure) = failed.or(gone) {
        return Err(failure);
    }
    tracing::info!(%attempt, objects = manifest.objects.len(), "granted outputs are published");
    // What the journal lists besides is nobody's any more: everything granted is in its place.
    let journal = journal_of(desk, &AttemptFolder::name_of(&attempt));
    let _ = std::fs::remove_file(journal);
    Ok(())
}

/// Publishes one granted output. Only the granted attempt could have put its sealed bytes in their place, and who reads
/// outputs may take them away at once: bytes that are gone were published before.
async fn complete(attempt: AttemptId, backings: &Backings, object: &SealedObject) -> Result<(), Failure> {
    let backing = backings.get(&object.store).ok_or_else(|| {
        let message = format!("the manager opened no store {}, which the manifest names", object.store);
        Failure::new(FailureClass::Internal, "store_not_opened", message)
    })?;
    let told = |error: &CompleteError| format!("output {}: {error}", object.key);
    match telecine_mount::complete(backing, &sealed_file(object)).await {
        Ok(_) => Ok(()),
        Err(error @ CompleteError::Gone { .. }) => {
            tracing::warn!(%attempt, store = %object.store, key = %object.key, %error, "taken as published before");
            match object.sealed {
                Sealed::Upload { .. } => Ok(()),
                // A folder may be another one on another machine: the manager knows whether the attempt ran here.
                Sealed::HiddenFile { .. } => Err(infrastructure(BYTES_GONE, told(&error))),
            }
        }
        Err(error) => Err(infrastructure("publish_failed", told(&error))),
    }
}

/// Takes away what an attempt has uploaded and never may publish.
pub(super) async fn close_epoch(desk: &Arc<Desk>, asked: CloseEpoch) -> Done {
    match try_close(desk, asked).await {
        Ok(()) => Done::default(),
        Err(problem) => {
            tracing::warn!(%problem, "an epoch is not closed");
            Done { problem }
        }
    }
}

async fn try_close(desk: &Desk, asked: CloseEpoch) -> Result<(), String> {
    let attempt = convert::attempt_id(asked.id).map_err(|error| error.to_string())?;
    desk.order(&attempt, Order::Fence { reason: "the epoch was closed".to_owned() });
    if desk.is_here(&attempt) {
        // Its journal is whole only when its worker is dead; often the manager asks while that is being cleaned up.
        let gone = tokio::time::timeout(CLOSE_PATIENCE, desk.until_gone(&attempt)).await;
        gone.map_err(|_| "the attempt is still being stopped here; ask again".to_owned())?;
    }
    let spec = convert::spec(&asked.spec_json).map_err(|error| error.to_string())?;
    let backings = open(asked.stores, |_| ()).map_err(|failure| failure.to_string())?;
    let slots = slots(&spec, &backings);
    let journal = journal_of(desk, &AttemptFolder::name_of(&attempt));
    if journal.exists() {
        let aborted = telecine_mount::abort_journal(&journal, |slot| slots.get(slot).cloned()).await;
        aborted.map_err(|error| error.to_string())?;
    }
    let folders: Vec<Backing> = backings.into_values().collect();
    tokio::task::spawn_blocking(move || remove_hidden(&folders, attempt))
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("hidden files of the attempt stay behind: {error}"))
}

fn slots(spec: &JobSpec, backings: &Backings) -> BTreeMap<String, Backing> {
    let outputs = spec.composition.outputs.iter();
    outputs
        .filter_map(|(slot, location)| Some((slot.to_string(), backings.get(&location.store)?.clone())))
        .collect()
}

/// Hidden files carry the attempt in their names, so they are found without its journal, also on another instance.
fn remove_hidden(folders: &[Backing], attempt: AttemptId) -> std::io::Result<()> {
    let prefix = format!("{HIDDEN}{}-", AttemptFolder::name_of(&attempt));
    for backing in folders {
        let Backing::Folder { dir } = backing else { continue };
        for entry in dir.entries()? {
            let name = entry?.file_name();
            if name.to_string_lossy().starts_with(&prefix) {
                tracing::info!(%attempt, file = %PathBuf::from(&name).display(), "a hidden file is removed");
                dir.remove_file(&name)?;
            }
        }
    }
    Ok(())
}
