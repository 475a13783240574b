//! What several tests need.

use std::path::Path;
use std::time::Duration;

use telecine_agent::runtime::{ContainerRuntime, ContainerSpec, Docker, Exit, Program};
use telecine_domain::engine::ImageReference;
use telecine_domain::id::InstanceId;
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;
use telecine_test_support::{available, wanted};

/// Docker and the image named by `variable`; without either the test is skipped.
pub(crate) async fn docker(variable: &str) -> Option<(Docker, ImageReference)> {
    let image = wanted(variable, "scripts/build-test-images and build-transform-image make it")?;
    let docker = available(Docker::connect(Path::new("/var/run/docker.sock")).await)?;
    Some((docker, image.parse().expect("an image by digest")))
}

/// Whether attempts can be mounted here; else the test is skipped.
#[track_caller]
pub(crate) fn can_mount() -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    available(telecine_mount::try_mount(folder.path(), Duration::from_secs(5))).is_some()
}

/// Random bits, good enough for names.
pub(crate) fn random() -> u128 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    let half = || u128::from(RandomState::new().build_hasher().finish());
    (half() << 64) | half()
}

pub(crate) fn instance() -> InstanceId {
    InstanceId::new(Timestamp::from_millis(1), random())
}

/// A small container with a name of its own.
pub(crate) fn spec(folder: &Path, program: Program, arguments: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: format!("telecine-test-{:x}", random()),
        instance: instance(),
        program,
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        folder: folder.to_owned(),
        resources: Resources { cpu_milli: 500, memory_bytes: 64 << 20, ..Resources::ZERO },
        gpus: Vec::new(),
        user: (65534, 65534),
        pids_limit: 32,
    }
}

/// Removes a container when a test ends, however it ends.
pub(crate) struct Removed(pub(crate) Docker, pub(crate) String);

impl Removed {
    pub(crate) async fn now(self) {
        self.0.remove(&self.1).await.expect("removed");
    }
}

/// Runs to the end; the output of both streams.
pub(crate) async fn run(runtime: &dyn ContainerRuntime, spec: &ContainerSpec) -> (Exit, String) {
    runtime.create(spec).await.expect("created");
    let mut output = runtime.start(&spec.name).await.expect("started");
    let mut text = Vec::new();
    let reading = async {
        while let Some(piece) = output.recv().await {
            text.extend_from_slice(&piece.data);
        }
    };
    let (exit, ()) = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(runtime.wait(&spec.name), reading)
    })
    .await
    .expect("ends within a minute");
    (exit.expect("waited"), String::from_utf8_lossy(&text).into_owned())
}

/// A folder whose mounts reach containers, as the attempts folder of an agent is.
pub(crate) struct SharedFolder(tempfile::TempDir);

impl SharedFolder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        telecine_agent::mounts::share(folder.path()).unwrap();
        telecine_agent::mounts::share(folder.path()).expect("a second time changes nothing");
        assert_eq!(telecine_agent::mounts::mounted_at_or_below(folder.path()).unwrap().len(), 1);
        Self(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SharedFolder {
    fn drop(&mut self) {
        telecine_agent::mounts::unmount_all(self.0.path()).unwrap();
    }
}
