//! The two gRPC services: who may open a stream, and which leadership it belongs to.
//!
//! Identity comes from the certificate alone. A stream belongs to the leadership under which it was opened and ends with
//! it; the peer then tries the next address.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;
use telecine_proto::calls::{Side, multiplex};
use telecine_proto::coordinator::v1::coordinator_server::Coordinator;
use telecine_proto::identity::{Peer, Remote};
use telecine_proto::worker::v1::worker_server::Worker;
use telecine_proto::{MAX_MESSAGE_BYTES, coordinator as coordinator_proto, serve, worker as worker_proto};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::lead::Lead;
use crate::metrics::{Refusal, RegionMetrics};
use crate::registry::{CoordinatorCaller, WorkerCaller};

mod coordinator;
mod worker;

/// Messages that wait to be sent on one stream.
const OUTGOING: usize = 64;
/// Longest wait for the first message of a stream.
const HELLO: Duration = Duration::from_secs(10);
/// How often a session looks whether its certificate has run out.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(5);

/// The leaderships of this manager, by region; a region that it stands by for has none.
#[derive(Clone, Default)]
pub(crate) struct Leads {
    by_region: Arc<Mutex<BTreeMap<RegionName, Arc<Lead>>>>,
}

impl Leads {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<RegionName, Arc<Lead>>> {
        self.by_region.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on streams of the region belong to this leadership.
    pub(crate) fn begin(&self, lead: Arc<Lead>) {
        self.lock().insert(lead.region.clone(), lead);
    }

    /// The leadership is over.
    pub(crate) fn end(&self, lead: &Arc<Lead>) {
        let mut leads = self.lock();
        if leads.get(&lead.region).is_some_and(|there| Arc::ptr_eq(there, lead)) {
            leads.remove(&lead.region);
        }
    }

    /// The regions that are led now.
    pub(crate) fn led(&self) -> Vec<RegionName> {
        self.lock().keys().cloned().collect()
    }

    fn of(&self, region: &RegionName) -> Result<Arc<Lead>, Status> {
        self.lock().get(region).cloned().ok_or_else(|| {
            Status::unavailable(format!("this manager does not lead region {region}; try the next address"))
        })
    }
}

/// The services for coordinators and workers.
#[derive(Clone)]
pub(crate) struct Sessions {
    leads: Leads,
}

impl Sessions {
    pub(crate) fn new(leads: Leads) -> Self {
        Self { leads }
    }

