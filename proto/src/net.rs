//! The one alias for the network: everything that listens or dials does it through `Network`, so that a test can put a
//! simulated network in its place.
//!
//! TLS runs over whatever a `Network` gives: what is simulated is the wire, not the proof of identity.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

mod memory;

pub use memory::MemoryNetwork;

/// A byte stream both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever carries it.
pub type Connection = Box<dyn Io>;

/// Accepts connections.
#[async_trait]
pub trait Listener: Send + Sync {
    /// The next connection and where it comes from. Safe to cancel. An error says nothing about the next call.
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)>;

    /// Where it listens.
    fn local_address(&self) -> io::Result<SocketAddr>;
}

/// Makes connections.
#[async_trait]
pub trait Network: Send + Sync {
    /// Listens at `host:port`; port 0 takes a free one.
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>>;

    /// Connects to `host:port`.
    async fn connect(&self, address: &str) -> io::Result<Connection>;
}

/// The machine's TCP, without Nagle's delay and with keepalive.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpNetwork;

/// How long a TCP connection may be silent before the kernel asks whether the other side is there; HTTP/2 pings come
/// earlier, this is for connections that have not got that far.
const KEEPALIVE: Duration = Duration::from_secs(60);

#[async_trait]
impl Network for TcpNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(Box::new(TcpAcceptor(TcpListener::bind(address).await?)))
    }

    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        tune(&stream)?;
        Ok(Box::new(stream))
    }
}

struct TcpAcceptor(TcpListener);

#[async_trait]
impl Listener for TcpAcceptor {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        let (stream, from) = self.0.accept().await?;
        tune(&stream)?;
        Ok((Box::new(stream), from))
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    rustix::net::sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn carries_bytes_both_ways(network: &dyn Network) {
        let mut listener = network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let (accepted, dialed) = tokio::join!(listener.accept(), network.connect(&address));
        let (mut accepted, mut dialed) = (accepted.unwrap().0, dialed.unwrap());
        dialed.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        accepted.read_exact(&mut buffer).await.unwrap();
        accepted.write_all(&buffer).await.unwrap();
        dialed.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ping");
        drop(listener);
        assert!(network.connect(&address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn tcp_carries_bytes() {
        carries_bytes_both_ways(&TcpNetwork).await;
    }

    #[tokio::test]
    async fn memory_carries_bytes() {
        carries_bytes_both_ways(&MemoryNetwork::default()).await;
    }
}
