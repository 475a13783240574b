//! Where the bytes of inputs and outputs live: an opened folder, or an opened object store.

use std::fmt;
use std::io;
use std::sync::Arc;

use cap_std::fs::{Dir, Metadata, MetadataExt};
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path;

/// An opened store.
#[derive(Clone)]
pub enum Backing {
    /// A local folder. All access goes through the descriptor and cannot leave the folder, whatever keys or symbolic links say.
    Folder {
        /// The store's root.
        dir: Arc<Dir>,
    },
    /// An object store.
    Objects {
        /// For ranged reads and heads.
        store: Arc<dyn ObjectStore>,
        /// The same store, for multipart uploads.
        multipart: Arc<dyn MultipartStore>,
        /// What is put in front of every key; surrounding slashes do not matter, empty means the bucket's root.
        prefix: String,
    },
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder { dir } => f.debug_struct("Folder").field("dir", dir).finish(),
            Self::Objects { store, prefix, .. } => f
                .debug_struct("Objects")
                .field("store", &format_args!("{store}"))
                .field("prefix", prefix)
                .finish(),
        }
    }
}

/// The path of `key` inside the bucket.
///
/// # Errors
/// When the key holds control characters or empty or climbing segments, which the client library cannot carry unchanged.
pub(crate) fn object_path(prefix: &str, key: &str) -> Result<Path, object_store::path::Error> {
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() { Path::parse(key) } else { Path::parse(format!("{prefix}/{key}")) }
}

/// The etag of a file in a folder store: inode, modification time in nanoseconds and size, in hexadecimal.
pub fn folder_etag(meta: &Metadata) -> String {
    etag_of(meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len())
}

/// [`folder_etag`] of an open file.
pub(crate) fn etag_of_file(file: &std::fs::File) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = file.metadata()?;
    Ok(etag_of(meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn etag_of(inode: u64, seconds: i64, nanoseconds: i64, size: u64) -> String {
    let mtime = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    format!("{inode:x}-{mtime:x}-{size:x}")
}

/// Whether two etags of an object store mean the same version: quotes do not matter.
pub(crate) fn same_etag(one: &str, other: &str) -> bool {
    one.trim_matches('"') == other.trim_matches('"')
}

/// Whether a segment of a key is one of Telecine's own hidden names, which watchers, listings and mounts ignore.
pub(crate) fn is_hidden_name(name: &[u8]) -> bool {
    name.starts_with(b".telecine-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_characters_inside_the_bucket() {
        for key in ["a b/c", "100%2Fetc", "é漢.mov", "\"q\" 'q' #?*"] {
            assert_eq!(object_path("", key).unwrap().as_ref(), key);
            assert_eq!(object_path("/media/", key).unwrap().as_ref(), format!("media/{key}"));
        }
        for key in ["new\nline", "a//b", "../up"] {
            assert!(object_path("media", key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn etags_of_files() {
        assert_eq!(etag_of(255, 1, 1, 16), "ff-3b9aca01-10");
        assert!(same_etag("\"abc\"", "abc") && !same_etag("abc", "abd"));
    }
}
