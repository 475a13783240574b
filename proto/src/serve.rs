//! The listening side: our own accept loop, so that the certificate can be replaced while connections live and a slow or
//! hostile client costs one spawned handshake and nothing else.
//!
//! Invariants: the loop never ends because of an error; a handshake has a deadline, counted from the accept; a client
//! certificate that another authority signed is refused in the handshake; a connection has an age at which it is cut.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use telecine_domain::time::Timestamp;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::identity::{Peer, Remote, ServerIdentity, peer_of};
use crate::net::{Connection, Listener};

/// What a listener allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes at the same time.
    pub handshakes: usize,
    /// Longest time from accept to a proven connection.
    pub handshake_timeout: Duration,
    /// Connections at the same time, handshakes included; further ones are closed at once.
    pub connections: usize,
    /// About how old a connection may become (the real age is spread by a fifth to both sides).
    pub connection_age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 200,
            handshake_timeout: Duration::from_secs(10),
            connections: 16_000,
            connection_age: Duration::from_secs(24 * 3600),
        }
    }
}

/// TLS for a listener: version 1.3 only, ALPN h2, clients proven by `roots`. A client may show no certificate and is
/// then `Anonymous`.
///
/// There are no session tickets: every connection shows its certificate.
///
/// # Errors
/// When `roots` is empty.
pub fn tls(
    roots: RootCertStore,
    identity: ServerIdentity,
    clock: Clock,
) -> Result<Arc<rustls::ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|problem| rustls::Error::General(problem.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_details(provider, Arc::new(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(identity));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A tonic server with the limits of our own protocols: small concurrency per connection (an agent has one stream), an
/// HTTP/2 ping every 20 s that must be answered within 10 s.
pub fn server() -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(8)
        .max_concurrent_streams(8)
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_header_list_size(16 * 1024)
        .max_frame_size(1024 * 1024)
}

/// Who sent a request. `None` when the server was not fed by `incoming`.
pub fn remote<T>(request: &tonic::Request<T>) -> Option<Remote> {
    request.extensions().get::<Remote>().cloned()
}

/// The proven connections of a listener, for `serve_with_incoming`. Dropping it ends the loop and open handshakes;
/// connections already given out live on.
pub struct Incoming {
    connections: mpsc::Receiver<ServerConnection>,
    _tasks: JoinSet<()>,
}

/// Starts accepting.
pub fn incoming(listener: Box<dyn Listener>, tls: Arc<rustls::ServerConfig>, limits: Limits) -> Incoming {
    let (sender, connections) = mpsc::channel(64);
    let mut tasks = JoinSet::new();
    tasks.spawn(accept_loop(listener, TlsAcceptor::from(tls), limits, sender));
    Incoming { connections, _tasks: tasks }
}

impl tokio_stream::Stream for Incoming {
    type Item = io::Result<ServerConnection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

/// Pause after a failed accept (no descriptors left, say), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn accept_loop(
    mut listener: Box<dyn Listener>,
    acceptor: TlsAcceptor,
    limits: Limits,
    connections: mpsc::Sender<ServerConnection>,
) {
    let (gate, places) =
        (Arc::new(Semaphore::new(limits.handshakes)), Arc::new(Semaphore::new(limits.connections)));
    let mut handshakes = JoinSet::new();
    let mut accepted = 0u64;
    loop {
        while handshakes.try_join_next().is_some() {}
        let (stream, address) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            warn!(%address, limit = limits.connections, "a connection was closed: too many are open");
            continue;
        };
        accepted += 1;
        let deadline = Instant::now() + limits.handshake_timeout;
        let cut_at = Instant::now() + spread(limits.connection_age, accepted);
        let (acceptor, gate, connections) = (acceptor.clone(), gate.clone(), connections.clone());
        handshakes.spawn(async move {
            let proven = async {
                let _turn = gate.acquire_owned().await.map_err(io::Error::other)?;
                acceptor.accept(stream).await
            };
            match tokio::time::timeout_at(deadline, proven).await {
                Err(_) => info!(%address, "a connection was closed: its handshake took too long"),
                Ok(Err(error)) => info!(%address, %error, "a connection was refused in the handshake"),
                Ok(Ok(stream)) => {
                    if let Some(connection) = prove(stream, address, cut_at, place) {
                        // A closed channel means that the server is going away, and the connection with it.
                        let _closed = connections.send(connection).await;
                    }
                }
            }
        });
    }
}

/// Four to six fifths of `age`; connections made together do not end together.
fn spread(age: Duration, nth: u64) -> Duration {
    let thousandths = u32::try_from(nth.wrapping_mul(618) % 400).unwrap_or(0);
    age / 1000 * (800 + thousandths)
}

fn prove(
    stream: TlsStream<Connection>,
    address: std::net::SocketAddr,
    cut_at: Instant,
    place: OwnedSemaphorePermit,
) -> Option<ServerConnection> {
    let (peer, certificate_ends) = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => (Peer::Anonymous, None),
        Some(leaf) => match peer_of(leaf) {
            Ok((peer, ends)) => (peer, Some(ends)),
            Err(error) => {
                warn!(%address, %error, "a connection was refused: its certificate names nobody");
                return None;
            }
        },
    };
    let remote = Remote { peer, address, certificate_ends };
    Some(ServerConnection { stream, remote, cut: Box::pin(tokio::time::sleep_until(cut_at)), _place: place })
}

/// A proven connection.
pub struct ServerConnection {
    stream: TlsStream<Connection>,
    remote: Remote,
    cut: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl ServerConnection {
    /// Who is at the other end.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// When the certificate shown ends.
    pub fn certificate_ends(&self) -> Option<Timestamp> {
        self.remote.certificate_ends
    }
}

impl Connected for ServerConnection {
    type ConnectInfo = Remote;

    fn connect_info(&self) -> Remote {
        self.remote.clone()
    }
}

impl AsyncRead for ServerConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            let aged = io::Error::new(io::ErrorKind::TimedOut, "the connection reached its age");
            return Poll::Ready(Err(aged));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
