//! The worker's connection to its manager: kept up through the ordered list of addresses for as long as the lease
//! lasts, renewing the lease, telling phases, log and progress, and taking what the manager asks.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use telecine_domain::attempt::Phase;
use telecine_domain::id::Term;
use telecine_proto::calls::{CallError, Demultiplexer, Side, multiplex};
use telecine_proto::convert::phase_name;
use telecine_proto::dial::Dialer;
use telecine_proto::identity::KeyAndRequest;
use telecine_proto::trace;
use telecine_proto::worker::v1::worker_client::WorkerClient;
use telecine_proto::worker::v1::{
    EnterPhase, FromManager, FromWorker, Hello, LogChunk, Progress, RenewCertificate, RenewLease, Stopping,
    Welcome, from_manager, from_worker,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::shared::{Halt, ManagerCaller, Shared};

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);
const PROGRESS_PAUSE_WATCHED: Duration = Duration::from_millis(250);
const BUSY_PAUSE: Duration = Duration::from_millis(500);
const QUEUE: usize = 32;

/// Why a connection was left.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Dial(#[from] telecine_proto::dial::DialError),
    #[error("the manager refused the stream: {0}")]
    Status(#[from] Box<tonic::Status>),
    #[error("the manager ended the stream")]
    Ended,
    #[error("no welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    NoWelcome,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("the manager's term {found} is older than {known}")]
    OldTerm { found: Term, known: Term },
}

