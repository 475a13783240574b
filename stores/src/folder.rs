//! A local folder as a store.
//!
//! The folder is held open and every name is resolved beneath it: a symbolic link, however it is nested, leads nowhere
//! else. An object appears whole: it is written under a hidden name beside its place, synced, renamed, and the folder is
//! synced. Folders are made as keys need them and are never removed.

mod listing;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use cap_std::ambient_authority;
use cap_std::fs::{Dir, File, Metadata, MetadataExt, OpenOptions, OpenOptionsExt};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use telecine_domain::location::{HIDDEN_PREFIX, ObjectKey, ObjectVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::{Action, StoreError, StoreErrorClass, class_of_io};
use crate::open::OpenError;
use crate::{ObjectEntry, ObjectRead};

/// Longest file name of the file systems we run on, in bytes.
const MAX_NAME_BYTES: usize = 255;
const CHUNK_BYTES: usize = 256 * 1024;
/// Names of files that are being written begin with this.
const WRITING_PREFIX: &str = ".telecine-writing-";

/// An opened folder. Clones share the descriptor.
#[derive(Clone, Debug)]
pub struct FolderStore {
    /// Its path, for messages and for watching. Files are reached through `dir`.
    pub root: PathBuf,
    /// The folder itself.
    pub dir: Arc<Dir>,
    name: Arc<str>,
}

/// The etag of a file: `inode-mtime-size` in hexadecimal, the modification time in nanoseconds (SPEC 2.3).
pub fn folder_etag(meta: &Metadata) -> String {
    let nanoseconds = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    format!("{:x}-{nanoseconds:x}-{:x}", meta.ino(), meta.len())
}

fn version_of(meta: &Metadata) -> ObjectVersion {
    ObjectVersion { etag: folder_etag(meta), version_id: None, size_bytes: meta.len() }
}

impl FolderStore {
    pub(crate) fn open(root: &Path) -> Result<Self, OpenError> {
        let folder = root.to_string_lossy().into_owned();
        if !root.is_absolute() || folder.contains('\0') {
            return Err(OpenError::FolderNotAbsolute { folder });
        }
        match Dir::open_ambient_dir(root, ambient_authority()) {
            Ok(dir) => Ok(Self {
                name: format!("folder {folder:?}").into(),
                root: root.to_owned(),
                dir: Arc::new(dir),
            }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => OpenError::FolderMissing { folder },
                io::ErrorKind::NotADirectory => OpenError::NotAFolder { folder },
                _ => OpenError::Folder { folder, problem: error.to_string() },
            }),
        }
    }

    /// Where it is, for people: `folder "/media"`.
    pub fn location(&self) -> &str {
        &self.name
    }

    pub(crate) async fn head(&self, key: &ObjectKey) -> Result<Option<ObjectVersion>, StoreError> {
        let path = self.file_path(Action::Head, key)?;
        let found = self.blocking(move |dir| file_version(dir, &path)).await;
        found.map_err(|error| self.failed(Action::Head, key.as_str(), &error))
    }

    pub(crate) async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ObjectEntry>, StoreError> {
        let (asked, after) = (prefix.to_owned(), after.map(str::to_owned));
        let listed = self
            .blocking(move |dir| {
                still_there(dir)?;
                listing::list(dir, &asked, after.as_deref(), limit)
            })
            .await;
        listed.map_err(|error| self.failed(Action::List, prefix, &error))
    }

    pub(crate) async fn read(&self, key: &ObjectKey) -> Result<ObjectRead, StoreError> {
        let path = self.file_path(Action::Read, key)?;
        let opened = self.blocking(move |dir| open_to_read(dir, &path)).await;
        let (file, version) = opened.map_err(|error| self.failed(Action::Read, key.as_str(), &error))?;
        let file = tokio::fs::File::from_std(file.into_std());
        let (folder, key) = (self.clone(), key.clone());
        let stream = stream::try_unfold(file, |mut file| async move {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let read = file.read_buf(&mut chunk).await?;
            Ok((read > 0).then(|| (chunk.freeze(), file)))
        });
        let stream = stream.map(move |chunk: io::Result<Bytes>| {
            chunk.map_err(|error| folder.failed(Action::Read, key.as_str(), &error))
        });
        Ok(ObjectRead { version, stream: stream.boxed() })
    }

    pub(crate) async fn put(
        &self,
        key: &ObjectKey,
        stream: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<ObjectVersion, StoreError> {
        let path = self.file_path(Action::Write, key)?;
        self.write_and_rename(path, stream)
            .await
            .map_err(|error| self.failed(Action::Write, key.as_str(), &error))
    }

    async fn write_and_rename(
        &self,
        path: PathBuf,
        mut stream: BoxStream<'static, io::Result<Bytes>>,
    ) -> io::Result<ObjectVersion> {
        let shared = Arc::clone(&self.dir);
        let (file, unfinished) = self.blocking(move |_| Unfinished::create(shared, path)).await?;
        let mut file = tokio::fs::File::from_std(file.into_std());
        while let Some(chunk) = stream.next().await {
            file.write_all(&chunk?).await?;
        }
        file.flush().await?;
        let file = File::from_std(file.into_std().await);
        self.blocking(move |_| unfinished.finish(&file)).await
    }

    pub(crate) async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let path = self.file_path(Action::Delete, key)?;
        let removed = self.blocking(move |dir| remove(dir, &path)).await;
        removed.map_err(|error| self.failed(Action::Delete, key.as_str(), &error))
    }

    /// Removes files that were being written when their writer died and that nobody has written to for `older_than`;
    /// says how many.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub async fn remove_abandoned(&self, older_than: Duration) -> Result<usize, StoreError> {
        let removed =
            self.blocking(move |dir| listing::remove_abandoned(dir, WRITING_PREFIX, older_than)).await;
        removed.map_err(|error| self.failed(Action::Delete, "abandoned files", &error))
    }

    /// The path beneath the folder, if a file system can hold it.
    fn file_path(&self, action: Action, key: &ObjectKey) -> Result<PathBuf, StoreError> {
        let too_long = key.as_str().split('/').find(|name| name.len() > MAX_NAME_BYTES);
        if let Some(name) = too_long {
            let shown: String = name.chars().take(40).collect();
            let problem = format!(
                "the part {shown:?}… of the key has {} bytes, and a file name may have at most {MAX_NAME_BYTES}",
                name.len()
            );
            return Err(self.error(action, key.as_str(), StoreErrorClass::Invalid, problem));
        }
        Ok(PathBuf::from(key.as_str()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Dir) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let dir = Arc::clone(&self.dir);
        let done = tokio::task::spawn_blocking(move || work(&dir)).await;
        done.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
    }

    fn failed(&self, action: Action, subject: &str, error: &io::Error) -> StoreError {
        let class = class_of_io(error);
        let problem = match class {
            StoreErrorClass::NoSpace => {
                format!("{error}; free space on the file system of {}", self.root.display())
            }
            _ => error.to_string(),
        };
        self.error(action, subject, class, problem)
    }

    fn error(&self, action: Action, subject: &str, class: StoreErrorClass, problem: String) -> StoreError {
        StoreError { class, store: self.name.to_string(), subject: format!("{subject:?}"), action, problem }
    }
}

