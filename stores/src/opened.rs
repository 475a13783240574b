//! One store, whatever its kind.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use telecine_domain::location::{HIDDEN_PREFIX, ObjectKey, ObjectVersion, is_hidden};
use telecine_domain::store::Validation;
use telecine_domain::time::Timestamp;

use crate::error::{Action, StoreError, StoreErrorClass};
use crate::folder::FolderStore;
use crate::objects::ObjectsStore;
use crate::open::OpenError;
use crate::secret::StoreSecret;
use crate::validate::validate_opened;

/// An opened store. Clones share connections and descriptors.
#[derive(Clone, Debug)]
pub enum OpenedStore {
    /// A local folder.
    Folder(FolderStore),
    /// A bucket.
    Objects(ObjectsStore),
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Its key.
    pub key: ObjectKey,
    /// Its version. Listings of S3 carry no version id: `head` may know more.
    pub version: ObjectVersion,
    /// When it was last written, by the store's clock.
    pub modified: Timestamp,
}

/// An object being read.
pub struct ObjectRead {
    /// The version that is read, and its size.
    pub version: ObjectVersion,
    /// Its bytes, once, from the start.
    pub stream: BoxStream<'static, Result<Bytes, StoreError>>,
}

impl OpenedStore {
    /// Where it is, for people: `folder "/media"` or `bucket masters at https://…`.
    pub fn location(&self) -> &str {
        match self {
            Self::Folder(folder) => folder.location(),
            Self::Objects(objects) => objects.location(),
        }
    }

    /// Goes on with another secret for the same store, such as keys that end later: from the next request on, in all
    /// clones and in what was made of them. A folder needs none.
    ///
    /// # Errors
    /// When the secret cannot work; then nothing changes.
    pub fn renew(&self, secret: &StoreSecret) -> Result<(), OpenError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Objects(objects) => objects.renew(secret),
        }
    }

    /// The version of the object under `key`; `None` when there is none.
    ///
    /// # Errors
    /// `Denied`, `Unreachable`, `Invalid`.
    pub async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectVersion>, StoreError> {
        self.usable(Action::Head, key)?;
        match self {
            Self::Folder(folder) => folder.head(key).await,
            Self::Objects(objects) => objects.head(key).await,
        }
    }

    /// Up to `limit` objects whose keys begin with `prefix` and come after `after`, in bytewise order of their keys.
    /// Hidden names, and names that are no keys (not UTF-8, longer than 1,024 bytes), are left out. Fewer than `limit`
    /// means the end.
    ///
    /// # Errors
    /// `Denied`, `Unreachable`, `NotFound` when the folder or bucket itself is gone.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectEntry>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        match self {
            Self::Folder(folder) => folder.list(prefix, after, limit).await,
            Self::Objects(objects) => objects.list(prefix, after, limit).await,
        }
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable`, `Invalid`.
    pub async fn read(&self, key: &ObjectKey) -> Result<ObjectRead, StoreError> {
        self.usable(Action::Read, key)?;
        self.read_any(key).await
    }

    /// All of an object that has at most `max_bytes`.
    ///
    /// # Errors
    /// As `read`, and `Invalid` when it is larger.
    pub async fn read_all(&self, key: &ObjectKey, max_bytes: usize) -> Result<Bytes, StoreError> {
        self.usable(Action::Read, key)?;
        self.read_all_any(key, max_bytes).await
    }

    pub(crate) async fn read_any(&self, key: &ObjectKey) -> Result<ObjectRead, StoreError> {
        match self {
            Self::Folder(folder) => folder.read(key).await,
            Self::Objects(objects) => objects.read(key).await,
        }
    }

    pub(crate) async fn read_all_any(&self, key: &ObjectKey, max_bytes: usize) -> Result<Bytes, StoreError> {
        let too_large = || {
            let problem = format!("it has more than the {max_bytes} bytes that can be taken at once");
            self.refusal(Action::Read, key, problem)
        };
        let mut read = self.read_any(key).await?;
        if read.version.size_bytes > max_bytes as u64 {
            return Err(too_large());
        }
        let mut bytes = BytesMut::with_capacity(read.version.size_bytes as usize);
        while let Some(chunk) = read.stream.try_next().await? {
            if bytes.len() + chunk.len() > max_bytes {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// Writes an object, whole: nobody sees part of it, and after `Ok` it is durable. What was there is replaced.
    ///
    /// # Errors
    /// `Denied`, `NoSpace`, `Unreachable`, `Invalid`; then the object is as it was before.
    pub async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<ObjectVersion, StoreError> {
        self.put_stream(key, stream::once(async { Ok(bytes) }).boxed()).await
    }

    /// The same from a stream; an error in the stream leaves the object as it was.
    ///
    /// # Errors
    /// As `put`.
    pub async fn put_stream(
        &self,
        key: &ObjectKey,
        stream: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<ObjectVersion, StoreError> {
        self.usable(Action::Write, key)?;
        self.put_any(key, stream).await
    }

    pub(crate) async fn put_any(
        &self,
        key: &ObjectKey,
        stream: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<ObjectVersion, StoreError> {
        match self {
            Self::Folder(folder) => folder.put(key, stream).await,
            Self::Objects(objects) => objects.put(key, stream).await,
        }
    }

    /// Removes an object; one that is gone is no error.
    ///
    /// # Errors
    /// `Denied`, `Unreachable`, `Invalid`.
    pub async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.usable(Action::Delete, key)?;
        self.delete_any(key).await
    }

    pub(crate) async fn delete_any(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match self {
            Self::Folder(folder) => folder.delete(key).await,
            Self::Objects(objects) => objects.delete(key).await,
        }
    }

    /// Tries each permission for real and says what came of it.
    pub async fn validate(&self, now: Timestamp) -> Validation {
        validate_opened(self, now).await
    }

    /// A URL under which the object can be read without credentials for `ttl`; `None` where there is no such thing
    /// (local folders, anonymous stores, the rare keys that no signer spells): read it through the API then.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub async fn sign_read(&self, key: &ObjectKey, ttl: Duration) -> Result<Option<String>, StoreError> {
        self.usable(Action::Sign, key)?;
        match self {
            Self::Folder(_) => Ok(None),
            Self::Objects(objects) => objects.sign_read(key, ttl).await,
        }
    }

    /// A key that ends with a slash names a folder, and a folder has no bytes; hidden names are ours.
    fn usable(&self, action: Action, key: &ObjectKey) -> Result<(), StoreError> {
        let problem = if key.is_folder() {
            "the key ends with `/`, which names a folder and not an object".to_owned()
        } else if is_hidden(key) {
            format!("names that begin with `{HIDDEN_PREFIX}` are kept for Telecine's own files")
        } else {
            return Ok(());
        };
        Err(self.refusal(action, key, problem))
    }

    fn refusal(&self, action: Action, key: &ObjectKey, problem: String) -> StoreError {
        StoreError {
            class: StoreErrorClass::Invalid,
            store: self.location().to_owned(),
            subject: format!("{:?}", key.as_str()),
            action,
            problem,
        }
    }
}
