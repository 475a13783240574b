//! Objects that arrive in a folder: once for each version, never half-written, none missed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use telecine_domain::factory::ArrivedObject;
use telecine_domain::id::StoreId;
use telecine_domain::store::Provider;
use telecine_domain::time::Timestamp;
use telecine_embedded::{LocalWatcher, WatchSettings};
use telecine_stores::{FolderStore, OpenedStore, StoreSecret, open};
use tokio::sync::mpsc;
use tokio::time::timeout;

const QUICK: WatchSettings =
    WatchSettings { settle: Duration::from_millis(400), reconcile: Duration::from_millis(1500) };
/// So long that only events and the first listing find anything.
const EVENTS_ONLY: WatchSettings =
    WatchSettings { settle: Duration::from_millis(400), reconcile: Duration::from_secs(3600) };

fn opened(folder: &Path) -> FolderStore {
    let provider = Provider::Local { folder: folder.to_str().unwrap().to_owned() };
    match open(&provider, &StoreSecret::None).unwrap() {
        OpenedStore::Folder(folder) => folder,
        OpenedStore::Objects(_) => panic!("a folder was asked for"),
    }
}

fn watch(folder: &Path, settings: WatchSettings) -> (LocalWatcher, mpsc::Receiver<ArrivedObject>) {
    let (arrivals, arrived) = mpsc::channel(16);
    let store = StoreId::new(Timestamp::from_millis(1), 1);
    (LocalWatcher::start(store, opened(folder), settings, arrivals), arrived)
}

async fn next(arrived: &mut mpsc::Receiver<ArrivedObject>) -> ArrivedObject {
    timeout(Duration::from_secs(10), arrived.recv()).await.expect("an arrival within ten seconds").unwrap()
}

async fn nothing_for(arrived: &mut mpsc::Receiver<ArrivedObject>, time: Duration) {
    if let Ok(more) = timeout(time, arrived.recv()).await {
        panic!("an arrival too many: {more:?}");
    }
}

async fn keys(arrived: &mut mpsc::Receiver<ArrivedObject>, count: usize) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for _ in 0..count {
        keys.insert(next(arrived).await.location.key.to_string());
    }
    keys
}

/// Long enough for the first listing and the system's watch.
async fn settled_in() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_writer_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), QUICK);
    settled_in().await;
    let mut file = File::create(folder.path().join("slow.mov")).unwrap();
    for _ in 0..4 {
        file.write_all(b"part").unwrap();
        // Longer than it takes to settle, and listings pass meanwhile.
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert!(arrived.try_recv().is_err(), "told while it was being written");
    }
    drop(file);
    let object = next(&mut arrived).await;
    assert_eq!((object.location.key.as_str(), object.version.size_bytes), ("slow.mov", 16));
    let version = OpenedStore::Folder(opened(folder.path())).head(&object.location.key).await.unwrap();
    assert_eq!(version, Some(object.version), "the version that a job would pin");
    nothing_for(&mut arrived, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_appears_without_a_close_arrives_when_it_stands_still() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("whole.mov"), "whole").unwrap();
    let mut writer = File::create(outside.path().join("part.mov")).unwrap();
    writer.write_all(b"part").unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), EVENTS_ONLY);
    settled_in().await;
    std::fs::hard_link(outside.path().join("whole.mov"), folder.path().join("link.mov")).unwrap();
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "link.mov");

    // Cut by name: nothing is opened, so nothing is closed.
    cut(&folder.path().join("link.mov"), 2);
    let object = next(&mut arrived).await;
    assert_eq!((object.location.key.as_str(), object.version.size_bytes), ("link.mov", 2));

    // A link to a file that is still open for writing, under a name that is not watched.
    std::fs::hard_link(outside.path().join("part.mov"), folder.path().join("part.mov")).unwrap();
    nothing_for(&mut arrived, Duration::from_millis(1500)).await;
    writer.write_all(b" two").unwrap();
    nothing_for(&mut arrived, Duration::from_millis(1500)).await;
    drop(writer);
    let object = next(&mut arrived).await;
    assert_eq!((object.location.key.as_str(), object.version.size_bytes), ("part.mov", 8));
    nothing_for(&mut arrived, Duration::from_millis(1500)).await;
}

