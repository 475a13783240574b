//! What to mount: the inputs with their pinned versions, the output folders with their targets, and the bounds.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::backing::Backing;

/// Longest name of a file or folder in the mount, in bytes: the kernel's limit for FUSE.
pub(crate) const MAX_NAME_BYTES: usize = 1024;

/// Longest name that a folder store can hold.
pub(crate) const MAX_FOLDER_NAME_BYTES: usize = 255;

/// Everything one mount shows and may use.
#[derive(Clone, Debug)]
pub struct MountPlan {
    /// Files below `inputs/`.
    pub inputs: Vec<InputFile>,
    /// Folders below `outputs/`.
    pub outputs: Vec<OutputFolder>,
    /// Owner of everything, the engine's user.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Most memory for cached and coming ranges of objects, in bytes, for the whole mount (at least 16 MiB are used).
    pub cache_bytes: u64,
    /// Folder for the spill of outputs that go to object stores; created when needed. The mount removes its own files.
    pub spill: PathBuf,
    /// Most bytes of spill: the sum of the sizes of those outputs. A write beyond it fails with ENOSPC.
    pub spill_bytes: u64,
    /// File in which hidden names and upload ids are recorded before their first byte, for [`crate::abort_journal`].
    pub journal: PathBuf,
    /// What rarely needs changing.
    pub tuning: Tuning,
}

/// One input, pinned to one version.
#[derive(Clone, Debug)]
pub struct InputFile {
    /// Where it appears.
    pub path: MountPath,
    /// The store it is read from.
    pub backing: Backing,
    /// Its key below the store's root or prefix.
    pub key: String,
    /// The version to read: the store's etag, or [`crate::folder_etag`]. Any other version fails with EIO.
    pub etag: String,
    /// Its size in bytes.
    pub size: u64,
}

/// One output slot: the folder `outputs/<name>/`.
#[derive(Clone, Debug)]
pub struct OutputFolder {
    /// The slot's name.
    pub name: String,
    /// The store it goes to.
    pub backing: Backing,
    /// Which files become objects, and under which keys.
    pub target: OutputTarget,
    /// Part of the hidden names `.telecine-upload-<tag>-<n>`, unique per attempt: 1 to 128 of `A–Z a–z 0–9 _ -`.
    pub hidden_tag: String,
}

/// What an output folder becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputTarget {
    /// One file is wanted; other files left in the folder are not published.
    File {
        /// Key below the store's root or prefix.
        key: String,
        /// Name of the file inside the output folder.
        file_name: String,
    },
    /// Every file is published, its relative path appended to the prefix.
    Folder {
        /// Key prefix below the store's root or prefix, with or without its trailing slash; empty means the root.
        prefix: String,
    },
}

impl OutputTarget {
    /// The key for the file at `relative` (below the output folder), or nothing when it is not published.
    pub(crate) fn key_for(&self, relative: &str) -> Option<String> {
        match self {
            Self::File { key, file_name } => (relative == file_name).then(|| key.clone()),
            Self::Folder { prefix } => {
                let prefix = prefix.trim_end_matches('/');
                Some(if prefix.is_empty() { relative.to_owned() } else { format!("{prefix}/{relative}") })
            }
        }
    }
}

/// Sizes and limits with defaults that suit media.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Largest range fetched by one request, and the boundary no range crosses (a power of two, at least 64 KiB).
    pub block_bytes: u64,
    /// Farthest that a sequential stream is read ahead, in bytes.
    pub readahead_bytes: u64,
    /// Most requests to object stores in flight for reading.
    pub parallel_fetches: usize,
    /// How long one range is retried before the reader gets EIO.
    pub retry_budget: Duration,
    /// How long a store may send nothing before the request counts as failed.
    pub stall: Duration,
    /// Smallest part of an upload (grows so that 10,000 parts suffice; stores want at least 5 MiB).
    pub part_bytes: u64,
    /// Most parts in flight while sealing.
    pub parallel_parts: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            block_bytes: 4 << 20,
            readahead_bytes: 16 << 20,
            parallel_fetches: 16,
            retry_budget: Duration::from_secs(60),
            stall: Duration::from_secs(20),
            part_bytes: 8 << 20,
            parallel_parts: 4,
        }
    }
}

/// Path of an input below the mount point: `inputs/<slot>/<file>`, names of 1 to 1,024 bytes, any characters but `/` and NUL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPath {
    slot: String,
    file_name: String,
}

/// Why a text is not the path of an input.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidPath {
    /// It has another shape than `inputs/<slot>/<file>`.
    #[error("{0:?} is not a path of the form inputs/<slot>/<file>")]
    Shape(String),
    /// A name in it cannot be a file name.
    #[error(
        "{0:?} cannot be a file name: names have 1 to {MAX_NAME_BYTES} bytes, no slash, no NUL, and are not . or .."
    )]
    Name(String),
}

impl MountPath {
    /// The path of `file_name` in the input slot `slot`.
    ///
    /// # Errors
    /// When one of them cannot be a file name.
    pub fn input(slot: &str, file_name: &str) -> Result<Self, InvalidPath> {
        for name in [slot, file_name] {
            check_name(name.as_bytes()).map_err(|()| InvalidPath::Name(name.chars().take(80).collect()))?;
        }
        Ok(Self { slot: slot.to_owned(), file_name: file_name.to_owned() })
    }

    /// The slot.
    pub fn slot(&self) -> &str {
        &self.slot
    }

    /// The file's name.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }
}

impl FromStr for MountPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        match text.split('/').collect::<Vec<_>>()[..] {
            ["inputs", slot, file_name] => Self::input(slot, file_name),
            _ => Err(InvalidPath::Shape(text.chars().take(200).collect())),
        }
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inputs/{}/{}", self.slot, self.file_name)
    }
}

