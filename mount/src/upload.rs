//! Uploading spilled outputs as multipart uploads that are left open: nothing is visible until somebody completes them.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{Error, PutPayload};
use rand::RngExt;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use crate::backing::object_path;
use crate::counters::CounterCells;
use crate::journal::{Entry, Journal};
use crate::seal::SealedBytes;
use crate::volume::Volume;

/// Most parts that one upload may have.
const MOST_PARTS: u64 = 10_000;
/// How long one part may take before it is sent again.
const PART_TIMEOUT: Duration = Duration::from_secs(120);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The key cannot be carried to the store.
    #[error("the key cannot be used: {0}")]
    Key(#[from] object_store::path::Error),
    /// The spill file could not be read.
    #[error("reading the spilled bytes: {0}")]
    Read(io::Error),
    /// The journal could not be written; without it the upload might never be taken away.
    #[error("writing the mount's journal: {0}")]
    Journal(io::Error),
    /// The store refused, or failed until the budget was used up.
    #[error("the store failed {attempts} times in {seconds} s, at last: {reason}")]
    Store {
        /// How often it was asked.
        attempts: u32,
        /// For how long.
        seconds: u64,
        /// Its last answer.
        reason: String,
    },
}

/// Uploads files within shared bounds.
#[derive(Clone)]
pub(crate) struct Uploader {
    counters: Arc<CounterCells>,
    journal: Arc<Journal>,
    parts: Arc<Semaphore>,
    part_bytes: u64,
    budget: Duration,
}

impl Uploader {
    pub(crate) fn new(volume: &Volume) -> Self {
        Self {
            counters: volume.counters.clone(),
            journal: volume.journal.clone(),
            parts: Arc::new(Semaphore::new(volume.tuning.parallel_parts.max(1))),
            part_bytes: volume.tuning.part_bytes.max(5 << 20),
            budget: volume.tuning.retry_budget,
        }
    }

    /// Uploads `content` without completing: where it is now, its size and its SHA-256.
    pub(crate) async fn upload(
        &self,
        store: &dyn MultipartStore,
        prefix: &str,
        output: &str,
        key: &str,
        content: Arc<File>,
    ) -> Result<(SealedBytes, u64, String), UploadError> {
        let path = object_path(prefix, key)?;
        let upload_id = self.patiently(|| store.create_multipart(&path)).await?;
        let entry =
            Entry::Upload { output: output.to_owned(), key: key.to_owned(), upload_id: upload_id.clone() };
        let journal = self.journal.clone();
        let written = spawn_blocking(move || journal.append(&entry)).await.map_err(io::Error::other);
        written.and_then(|result| result).map_err(UploadError::Journal)?;
        match self.send_parts(store, &path, &upload_id, content).await {
            Ok((parts, size, sha256)) => Ok((SealedBytes::Upload { upload_id, parts }, size, sha256)),
            Err(error) => {
                // The journal knows the upload, so a failure to abort it now loses nothing.
                if let Err(left) = store.abort_multipart(&path, &upload_id).await {
                    tracing::warn!(%key, error = %left, "a failed upload could not be aborted yet");
                }
                Err(error)
            }
        }
    }

    async fn send_parts(
        &self,
        store: &dyn MultipartStore,
        path: &Path,
        upload_id: &String,
        content: Arc<File>,
    ) -> Result<(Vec<String>, u64, String), UploadError> {
        let size = content.metadata().map_err(UploadError::Read)?.len();
        let part_bytes = part_bytes(size, self.part_bytes);
        // An empty object is one empty part.
        let count = size.div_ceil(part_bytes).max(1) as usize;
        let mut parts = vec![String::new(); count];
        let mut hasher = Sha256::new();
        let mut sending = FuturesUnordered::new();
        for index in 0..count {
            let permit = loop {
                tokio::select! {
                    biased;
                    Some(sent) = sending.next(), if !sending.is_empty() => note(&mut parts, sent)?,
                    permit = self.parts.clone().acquire_owned() => break permit,
                }
            };
            let permit = permit.map_err(|_| UploadError::Read(io::Error::other("the mount is closing")))?;
            let start = index as u64 * part_bytes;
            let length = part_bytes.min(size - start) as usize;
            let (bytes, digest) = read_part(content.clone(), start, length, hasher).await?;
            hasher = digest;
            sending.push(self.send_part(store, path, upload_id, index, bytes, permit));
        }
        while let Some(sent) = sending.next().await {
            note(&mut parts, sent)?;
        }
        Ok((parts, size, hex::encode(hasher.finalize())))
    }

    async fn send_part(
        &self,
        store: &dyn MultipartStore,
        path: &Path,
        upload_id: &String,
        index: usize,
        bytes: Bytes,
        _permit: OwnedSemaphorePermit,
    ) -> Result<(usize, String), UploadError> {
        let part = self
            .patiently(|| {
                self.counters.store_written(bytes.len());
                store.put_part(path, upload_id, index, PutPayload::from(bytes.clone()))
            })
            .await?;
        Ok((index, part.content_id))
    }

    /// Repeats a request while what it fails with may pass and the budget lasts.
    async fn patiently<T, F>(&self, request: impl Fn() -> F) -> Result<T, UploadError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            self.counters.store_request();
            let (reason, may_pass) = match timeout(PART_TIMEOUT, request()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => (error.to_string(), may_pass(&error)),
                Err(_) => (format!("no answer in {PART_TIMEOUT:?}"), true),
            };
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.5));
            let seconds = started.elapsed().as_secs();
            if !may_pass || started.elapsed() + wait > self.budget {
                return Err(UploadError::Store { attempts, seconds, reason });
            }
            tracing::debug!(attempts, %reason, "asking the store again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn note(parts: &mut [String], sent: Result<(usize, String), UploadError>) -> Result<(), UploadError> {
    let (index, id) = sent?;
    parts[index] = id;
    Ok(())
}

async fn read_part(
    content: Arc<File>,
    start: u64,
    length: usize,
    mut hasher: Sha256,
) -> Result<(Bytes, Sha256), UploadError> {
    let read = spawn_blocking(move || {
        let mut bytes = vec![0; length];
        content.read_exact_at(&mut bytes, start)?;
        hasher.update(&bytes);
        Ok((Bytes::from(bytes), hasher))
    });
    read.await.map_err(io::Error::other).and_then(|result| result).map_err(UploadError::Read)
}

/// Whether an error of a store may pass by itself.
pub(crate) fn may_pass(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotFound { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotSupported { .. }
            | Error::InvalidPath { .. }
            | Error::Precondition { .. }
    )
}

/// The part ids as the client library wants them.
pub(crate) fn part_ids(parts: &[String]) -> Vec<PartId> {
    parts.iter().map(|id| PartId { content_id: id.clone() }).collect()
}

/// Size of the parts of an object of `size` bytes: `smallest`, or whole MiB more so that 10,000 parts suffice.
fn part_bytes(size: u64, smallest: u64) -> u64 {
    size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20).max(smallest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_ten_thousand_suffice() {
        let mib = 1 << 20;
        assert_eq!(part_bytes(0, 8 * mib), 8 * mib);
        assert_eq!(part_bytes(80_000 * mib, 8 * mib), 8 * mib);
        assert_eq!(part_bytes(80_001 * mib, 8 * mib), 9 * mib);
        let largest: u64 = 5 << 40;
        assert!(largest.div_ceil(part_bytes(largest, 8 * mib)) <= MOST_PARTS);
    }
}
