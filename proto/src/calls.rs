//! Calls both ways over one bidirectional stream.
//!
//! After the stream is open either side may call the other. A message with call id 0 is a notification. Calls of the
//! side that dialed have odd ids, calls of the side that listened even ones, and a reply carries the id of its call: so
//! the id alone tells a call of the other side from a reply to ours. When the stream ends, every call that waits fails
//! with `CallError::Ended`: nobody knows then whether it was done.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::{Stream, StreamExt};

use crate::{coordinator, worker};

/// A message that carries a call id.
pub trait Message: Send + 'static {
    /// Its call id; 0 for a notification.
    fn call_id(&self) -> u64;
    /// Sets the call id.
    fn set_call_id(&mut self, id: u64);
}

macro_rules! messages {
    ($($name:ty),*) => {$(
        impl Message for $name {
            fn call_id(&self) -> u64 {
                self.call_id
            }

            fn set_call_id(&mut self, id: u64) {
                self.call_id = id;
            }
        }
    )*};
}

messages!(
    coordinator::v1::FromCoordinator,
    coordinator::v1::FromManager,
    worker::v1::FromWorker,
    worker::v1::FromManager
);

/// Which side of the stream we are; decides whose ids are odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We opened the connection: our calls are odd.
    Dialer,
    /// We accepted it: our calls are even.
    Listener,
}

impl Side {
    fn owns(self, id: u64) -> bool {
        (id % 2 == 1) == (self == Self::Dialer)
    }

    fn first(self) -> u64 {
        match self {
            Self::Dialer => 1,
            Self::Listener => 2,
        }
    }
}

/// Why a call has no answer, or a message was not sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CallError {
    /// The stream ended; the call may or may not have been done.
    #[error("the stream ended before the call was answered")]
    Ended,
    /// No answer in time; the call may or may not have been done.
    #[error("the call was not answered within {0:?}")]
    TimedOut(Duration),
    /// Too many calls wait for their answers.
    #[error("{MAX_PENDING} calls wait for their answers already")]
    TooMany,
}

/// Most calls of one side that wait for their answers on one stream.
pub const MAX_PENDING: usize = 1024;
/// Longest wait for room in the outgoing queue; a peer that does not read for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the three ends of one side of a stream: what calls with, what feeds the stream (`queue` messages long), and
/// what takes the stream's messages in.
pub fn multiplex<Out: Message, In: Message>(
    side: Side,
    queue: usize,
) -> (Caller<Out, In>, mpsc::Receiver<Out>, Demultiplexer<In>) {
    let (outgoing, feed) = mpsc::channel(queue);
    let pending = Arc::new(Pending {
        side,
        state: Mutex::new(State { next: side.first(), waiting: Some(BTreeMap::new()) }),
    });
    let caller = Caller { outgoing, pending: pending.clone() };
    (caller, feed, Demultiplexer { pending })
}

struct Pending<In> {
    side: Side,
    state: Mutex<State<In>>,
}

struct State<In> {
    next: u64,
    /// `None` once the stream has ended.
    waiting: Option<BTreeMap<u64, oneshot::Sender<In>>>,
}

impl<In> Pending<In> {
    fn state(&self) -> std::sync::MutexGuard<'_, State<In>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self) -> Result<(u64, oneshot::Receiver<In>), CallError> {
        let mut state = self.state();
        let id = state.next;
        let waiting = state.waiting.as_mut().ok_or(CallError::Ended)?;
        if waiting.len() >= MAX_PENDING {
            return Err(CallError::TooMany);
        }
        let (sender, receiver) = oneshot::channel();
        waiting.insert(id, sender);
        state.next += 2;
        Ok((id, receiver))
    }

    fn take(&self, id: u64) -> Option<oneshot::Sender<In>> {
        self.state().waiting.as_mut()?.remove(&id)
    }

    fn end(&self) {
        self.state().waiting = None;
    }
}

/// Calls the other side, notifies it and answers its calls. Clones share the stream.
pub struct Caller<Out, In> {
    outgoing: mpsc::Sender<Out>,
    pending: Arc<Pending<In>>,
}

