//! The stream of one worker. Every call is answered from a conditional write, so an answer is never better than the
//! record: a worker whose epoch is closed hears `stale` whatever it asks.
//!
//! Renewals are answered at once by the dispatch loop; changes of state wait for each other, in the order in which they
//! came; log and progress go their own way (`recorder`), so that a slow log never costs a lease. A stream that breaks
//! ends nothing: the lease decides.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::dispatch;
use telecine_core::update::ChangeError;
use telecine_domain::attempt::AttemptId;
use telecine_domain::job::Job;
use telecine_domain::region::{LiveAttempt, RegionEvent};
use telecine_proto::calls::Demultiplexer;
use telecine_proto::worker::v1::{Accepted, FromWorker, Hello, Refused, Welcome, from_manager, from_worker};
use telecine_proto::{convert, trace};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::{Instrument as _, info, info_span, warn};

use super::{CERTIFICATE_CHECK, Certificate, HELLO, replaced, stepping_down};
use crate::lead::Lead;
use crate::metrics::Refusal;
use crate::recorder::{self, Media, Recorder};
use crate::registry::WorkerCaller;

mod changes;

use changes::Changes;

/// Changes of state that wait for each other.
const CHANGES: usize = 16;

/// A worker's stream.
pub(super) struct Session {
    lead: Arc<Lead>,
    attempt: AttemptId,
    caller: WorkerCaller,
    certificate: Certificate,
}

/// A call that changes something, and its id.
type Change = (u64, from_worker::Body);

/// Why a call was not done.
struct No {
    code: &'static str,
    message: String,
}

impl No {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        let message = match refusal {
            Refusal::Stale => "the epoch is closed: stop and publish nothing",
            Refusal::Illegal => "the job's state does not allow it",
            Refusal::Busy => "too much at once; send it again",
            Refusal::Invalid | Refusal::NotYours | Refusal::Unauthenticated => "the call is not valid",
        };
        Self::new(refusal.code(), message)
    }
}

impl Session {
    pub(super) fn new(
        lead: Arc<Lead>,
        attempt: AttemptId,
        caller: WorkerCaller,
        certificate: Certificate,
    ) -> Self {
        Self { lead, attempt, caller, certificate }
    }

