//! One pinned object: fetches ranges of exactly one version, retries what may pass, and names what may not.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt};
use rand::RngExt;
use tokio::time::{Instant, timeout};

use crate::backing::same_etag;
use crate::counters::CounterCells;
use crate::readahead::Streams;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An input object and what is known of its readers.
#[derive(Debug)]
pub(crate) struct Object {
    /// Its number in the block cache.
    pub(crate) index: usize,
    pub(crate) key: String,
    pub(crate) etag: String,
    pub(crate) size: u64,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) path: Path,
    pub(crate) counters: Arc<CounterCells>,
    pub(crate) retry_budget: Duration,
    pub(crate) stall: Duration,
    pub(crate) streams: Mutex<Streams>,
}

/// Why a range of an object could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(
        "the object {key:?} has changed since the job was submitted: its etag was {pinned}, now it is {found}; submit the job again"
    )]
    Changed { key: String, pinned: String, found: String },
    #[error("the object {0:?} is gone from its store; put it back or submit the job again")]
    Gone(String),
    #[error("the store refuses to read the object {key:?}: {reason}; check the store's credentials")]
    Refused { key: String, reason: String },
    #[error("reading the object {key:?} failed {attempts} times in {seconds} s, at last: {reason}")]
    Exhausted { key: String, attempts: u32, seconds: u64, reason: String },
    #[error("the mount is closing")]
    Closing,
}

/// What one attempt came to when it did not succeed.
enum Setback {
    Final(FetchError),
    MayPass(String),
}

impl Object {
    /// The bytes of `range`, which lies inside the object and is not empty.
    pub(crate) async fn fetch(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let reason = match self.attempt(&range).await {
                Ok(bytes) => return Ok(bytes),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::MayPass(reason)) => reason,
            };
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.5));
            if started.elapsed() + wait > self.retry_budget {
                let seconds = started.elapsed().as_secs();
                return Err(FetchError::Exhausted { key: self.key.clone(), attempts, seconds, reason });
            }
            tracing::debug!(key = %self.key, attempts, %reason, "reading a range again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, range: &Range<u64>) -> Result<Bytes, Setback> {
        self.counters.store_request();
        let options = GetOptions {
            if_match: Some(self.etag.clone()),
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let answer = timeout(self.stall, self.store.get_opts(&self.path, options));
        let result = match answer.await {
            Err(_) => return Err(Setback::MayPass(format!("no answer in {:?}", self.stall))),
            Ok(Err(error)) => return Err(self.classify(error).await),
            Ok(Ok(result)) => result,
        };
        self.check_version(&result, range)?;
        self.collect(result, range).await
    }

    /// Some stores ignore conditions: what they answer is checked all the same.
    fn check_version(&self, result: &GetResult, range: &Range<u64>) -> Result<(), Setback> {
        let other_etag = result.meta.e_tag.as_deref().filter(|etag| !same_etag(etag, &self.etag));
        if let Some(found) = other_etag {
            return Err(Setback::Final(self.changed(found.to_owned())));
        }
        if result.meta.size != self.size {
            return Err(Setback::Final(self.changed(format!("one of {} bytes", result.meta.size))));
        }
        if result.range != *range {
            let reason = format!("asked for bytes {range:?}, got {:?}", result.range);
            return Err(Setback::MayPass(reason));
        }
        Ok(())
    }

    async fn collect(&self, result: GetResult, range: &Range<u64>) -> Result<Bytes, Setback> {
        let wanted = (range.end - range.start) as usize;
        let mut bytes = Vec::with_capacity(wanted);
        let mut stream = result.into_stream();
        loop {
            match timeout(self.stall, stream.next()).await {
                Err(_) => return Err(Setback::MayPass(format!("nothing came for {:?}", self.stall))),
                Ok(Some(Err(error))) => return Err(self.classify(error).await),
                Ok(None) => break,
                Ok(Some(Ok(chunk))) if bytes.len() + chunk.len() <= wanted => {
                    self.counters.store_read(chunk.len());
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(Ok(_))) => return Err(Setback::MayPass(format!("more than {wanted} bytes came"))),
            }
        }
        if bytes.len() == wanted {
            return Ok(bytes.into());
        }
        Err(Setback::MayPass(format!("the answer ended after {} of {wanted} bytes", bytes.len())))
    }

    async fn classify(&self, error: Error) -> Setback {
        let key = self.key.clone();
        match error {
            Error::Precondition { .. } | Error::NotModified { .. } => self.what_is_there_now().await,
            Error::NotFound { .. } => Setback::Final(FetchError::Gone(key)),
            Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotSupported { .. }
            | Error::InvalidPath { .. } => {
                Setback::Final(FetchError::Refused { key, reason: error.to_string() })
            }
            other => Setback::MayPass(other.to_string()),
        }
    }

    async fn what_is_there_now(&self) -> Setback {
        self.counters.store_request();
        let found = match timeout(self.stall, self.store.head(&self.path)).await {
            Ok(Ok(meta)) => meta.e_tag.unwrap_or_else(|| format!("unknown, {} bytes", meta.size)),
            _ => "unknown".to_owned(),
        };
        Setback::Final(self.changed(found))
    }

    fn changed(&self, found: String) -> FetchError {
        FetchError::Changed { key: self.key.clone(), pinned: self.etag.clone(), found }
    }
}
