//! `telecine-transform`: the engine that makes renditions with ffmpeg, as a gRPC service on a unix socket.
//!
//! It runs as an unprivileged user in a container without network and with a read-only root; ffmpeg and ffprobe are found
//! on PATH. The socket is `/telecine/run/engine.sock`, or what TELECINE_ENGINE_SOCKET says. It serves one run and exits.

mod arguments;
mod diagnosis;
mod failure;
mod lines;
mod plan;
mod probe;
mod processing;
mod program;
mod progress;
mod run;
mod service;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::Mode;
use telecine_proto::engine::v1::engine_server::EngineServer;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::service::{Life, Transform};

/// How long connections may take to close once everything was said, and how long a caller may take to read the end of a
/// run after SIGTERM.
const CLOSING: Duration = Duration::from_secs(15);

// One thread: ffmpeg does the work, and it is killed with the thread that started it.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    // Whoever shares the folder's group may connect; nobody else may.
    rustix::process::umask(Mode::from_raw_mode(0o007));
    let socket = std::env::var_os("TELECINE_ENGINE_SOCKET")
        .map_or_else(|| PathBuf::from("/telecine/run/engine.sock"), PathBuf::from);
    let life = Life::default();
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<EngineServer<Transform>>().await;
    let listener = bind(&socket).with_context(|| format!("cannot serve on {}", socket.display()))?;
    life.tasks.spawn(obey_signals(life.clone())?);
    tracing::info!(socket = %socket.display(), version = service::VERSION, "serving");

    let server = Server::builder()
        .add_service(health_service)
        .add_service(EngineServer::new(Transform { life: life.clone() }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), life.over.clone().cancelled_owned());
    tokio::select! {
        served = server => served.context("serving failed")?,
        () = too_long(&life) => tracing::warn!("a caller keeps its connection open; leaving"),
    }
    // Nobody reads any more: end what still works, ffmpeg first.
    life.cancel.cancel();
    life.tasks.close();
    tokio::time::timeout(CLOSING, life.tasks.wait()).await.context("ffmpeg does not end")?;
    Ok(())
}

/// Binds beside the socket's path and renames, so that a socket that is there answers.
fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    let mut beside = socket.as_os_str().to_owned();
    beside.push(".tmp");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&beside)?;
    std::fs::rename(&beside, socket)?;
    Ok(listener)
}

/// SIGTERM and SIGINT end the work early, as `Cancel` does.
fn obey_signals(life: Life) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
            () = life.over.cancelled() => return,
        }
        life.stop();
        if tokio::time::timeout(CLOSING, life.over.cancelled()).await.is_err() {
            life.over.cancel();
        }
    })
}

async fn too_long(life: &Life) {
    life.over.cancelled().await;
    tokio::time::sleep(CLOSING).await;
}
