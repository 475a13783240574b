//! Faults of the wire: every connection of an agent can be cut, or held for a while in either direction (its bytes come
//! late, not never), and a place can be cut off as a whole. TLS and HTTP/2 above it are the real ones.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use telecine_proto::net::{Connection, Listener, MemoryNetwork, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Which way bytes are held.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Out,
    In,
    Both,
}

/// The state of all wires.
#[derive(Default)]
pub(super) struct Weather {
    links: Mutex<Vec<Weak<Link>>>,
    /// Until when a place is cut off: an agent by its name, a manager by its address.
    isolated: Mutex<BTreeMap<String, Instant>>,
}

impl Weather {
    fn links(&self) -> Vec<Arc<Link>> {
        let mut links = self.links.lock().unwrap();
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn open_links(&self) -> usize {
        self.links().len()
    }

    /// Breaks the `nth` connection.
    pub(super) fn cut(&self, nth: usize) {
        if let Some(link) = self.links().get(nth) {
            link.change(|state| state.cut = true);
        }
    }

    /// Holds the bytes of the `nth` connection.
    pub(super) fn hold(&self, nth: usize, direction: Direction, time: Duration) {
        if let Some(link) = self.links().get(nth) {
            link.hold(direction, Instant::now() + time);
        }
    }

    /// Cuts `place` off: what it has open hangs, what it opens hangs too.
    pub(super) fn isolate(&self, place: &str, time: Duration) {
        let until = Instant::now() + time;
        self.isolated.lock().unwrap().insert(place.to_owned(), until);
        for link in self.links().iter().filter(|link| link.ends.iter().any(|end| end == place)) {
            link.hold(Direction::Both, until);
        }
    }

    /// From now on every wire is whole and quick.
    pub(super) fn clear(&self) {
        self.isolated.lock().unwrap().clear();
        for link in self.links() {
            link.change(|state| (state.out_until, state.in_until) = (None, None));
        }
    }

    fn isolated_until(&self, ends: &[String]) -> Option<Instant> {
        let isolated = self.isolated.lock().unwrap();
        let until = ends.iter().filter_map(|end| isolated.get(end)).max().copied();
        until.filter(|until| *until > Instant::now())
    }
}

struct Link {
    /// The agent's places and the manager's address.
    ends: Vec<String>,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    cut: bool,
    out_until: Option<Instant>,
    in_until: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Link {
    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut LinkState)) {
        let mut state = self.state();
        change(&mut state);
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn hold(&self, direction: Direction, until: Instant) {
        self.change(|state| {
            if matches!(direction, Direction::Out | Direction::Both) {
                state.out_until = state.out_until.max(Some(until));
            }
            if matches!(direction, Direction::In | Direction::Both) {
                state.in_until = state.in_until.max(Some(until));
            }
        });
    }
}

/// The network as one agent has it.
#[derive(Clone)]
pub(super) struct AgentNetwork {
    pub(super) inner: MemoryNetwork,
    pub(super) weather: Arc<Weather>,
    /// Names of the machine, and of the process on it.
    pub(super) places: Vec<String>,
}

#[async_trait]
impl Network for AgentNetwork {
    async fn listen(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        self.inner.listen(address).await
    }

    async fn connect(&self, address: &str) -> io::Result<Connection> {
        let ends = [&self.places[..], &[address.to_owned()]].concat();
        // Nobody answers; whoever dials gives up by itself.
        while let Some(until) = self.weather.isolated_until(&ends) {
            tokio::time::sleep_until(until.min(Instant::now() + Duration::from_secs(1))).await;
        }
        let inner = Some(self.inner.connect(address).await?);
        let link = Arc::new(Link { ends, state: Mutex::default() });
        self.weather.links.lock().unwrap().push(Arc::downgrade(&link));
        Ok(Box::new(Wire { inner, link, read_timer: None, write_timer: None }))
    }
}

struct Wire {
    inner: Option<Connection>,
    link: Arc<Link>,
    read_timer: Option<Pin<Box<Sleep>>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

/// Ready when the bytes may pass.
fn pass(timer: &mut Option<Pin<Box<Sleep>>>, until: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
    let Some(until) = until.filter(|until| *until > Instant::now()) else {
        *timer = None;
        return Poll::Ready(());
    };
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
    if timer.deadline() != until {
        timer.as_mut().reset(until);
    }
    timer.as_mut().poll(context)
}

impl Wire {
    fn whole(&mut self) -> io::Result<Pin<&mut Connection>> {
        if self.link.state().cut {
            // The other side sees the end, this side a reset.
            self.inner = None;
        }
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }

    fn may_write(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.link.state();
        state.writer = Some(context.waker().clone());
        let until = state.out_until;
        drop(state);
        pass(&mut self.write_timer, until, context)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.whole()?;
        let mut state = this.link.state();
        state.reader = Some(context.waker().clone());
        let until = state.in_until;
        drop(state);
        ready!(pass(&mut this.read_timer, until, context));
        this.whole()?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.whole()?;
        ready!(self.may_write(context));
        self.whole()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.whole()?.poll_shutdown(context)
    }
}
