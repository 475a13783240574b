//! A scripted agent: a coordinator and workers that do exactly what a test says.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::{InstanceId, RegionName, StoreId};
use telecine_domain::instance::{InstanceProfile, RuntimeKind};
use telecine_domain::manifest::{Manifest, Sealed, SealedObject};
use telecine_domain::resources::Resources;
use telecine_domain::trace::TraceId;
use telecine_proto::calls::{Caller, Demultiplexer, Side, multiplex};
use telecine_proto::coordinator::v1 as c;
use telecine_proto::identity::{ClientIdentity, Credential, KeyAndRequest};
use telecine_proto::types::v1::TraceContext;
use telecine_proto::worker::v1 as w;
use telecine_proto::{PROTOCOL_VERSION, convert, trace};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::world::{GIB, World, region};

pub(crate) const CALL: Duration = Duration::from_secs(5);

pub(crate) fn instance(number: u128) -> InstanceId {
    InstanceId::new(telecine_domain::time::Timestamp::from_millis(1), number)
}

pub(crate) fn profile(id: InstanceId, region: RegionName) -> InstanceProfile {
    InstanceProfile {
        id,
        region,
        pool: "default".parse().unwrap(),
        host: "host".to_owned(),
        agent_version: "0.1.0".to_owned(),
        capacity: Resources { cpu_milli: 4000, memory_bytes: 8 * GIB, scratch_bytes: 10 * GIB, gpus: 0 },
        runtimes: BTreeSet::from([RuntimeKind::Process]),
        cached_images: BTreeSet::new(),
        problems: Vec::new(),
    }
}

/// What the manager asked of a coordinator.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Assign(AttemptId),
    Stop(AttemptId),
    Publish(AttemptId, Manifest),
    Close(AttemptId),
    /// Number, and whether it was lifted.
    Cordon(u64, bool),
}

/// How a coordinator answers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Habit {
    /// It takes and does everything.
    Willing,
    /// It refuses assignments for want of room, until its next profile.
    Refusing,
    /// It refuses assignments: it cannot begin them.
    Failing,
    /// It takes assignments, and finds nothing of granted outputs.
    Bereft,
    /// It answers to nothing.
    Mute,
}

type Traces = Arc<Mutex<Vec<Option<TraceId>>>>;

pub(crate) fn trace_of(trace: Option<&TraceContext>) -> Option<TraceId> {
    trace::of_wire(trace).map(|context| context.trace)
}

pub(crate) struct Coordinator {
    pub(crate) caller: Caller<c::FromCoordinator, c::FromManager>,
    pub(crate) welcome: c::Welcome,
    pub(crate) term: u64,
    pub(crate) asked: mpsc::UnboundedReceiver<Asked>,
    /// The trace of everything asked.
    pub(crate) traces: Traces,
    tasks: JoinSet<Result<(), Status>>,
}

pub(crate) fn coordinator_identity(world: &World, id: InstanceId, region: &RegionName) -> ClientIdentity {
    let key = KeyAndRequest::generate().unwrap();
    let life = Duration::from_secs(24 * 3600);
    let signed = world.authority.sign_coordinator(key.request_der(), region, id, life, world.now()).unwrap();
    ClientIdentity::new(key.with_chain(signed.chain_der).unwrap())
}

impl Coordinator {
    pub(crate) async fn attach(world: &World, id: InstanceId) -> Self {
        Self::attach_running(world, id, &[]).await
    }

    pub(crate) async fn attach_running(world: &World, id: InstanceId, running: &[AttemptId]) -> Self {
        let hello = hello(id, region(), running);
        Self::try_attach(world, coordinator_identity(world, id, &region()), hello, Habit::Willing)
            .await
            .unwrap()
    }

    pub(crate) async fn with_habit(world: &World, id: InstanceId, habit: Habit) -> Self {
        let identity = coordinator_identity(world, id, &region());
        Self::try_attach(world, identity, hello(id, region(), &[]), habit).await.unwrap()
    }

