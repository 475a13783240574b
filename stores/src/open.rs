//! From a store's description and secret to something opened.

use std::path::Path;

use telecine_domain::store::{Provider, S3Authentication};

use crate::folder::FolderStore;
use crate::objects::ObjectsStore;
use crate::{OpenedStore, StoreSecret};

/// Why a store cannot be opened as it is described.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// A local folder given by a relative path.
    #[error("the folder {folder:?} is not an absolute path: give the whole path, starting with `/`")]
    FolderNotAbsolute {
        /// As it was given.
        folder: String,
    },
    /// A local folder that is not there.
    #[error("the folder {folder:?} does not exist: create it, or correct the store's folder")]
    FolderMissing {
        /// Which.
        folder: String,
    },
    /// A path that is not a folder.
    #[error("{folder:?} is not a folder")]
    NotAFolder {
        /// Which.
        folder: String,
    },
    /// A local folder that cannot be opened.
    #[error("the folder {folder:?} cannot be opened: {problem}")]
    Folder {
        /// Which.
        folder: String,
        /// The system's words.
        problem: String,
    },
    /// A bucket name that no service takes.
    #[error(
        "{bucket:?} is not a bucket name (1 to 255 characters of a-z, A-Z, 0-9, dot, hyphen and underscore)"
    )]
    BucketName {
        /// As it was given.
        bucket: String,
    },
    /// A prefix of another form.
    #[error(
        "the prefix {prefix:?} must be empty or end with `/`, and may not begin with `/` or hold empty, `.` or `..` segments"
    )]
    Prefix {
        /// As it was given.
        prefix: String,
    },
    /// An endpoint that is no URL of a service.
    #[error(
        "the endpoint {endpoint:?} is not the base URL of a service, such as https://s3.example.com:9000"
    )]
    Endpoint {
        /// As it was given, without what may be a password.
        endpoint: String,
    },
    /// An `http://` endpoint without leave.
    #[error(
        "the endpoint {endpoint:?} is not encrypted: use https://, or set allow_http for a service on your own network"
    )]
    HttpNotAllowed {
        /// Which.
        endpoint: String,
    },
    /// A region that cannot be signed for.
    #[error("{region:?} is not a signing region, such as us-east-1")]
    SigningRegion {
        /// As it was given.
        region: String,
    },
    /// Keys are expected and there are none.
    #[error("{store} is opened with an access key, and none is recorded: give the store its key again")]
    KeysMissing {
        /// Which store.
        store: String,
    },
    /// Keys with characters that no key has.
    #[error(
        "the access key of {store} is malformed (empty, or with spaces or control characters): give it again"
    )]
    KeysMalformed {
        /// Which store.
        store: String,
    },
    /// The client refuses the settings.
    #[error("{store} cannot be opened: {problem}")]
    Client {
        /// Which store.
        store: String,
        /// The client's words.
        problem: String,
    },
}

/// Opens a store. A folder must be there; for a bucket no request is sent: `validate` tries it.
///
/// # Errors
/// When the description or the secret cannot work; the message names the setting.
pub fn open(provider: &Provider, secret: &StoreSecret) -> Result<OpenedStore, OpenError> {
    match provider {
        Provider::Local { folder } => FolderStore::open(Path::new(folder)).map(OpenedStore::Folder),
        Provider::S3 { bucket, prefix, endpoint, signing_region, allow_http, authentication } => {
            let settings = S3Settings {
                bucket,
                prefix,
                endpoint: endpoint.as_deref(),
                signing_region,
                allow_http: *allow_http,
                authentication: *authentication,
            };
            settings.check()?;
            ObjectsStore::open(&settings, secret).map(OpenedStore::Objects)
        }
    }
}

/// The settings of `Provider::S3`, borrowed.
pub(crate) struct S3Settings<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) prefix: &'a str,
    pub(crate) endpoint: Option<&'a str>,
    pub(crate) signing_region: &'a str,
    pub(crate) allow_http: bool,
    pub(crate) authentication: S3Authentication,
}

