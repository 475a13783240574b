//! The mount of an attempt: its plan from the job, and the seam behind which the kernel is.
//!
//! The seam is here so that a whole system can run in one process without a kernel's mount; behind it the same stores,
//! hidden files and uploads are used.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use async_trait::async_trait;
use telecine_domain::attempt::Counters;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::StoreId;
use telecine_domain::manifest::{Manifest, Sealed, SealedObject};
use telecine_mount::{
    Backing, InputFile, MountFailure, MountPath, MountPlan, MountSession, OutputFolder, OutputTarget,
    SealError, SealedBytes, SealedFile, SealedOutputs, Tuning,
};

use super::stores::Backings;
use crate::failure;
use crate::folder::{Assignment, AttemptFolder};

/// Serves mounts.
pub trait Mounts: Send + Sync {
    /// Serves `plan` on `device`.
    ///
    /// # Errors
    /// In words, when the plan cannot be mounted or the device does not work.
    fn serve(&self, plan: MountPlan, device: Option<OwnedFd>) -> Result<Arc<dyn Mounted>, String>;
}

/// A served mount.
#[async_trait]
pub trait Mounted: Send + Sync {
    /// What went through it.
    fn counters(&self) -> telecine_mount::Counters;
    /// What could not be done for the engine.
    fn failures(&self) -> Vec<MountFailure>;
    /// Makes the outputs whole in their stores, still unseen. The engine must have ended.
    async fn seal(&self) -> Result<SealedOutputs, SealError>;
    /// Ends it.
    fn close(&self);
}

/// The kernel's FUSE.
#[derive(Clone, Copy, Debug, Default)]
pub struct FuseMounts;

impl Mounts for FuseMounts {
    fn serve(&self, plan: MountPlan, device: Option<OwnedFd>) -> Result<Arc<dyn Mounted>, String> {
        let device = device.ok_or("the coordinator handed over no device")?;
        let session = MountSession::serve(plan, device, tokio::runtime::Handle::current());
        let session = session.map_err(|error| error.to_string())?;
        Ok(Arc::new(FuseMount(std::sync::Mutex::new(Some(Arc::new(session))))))
    }
}

struct FuseMount(std::sync::Mutex<Option<Arc<MountSession>>>);

impl FuseMount {
    fn session(&self) -> Option<Arc<MountSession>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Mounted for FuseMount {
    fn counters(&self) -> telecine_mount::Counters {
        self.session().map(|session| session.counters()).unwrap_or_default()
    }

    fn failures(&self) -> Vec<MountFailure> {
        self.session().map(|session| session.failures()).unwrap_or_default()
    }

    async fn seal(&self) -> Result<SealedOutputs, SealError> {
        match self.session() {
            Some(session) => session.seal().await,
            None => Ok(SealedOutputs::default()),
        }
    }

    fn close(&self) {
        let session = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(session) = session.and_then(Arc::into_inner) {
            session.close();
        }
    }
}

/// What is mounted for `assignment`.
pub(crate) fn plan(
    assignment: &Assignment,
    folder: &AttemptFolder,
    backings: &Backings,
) -> Result<MountPlan, Failure> {
    let spec = &assignment.spec;
    let around = &assignment.surroundings;
    let inputs = spec.inputs.iter().map(|(slot, pinned)| {
        Ok(InputFile {
            path: MountPath::input(slot.as_str(), pinned.location.key.file_name())
                .map_err(|error| invalid(&error))?,
            backing: backing_of(backings, pinned.location.store)?,
            key: pinned.location.key.to_string(),
            etag: pinned.version.etag.clone(),
            size: pinned.version.size_bytes,
        })
    });
    let outputs = spec.composition.outputs.iter().map(|(slot, location)| {
        let key = &location.key;
        let target = if key.is_folder() {
            OutputTarget::Folder { prefix: key.to_string() }
        } else {
            OutputTarget::File { key: key.to_string(), file_name: key.file_name().to_owned() }
        };
        Ok(OutputFolder {
            name: slot.to_string(),
            backing: backing_of(backings, location.store)?,
            target,
            hidden_tag: folder.name(),
        })
    });
    Ok(MountPlan {
        inputs: inputs.collect::<Result<_, Failure>>()?,
        outputs: outputs.collect::<Result<_, Failure>>()?,
        uid: around.engine_user.0,
        gid: around.engine_user.1,
        cache_bytes: around.cache_bytes,
        spill: folder.spill(),
        spill_bytes: around.spill_bytes.max(assignment.resources.scratch_bytes),
        journal: folder.journal(),
        tuning: Tuning::default(),
    })
}

fn backing_of(backings: &Backings, store: StoreId) -> Result<Backing, Failure> {
    backings.get(&store).cloned().ok_or_else(|| {
        let message = format!("the manager opened no store {store}, which the job names");
        Failure::new(FailureClass::Internal, "store_not_opened", message)
    })
}

fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        FailureClass::Input,
        "invalid_document",
        format!("the composition cannot be mounted: {error}"),
    )
}