    /// Attaches with any identity and hello; tries again while nobody leads the region.
    pub(crate) async fn try_attach(
        world: &World,
        identity: ClientIdentity,
        hello: c::Hello,
        habit: Habit,
    ) -> Result<Self, Status> {
        loop {
            let first = c::FromCoordinator {
                body: Some(c::from_coordinator::Body::Hello(hello.clone())),
                ..Default::default()
            };
            match Self::open(world, &identity, first, habit).await {
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    async fn open(
        world: &World,
        identity: &ClientIdentity,
        first: c::FromCoordinator,
        habit: Habit,
    ) -> Result<Self, Status> {
        let channel = world
            .dialer(identity.clone())
            .connect(&world.address)
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let (caller, feed, mut incoming) = multiplex(Side::Dialer, 64);
        caller.notify(first).await.unwrap();
        let mut client = c::coordinator_client::CoordinatorClient::new(channel);
        let mut stream = client.attach(ReceiverStream::new(feed)).await?.into_inner();
        let first: Option<c::FromManager> = incoming.next(&mut stream).await?;
        let Some(c::FromManager { term, body: Some(c::from_manager::Body::Welcome(welcome)), .. }) = first
        else {
            return Err(Status::unknown("no welcome"));
        };
        let (asked, questions) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let traces = Traces::default();
        tasks.spawn(answer(incoming, stream, caller.clone(), (asked, traces.clone()), habit));
        tasks.spawn(heartbeat(caller.clone()));
        Ok(Self { caller, welcome, term, asked: questions, traces, tasks })
    }

    /// The next thing the manager asks.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::time::timeout(Duration::from_secs(120), self.asked.recv())
            .await
            .expect("asked in time")
            .unwrap()
    }

    /// The next assignment; nothing else may come before it.
    pub(crate) async fn assigned(&mut self) -> AttemptId {
        match self.next().await {
            Asked::Assign(attempt) => attempt,
            other => panic!("{other:?} instead of an assignment"),
        }
    }

    /// Ends the connection as a dying process does.
    pub(crate) async fn die(mut self) {
        self.tasks.shutdown().await;
    }

    /// How the stream ended.
    pub(crate) async fn ended(&mut self) -> Status {
        while let Some(ended) = self.tasks.join_next().await {
            if let Ok(Err(status)) = ended {
                return status;
            }
        }
        panic!("the stream ended without a status")
    }

    pub(crate) async fn call(&self, body: c::from_coordinator::Body) -> c::from_manager::Body {
        let message = c::FromCoordinator { body: Some(body), ..Default::default() };
        self.caller.call(message, CALL).await.unwrap().body.unwrap()
    }

    /// Has a certificate signed for the worker of an attempt.
    pub(crate) async fn sign(&self, attempt: AttemptId) -> Result<Credential, c::Refused> {
        let key = KeyAndRequest::generate().unwrap();
        let sign = c::SignWorker { id: Some(attempt.into()), request_der: key.request_der().to_vec() };
        match self.call(c::from_coordinator::Body::SignWorker(sign)).await {
            c::from_manager::Body::Signed(signed) => Ok(key.with_chain(signed.chain_der).unwrap()),
            c::from_manager::Body::Refused(refused) => Err(refused),
            other => panic!("{other:?}"),
        }
    }

    /// Reports the death of a worker.
    pub(crate) async fn worker_gone(&self, attempt: AttemptId) -> c::from_manager::Body {
        let failure = Failure::new(FailureClass::Infrastructure, "worker_died", "the worker died");
        let gone =
            c::WorkerGone { id: Some(attempt.into()), failure: Some(failure.into()), interrupted: false };
        self.call(c::from_coordinator::Body::WorkerGone(gone)).await
    }

    pub(crate) async fn notify(&self, body: c::from_coordinator::Body) {
        let message = c::FromCoordinator { body: Some(body), ..Default::default() };
        self.caller.notify(message).await.unwrap();
    }
}

pub(crate) fn hello(id: InstanceId, region: RegionName, running: &[AttemptId]) -> c::Hello {
    let running = running.iter().map(|&id| c::RunningAttempt { id: Some(id.into()), resources: None });
    c::Hello {
        profile_json: convert::json(&profile(id, region)),
        running: running.collect(),
        highest_term: 0,
        versions: vec![PROTOCOL_VERSION],
        ..Default::default()
    }
}

async fn heartbeat(caller: Caller<c::FromCoordinator, c::FromManager>) -> Result<(), Status> {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let body = Some(c::from_coordinator::Body::Heartbeat(c::Heartbeat::default()));
        if caller.notify(c::FromCoordinator { body, ..Default::default() }).await.is_err() {
            return Ok(());
        }
    }
}

async fn answer(
    mut incoming: Demultiplexer<c::FromManager>,
    mut stream: Streaming<c::FromManager>,
    caller: Caller<c::FromCoordinator, c::FromManager>,
    (asked, traces): (mpsc::UnboundedSender<Asked>, Traces),
    habit: Habit,
) -> Result<(), Status> {
    use c::from_coordinator::Body as Reply;
    use c::from_manager::Body;
    let id = |id| convert::attempt_id(id).unwrap();
    while let Some(message) = incoming.next(&mut stream).await? {
        let call = message.call_id;
        traces.lock().unwrap().push(trace_of(message.trace.as_ref()));
        let done = Reply::Done(c::Done::default());
        let (question, reply) = match message.body.unwrap() {
            Body::Cordon(cordon) => {
                let _unread = asked.send(Asked::Cordon(cordon.number, cordon.lifted));
                continue;
            }
            Body::Assign(assign) => {
                let reply = match habit {
                    Habit::Refusing => {
                        let failure =
                            Failure::new(FailureClass::Infrastructure, "not_enough_free", "it cleans up");
                        let free = Some(Resources { cpu_milli: 100, ..Resources::ZERO }.into());
                        c::AssignReply { accepted: false, failure: Some(failure.into()), free }
                    }
                    Habit::Failing => {
                        let failure = Failure::new(
                            FailureClass::Infrastructure,
                            "scratch_failed",
                            "its disk is broken",
                        );
                        c::AssignReply { accepted: false, failure: Some(failure.into()), free: None }
                    }
                    Habit::Willing | Habit::Bereft | Habit::Mute => {
                        c::AssignReply { accepted: true, ..Default::default() }
                    }
                };
                (Asked::Assign(id(assign.id)), Reply::AssignReply(reply))
            }
            Body::StopAttempt(stop) => (Asked::Stop(id(stop.id)), done),
            Body::Publish(publish) => {
                let manifest = publish.manifest.unwrap().try_into().unwrap();
                let published = habit != Habit::Bereft;
                let failure = (!published).then(|| {
                    Failure::new(FailureClass::Infrastructure, "sealed_bytes_gone", "output: it is gone")
                        .into()
                });
                let reply = c::PublishReply { published, failure };
                (Asked::Publish(id(publish.id), manifest), Reply::PublishReply(reply))
            }
            Body::CloseEpoch(close) => (Asked::Close(id(close.id)), done),
            other => panic!("{other:?}"),
        };
        let _unread = asked.send(question);
        if habit != Habit::Mute {
            let message = c::FromCoordinator { body: Some(reply), ..Default::default() };
            let _gone = caller.reply(call, message).await;
        }
    }
    Ok(())
}

pub(crate) struct Worker {
    pub(crate) attempt: AttemptId,
    pub(crate) caller: Caller<w::FromWorker, w::FromManager>,
    pub(crate) welcome: w::Welcome,
    pub(crate) trace: Option<TraceId>,
    pub(crate) credential: Credential,
    /// Stops and watch notices.
    pub(crate) told: mpsc::UnboundedReceiver<w::from_manager::Body>,
    tasks: JoinSet<Result<(), Status>>,
}

impl Worker {
    /// Gets a certificate through the coordinator and connects.
    pub(crate) async fn start(world: &World, coordinator: &Coordinator, attempt: AttemptId) -> Self {
        let credential = coordinator.sign(attempt).await.expect("the attempt is live");
        Self::connect(world, credential, attempt).await.unwrap().expect("the attempt is live")
    }

