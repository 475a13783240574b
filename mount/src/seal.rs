//! Sealing: every output's bytes in its store, checked and durable, under names nobody sees.

use std::io;
use std::sync::Arc;

use cap_std::fs::{Dir, MetadataExt};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use crate::backing::{Backing, etag_of_file, is_hidden_name};
use crate::failure::MountFailure;
use crate::output::{OutputFile, Place};
use crate::plan::{OutputTarget, key_problem};
use crate::upload::{UploadError, Uploader};
use crate::volume::{Output, Volume};

/// Files sealed at the same time.
const PARALLEL_FILES: usize = 8;
/// Bytes read at a time for a checksum.
const CHUNK: usize = 1 << 20;

/// One output object whose bytes are in its store and visible to nobody. All that is needed to publish it, or to take it away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedFile {
    /// Name of the output that it belongs to.
    pub output: String,
    /// Key that it will have, below the store's root or prefix.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// Etag that it will have, where that is known before publishing (folder stores).
    pub etag: Option<String>,
    /// Where its bytes are now.
    pub sealed: SealedBytes,
}

/// Where sealed bytes wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SealedBytes {
    /// A hidden file in the root of the folder store.
    HiddenFile {
        /// Its name.
        hidden_key: String,
    },
    /// A multipart upload, waiting to be completed.
    Upload {
        /// The store's id for it.
        upload_id: String,
        /// The store's content ids of parts 1, 2, …
        parts: Vec<String>,
    },
}

/// A file in an output folder that no output asks for; its bytes are gone after sealing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Name of the output folder.
    pub output: String,
    /// Its path below that folder.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What sealing came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedOutputs {
    /// The objects to publish, by output in the plan's order, then by path.
    pub files: Vec<SealedFile>,
    /// Files that were there besides the one an output asked for, for the log.
    pub left_out: Vec<LeftOut>,
}

