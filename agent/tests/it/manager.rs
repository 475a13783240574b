//! A manager that does what a test tells it, over the real protocol, TLS and certificates, on any network.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::trace::TraceId;
use telecine_proto::calls::{Caller, Side, multiplex};
use telecine_proto::clock::Clock;
use telecine_proto::coordinator::v1 as coordinator;
use telecine_proto::coordinator::v1::coordinator_server::{Coordinator, CoordinatorServer};
use telecine_proto::enrolment::v1::enrolment_server::{Enrolment, EnrolmentServer};
use telecine_proto::enrolment::v1::{EnrolRequest, Enrolled};
use telecine_proto::identity::{CertificateAuthority, Peer, ServerIdentity};
use telecine_proto::net::Network;
use telecine_proto::serve::{self, Limits};
use telecine_proto::trace;
use telecine_proto::types::v1 as types;
use telecine_proto::worker::v1 as worker;
use telecine_proto::worker::v1::worker_server::{Worker, WorkerServer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const TOKEN: &str = "jt_for-tests";

/// What the manager answers to a worker.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) lease_millis: u32,
    pub(crate) renew_millis: u32,
    /// `None` grants; else the code of the refusal.
    pub(crate) refuse_seal: Option<&'static str>,
    /// Whether renewals are answered.
    pub(crate) renews: bool,
    /// Whether hellos are answered.
    pub(crate) welcomes: bool,
    /// Whether calls (but renewals) are answered.
    pub(crate) answers: bool,
    pub(crate) watched: bool,
    pub(crate) stores: Vec<types::StoreAccess>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lease_millis: 60_000,
            renew_millis: 5_000,
            refuse_seal: None,
            renews: true,
            welcomes: true,
            answers: true,
            watched: false,
            stores: Vec::new(),
        }
    }
}

pub(crate) type WorkerCaller = Caller<worker::FromManager, worker::FromWorker>;
pub(crate) type CoordinatorCaller = Caller<coordinator::FromManager, coordinator::FromCoordinator>;

/// What was seen and what is to be answered.
pub(crate) struct Book {
    pub(crate) policy: Mutex<Policy>,
    /// Words for what workers said, in order.
    events: watch::Sender<Vec<String>>,
    pub(crate) log: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// Who said something, and in which trace.
    pub(crate) traces: Mutex<Vec<(&'static str, Option<TraceId>)>>,
    pub(crate) worker: watch::Sender<Option<WorkerCaller>>,
    pub(crate) coordinator: watch::Sender<Option<CoordinatorCaller>>,
    pub(crate) hellos: Mutex<Vec<coordinator::Hello>>,
    /// Raised to cut every worker stream.
    cut: watch::Sender<u64>,
    pub(crate) authority: CertificateAuthority,
    clock: Clock,
    pub(crate) term: Mutex<u64>,
}

impl Book {
    pub(crate) fn note(&self, event: impl Into<String>) {
        let event = event.into();
        self.events.send_modify(|events| events.push(event));
    }

    fn in_trace(&self, who: &'static str, trace: Option<&types::TraceContext>) {
        let trace = trace::of_wire(trace).map(|context| context.trace);
        self.traces.lock().unwrap().push((who, trace));
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.events.borrow().clone()
    }

    /// Waits until an event begins with `prefix`, and gives it.
    pub(crate) async fn until(&self, prefix: &str) -> String {
        let mut events = self.events.subscribe();
        let found = |events: &Vec<String>| events.iter().find(|event| event.starts_with(prefix)).cloned();
        let waited =
            tokio::time::timeout(Duration::from_secs(120), events.wait_for(|events| found(events).is_some()));
        match waited.await {
            Ok(events) => found(&events.expect("the book is open")).expect("just found"),
            Err(_) => panic!("no {prefix:?} in {:?}", self.events()),
        }
    }

    pub(crate) fn policy(&self, change: impl FnOnce(&mut Policy)) {
        change(&mut self.policy.lock().unwrap());
    }

    /// Ends every stream of workers and coordinators.
    pub(crate) fn cut(&self) {
        self.worker.send_replace(None);
        self.coordinator.send_replace(None);
        self.cut.send_modify(|count| *count += 1);
    }

    pub(crate) fn sign_worker(&self, request_der: &[u8], attempt: AttemptId) -> Vec<Vec<u8>> {
        let signed = self.authority.sign_worker(request_der, &region(), attempt, HOUR, self.clock.now());
        signed.expect("signed").chain_der
    }

    pub(crate) fn log_text(&self) -> String {
        let log = self.log.lock().unwrap();
        String::from_utf8_lossy(&log.values().flatten().copied().collect::<Vec<u8>>()).into_owned()
    }

