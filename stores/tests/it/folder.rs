//! Local folders: hostile names, links, whole or nothing.

use std::os::unix::fs::{MetadataExt, symlink};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use telecine_domain::location::ObjectKey;
use telecine_domain::store::{Permission, Provider};
use telecine_domain::time::Timestamp;
use telecine_stores::{OpenError, OpenedStore, StoreErrorClass, StoreSecret, open, validate};

fn provider(folder: &std::path::Path) -> Provider {
    Provider::Local { folder: folder.to_str().unwrap().to_owned() }
}

fn opened(folder: &std::path::Path) -> OpenedStore {
    open(&provider(folder), &StoreSecret::None).unwrap()
}

fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn keys(store: &OpenedStore, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let entries = store.list(prefix, after, limit).await.unwrap();
    entries.into_iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test]
async fn hostile_names_come_back_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let longest = "é".repeat(127) + "x";
    let names = [
        "new\nline",
        "\"q\" 'q' `q`",
        "100%2F..%00",
        " spaces ",
        "a/b c/d#?&+.mov",
        "\u{1}\u{7f}\r\t",
        "-rf",
        "..x",
        "漢字/é",
        "\u{10FFFD}0a",
        longest.as_str(),
    ];
    for name in names {
        let put = store.put(&key(name), Bytes::from(name.to_owned())).await.unwrap();
        assert_eq!(store.head(&key(name)).await.unwrap().as_ref(), Some(&put), "{name:?}");
        assert_eq!(store.read_all(&key(name), 1024).await.unwrap(), name.as_bytes());
    }
    let mut sorted = names.map(str::to_owned);
    sorted.sort();
    assert_eq!(keys(&store, "", None, 100).await, sorted);
    for name in names {
        store.delete(&key(name)).await.unwrap();
        store.delete(&key(name)).await.unwrap();
    }
    assert!(keys(&store, "", None, 100).await.is_empty());
}

#[tokio::test]
async fn a_name_no_file_system_holds_is_refused_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let error = store.put(&key(&format!("a/{}", "x".repeat(256))), bytes("x")).await.unwrap_err();
    assert_eq!(error.class, StoreErrorClass::Invalid);
    assert!(error.to_string().contains("256 bytes") && error.to_string().contains("255"), "{error}");
    assert!(!folder.path().join("a").exists());
}

#[tokio::test]
async fn the_etag_is_inode_time_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let version = store.put(&key("a.mov"), bytes("seven b")).await.unwrap();
    let meta = std::fs::metadata(folder.path().join("a.mov")).unwrap();
    let nanoseconds = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    assert_eq!(version.etag, format!("{:x}-{nanoseconds:x}-7", meta.ino()));
    assert_eq!(version.size_bytes, 7);
    let again = store.put(&key("a.mov"), bytes("seven c")).await.unwrap();
    assert_ne!(version.etag, again.etag);
}

#[tokio::test]
async fn no_link_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    symlink(outside.path().join("secret"), folder.path().join("file")).unwrap();
    symlink(outside.path(), folder.path().join("dir")).unwrap();
    symlink("/", folder.path().join("root")).unwrap();
    symlink(".", folder.path().join("circle")).unwrap();
    symlink("itself", folder.path().join("itself")).unwrap();
    std::fs::write(folder.path().join("real"), "real").unwrap();
    symlink("real", folder.path().join("inside")).unwrap();
    for name in ["file", "dir/secret", "root/etc/passwd", "itself"] {
        assert!(store.read_all(&key(name), 9999).await.is_err(), "{name}");
        assert!(!matches!(store.head(&key(name)).await, Ok(Some(_))), "{name}");
    }
    assert!(store.put(&key("dir/new"), bytes("x")).await.is_err());
    assert!(store.delete(&key("dir/secret")).await.is_err());
    assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(store.read_all(&key("inside"), 10).await.unwrap(), "real");
    assert_eq!(keys(&store, "", None, 10).await, ["inside", "real"]);
}

#[tokio::test]
async fn a_put_replaces_a_link_and_not_what_it_points_to() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("target"), "kept").unwrap();
    let folder = tempfile::tempdir().unwrap();
    symlink(outside.path().join("target"), folder.path().join("a")).unwrap();
    opened(folder.path()).put(&key("a"), bytes("new")).await.unwrap();
    assert_eq!(std::fs::read(outside.path().join("target")).unwrap(), b"kept");
    assert_eq!(std::fs::read(folder.path().join("a")).unwrap(), b"new");
}

#[tokio::test]
async fn our_own_names_are_hidden_and_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    std::fs::create_dir(folder.path().join(".telecine-x")).unwrap();
    std::fs::write(folder.path().join(".telecine-x/a"), "a").unwrap();
    std::fs::write(folder.path().join(".telecine-upload-1"), "a").unwrap();
    std::fs::write(folder.path().join(".telecinex"), "a").unwrap();
    assert_eq!(keys(&store, "", None, 10).await, [".telecinex"]);
    for name in [".telecine-x/a", "a/.telecine-b", ".telecine-upload-1", "folder/"] {
        let error = store.put(&key(name), bytes("x")).await.unwrap_err();
        assert_eq!(error.class, StoreErrorClass::Invalid, "{error}");
        assert!(store.read(&key(name)).await.is_err());
        assert!(store.delete(&key(name)).await.is_err());
    }
}