/// Why outputs could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The engine did not write a declared file, or wrote nothing at all into a folder.
    #[error("output {output:?}: the engine wrote no {what}")]
    Missing {
        /// The output.
        output: String,
        /// What was expected.
        what: String,
    },
    /// Something failed under the mount while the engine ran, whether or not the engine noticed.
    #[error("{} ({} failures in all)", .0.first().map_or_else(String::new, ToString::to_string), .0.len())]
    Failed(Vec<MountFailure>),
    /// A file's name cannot be a key of the store.
    #[error(
        "output {output:?}: the file {path:?} cannot be stored: {reason}; have the engine use another name"
    )]
    Name {
        /// The output.
        output: String,
        /// The file's path below the output folder.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The place for a key cannot take it.
    #[error("output {output:?}: the key {key:?} cannot be written: {reason}")]
    Destination {
        /// The output.
        output: String,
        /// The key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// A file could not be read or made durable.
    #[error("output {output:?}: {action} {path:?}: {source}")]
    Io {
        /// The output.
        output: String,
        /// What was tried.
        action: &'static str,
        /// The file's path below the output folder.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The store refused the upload, or did not answer within the budget.
    #[error("output {output:?}: uploading {key:?}: {source}")]
    Upload {
        /// The output.
        output: String,
        /// The key.
        key: String,
        /// Why it failed.
        source: UploadError,
    },
}

/// A file on its way into its store.
struct Outgoing {
    output: String,
    backing: Backing,
    path: String,
    key: String,
    file: Arc<OutputFile>,
}

/// What nobody asks for, with its bytes.
type LeftOutFiles = Vec<(LeftOut, Arc<OutputFile>)>;

/// Seals all outputs of `volume`.
pub(crate) async fn seal(volume: &Arc<Volume>) -> Result<SealedOutputs, SealError> {
    let frozen = volume.clone();
    // It waits for writes under way and looks at folders: not on a thread of the runtime.
    let prepared = spawn_blocking(move || prepare(&frozen)).await;
    let (outgoing, left_out) = prepared.map_err(|error| SealError::Io {
        output: String::new(),
        action: "preparing",
        path: String::new(),
        source: io::Error::other(error),
    })??;
    let uploader = Uploader::new(volume);
    let files = futures::stream::iter(outgoing.into_iter().map(|file| seal_file(file, uploader.clone())))
        .buffered(PARALLEL_FILES)
        .try_collect()
        .await?;
    for (left, file) in &left_out {
        if let Err(error) = file.remove() {
            tracing::warn!(path = %left.path, %error, "a file that is not published could not be deleted");
        }
    }
    sync_roots(volume).await?;
    let left_out = left_out.into_iter().map(|(left, _)| left).collect();
    Ok(SealedOutputs { files, left_out })
}

/// Forbids changes and finds out what there is to seal.
fn prepare(volume: &Volume) -> Result<(Vec<Outgoing>, LeftOutFiles), SealError> {
    volume.freeze();
    volume.verify_inputs();
    let failures = volume.failures.all();
    if !failures.is_empty() {
        return Err(SealError::Failed(failures));
    }
    let mut left_out = Vec::new();
    let mut outgoing = Vec::new();
    for output in &volume.outputs {
        outgoing.extend(choose(volume, output, &mut left_out)?);
    }
    Ok((outgoing, left_out))
}

/// The files of one output that become objects; the others are listed.
fn choose(volume: &Volume, output: &Output, left_out: &mut LeftOutFiles) -> Result<Vec<Outgoing>, SealError> {
    let plan = &output.plan;
    let mut chosen = Vec::new();
    for (path, _, file) in volume.files_of(output) {
        let readable = String::from_utf8_lossy(&path).into_owned();
        let (path, key) = match (String::from_utf8(path), &plan.target) {
            (Err(_), OutputTarget::Folder { .. }) => {
                return Err(name_error(&plan.name, readable, "its name is not UTF-8".to_owned()));
            }
            (Err(_), OutputTarget::File { .. }) => (readable, None),
            (Ok(path), target) => (path.clone(), target.key_for(&path)),
        };
        let Some(key) = key else {
            let size = file.size().unwrap_or_default();
            left_out.push((LeftOut { output: plan.name.clone(), path, size }, file));
            continue;
        };
        if let Some(reason) = key_problem(&plan.backing, &key) {
            return Err(name_error(&plan.name, path, reason));
        }
        if key.split('/').any(|segment| is_hidden_name(segment.as_bytes())) {
            return Err(name_error(
                &plan.name,
                path,
                "names that begin with .telecine- are hidden".to_owned(),
            ));
        }
        chosen.push(Outgoing { output: plan.name.clone(), backing: plan.backing.clone(), path, key, file });
    }
    let what = match &plan.target {
        OutputTarget::File { file_name, .. } => format!("file {file_name:?}"),
        OutputTarget::Folder { .. } => "file into it".to_owned(),
    };
    if chosen.is_empty() { Err(SealError::Missing { output: plan.name.clone(), what }) } else { Ok(chosen) }
}

fn name_error(output: &str, path: String, reason: String) -> SealError {
    SealError::Name { output: output.to_owned(), path, reason }
}

async fn seal_file(outgoing: Outgoing, uploader: Uploader) -> Result<SealedFile, SealError> {
    let Outgoing { output, backing, path, key, file } = outgoing;
    let io = |action| {
        let (output, path) = (output.clone(), path.clone());
        move |source| SealError::Io { output, action, path, source }
    };
    match backing {
        Backing::Folder { dir } => {
            check_destination(&dir, &key).map_err(|reason| SealError::Destination {
                output: output.clone(),
                key: key.clone(),
                reason,
            })?;
            let checked = spawn_blocking(move || seal_hidden(&file)).await.map_err(io::Error::other);
            let (hidden_key, size, sha256, etag) =
                checked.and_then(|result| result).map_err(io("sealing"))?;
            let sealed = SealedBytes::HiddenFile { hidden_key };
            Ok(SealedFile { output, key, size, sha256, etag: Some(etag), sealed })
        }
        Backing::Objects { multipart, prefix, .. } => {
            let content = file.file().map_err(io("reading"))?;
            let done = uploader.upload(&*multipart, &prefix, &output, &key, content).await;
            let (upload, size, sha256) = done.map_err(|source| SealError::Upload {
                output: output.clone(),
                key: key.clone(),
                source,
            })?;
            Ok(SealedFile { output, key, size, sha256, etag: None, sealed: upload })
        }
    }
}

/// Makes a hidden file durable and takes its checksum: name, size, SHA-256, etag.
fn seal_hidden(file: &OutputFile) -> io::Result<(String, u64, String, String)> {
    let Place::Hidden { name, .. } = file.place() else {
        return Err(io::Error::other("the output is not in its store's folder"));
    };
    let content = file.file()?;
    content.sync_all()?;
    let before = etag_of_file(&content)?;
    let (size, sha256) = checksum(&content)?;
    let etag = etag_of_file(&content)?;
    if before != etag || content.metadata()?.len() != size {
        return Err(io::Error::other(
            "the file changed while it was being sealed; is the engine still writing?",
        ));
    }
    Ok((name.clone(), size, sha256, etag))
}

fn checksum(content: &std::fs::File) -> io::Result<(u64, String)> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        match content.read_at(&mut buffer, size) {
            Ok(0) => return Ok((size, hex::encode(hasher.finalize()))),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Finds out before the grant what would make the rename fail after it.
fn check_destination(root: &Dir, key: &str) -> Result<(), String> {
    let device = root.dir_metadata().map_err(|error| error.to_string())?.dev();
    let segments: Vec<&str> = key.split('/').collect();
    for depth in 1..=segments.len() {
        let place = segments[..depth].join("/");
        let is_last = depth == segments.len();
        let found = if is_last { root.symlink_metadata(&place) } else { root.metadata(&place) };
        match found {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                return Err(format!("{place:?}: {error} (does a symbolic link lead out of the store?)"));
            }
            Ok(meta) if is_last && meta.is_dir() => return Err(format!("{place:?} is a folder")),
            Ok(meta) if !is_last && !meta.is_dir() => return Err(format!("{place:?} is not a folder")),
            Ok(meta) if !is_last && meta.dev() != device => {
                return Err(format!(
                    "{place:?} is on another file system than the store's root, so outputs cannot appear there at once; make it a store of its own"
                ));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Makes the hidden names themselves durable.
async fn sync_roots(volume: &Volume) -> Result<(), SealError> {
    for output in &volume.outputs {
        let Backing::Folder { dir } = &output.plan.backing else { continue };
        let dir = dir.clone();
        let synced = spawn_blocking(move || dir.open(".")?.sync_all()).await.map_err(io::Error::other);
        synced.and_then(|result| result).map_err(|source| SealError::Io {
            output: output.plan.name.clone(),
            action: "making durable",
            path: "the store's root".to_owned(),
            source,
        })?;
    }
    Ok(())
}
