//! What coordinator and worker say to each other on the instance, over the unix socket in the attempt's folder.
//!
//! One JSON document per line. The worker listens; a coordinator that restarts connects again and is told what is still
//! open, so nothing said on a broken connection is lost. Both sides check that the other runs as the same user, and the
//! first word names the attempt with its epoch.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use telecine_domain::attempt::AttemptId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Longest line.
const LINE_BYTES: u64 = 256 * 1024;
const QUEUE: usize = 16;

/// From the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ToWorker {
    /// First: I am the coordinator, you are this attempt.
    Attach(AttemptId),
    /// Your certificate: a chain, leaf first, DER in hexadecimal.
    Certificate(Vec<String>),
    /// You get no certificate.
    Refused {
        /// Your epoch is closed: stop, publish nothing.
        stale: bool,
        /// Why.
        message: String,
    },
    /// Stop the engine: SIGTERM, wait, SIGKILL.
    Stop {
        /// The wait, in milliseconds.
        grace_millis: u32,
        /// For the log.
        reason: String,
    },
    /// The instance is about to be taken away: stop the engine as for `Stop` and say that you were interrupted, unless
    /// your outputs were granted.
    Interrupt {
        /// The wait between SIGTERM and SIGKILL at most, in milliseconds.
        grace_millis: u32,
        /// For people.
        reason: String,
    },
    /// Your epoch is closed: stop at once, publish nothing.
    Fence {
        /// For the log.
        reason: String,
    },
}

/// From the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum FromWorker {
    /// Answer to `Attach`.
    Attached(AttemptId),
    /// Please have this request (PKCS#10, DER in hexadecimal) signed.
    Sign(String),
}

/// The worker's end.
#[derive(Debug)]
pub struct WorkerEnd {
    /// What the coordinator says.
    pub incoming: mpsc::Receiver<ToWorker>,
    /// What the worker says.
    pub outgoing: mpsc::Sender<FromWorker>,
    /// Serves the socket; ends with this end.
    pub(crate) _task: Option<AbortOnDropHandle<()>>,
}

/// The coordinator's end. Its `incoming` ends when the worker is gone.
#[derive(Debug)]
pub struct CoordinatorEnd {
    /// What the worker says.
    pub incoming: mpsc::Receiver<FromWorker>,
    /// What the coordinator says.
    pub outgoing: mpsc::Sender<ToWorker>,
    /// Relays over the socket; ends with this end.
    pub(crate) _task: Option<AbortOnDropHandle<()>>,
}

/// Why there is no connection to a worker.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket does not answer.
    #[error("the worker's socket does not answer")]
    Socket(#[from] io::Error),
    /// Somebody else answers.
    #[error("the worker's socket is answered by {0}")]
    Stranger(String),
}

/// Both ends in one process, without a socket: for workers that run inside the coordinator's process.
pub fn pair() -> (CoordinatorEnd, WorkerEnd) {
    let (to_worker, worker_incoming) = mpsc::channel(QUEUE);
    let (to_coordinator, coordinator_incoming) = mpsc::channel(QUEUE);
    (
        CoordinatorEnd { incoming: coordinator_incoming, outgoing: to_worker, _task: None },
        WorkerEnd { incoming: worker_incoming, outgoing: to_coordinator, _task: None },
    )
}

/// Listens as the worker of `attempt`; ends with the worker's end.
///
/// # Errors
/// When the socket cannot be bound.
pub fn listen(socket: &Path, attempt: AttemptId) -> io::Result<WorkerEnd> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_folder, short) = shortened(socket)?;
    let listener = UnixListener::bind(short)?;
    let (to_worker, incoming) = mpsc::channel(QUEUE);
    let (outgoing, from_worker) = mpsc::channel(QUEUE);
    let task = AbortOnDropHandle::new(tokio::spawn(serve(listener, attempt, to_worker, from_worker)));
    Ok(WorkerEnd { incoming, outgoing, _task: Some(task) })
}

/// The same socket by a path of a few characters, good while the folder is held: addresses of sockets end after 107
/// bytes (`unix(7)`), and a data folder may lie deeper than that.
fn shortened(socket: &Path) -> io::Result<(File, PathBuf)> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "a socket has a folder and a name");
    let (folder, name) = socket.parent().zip(socket.file_name()).ok_or_else(no_name)?;
    let folder = File::open(folder)?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, short))
}

async fn serve(
    listener: UnixListener,
    attempt: AttemptId,
    to_worker: mpsc::Sender<ToWorker>,
    mut from_worker: mpsc::Receiver<FromWorker>,
) {
    // What has no answer yet is said again to the next coordinator.
    let mut open: VecDeque<FromWorker> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            message = from_worker.recv() => match message {
                Some(message) => { open.push_back(message); continue }
                None => return,
            },
            () = to_worker.closed() => return,
        };
        let Ok((stream, _)) = accepted else { continue };
        if let Err(error) = converse(stream, attempt, &to_worker, &mut from_worker, &mut open).await {
            tracing::debug!(%error, "the coordinator's connection ended");
        }
    }
}

