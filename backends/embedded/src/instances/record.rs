//! What should be of each instance, on disk: `agents/<instance>/instance.json`.
//!
//! Written whole (beside, synced, renamed), so that a crash leaves the old one or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use telecine_domain::id::{InstanceId, PoolName};

use super::process::Started;

const FILE: &str = "instance.json";

/// Whether an instance should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wanted {
    Running,
    Retired,
}

/// The record of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) instance: InstanceId,
    pub(super) pool: PoolName,
    pub(super) wanted: Wanted,
    /// The process that was started last.
    pub(super) started: Option<Started>,
    /// When it was asked for; unknown for one of an older version.
    #[serde(default)]
    pub(super) launched_at_millis: Option<u64>,
    /// When it is taken away, whatever runs there; that was announced.
    #[serde(default)]
    pub(super) taken_at_millis: Option<u64>,
}

pub(super) fn folder_of(agents: &Path, instance: InstanceId) -> PathBuf {
    agents.join(instance.to_string())
}

pub(super) fn read_all(agents: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(agents)? {
        let folder = entry?.path();
        let name = folder.file_name().and_then(|name| name.to_str());
        // Folders of other names are somebody's own.
        let Some(instance) = name.and_then(|name| name.parse::<InstanceId>().ok()) else { continue };
        match read(&folder.join(FILE)) {
            Ok(record) if record.instance == instance => records.push(record),
            Ok(record) => {
                tracing::error!(%instance, found = %record.instance, "the record of an instance is another's; it is left alone");
            }
            // Made, but never recorded, or what is left of a removal: nothing runs in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Err(error) = remove(agents, instance) {
                    tracing::warn!(%instance, %error, "the folder of no instance stays for now");
                }
            }
            Err(error) => {
                tracing::error!(%instance, %error, "the record of an instance is damaged; it is left alone")
            }
        }
    }
    Ok(records)
}

fn read(file: &Path) -> io::Result<Record> {
    let text = std::fs::read(file)?;
    serde_json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

pub(super) fn write(agents: &Path, record: &Record) -> io::Result<()> {
    let folder = folder_of(agents, record.instance);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let text = serde_json::to_vec_pretty(record).expect("a record is JSON");
    write_private(&folder.join(FILE), &text)?;
    File::open(agents)?.sync_all()
}

/// Replaces a file that only its owner may read, durably.
pub(super) fn write_private(file: &Path, text: &[u8]) -> io::Result<()> {
    let unfinished = file.with_extension("unfinished");
    let mut written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    written.write_all(text)?;
    written.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    File::open(file.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Takes away a retired instance: the record first, so that what is left of a crash is nobody's.
pub(super) fn remove(agents: &Path, instance: InstanceId) -> io::Result<()> {
    let folder = folder_of(agents, instance);
    for attempt in [std::fs::remove_file(folder.join(FILE)), std::fs::remove_dir_all(&folder)] {
        match attempt {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
