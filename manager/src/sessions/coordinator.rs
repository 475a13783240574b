//! The stream of one coordinator: its hello and what of it goes on, its heartbeats, and what it asks for.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::cordon::{self, Cordoned};
use telecine_core::leader;
use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::Failure;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::{InstanceProfile, Notice};
use telecine_domain::job::JobState;
use telecine_domain::region::RegionEvent;
use telecine_domain::trace::TraceContext;
use telecine_proto::calls::Demultiplexer;
use telecine_proto::coordinator::v1::{
    Accepted, FromCoordinator, Hello, ProfileChanged, Refused, SignCoordinator, SignWorker, Signed, Verdict,
    Welcome, WorkerGone, from_coordinator, from_manager,
};
use telecine_proto::identity::SignedCertificate;
use telecine_proto::{PROTOCOL_VERSION, convert, trace};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use super::{CERTIFICATE_CHECK, Certificate, HELLO, replaced, stepping_down};
use crate::dispatch::{EndedBy, cordon_message, end_with_leftovers};
use crate::lead::{Command, Lead};
use crate::metrics::Refusal;
use crate::publish;
use crate::registry::CoordinatorCaller;
use crate::signing::{self, SigningError};

/// Calls of one coordinator that are worked on at the same time.
const CALLS: usize = 16;
/// Most attempts in one hello.
const MAX_RUNNING: usize = 4096;
/// A coordinator that is silent for this many heartbeats has a dead connection.
const SILENT_HEARTBEATS: u32 = 3;
/// But never sooner than this.
const SHORTEST_SILENCE: Duration = Duration::from_secs(10);

/// A coordinator's stream.
pub(super) struct Session {
    lead: Arc<Lead>,
    instance: InstanceId,
    caller: CoordinatorCaller,
    certificate: Certificate,
    calls: Arc<Semaphore>,
    /// Of its stream, once it has said hello.
    generation: u64,
}

/// What a hello has told, and what of it goes on.
struct Welcomed {
    profile: InstanceProfile,
    running: Vec<AttemptId>,
    cordon: Option<Cordoned>,
    notice: Notice,
}

impl Session {
    pub(super) fn new(
        lead: Arc<Lead>,
        instance: InstanceId,
        caller: CoordinatorCaller,
        certificate: Certificate,
    ) -> Self {
        Self { lead, instance, caller, certificate, calls: Arc::new(Semaphore::new(CALLS)), generation: 0 }
    }

    /// Runs until the stream ends, or is ended with a status.
    pub(super) async fn run(
        mut self,
        mut incoming: Demultiplexer<FromCoordinator>,
        mut stream: Streaming<FromCoordinator>,
    ) -> Result<(), Status> {
        let over = self.lead.over.clone();
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO, incoming.next(&mut stream)) => first,
            () = over.cancelled() => return Err(stepping_down()),
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let Some(from_coordinator::Body::Hello(hello)) = first.and_then(|message| message.body) else {
            self.lead.metrics.refused(Refusal::Invalid);
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        let Welcomed { profile, running, cordon, notice } = self.welcome(hello).await?;
        let open = self.lead.registry.open(self.caller.clone());
        let (generation, taken) = (open.generation, open.replaced.clone());
        self.generation = generation;
        let profile = Box::new(profile);
        self.lead.command(Command::Attach { profile, running, cordon, notice, stream: open }).await;
        let ended = tokio::select! {
            ended = self.listen(&mut incoming, &mut stream) => ended,
            () = taken.cancelled() => Err(replaced()),
            () = over.cancelled() => Err(stepping_down()),
        };
        self.lead.command(Command::Detach { instance: self.instance, generation }).await;
        ended
    }