async fn converse(
    stream: UnixStream,
    attempt: AttemptId,
    to_worker: &mpsc::Sender<ToWorker>,
    from_worker: &mut mpsc::Receiver<FromWorker>,
    open: &mut VecDeque<FromWorker>,
) -> Result<(), ControlError> {
    let (mut reader, mut writer) = same_user(stream)?;
    match reader.next().await? {
        Some(ToWorker::Attach(named)) if named == attempt => {}
        other => return Err(ControlError::Stranger(format!("one who begins with {other:?}"))),
    }
    write_line(&mut writer, &FromWorker::Attached(attempt)).await?;
    for message in open.iter() {
        write_line(&mut writer, message).await?;
    }
    loop {
        tokio::select! {
            line = reader.next() => {
                let Some(message) = line? else { return Ok(()) };
                if matches!(message, ToWorker::Certificate(_) | ToWorker::Refused { .. }) {
                    open.clear();
                }
                if to_worker.send(message).await.is_err() { return Ok(()) }
            }
            message = from_worker.recv() => {
                let Some(message) = message else { return Ok(()) };
                open.push_back(message.clone());
                write_line(&mut writer, &message).await?;
            }
        }
    }
}

/// Connects to the worker of `attempt`.
///
/// # Errors
/// When nobody answers, or somebody else.
pub async fn connect(socket: &Path, attempt: AttemptId) -> Result<(CoordinatorEnd, i32), ControlError> {
    let (_folder, short) = shortened(socket)?;
    let stream = UnixStream::connect(short).await?;
    let pid = stream.peer_cred()?.pid().unwrap_or(0);
    let (mut reader, mut writer) = same_user(stream)?;
    write_line(&mut writer, &ToWorker::Attach(attempt)).await?;
    match reader.next().await? {
        Some(FromWorker::Attached(named)) if named == attempt => {}
        other => return Err(ControlError::Stranger(format!("one who begins with {other:?}"))),
    }
    let (end, worker) = pair();
    let task = AbortOnDropHandle::new(tokio::spawn(relay(reader, writer, worker)));
    Ok((CoordinatorEnd { _task: Some(task), ..end }, pid))
}

async fn relay(mut reader: Lines, mut writer: OwnedWriteHalf, mut worker: WorkerEnd) {
    loop {
        tokio::select! {
            line = reader.next() => match line {
                Ok(Some(message)) => if worker.outgoing.send(message).await.is_err() { return },
                Ok(None) | Err(_) => return,
            },
            message = worker.incoming.recv() => match message {
                Some(message) => if write_line(&mut writer, &message).await.is_err() { return },
                None => return,
            },
        }
    }
}

fn same_user(stream: UnixStream) -> Result<(Lines, OwnedWriteHalf), ControlError> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer != own {
        return Err(ControlError::Stranger(format!("user {peer}")));
    }
    let (reader, writer) = stream.into_split();
    Ok((Lines { reader: BufReader::new(reader), line: Vec::new() }, writer))
}

/// Reads one document a line; safe to cancel.
struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl Lines {
    async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let room = LINE_BYTES.saturating_sub(self.line.len() as u64);
        (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await?;
        if !self.line.ends_with(b"\n") {
            let ended = self.line.is_empty();
            return if ended { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
    }
}

async fn write_line<T: Serialize + Sync>(writer: &mut OwnedWriteHalf, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::assignment;

    #[tokio::test]
    async fn what_is_open_is_said_again_to_the_next_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("worker.sock");
        let attempt = assignment().attempt;
        let mut worker = listen(&socket, attempt).unwrap();
        worker.outgoing.send(FromWorker::Sign("00ff".into())).await.unwrap();
        let (mut first, pid) = connect(&socket, attempt).await.unwrap();
        assert_eq!(pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(first.incoming.recv().await, Some(FromWorker::Sign("00ff".into())));
        drop(first);
        let (mut second, _) = connect(&socket, attempt).await.unwrap();
        assert_eq!(second.incoming.recv().await, Some(FromWorker::Sign("00ff".into())));
        second.outgoing.send(ToWorker::Certificate(vec!["aa".into()])).await.unwrap();
        assert_eq!(worker.incoming.recv().await, Some(ToWorker::Certificate(vec!["aa".into()])));
        drop(second);
        let (mut third, _) = connect(&socket, attempt).await.unwrap();
        drop(worker);
        assert_eq!(third.incoming.recv().await, None, "what was answered is not said again; the end is seen");
    }

    #[tokio::test]
    async fn a_folder_deeper_than_a_socket_address_works() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let attempt = assignment().attempt;
        let _worker = listen(&deep.join("worker.sock"), attempt).unwrap();
        connect(&deep.join("worker.sock"), attempt).await.expect("the length of the path does not matter");
    }

    #[tokio::test]
    async fn a_coordinator_of_another_attempt_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("worker.sock");
        let attempt = assignment().attempt;
        let _worker = listen(&socket, attempt).unwrap();
        let other = AttemptId { epoch: attempt.epoch.next(), ..attempt };
        assert!(connect(&socket, other).await.is_err());
        let mut raw = UnixStream::connect(&socket).await.unwrap();
        raw.write_all(b"not json\n").await.unwrap();
        let mut answer = Vec::new();
        raw.read_to_end(&mut answer).await.unwrap();
        assert!(answer.is_empty());
        connect(&socket, attempt).await.expect("the right one is still welcome");
    }
}
