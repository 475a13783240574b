//! A full disk: a clear error, nothing acknowledged lost, and work goes on when there is space again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use telecine_core::ports::table::{Key, Table, TableError};
use telecine_domain::store::Provider;
use telecine_embedded::SqliteTable;
use telecine_stores::{StoreErrorClass, StoreSecret};

use crate::{clock, new_row};

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "telecine-test"])
            .arg(folder)
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            telecine_test_support::skip("this machine does not let us mount a tmpfs (root is needed)");
        }
        mounted.then(|| Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn fill(file: &Path) {
    let mut ballast = std::fs::File::create(file).unwrap();
    for size in [64 * 1024, 4096, 1] {
        while ballast.write_all(&vec![1; size]).is_ok() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_on_a_full_disk() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(folder.path()) else { return };
    let file = folder.path().join("t.db");
    let table = SqliteTable::open(&file, clock(), None).unwrap();
    let ballast = folder.path().join("ballast");
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        fill(&ballast);
        let mut refused = 0;
        for n in 0..400 {
            let sort = format!("{round}-{n:04}");
            match table.transact(new_row("p", &sort, &"x".repeat(2000))).await {
                Ok(()) => acknowledged.push(sort),
                Err(TableError::Unavailable(problem)) => {
                    assert!(problem.contains("free space"), "{problem}");
                    assert!(problem.contains(folder.path().to_str().unwrap()), "{problem}");
                    assert_eq!(
                        table.get(&Key::new("p", sort)).await.unwrap(),
                        None,
                        "refused, and yet there"
                    );
                    refused += 1;
                    if refused == 5 {
                        break;
                    }
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(refused, 5, "the disk never filled up");
        for sort in &acknowledged {
            assert!(table.get(&Key::new("p", sort)).await.unwrap().is_some(), "{sort} is lost");
        }
        std::fs::remove_file(&ballast).unwrap();
        let sort = format!("{round}-after");
        table.transact(new_row("p", &sort, "x")).await.expect("there is space again");
        acknowledged.push(sort);
    }
    drop(table);
    let table = SqliteTable::open(&file, clock(), None).unwrap();
    for sort in &acknowledged {
        assert!(
            table.get(&Key::new("p", sort)).await.unwrap().is_some(),
            "{sort} is lost after opening again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_on_a_full_disk_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(folder.path()) else { return };
    let provider = Provider::Local { folder: folder.path().to_str().unwrap().to_owned() };
    let store = telecine_stores::open(&provider, &StoreSecret::None).unwrap();
    let key = "a.mov".parse().unwrap();
    store.put(&key, Bytes::from_static(b"before")).await.unwrap();
    let ballast = folder.path().join("ballast");
    fill(&ballast);
    let error = store.put(&key, Bytes::from(vec![1; 512 * 1024])).await.unwrap_err();
    assert_eq!(error.class, StoreErrorClass::NoSpace, "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    assert_eq!(store.read_all(&key, 10).await.unwrap(), "before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half-written stays");
    std::fs::remove_file(&ballast).unwrap();
    store.put(&key, Bytes::from(vec![1; 512 * 1024])).await.unwrap();
}
