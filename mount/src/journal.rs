//! The journal: every hidden name and upload id, on disk before the first byte goes there, so that whoever finds the
//! attempt's folder after a crash can take everything away. One JSON object per line; a torn last line is ignored.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Something of ours that may exist in a store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    /// A hidden file in the root of a folder store.
    HiddenFile {
        /// The output that it belongs to.
        output: String,
        /// Its name.
        hidden_key: String,
    },
    /// An open multipart upload.
    Upload {
        /// The output that it belongs to.
        output: String,
        /// The key it would be completed to.
        key: String,
        /// The store's id.
        upload_id: String,
    },
}

/// The open journal of one mount.
#[derive(Debug)]
pub(crate) struct Journal(Mutex<File>);

impl Journal {
    /// Opens or creates the journal and makes its own name durable.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        if text.last().is_some_and(|byte| *byte != b'\n') {
            file.write_all(b"\n")?;
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self(Mutex::new(file)))
    }

    /// Records `entry`; when this returns it survives a power cut.
    pub(crate) fn append(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)?;
        file.sync_data()
    }
}

/// All entries of the journal at `path`; none when there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Entry>> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(read(&path).unwrap().is_empty());
        let hidden = Entry::HiddenFile { output: "main".into(), hidden_key: ".telecine-upload-a-0".into() };
        let upload = Entry::Upload { output: "main".into(), key: "a\n\"b".into(), upload_id: "id".into() };
        Journal::open(&path).unwrap().append(&hidden).unwrap();
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"hidden_file\":{\"out").unwrap();
        assert_eq!(read(&path).unwrap(), std::slice::from_ref(&hidden));
        Journal::open(&path).unwrap().append(&upload).unwrap();
        assert_eq!(read(&path).unwrap(), [hidden, upload]);
    }
}
