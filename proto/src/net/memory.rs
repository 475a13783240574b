//! A network inside one process, for tests under simulated time. It is faultless; a simulation wraps it.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Connection, Listener, Network};

/// Bytes in flight in one direction.
const WINDOW: usize = 256 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: usize = 1024;
/// Ports handed out for port 0 start here.
const FIRST_PORT: u16 = 40_000;

type Backlog = mpsc::Sender<(Connection, SocketAddr)>;

/// A network inside one process; clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork {
    ports: Arc<Mutex<Ports>>,
}

#[derive(Default)]
struct Ports {
    listening: BTreeMap<u16, Backlog>,
    handed_out: u16,
}

impl MemoryNetwork {
    fn ports(&self) -> std::sync::MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ports {
    fn next(&mut self) -> u16 {
        self.handed_out = self.handed_out.wrapping_add(1);
        FIRST_PORT.saturating_add(self.handed_out)
    }
}

#[async_trait]
impl Network for MemoryNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        let asked = port_of(address)?;
        let mut ports = self.ports();
        let port = if asked == 0 { ports.next() } else { asked };
        if ports.listening.get(&port).is_some_and(|backlog| !backlog.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, backlog) = mpsc::channel(BACKLOG);
        ports.listening.insert(port, sender);
        Ok(Box::new(MemoryListener { port, backlog }))
    }

    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let port = port_of(address)?;
        let (backlog, from) = {
            let mut ports = self.ports();
            let from = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next()));
            (ports.listening.get(&port).cloned(), from)
        };
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (near, far) = tokio::io::duplex(WINDOW);
        backlog.ok_or_else(refused)?.send((Box::new(far), from)).await.map_err(|_| refused())?;
        Ok(Box::new(near))
    }
}

fn port_of(address: &str) -> io::Result<u16> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not host:port")))
}

struct MemoryListener {
    port: u16,
    backlog: mpsc::Receiver<(Connection, SocketAddr)>,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<(Connection, SocketAddr)> {
        self.backlog.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn local_address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)))
    }
}
