//! What went wrong with a store: where, on which key, during which action, in the store's own words.

use std::fmt;
use std::io;

/// What sort of failure it is; decides what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StoreErrorClass {
    /// There is no such object, folder or bucket.
    NotFound,
    /// The store knows us not, or does not let us.
    Denied,
    /// The store did not answer, or answered that it cannot just now. Trying again may help.
    Unreachable,
    /// The object is not (or no longer) the version that was asked for.
    Changed,
    /// There is no room left.
    NoSpace,
    /// The request itself cannot work here: a key this store cannot hold, a folder where a file is meant.
    Invalid,
}

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Looking at the keys.
    List,
    /// Looking at one object's version and size.
    Head,
    /// Reading bytes.
    Read,
    /// Writing an object.
    Write,
    /// Removing an object.
    Delete,
    /// Making a link that can be read without credentials.
    Sign,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Head => "look at",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Sign => "sign",
        })
    }
}

/// A store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {action} {subject} in {store}: {problem}")]
pub struct StoreError {
    /// What sort of failure.
    pub class: StoreErrorClass,
    /// Where: `folder /media` or `bucket masters at http://…`.
    pub store: String,
    /// The key (quoted, hostile characters escaped), or what else it was about.
    pub subject: String,
    /// What was being done.
    pub action: Action,
    /// The store's words, and what to do where that is known.
    pub problem: String,
}

impl StoreError {
    /// Whether trying the same again may help.
    pub fn is_transient(&self) -> bool {
        self.class == StoreErrorClass::Unreachable
    }
}

/// Sorts an error of the operating system.
pub(crate) fn class_of_io(error: &io::Error) -> StoreErrorClass {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::NotFound => StoreErrorClass::NotFound,
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => StoreErrorClass::Denied,
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => StoreErrorClass::NoSpace,
        Kind::InvalidInput
        | Kind::InvalidFilename
        | Kind::IsADirectory
        | Kind::NotADirectory
        | Kind::DirectoryNotEmpty
        | Kind::AlreadyExists
        | Kind::CrossesDevices => StoreErrorClass::Invalid,
        _ => StoreErrorClass::Unreachable,
    }
}

/// The store's words out of an error of the S3 client: the service's code and message where there is a document, else
/// the innermost cause, which is the one a person can act on.
pub(crate) fn words_of(error: &object_store::Error) -> String {
    let text = error.to_string();
    if let Some(code) = element(&text, "Code") {
        let message = element(&text, "Message").unwrap_or_default();
        return format!("{code}: {message}").trim_end_matches(": ").to_owned();
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let words = innermost.to_string();
    if words.is_empty() { text } else { words }
}

fn element(text: &str, name: &str) -> Option<String> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (value, _) = rest.split_once(&format!("</{name}>"))?;
    Some(value.chars().take(300).collect())
}

/// Sorts an error of the S3 client.
pub(crate) fn class_of_objects(error: &object_store::Error) -> StoreErrorClass {
    use object_store::Error as E;
    match error {
        E::NotFound { .. } => StoreErrorClass::NotFound,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => StoreErrorClass::Denied,
        E::Precondition { .. } | E::AlreadyExists { .. } | E::NotModified { .. } => StoreErrorClass::Changed,
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => StoreErrorClass::Invalid,
        _ => class_of_words(&error.to_string()),
    }
}

fn class_of_words(text: &str) -> StoreErrorClass {
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["NoSuchBucket", "NoSuchKey", "NoSuchUpload"]) {
        StoreErrorClass::NotFound
    } else if says(&[
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "AccessDenied",
        "ExpiredToken",
        "InvalidToken",
    ]) {
        StoreErrorClass::Denied
    } else if says(&["InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "507 "]) {
        StoreErrorClass::NoSpace
    } else if says(&["status code: 4", "without LOCATION"]) {
        StoreErrorClass::Invalid
    } else {
        StoreErrorClass::Unreachable
    }
}