/// What was sealed, as the manager records it, in publishing order.
pub(crate) fn manifest(assignment: &Assignment, sealed: SealedOutputs) -> Result<Manifest, Failure> {
    let objects = sealed.files.into_iter().map(|file| {
        let slot = file.output.parse().map_err(|error| invalid(&error))?;
        let outputs = &assignment.spec.composition.outputs;
        let location = outputs.get(&slot).ok_or_else(|| invalid(&format!("no output {slot}")))?;
        Ok(SealedObject {
            slot,
            store: location.store,
            key: file.key.parse().map_err(|error| invalid(&error))?,
            size_bytes: file.size,
            sha256: file.sha256,
            etag: file.etag,
            sealed: match file.sealed {
                SealedBytes::HiddenFile { hidden_key } => Sealed::HiddenFile { hidden_key },
                SealedBytes::Upload { upload_id, parts } => Sealed::Upload { upload_id, parts },
            },
        })
    });
    Ok(Manifest { objects: objects.collect::<Result<_, Failure>>()? }.in_publishing_order())
}

/// A recorded object, as the mount publishes or takes it away.
pub(crate) fn sealed_file(object: &SealedObject) -> SealedFile {
    SealedFile {
        output: object.slot.to_string(),
        key: object.key.to_string(),
        size: object.size_bytes,
        sha256: object.sha256.clone(),
        etag: object.etag.clone(),
        sealed: match object.sealed.clone() {
            Sealed::HiddenFile { hidden_key } => SealedBytes::HiddenFile { hidden_key },
            Sealed::Upload { upload_id, parts } => SealedBytes::Upload { upload_id, parts },
        },
    }
}

/// The first output that a single file was to become and that is not there.
pub(crate) fn missing(assignment: &Assignment, manifest: &Manifest, log_tail: String) -> Option<Failure> {
    let outputs = assignment.spec.composition.outputs.iter();
    let mut absent = outputs.filter(|(slot, _)| !manifest.objects.iter().any(|object| object.slot == **slot));
    let (slot, location) = absent.next()?;
    Some(failure::output_missing(slot.as_str(), location.key.as_str(), log_tail))
}

/// What the mount could not do, as a failure of the attempt; the inputs' matters first, they explain the others.
pub(crate) fn trouble(mounted: &dyn Mounted) -> Option<Failure> {
    let mut failures = mounted.failures();
    failures.sort_by_key(|failure| !failure.is_input);
    let first = failures.into_iter().next()?;
    Some(failure::of_mount(&first.path, &first.key, &first.message, first.errno, first.is_input))
}

/// The domain's counters.
pub(crate) fn counters(from: telecine_mount::Counters) -> Counters {
    Counters {
        mount_bytes_read: from.bytes_read,
        mount_bytes_written: from.bytes_written,
        mount_requests: from.requests,
        store_bytes_read: from.store_bytes_read,
        store_bytes_written: from.store_bytes_written,
        store_requests: from.store_requests,
    }
}