    /// Checks the hello and says what of it goes on, then how the instance is cordoned: before it can be given work.
    async fn welcome(&self, hello: Hello) -> Result<Welcomed, Status> {
        let lead = &self.lead;
        if hello.highest_term > lead.term.0 {
            warn!(instance = %self.instance, term = lead.term.0, highest = hello.highest_term, "an agent has seen a later term");
            return Err(stepping_down());
        }
        if !hello.versions.contains(&PROTOCOL_VERSION) {
            let spoken = &hello.versions;
            return Err(Status::failed_precondition(format!(
                "no common protocol version: this manager speaks {PROTOCOL_VERSION}, the agent {spoken:?}; upgrade the older one"
            )));
        }
        self.in_service().await?;
        let profile = self.profile(&hello.profile_json)?;
        let notice = convert::notice(hello.notice_at_millis, hello.rebalance);
        if hello.running.len() > MAX_RUNNING {
            return Err(self.invalid(&format!("a hello names at most {MAX_RUNNING} attempts")));
        }
        let mut running = Vec::new();
        let mut verdicts = Vec::new();
        for attempt in hello.running {
            let id = convert::attempt_id(attempt.id).map_err(|error| self.invalid(&error.to_string()))?;
            let keep = self.may_go_on(id).await?;
            verdicts.push(Verdict { id: Some(id.into()), keep });
            if keep {
                running.push(id);
            } else {
                info!(attempt = %id, instance = %self.instance, "an attempt without a right is stopped");
                lead.metrics.refused(Refusal::Stale);
            }
        }
        let cordon = self.cordon().await?;
        let welcome = Welcome {
            verdicts,
            heartbeat_millis: millis(lead.config.heartbeat),
            lease_millis: millis(lead.config.lease),
            managers: self.managers().await,
            version: PROTOCOL_VERSION,
        };
        self.say(0, from_manager::Body::Welcome(welcome)).await?;
        if let Some(cordon) = &cordon {
            self.say(0, cordon_message(cordon)).await?;
        }
        Ok(Welcomed { profile, running, cordon, notice })
    }

    /// The cordon of the instance, be it lifted: its coordinator may not have heard of that yet.
    async fn cordon(&self) -> Result<Option<Cordoned>, Status> {
        let lead = &self.lead;
        cordon::of(&lead.backend, &lead.region, self.instance).await.map_err(|error| {
            warn!(instance = %self.instance, %error, "a hello cannot be answered: its cordon was not read");
            Status::unavailable("the records cannot be read just now; try again")
        })
    }

    /// A certificate outlives the instance it was given to.
    async fn in_service(&self) -> Result<(), Status> {
        match signing::in_service(&self.lead, self.instance).await {
            Ok(()) => Ok(()),
            Err(SigningError::Unavailable(error)) => {
                warn!(instance = %self.instance, %error, "a hello cannot be answered: the records were not read");
                Err(Status::unavailable("the records cannot be read just now; try again"))
            }
            Err(refused) => {
                self.lead.metrics.refused(Refusal::NotYours);
                Err(Status::permission_denied(refused.to_string()))
            }
        }
    }

    /// The job's row decides. Without it nothing is stopped: the agent tries again.
    async fn may_go_on(&self, attempt: AttemptId) -> Result<bool, Status> {
        let found =
            telecine_core::dispatch::load(&self.lead.backend, attempt.job).await.map_err(|error| {
                warn!(%attempt, %error, "a hello cannot be answered: a job was not read");
                Status::unavailable("the jobs cannot be read just now; try again")
            })?;
        let here = |run: &telecine_domain::job::Run| run.instance == self.instance;
        Ok(found.is_some_and(|job| job.live_attempt() == Some(attempt) && job.state.run().is_some_and(here)))
    }

    /// This manager first, then whom the leadership names.
    async fn managers(&self) -> Vec<String> {
        let own = self.lead.config.advertise.clone();
        if !own.is_empty() {
            return own;
        }
        match leader::current(&self.lead.backend, &self.lead.region).await {
            Ok(Some(leadership)) => leadership.addresses,
            Ok(None) | Err(_) => Vec::new(),
        }
    }

