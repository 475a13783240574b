//! Publishing what is sealed, and taking it away: from any process, any number of times, with nothing but the sealed file.
//!
//! `complete` first looks whether the bytes still wait; if not, whether the key already shows them. Only when neither is so
//! does it fail. `abort` of something that is gone is success.

use std::io;
use std::path::Path;
use std::sync::Arc;

use cap_std::fs::Dir;
use futures::StreamExt;
use md5::Md5;
use object_store::path::Path as ObjectPath;
use object_store::{Error, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use crate::backing::{Backing, folder_etag, object_path, same_etag};
use crate::journal::{self, Entry};
use crate::plan::key_problem;
use crate::seal::{SealedBytes, SealedFile};
use crate::upload::part_ids;

/// What every hidden file's name begins with.
const HIDDEN_PREFIX: &str = ".telecine-upload-";

/// A published object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Its etag now, where the store told.
    pub etag: Option<String>,
}

/// Why a sealed file could not be published.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The sealed file and the store are of different kinds, or a name in it is none that sealing makes.
    #[error("{key:?} cannot be published: {reason}")]
    NotOurs {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The sealed bytes are gone and the key shows something else.
    #[error("the sealed bytes of {key:?} are gone, and under that key there is {found}")]
    Gone {
        /// The key.
        key: String,
        /// What is there.
        found: String,
    },
    /// The hidden file is not the one that was sealed.
    #[error(
        "the hidden file for {key:?} has changed since it was sealed: its etag was {sealed}, now it is {found}"
    )]
    Changed {
        /// The key.
        key: String,
        /// The sealed etag.
        sealed: String,
        /// The etag now.
        found: String,
    },
    /// The folder store refuses.
    #[error("{action} {key:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The key.
        key: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The object store refuses.
    #[error("completing the upload of {key:?}: {source}")]
    Store {
        /// The key.
        key: String,
        /// Why it failed.
        source: Error,
    },
}

