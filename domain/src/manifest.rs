//! What an attempt has sealed: bytes that are in the store and that nobody can see yet (SPEC 3.9).
//!
//! The manifest is all that anybody needs to publish the outputs, or to take them away again, without the worker that
//! made them.

use serde::{Deserialize, Serialize};

use crate::id::{SlotName, StoreId};
use crate::location::ObjectKey;

/// Where the sealed bytes wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sealed {
    /// A hidden file in the same folder tree, to be renamed to its key.
    HiddenFile {
        /// Key of the hidden file, below the store's root.
        hidden_key: String,
    },
    /// An open multipart upload, to be completed.
    Upload {
        /// The store's upload id.
        upload_id: String,
        /// The store's content ids (etags) of parts 1, 2, …
        parts: Vec<String>,
    },
}

/// One output object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedObject {
    /// The composition's output that it belongs to.
    pub slot: SlotName,
    /// The store it will appear in.
    pub store: StoreId,
    /// The key it will appear under.
    pub key: ObjectKey,
    /// Size in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the bytes, lower-case hexadecimal.
    pub sha256: String,
    /// The etag it will have, where that is known before publishing (local folders).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
    /// Where the bytes are now.
    pub sealed: Sealed,
}

/// Everything an attempt has sealed, in the order in which it is published (playlists and manifests last).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Manifest {
    /// The objects.
    pub objects: Vec<SealedObject>,
}

impl Manifest {
    /// Puts playlists and manifests (`.m3u8`, `.mpd`, `.f4m`, `.ism`, `.json`, `.smil`) behind everything they may name.
    pub fn in_publishing_order(mut self) -> Self {
        const LAST: [&str; 6] = ["m3u8", "mpd", "f4m", "ism", "json", "smil"];
        self.objects.sort_by(|a, b| {
            let last =
                |object: &SealedObject| LAST.contains(&object.key.extension().to_ascii_lowercase().as_str());
            (last(a), &a.store, &a.key).cmp(&(last(b), &b.store, &b.key))
        });
        self
    }

    /// Sum of the sizes.
    pub fn total_bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.size_bytes).sum()
    }
}
