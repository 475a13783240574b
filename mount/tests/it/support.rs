//! A mount for one test: made, served in this process, and taken away whatever happens.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cap_std::fs::Dir;
use telecine_mount::{
    Backing, InputFile, MountPath, MountPlan, MountSession, OutputFolder, OutputTarget, SealError,
    SealedOutputs, Tuning, abort_connection, open_device_and_mount, try_mount, unmount,
};
use tokio::runtime::Runtime;

/// Whether this machine can mount; else the test is skipped.
#[track_caller]
pub fn can_mount() -> bool {
    let folder = tempfile::tempdir().unwrap();
    telecine_test_support::available(try_mount(folder.path(), Duration::from_secs(5))).is_some()
}

/// Folders of one test and the plan it mounts.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub plan: MountPlan,
}

/// A served mount.
pub struct Mounted {
    pub point: PathBuf,
    pub session: Option<MountSession>,
    pub runtime: Arc<Runtime>,
    pub journal: PathBuf,
    pub folder: tempfile::TempDir,
}

pub fn runtime() -> Arc<Runtime> {
    Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

pub fn open_folder(path: &Path) -> Arc<Dir> {
    Arc::new(Dir::open_ambient_dir(path, cap_std::ambient_authority()).unwrap())
}

/// Waits up to 20 s until `holds` does.
pub fn eventually(runtime: &Runtime, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(50)).await });
    }
    panic!("it never came to hold");
}

/// Bytes that compress badly and tell their place.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

impl Bench {
    /// A store folder `store/`, a mount point, a spill, nothing planned yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["store", "m", "spill"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let plan = MountPlan {
            inputs: Vec::new(),
            outputs: Vec::new(),
            uid: 0,
            gid: 0,
            cache_bytes: 64 << 20,
            spill: folder.path().join("spill"),
            spill_bytes: 256 << 20,
            journal: folder.path().join("journal"),
            tuning: Tuning { retry_budget: std::time::Duration::from_secs(5), ..Tuning::default() },
        };
        Self { folder, plan }
    }

    pub fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub fn backing(&self) -> Backing {
        Backing::Folder { dir: open_folder(&self.store()) }
    }

    /// Puts a file into the store folder and plans it as an input of the slot `source`.
    pub fn input(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        std::fs::write(self.store().join(name), bytes).unwrap();
        let dir = open_folder(&self.store());
        let etag = telecine_mount::folder_etag(&dir.metadata(name).unwrap());
        self.plan.inputs.push(InputFile {
            path: MountPath::input("source", name).unwrap(),
            backing: Backing::Folder { dir },
            key: name.to_owned(),
            etag,
            size: bytes.len() as u64,
        });
        self
    }

    /// Plans the output `name` into `backing`.
    pub fn output(&mut self, name: &str, backing: Backing, target: OutputTarget) -> &mut Self {
        let hidden_tag = format!("job_1-{name}");
        self.plan.outputs.push(OutputFolder { name: name.to_owned(), backing, target, hidden_tag });
        self
    }

    /// Plans the folder output `main`, published below `out/` of the store folder.
    pub fn folder_output(&mut self) -> &mut Self {
        let backing = self.backing();
        self.output("main", backing, OutputTarget::Folder { prefix: "out/".into() })
    }

    /// Plans the file output `main`: `outputs/main/<name>` becomes `done/<name>`.
    pub fn file_output(&mut self, backing: Backing, name: &str) -> &mut Self {
        self.output(
            "main",
            backing,
            OutputTarget::File { key: format!("done/{name}"), file_name: name.into() },
        )
    }

    pub fn mount(self, runtime: &Arc<Runtime>) -> Mounted {
        let point = self.folder.path().join("m");
        let device = open_device_and_mount(&point).unwrap();
        let journal = self.plan.journal.clone();
        let session = MountSession::serve(self.plan, device, runtime.handle().clone()).unwrap();
        Mounted { point, session: Some(session), runtime: runtime.clone(), journal, folder: self.folder }
    }
}

impl Mounted {
    pub fn at(&self, path: &str) -> PathBuf {
        self.point.join(path)
    }

    pub fn store(&self, path: &str) -> PathBuf {
        self.folder.path().join("store").join(path)
    }

    pub fn backing(&self) -> Backing {
        Backing::Folder { dir: open_folder(&self.folder.path().join("store")) }
    }

    pub fn session(&self) -> &MountSession {
        self.session.as_ref().unwrap()
    }

    pub fn seal(&self) -> Result<SealedOutputs, SealError> {
        self.runtime.block_on(self.session().seal())
    }

    /// Names in the store's root that begin with the hidden prefix.
    pub fn hidden(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("store")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".telecine-")).collect()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        abort_connection(&self.point).unwrap();
        unmount(&self.point).unwrap();
        if let Some(session) = self.session.take() {
            session.close();
        }
    }
}
