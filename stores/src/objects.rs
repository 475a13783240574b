//! A bucket, or a prefix of one, at S3 or anything that speaks it.
//!
//! Keys are the store's bytes: control characters, quotes, percent signs and trailing slashes reach the service as they
//! are (see `key_text`). Retries are bounded so that a caller hears about an unreachable store within a minute.

mod connector;
mod key_text;
mod keys;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    BackoffConfig, ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    WriteMultipart,
};
use telecine_domain::location::{ObjectKey, ObjectVersion, is_hidden};
use telecine_domain::store::S3Authentication;
use telecine_domain::time::Timestamp;

use crate::error::{Action, StoreError, StoreErrorClass, class_of_objects, words_of};
use crate::open::{OpenError, S3Settings};
use crate::{ObjectEntry, ObjectRead, StoreSecret};

use keys::Keys;

/// Writes of at least this many bytes go up in parts.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// Parts of one write on their way at a time.
const PARTS_AT_ONCE: usize = 4;
/// Keys asked for at a time, the most S3 gives.
const PAGE_KEYS: usize = 1000;

/// An opened bucket. Clones share its connections.
#[derive(Clone)]
pub struct ObjectsStore {
    /// The client. Its paths are made by [`ObjectsStore::path`], never by hand.
    pub store: Arc<dyn ObjectStore>,
    /// The same client, for uploads in parts.
    pub multipart: Arc<dyn MultipartStore>,
    /// Keys start below this: empty, or ends with `/`.
    pub prefix: String,
    client: Arc<AmazonS3>,
    keys: Option<Keys>,
    name: String,
}

impl fmt::Debug for ObjectsStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectsStore({})", self.name)
    }
}

impl ObjectsStore {
    /// Opens a bucket; no request is sent.
    pub(crate) fn open(settings: &S3Settings<'_>, secret: &StoreSecret) -> Result<Self, OpenError> {
        let name = settings.location();
        let keys = match settings.authentication {
            S3Authentication::Anonymous => None,
            S3Authentication::StaticKeys => Some(Keys::of(secret, &name)?),
        };
        let client = Arc::new(client(settings, keys.as_ref(), &name)?);
        Ok(Self {
            store: Arc::clone(&client) as Arc<dyn ObjectStore>,
            multipart: Arc::clone(&client) as Arc<dyn MultipartStore>,
            prefix: settings.prefix.to_owned(),
            client,
            keys,
            name,
        })
    }

    /// Where it is, for people: `bucket masters at https://…`.
    pub fn location(&self) -> &str {
        &self.name
    }

    /// Signs with another secret from the next request on, in all clones.
    pub(crate) fn renew(&self, secret: &StoreSecret) -> Result<(), OpenError> {
        self.keys.as_ref().map_or(Ok(()), |keys| keys.replace(secret, &self.name))
    }

    /// Whether requests are signed with a key.
    pub fn is_signed(&self) -> bool {
        self.keys.is_some()
    }

    /// The client's path of a key below the prefix. Reads, writes and uploads through `store` and `multipart` must use
    /// it: it is the one place that knows how keys the client cannot hold are spelled.
    pub fn path(&self, key: &ObjectKey) -> Path {
        key_text::path_of(&format!("{}{key}", self.prefix))
    }

