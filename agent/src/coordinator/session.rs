//! The coordinator's connection to its manager, through the ordered list of addresses with growing, jittered pauses.
//!
//! Each connection begins with a hello that lists every attempt whose worker or container may be alive; the manager's
//! verdict on each is obeyed. Only the highest term is obeyed, and a new one is written down first.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use telecine_domain::id::Term;
use telecine_domain::trace::TraceContext;
use telecine_proto::calls::{CallError, Demultiplexer, Side, multiplex};
use telecine_proto::coordinator::v1::coordinator_client::CoordinatorClient;
use telecine_proto::coordinator::v1::{
    Cordoned, Done, FromCoordinator, FromManager, Heartbeat, Hello, ProfileChanged, RunningAttempt,
    StopAttempt, Welcome, from_coordinator, from_manager,
};
use telecine_proto::dial::{DialError, Dialer};
use telecine_proto::tasks::Tasks;
use telecine_proto::{convert, trace};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::desk::{Desk, ManagerCaller};
use super::enrol::{self, EnrolError};
use super::orders::Order;
use super::{aftermath, assign, outputs};

const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks whether something is left that holds up an acknowledgement.
const LOOK: Duration = Duration::from_secs(1);
const QUEUE: usize = 64;

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the manager refused the stream: {} ({:?})", .0.message(), .0.code())]
    Status(Box<tonic::Status>),
    #[error("the manager ended the stream")]
    Ended,
    #[error("no welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error("the manager refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the manager's term {found} is not the highest known, {known}")]
    OldTerm { found: Term, known: Term },
}