    /// Runs until the stream ends, or is ended with a status. What the worker reported before is recorded all the same.
    pub(super) async fn run(
        mut self,
        mut incoming: Demultiplexer<FromWorker>,
        mut stream: Streaming<FromWorker>,
    ) -> Result<(), Status> {
        let over = self.lead.over.clone();
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO, incoming.next(&mut stream)) => first,
            () = over.cancelled() => return Err(stepping_down()),
        };
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came in time"))??;
        let Some(first) = first else { return Ok(()) };
        self.own(&first)?;
        let Some(from_worker::Body::Hello(hello)) = first.body else {
            return Err(self.invalid("the first message must be a hello"));
        };
        let Some(job) = self.admit(&hello).await? else {
            let no = No::from(Refusal::Stale);
            self.lead.metrics.refused(Refusal::Stale);
            info!(attempt = %self.attempt, "a worker without a right was told to stop");
            return self.say(0, refused(no)).await;
        };
        self.caller.trace = Some(trace::begin(job.trace_id()));
        let span = info_span!("attempt", attempt = %self.attempt, trace = %job.trace_id());
        let open = self.lead.registry.open(self.caller.clone());
        let (generation, taken) = (open.generation, open.replaced.clone());
        self.lead.registry.workers.insert(self.attempt, open);
        let ended = tokio::select! {
            ended = self.serve(&job, hello.log_sequence, &mut incoming, &mut stream).instrument(span) => ended,
            () = taken.cancelled() => Err(replaced()),
            () = over.cancelled() => Err(stepping_down()),
        };
        self.lead.registry.workers.remove(self.attempt, generation);
        ended
    }

    /// A message must be about the attempt of the certificate.
    fn own(&self, message: &FromWorker) -> Result<(), Status> {
        let named = convert::attempt_id(message.id.clone());
        if named == Ok(self.attempt) {
            return Ok(());
        }
        self.lead.metrics.refused(Refusal::NotYours);
        let named = named.map_or_else(|error| error.to_string(), |id| id.to_string());
        warn!(attempt = %self.attempt, named, "a worker speaks about another attempt; its stream is ended");
        Err(Status::permission_denied(format!(
            "the certificate is for {}, the message says {named}",
            self.attempt
        )))
    }

    fn invalid(&self, problem: &str) -> Status {
        self.lead.metrics.refused(Refusal::Invalid);
        Status::invalid_argument(problem)
    }

    /// The job, when the attempt still has its right; records that the worker is here.
    async fn admit(&self, hello: &Hello) -> Result<Option<Job>, Status> {
        convert::phase(&hello.phase).map_err(|error| self.invalid(&error.to_string()))?;
        let (lead, attempt) = (&self.lead, self.attempt);
        let unavailable = |error: &dyn std::fmt::Display| {
            warn!(%attempt, %error, "a worker's hello cannot be answered");
            Status::unavailable("the job cannot be read or written just now; try again")
        };
        match dispatch::started(&lead.backend, attempt, lead.now()).await {
            Ok(_) => info!(%attempt, "a worker has connected"),
            // Known already, or over, or being canceled: the row tells.
            Err(ChangeError::Record(error)) => return Err(unavailable(&error)),
            Err(_) => {}
        }
        let job = dispatch::load(&lead.backend, attempt.job).await.map_err(|error| unavailable(&error))?;
        let Some(job) = job.filter(|job| job.live_attempt() == Some(attempt)) else { return Ok(None) };
        if lead.renew(attempt).await {
            return Ok(Some(job));
        }
        // The region may not know it yet (or is about to declare it lost, then it stays refused).
        if let Some(live) = LiveAttempt::of(&job) {
            lead.tell(RegionEvent::AttemptLive(live)).await;
        }
        Ok(lead.renew(attempt).await.then_some(job))
    }

    async fn serve(
        &self,
        job: &Job,
        log_sequence: u64,
        incoming: &mut Demultiplexer<FromWorker>,
        stream: &mut Streaming<FromWorker>,
    ) -> Result<(), Status> {
        let (media, recorder) = Recorder::start(&self.lead, job, self.attempt, self.caller.clone());
        let (changes, waiting) = mpsc::channel(CHANGES);
        let changing = Changes {
            lead: self.lead.clone(),
            attempt: self.attempt,
            caller: self.caller.clone(),
            certificate: self.certificate.clone(),
        };
        // They end by themselves when this stream has, after recording what was reported.
        self.lead.spawn(changing.run(waiting).in_current_span());
        self.lead.spawn(recorder.run().in_current_span());
        let welcome = Welcome {
            lease_millis: millis(self.lead.config.lease),
            renew_millis: millis(self.lead.config.heartbeat),
            log_sequence,
            watched: media.is_watched(),
        };
        self.say(0, from_manager::Body::Welcome(welcome)).await?;
        self.lead.stops.request(&self.lead, job);
        self.listen(incoming, stream, &media, &changes).await
    }

    async fn listen(
        &self,
        incoming: &mut Demultiplexer<FromWorker>,
        stream: &mut Streaming<FromWorker>,
        media: &recorder::Lane,
        changes: &mpsc::Sender<Change>,
    ) -> Result<(), Status> {
        let mut check = tokio::time::interval(CERTIFICATE_CHECK);
        loop {
            tokio::select! {
                message = incoming.next(stream) => match message? {
                    Some(message) => self.take(message, media, changes).await?,
                    None => return Ok(()),
                },
                _ = check.tick() => self.certificate.check(&self.lead)?,
            }
        }
    }

    async fn take(
        &self,
        message: FromWorker,
        media: &recorder::Lane,
        changes: &mpsc::Sender<Change>,
    ) -> Result<(), Status> {
        self.own(&message)?;
        let id = message.call_id;
        match message.body {
            Some(from_worker::Body::RenewLease(_)) => {
                let body = self.renewed(media.is_watched()).await;
                self.say(id, body).await
            }
            Some(from_worker::Body::Progress(progress)) => {
                let progress = convert::progress(self.attempt, progress)
                    .map_err(|error| self.invalid(&error.to_string()))?;
                media.offer(Media::Progress(progress));
                Ok(())
            }
            Some(from_worker::Body::Log(chunk)) => {
                let (sequence, data) =
                    convert::log_chunk(chunk).map_err(|error| self.invalid(&error.to_string()))?;
                if media.offer(Media::Log { call: id, sequence, data }) {
                    return Ok(());
                }
                self.busy(id).await
            }
            Some(from_worker::Body::Hello(_)) => Err(self.invalid("a stream has one hello")),
            Some(from_worker::Body::Stopping(_)) => Ok(()),
            Some(change) => match changes.try_send((id, change)) {
                Ok(()) => Ok(()),
                Err(_) => self.busy(id).await,
            },
            // A newer worker may say things that this manager does not know.
            None if id == 0 => Ok(()),
            None => self.say(id, refused(No::from(Refusal::Invalid))).await,
        }
    }

    async fn renewed(&self, watched: bool) -> from_manager::Body {
        if self.lead.renew(self.attempt).await {
            let lease_millis = millis(self.lead.config.lease);
            return from_manager::Body::Accepted(Accepted { lease_millis, watched, ..Default::default() });
        }
        if self.lead.over.is_cancelled() {
            return refused(No::new("unavailable", "this manager does not lead the region any more"));
        }
        self.lead.metrics.refused(Refusal::Stale);
        refused(No::from(Refusal::Stale))
    }

    async fn busy(&self, id: u64) -> Result<(), Status> {
        self.lead.metrics.refused(Refusal::Busy);
        if id == 0 { Ok(()) } else { self.say(id, refused(No::from(Refusal::Busy))).await }
    }

    async fn say(&self, id: u64, body: from_manager::Body) -> Result<(), Status> {
        let gone = |_| Status::deadline_exceeded("the worker does not read");
        self.caller.reply(id, body).await.map_err(gone)
    }
}

fn refused(no: No) -> from_manager::Body {
    from_manager::Body::Refused(Refused { code: no.code.to_owned(), message: no.message })
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