/// A parent that is a file means that there is no such object.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A folder that was removed while it is held open lists as an empty one, which it is not.
fn still_there(dir: &Dir) -> io::Result<()> {
    match dir.dir_metadata()?.nlink() {
        0 => Err(io::Error::new(io::ErrorKind::NotFound, "the folder was removed")),
        _ => Ok(()),
    }
}

fn file_version(dir: &Dir, path: &Path) -> io::Result<Option<ObjectVersion>> {
    match dir.metadata(path) {
        Ok(meta) => Ok(meta.is_file().then(|| version_of(&meta))),
        Err(error) if is_absent(&error) => still_there(dir).map(|()| None),
        Err(error) => Err(error),
    }
}

/// Opens without waiting: a named pipe in the folder must not hold a thread for ever.
fn open_to_read(dir: &Dir, path: &Path) -> io::Result<(File, ObjectVersion)> {
    let without_waiting = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).expect("a small flag");
    let file = dir.open_with(path, OpenOptions::new().read(true).custom_flags(without_waiting))?;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok((file, version_of(&meta)))
}

fn remove(dir: &Dir, path: &Path) -> io::Result<()> {
    match dir.remove_file(path) {
        Ok(()) => sync_folder(dir, parent_of(path)),
        Err(error) if is_absent(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Opened as a file: a `Dir` is held with `O_PATH`, which cannot be synced.
fn sync_folder(dir: &Dir, folder: &Path) -> io::Result<()> {
    dir.open(folder)?.sync_all()
}

/// Makes what is missing of `folder`, durably.
fn make_folders(dir: &Dir, folder: &Path) -> io::Result<()> {
    let mut made = PathBuf::new();
    for name in folder.components() {
        let above = if made.as_os_str().is_empty() { PathBuf::from(".") } else { made.clone() };
        made.push(name);
        match dir.create_dir(&made) {
            Ok(()) => sync_folder(dir, &above)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A hidden file that is removed unless it is finished.
struct Unfinished {
    dir: Arc<Dir>,
    hidden: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl Unfinished {
    fn create(dir: Arc<Dir>, target: PathBuf) -> io::Result<(File, Self)> {
        let parent = parent_of(&target).to_owned();
        if parent != Path::new(".") {
            make_folders(&dir, &parent)?;
        }
        loop {
            let hidden = parent.join(hidden_name());
            match dir.open_with(&hidden, OpenOptions::new().write(true).create_new(true)) {
                Ok(file) => return Ok((file, Self { dir, hidden, target, finished: false })),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn finish(mut self, file: &File) -> io::Result<ObjectVersion> {
        file.sync_all()?;
        let version = version_of(&file.metadata()?);
        self.dir.rename(&self.hidden, &self.dir, &self.target)?;
        self.finished = true;
        sync_folder(&self.dir, parent_of(&self.target))?;
        Ok(version)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // The write has failed already and says why; what cannot be removed now, `remove_abandoned` removes later.
            let _ = self.dir.remove_file(&self.hidden);
        }
    }
}

fn hidden_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    debug_assert!(WRITING_PREFIX.starts_with(HIDDEN_PREFIX));
    format!("{WRITING_PREFIX}{now:x}-{:x}-{count:x}", std::process::id())
}