    /// The present coordinator.
    pub(crate) async fn attached(&self) -> CoordinatorCaller {
        let mut caller = self.coordinator.subscribe();
        let caller = tokio::time::timeout(Duration::from_secs(60), caller.wait_for(Option::is_some));
        caller.await.expect("a coordinator attaches").unwrap().clone().unwrap()
    }
}

pub(crate) fn region() -> RegionName {
    "local".parse().unwrap()
}

/// A listening manager; it ends when this is dropped.
pub(crate) struct Manager {
    pub(crate) book: Arc<Book>,
    pub(crate) address: String,
    _tasks: JoinSet<()>,
}

impl Manager {
    pub(crate) async fn start(network: &dyn Network, clock: Clock) -> Self {
        let authority = CertificateAuthority::in_memory(clock.now()).unwrap();
        let peer = Peer::Manager { region: region(), id: "m1".to_owned() };
        let identity = ServerIdentity::signed_by(&authority, &peer, HOUR, clock.now()).unwrap();
        let tls = serve::tls(authority.roots(), identity, clock).unwrap();
        let listener = network.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap().to_string();
        let incoming = serve::incoming(listener, tls, Limits::default());
        let book = Arc::new(Book {
            policy: Mutex::default(),
            events: watch::Sender::default(),
            log: Mutex::default(),
            traces: Mutex::default(),
            worker: watch::Sender::new(None),
            coordinator: watch::Sender::new(None),
            hellos: Mutex::default(),
            cut: watch::Sender::new(0),
            authority,
            clock,
            term: Mutex::new(3),
        });
        let mut tasks = JoinSet::new();
        let served = Served(book.clone());
        tasks.spawn(async move {
            let routes = serve::server()
                .add_service(EnrolmentServer::new(served.clone()))
                .add_service(WorkerServer::new(served.clone()))
                .add_service(CoordinatorServer::new(served));
            let _ = routes.serve_with_incoming(incoming).await;
        });
        Self { book, address, _tasks: tasks }
    }
}

#[derive(Clone)]
struct Served(Arc<Book>);

#[tonic::async_trait]
impl Enrolment for Served {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Enrolled>, Status> {
        let request = request.into_inner();
        if request.join_token != TOKEN {
            return Err(Status::permission_denied("the join token is not valid"));
        }
        let book = &self.0;
        let instance: InstanceId = request.instance_id.parse().unwrap();
        let now = book.clock.now();
        let signed =
            book.authority.sign_coordinator(&request.request_der, &region(), instance, HOUR, now).unwrap();
        book.note("enrolled");
        Ok(Response::new(Enrolled {
            chain_der: signed.chain_der,
            not_after_millis: signed.not_after.as_millis(),
            region: "local".into(),
            pool: "default".into(),
            managers: Vec::new(),
        }))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Served {
    type AttachStream = Answers<worker::FromManager>;

    async fn attach(
        &self,
        request: Request<tonic::Streaming<worker::FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let book = self.0.clone();
        let mut stream = request.into_inner();
        let (caller, feed, mut calls) = multiplex(Side::Listener, 32);
        let mut cut = book.cut.subscribe();
        cut.mark_unchanged();
        tokio::spawn(async move {
            let serving = async {
                while let Ok(Some(message)) = calls.next(&mut stream).await {
                    answer_worker(&book, &caller, message).await;
                }
            };
            tokio::select! { () = serving => {}, _ = cut.changed() => {} }
            book.note("worker left");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(feed).map(Ok))))
    }
}

fn accepted() -> worker::Accepted {
    worker::Accepted { lease_millis: 0, watched: false, log_sequence: 0 }
}

fn welcome(book: &Book, policy: &Policy) -> worker::Welcome {
    let stored = book.log.lock().unwrap().keys().next_back().copied().unwrap_or(0);
    worker::Welcome {
        lease_millis: policy.lease_millis,
        renew_millis: policy.renew_millis,
        log_sequence: stored,
        watched: policy.watched,
    }
}

async fn answer_worker(book: &Arc<Book>, caller: &WorkerCaller, message: worker::FromWorker) {
    use worker::from_manager::Body;
    use worker::from_worker::Body as Asked;
    let policy = book.policy.lock().unwrap().clone();
    book.in_trace("worker", message.trace.as_ref());
    let Some(asked) = message.body else { return };
    let renewal = matches!(asked, Asked::RenewLease(_));
    let hello = matches!(asked, Asked::Hello(_));
    let body = match asked {
        Asked::Hello(hello) => {
            book.note(format!("hello {}", hello.phase));
            Body::Welcome(welcome(book, &policy))
        }
        Asked::Progress(progress) => {
            book.note(format!("progress {:?} {}", progress.ratio_ppm, progress.phase));
            return;
        }
        Asked::Log(chunk) => {
            let mut log = book.log.lock().unwrap();
            log.insert(chunk.sequence, chunk.data);
            Body::Accepted(worker::Accepted { log_sequence: chunk.sequence, ..accepted() })
        }
        Asked::RenewLease(_) => Body::Accepted(worker::Accepted {
            lease_millis: policy.lease_millis,
            watched: policy.watched,
            log_sequence: 0,
        }),
        Asked::EnterPhase(phase) => {
            book.note(format!("phase {}", phase.phase));
            Body::Accepted(accepted())
        }
        Asked::OpenStores(_) => {
            book.note("open stores");
            Body::Stores(worker::Stores { stores: policy.stores.clone() })
        }
        Asked::Seal(seal) => {
            let manifest = seal.manifest.unwrap_or_default();
            let keys: Vec<&str> = manifest.objects.iter().map(|object| object.key.as_str()).collect();
            book.note(format!("seal {keys:?}"));
            match policy.refuse_seal {
                None => Body::Grant(worker::Grant { manifest: Some(manifest) }),
                Some(code) => Body::Refused(worker::Refused { code: code.into(), message: "as told".into() }),
            }
        }
        Asked::Published(_) => {
            book.note("published");
            Body::Accepted(accepted())
        }
        Asked::Ended(ended) => {
            let what = ended.failure.map_or("as asked".to_owned(), |failure| {
                format!("{} {} {:?}", failure.code, failure.message, failure.log_tail)
            });
            book.note(format!("{} {what}", if ended.interrupted { "interrupted" } else { "ended" }));
            Body::Accepted(accepted())
        }
        Asked::RenewCertificate(_) => {
            Body::Refused(worker::Refused { code: "busy".into(), message: "later".into() })
        }
        Asked::Stopping(_) => return,
    };
    let answered = if renewal {
        policy.renews
    } else if hello {
        policy.welcomes
    } else {
        policy.answers
    };
    if answered {
        let term = *book.term.lock().unwrap();
        let answer = worker::FromManager { call_id: 0, trace: None, term, body: Some(body) };
        let _ = if message.call_id == 0 {
            caller.notify(answer).await
        } else {
            caller.reply(message.call_id, answer).await
        };
        if hello {
            book.worker.send_replace(Some(caller.clone()));
        }
    }
}

#[tonic::async_trait]
impl Coordinator for Served {
    type AttachStream = Answers<coordinator::FromManager>;