    /// Connects; `Ok(Err(refused))` when the epoch is closed.
    pub(crate) async fn connect(
        world: &World,
        credential: Credential,
        speaks_of: AttemptId,
    ) -> Result<Result<Self, w::Refused>, Status> {
        let channel = world
            .dialer(ClientIdentity::new(credential.clone()))
            .connect(&world.address)
            .await
            .map_err(|error| Status::unknown(error.to_string()))?;
        let (caller, feed, mut incoming) = multiplex(Side::Dialer, 64);
        let hello = w::Hello { phase: "leased".to_owned(), log_sequence: 0 };
        caller.notify(from_worker(speaks_of, w::from_worker::Body::Hello(hello))).await.unwrap();
        let mut client = w::worker_client::WorkerClient::new(channel);
        let mut stream = client.attach(ReceiverStream::new(feed)).await?.into_inner();
        let first: Option<w::FromManager> = incoming.next(&mut stream).await?;
        let trace = trace_of(first.as_ref().and_then(|message| message.trace.as_ref()));
        let welcome = match first.and_then(|message| message.body) {
            Some(w::from_manager::Body::Welcome(welcome)) => welcome,
            Some(w::from_manager::Body::Refused(refused)) => return Ok(Err(refused)),
            other => panic!("{other:?}"),
        };
        let (tell, told) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let answering = caller.clone();
        tasks.spawn(async move {
            while let Some(message) = incoming.next(&mut stream).await? {
                let _unread = tell.send(message.body.unwrap());
                if message.call_id != 0 {
                    let body = w::from_worker::Body::Stopping(w::Stopping {});
                    let _gone = answering.reply(message.call_id, from_worker(speaks_of, body)).await;
                }
            }
            Ok(())
        });
        Ok(Ok(Self { attempt: speaks_of, caller, welcome, trace, credential, told, tasks }))
    }

