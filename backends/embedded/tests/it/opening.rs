//! A data folder: one process at a time, everything found again, clear words when something is missing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use telecine_core::ports::keys::Keys;
use telecine_core::ports::table::{Key, Table};
use telecine_embedded::{
    AgentCommand, Embedded, EmbeddedConfig, EmbeddedError, KeyFileError, NewAgent, Provisioner,
};

use crate::new_row;

struct Nothing;

#[async_trait]
impl Provisioner for Nothing {
    async fn provision(&self, _agent: &NewAgent) -> Result<String, String> {
        Ok(String::new())
    }

    async fn clear(&self, _agent: &NewAgent) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) fn config(folder: &Path) -> EmbeddedConfig {
    EmbeddedConfig {
        folder: folder.to_owned(),
        pools: Vec::new(),
        regions: Vec::new(),
        agent: AgentCommand { program: "/bin/false".into(), arguments: Vec::new() },
        provisioner: Arc::new(Nothing),
        drain_limit: Duration::from_secs(5),
        leave_limit: Duration::from_secs(600),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_found_again_and_is_one_processs_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made/on the way");
    let first = Embedded::open(config(&folder)).await.unwrap();
    first.table.transact(new_row("p", "a", "x")).await.unwrap();
    let sealed = first.keys.seal("store:1", b"secret").await.unwrap();
    let key = "logs/1".parse().unwrap();
    first.system.put(&key, Bytes::from_static(b"log")).await.unwrap();

    let error = Embedded::open(config(&folder)).await.err().unwrap().to_string();
    assert!(error.contains(&std::process::id().to_string()) && error.contains("on the way"), "{error}");

    first.close().await;
    drop(first);
    let second = Embedded::open(config(&folder)).await.unwrap();
    assert!(second.table.get(&Key::new("p", "a")).await.unwrap().is_some());
    assert_eq!(second.keys.open("store:1", &sealed).await.unwrap().as_slice(), b"secret");
    assert_eq!(second.system.read_all(&key, 10).await.unwrap(), "log");
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_folder_is_no_store() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let embedded = Embedded::open(config(&folder)).await.unwrap();
    let expected = folder.canonicalize().unwrap();
    assert_eq!(embedded.backend().forbidden_folders.as_ref(), [expected]);
    embedded.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_key_is_not_silently_replaced() {
    let folder = tempfile::tempdir().unwrap();
    drop(Embedded::open(config(folder.path())).await.unwrap());
    std::fs::remove_file(folder.path().join("master.key")).unwrap();
    let error = open_soon(folder.path()).await;
    assert!(matches!(error, EmbeddedError::KeyFile(KeyFileError::Missing { .. })), "{error}");
    assert!(error.to_string().contains("backup"), "{error}");
}

/// A value that was dropped and not closed ends in the background; until then the folder is in use.
async fn open_soon(folder: &Path) -> EmbeddedError {
    loop {
        match Embedded::open(config(folder)).await.err().unwrap() {
            EmbeddedError::Lock(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            other => return other,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn others_may_not_look_into_the_folder() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("data");
    let opened = Embedded::open(config(&folder)).await.unwrap();
    for path in [folder.clone(), folder.join("agents"), folder.join("system"), folder.join("master.key")] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_open_to_others_is_closed_or_refused() {
    use std::fs::{Permissions, metadata, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;
    for (file, ours) in [(None, true), (Some("telecine.toml"), true), (Some("diary.txt"), false)] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("data");
        std::fs::create_dir(&folder).unwrap();
        if let Some(file) = file {
            write(folder.join(file), "").unwrap();
        }
        set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let mode = || metadata(&folder).unwrap().permissions().mode() & 0o777;
        match Embedded::open(config(&folder)).await {
            Ok(opened) => {
                assert!(ours && mode() == 0o700, "{file:?}: {:o}", mode());
                opened.close().await;
                drop(opened);
                // What was made open by hand afterwards is closed again.
                set_permissions(&folder, Permissions::from_mode(0o750)).unwrap();
                Embedded::open(config(&folder)).await.unwrap().close().await;
                assert_eq!(mode(), 0o700);
            }
            Err(error) => {
                let told = error.to_string();
                assert!(!ours && told.contains("chmod 700") && told.contains("755"), "{file:?}: {told}");
                assert_eq!((mode(), folder.join("telecine.db").exists()), (0o755, false), "left as it was");
            }
        }
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let error = Embedded::open(config(Path::new("/proc/none/here"))).await.err().unwrap();
    assert!(error.to_string().contains("/proc/none/here"), "{error}");
}
