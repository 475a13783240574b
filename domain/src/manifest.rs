//! What an attempt has sealed: bytes that are in the store and that nobody can see yet (SPEC 3.9).
//!
//! The manifest is all that anybody needs to publish the outputs, or to take them away again, without the worker that
//! made them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::{SlotName, StoreId};
use crate::location::{Location, ObjectKey, is_hidden};

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

/// Why a manifest may not be granted: what it names is not the job's to publish, or makes no sense.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidManifest {
    /// An object belongs to no output of the composition, or lies outside of it.
    #[error("`{key}` in {store} is not part of the output `{slot}` of the job")]
    Foreign {
        /// The output it claims to belong to.
        slot: SlotName,
        /// The store it would appear in.
        store: StoreId,
        /// The key it would appear under.
        key: ObjectKey,
    },
    /// The same object is named twice.
    #[error("`{key}` in {store} is named twice")]
    Twice {
        /// The store.
        store: StoreId,
        /// The key.
        key: ObjectKey,
    },
    /// An object would appear under a hidden name.
    #[error("`{0}` is a hidden name, nobody would see it")]
    Hidden(ObjectKey),
    /// The bytes are said to wait under a name that is not hidden, or is no key.
    #[error("the sealed bytes of `{key}` wait under `{hidden_key}`, which is not a hidden name")]
    NotHidden {
        /// The object.
        key: ObjectKey,
        /// Where its bytes are said to be.
        hidden_key: String,
    },
    /// The checksum is none.
    #[error("the checksum of `{0}` is not a SHA-256 in lower-case hexadecimal")]
    Checksum(ObjectKey),
}

impl Manifest {
    /// Whether all of it is the job's to publish, `outputs` being those of its composition. A worker's word is not
    /// enough: the manager checks this before it grants.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, outputs: &BTreeMap<SlotName, Location>) -> Result<(), InvalidManifest> {
        let mut seen = BTreeSet::new();
        for object in &self.objects {
            object.check(outputs)?;
            if !seen.insert((object.store, &object.key)) {
                return Err(InvalidManifest::Twice { store: object.store, key: object.key.clone() });
            }
        }
        Ok(())
    }

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
        self.objects.iter().fold(0, |sum, object| sum.saturating_add(object.size_bytes))
    }
}

