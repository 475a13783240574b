//! As much of S3 as the tests need: objects, ranges, listings, uploads in parts, refusals, and Signature Version 4 checked
//! the way the service defines it (from the decoded path and query, not from what was sent). A test can hold requests of
//! a kind, to stop others at exact moments.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::Response;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// The one access key id.
pub const ACCESS_KEY: &str = "AKIDTEST";
/// Its secret.
pub const SECRET_KEY: &str = "secret/of+the=test";
const LARGE: usize = 64 * 1024;
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const IN_PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Lists objects.
    List,
    /// Reads an object or what is known of it.
    Read,
    /// Writes an object or a part of one.
    Write,
    /// Removes an object or an upload.
    Delete,
}

/// Where a request can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A part of an upload is stored, and its answer is not on its way yet.
    PartStored,
    /// An upload is to be completed, and nothing is done yet.
    BeforeCompletion,
}

/// How the service behaves.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// Whether it honours `encoding-type=url`.
    pub encodes: bool,
    /// What it does not allow.
    pub denies: Option<Verb>,
    /// How many requests it answers with 503 first.
    pub fails_first: u32,
    /// Whether it refuses signed requests and takes others.
    pub anonymous: bool,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { encodes: true, denies: None, fails_first: 0, anonymous: false }
    }
}

#[derive(Default)]
struct Objects {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    completions: Vec<String>,
    count: u32,
}

struct Shared {
    behaviour: Behaviour,
    objects: Mutex<Objects>,
    hold: watch::Sender<Hold>,
    secret: Mutex<String>,
}

/// At most one request is held at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Nothing,
    Next(Moment),
    Held,
}

/// A running service with one bucket, `media`; ends when dropped.
pub struct Service {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Service {
    /// Starts one on a free port of loopback.
    ///
    /// # Panics
    /// When there is none.
    pub async fn start(behaviour: Behaviour) -> Self {
        let hold = watch::Sender::default();
        let shared = Arc::new(Shared {
            behaviour,
            objects: Mutex::default(),
            hold,
            secret: Mutex::new(SECRET_KEY.to_owned()),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, shared, serving }
    }

    /// Its endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        self.shared.objects().objects.keys().cloned().collect()
    }

    /// The bytes under a key.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        self.shared.objects().objects.get(key).cloned()
    }

    /// Puts an object, or replaces it.
    pub fn insert(&self, key: &str, bytes: &[u8]) {
        self.shared.objects().objects.insert(key.to_owned(), bytes.to_vec());
    }

    /// How many uploads are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.shared.objects().uploads.len()
    }

    /// The key of each completed upload, in order: one that was completed twice is there twice.
    pub fn completions(&self) -> Vec<String> {
        self.shared.objects().completions.clone()
    }

    /// Takes no other secret key than this from now on.
    pub fn rotate(&self, secret: &str) {
        secret.clone_into(&mut self.shared.secret.lock().unwrap());
    }

    /// Holds the next request that comes to this moment; later ones pass.
    pub fn hold(&self, moment: Moment) {
        self.shared.hold.send_replace(Hold::Next(moment));
    }

    /// Whether a request is held now.
    pub fn holds(&self) -> bool {
        *self.shared.hold.borrow() == Hold::Held
    }

    /// Lets the held request go on.
    pub fn release(&self) {
        self.shared.hold.send_replace(Hold::Nothing);
    }

    /// Whether a signed URL would be accepted.
    ///
    /// # Panics
    /// When it is no signed URL.
    pub fn presigned_is_valid(&self, url: &str) -> bool {
        let uri: Uri = url.parse().unwrap();
        let mut query = Query::of(&uri);
        let given = query.remove("X-Amz-Signature").unwrap();
        let scope = query.one("X-Amz-Credential").unwrap().split_once('/').unwrap().1.to_owned();
        let date = query.one("X-Amz-Date").unwrap();
        let headers = format!("host:{}\n", self.address);
        let request = format!(
            "GET\n{}\n{}\n{headers}\nhost\nUNSIGNED-PAYLOAD",
            canonical_path(&uri),
            query.canonical()
        );
        signature(&self.shared.secret(), &date, &scope, &request) == given
    }
}

impl Shared {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap()
    }

    fn secret(&self) -> String {
        self.secret.lock().unwrap().clone()
    }

    /// Waits here when this is the request that is to be held.
    async fn pass(&self, moment: Moment) {
        let mine = self.hold.send_if_modified(|hold| {
            let mine = *hold == Hold::Next(moment);
            if mine {
                *hold = Hold::Held;
            }
            mine
        });
        if mine {
            // An error means that the service ends.
            let _ = self.hold.subscribe().wait_for(|hold| *hold != Hold::Held).await;
        }
    }
}