    /// The service for coordinators, with its limits.
    pub(crate) fn coordinators(&self) -> coordinator_proto::v1::coordinator_server::CoordinatorServer<Self> {
        coordinator_proto::v1::coordinator_server::CoordinatorServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The service for workers, with its limits.
    pub(crate) fn workers(&self) -> worker_proto::v1::worker_server::WorkerServer<Self> {
        worker_proto::v1::worker_server::WorkerServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The peer of a request, proven and in time.
fn remote<T>(request: &Request<T>) -> Result<Remote, Status> {
    let remote = serve::remote(request).ok_or_else(|| Status::internal("the connection has no identity"))?;
    if remote.peer == Peer::Anonymous {
        info!(address = %remote.address, "a peer without a certificate was refused");
        return Err(Status::unauthenticated("a certificate is needed; enrol first"));
    }
    Ok(remote)
}

/// A peer with a valid certificate asked for something that is not for it.
fn forbidden(remote: &Remote, service: &str) -> Status {
    warn!(address = %remote.address, peer = %remote.peer, service, "a peer was refused: the service is not for it");
    let (Peer::Manager { region, .. } | Peer::Coordinator { region, .. } | Peer::Worker { region, .. }) =
        &remote.peer
    else {
        return Status::unauthenticated("a certificate is needed; enrol first");
    };
    RegionMetrics::new(region).refused(Refusal::NotYours);
    Status::permission_denied(format!("the {service} service is not for a {}", remote.peer))
}

#[tonic::async_trait]
impl Coordinator for Sessions {
    type AttachStream = SessionStream<coordinator_proto::v1::FromManager>;

    async fn attach(
        &self,
        request: Request<Streaming<coordinator_proto::v1::FromCoordinator>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let remote = remote(&request)?;
        let Peer::Coordinator { region, instance } = &remote.peer else {
            return Err(forbidden(&remote, "coordinator"));
        };
        let (lead, instance) = (self.leads.of(region)?, *instance);
        let (caller, feed, incoming) = multiplex(Side::Listener, OUTGOING);
        let caller = CoordinatorCaller { caller, term: lead.term, trace: None };
        let certificate = Certificate::of(&remote);
        let (ended, end) = oneshot::channel();
        let session = coordinator::Session::new(lead.clone(), instance, caller, certificate);
        lead.spawn(async move {
            if let Err(status) = session.run(incoming, request.into_inner()).await {
                if is_broken_off(&status) {
                    debug!(%instance, %status, "a coordinator has broken its stream off");
                } else {
                    info!(%instance, %status, "a coordinator's stream was ended");
                }
                // The peer may be gone already.
                let _gone = ended.send(status);
            }
        });
        Ok(Response::new(SessionStream { feed, end }))
    }
}

#[tonic::async_trait]
impl Worker for Sessions {
    type AttachStream = SessionStream<worker_proto::v1::FromManager>;

    async fn attach(
        &self,
        request: Request<Streaming<worker_proto::v1::FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let remote = remote(&request)?;
        let Peer::Worker { region, attempt } = &remote.peer else {
            return Err(forbidden(&remote, "worker"));
        };
        let (lead, attempt) = (self.leads.of(region)?, *attempt);
        let (caller, feed, incoming) = multiplex(Side::Listener, OUTGOING);
        let caller = WorkerCaller { caller, term: lead.term, trace: None };
        let certificate = Certificate::of(&remote);
        let (ended, end) = oneshot::channel();
        let session = worker::Session::new(lead.clone(), attempt, caller, certificate);
        lead.spawn(async move {
            if let Err(status) = session.run(incoming, request.into_inner()).await {
                if is_broken_off(&status) {
                    debug!(%attempt, %status, "a worker has broken its stream off");
                } else {
                    info!(%attempt, %status, "a worker's stream was ended");
                }
                // The peer may be gone already.
                let _gone = ended.send(status);
            }
        });
        Ok(Response::new(SessionStream { feed, end }))
    }
}

/// When the peer's right to its stream ends, unless it renews its certificate on it.
#[derive(Clone)]
struct Certificate {
    ends: Arc<Mutex<Timestamp>>,
}

impl Certificate {
    fn of(remote: &Remote) -> Self {
        let ends = remote.certificate_ends.unwrap_or_default();
        Self { ends: Arc::new(Mutex::new(ends)) }
    }

    /// The peer has a new one.
    fn renewed(&self, ends: Timestamp) {
        let mut held = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        *held = ends.max(*held);
    }

    fn check(&self, lead: &Lead) -> Result<(), Status> {
        let ends = *self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        if lead.now() < ends {
            return Ok(());
        }
        lead.metrics.refused(Refusal::Unauthenticated);
        Err(Status::unauthenticated("the certificate has run out and was not renewed in time"))
    }
}

/// Whether the peer went away in the middle, as a process does that ends: gRPC's words for what HTTP/2 or the connection
/// reported. We end a stream ourselves with other codes.
fn is_broken_off(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Cancelled)
}

fn stepping_down() -> Status {
    Status::unavailable("this manager does not lead the region any more; try the next address")
}

fn replaced() -> Status {
    Status::aborted("a newer stream of the same peer has taken this one's place")
}

/// What a session sends: its queue, and at the end what it ended with.
pub(crate) struct SessionStream<T> {
    feed: mpsc::Receiver<T>,
    end: oneshot::Receiver<Status>,
}

impl<T> Stream for SessionStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // What is queued goes out before the end does; an empty queue that nobody fills any more waits for the end.
        if let Poll::Ready(Some(message)) = self.feed.poll_recv(context) {
            return Poll::Ready(Some(Ok(message)));
        }
        match Pin::new(&mut self.end).poll(context) {
            Poll::Ready(Ok(status)) => {
                self.feed.close();
                Poll::Ready(Some(Err(status)))
            }
            Poll::Ready(Err(_)) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_end_ourselves_is_said_aloud() {
        assert!(is_broken_off(&Status::unknown("h2 protocol error: error reading a body from connection")));
        assert!(is_broken_off(&Status::cancelled("stream closed")));
        assert!(![stepping_down(), replaced()].iter().any(is_broken_off));
        assert!(!is_broken_off(&Status::deadline_exceeded("no heartbeat came in time")));
    }
}
