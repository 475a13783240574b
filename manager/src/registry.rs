//! Who is connected: the open stream of each coordinator and worker, to call it by.
//!
//! A peer that connects again takes the place of its older stream, which may be half dead: the newest wins and the
//! older one is told to end. A stream that ends removes only itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{InstanceId, Term};
use telecine_domain::job::Job;
use telecine_domain::trace::TraceContext;
use telecine_proto::calls::{CallError, Caller};
use telecine_proto::{coordinator, trace, worker};
use tokio_util::sync::CancellationToken;

/// Calls a coordinator; every message carries the term, and the trace of the job it is about.
#[derive(Clone)]
pub(crate) struct CoordinatorCaller {
    pub(crate) caller: Caller<coordinator::v1::FromManager, coordinator::v1::FromCoordinator>,
    pub(crate) term: Term,
    /// The trace that its messages belong to.
    pub(crate) trace: Option<TraceContext>,
}

impl CoordinatorCaller {
    fn message(&self, body: coordinator::v1::from_manager::Body) -> coordinator::v1::FromManager {
        let trace = trace::to_wire(self.trace);
        coordinator::v1::FromManager { term: self.term.0, trace, body: Some(body), ..Default::default() }
    }

    /// The same, for messages of this trace.
    pub(crate) fn in_trace(self, trace: Option<TraceContext>) -> Self {
        Self { trace, ..self }
    }

    /// The same, for messages about this job.
    pub(crate) fn about(self, job: &Job) -> Self {
        self.in_trace(Some(trace::begin(job.trace_id())))
    }

    /// Calls and waits for the answer's body.
    pub(crate) async fn call(
        &self,
        body: coordinator::v1::from_manager::Body,
        timeout: Duration,
    ) -> Result<Option<coordinator::v1::from_coordinator::Body>, CallError> {
        Ok(self.caller.call(self.message(body), timeout).await?.body)
    }

    /// Answers a call, or says something unasked with id 0.
    pub(crate) async fn reply(
        &self,
        id: u64,
        body: coordinator::v1::from_manager::Body,
    ) -> Result<(), CallError> {
        self.caller.reply(id, self.message(body)).await
    }
}

/// Calls a worker; every message carries the term, and the trace of its job.
#[derive(Clone)]
pub(crate) struct WorkerCaller {
    pub(crate) caller: Caller<worker::v1::FromManager, worker::v1::FromWorker>,
    pub(crate) term: Term,
    /// The trace of its attempt's job, once that is known.
    pub(crate) trace: Option<TraceContext>,
}

impl WorkerCaller {
    fn message(&self, body: worker::v1::from_manager::Body) -> worker::v1::FromManager {
        let trace = trace::to_wire(self.trace);
        worker::v1::FromManager { term: self.term.0, trace, body: Some(body), ..Default::default() }
    }

    /// Calls and waits for the answer's body.
    pub(crate) async fn call(
        &self,
        body: worker::v1::from_manager::Body,
        timeout: Duration,
    ) -> Result<Option<worker::v1::from_worker::Body>, CallError> {
        Ok(self.caller.call(self.message(body), timeout).await?.body)
    }

    /// Answers a call, or says something unasked with id 0.
    pub(crate) async fn reply(&self, id: u64, body: worker::v1::from_manager::Body) -> Result<(), CallError> {
        self.caller.reply(id, self.message(body)).await
    }
}

/// An open stream.
#[derive(Clone)]
pub(crate) struct Open<C> {
    /// Grows with each stream.
    pub(crate) generation: u64,
    /// To call by.
    pub(crate) caller: C,
    /// Canceled when a newer stream of the same peer takes its place.
    pub(crate) replaced: CancellationToken,
}

/// The open streams of one kind of peer.
pub(crate) struct Streams<K, C> {
    open: Mutex<BTreeMap<K, Open<C>>>,
}

impl<K: Ord + Copy, C: Clone> Streams<K, C> {
    fn new() -> Self {
        Self { open: Mutex::new(BTreeMap::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Open<C>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stream in the place of an older one. A stream that is older than the one that is there is itself told to
    /// end, and `false` is the answer.
    pub(crate) fn insert(&self, key: K, stream: Open<C>) -> bool {
        let mut open = self.lock();
        if open.get(&key).is_some_and(|there| there.generation > stream.generation) {
            stream.replaced.cancel();
            return false;
        }
        if let Some(older) = open.insert(key, stream) {
            older.replaced.cancel();
        }
        true
    }

    /// Removes a stream; says whether it was the one in place.
    pub(crate) fn remove(&self, key: K, generation: u64) -> bool {
        let mut open = self.lock();
        let ours = open.get(&key).is_some_and(|there| there.generation == generation);
        if ours {
            open.remove(&key);
        }
        ours
    }

    /// The caller of a peer that is connected.
    pub(crate) fn caller(&self, key: K) -> Option<C> {
        self.lock().get(&key).map(|open| open.caller.clone())
    }

    /// Any connected peer's caller.
    pub(crate) fn any(&self) -> Option<C> {
        self.lock().values().next().map(|open| open.caller.clone())
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// Every open stream of a region.
pub(crate) struct Registry {
    /// By instance.
    pub(crate) coordinators: Streams<InstanceId, CoordinatorCaller>,
    /// By attempt.
    pub(crate) workers: Streams<AttemptId, WorkerCaller>,
    generation: AtomicU64,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { coordinators: Streams::new(), workers: Streams::new(), generation: AtomicU64::new(0) }
    }

    /// What a new stream is registered with.
    pub(crate) fn open<C>(&self, caller: C) -> Open<C> {
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        Open { generation, caller, replaced: CancellationToken::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stream_wins_and_an_ending_one_removes_only_itself() {
        let streams: Streams<u8, &str> = Streams::new();
        let open = |generation, caller| Open { generation, caller, replaced: CancellationToken::new() };
        let (first, second) = (open(1, "first"), open(2, "second"));
        assert!(streams.insert(7, first.clone()));
        assert!(streams.insert(7, second.clone()));
        assert!(first.replaced.is_cancelled() && !second.replaced.is_cancelled());
        assert!(!streams.remove(7, 1));
        assert_eq!(streams.caller(7), Some("second"));
        // Hellos may overtake each other.
        assert!(!streams.insert(7, first));
        assert_eq!(streams.caller(7), Some("second"));
        assert!(streams.remove(7, 2));
        assert_eq!((streams.len(), streams.any()), (0, None));
    }
}
