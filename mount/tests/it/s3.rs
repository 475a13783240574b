//! An S3 in this process: ranges, conditions, multipart uploads, and the faults a test asks for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use object_store::aws::AmazonS3Builder;
use object_store::{BackoffConfig, RetryConfig};
use sha2::{Digest, Sha256};
use telecine_mount::{Backing, InputFile, MountPath};
use tokio::runtime::Runtime;

/// What goes wrong, and how often.
#[derive(Default)]
pub struct Faults {
    /// So many of the next requests are answered 503.
    pub unavailable: u32,
    /// So many of the next reads break off in the middle.
    pub broken_bodies: u32,
    /// So many of the next reads ignore `If-Match`.
    pub ignore_conditions: bool,
    /// Every read waits first.
    pub delay: Duration,
    /// Every part is refused for good.
    pub refuse_parts: bool,
    /// So many completions are done but answered 500.
    pub lost_completions: u32,
}

#[derive(Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, (Bytes, String)>,
    pub uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
    pub faults: Faults,
    pub reads: u64,
    pub bytes_read: u64,
    next_upload: u32,
}

pub type Shared = Arc<Mutex<Bucket>>;

pub struct Fake {
    pub bucket: Shared,
    pub backing: Backing,
}

pub fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex::encode(&Sha256::digest(bytes)[..16]))
}

impl Fake {
    pub fn start(runtime: &Runtime) -> Self {
        let bucket = Shared::default();
        let app = axum::Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable())
            .with_state(bucket.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(5),
                max_backoff: Duration::from_millis(20),
                base: 2.0,
            },
            max_retries: 1,
            retry_timeout: Duration::from_secs(5),
        };
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_region("eu-test-1")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_retry(retry)
            .build()
            .unwrap();
        let store = Arc::new(store);
        let backing =
            Backing::Objects { store: store.clone(), multipart: store, prefix: "media/".to_owned() };
        Self { bucket, backing }
    }

    pub fn put(&self, key: &str, bytes: &[u8]) {
        let entry = (Bytes::copy_from_slice(bytes), etag(bytes));
        self.bucket.lock().unwrap().objects.insert(format!("media/{key}"), entry);
    }

    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.bucket.lock().unwrap().objects.get(&format!("media/{key}")).map(|(bytes, _)| bytes.clone())
    }

    pub fn input(&self, name: &str, bytes: &[u8]) -> InputFile {
        self.put(name, bytes);
        InputFile {
            path: MountPath::input("source", name).unwrap(),
            backing: self.backing.clone(),
            key: name.to_owned(),
            etag: etag(bytes),
            size: bytes.len() as u64,
        }
    }

    pub fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.bucket.lock().unwrap().faults);
    }

    pub fn uploads(&self) -> usize {
        self.bucket.lock().unwrap().uploads.len()
    }
}

async fn answer(
    State(bucket): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let delay = bucket.lock().unwrap().faults.delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut bucket = bucket.lock().unwrap();
    if bucket.faults.unavailable > 0 {
        bucket.faults.unavailable -= 1;
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let key = decoded(uri.path().strip_prefix("/bucket/").unwrap_or_default());
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), decoded(value)))
        .collect();
    match (method, query.get("uploadId"), query.get("partNumber")) {
        (Method::GET | Method::HEAD, None, None) => bucket.read(&key, &headers),
        (Method::POST, None, None) if query.contains_key("uploads") => bucket.create_upload(&key),
        (Method::PUT, Some(id), Some(number)) => bucket.put_part(id, number.parse().unwrap(), body),
        (Method::POST, Some(id), None) => bucket.complete(id),
        (Method::DELETE, Some(id), None) => match bucket.uploads.remove(id) {
            Some(_) => StatusCode::NO_CONTENT.into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        },
        _ => StatusCode::NOT_IMPLEMENTED.into_response(),
    }
}

impl Bucket {
    fn read(&mut self, key: &str, headers: &HeaderMap) -> Response {
        let Some((bytes, etag)) = self.objects.get(key).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let condition = headers.get(header::IF_MATCH).map(|value| value.to_str().unwrap());
        if !self.faults.ignore_conditions && condition.is_some_and(|wanted| wanted != etag) {
            return StatusCode::PRECONDITION_FAILED.into_response();
        }
        let size = bytes.len();
        let mut response = Response::builder()
            .header(header::ETAG, etag)
            .header(header::LAST_MODIFIED, "Sun, 22 Nov 2026 12:00:00 GMT");
        let range = headers.get(header::RANGE).map(|value| {
            let (from, to) = value.to_str().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let from: usize = from.parse().unwrap();
            from..(to.parse::<usize>().unwrap() + 1).min(size)
        });
        let part = match range {
            Some(range) => {
                let content_range = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                response =
                    response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content_range);
                bytes.slice(range)
            }
            None => bytes,
        };
        self.reads += 1;
        self.bytes_read += part.len() as u64;
        response = response.header(header::CONTENT_LENGTH, part.len());
        if self.faults.broken_bodies > 0 {
            self.faults.broken_bodies -= 1;
            let half = part.slice(..part.len() / 2);
            let chunks = [Ok(half), Err(std::io::Error::other("the test breaks this body"))];
            return response.body(Body::from_stream(futures::stream::iter(chunks))).unwrap();
        }
        response.body(part.into()).unwrap()
    }

    fn create_upload(&mut self, key: &str) -> Response {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        self.uploads.insert(id.clone(), (key.to_owned(), BTreeMap::new()));
        format!("<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>")
            .into_response()
    }

    fn put_part(&mut self, id: &str, number: u32, body: Bytes) -> Response {
        if self.faults.refuse_parts {
            return StatusCode::FORBIDDEN.into_response();
        }
        let Some((_, parts)) = self.uploads.get_mut(id) else { return StatusCode::NOT_FOUND.into_response() };
        let tag = etag(&body);
        parts.insert(number, body);
        ([(header::ETAG, tag)], "").into_response()
    }

    fn complete(&mut self, id: &str) -> Response {
        let Some((key, parts)) = self.uploads.remove(id) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let short = parts.values().rev().skip(1).any(|part| part.len() < 5 << 20);
        if parts.is_empty() || short {
            return StatusCode::BAD_REQUEST.into_response();
        }
        let count = parts.len();
        let bytes: Vec<u8> = parts.into_values().flatten().collect();
        let tag = format!("\"{}-{count}\"", etag(&bytes).trim_matches('"'));
        self.objects.insert(key, (bytes.into(), tag.clone()));
        if self.faults.lost_completions > 0 {
            self.faults.lost_completions -= 1;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        let tag = tag.replace('"', "&quot;");
        format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>")
            .into_response()
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| std::str::from_utf8(&tail[..2]).unwrap());
        bytes.push(hex.map_or(*first, |hex| u8::from_str_radix(hex, 16).unwrap()));
        rest = if hex.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).unwrap()
}
