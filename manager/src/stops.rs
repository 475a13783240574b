//! Stops the attempts of jobs that are being canceled: SIGTERM reaches the engine within a second (SPEC 3.4).
//!
//! A job in `canceling` comes to be known by its hint, by anything else that reads it, and by a poll of the live jobs
//! as the safety net. Its worker is told on its own stream; a worker that is not connected is stopped through its
//! coordinator; when neither is there, the next poll tries again and the lease decides in the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use telecine_core::dispatch;
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::InstanceId;
use telecine_domain::job::{Job, JobState, StopCause};
use telecine_domain::trace::TraceId;
use telecine_proto::{coordinator, trace, worker};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::feed::pages;
use crate::lead::Lead;
use crate::publish;

/// Longest wait for a peer to say that it is stopping.
const ANSWER: Duration = Duration::from_secs(5);
/// How long after its grace period an attempt that was told to stop is told again.
const AGAIN: Duration = Duration::from_secs(15);

/// Who was told to stop, and when to say it again.
#[derive(Default)]
pub(crate) struct Stops {
    told: Mutex<BTreeMap<AttemptId, Instant>>,
}

/// One stop.
struct Stop {
    attempt: AttemptId,
    instance: InstanceId,
    trace: TraceId,
    grace: Duration,
    reason: &'static str,
}

impl Stops {
    /// Stops the attempt of a job that is being canceled, unless that is under way.
    pub(crate) fn request(&self, lead: &Arc<Lead>, job: &Job) {
        let JobState::Canceling { run, cause } = &job.state else { return };
        let Some(attempt) = job.live_attempt() else { return };
        let grace = Duration::from_secs(job.spec.timeouts.cancel_grace_seconds);
        let now = Instant::now();
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.get(&attempt).is_some_and(|again| *again > now) {
                return;
            }
            told.insert(attempt, now + grace + AGAIN);
        }
        let reason = match cause {
            StopCause::Requested => "the job was canceled",
            StopCause::TotalTimeout => "the job took longer than its total timeout",
        };
        let (lead_too, stop) =
            (lead.clone(), Stop { attempt, instance: run.instance, trace: job.trace_id(), grace, reason });
        lead.spawn(async move {
            if !send(&lead_too, &stop).await {
                lead_too.stops.forget(stop.attempt);
            }
        });
    }

    fn forget(&self, attempt: AttemptId) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).remove(&attempt);
    }

    fn keep(&self, live: &[AttemptId]) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|attempt, _| live.binary_search(attempt).is_ok());
    }
}

/// Tells the worker, else the coordinator; says whether anybody was told.
async fn send(lead: &Lead, stop: &Stop) -> bool {
    let grace_millis = u32::try_from(stop.grace.as_millis()).unwrap_or(u32::MAX);
    if let Some(worker) = lead.registry.workers.caller(stop.attempt) {
        let message = worker::v1::Stop { grace_millis, reason: stop.reason.to_owned() };
        match worker.call(worker::v1::from_manager::Body::Stop(message), ANSWER).await {
            Ok(_) => return true,
            Err(error) => warn!(attempt = %stop.attempt, %error, "the worker did not answer to a stop"),
        }
    }
    let Some(coordinator) = lead.registry.coordinators.caller(stop.instance) else {
        debug!(attempt = %stop.attempt, "nobody to tell to stop is connected; it is tried again");
        return false;
    };
    let message = coordinator::v1::StopAttempt {
        id: Some(stop.attempt.into()),
        grace_millis,
        reason: stop.reason.to_owned(),
    };
    let coordinator = coordinator.in_trace(Some(trace::begin(stop.trace)));
    match coordinator.call(coordinator::v1::from_manager::Body::StopAttempt(message), ANSWER).await {
        Ok(_) => true,
        Err(error) => {
            warn!(attempt = %stop.attempt, %error, "the coordinator did not answer to a stop");
            false
        }
    }
}

/// Looks through the live jobs for those to be stopped, and for those that nobody can publish any more, until the leadership is over.
pub(crate) async fn poll(lead: Arc<Lead>) {
    while !lead.over.is_cancelled() {
        lead.pause(lead.config.stop_poll).await;
        let mut live = Vec::new();
        let listed = pages(
            |after| dispatch::live(&lead.backend, &lead.region, 500, after),
            |job: Job| {
                live.extend(job.live_attempt());
                lead.stops.request(&lead, &job);
                if let Some(attempt) = job.live_attempt().filter(|_| publish::is_forsaken(&lead, &job)) {
                    lead.spawn(publish::give_up(lead.clone(), attempt));
                }
            },
        );
        match listed.await {
            Ok(()) => {
                live.sort_unstable();
                lead.stops.keep(&live);
            }
            Err(error) => {
                warn!(region = %lead.region, %error, "live jobs were not listed; it is tried again")
            }
        }
    }
}