/// Keeps the worker connected until it is fenced or dropped.
pub(crate) async fn keep(shared: Arc<Shared>, dialer: Dialer, managers: Vec<String>) {
    let mut term = Term(0);
    let mut pause = FIRST_PAUSE;
    let mut next = 0;
    while !shared.is_fenced() {
        let address = &managers[next % managers.len()];
        let mut session = Session { shared: &shared, dialer: &dialer, term: &mut term, welcomed: false };
        let ended = tokio::select! {
            ended = session.live(address) => ended,
            _ = shared.until_fenced() => return,
        };
        let welcomed = session.welcomed;
        shared.caller.send_replace(None);
        if let Err(error) = ended {
            tracing::info!(manager = %address, %error, "the manager is out of reach");
        }
        if welcomed {
            (pause, next) = (FIRST_PAUSE, 0);
        } else {
            next += 1;
        }
        tokio::time::sleep(jittered(pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Ends the right to go on when the lease ends; never returns before.
pub(crate) async fn watch_lease(shared: &Shared) {
    loop {
        let remaining = shared.lease_remaining();
        if remaining.is_zero() {
            return shared.halt(Halt::Fenced("the lease ended before a manager renewed it".to_owned()));
        }
        // Tokio's clock stands still while the machine sleeps, so the boot-time clock is looked at often.
        tokio::time::sleep(remaining.min(Duration::from_secs(1))).await;
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    dialer: &'a Dialer,
    term: &'a mut Term,
    welcomed: bool,
}

impl Session<'_> {
    async fn live(&mut self, address: &str) -> Result<(), SessionError> {
        let channel = self.dialer.connect(address).await?;
        let (caller, feed, mut calls) = multiplex::<FromWorker, FromManager>(Side::Dialer, QUEUE);
        let sent_at = self.shared.clock.boot();
        caller.notify(self.message(from_worker::Body::Hello(self.hello()))).await?;
        let mut client =
            WorkerClient::new(channel).max_decoding_message_size(telecine_proto::MAX_MESSAGE_BYTES);
        let attached = tokio::time::timeout(WELCOME_TIMEOUT, client.attach(ReceiverStream::new(feed)));
        let mut stream = attached.await.map_err(|_| SessionError::NoWelcome)?.map_err(Box::new)?.into_inner();
        let welcome = self.welcome(&mut calls, &mut stream).await?;
        self.welcomed = true;
        self.shared.renewed(sent_at, Duration::from_millis(welcome.lease_millis.into()));
        self.shared.watched.send_replace(welcome.watched);
        self.shared.with_log(|log| log.acknowledge(welcome.log_sequence));
        self.shared.caller.send_replace(Some(caller.clone()));
        tracing::debug!(manager = address, "attached");
        let renew = Duration::from_millis(u64::from(welcome.renew_millis).max(50));
        let pump = Pump { shared: self.shared, caller: &caller };
        tokio::select! {
            ended = take_calls(self.shared, self.term, &caller, &mut calls, &mut stream) => ended,
            ended = pump.renew_lease(renew) => ended,
            ended = pump.tell_phases() => ended,
            ended = pump.tell_log(welcome.log_sequence) => ended,
            ended = pump.tell_progress() => ended,
            ended = pump.renew_certificate(self.dialer) => ended,
        }
    }

    fn message(&self, body: from_worker::Body) -> FromWorker {
        message(self.shared, body)
    }

    fn hello(&self) -> Hello {
        Hello {
            phase: phase_name(self.shared.phase()).to_owned(),
            log_sequence: self.shared.with_log(|log| log.stored()),
        }
    }

    async fn welcome(
        &mut self,
        calls: &mut Demultiplexer<FromManager>,
        stream: &mut Streaming<FromManager>,
    ) -> Result<Welcome, SessionError> {
        let first = tokio::time::timeout(WELCOME_TIMEOUT, calls.next(stream));
        let first = first.await.map_err(|_| SessionError::NoWelcome)?.map_err(Box::new)?;
        let first = first.ok_or(SessionError::Ended)?;
        obey(self.term, Term(first.term))?;
        match first.body {
            Some(from_manager::Body::Welcome(welcome)) => Ok(welcome),
            Some(from_manager::Body::Refused(refused)) => {
                fence_if_stale(self.shared, &refused.code, &refused.message);
                Err(SessionError::Ended)
            }
            _ => Err(SessionError::NoWelcome),
        }
    }
}

fn message(shared: &Shared, body: from_worker::Body) -> FromWorker {
    let trace = trace::to_wire(shared.trace);
    FromWorker { call_id: 0, trace, id: Some(shared.attempt.into()), body: Some(body) }
}

/// Only the highest term is obeyed; an older manager is left at once.
fn obey(known: &mut Term, found: Term) -> Result<(), SessionError> {
    if found < *known {
        return Err(SessionError::OldTerm { found, known: *known });
    }
    *known = found;
    Ok(())
}

fn fence_if_stale(shared: &Shared, code: &str, message: &str) -> bool {
    let stale = matches!(code, "stale" | "not_yours");
    if stale {
        shared.halt(Halt::Fenced(format!("the manager says {code}: {message}")));
    }
    stale
}

async fn take_calls(
    shared: &Shared,
    term: &mut Term,
    caller: &ManagerCaller,
    calls: &mut Demultiplexer<FromManager>,
    stream: &mut Streaming<FromManager>,
) -> Result<(), SessionError> {
    while let Some(incoming) = calls.next(stream).await.map_err(Box::new)? {
        obey(term, Term(incoming.term))?;
        match incoming.body {
            Some(from_manager::Body::Stop(stop)) => {
                tracing::info!(reason = %stop.reason, "the manager asks to stop");
                shared.halt(Halt::Asked { grace: Duration::from_millis(stop.grace_millis.into()) });
                caller
                    .reply(incoming.call_id, message(shared, from_worker::Body::Stopping(Stopping {})))
                    .await?;
            }
            Some(from_manager::Body::Watch(watch)) => {
                shared.watched.send_replace(watch.watched);
                shared.news.notify_waiters();
            }
            Some(from_manager::Body::Refused(refused)) => {
                fence_if_stale(shared, &refused.code, &refused.message);
            }
            other => tracing::debug!(?other, "an unexpected message of the manager is passed over"),
        }
    }
    Err(SessionError::Ended)
}

/// What flows to the manager on one connection.
struct Pump<'a> {
    shared: &'a Arc<Shared>,
    caller: &'a ManagerCaller,
}

impl Pump<'_> {
    async fn call(&self, body: from_worker::Body) -> Result<Option<from_manager::Body>, SessionError> {
        let answer = self.caller.call(message(self.shared, body), CALL_TIMEOUT).await?;
        if let Some(from_manager::Body::Refused(refused)) = &answer.body {
            fence_if_stale(self.shared, &refused.code, &refused.message);
        }
        Ok(answer.body)
    }

    async fn renew_lease(&self, every: Duration) -> Result<(), SessionError> {
        loop {
            tokio::time::sleep(every).await;
            let sent_at = self.shared.clock.boot();
            let sent_at_millis = u64::try_from(sent_at.as_millis()).unwrap_or(u64::MAX);
            let answer = self.call(from_worker::Body::RenewLease(RenewLease { sent_at_millis })).await?;
            if let Some(from_manager::Body::Accepted(accepted)) = answer {
                self.shared.renewed(sent_at, Duration::from_millis(accepted.lease_millis.into()));
                self.shared.watched.send_replace(accepted.watched);
            }
        }
    }

    async fn tell_phases(&self) -> Result<(), SessionError> {
        loop {
            let news = self.shared.news.notified();
            let Some((phase, at)) = self.shared.next_phase() else {
                news.await;
                continue;
            };
            let body = EnterPhase { phase: phase_name(phase).to_owned(), at_millis: at.as_millis() };
            self.call(from_worker::Body::EnterPhase(body)).await?;
            self.shared.phase_told(phase);
        }
    }

    async fn tell_log(&self, stored: u64) -> Result<(), SessionError> {
        let mut stored = stored;
        loop {
            let news = self.shared.news.notified();
            let watched = *self.shared.watched.borrow();
            let now = self.shared.clock.boot();
            let (chunk, deadline) = self.shared.with_log(|log| {
                log.close_if_due(now, watched);
                (log.after(stored).cloned(), log.deadline(watched))
            });
            let Some(chunk) = chunk else {
                match deadline {
                    None => news.await,
                    Some(deadline) => {
                        let _ = tokio::time::timeout(deadline.saturating_sub(now), news).await;
                    }
                }
                continue;
            };
            let at_millis = self.shared.clock.now().as_millis();
            let body = LogChunk { sequence: chunk.sequence, data: chunk.data, at_millis };
            match self.call(from_worker::Body::Log(body)).await? {
                Some(from_manager::Body::Accepted(accepted)) => {
                    stored = stored.max(accepted.log_sequence);
                    self.shared.with_log(|log| log.acknowledge(accepted.log_sequence));
                    self.shared.news.notify_waiters();
                }
                _ => tokio::time::sleep(BUSY_PAUSE).await,
            }
        }
    }

    async fn tell_progress(&self) -> Result<(), SessionError> {
        let mut sent = 0;
        loop {
            let news = self.shared.news.notified();
            let Some((sequence, furthest, at)) = self.shared.progress_after(sent) else {
                news.await;
                continue;
            };
            let body = Progress {
                sequence,
                ratio_ppm: furthest.ratio_ppm,
                media_millis: furthest.media_millis,
                phase: furthest.phase,
                at_millis: at.as_millis(),
            };
            self.caller.notify(message(self.shared, from_worker::Body::Progress(body))).await?;
            sent = sequence;
            self.pause_between_progress().await;
        }
    }

    /// Short while somebody watches; somebody who begins to watch ends a long one.
    async fn pause_between_progress(&self) {
        let mut watched = self.shared.watched.subscribe();
        if !*watched.borrow_and_update() {
            let begins = watched.wait_for(|watched| *watched);
            let _ = tokio::time::timeout(PROGRESS_PAUSE, begins).await;
        } else {
            tokio::time::sleep(PROGRESS_PAUSE_WATCHED).await;
        }
    }

    /// At half of its life the certificate is replaced, under the one that still holds.
    async fn renew_certificate(&self, dialer: &Dialer) -> Result<(), SessionError> {
        loop {
            let Some(credential) = dialer.identity().current() else { return std::future::pending().await };
            let left = credential.not_after().since(self.shared.clock.now());
            tokio::time::sleep(left / 2).await;
            let Ok(key) = KeyAndRequest::generate() else { continue };
            let body = RenewCertificate { request_der: key.request_der().to_vec() };
            match self.call(from_worker::Body::RenewCertificate(body)).await? {
                Some(from_manager::Body::Signed(signed)) => match key.with_chain(signed.chain_der) {
                    Ok(credential) => dialer.identity().replace(credential),
                    Err(error) => tracing::warn!(%error, "the new certificate cannot be used"),
                },
                answer => {
                    tracing::warn!(?answer, "no new certificate");
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
            }
        }
    }
}

/// Whether the same call may be answered otherwise a moment later.
fn is_passing(code: &str) -> bool {
    matches!(code, "busy" | "unavailable" | "internal")
}

/// Why a call that must arrive did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The right is gone.
    Fenced,
    /// The manager refused for another reason.
    Refused {
        /// The stable word.
        code: String,
        /// Why.
        message: String,
    },
}

/// Calls until an answer comes, over as many connections as it takes. Every call of a worker may be repeated.
pub(crate) async fn call(shared: &Shared, body: from_worker::Body) -> Result<from_manager::Body, NoAnswer> {
    let mut callers = shared.caller.subscribe();
    loop {
        let caller = match callers.wait_for(Option::is_some).await {
            Ok(caller) => caller.clone(),
            Err(_) => return Err(NoAnswer::Fenced),
        };
        let Some(caller) = caller else { continue };
        let answer = caller.call(message(shared, body.clone()), CALL_TIMEOUT).await;
        match answer.map(|answer| answer.body) {
            Ok(Some(from_manager::Body::Refused(refused))) if is_passing(&refused.code) => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Ok(Some(from_manager::Body::Refused(refused))) => {
                return Err(if matches!(refused.code.as_str(), "stale" | "not_yours") {
                    NoAnswer::Fenced
                } else {
                    NoAnswer::Refused { code: refused.code, message: refused.message }
                });
            }
            Ok(Some(body)) => return Ok(body),
            Ok(None) => tokio::time::sleep(BUSY_PAUSE).await,
            Err(error) => {
                tracing::debug!(%error, "a call is made again");
                // The connection is on its way out; the next one comes by the watch.
                tokio::time::sleep(FIRST_PAUSE).await;
            }
        }
    }
}

/// Waits until phases and log have arrived, for at most `patience`.
pub(crate) async fn drained(shared: &Shared, patience: Duration) {
    let drained = async {
        loop {
            let news = shared.news.notified();
            if shared.next_phase().is_none_or(|(phase, _)| phase == Phase::Flushing)
                && shared.with_log(|log| log.is_empty())
            {
                return;
            }
            news.await;
        }
    };
    if tokio::time::timeout(patience, drained).await.is_err() {
        tracing::warn!("the end of the log did not reach the manager in time");
    }
}