    fn profile(&self, json: &[u8]) -> Result<InstanceProfile, Status> {
        let profile = convert::profile(json).map_err(|error| self.invalid(&error.to_string()))?;
        if profile.id != self.instance || profile.region != self.lead.region {
            self.lead.metrics.refused(Refusal::NotYours);
            warn!(instance = %self.instance, claimed = %profile.id, "a coordinator speaks for another instance");
            return Err(Status::permission_denied(format!(
                "the certificate is for {} in region {}, the profile for {} in region {}",
                self.instance, self.lead.region, profile.id, profile.region
            )));
        }
        Ok(profile)
    }

    fn invalid(&self, problem: &str) -> Status {
        self.lead.metrics.refused(Refusal::Invalid);
        Status::invalid_argument(problem)
    }

    async fn listen(
        &self,
        incoming: &mut Demultiplexer<FromCoordinator>,
        stream: &mut Streaming<FromCoordinator>,
    ) -> Result<(), Status> {
        let silence = (self.lead.config.heartbeat * SILENT_HEARTBEATS).max(SHORTEST_SILENCE);
        let mut heard = Instant::now();
        let mut check = tokio::time::interval(CERTIFICATE_CHECK);
        loop {
            tokio::select! {
                message = incoming.next(stream) => match message? {
                    Some(message) => {
                        heard = Instant::now();
                        self.take(message).await?;
                    }
                    None => return Ok(()),
                },
                _ = check.tick() => self.certificate.check(&self.lead)?,
                () = tokio::time::sleep_until(heard + silence) => {
                    return Err(Status::deadline_exceeded("no heartbeat came in time"));
                }
            }
        }
    }

    async fn take(&self, message: FromCoordinator) -> Result<(), Status> {
        let id = message.call_id;
        let trace = trace::of_wire(message.trace.as_ref());
        match message.body {
            Some(from_coordinator::Body::Heartbeat(_)) => Ok(()),
            Some(from_coordinator::Body::ProfileChanged(changed)) => self.profile_changed(changed).await,
            Some(from_coordinator::Body::Cordoned(cordoned)) => {
                let (instance, generation, number) = (self.instance, self.generation, cordoned.number);
                self.lead.command(Command::IdleAt { instance, generation, number }).await;
                Ok(())
            }
            Some(from_coordinator::Body::WorkerGone(gone)) => self.worker_gone(id, trace, gone).await,
            Some(from_coordinator::Body::SignWorker(sign)) => self.sign_worker(id, trace, sign).await,
            Some(from_coordinator::Body::SignCoordinator(sign)) => self.sign_coordinator(id, &sign).await,
            Some(from_coordinator::Body::Hello(_)) => Err(self.invalid("a stream has one hello")),
            Some(
                from_coordinator::Body::AssignReply(_)
                | from_coordinator::Body::Done(_)
                | from_coordinator::Body::PublishReply(_),
            ) => Err(self.invalid("a reply came without its call")),
            // A newer agent may say things that this manager does not know.
            None if id == 0 => Ok(()),
            None => self.refuse(id, Refusal::Invalid.code(), "this manager does not know the call").await,
        }
    }

    async fn profile_changed(&self, changed: ProfileChanged) -> Result<(), Status> {
        let profile = self.profile(&changed.profile_json)?;
        let notice = convert::notice(changed.notice_at_millis, changed.rebalance);
        self.lead.tell(RegionEvent::Noticed { instance: self.instance, notice }).await;
        self.lead.tell(RegionEvent::ProfileChanged { profile, draining: changed.draining }).await;
        Ok(())
    }

    async fn worker_gone(
        &self,
        id: u64,
        trace: Option<TraceContext>,
        gone: WorkerGone,
    ) -> Result<(), Status> {
        let attempt = convert::attempt_id(gone.id).map_err(|error| self.invalid(&error.to_string()))?;
        let failure = convert::required("failure", gone.failure)
            .and_then(Failure::try_from)
            .map_err(|error| self.invalid(&error.to_string()))?;
        let ended = if gone.interrupted { EndedBy::Interruption } else { EndedBy::Failure };
        let caller = self.caller.clone().in_trace(trace);
        let (lead, instance) = (self.lead.clone(), self.instance);
        let turn = self.turn().await?;
        lead.clone().spawn(async move {
            let body = match record_gone(&lead, instance, attempt, (ended, failure)).await {
                Some(true) => from_manager::Body::Accepted(Accepted {}),
                Some(false) => refused(Refusal::Stale.code(), "the attempt had no right any more"),
                None => refused(Refusal::NotYours.code(), "the attempt does not run on this instance"),
            };
            if id != 0 {
                // A coordinator that is gone says it again when it is back.
                let _gone = caller.reply(id, body).await;
            }
            drop(turn);
        });
        Ok(())
    }

