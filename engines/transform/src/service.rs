//! `telecine.engine.v1.Engine`: one run in the life of the process, which ends when the run's stream was read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use telecine_proto::engine::v1 as wire;
use telecine_proto::engine::v1::engine_server::Engine;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

use crate::processing::SCHEMA;
use crate::run::{self, Caller};

/// The engine's own version, the one in `engine-version.json`.
pub(crate) const VERSION: &str = "1.0.0";

/// Events that may wait for the caller.
const EVENTS: usize = 64;

/// What the service and `main` share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    /// Fires to end the work early.
    pub(crate) cancel: CancellationToken,
    /// Fires when there is nothing left to serve.
    pub(crate) over: CancellationToken,
    /// Owns the run.
    pub(crate) tasks: TaskTracker,
    started: Arc<AtomicBool>,
}

impl Life {
    /// Ends the work early; without work there is nothing left to do.
    pub(crate) fn stop(&self) {
        self.cancel.cancel();
        if !self.started.load(Ordering::SeqCst) {
            self.over.cancel();
        }
    }
}

/// The service.
#[derive(Debug)]
pub(crate) struct Transform {
    pub(crate) life: Life,
}

#[tonic::async_trait]
impl Engine for Transform {
    type RunStream = Events;

    async fn run(&self, request: Request<wire::RunRequest>) -> Result<Response<Events>, Status> {
        if self.life.started.swap(true, Ordering::SeqCst) {
            return Err(Status::failed_precondition("this engine runs once, and has been told to already"));
        }
        let request = request.into_inner();
        let (events, receiver) = mpsc::channel(EVENTS);
        let caller = Caller { events, cancel: self.life.cancel.clone() };
        tracing::info!(job = %request.job_id, attempt = request.attempt, "run");
        self.life.tasks.spawn(async move {
            let result = run::run(&request, &caller).await;
            match &result {
                Ok(summary) => tracing::info!(%summary, "done"),
                Err(failure) => tracing::info!(?failure, "failed"),
            }
            caller.end(result).await;
        });
        let over = self.life.over.clone().drop_guard();
        Ok(Response::new(Events { receiver: ReceiverStream::new(receiver), _over: over }))
    }

    async fn cancel(
        &self,
        request: Request<wire::CancelRequest>,
    ) -> Result<Response<wire::CancelReply>, Status> {
        tracing::info!(reason = request.into_inner().reason, "cancel");
        self.life.stop();
        Ok(Response::new(wire::CancelReply {}))
    }

    async fn describe(
        &self,
        _: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeReply>, Status> {
        Ok(Response::new(wire::DescribeReply {
            name: "telecine-transform".to_owned(),
            version: VERSION.to_owned(),
            processing_schema_json: SCHEMA.as_bytes().to_vec(),
        }))
    }
}

/// The events of the run. Dropping it, read to its end or left, ends the process.
#[derive(Debug)]
pub(crate) struct Events {
    receiver: ReceiverStream<Result<wire::RunEvent, Status>>,
    _over: DropGuard,
}

impl Stream for Events {
    type Item = Result<wire::RunEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.receiver).poll_next(context)
    }
}