    pub(crate) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectVersion>, StoreError> {
        match self.client.head(&self.path(key)).await {
            Ok(meta) => Ok(Some(version_of(&meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(Action::Head, key.as_str(), &error)),
        }
    }

    /// Keys below `prefix` and after `after`, in bytewise order; hidden names, folder markers and keys that break our
    /// rules (empty segments, a leading slash) are left out.
    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectEntry>, StoreError> {
        let below = format!("{}{prefix}", self.prefix);
        let mut entries = Vec::new();
        let mut options = PaginatedListOptions {
            offset: after.map(|key| key_text::spell_part(&format!("{}{key}", self.prefix))),
            max_keys: Some(limit.clamp(1, PAGE_KEYS)),
            ..Default::default()
        };
        while entries.len() < limit {
            let spelled = key_text::spell_part(&below);
            let asked = Some(spelled.as_str()).filter(|text| !text.is_empty());
            let page = self.client.list_paginated(asked, options.clone()).await;
            let page = page.map_err(|error| self.failed(Action::List, prefix, &error))?;
            entries.extend(page.result.objects.iter().filter_map(|meta| self.entry(meta)));
            match page.page_token {
                Some(token) => options.page_token = Some(token),
                None => break,
            }
        }
        entries.truncate(limit);
        Ok(entries)
    }

    fn entry(&self, meta: &ObjectMeta) -> Option<ObjectEntry> {
        let whole = key_text::unspell(meta.location.as_ref()).into_owned();
        let key: ObjectKey = whole.strip_prefix(&self.prefix)?.parse().ok()?;
        if key.is_folder() || is_hidden(&key) {
            return None;
        }
        let modified = Timestamp::from_millis(meta.last_modified.timestamp_millis().try_into().unwrap_or(0));
        Some(ObjectEntry { key, version: version_of(meta), modified })
    }

    pub(crate) async fn read(&self, key: &ObjectKey) -> Result<ObjectRead, StoreError> {
        let result = self.client.get(&self.path(key)).await;
        let result = result.map_err(|error| self.failed(Action::Read, key.as_str(), &error))?;
        let version = version_of(&result.meta);
        let (store, key) = (self.clone(), key.clone());
        let stream = result
            .into_stream()
            .map_err(move |error| store.failed(Action::Read, key.as_str(), &error))
            .boxed();
        Ok(ObjectRead { version, stream })
    }

    pub(crate) async fn put(
        &self,
        key: &ObjectKey,
        mut stream: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<ObjectVersion, StoreError> {
        let mut gathered = Vec::new();
        let mut size = 0;
        while size < PART_BYTES {
            match stream.next().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(|error| self.source_failed(key, &error))?;
                    size += chunk.len();
                    gathered.push(chunk);
                }
                None => return self.put_whole(key, gathered.into_iter().collect()).await,
            }
        }
        self.put_in_parts(key, gathered, stream).await
    }

    async fn put_whole(&self, key: &ObjectKey, payload: PutPayload) -> Result<ObjectVersion, StoreError> {
        let size_bytes = payload.content_length() as u64;
        let put = self.client.put(&self.path(key), payload).await;
        let put = put.map_err(|error| self.failed(Action::Write, key.as_str(), &error))?;
        Ok(ObjectVersion { etag: put.e_tag.unwrap_or_default(), version_id: put.version, size_bytes })
    }

    async fn put_in_parts(
        &self,
        key: &ObjectKey,
        gathered: Vec<Bytes>,
        mut stream: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> Result<ObjectVersion, StoreError> {
        let failed = |error| self.failed(Action::Write, key.as_str(), &error);
        let upload = self.client.put_multipart(&self.path(key)).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut size_bytes = 0;
        let mut chunks = gathered.into_iter();
        loop {
            let chunk = match chunks.next() {
                Some(chunk) => Some(Ok(chunk)),
                None => stream.next().await,
            };
            let problem = match chunk {
                None => break,
                Some(Err(error)) => Err(self.source_failed(key, &error)),
                Some(Ok(chunk)) => {
                    size_bytes += chunk.len() as u64;
                    upload.put(chunk);
                    upload.wait_for_capacity(PARTS_AT_ONCE).await.map_err(failed)
                }
            };
            if let Err(error) = problem {
                // The upload's parts cost money until they are taken away; the first error is the one to tell.
                let _ = upload.abort().await;
                return Err(error);
            }
        }
        let put = upload.finish().await.map_err(failed)?;
        Ok(ObjectVersion { etag: put.e_tag.unwrap_or_default(), version_id: put.version, size_bytes })
    }

    pub(crate) async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match self.client.delete(&self.path(key)).await {
            Ok(()) => Ok(()),
            Err(error) if class_of_objects(&error) == StoreErrorClass::NotFound && !names_bucket(&error) => {
                Ok(())
            }
            Err(error) => Err(self.failed(Action::Delete, key.as_str(), &error)),
        }
    }

    /// `None` for an anonymous store and for the rare keys that the client's signer cannot spell: read those through
    /// the API.
    pub(crate) async fn sign_read(
        &self,
        key: &ObjectKey,
        ttl: Duration,
    ) -> Result<Option<String>, StoreError> {
        let path = self.path(key);
        if self.keys.is_none() || path.as_ref().contains(key_text::MARK) {
            return Ok(None);
        }
        let url = self.client.signed_url(http::Method::GET, &path, ttl).await;
        url.map(|url| Some(url.into())).map_err(|error| self.failed(Action::Sign, key.as_str(), &error))
    }

    fn failed(&self, action: Action, subject: &str, error: &object_store::Error) -> StoreError {
        StoreError {
            class: class_of_objects(error),
            store: self.name.clone(),
            subject: format!("{subject:?}"),
            action,
            problem: words_of(error),
        }
    }

    fn source_failed(&self, key: &ObjectKey, error: &std::io::Error) -> StoreError {
        StoreError {
            class: StoreErrorClass::Invalid,
            store: self.name.clone(),
            subject: format!("{:?}", key.as_str()),
            action: Action::Write,
            problem: format!("the bytes to write ended early: {error}"),
        }
    }
}

fn names_bucket(error: &object_store::Error) -> bool {
    error.to_string().contains("NoSuchBucket")
}

fn version_of(meta: &ObjectMeta) -> ObjectVersion {
    let version_id = meta.version.clone().filter(|version| version != "null");
    ObjectVersion { etag: meta.e_tag.clone().unwrap_or_default(), version_id, size_bytes: meta.size }
}

fn client(settings: &S3Settings<'_>, keys: Option<&Keys>, name: &str) -> Result<AmazonS3, OpenError> {
    let connector =
        connector::KeyConnector { signing_region: settings.signing_region.to_owned(), keys: keys.cloned() };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(settings.bucket)
        .with_region(settings.signing_region)
        .with_allow_http(settings.allow_http)
        .with_virtual_hosted_style_request(false)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true)
        .with_retry(retries())
        .with_client_options(client_options(settings.allow_http))
        .with_http_connector(connector);
    if let Some(endpoint) = settings.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    builder = match keys {
        None => builder.with_skip_signature(true),
        Some(keys) => builder.with_credentials(Arc::new(keys.clone())),
    };
    builder.build().map_err(|error| OpenError::Client { store: name.to_owned(), problem: words_of(&error) })
}

fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: Duration::from_secs(45),
    }
}

/// No limit on a whole transfer, which may take hours, but on each wait for bytes.
fn client_options(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(allow_http)
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(5))
        .with_read_timeout(Duration::from_secs(30))
}