    async fn sign_worker(
        &self,
        id: u64,
        trace: Option<TraceContext>,
        sign: SignWorker,
    ) -> Result<(), Status> {
        let attempt = convert::attempt_id(sign.id).map_err(|error| self.invalid(&error.to_string()))?;
        let caller = self.caller.clone().in_trace(trace);
        let (lead, instance) = (self.lead.clone(), self.instance);
        let turn = self.turn().await?;
        lead.clone().spawn(async move {
            let result = signing::worker(&lead, instance, attempt, &sign.request_der).await;
            let _gone = caller.reply(id, signed_or_refused(&lead, result)).await;
            drop(turn);
        });
        Ok(())
    }

    async fn sign_coordinator(&self, id: u64, sign: &SignCoordinator) -> Result<(), Status> {
        let result = signing::coordinator_again(&self.lead, self.instance, &sign.request_der).await;
        if let Ok(signed) = &result {
            self.certificate.renewed(signed.not_after);
        }
        self.say(id, signed_or_refused(&self.lead, result)).await
    }

    /// Waits while too many of the coordinator's calls are under way: it is slowed down, nobody else is.
    async fn turn(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        let turn = self.calls.clone().acquire_owned().await;
        turn.map_err(|_| Status::internal("the session is over"))
    }

    async fn refuse(&self, id: u64, code: &str, message: &str) -> Result<(), Status> {
        self.say(id, refused(code, message)).await
    }

    async fn say(&self, id: u64, body: from_manager::Body) -> Result<(), Status> {
        let gone = |_| Status::deadline_exceeded("the coordinator does not read");
        self.caller.reply(id, body).await.map_err(gone)
    }
}

/// Records the death of a worker. `Some(true)`: recorded; `Some(false)`: the attempt had no right any more; `None`: it
/// was not this instance's.
async fn record_gone(
    lead: &Arc<Lead>,
    instance: InstanceId,
    attempt: AttemptId,
    (ended, failure): (EndedBy, Failure),
) -> Option<bool> {
    let Some(Some(job)) = lead.load(attempt.job).await else { return Some(false) };
    if job.live_attempt() != Some(attempt) {
        lead.tell_outcome(attempt, &job).await;
        lead.spawn(publish::close_again(lead.clone(), attempt, instance));
        return Some(false);
    }
    if job.state.run().is_none_or(|run| run.instance != instance) {
        lead.metrics.refused(Refusal::NotYours);
        warn!(%attempt, %instance, "a coordinator reports about another instance's attempt");
        return None;
    }
    if matches!(job.state, JobState::Finalizing { .. }) {
        // Granted: nothing can fail any more. The instance that has the bytes publishes them at once.
        lead.spawn(publish::elsewhere(lead.clone(), attempt, instance));
        return Some(true);
    }
    info!(%attempt, %instance, %failure, "a worker is gone");
    Some(end_with_leftovers(lead, attempt, ended, failure).await)
}

fn signed_or_refused(lead: &Lead, result: Result<SignedCertificate, SigningError>) -> from_manager::Body {
    match result {
        Ok(SignedCertificate { chain_der, not_after }) => {
            from_manager::Body::Signed(Signed { chain_der, not_after_millis: not_after.as_millis() })
        }
        Err(error) => {
            if let Some(refusal) = error.refusal() {
                lead.metrics.refused(refusal);
            }
            info!(%error, "a certificate was not signed");
            refused(error.code(), &error.to_string())
        }
    }
}

fn refused(code: &str, message: &str) -> from_manager::Body {
    from_manager::Body::Refused(Refused { code: code.to_owned(), message: message.to_owned() })
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