/// Whether `name` can be a name in the mount.
pub(crate) fn check_name(name: &[u8]) -> Result<(), ()> {
    let wrong = name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || matches!(name, b"." | b"..")
        || name.iter().any(|byte| matches!(byte, b'/' | 0));
    if wrong { Err(()) } else { Ok(()) }
}

/// Why a plan cannot be mounted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// Two inputs have one path.
    #[error("two inputs have the path {0}")]
    InputTwice(MountPath),
    /// Two outputs have one name.
    #[error("two outputs have the name {0:?}")]
    OutputTwice(String),
    /// An output's name, or the name of its file, cannot be a file name.
    #[error("output {output:?}: {name:?} cannot be a file name")]
    OutputName {
        /// The output.
        output: String,
        /// The wrong name.
        name: String,
    },
    /// A hidden tag has other characters than the ones allowed.
    #[error("output {output:?}: the hidden tag {tag:?} must be 1 to 128 of A-Z a-z 0-9 _ -")]
    HiddenTag {
        /// The output.
        output: String,
        /// The tag.
        tag: String,
    },
    /// A key cannot be carried to its store.
    #[error("{subject}: the key {key:?} cannot be used: {reason}")]
    Key {
        /// The input's path or the output's name.
        subject: String,
        /// The key.
        key: String,
        /// Why not.
        reason: String,
    },
}

impl MountPlan {
    /// Checks everything that can be checked without touching a store.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let mut paths = BTreeSet::new();
        for input in &self.inputs {
            if !paths.insert(&input.path) {
                return Err(PlanError::InputTwice(input.path.clone()));
            }
            check_key(&input.backing, &input.key, &input.path.to_string())?;
        }
        let mut names = BTreeSet::new();
        for output in &self.outputs {
            if !names.insert(&output.name) {
                return Err(PlanError::OutputTwice(output.name.clone()));
            }
            output.check()?;
        }
        Ok(())
    }
}

impl OutputFolder {
    fn check(&self) -> Result<(), PlanError> {
        let wrong_name =
            |name: &str| PlanError::OutputName { output: self.name.clone(), name: name.to_owned() };
        check_name(self.name.as_bytes()).map_err(|()| wrong_name(&self.name))?;
        let tag_ok = (1..=128).contains(&self.hidden_tag.len())
            && self
                .hidden_tag
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !tag_ok {
            return Err(PlanError::HiddenTag { output: self.name.clone(), tag: self.hidden_tag.clone() });
        }
        match &self.target {
            OutputTarget::File { key, file_name } => {
                check_name(file_name.as_bytes()).map_err(|()| wrong_name(file_name))?;
                check_key(&self.backing, key, &self.name)
            }
            OutputTarget::Folder { prefix } => match prefix.trim_end_matches('/') {
                "" => Ok(()),
                prefix => check_key(&self.backing, prefix, &self.name),
            },
        }
    }
}

/// Whether `key` can be used in that store, whatever it is used for.
pub(crate) fn check_key(backing: &Backing, key: &str, subject: &str) -> Result<(), PlanError> {
    key_problem(backing, key).map_or(Ok(()), |reason| {
        Err(PlanError::Key { subject: subject.to_owned(), key: key.to_owned(), reason })
    })
}

/// What is wrong with `key` for that store, if anything.
pub(crate) fn key_problem(backing: &Backing, key: &str) -> Option<String> {
    let segments_ok = key.split('/').all(|segment| check_name(segment.as_bytes()).is_ok());
    if !segments_ok || key.len() > MAX_NAME_BYTES {
        return Some(format!(
            "keys have 1 to {MAX_NAME_BYTES} bytes and no empty, `.` or `..` segment and no NUL character"
        ));
    }
    match backing {
        Backing::Folder { .. } => key
            .split('/')
            .find(|segment| segment.len() > MAX_FOLDER_NAME_BYTES)
            .map(|_| format!("a folder store holds names of at most {MAX_FOLDER_NAME_BYTES} bytes")),
        Backing::Objects { prefix, .. } => {
            crate::backing::object_path(prefix, key).err().map(|error| error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_inputs() {
        let path: MountPath = "inputs/source/a b\n\".mov".parse().unwrap();
        assert_eq!((path.slot(), path.file_name()), ("source", "a b\n\".mov"));
        for text in ["inputs/source", "outputs/a/b", "inputs/a/b/c", "/inputs/a/b", ""] {
            assert!(matches!(text.parse::<MountPath>(), Err(InvalidPath::Shape(_))), "{text:?}");
        }
        for text in ["inputs/../b", "inputs/a/..", "inputs/a/", "inputs//b", "inputs/a/b\0"] {
            assert!(matches!(text.parse::<MountPath>(), Err(InvalidPath::Name(_))), "{text:?}");
        }
        assert!(MountPath::input("s", &"x".repeat(1024)).is_ok());
        assert!(MountPath::input("s", &"x".repeat(1025)).is_err());
    }

    #[test]
    fn keys_of_outputs() {
        let file = OutputTarget::File { key: "done/x.mp4".into(), file_name: "out.mp4".into() };
        assert_eq!(file.key_for("out.mp4").as_deref(), Some("done/x.mp4"));
        assert_eq!(file.key_for("other.mp4"), None);
        for (prefix, key) in [("hls/", "hls/a/1.ts"), ("hls", "hls/a/1.ts"), ("", "a/1.ts")] {
            let target = OutputTarget::Folder { prefix: prefix.into() };
            assert_eq!(target.key_for("a/1.ts").as_deref(), Some(key));
        }
    }
}