impl<Out, In> Clone for Caller<Out, In> {
    fn clone(&self) -> Self {
        Self { outgoing: self.outgoing.clone(), pending: self.pending.clone() }
    }
}

/// Forgets a call when its future is dropped or done.
struct Forget<'a, In> {
    pending: &'a Pending<In>,
    id: u64,
}

impl<In> Drop for Forget<'_, In> {
    fn drop(&mut self) {
        self.pending.take(self.id);
    }
}

impl<Out: Message, In: Message> Caller<Out, In> {
    /// Sends a call and waits for its answer.
    ///
    /// # Errors
    /// See `CallError`.
    pub async fn call(&self, mut message: Out, timeout: Duration) -> Result<In, CallError> {
        let (id, answer) = self.pending.register()?;
        let _forget = Forget { pending: &self.pending, id };
        message.set_call_id(id);
        let answered = async {
            self.send(message).await?;
            answer.await.map_err(|_| CallError::Ended)
        };
        tokio::time::timeout(timeout, answered).await.unwrap_or(Err(CallError::TimedOut(timeout)))
    }

    /// Sends a notification: no answer comes.
    ///
    /// # Errors
    /// `Ended` when the stream is gone, or the other side does not read.
    pub async fn notify(&self, mut message: Out) -> Result<(), CallError> {
        message.set_call_id(0);
        self.send(message).await
    }

    /// Answers the call `id` of the other side.
    ///
    /// # Errors
    /// `Ended` when the stream is gone, or the other side does not read.
    pub async fn reply(&self, id: u64, mut message: Out) -> Result<(), CallError> {
        message.set_call_id(id);
        self.send(message).await
    }

    /// Whether the stream has ended.
    pub fn is_ended(&self) -> bool {
        self.outgoing.is_closed() || self.pending.state().waiting.is_none()
    }

    async fn send(&self, message: Out) -> Result<(), CallError> {
        if self.pending.state().waiting.is_none() {
            return Err(CallError::Ended);
        }
        self.outgoing.send_timeout(message, SEND_TIMEOUT).await.map_err(|_| CallError::Ended)
    }
}

/// Takes the stream's messages in. When it is dropped, the stream counts as ended.
pub struct Demultiplexer<In> {
    pending: Arc<Pending<In>>,
}

impl<In: Message> Demultiplexer<In> {
    /// The next call or notification of the other side; replies are handed to their callers on the way. A reply that
    /// nobody waits for (it came too late) is dropped. `None` at the end of the stream. Safe to cancel.
    ///
    /// # Errors
    /// What ended the stream, when that was an error.
    pub async fn next<S>(&mut self, stream: &mut S) -> Result<Option<In>, tonic::Status>
    where
        S: Stream<Item = Result<In, tonic::Status>> + Unpin,
    {
        loop {
            match stream.next().await {
                Some(Ok(message)) => match message.call_id() {
                    id if id != 0 && self.pending.side.owns(id) => {
                        if let Some(waiting) = self.pending.take(id) {
                            // The caller may have given up just now.
                            let _late = waiting.send(message);
                        }
                    }
                    _ => return Ok(Some(message)),
                },
                Some(Err(status)) => {
                    self.pending.end();
                    return Err(status);
                }
                None => {
                    self.pending.end();
                    return Ok(None);
                }
            }
        }
    }
}