impl S3Settings<'_> {
    /// For people.
    pub(crate) fn location(&self) -> String {
        let below = if self.prefix.is_empty() { String::new() } else { format!(" below {:?}", self.prefix) };
        match self.endpoint {
            Some(endpoint) => format!("bucket {}{below} at {endpoint}", self.bucket),
            None => format!("bucket {}{below} ({})", self.bucket, self.signing_region),
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let in_bucket_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !(1..=255).contains(&self.bucket.len())
            || !self.bucket.bytes().all(in_bucket_name)
            || self.bucket.starts_with('.')
        {
            return Err(OpenError::BucketName { bucket: self.bucket.chars().take(80).collect() });
        }
        let is_folder = |text: &str| {
            text.parse::<telecine_domain::location::ObjectKey>().is_ok_and(|key| key.is_folder())
        };
        if !self.prefix.is_empty() && !is_folder(self.prefix) {
            return Err(OpenError::Prefix { prefix: self.prefix.chars().take(80).collect() });
        }
        let in_region = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.signing_region.is_empty() || !self.signing_region.bytes().all(in_region) {
            return Err(OpenError::SigningRegion { region: self.signing_region.chars().take(80).collect() });
        }
        self.endpoint.map_or(Ok(()), |endpoint| self.check_endpoint(endpoint))
    }

    fn check_endpoint(&self, endpoint: &str) -> Result<(), OpenError> {
        let shown = || match endpoint.rsplit_once('@') {
            Some((_, host)) => format!("…@{host}"),
            None => endpoint.chars().take(120).collect(),
        };
        let refused = || OpenError::Endpoint { endpoint: shown() };
        let uri: http::Uri = endpoint.parse().map_err(|_| refused())?;
        let has_host = uri.host().is_some_and(|host| !host.is_empty());
        if !has_host || uri.query().is_some() || endpoint.contains(['@', '#']) {
            return Err(refused());
        }
        match uri.scheme_str() {
            Some("https") => Ok(()),
            Some("http") if self.allow_http => Ok(()),
            Some("http") => Err(OpenError::HttpNotAllowed { endpoint: shown() }),
            _ => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3<'a>(change: impl FnOnce(&mut S3Settings<'a>)) -> Result<(), OpenError> {
        let mut settings = S3Settings {
            bucket: "media",
            prefix: "",
            endpoint: None,
            signing_region: "us-east-1",
            allow_http: false,
            authentication: S3Authentication::StaticKeys,
        };
        change(&mut settings);
        settings.check()
    }

    #[test]
    fn hostile_settings_are_refused_by_name() {
        assert!(s3(|_| ()).is_ok());
        assert!(s3(|s| s.prefix = "in/day 1/").is_ok());
        let long = "b".repeat(256);
        for bucket in ["", "a/b", "..", ".x", "a b", "a?x=", "a\nb", &long] {
            assert!(matches!(s3(|s| s.bucket = bucket), Err(OpenError::BucketName { .. })), "{bucket:?}");
        }
        for prefix in ["in", "/in/", "a//", "../", "a/../"] {
            assert!(matches!(s3(|s| s.prefix = prefix), Err(OpenError::Prefix { .. })), "{prefix:?}");
        }
        for endpoint in
            ["s3.example.com", "ftp://x", "https://", "https://x?y", "https://u:p@x", "https://x#y", ""]
        {
            assert!(
                matches!(s3(|s| s.endpoint = Some(endpoint)), Err(OpenError::Endpoint { .. })),
                "{endpoint:?}"
            );
        }
        let plain = s3(|s| s.endpoint = Some("http://10.0.0.1:9000")).unwrap_err();
        assert!(plain.to_string().contains("allow_http"), "{plain}");
        assert!(s3(|s| (s.endpoint, s.allow_http) = (Some("http://10.0.0.1:9000/"), true)).is_ok());
        let password = s3(|s| s.endpoint = Some("https://user:secret@host")).unwrap_err().to_string();
        assert!(!password.contains("secret"), "{password}");
    }

    #[test]
    fn keys_are_asked_for_by_the_name_of_the_store() {
        let provider: Provider =
            serde_json::from_value(serde_json::json!({"provider": "s3", "bucket": "media"})).unwrap();
        let missing = open(&provider, &StoreSecret::None).unwrap_err().to_string();
        assert!(missing.contains("bucket media"), "{missing}");
        let newline = StoreSecret::S3Keys {
            access_key_id: "a\nb".to_owned(),
            secret_access_key: "s".to_owned(),
            session_token: None,
        };
        assert!(matches!(open(&provider, &newline), Err(OpenError::KeysMalformed { .. })));
    }
}