/// Why sealed bytes could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum AbortError {
    /// The file or upload is none that sealing makes.
    #[error("{key:?} cannot be aborted: {reason}")]
    NotOurs {
        /// The key or hidden name.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The folder store refuses.
    #[error("removing the hidden file {key:?}: {source}")]
    Io {
        /// The hidden name.
        key: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The object store refuses.
    #[error("aborting the upload of {key:?}: {source}")]
    Store {
        /// The key.
        key: String,
        /// Why it failed.
        source: Error,
    },
    /// The journal cannot be read or removed.
    #[error("the journal {path}: {source}")]
    Journal {
        /// Its path.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Nobody knows the store of an output that the journal names.
    #[error("the journal names the output {0:?}, for which there is no store")]
    UnknownOutput(String),
}

/// Makes a sealed file appear under its key, whole and at once. Repeating it, here or elsewhere, is success.
///
/// # Errors
/// When the bytes are gone, are not those that were sealed, or the store refuses; nothing has appeared then.
pub async fn complete(backing: &Backing, file: &SealedFile) -> Result<Completed, CompleteError> {
    if let Some(reason) = key_problem(backing, &file.key) {
        return Err(CompleteError::NotOurs { key: file.key.clone(), reason });
    }
    match (backing, &file.sealed) {
        (Backing::Folder { dir }, SealedBytes::HiddenFile { hidden_key }) => {
            if !is_hidden_file_name(hidden_key) {
                let reason = format!("{hidden_key:?} is not the name of a hidden file");
                return Err(CompleteError::NotOurs { key: file.key.clone(), reason });
            }
            let (dir, file, hidden_key) = (dir.clone(), file.clone(), hidden_key.clone());
            let key = file.key.clone();
            let done = spawn_blocking(move || complete_hidden(&dir, &hidden_key, &file)).await;
            done.map_err(|error| CompleteError::Io {
                action: "publishing",
                key,
                source: io::Error::other(error),
            })?
        }
        (Backing::Objects { .. }, SealedBytes::Upload { upload_id, parts }) => {
            complete_upload(backing, file, upload_id, parts).await
        }
        _ => Err(CompleteError::NotOurs {
            key: file.key.clone(),
            reason: "it was sealed for another kind of store".to_owned(),
        }),
    }
}

/// Takes a sealed file's bytes away. Success when they are gone already (published ones are not touched).
///
/// # Errors
/// When the store refuses.
pub async fn abort(backing: &Backing, file: &SealedFile) -> Result<(), AbortError> {
    match &file.sealed {
        SealedBytes::HiddenFile { hidden_key } => remove_hidden(backing, hidden_key).await,
        SealedBytes::Upload { upload_id, .. } => abort_upload(backing, &file.key, upload_id).await,
    }
}

/// Takes away everything that the journal at `path` names, then the journal itself. `backing_of` gives the store of an
/// output by its name. For attempts that were never granted, and for granted ones once everything is published (it then
/// only sweeps up what a failed deletion left): what has been published is not touched. Success when there is no journal.
///
/// # Errors
/// The first failure, after everything else has been tried; the journal stays for the next call.
pub async fn abort_journal(
    path: &Path,
    backing_of: impl Fn(&str) -> Option<Backing>,
) -> Result<(), AbortError> {
    let wrong = |source| AbortError::Journal { path: path.display().to_string(), source };
    let mut result = Ok(());
    for entry in journal::read(path).map_err(wrong)? {
        result = result.and(abort_entry(&entry, &backing_of).await);
    }
    result?;
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(wrong(source)),
        _ => Ok(()),
    }
}

async fn abort_entry(entry: &Entry, backing_of: &impl Fn(&str) -> Option<Backing>) -> Result<(), AbortError> {
    let (Entry::HiddenFile { output, .. } | Entry::Upload { output, .. }) = entry;
    let backing = backing_of(output).ok_or_else(|| AbortError::UnknownOutput(output.clone()))?;
    match entry {
        Entry::HiddenFile { hidden_key, .. } => remove_hidden(&backing, hidden_key).await,
        Entry::Upload { key, upload_id, .. } => abort_upload(&backing, key, upload_id).await,
    }
}

fn complete_hidden(dir: &Arc<Dir>, hidden_key: &str, file: &SealedFile) -> Result<Completed, CompleteError> {
    let io = |action| move |source| CompleteError::Io { action, key: file.key.clone(), source };
    let sealed = file.etag.clone().unwrap_or_default();
    match dir.symlink_metadata(hidden_key) {
        Ok(meta) if folder_etag(&meta) == sealed => {
            let parent = file.key.rsplit_once('/').map_or("", |(parent, _)| parent);
            if !parent.is_empty() {
                dir.create_dir_all(parent).map_err(io("creating the folder of"))?;
            }
            dir.rename(hidden_key, dir, &file.key).map_err(io("renaming onto"))?;
        }
        Ok(meta) => {
            let (key, found) = (file.key.clone(), folder_etag(&meta));
            return Err(CompleteError::Changed { key, sealed, found });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => check_published(dir, file, &sealed)?,
        Err(error) => return Err(io("looking for the hidden file of")(error)),
    }
    sync_folders(dir, &file.key).map_err(io("making durable"))?;
    Ok(Completed { etag: Some(sealed) })
}

/// A rename keeps inode, time and size: the etag tells whether it has happened already.
fn check_published(dir: &Dir, file: &SealedFile, sealed: &str) -> Result<(), CompleteError> {
    let gone = |found: String| CompleteError::Gone { key: file.key.clone(), found };
    match dir.symlink_metadata(&file.key) {
        Ok(meta) if folder_etag(&meta) == sealed => Ok(()),
        Ok(meta) => Err(gone(format!("another file, with the etag {}", folder_etag(&meta)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(gone("nothing".to_owned())),
        Err(source) => Err(CompleteError::Io { action: "looking at", key: file.key.clone(), source }),
    }
}

/// Makes the names on the way to `key` durable, the root's last.
fn sync_folders(dir: &Dir, key: &str) -> io::Result<()> {
    let mut rest = key;
    while let Some((parent, _)) = rest.rsplit_once('/') {
        dir.open(parent)?.sync_all()?;
        rest = parent;
    }
    dir.open(".")?.sync_all()
}

async fn complete_upload(
    backing: &Backing,
    file: &SealedFile,
    upload_id: &String,
    parts: &[String],
) -> Result<Completed, CompleteError> {
    let Backing::Objects { store, multipart, prefix } = backing else {
        let reason = "it was sealed for another kind of store".to_owned();
        return Err(CompleteError::NotOurs { key: file.key.clone(), reason });
    };
    let refused = |source| CompleteError::Store { key: file.key.clone(), source };
    let path = object_path(prefix, &file.key).map_err(|source| refused(source.into()))?;
    let error = match multipart.complete_multipart(&path, upload_id, part_ids(parts)).await {
        Ok(done) => return Ok(Completed { etag: done.e_tag }),
        Err(error) => error,
    };
    // Whatever the error says, it may have been completed: by a lost answer, or by somebody else before.
    let is_gone = matches!(error, Error::NotFound { .. });
    let gone = |found: String| Err(CompleteError::Gone { key: file.key.clone(), found });
    match store.head(&path).await {
        Ok(meta) => match shows(&**store, &path, &meta, file, parts).await {
            Ok(true) => Ok(Completed { etag: meta.e_tag }),
            Ok(false) if is_gone => {
                gone(format!("another object, of {} bytes with the etag {:?}", meta.size, meta.e_tag))
            }
            Ok(false) => Err(refused(error)),
            Err(error) => Err(refused(error)),
        },
        Err(Error::NotFound { .. }) if is_gone => gone("nothing".to_owned()),
        Err(_) => Err(refused(error)),
    }
}

/// Whether the object at `path` is the sealed one: by its etag where that can be computed, else by reading it.
async fn shows(
    store: &dyn ObjectStore,
    path: &ObjectPath,
    meta: &ObjectMeta,
    file: &SealedFile,
    parts: &[String],
) -> Result<bool, Error> {
    if meta.size != file.size {
        return Ok(false);
    }
    if meta
        .e_tag
        .as_deref()
        .zip(etag_of_parts(parts))
        .is_some_and(|(found, sealed)| same_etag(found, &sealed))
    {
        return Ok(true);
    }
    let options = GetOptions { if_match: meta.e_tag.clone(), ..GetOptions::default() };
    let mut content = store.get_opts(path, options).await?.into_stream();
    let mut hasher = Sha256::new();
    while let Some(chunk) = content.next().await {
        hasher.update(&chunk?);
    }
    Ok(hex::encode(hasher.finalize()) == file.sha256)
}

/// The etag that S3 gives to an object made of these parts, if their own etags are MD5 sums: the sum of the sums, and
/// how many there are. Not so with some kinds of encryption.
fn etag_of_parts(parts: &[String]) -> Option<String> {
    let mut sums = Md5::new();
    for part in parts {
        let sum = hex::decode(part.trim_matches('"')).ok().filter(|sum| sum.len() == 16)?;
        sums.update(&sum);
    }
    Some(format!("{}-{}", hex::encode(sums.finalize()), parts.len()))
}

async fn remove_hidden(backing: &Backing, hidden_key: &str) -> Result<(), AbortError> {
    let not_ours =
        |reason: &str| AbortError::NotOurs { key: hidden_key.to_owned(), reason: reason.to_owned() };
    let Backing::Folder { dir } = backing else { return Err(not_ours("the store is no folder")) };
    if !is_hidden_file_name(hidden_key) {
        return Err(not_ours("that is not the name of a hidden file"));
    }
    let (dir, name) = (dir.clone(), hidden_key.to_owned());
    let removed = spawn_blocking(move || dir.remove_file(name)).await.map_err(io::Error::other);
    match removed.and_then(|result| result) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AbortError::Io { key: hidden_key.to_owned(), source })
        }
        _ => Ok(()),
    }
}

async fn abort_upload(backing: &Backing, key: &str, upload_id: &String) -> Result<(), AbortError> {
    let Backing::Objects { multipart, prefix, .. } = backing else {
        let reason = "the store is a folder".to_owned();
        return Err(AbortError::NotOurs { key: key.to_owned(), reason });
    };
    let refused = |source| AbortError::Store { key: key.to_owned(), source };
    let path = object_path(prefix, key).map_err(|source| refused(source.into()))?;
    match multipart.abort_multipart(&path, upload_id).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(source) => Err(refused(source)),
    }
}

/// Manifests and journals come from disk: only names of our own making are ever renamed or removed.
fn is_hidden_file_name(name: &str) -> bool {
    name.len() > HIDDEN_PREFIX.len() && name.starts_with(HIDDEN_PREFIX) && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_touched() {
        assert!(is_hidden_file_name(".telecine-upload-job_1-1-0"));
        for name in ["", ".telecine-upload-", "a.mov", ".telecine-upload-/../x", "x/.telecine-upload-a"] {
            assert!(!is_hidden_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn the_etag_of_a_multipart_object_comes_from_its_parts() {
        // Two parts "a" and "b": md5(md5("a") md5("b")).
        let parts = [
            "\"0cc175b9c0f1b6a831c399e269772661\"".to_owned(),
            "92eb5ffee6ae2fec3ad71c777531578f".to_owned(),
        ];
        let mut sums = Md5::new();
        sums.update(Md5::digest(b"a"));
        sums.update(Md5::digest(b"b"));
        assert_eq!(etag_of_parts(&parts), Some(format!("{}-2", hex::encode(sums.finalize()))));
        assert_eq!(etag_of_parts(&["opaque".to_owned()]), None);
    }
}
