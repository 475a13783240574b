//! Between the S3 client and the network: sends the true keys and spells the keys of listings (see `key_text`).
//!
//! A request whose URL changes here is signed again, with the payload digest that the client computed. Listings are
//! asked for with `encoding-type=url`, because XML cannot carry most control characters.

use std::borrow::Cow;

use async_trait::async_trait;
use http::HeaderValue;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::uri::PathAndQuery;
use object_store::ClientOptions;
use object_store::aws::AwsAuthorizer;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use percent_encoding::percent_decode_str;

use super::key_text::{MARK_ENCODED, spell, unspell_encoded};
use super::keys::Keys;

const COPY_SOURCE: &str = "x-amz-copy-source";
const PAYLOAD_DIGEST: &str = "x-amz-content-sha256";

/// Makes the HTTP client of one store.
#[derive(Clone, Debug)]
pub(super) struct KeyConnector {
    /// The region requests are signed for.
    pub(super) signing_region: String,
    /// What signs them; `None` for a store that is read without.
    pub(super) keys: Option<Keys>,
}

impl HttpConnector for KeyConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let network = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(KeyService { connector: self.clone(), network }))
    }
}

#[derive(Debug)]
struct KeyService {
    connector: KeyConnector,
    network: HttpClient,
}

#[async_trait]
impl HttpService for KeyService {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let listing = is_listing(&request);
        if rewrite(&mut request, listing)? {
            self.connector.sign(&mut request)?;
        }
        let response = self.network.execute(request).await?;
        if listing && response.status().is_success() { spell_listing(response).await } else { Ok(response) }
    }
}

impl KeyConnector {
    fn sign(&self, request: &mut HttpRequest) -> Result<(), HttpError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let digest = request.headers().get(PAYLOAD_DIGEST).and_then(|value| hex::decode(value).ok());
        request.headers_mut().remove(AUTHORIZATION);
        AwsAuthorizer::new(&keys.now(), "s3", &self.signing_region)
            .try_authorize(request, digest.as_deref())
            .map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))
    }
}

fn is_listing(request: &HttpRequest) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "list-type=2"))
}

/// Puts the true keys into the URL and headers; says whether anything changed.
fn rewrite(request: &mut HttpRequest, listing: bool) -> Result<bool, HttpError> {
    let copied = request.headers().get(COPY_SOURCE).and_then(|value| value.to_str().ok());
    let source = copied.filter(|text| text.contains(MARK_ENCODED)).map(|text| unspell_encoded(text, "/"));
    let changed = source.is_some();
    if let Some(value) = source {
        let value =
            HeaderValue::from_str(&value).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        request.headers_mut().insert(COPY_SOURCE, value);
    }
    let uri = request.uri();
    let spelled = uri.path_and_query().is_some_and(|text| text.as_str().contains(MARK_ENCODED));
    if !spelled && !listing {
        return Ok(changed);
    }
    let path = unspell_encoded(uri.path(), "/");
    let query = uri.query().map(|query| unspell_encoded(query, "%2F")).unwrap_or_default();
    let text = match (query.is_empty(), listing) {
        (true, _) => path,
        (false, false) => format!("{path}?{query}"),
        (false, true) => format!("{path}?{query}&encoding-type=url"),
    };
    let mut parts = uri.clone().into_parts();
    let rewritten =
        PathAndQuery::try_from(text).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
    parts.path_and_query = Some(rewritten);
    *request.uri_mut() =
        http::Uri::from_parts(parts).map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
    Ok(true)
}

async fn spell_listing(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = response.into_parts();
    let bytes = body.bytes().await?;
    let text = std::str::from_utf8(&bytes).map_err(|error| HttpError::new(HttpErrorKind::Decode, error))?;
    let spelled = spell_document(text);
    parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(spelled.len()));
    Ok(HttpResponse::from_parts(parts, spelled.into()))
}

/// Replaces the text of every `Key` and `Prefix` element. These documents come from S3 and nest neither in itself.
fn spell_document(document: &str) -> String {
    let encoded = document.contains("<EncodingType>url</EncodingType>");
    let keys = replace_elements(document, "Key", |raw| spell(&true_text(raw, encoded)));
    replace_elements(&keys, "Prefix", |raw| {
        let prefix = true_text(raw, encoded);
        match prefix.strip_suffix('/') {
            Some(folder) if !folder.is_empty() => format!("{}/", spell(folder)),
            _ => spell(&prefix),
        }
    })
}

fn replace_elements(document: &str, name: &str, replace: impl Fn(&str) -> String) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut result = String::with_capacity(document.len());
    let mut rest = document;
    while let Some((before, inside)) = rest.split_once(&open) {
        let Some((raw, after)) = inside.split_once(&close) else { break };
        result.push_str(before);
        result.push_str(&open);
        result.push_str(&in_xml(&replace(raw)));
        result.push_str(&close);
        rest = after;
    }
    result.push_str(rest);
    result
}

/// The key in the text of an element. With `encoding-type=url` a space is `+` and a plus sign `%2B`.
fn true_text(raw: &str, encoded: bool) -> String {
    let text = out_of_xml(raw);
    if !encoded {
        return text.into_owned();
    }
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

fn out_of_xml(raw: &str) -> Cow<'_, str> {
    if !raw.contains('&') {
        return Cow::Borrowed(raw);
    }
    let mut parts = raw.split('&');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let reference = part.split_once(';').and_then(|(name, rest)| Some((entity(name)?, rest)));
        match reference {
            Some((letter, rest)) => {
                text.push(letter);
                text.push_str(rest);
            }
            None => {
                text.push('&');
                text.push_str(part);
            }
        }
    }
    Cow::Owned(text)
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

fn in_xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_spelled_whether_the_store_encodes_or_not() {
        let encoded = "<R><EncodingType>url</EncodingType><Prefix></Prefix><Contents><Key>a%0Ab+c%2B%26%F0%9F%8E%9E</Key></Contents></R>";
        assert_eq!(
            spell_document(encoded),
            "<R><EncodingType>url</EncodingType><Prefix></Prefix><Contents><Key>a\u{10FFFD}0ab c+&amp;🎞</Key></Contents></R>"
        );
        let plain = "<R><Contents><Key>a&#10;b+c&amp;amp;&lt;%2F&bogus;&</Key></Contents></R>";
        assert_eq!(
            spell_document(plain),
            "<R><Contents><Key>a\u{10FFFD}0ab+c&amp;amp;&lt;%2F&amp;bogus;&amp;</Key></Contents></R>"
        );
    }

    #[test]
    fn a_torn_document_is_left_to_the_client() {
        assert_eq!(spell_document("<R><Key>a"), "<R><Key>a");
    }
}
