//! Where an object is: a store and a key inside it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::StoreId;

/// Longest key in bytes, the limit of S3.
pub const MAX_KEY_BYTES: usize = 1024;

/// Name of an object inside its store: 1 to 1,024 bytes of UTF-8 without NUL, no leading slash, no `.` or `..` segment.
///
/// Keys come from outside and are hostile: spaces, quotes, newlines and percent signs are ordinary characters and are
/// never decoded or interpreted. Segments that would climb out of a folder are refused here, once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ObjectKey(String);

/// Why a text may not be used as a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidKey {
    /// The key has no characters.
    #[error("an object key may not be empty")]
    Empty,
    /// The key has more bytes than any store takes.
    #[error("an object key may have at most {MAX_KEY_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// The key begins with a slash.
    #[error("the object key {0:?} begins with a slash")]
    LeadingSlash(String),
    /// The key has a segment `.`, `..` or an empty one, or a NUL character.
    #[error("the object key {0:?} has a segment `.`, `..`, an empty one, or a NUL character")]
    UnsafeSegment(String),
}

impl ObjectKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names a folder (ends with a slash): everything below it is meant.
    pub fn is_folder(&self) -> bool {
        self.0.ends_with('/')
    }

    /// The last segment, without a trailing slash.
    pub fn file_name(&self) -> &str {
        let trimmed = self.0.trim_end_matches('/');
        trimmed.rsplit('/').next().unwrap_or(trimmed)
    }

    /// The file name without its last extension (`clip.final.mov` gives `clip.final`).
    pub fn stem(&self) -> &str {
        let name = self.file_name();
        match name.rfind('.') {
            Some(dot) if dot > 0 => &name[..dot],
            _ => name,
        }
    }

    /// What follows the last dot of the file name, or nothing.
    pub fn extension(&self) -> &str {
        let name = self.file_name();
        name.strip_prefix(self.stem()).and_then(|rest| rest.strip_prefix('.')).unwrap_or("")
    }

    /// Everything before the file name, with its trailing slash, or nothing.
    pub fn folder(&self) -> &str {
        let trimmed = self.0.trim_end_matches('/');
        &trimmed[..trimmed.len() - self.file_name().len()]
    }

    /// `self` (a folder) followed by `relative`.
    ///
    /// # Errors
    /// When the result is not a key.
    pub fn join(&self, relative: &str) -> Result<Self, InvalidKey> {
        let slash = if self.is_folder() { "" } else { "/" };
        format!("{}{slash}{relative}", self.0).parse()
    }
}

impl FromStr for ObjectKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let excerpt = || text.chars().take(80).collect::<String>();
        if text.is_empty() {
            return Err(InvalidKey::Empty);
        }
        if text.len() > MAX_KEY_BYTES {
            return Err(InvalidKey::TooLong(text.len()));
        }
        if text.starts_with('/') {
            return Err(InvalidKey::LeadingSlash(excerpt()));
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) || text.contains('\0') {
            return Err(InvalidKey::UnsafeSegment(excerpt()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ObjectKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object: a store and a key. A key that ends with `/` means the folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// The store.
    pub store: StoreId,
    /// The key below the store's prefix.
    pub key: ObjectKey,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.store, self.key)
    }
}

/// Names whose first characters are these are Telecine's own.
pub const HIDDEN_PREFIX: &str = ".telecine-";

/// Whether any segment begins with [`HIDDEN_PREFIX`]: sealed outputs that nobody may see yet. Watchers, listings and
/// mounts ignore such names.
pub fn is_hidden(key: &ObjectKey) -> bool {
    key.as_str().split('/').any(|segment| segment.starts_with(HIDDEN_PREFIX))
}

/// What tells one version of an object from another, and its size.
///
/// `etag` is the store's etag; for a local folder it is `inode-mtime-size` in hexadecimal (SPEC 2.3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectVersion {
    /// The store's etag, opaque.
    pub etag: String,
    /// The store's version id, where it keeps versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
    /// Size in bytes.
    pub size_bytes: u64,
}

impl ObjectVersion {
    /// The text under which a rule remembers having seen this version: the version id, else etag and size.
    pub fn identity(&self) -> String {
        match &self.version_id {
            Some(version) => format!("v:{version}"),
            None => format!("e:{}:{}", self.size_bytes, self.etag),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key() {
        let key: ObjectKey = "in/day 1/clip.final.mov".parse().unwrap();
        assert_eq!((key.folder(), key.file_name()), ("in/day 1/", "clip.final.mov"));
        assert_eq!((key.stem(), key.extension()), ("clip.final", "mov"));
        let hidden: ObjectKey = ".profile".parse().unwrap();
        assert_eq!((hidden.stem(), hidden.extension()), (".profile", ""));
        let folder: ObjectKey = "hls/out/".parse().unwrap();
        assert!(folder.is_folder());
        assert_eq!((folder.folder(), folder.file_name()), ("hls/", "out"));
        assert_eq!(folder.join("a/b.ts").unwrap().as_str(), "hls/out/a/b.ts");
    }

    #[test]
    fn hostile_keys_are_kept_as_they_are_or_refused() {
        for text in
            ["a b", "\"q\" 'q'", "new\nline", "100%2Fetc", "%00", "..hidden", "é漢", &"x".repeat(1024)]
        {
            assert_eq!(text.parse::<ObjectKey>().unwrap().as_str(), text);
        }
        for text in ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a\0b", "//", &"x".repeat(1025)] {
            assert!(text.parse::<ObjectKey>().is_err(), "{text:?}");
        }
        let folder: ObjectKey = "out/".parse().unwrap();
        assert!(folder.join("../escape").is_err());
    }
}
