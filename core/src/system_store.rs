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
use telecine_domain::location::ObjectKey;
use telecine_stores::{OpenedStore, StoreError, StoreErrorClass};

use crate::layout::sha256;

/// Bodies above this many bytes go to the system store instead of a row.
pub const MAX_BODY_IN_ROW: usize = 64 * 1024;

/// Most bytes of one object.
pub const MAX_OBJECT_BYTES: usize = 64 * 1024 * 1024;

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
    /// It is larger than any object may be.
    #[error("an object of {0} bytes is too large for the system store (at most {MAX_OBJECT_BYTES})")]
    TooLarge(usize),
    /// The store below did not do it.
    #[error("the system store: {0}")]
    Store(#[from] StoreError),
}

impl SystemStoreError {
    /// Whether doing the same again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_transient())
    }
}

/// Bytes by digest. Cloning is cheap.
#[derive(Clone)]
pub struct SystemStore(Place);

#[derive(Clone)]
enum Place {
    Memory(Arc<Mutex<BTreeMap<String, Bytes>>>),
    Opened(Arc<OpenedStore>),
}

impl SystemStore {
    /// In memory, for tests and simulations.
    pub fn memory() -> Self {
        Self(Place::Memory(Arc::default()))
    }

    /// In a folder or a bucket, below `objects/`.
    pub fn over(store: OpenedStore) -> Self {
        Self(Place::Opened(Arc::new(store)))
    }

    /// Keeps `bytes`; they are durable when this returns.
    ///
    /// # Errors
    /// `TooLarge`, or `Store`: then some or all of it may have been written, which harms nobody.
    pub async fn put(&self, bytes: Bytes) -> Result<Reference, SystemStoreError> {
        if bytes.len() > MAX_OBJECT_BYTES {
            return Err(SystemStoreError::TooLarge(bytes.len()));
        }
        let reference = Reference { sha256: sha256(&bytes), size_bytes: bytes.len() as u64 };
        match &self.0 {
            Place::Memory(objects) => {
                let mut objects = objects.lock().unwrap_or_else(PoisonError::into_inner);
                objects.insert(reference.sha256.clone(), bytes);
            }
            Place::Opened(store) => {
                let key = object_key(&reference);
                let there = store.head(&key).await?;
                if there.is_none_or(|there| there.size_bytes != reference.size_bytes) {
                    store.put(&key, bytes).await?;
                }
            }
        }
        Ok(reference)
    }

    /// The bytes under `reference`.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Store`.
    pub async fn read(&self, reference: &Reference) -> Result<Bytes, SystemStoreError> {
        let bytes = match &self.0 {
            Place::Memory(objects) => {
                objects.lock().unwrap_or_else(PoisonError::into_inner).get(&reference.sha256).cloned()
            }
            Place::Opened(store) => match store.read_all(&object_key(reference), MAX_OBJECT_BYTES).await {
                Ok(bytes) => Some(bytes),
                Err(error) if error.class == StoreErrorClass::NotFound => None,
                Err(error) => return Err(error.into()),
            },
        };
        let bytes = bytes.ok_or_else(|| SystemStoreError::Missing(reference.sha256.clone()))?;
        if sha256(&bytes) == reference.sha256 {
            Ok(bytes)
        } else {
            Err(SystemStoreError::Damaged(reference.sha256.clone()))
        }
    }

    /// Removes what lies under `reference`; what is gone is no error. For objects that one row alone refers to.
    ///
    /// # Errors
    /// `Store`.
    pub async fn remove(&self, reference: &Reference) -> Result<(), SystemStoreError> {
        match &self.0 {
            Place::Memory(objects) => {
                objects.lock().unwrap_or_else(PoisonError::into_inner).remove(&reference.sha256);
            }
            Place::Opened(store) => store.delete(&object_key(reference)).await?,
        }
        Ok(())
    }
}

/// Spread over 256 folders. A reference that was read from a damaged row may hold anything; it then names nothing.
fn object_key(reference: &Reference) -> ObjectKey {
    let digest: String = reference.sha256.chars().filter(char::is_ascii_hexdigit).take(64).collect();
    let folder = digest.get(..2).unwrap_or("00");
    format!("objects/{folder}/sha256-{digest}").parse().expect("hexadecimal digits make a key")
}

#[cfg(test)]
mod tests {
    use telecine_domain::store::Provider;
    use telecine_stores::StoreSecret;

    use super::*;

    #[tokio::test]
    async fn bytes_come_back_by_their_digest() {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::Local { folder: folder.path().to_str().unwrap().to_owned() };
        let opened = telecine_stores::open(&provider, &StoreSecret::None).unwrap();
        for system in [SystemStore::memory(), SystemStore::over(opened)] {
            let bytes = Bytes::from_static(b"\0some bytes");
            let reference = system.put(bytes.clone()).await.unwrap();
            assert_eq!(system.put(bytes.clone()).await.unwrap(), reference, "twice is one object");
            assert_eq!(system.read(&reference).await.unwrap(), bytes);
            let nothing = Reference { sha256: "ab".repeat(32), size_bytes: 1 };
            assert!(matches!(system.read(&nothing).await, Err(SystemStoreError::Missing(_))));
            system.remove(&reference).await.unwrap();
            system.remove(&reference).await.unwrap();
            assert!(matches!(system.read(&reference).await, Err(SystemStoreError::Missing(_))));
        }
    }

    #[tokio::test]
    async fn damaged_bytes_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let provider = Provider::Local { folder: folder.path().to_str().unwrap().to_owned() };
        let system = SystemStore::over(telecine_stores::open(&provider, &StoreSecret::None).unwrap());
        let reference = system.put(Bytes::from_static(b"right")).await.unwrap();
        std::fs::write(folder.path().join(object_key(&reference).as_str()), b"wrong").unwrap();
        assert!(matches!(system.read(&reference).await, Err(SystemStoreError::Damaged(_))));
    }
}