    async fn attach(
        &self,
        request: Request<tonic::Streaming<coordinator::FromCoordinator>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let book = self.0.clone();
        let mut stream = request.into_inner();
        let (caller, feed, mut calls) = multiplex(Side::Listener, 32);
        let mut cut = book.cut.subscribe();
        cut.mark_unchanged();
        tokio::spawn(async move {
            let serving = async {
                while let Ok(Some(message)) = calls.next(&mut stream).await {
                    answer_coordinator(&book, &caller, message).await;
                }
            };
            tokio::select! { () = serving => {}, _ = cut.changed() => {} }
            book.note("coordinator left");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(feed).map(Ok))))
    }
}

async fn answer_coordinator(
    book: &Arc<Book>,
    caller: &CoordinatorCaller,
    message: coordinator::FromCoordinator,
) {
    use coordinator::from_coordinator::Body as Asked;
    use coordinator::from_manager::Body;
    let trace = message.trace;
    let Some(asked) = message.body else { return };
    let hello = matches!(asked, Asked::Hello(_));
    let body = match asked {
        Asked::Hello(hello) => {
            book.note(format!("coordinator hello {}", hello.running.len()));
            let verdicts = hello
                .running
                .iter()
                .map(|running| coordinator::Verdict { id: running.id.clone(), keep: true })
                .collect();
            book.hellos.lock().unwrap().push(hello);
            let policy = book.policy.lock().unwrap().clone();
            Body::Welcome(coordinator::Welcome {
                verdicts,
                heartbeat_millis: 1000,
                lease_millis: policy.lease_millis,
                managers: Vec::new(),
                version: 1,
            })
        }
        Asked::Heartbeat(_) => return,
        Asked::ProfileChanged(changed) => {
            let going = if changed.notice_at_millis == 0 { "" } else { " going" };
            let hint = if changed.rebalance { " rebalance" } else { "" };
            book.note(format!("profile draining={}{going}{hint}", changed.draining));
            return;
        }
        Asked::Cordoned(cordoned) => {
            book.note(format!("cordoned {}", cordoned.number));
            return;
        }
        Asked::WorkerGone(gone) => {
            book.note(format!(
                "worker gone {}",
                gone.failure.map(|failure| failure.code).unwrap_or_default()
            ));
            Body::Accepted(coordinator::Accepted {})
        }
        Asked::SignWorker(sign) => {
            book.in_trace("sign", trace.as_ref());
            let attempt = sign.id.unwrap().try_into().unwrap();
            Body::Signed(coordinator::Signed {
                chain_der: book.sign_worker(&sign.request_der, attempt),
                not_after_millis: 0,
            })
        }
        _ => return,
    };
    let term = *book.term.lock().unwrap();
    let answer = coordinator::FromManager { call_id: 0, trace: None, term, body: Some(body) };
    let _ = if message.call_id == 0 {
        caller.notify(answer).await
    } else {
        caller.reply(message.call_id, answer).await
    };
    if hello {
        book.coordinator.send_replace(Some(caller.clone()));
    }
}