/// Keeps the coordinator connected.
pub(super) async fn keep(desk: Arc<Desk>, dialer: Dialer, tasks: Tasks) {
    let mut pause = FIRST_PAUSE;
    let mut next = 0;
    loop {
        let managers = desk.managers();
        let address = &managers[next % managers.len()];
        let mut session = Session { desk: &desk, dialer: &dialer, tasks: &tasks, welcomed: false };
        let ended = session.live(address).await;
        let welcomed = session.welcomed;
        desk.caller.send_replace(None);
        if let Err(error) = ended {
            tracing::warn!(manager = %address, %error, "no connection to the manager");
        }
        if welcomed {
            (pause, next) = (FIRST_PAUSE, 0);
        } else {
            next += 1;
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(jittered).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

pub(super) fn message(body: from_coordinator::Body) -> FromCoordinator {
    message_in(None, body)
}

/// A message that belongs to a trace.
pub(super) fn message_in(trace: Option<TraceContext>, body: from_coordinator::Body) -> FromCoordinator {
    FromCoordinator { call_id: 0, trace: trace::to_wire(trace), body: Some(body) }
}

struct Session<'a> {
    desk: &'a Arc<Desk>,
    dialer: &'a Dialer,
    tasks: &'a Tasks,
    welcomed: bool,
}

impl Session<'_> {
    async fn live(&mut self, address: &str) -> Result<(), SessionError> {
        enrol::ensure(self.desk, self.dialer, address).await?;
        let channel = self.dialer.connect(address).await?;
        let (caller, feed, mut calls) = multiplex::<FromCoordinator, FromManager>(Side::Dialer, QUEUE);
        caller.notify(message(from_coordinator::Body::Hello(self.hello()))).await?;
        let mut client =
            CoordinatorClient::new(channel).max_decoding_message_size(telecine_proto::MAX_MESSAGE_BYTES);
        let attached = tokio::time::timeout(WELCOME_TIMEOUT, client.attach(ReceiverStream::new(feed)));
        let attached = attached.await.map_err(|_| SessionError::NoWelcome)?;
        let mut stream = attached.map_err(|status| SessionError::Status(Box::new(status)))?.into_inner();
        let welcome = self.welcome(&mut calls, &mut stream).await?;
        self.welcomed = true;
        let heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_millis).max(50));
        self.obey_verdicts(welcome).await;
        tracing::info!(manager = address, "attached");
        self.desk.caller.send_replace(Some(caller.clone()));
        if self.desk.is_draining() {
            self.desk.profile_news.notify_one();
        }
        tokio::select! {
            ended = self.take_calls(&caller, &mut calls, &mut stream) => ended,
            ended = self.beat(&caller, heartbeat) => ended,
            ended = self.tell_profile(&caller) => ended,
            ended = self.acknowledge(&caller) => ended,
            () = enrol::renew(self.desk, self.dialer, &caller) => Err(SessionError::Ended),
        }
    }

    fn hello(&self) -> Hello {
        let running = self.desk.running().into_iter();
        let notice = self.desk.notice();
        Hello {
            profile_json: convert::json(&self.desk.profile()),
            running: running
                .map(|(id, resources)| RunningAttempt {
                    id: Some(id.into()),
                    resources: Some(resources.into()),
                })
                .collect(),
            highest_term: self.desk.term().0,
            versions: vec![telecine_proto::PROTOCOL_VERSION],
            notice_at_millis: convert::notice_at_millis(&notice),
            rebalance: notice.rebalance,
        }
    }

    async fn welcome(
        &self,
        calls: &mut Demultiplexer<FromManager>,
        stream: &mut Streaming<FromManager>,
    ) -> Result<Welcome, SessionError> {
        let first = tokio::time::timeout(WELCOME_TIMEOUT, calls.next(stream));
        let first = first.await.map_err(|_| SessionError::NoWelcome)?;
        let first =
            first.map_err(|status| SessionError::Status(Box::new(status)))?.ok_or(SessionError::Ended)?;
        self.obey(first.term)?;
        match first.body {
            Some(from_manager::Body::Welcome(welcome)) => Ok(welcome),
            Some(from_manager::Body::Refused(refused)) => {
                Err(SessionError::Refused(format!("{}: {}", refused.code, refused.message)))
            }
            _ => Err(SessionError::NoWelcome),
        }
    }

    fn obey(&self, term: u64) -> Result<(), SessionError> {
        if self.desk.obeys(Term(term)) {
            return Ok(());
        }
        Err(SessionError::OldTerm { found: Term(term), known: self.desk.term() })
    }

    async fn obey_verdicts(&self, welcome: Welcome) {
        self.desk.learn_managers(welcome.managers);
        for verdict in welcome.verdicts.into_iter().filter(|verdict| !verdict.keep) {
            let Ok(attempt) = convert::attempt_id(verdict.id) else { continue };
            self.desk.order(&attempt, Order::Fence { reason: "the manager closed the epoch".to_owned() });
        }
    }

    async fn take_calls(
        &self,
        caller: &ManagerCaller,
        calls: &mut Demultiplexer<FromManager>,
        stream: &mut Streaming<FromManager>,
    ) -> Result<(), SessionError> {
        loop {
            let incoming =
                calls.next(stream).await.map_err(|status| SessionError::Status(Box::new(status)))?;
            let incoming = incoming.ok_or(SessionError::Ended)?;
            self.obey(incoming.term)?;
            if let Some(from_manager::Body::Cordon(told)) = &incoming.body {
                // In its turn: an assignment behind it must not overtake it.
                self.desk.cordon(told.number, told.lifted);
                continue;
            }
            let (desk, caller, tasks) = (self.desk.clone(), caller.clone(), self.tasks.clone());
            self.tasks.spawn(async move {
                let Some(body) = incoming.body else { return };
                let trace = trace::of_wire(incoming.trace.as_ref());
                let Some(answer) = answer(&desk, &tasks, trace, body).await else { return };
                if let Err(error) = caller.reply(incoming.call_id, message_in(trace, answer)).await {
                    tracing::debug!(%error, "an answer did not reach the manager");
                }
            });
        }
    }

    async fn beat(&self, caller: &ManagerCaller, every: Duration) -> Result<(), SessionError> {
        let mut sequence = 0;
        loop {
            tokio::time::sleep(every).await;
            sequence += 1;
            let sent_at_millis = u64::try_from(self.desk.clock.boot().as_millis()).unwrap_or(u64::MAX);
            let beat = Heartbeat { sequence, sent_at_millis };
            caller.notify(message(from_coordinator::Body::Heartbeat(beat))).await?;
        }
    }

    async fn tell_profile(&self, caller: &ManagerCaller) -> Result<(), SessionError> {
        loop {
            self.desk.profile_news.notified().await;
            let notice = self.desk.notice();
            let changed = ProfileChanged {
                profile_json: convert::json(&self.desk.profile()),
                draining: self.desk.is_draining(),
                notice_at_millis: convert::notice_at_millis(&notice),
                rebalance: notice.rebalance,
            };
            caller.notify(message(from_coordinator::Body::ProfileChanged(changed))).await?;
        }
    }

    /// Says that nothing is held at the cordon that stands, once that is so; on each stream anew.
    async fn acknowledge(&self, caller: &ManagerCaller) -> Result<(), SessionError> {
        let mut changes = self.desk.changes();
        let mut said = None;
        loop {
            let idle_at = self.desk.idle_at().filter(|_| !aftermath::journals_wait(self.desk));
            if let Some(number) = idle_at.filter(|_| idle_at != said) {
                tracing::info!(number, "nothing is held here at the cordon");
                caller.notify(message(from_coordinator::Body::Cordoned(Cordoned { number }))).await?;
            }
            said = idle_at;
            // That a journal is gone makes no noise.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK, changes.changed()).await {
                return std::future::pending().await;
            }
        }
    }
}

/// Does what the manager asks; `None` for what needs no answer.
async fn answer(
    desk: &Arc<Desk>,
    tasks: &Tasks,
    trace: Option<TraceContext>,
    body: from_manager::Body,
) -> Option<from_coordinator::Body> {
    Some(match body {
        from_manager::Body::Assign(asked) => {
            from_coordinator::Body::AssignReply(assign::assign(desk, tasks, trace, asked).await)
        }
        from_manager::Body::StopAttempt(asked) => from_coordinator::Body::Done(stop(desk, asked)),
        from_manager::Body::Drain(asked) => {
            tracing::info!(cordon = asked.cordon, reason = %asked.reason, "the manager asks to drain");
            desk.drain();
            from_coordinator::Body::Done(Done::default())
        }
        from_manager::Body::Publish(asked) => {
            from_coordinator::Body::PublishReply(outputs::publish(desk, asked).await)
        }
        from_manager::Body::CloseEpoch(asked) => {
            from_coordinator::Body::Done(outputs::close_epoch(desk, asked).await)
        }
        _ => return None,
    })
}

fn stop(desk: &Desk, asked: StopAttempt) -> Done {
    let attempt = match convert::attempt_id(asked.id) {
        Ok(attempt) => attempt,
        Err(error) => return Done { problem: error.to_string() },
    };
    // One that is not here is stopped.
    let grace = Duration::from_millis(asked.grace_millis.into());
    desk.order(&attempt, Order::Stop { grace, reason: asked.reason });
    Done::default()
}
