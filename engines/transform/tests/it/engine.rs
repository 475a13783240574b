//! The engine as a child process on a socket in a folder of its own, and clips to feed it. As root the engine runs as user
//! 65534, as it does in a container.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command as Plain, ExitStatus, Stdio};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use serde_json::Value;
use telecine_proto::engine::v1::engine_client::EngineClient;
use telecine_proto::engine::v1::run_event::Event;
use telecine_proto::engine::v1::{CancelRequest, FailureKind, Progress, RunRequest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

/// A folder that the engine may write into, removed with everything in it.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A test picture with a tone.
    pub(crate) fn clip(&self, name: &str, seconds: u32) -> PathBuf {
        self.make(name, seconds, "-f lavfi -i sine=d=SECONDS -c:a aac")
    }

    pub(crate) fn silent_clip(&self, name: &str, seconds: u32) -> PathBuf {
        self.make(name, seconds, "-an")
    }

    /// With its index in front, so that what is cut off is missing only from the pictures.
    pub(crate) fn fast_start_clip(&self, name: &str, seconds: u32) -> PathBuf {
        self.make(name, seconds, "-movflags +faststart")
    }

    fn make(&self, name: &str, seconds: u32, more: &str) -> PathBuf {
        let path = self.path(name);
        let line = format!(
            "-v error -y -f lavfi -i testsrc=d=SECONDS:s=320x180:r=25 {more} -pix_fmt yuv420p -c:v libx264 -preset ultrafast"
        )
        .replace("SECONDS", &seconds.to_string());
        let status = Plain::new("ffmpeg").args(line.split(' ')).arg(&path).status().unwrap();
        assert!(status.success());
        path
    }
}

/// How the stream of a run ended.
#[derive(Debug)]
pub(crate) enum End {
    Done(Value),
    Failed(FailureKind, String, String),
    Broken,
}

/// What was seen of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) progress: Vec<Progress>,
    pub(crate) log: Vec<String>,
    pub(crate) end: End,
    pub(crate) exit: ExitStatus,
}

impl Run {
    pub(crate) fn failure(&self) -> (FailureKind, &str, &str) {
        match &self.end {
            End::Failed(kind, code, message) => (*kind, code, message),
            other => panic!("{other:?}, log {:#?}", self.log),
        }
    }
}

pub(crate) fn request(processing: &str, input: &Path, output: &Path) -> RunRequest {
    let slot =
        |name: &str, path: &Path| HashMap::from([(name.to_owned(), path.to_str().unwrap().to_owned())]);
    RunRequest {
        processing_json: processing.as_bytes().to_vec(),
        inputs: slot("source", input),
        outputs: slot("result", output),
        job_id: "job_test".to_owned(),
        attempt: 1,
        cpu_milli: 1500,
        memory_bytes: 1 << 30,
    }
}

pub(crate) struct Engine {
    pub(crate) process: Child,
    pub(crate) client: EngineClient<Channel>,
    channel: Channel,
}

impl Engine {
    pub(crate) async fn start(folder: &Folder) -> Self {
        let socket = folder.path("engine.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(env!("CARGO_BIN_EXE_telecine-transform"));
        command.env("TELECINE_ENGINE_SOCKET", &socket).stdin(Stdio::null()).kill_on_drop(true);
        if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            command.uid(65534).gid(65534);
        }
        let process = command.spawn().unwrap();
        let channel = connect(socket).await;
        Self { process, client: EngineClient::new(channel.clone()), channel }
    }

    /// In a container of `image`, in the sandbox that agents give; the folder is `/telecine` inside.
    pub(crate) async fn start_in_container(folder: &Folder, image: &str) -> Self {
        let own = std::fs::metadata("/proc/self").unwrap();
        let user =
            if own.uid() == 0 { "65534:65534".to_owned() } else { format!("{}:{}", own.uid(), own.gid()) };
        let mut command = Command::new("docker");
        command.args(
            "run --rm --init --network none --read-only --cap-drop ALL --security-opt no-new-privileges --ipc none \
             --pids-limit 256 --memory 1g --env TELECINE_ENGINE_SOCKET=/telecine/engine.sock"
                .split_whitespace(),
        );
        command.args([
            "--user",
            &user,
            "--volume",
            &format!("{}:/telecine", folder.path("").display()),
            image,
        ]);
        let process = command.stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let channel = connect(folder.path("engine.sock")).await;
        Self { process, client: EngineClient::new(channel.clone()), channel }
    }

    pub(crate) async fn run(self, processing: &str, input: &Path, output: &Path) -> Run {
        self.drive(processing, input, output, None::<fn(&mut Self) -> std::future::Ready<()>>).await
    }

    /// Runs, and calls `then` once the work is under way.
    pub(crate) async fn run_until(
        self,
        processing: &str,
        input: &Path,
        output: &Path,
        then: impl AsyncFnOnce(&mut Self),
    ) -> Run {
        self.drive(processing, input, output, Some(then)).await
    }

    async fn drive(
        mut self,
        processing: &str,
        input: &Path,
        output: &Path,
        mut then: Option<impl AsyncFnOnce(&mut Self)>,
    ) -> Run {
        let mut events = self.client.run(request(processing, input, output)).await.unwrap().into_inner();
        let (mut progress, mut log, mut end) = (Vec::new(), Vec::new(), End::Broken);
        while let Ok(Some(event)) = events.message().await {
            match event.event.unwrap() {
                Event::Progress(one) => {
                    let under_way = one.media_millis.is_some();
                    progress.push(one);
                    if under_way && let Some(then) = then.take() {
                        then(&mut self).await;
                    }
                }
                Event::LogLine(line) => log.push(line),
                Event::Done(done) => end = End::Done(serde_json::from_slice(&done.summary_json).unwrap()),
                Event::Failed(failed) => end = End::Failed(failed.kind(), failed.code, failed.message),
            }
        }
        drop((events, self.client, self.channel));
        let exit = tokio::time::timeout(Duration::from_secs(20), self.process.wait()).await;
        Run { progress, log, end, exit: exit.expect("the engine exits after its run").unwrap() }
    }

    pub(crate) async fn cancel(&mut self) {
        self.client.cancel(CancelRequest { reason: "test".to_owned() }).await.unwrap();
    }

    pub(crate) fn terminate(&self) {
        let pid = self.process.id().unwrap().to_string();
        assert!(Plain::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub(crate) async fn is_healthy(&self, service: &str) -> bool {
        let request = HealthCheckRequest { service: service.to_owned() };
        let reply = HealthClient::new(self.channel.clone()).check(request).await.unwrap().into_inner();
        reply.status() == ServingStatus::Serving
    }
}

async fn connect(socket: PathBuf) -> Channel {
    for _ in 0..500 {
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://engine");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the engine does not answer on {}", socket.display())
}

/// How many living processes have the folder in their arguments.
pub(crate) fn processes_naming(folder: &Folder) -> usize {
    let name = folder.path("");
    let name = name.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(name)
        })
        .count()
}
