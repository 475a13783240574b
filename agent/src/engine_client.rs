//! Speaks to a gRPC engine over the socket in its attempt's run folder.
//!
//! The engine owns that folder and may put anything there, also a link to another socket of the machine. So the socket
//! is opened without following links, checked to be a socket, reached through its descriptor, and the other side must
//! run as the engine's user.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustix::fs::{FileType, Mode, OFlags};
use telecine_proto::engine::v1 as proto;
use telecine_proto::engine::v1::engine_client::EngineClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The service name an engine's health is asked for.
const SERVICE: &str = "telecine.engine.v1.Engine";
const SOCKET: &str = "engine.sock";
const RETRY: Duration = Duration::from_millis(10);
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Longest message of an engine.
const MESSAGE_BYTES: usize = 4 << 20;

/// Why an engine cannot be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It did not serve in time.
    #[error("the engine did not serve /telecine/run/{SOCKET} within {} s: {last}", waited.as_secs())]
    Silent {
        /// How long was waited.
        waited: Duration,
        /// What was found last.
        last: String,
    },
    /// It put something else in the place of its socket.
    #[error("the engine's socket is refused: {0}")]
    Forged(String),
    /// A call failed.
    #[error("the engine's {call} failed: {} ({:?})", status.message(), status.code())]
    Call {
        /// Which call.
        call: &'static str,
        /// Its status.
        status: Box<tonic::Status>,
    },
}

/// A connection to an engine that serves.
#[derive(Clone, Debug)]
pub struct Engine {
    client: EngineClient<Channel>,
}

impl Engine {
    /// Connects as soon as the engine serves, for at most `patience`.
    ///
    /// # Errors
    /// When it does not serve in time, or its socket is not its own.
    pub async fn connect(run_folder: &Path, user: u32, patience: Duration) -> Result<Self, EngineError> {
        let began = tokio::time::Instant::now();
        loop {
            let last = match Self::try_connect(run_folder, user).await {
                Ok(engine) => return Ok(engine),
                Err(Attempted::Forged(what)) => return Err(EngineError::Forged(what)),
                Err(Attempted::NotYet(last)) => last,
            };
            if began.elapsed() >= patience {
                return Err(EngineError::Silent { waited: patience, last });
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_connect(run_folder: &Path, user: u32) -> Result<Self, Attempted> {
        // The first connection is made here, so that a refusal is seen as what it is.
        let stream = connect_socket(run_folder, user).await?;
        let channel = channel(stream, run_folder.to_owned(), user).await?;
        serves(channel.clone()).await?;
        let client = EngineClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(Self { client })
    }

    /// Starts the work; events come as the engine sends them.
    ///
    /// # Errors
    /// When the engine refuses the call.
    pub async fn run(
        &mut self,
        request: proto::RunRequest,
    ) -> Result<tonic::Streaming<proto::RunEvent>, EngineError> {
        let answer = self.client.run(request).await.map_err(|status| call("Run", status))?;
        Ok(answer.into_inner())
    }

    /// Asks the engine to end early.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn cancel(&mut self, reason: &str) -> Result<(), EngineError> {
        let request = proto::CancelRequest { reason: reason.to_owned() };
        self.client.cancel(request).await.map(drop).map_err(|status| call("Cancel", status))
    }
}

fn call(call: &'static str, status: tonic::Status) -> EngineError {
    EngineError::Call { call, status: Box::new(status) }
}

/// What came of one try.
enum Attempted {
    NotYet(String),
    Forged(String),
}

impl From<io::Error> for Attempted {
    fn from(error: io::Error) -> Self {
        Self::NotYet(error.to_string())
    }
}

/// Opens the socket without following links and connects through the descriptor.
async fn connect_socket(run_folder: &Path, user: u32) -> Result<UnixStream, Attempted> {
    let socket = open_socket(run_folder)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await?;
    let peer = stream.peer_cred()?.uid();
    if peer == user {
        return Ok(stream);
    }
    Err(Attempted::Forged(format!("it is served by user {peer}, the engine runs as {user}")))
}

fn open_socket(run_folder: &Path) -> Result<OwnedFd, Attempted> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder =
        rustix::fs::open(run_folder, flags | OFlags::DIRECTORY, Mode::empty()).map_err(io::Error::from)?;
    let socket = rustix::fs::openat(&folder, SOCKET, flags, Mode::empty()).map_err(io::Error::from)?;
    let stat = rustix::fs::fstat(&socket).map_err(io::Error::from)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => Ok(socket),
        other => Err(Attempted::Forged(format!("{SOCKET} is a {other:?}, not a socket"))),
    }
}

async fn channel(first: UnixStream, run_folder: PathBuf, user: u32) -> Result<Channel, Attempted> {
    let mut first = Some(first);
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (ready, run_folder) = (first.take(), run_folder.clone());
        async move {
            let stream = match ready {
                Some(stream) => stream,
                None => connect_socket(&run_folder, user).await.map_err(|attempted| match attempted {
                    Attempted::NotYet(what) | Attempted::Forged(what) => io::Error::other(what),
                })?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://engine")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| Attempted::NotYet(error.to_string()))
}

/// An engine that has no health service is taken at its socket's word.
async fn serves(channel: Channel) -> Result<(), Attempted> {
    let request = tonic_health::pb::HealthCheckRequest { service: SERVICE.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => Err(Attempted::NotYet(format!("its health is {:?}", answer.get_ref().status()))),
        Err(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
        Err(status) => Err(Attempted::NotYet(format!("its health check failed: {}", status.message()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn an_engine_that_never_serves_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let error = Engine::connect(folder.path(), 65534, SOON).await.unwrap_err();
        assert!(matches!(error, EngineError::Silent { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_link_to_another_socket_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim.sock");
        let listener = std::os::unix::net::UnixListener::bind(&victim).unwrap();
        listener.set_nonblocking(true).unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join(SOCKET)).unwrap();
        let error = Engine::connect(folder.path(), 0, SOON).await.unwrap_err();
        assert!(matches!(&error, EngineError::Forged(what) if what.contains("Symlink")), "{error}");
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody knocked");
    }

    #[tokio::test]
    async fn a_socket_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = tokio::net::UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let mine = rustix::process::geteuid().as_raw();
        let error = Engine::connect(folder.path(), mine + 1, SOON).await.unwrap_err();
        assert!(matches!(&error, EngineError::Forged(what) if what.contains("user")), "{error}");
    }
}