impl<In> Drop for Demultiplexer<In> {
    fn drop(&mut self) {
        self.pending.end();
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use worker::v1::{Accepted, FromManager, FromWorker, RenewLease, from_manager, from_worker};

    const SECOND: Duration = Duration::from_secs(1);

    fn renew(at: u64) -> FromWorker {
        let body = from_worker::Body::RenewLease(RenewLease { sent_at_millis: at });
        FromWorker { body: Some(body), ..Default::default() }
    }

    fn accepted() -> FromManager {
        let body = from_manager::Body::Accepted(Accepted { lease_millis: 5, ..Default::default() });
        FromManager { body: Some(body), ..Default::default() }
    }

    /// A stream whose other end is a channel.
    fn wire<T: Message>(feed: mpsc::Receiver<T>) -> impl Stream<Item = Result<T, tonic::Status>> + Unpin {
        ReceiverStream::new(feed).map(Ok)
    }

    #[tokio::test(start_paused = true)]
    async fn both_sides_call_at_once() {
        let (dialer, to_listener, mut dialer_in) = multiplex::<FromWorker, FromManager>(Side::Dialer, 4);
        let (listener, to_dialer, mut listener_in) = multiplex::<FromManager, FromWorker>(Side::Listener, 4);
        let (mut at_listener, mut at_dialer) = (wire(to_listener), wire(to_dialer));
        let answering = listener.clone();
        tokio::spawn(async move {
            while let Ok(Some(call)) = listener_in.next(&mut at_listener).await {
                answering.reply(call.call_id, accepted()).await.unwrap();
            }
        });
        let answering = dialer.clone();
        tokio::spawn(async move {
            while let Ok(Some(call)) = dialer_in.next(&mut at_dialer).await {
                assert_eq!(call.call_id % 2, 0);
                answering.reply(call.call_id, renew(call.call_id)).await.unwrap();
            }
        });
        for _ in 0..100 {
            let (up, down) = tokio::join!(dialer.call(renew(1), SECOND), listener.call(accepted(), SECOND));
            assert!(matches!(up.unwrap().body, Some(from_manager::Body::Accepted(_))));
            assert!(matches!(down.unwrap().body, Some(from_worker::Body::RenewLease(_))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_fail_when_the_stream_ends_and_when_time_is_up() {
        let (caller, feed, mut incoming) = multiplex::<FromWorker, FromManager>(Side::Dialer, 4);
        let (sender, receiver) = mpsc::channel::<FromManager>(1);
        let mut stream = wire(receiver);
        assert_eq!(caller.call(renew(1), SECOND).await.unwrap_err(), CallError::TimedOut(SECOND));
        let waiting = tokio::spawn({
            let caller = caller.clone();
            async move { caller.call(renew(2), 60 * SECOND).await }
        });
        tokio::task::yield_now().await;
        // An answer to the call that was given up changes nothing.
        sender.send(FromManager { call_id: 1, ..accepted() }).await.unwrap();
        drop(sender);
        assert!(incoming.next(&mut stream).await.unwrap().is_none());
        assert_eq!(waiting.await.unwrap().unwrap_err(), CallError::Ended);
        assert_eq!(caller.call(renew(3), SECOND).await.unwrap_err(), CallError::Ended);
        assert_eq!(caller.notify(renew(3)).await.unwrap_err(), CallError::Ended);
        assert!(caller.is_ended());
        drop(feed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_ends_the_stream_for_us() {
        let (caller, _feed, _incoming) = multiplex::<FromWorker, FromManager>(Side::Dialer, 1);
        caller.notify(renew(1)).await.unwrap();
        assert_eq!(caller.notify(renew(2)).await.unwrap_err(), CallError::Ended);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_waiting_calls_is_bounded() {
        let (caller, _feed, _incoming) = multiplex::<FromWorker, FromManager>(Side::Dialer, 2 * MAX_PENDING);
        let mut calls = JoinAll::default();
        for at in 0..MAX_PENDING as u64 {
            let caller = caller.clone();
            calls.spawn(async move { caller.call(renew(at), 60 * SECOND).await });
        }
        tokio::task::yield_now().await;
        tokio::time::sleep(SECOND).await;
        assert_eq!(caller.call(renew(0), SECOND).await.unwrap_err(), CallError::TooMany);
        calls.abort_all();
        while calls.join_next().await.is_some() {}
        assert_eq!(caller.call(renew(0), SECOND).await.unwrap_err(), CallError::TimedOut(SECOND));
    }

    type JoinAll = tokio::task::JoinSet<Result<FromManager, CallError>>;
}