impl SealedObject {
    fn check(&self, outputs: &BTreeMap<SlotName, Location>) -> Result<(), InvalidManifest> {
        let key = || self.key.clone();
        if !outputs.get(&self.slot).is_some_and(|output| self.is_within(output)) {
            let (slot, store) = (self.slot.clone(), self.store);
            return Err(InvalidManifest::Foreign { slot, store, key: key() });
        }
        if is_hidden(&self.key) {
            return Err(InvalidManifest::Hidden(key()));
        }
        if self.sha256.len() != 64 || !self.sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(InvalidManifest::Checksum(key()));
        }
        match &self.sealed {
            Sealed::HiddenFile { hidden_key }
                if !hidden_key.parse::<ObjectKey>().is_ok_and(|key| is_hidden(&key)) =>
            {
                Err(InvalidManifest::NotHidden { key: key(), hidden_key: hidden_key.clone() })
            }
            Sealed::HiddenFile { .. } | Sealed::Upload { .. } => Ok(()),
        }
    }

    fn is_within(&self, output: &Location) -> bool {
        let below = self.key.as_str().strip_prefix(output.key.as_str());
        let inside = match below {
            Some(rest) if output.key.is_folder() => !rest.is_empty() && !self.key.is_folder(),
            Some(rest) => rest.is_empty(),
            None => false,
        };
        inside && self.store == output.store
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, sealed};

    fn outputs(key: &str) -> BTreeMap<SlotName, Location> {
        let location = Location { store: StoreId::new(at(0), 1), key: key.parse().unwrap() };
        [("main".parse().unwrap(), location)].into()
    }

    fn checked(object: SealedObject, output: &str) -> Result<(), InvalidManifest> {
        Manifest { objects: vec![object] }.check(&outputs(output))
    }

    #[test]
    fn only_what_is_the_jobs_may_be_granted() {
        assert_eq!(checked(sealed("out/a.mp4", 1), "out/a.mp4"), Ok(()));
        assert_eq!(checked(sealed("out/hls/a.ts", 1), "out/hls/"), Ok(()));
        assert_eq!(Manifest::default().check(&outputs("out/")), Ok(()));
        let foreign =
            [("out/b.mp4", "out/a.mp4"), ("out/a.mp4.bak", "out/a.mp4"), ("out/a.mp4/b", "out/a.mp4")];
        for (key, output) in
            foreign.into_iter().chain([("other/a.ts", "out/"), ("out/", "out/"), ("out/x/", "out/")])
        {
            assert!(matches!(checked(sealed(key, 1), output), Err(InvalidManifest::Foreign { .. })), "{key}");
        }
        let elsewhere = SealedObject { store: StoreId::new(at(0), 2), ..sealed("a", 1) };
        let unnamed = SealedObject { slot: "side".parse().unwrap(), ..sealed("a", 1) };
        for object in [elsewhere, unnamed] {
            assert!(matches!(checked(object, "a"), Err(InvalidManifest::Foreign { .. })));
        }
    }

    #[test]
    fn what_makes_no_sense_may_not_be_granted() {
        let hidden = sealed("out/.telecine-upload-2/a", 1);
        assert!(matches!(checked(hidden, "out/"), Err(InvalidManifest::Hidden(_))));
        for sha256 in [String::new(), "A".repeat(64), "0".repeat(63), "0".repeat(65), "é".repeat(32)] {
            let object = SealedObject { sha256, ..sealed("a", 1) };
            assert!(matches!(checked(object, "a"), Err(InvalidManifest::Checksum(_))));
        }
        for hidden_key in ["a.mp4", "/.telecine-upload-1", "../.telecine-upload-1", ""] {
            let object = SealedObject {
                sealed: Sealed::HiddenFile { hidden_key: hidden_key.to_owned() },
                ..sealed("a", 1)
            };
            assert!(matches!(checked(object, "a"), Err(InvalidManifest::NotHidden { .. })), "{hidden_key}");
        }
        let twice = Manifest { objects: vec![sealed("out/a", 1), sealed("out/a", 2)] };
        assert!(matches!(twice.check(&outputs("out/")), Err(InvalidManifest::Twice { .. })));
    }

    fn keys(manifest: &Manifest) -> Vec<&str> {
        manifest.objects.iter().map(|object| object.key.as_str()).collect()
    }

    #[test]
    fn what_names_others_is_published_last() {
        let objects =
            ["hls/main.m3u8", "dash.MPD", "hls/b.ts", "report.json", "hls/a.ts", "m3u8", "poster.jpg"];
        let manifest = Manifest { objects: objects.map(|key| sealed(key, 1)).into() };
        let ordered = manifest.in_publishing_order();
        let expected =
            ["hls/a.ts", "hls/b.ts", "m3u8", "poster.jpg", "dash.MPD", "hls/main.m3u8", "report.json"];
        assert_eq!(keys(&ordered), expected);
        assert_eq!(ordered.clone().in_publishing_order(), ordered, "the order is the same each time");
    }

    #[test]
    fn sizes_add_up_and_never_overflow() {
        assert_eq!(Manifest::default().total_bytes(), 0);
        let manifest = Manifest { objects: vec![sealed("a", 5), sealed("b", 7)] };
        assert_eq!(manifest.total_bytes(), 12);
        let hostile = Manifest { objects: vec![sealed("a", u64::MAX), sealed("b", 7)] };
        assert_eq!(hostile.total_bytes(), u64::MAX);
    }

    #[test]
    fn a_manifest_survives_json_and_refuses_what_it_does_not_know() {
        let mut upload = sealed("b.mp4", 7);
        upload.sealed = Sealed::Upload { upload_id: "id".to_owned(), parts: vec!["1".to_owned()] };
        let manifest = Manifest { objects: vec![sealed("a.mp4", 5), upload] };
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        let strange = text.replacen("\"sha256\"", "\"md5\":\"\",\"sha256\"", 1);
        assert!(serde_json::from_str::<Manifest>(&strange).is_err());
        let climbing = text.replacen("a.mp4", "../a.mp4", 1);
        assert!(serde_json::from_str::<Manifest>(&climbing).is_err());
    }
}
