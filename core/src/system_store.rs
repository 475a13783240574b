//! The system store: bytes of the platform's own that are too large for rows (log chunks, long documents, manifests),
//! found by their digest.
//!
//! Invariant: what is read has the digest it was asked by. Writing the same bytes twice is one object, so every write
//! can be repeated. The row that refers to an object is written after it: an object nobody refers to is garbage, a
//! reference to nothing does not happen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::layout::sha256;

/// Bodies above this many bytes go to the system store instead of a row.
pub const MAX_BODY_IN_ROW: usize = 64 * 1024;

/// Names bytes in the system store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// How many bytes.
    pub size_bytes: u64,
}

/// The system store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SystemStoreError {
    /// Nothing lies under the digest.
    #[error("the system store has lost the object {0}; restore it from a backup")]
    Missing(String),
    /// What lies under the digest is something else.
    #[error("the object {0} of the system store is damaged; restore it from a backup")]
    Damaged(String),
    /// It did not answer.
    #[error("the system store is not available: {0}")]
    Unavailable(String),
}

impl SystemStoreError {
    /// Whether doing the same again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Bytes by digest.
#[derive(Clone)]
pub struct SystemStore(Place);

#[derive(Clone)]
enum Place {
    Memory(Arc<Mutex<BTreeMap<String, Bytes>>>),
}

impl SystemStore {
    /// In memory, for tests and simulations.
    pub fn memory() -> Self {
        Self(Place::Memory(Arc::default()))
    }

    /// Keeps `bytes`; they are durable when this returns.
    ///
    /// # Errors
    /// `Unavailable`; some or all of it may have been written, which harms nobody.
    pub async fn put(&self, bytes: Bytes) -> Result<Reference, SystemStoreError> {
        let reference = Reference { sha256: sha256(&bytes), size_bytes: bytes.len() as u64 };
        match &self.0 {
            Place::Memory(objects) => {
                let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
                objects.insert(reference.sha256.clone(), bytes);
            }
        }
        Ok(reference)
    }

    /// The bytes under `reference`.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Unavailable`.
    pub async fn read(&self, reference: &Reference) -> Result<Bytes, SystemStoreError> {
        let bytes = match &self.0 {
            Place::Memory(objects) => {
                objects.lock().unwrap_or_else(PoisonError::into_inner).get(&reference.sha256).cloned()
            }
        };
        let bytes = bytes.ok_or_else(|| SystemStoreError::Missing(reference.sha256.clone()))?;
        if sha256(&bytes) == reference.sha256 {
            Ok(bytes)
        } else {
            Err(SystemStoreError::Damaged(reference.sha256.clone()))
        }
    }
}