    pub(crate) async fn call(&self, body: w::from_worker::Body) -> w::from_manager::Body {
        self.caller.call(from_worker(self.attempt, body), CALL).await.unwrap().body.unwrap()
    }

    pub(crate) async fn renew(&self) -> w::from_manager::Body {
        self.call(w::from_worker::Body::RenewLease(w::RenewLease::default())).await
    }

    pub(crate) async fn enter(&self, phase: &str) -> w::from_manager::Body {
        let enter = w::EnterPhase { phase: phase.to_owned(), at_millis: 0 };
        self.call(w::from_worker::Body::EnterPhase(enter)).await
    }

    pub(crate) async fn seal(&self, manifest: Manifest) -> w::from_manager::Body {
        let seal = w::Seal { manifest: Some(manifest.into()), counters: Some(Default::default()) };
        self.call(w::from_worker::Body::Seal(seal)).await
    }

    pub(crate) async fn published(&self) -> w::from_manager::Body {
        self.call(w::from_worker::Body::Published(w::Published::default())).await
    }

    pub(crate) async fn ended(&self, failure: Option<Failure>, interrupted: bool) -> w::from_manager::Body {
        let failure = failure.map(Into::into);
        self.call(w::from_worker::Body::Ended(w::Ended { failure, interrupted, counters: None })).await
    }

    pub(crate) async fn log(&self, sequence: u64, data: &[u8]) -> w::from_manager::Body {
        let chunk = w::LogChunk { sequence, data: data.to_vec(), at_millis: 0 };
        self.call(w::from_worker::Body::Log(chunk)).await
    }

    pub(crate) async fn progress(&self, sequence: u64, ratio_ppm: u32) {
        let progress = w::Progress { sequence, ratio_ppm: Some(ratio_ppm), ..Default::default() };
        let body = w::from_worker::Body::Progress(progress);
        self.caller.notify(from_worker(self.attempt, body)).await.unwrap();
    }

    /// Ends the connection as a dying process does.
    pub(crate) async fn die(mut self) {
        self.tasks.shutdown().await;
    }

    /// How the stream ended.
    pub(crate) async fn status(&mut self) -> Status {
        self.tasks.join_next().await.unwrap().unwrap().expect_err("a stream that was ended has a status")
    }
}

pub(crate) fn from_worker(attempt: AttemptId, body: w::from_worker::Body) -> w::FromWorker {
    w::FromWorker { id: Some(attempt.into()), body: Some(body), ..Default::default() }
}

pub(crate) fn is_refused(body: &w::from_manager::Body, code: &str) -> bool {
    matches!(body, w::from_manager::Body::Refused(refused) if refused.code == code)
}

pub(crate) fn is_accepted(body: &w::from_manager::Body) -> bool {
    matches!(body, w::from_manager::Body::Accepted(_))
}

/// What an attempt seals when it made `key`.
pub(crate) fn manifest(store: StoreId, key: &str, attempt: AttemptId) -> Manifest {
    let object = SealedObject {
        slot: "result".parse().unwrap(),
        store,
        key: key.parse().unwrap(),
        size_bytes: 5,
        sha256: "0".repeat(64),
        etag: None,
        sealed: Sealed::HiddenFile {
            hidden_key: format!(".telecine-upload-{}-{}-0", attempt.job, attempt.attempt),
        },
    };
    Manifest { objects: vec![object] }
}