#[tokio::test]
async fn what_is_no_file_is_no_object() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    std::fs::create_dir(folder.path().join("d")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.path().join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    for name in ["d", "pipe"] {
        assert_eq!(store.head(&key(name)).await.unwrap(), None);
        let error = store.read(&key(name)).await.err().unwrap();
        assert_eq!(error.class, StoreErrorClass::Invalid, "{error}");
    }
    assert!(keys(&store, "", None, 10).await.is_empty());
    store.put(&key("file"), bytes("x")).await.unwrap();
    assert_eq!(store.head(&key("file/below")).await.unwrap(), None);
    assert_eq!(store.put(&key("d"), bytes("x")).await.unwrap_err().class, StoreErrorClass::Invalid);
    assert!(store.put(&key("file/below"), bytes("x")).await.is_err());
    assert_eq!(store.read(&key("none")).await.err().unwrap().class, StoreErrorClass::NotFound);
}

#[tokio::test]
async fn pages_follow_the_bytes_of_whole_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    let mut all = ["a", "a-b", "a/b", "a/b-c", "a/b/c/d", "a0", "b/z", "b0/a", "c"].map(str::to_owned);
    for name in all.iter().filter(|name| !matches!(name.as_str(), "a" | "a/b")) {
        store.put(&key(name), bytes("x")).await.unwrap();
    }
    all.sort();
    let present: Vec<_> = all.into_iter().filter(|name| !matches!(name.as_str(), "a" | "a/b")).collect();
    for limit in 1..=present.len() {
        let mut seen: Vec<String> = Vec::new();
        loop {
            let page = keys(&store, "", seen.last().map(String::as_str), limit).await;
            let end = page.len() < limit;
            seen.extend(page);
            if end {
                break;
            }
        }
        assert_eq!(seen, present, "limit {limit}");
    }
    assert_eq!(keys(&store, "a/b", None, 10).await, ["a/b-c", "a/b/c/d"]);
    assert_eq!(keys(&store, "a/", Some("a/b/"), 10).await, ["a/b/c/d"]);
    assert_eq!(keys(&store, "b", Some("b/z"), 10).await, ["b0/a"]);
    assert!(keys(&store, "", None, 0).await.is_empty());
}

#[tokio::test]
async fn a_write_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = opened(folder.path());
    store.put(&key("a"), bytes("before")).await.unwrap();
    let torn = stream::iter([Ok(bytes("half")), Err(std::io::Error::other("the sender went away"))]);
    let error = store.put_stream(&key("a"), torn.boxed()).await.unwrap_err();
    assert!(error.to_string().contains("the sender went away"), "{error}");
    assert_eq!(store.read_all(&key("a"), 10).await.unwrap(), "before");
    let endless = stream::pending::<std::io::Result<Bytes>>();
    let dropped =
        tokio::time::timeout(Duration::from_millis(50), store.put_stream(&key("a"), endless.boxed())).await;
    assert!(dropped.is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "the hidden file is gone");
}

#[tokio::test]
async fn what_a_dead_writer_left_is_removed_later() {
    let folder = tempfile::tempdir().unwrap();
    let OpenedStore::Folder(store) = opened(folder.path()) else { panic!("a folder") };
    std::fs::create_dir(folder.path().join("d")).unwrap();
    for name in [".telecine-writing-1", "d/.telecine-writing-2", ".telecine-upload-3", "d/mine"] {
        std::fs::write(folder.path().join(name), "x").unwrap();
    }
    assert_eq!(store.remove_abandoned(Duration::from_secs(3600)).await.unwrap(), 0);
    assert_eq!(store.remove_abandoned(Duration::ZERO).await.unwrap(), 2);
    assert!(folder.path().join(".telecine-upload-3").exists() && folder.path().join("d/mine").exists());
}

#[tokio::test]
async fn validate_tries_a_folder_and_names_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let now = Timestamp::from_millis(1);
    let good = validate(&provider(folder.path()), &StoreSecret::None, now).await;
    assert!(good.checks.iter().all(|check| check.problem.is_none()), "{good:?}");
    assert_eq!(good.checks.len(), 4);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

    let missing = folder.path().join("missing");
    let bad = validate(&provider(&missing), &StoreSecret::None, now).await;
    assert_eq!(bad.checks.len(), 4);
    for check in &bad.checks {
        assert!(check.problem.as_ref().unwrap().contains(missing.to_str().unwrap()), "{check:?}");
    }
    assert!(!bad.allows(Permission::Read));

    let store = opened(folder.path());
    std::fs::remove_dir(folder.path()).unwrap();
    let gone = store.validate(now).await;
    assert!(gone.checks.iter().all(|check| check.problem.is_some()), "{gone:?}");
}

#[test]
fn folders_that_cannot_be_opened_say_why() {
    let open_path = |folder: &str| open(&Provider::Local { folder: folder.to_owned() }, &StoreSecret::None);
    assert!(matches!(open_path("relative"), Err(OpenError::FolderNotAbsolute { .. })));
    assert!(matches!(open_path("/none/at/all"), Err(OpenError::FolderMissing { .. })));
    assert!(matches!(open_path("/etc/passwd"), Err(OpenError::NotAFolder { .. })));
    assert!(matches!(open_path("/a\0b"), Err(OpenError::FolderNotAbsolute { .. })));
}