/// Decoded pairs, sorted.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(uri: &Uri) -> Self {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decode =
            |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8().unwrap().into_owned();
        let mut pairs: Vec<_> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(name), decode(value))
            })
            .collect();
        pairs.sort();
        Self(pairs)
    }

    fn one(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
    }

    fn remove(&mut self, name: &str) -> Option<String> {
        let value = self.one(name);
        self.0.retain(|(found, _)| found != name);
        value
    }

    fn canonical(&self) -> String {
        let encode = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
        let pairs: Vec<_> =
            self.0.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        pairs.join("&")
    }
}

fn canonical_path(uri: &Uri) -> String {
    let decoded = percent_decode_str(uri.path()).decode_utf8().unwrap();
    utf8_percent_encode(&decoded, IN_PATH).to_string()
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |byte: u8| block.map(|one| one ^ byte);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

fn signature(secret: &str, date: &str, scope: &str, request: &str) -> String {
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(request)));
    let parts = scope.split('/');
    let key = parts.fold(format!("AWS4{secret}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    hex::encode(hmac(&key, text.as_bytes()))
}

fn is_signed(secret: &str, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let field = |name: &str| {
        let (_, rest) = text("authorization").split_once(&format!("{name}="))?;
        Some(rest.split(',').next()?.trim().to_owned())
    };
    let (Some(credential), Some(names), Some(given)) =
        (field("Credential"), field("SignedHeaders"), field("Signature"))
    else {
        return false;
    };
    let digest = text("x-amz-content-sha256");
    // Large bodies are taken at their word: hashing them takes most of a test's time.
    let told = body.len() > LARGE || digest == hex::encode(Sha256::digest(body));
    if !told || !names.contains("host") {
        return false;
    }
    let mut canonical = String::new();
    for name in names.split(';') {
        writeln!(canonical, "{name}:{}", text(name).trim()).unwrap();
    }
    let query = Query::of(uri).canonical();
    let request = format!("{method}\n{}\n{query}\n{canonical}\n{names}\n{digest}", canonical_path(uri));
    let (id, scope) = credential.split_once('/').unwrap();
    id == ACCESS_KEY && signature(secret, text("x-amz-date"), scope, &request) == given
}

fn reply(status: StatusCode, body: impl Into<Body>) -> Response {
    Response::builder().status(status).body(body.into()).unwrap()
}

fn refusal(status: u16, code: &str) -> Response {
    let text = format!("<Error><Code>{code}</Code><Message>so says the test</Message></Error>");
    reply(StatusCode::from_u16(status).unwrap(), text)
}

fn etag(bytes: &[u8]) -> String {
    let digest = hex::encode(Sha256::digest(&bytes[..bytes.len().min(LARGE)]));
    format!("\"{}-{:x}\"", &digest[..32], bytes.len())
}

/// The object, or the part of it that `Range: bytes=FIRST-LAST` asks for; refused when it is not the one of `If-Match`.
fn object(bytes: &[u8], headers: &HeaderMap, with_body: bool) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let tag = etag(bytes);
    if text("if-match").is_some_and(|wanted| wanted != "*" && wanted != tag) {
        return refusal(412, "PreconditionFailed");
    }
    let range = text("range").and_then(|range| range_of(range, bytes.len()));
    let (status, part) = match &range {
        Some(range) => (206, &bytes[range.clone()]),
        None => (200, bytes),
    };
    let body = if with_body { Body::from(part.to_vec()) } else { Body::empty() };
    let mut response = Response::builder()
        .status(status)
        .header("etag", tag)
        .header("last-modified", "Sun, 22 Nov 2026 15:04:05 GMT")
        .header("content-length", part.len());
    if let Some(range) = range {
        let told = format!("bytes {}-{}/{}", range.start, range.end - 1, bytes.len());
        response = response.header("content-range", told);
    }
    response.body(body).unwrap()
}

fn range_of(range: &str, size: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let end = last.parse::<usize>().map_or(size, |last| size.min(last + 1));
    (first < end).then_some(first..end)
}