/// `truncate(2)`.
fn cut(path: &Path, size: i64) {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a string that ends with a zero.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), size) }, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rename_into_place_is_an_arrival() {
    let outside = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), EVENTS_ONLY);
    settled_in().await;
    std::fs::write(outside.path().join("a"), "from elsewhere").unwrap();
    std::fs::rename(outside.path().join("a"), folder.path().join("b.mov")).unwrap();
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "b.mov");
    std::fs::write(folder.path().join(".telecine-writing-1"), "hidden").unwrap();
    std::fs::rename(folder.path().join(".telecine-writing-1"), folder.path().join("c.mov")).unwrap();
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "c.mov");
    nothing_for(&mut arrived, Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_files_at_once_all_arrive_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), QUICK);
    settled_in().await;
    let count = 1500;
    for n in 0..count {
        let sub = folder.path().join(format!("d{}", n % 7));
        std::fs::create_dir_all(&sub).unwrap();
        std::fs::write(sub.join(format!("{n}.mov")), "x").unwrap();
    }
    assert_eq!(keys(&mut arrived, count).await.len(), count);
    nothing_for(&mut arrived, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_and_hidden_names() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), QUICK);
    settled_in().await;
    let names = ["new\nline.mov", "q\"'`$(x).mov", "100%2F.mov", " s ", "é漢.mov"];
    for name in names {
        std::fs::write(folder.path().join(name), "x").unwrap();
    }
    std::fs::write(folder.path().join(".telecine-upload-1"), "x").unwrap();
    std::fs::create_dir(folder.path().join(".telecine-d")).unwrap();
    std::fs::write(folder.path().join(".telecine-d/a"), "x").unwrap();
    std::fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe.mov")), "x").unwrap();
    assert_eq!(keys(&mut arrived, names.len()).await, names.map(str::to_owned).into());
    nothing_for(&mut arrived, Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_is_found_and_a_folder_moved_in_too() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("before.mov"), "x").unwrap();
    let (_watcher, mut arrived) = watch(folder.path(), EVENTS_ONLY);
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "before.mov");
    std::fs::create_dir_all(outside.path().join("reel/deep")).unwrap();
    std::fs::write(outside.path().join("reel/1.mov"), "x").unwrap();
    std::fs::write(outside.path().join("reel/deep/2.mov"), "x").unwrap();
    std::fs::rename(outside.path().join("reel"), folder.path().join("reel")).unwrap();
    let found = keys(&mut arrived, 2).await;
    assert_eq!(found, ["reel/1.mov", "reel/deep/2.mov"].map(str::to_owned).into());
    // The moved folder is watched too, and a rename of it gives its files new keys.
    std::fs::write(folder.path().join("reel/deep/3.mov"), "x").unwrap();
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "reel/deep/3.mov");
    std::fs::rename(folder.path().join("reel"), folder.path().join("roll")).unwrap();
    assert_eq!(keys(&mut arrived, 3).await.len(), 3);
    nothing_for(&mut arrived, Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_version_is_told_once_and_a_new_one_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mov");
    let (watcher, mut arrived) = watch(folder.path(), QUICK);
    settled_in().await;
    std::fs::write(&path, "one").unwrap();
    let first = next(&mut arrived).await;
    // Opened for writing and closed unchanged: the same version.
    drop(File::options().append(true).open(&path).unwrap());
    nothing_for(&mut arrived, Duration::from_secs(2)).await;
    std::fs::write(&path, "two!").unwrap();
    let second = next(&mut arrived).await;
    assert_ne!(first.version, second.version);
    assert_eq!(second.version.size_bytes, 4);
    watcher.tell_again(&second.location.key);
    assert_eq!(next(&mut arrived).await, second, "an arrival that could not be recorded comes again");
    watcher.stop().await;
    std::fs::write(&path, "three").unwrap();
    assert!(timeout(Duration::from_secs(1), arrived.recv()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_told_again_when_somebody_asks_but_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mov", "b.mov"] {
        std::fs::write(folder.path().join(name), "media").unwrap();
    }
    let (watcher, mut arrived) = watch(folder.path(), EVENTS_ONLY);
    assert_eq!(keys(&mut arrived, 2).await.len(), 2);
    settled_in().await;
    let mut half = File::create(folder.path().join("c.mov")).unwrap();
    half.write_all(b"half").unwrap();
    settled_in().await;
    watcher.tell_everything_again();
    let again = keys(&mut arrived, 2).await;
    assert_eq!(again, BTreeSet::from(["a.mov".to_owned(), "b.mov".to_owned()]));
    nothing_for(&mut arrived, Duration::from_secs(1)).await;
    drop(half);
    assert_eq!(next(&mut arrived).await.location.key.as_str(), "c.mov");
    watcher.stop().await;
}