fn needed(method: &Method, key: &str) -> Verb {
    match *method {
        Method::GET | Method::HEAD if key.is_empty() => Verb::List,
        Method::GET | Method::HEAD => Verb::Read,
        Method::DELETE => Verb::Delete,
        _ => Verb::Write,
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let behaviour = shared.behaviour;
    let signed = is_signed(&shared.secret(), &parts.method, &parts.uri, &parts.headers, &body);
    let has_signature = parts.headers.contains_key("authorization");
    if !behaviour.anonymous && !signed || behaviour.anonymous && has_signature {
        return refusal(403, "SignatureDoesNotMatch");
    }
    let path = percent_decode_str(parts.uri.path()).decode_utf8().unwrap().into_owned();
    let Some(key) = path.strip_prefix("/media").map(|rest| rest.strip_prefix('/').unwrap_or(rest)) else {
        return refusal(404, "NoSuchBucket");
    };
    if behaviour.denies == Some(needed(&parts.method, key)) {
        return refusal(403, "AccessDenied");
    }
    {
        let mut objects = shared.objects();
        objects.count += 1;
        if objects.count <= behaviour.fails_first {
            return refusal(503, "SlowDown");
        }
    }
    let query = Query::of(&parts.uri);
    let upload = query.one("uploadId");
    if parts.method == Method::POST && upload.is_some() {
        shared.pass(Moment::BeforeCompletion).await;
    }
    let is_part = parts.method == Method::PUT && upload.is_some();
    let answer =
        shared.objects().answer(&parts.method, key, &query, &parts.headers, body.to_vec(), behaviour.encodes);
    if is_part {
        shared.pass(Moment::PartStored).await;
    }
    answer
}

impl Objects {
    fn answer(
        &mut self,
        method: &Method,
        key: &str,
        query: &Query,
        headers: &HeaderMap,
        body: Vec<u8>,
        encodes: bool,
    ) -> Response {
        match (method.clone(), query.one("uploadId"), key.is_empty()) {
            (Method::GET, _, true) => self.list(query, encodes),
            (Method::POST, None, false) => self.begin(),
            (Method::PUT, Some(upload), false) => self.part(&upload, query, body),
            (Method::POST, Some(upload), false) => self.complete(&upload, key),
            (Method::DELETE, Some(upload), false) => {
                self.uploads.remove(&upload);
                reply(StatusCode::NO_CONTENT, "")
            }
            (Method::PUT, None, false) => {
                let tag = etag(&body);
                self.objects.insert(key.to_owned(), body);
                Response::builder().header("etag", tag).body(Body::empty()).unwrap()
            }
            (Method::DELETE, None, false) => {
                self.objects.remove(key);
                reply(StatusCode::NO_CONTENT, "")
            }
            (method, None, false) => match self.objects.get(key) {
                Some(bytes) => object(bytes, headers, method == Method::GET),
                None => refusal(404, "NoSuchKey"),
            },
            _ => refusal(400, "InvalidRequest"),
        }
    }

    fn begin(&mut self) -> Response {
        let id = format!("upload {}+/", self.count);
        self.uploads.insert(id.clone(), BTreeMap::new());
        let text = format!(
            "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
        );
        reply(StatusCode::OK, text)
    }

    fn part(&mut self, upload: &str, query: &Query, body: Vec<u8>) -> Response {
        let number = query.one("partNumber").unwrap().parse().unwrap();
        let Some(parts) = self.uploads.get_mut(upload) else { return refusal(404, "NoSuchUpload") };
        let tag = etag(&body);
        parts.insert(number, body);
        Response::builder().header("etag", tag).body(Body::empty()).unwrap()
    }

    fn complete(&mut self, upload: &str, key: &str) -> Response {
        let Some(parts) = self.uploads.remove(upload) else { return refusal(404, "NoSuchUpload") };
        let bytes = parts.into_values().flatten().collect::<Vec<u8>>();
        let tag = etag(&bytes).replace('"', "&quot;");
        self.objects.insert(key.to_owned(), bytes);
        self.completions.push(key.to_owned());
        let text =
            format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>");
        reply(StatusCode::OK, text)
    }

    fn list(&self, query: &Query, encodes: bool) -> Response {
        let prefix = query.one("prefix").unwrap_or_default();
        let after = query.one("continuation-token").or(query.one("start-after")).unwrap_or_default();
        let most: usize = query.one("max-keys").map_or(1000, |most| most.parse().unwrap());
        let encoded = encodes && query.one("encoding-type").as_deref() == Some("url");
        let shown = |key: &str| match encoded {
            true => utf8_percent_encode(key, IN_PATH).to_string().replace("%20", "+"),
            false => key.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;"),
        };
        let mut matching = self.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after);
        let page: Vec<_> = matching.by_ref().take(most.min(1000)).collect();
        let mut text = String::from("<?xml version=\"1.0\"?><ListBucketResult>");
        write!(text, "<Name>media</Name><Prefix>{}</Prefix>", shown(&prefix)).unwrap();
        if encoded {
            text += "<EncodingType>url</EncodingType>";
        }
        for (key, bytes) in &page {
            let (key, size, tag) = (shown(key), bytes.len(), etag(bytes).replace('"', "&quot;"));
            write!(
                text,
                "<Contents><Key>{key}</Key><LastModified>2026-11-22T15:04:05.000Z</LastModified>\
                 <ETag>{tag}</ETag><Size>{size}</Size></Contents>"
            )
            .unwrap();
        }
        if let (Some(_), Some((last, _))) = (matching.next(), page.last()) {
            let token = last.replace('&', "&amp;").replace('<', "&lt;");
            write!(text, "<NextContinuationToken>{token}</NextContinuationToken>").unwrap();
        }
        reply(StatusCode::OK, text + "</ListBucketResult>")
    }
}
