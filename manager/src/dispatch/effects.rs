//! What the actions of the region mean for the table and for coordinators. Record first, then tell.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::dispatch::{self, AssignedAttempt};
use telecine_core::update::ChangeError;
use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::{InstanceId, JobId};
use telecine_domain::job::{Job, JobState};
use telecine_domain::region::RegionEvent;
use telecine_domain::resources::Resources;
use telecine_proto::convert;
use telecine_proto::coordinator::v1::{Assign, AssignReply, StopAttempt, from_coordinator, from_manager};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::lead::Lead;
use crate::publish;

/// Longest wait for a coordinator to take an attempt: it may be putting away the one before for 10 s.
const TAKING: Duration = Duration::from_secs(20);
/// Longest wait for a coordinator to say that it stops an attempt.
const ANSWER: Duration = Duration::from_secs(10);

/// Records an assignment, then sends it.
pub(super) async fn assign(lead: Arc<Lead>, job: JobId, instance: InstanceId) {
    let began = Instant::now();
    if lead.registry.coordinators.caller(instance).is_none() {
        lead.metrics.assigned("not_connected");
        return lead.tell(RegionEvent::AssignmentFailed { job, instance, requeue: true }).await;
    }
    match dispatch::assign(&lead.backend, job, instance, lead.now()).await {
        Ok(assigned) => {
            let sending = lead.sending(assigned.attempt);
            lead.tell_job(&assigned.job).await;
            send(&lead, &assigned, instance, began).await;
            drop(sending);
        }
        Err(error) => not_recorded(&lead, job, instance, &error).await,
    }
}

/// The assignment was refused by the table, or nobody knows: the row has the last word.
async fn not_recorded(lead: &Arc<Lead>, job: JobId, instance: InstanceId, error: &ChangeError) {
    lead.count(error);
    lead.metrics.assigned("not_recorded");
    if let ChangeError::Record(error) = error {
        warn!(%job, %instance, %error, "an assignment was not recorded");
    }
    let Some(found) = lead.load(job).await else { return };
    let requeue = found.as_ref().is_some_and(|job| matches!(job.state, JobState::Queued { .. }));
    lead.tell(RegionEvent::AssignmentFailed { job, instance, requeue }).await;
    match found {
        Some(found) => lead.tell_job(&found).await,
        None => lead.tell(RegionEvent::JobLeft(job)).await,
    }
}

async fn send(lead: &Arc<Lead>, assigned: &AssignedAttempt, instance: InstanceId, began: Instant) {
    let AssignedAttempt { job, attempt } = assigned;
    let refusal = match offer(lead, assigned, instance).await {
        Ok(()) => {
            lead.metrics.assigned("accepted");
            lead.metrics.assignment_took(began.elapsed().as_secs_f64());
            let trace = job.trace_id();
            info!(%attempt, %instance, account = %job.account, region = %lead.region, %trace, "a job was assigned");
            return;
        }
        Err(refusal) => refusal,
    };
    if lead.registry.workers.caller(*attempt).is_some() {
        // Its worker is here, whatever became of the answer.
        return;
    }
    lead.metrics.assigned(if matches!(refusal, Refusal::NoRoom { .. }) { "no_room" } else { "refused" });
    match refusal {
        Refusal::NoRoom { failure, free } => {
            info!(%attempt, %instance, %free, problem = failure.message, "an instance has no room; its job waits on");
            // First, so that the job does not come back to the instance at once.
            lead.tell(RegionEvent::InstanceRefused { instance, attempt: *attempt, free }).await;
            let record = || dispatch::interrupted(&lead.backend, *attempt, failure.clone(), None, lead.now());
            lead.persist(*attempt, record).await;
        }
        Refusal::NeverBegan(failure) => {
            warn!(%attempt, %instance, problem = failure.message, "an assignment was refused");
            let record = || dispatch::failed(&lead.backend, *attempt, failure.clone(), None, lead.now());
            lead.persist(*attempt, record).await;
        }
        Refusal::Unknown(failure) => {
            warn!(%attempt, %instance, problem = failure.message, "an assignment came to nothing");
            end_with_leftovers(lead, *attempt, EndedBy::Failure, failure).await;
        }
    }
}

/// Why an attempt is not with its coordinator.
enum Refusal {
    /// The instance has no room for it, or takes no work: that is nobody's failure.
    NoRoom {
        failure: Failure,
        /// What is free there.
        free: Resources,
    },
    /// It said so, or was never asked: there is nothing to take away.
    NeverBegan(Failure),
    /// Nobody knows whether it began.
    Unknown(Failure),
}

/// Offers an attempt to its coordinator; gives what is to be recorded when it is not taken.
async fn offer(lead: &Arc<Lead>, assigned: &AssignedAttempt, instance: InstanceId) -> Result<(), Refusal> {
    let AssignedAttempt { job, attempt } = assigned;
    let infrastructure = |code, message| Failure::new(FailureClass::Infrastructure, code, message);
    let Some(coordinator) = lead.registry.coordinators.caller(instance) else {
        let message = format!("instance {instance} went away before it could be told");
        let failure = infrastructure("instance_gone", message);
        return Err(Refusal::NoRoom { failure, free: Resources::ZERO });
    };
    let message = Assign {
        id: Some((*attempt).into()),
        account_id: job.account.to_string(),
        spec_json: convert::json(&job.spec),
        resources: Some(job.spec.resources.into()),
        lease_millis: u32::try_from(lead.config.lease.as_millis()).unwrap_or(u32::MAX),
    };
    match coordinator.about(job).call(from_manager::Body::Assign(message), TAKING).await {
        Ok(Some(from_coordinator::Body::AssignReply(AssignReply { accepted: true, .. }))) => Ok(()),
        Ok(Some(from_coordinator::Body::AssignReply(AssignReply { failure, free, .. }))) => {
            let said = failure.and_then(|failure| Failure::try_from(failure).ok());
            let unsaid = || format!("instance {instance} refused the attempt and did not say why");
            let failure = said.unwrap_or_else(|| infrastructure("assignment_refused", unsaid()));
            Err(match free {
                Some(free) => Refusal::NoRoom { failure, free: free.into() },
                None => Refusal::NeverBegan(failure),
            })
        }
        Ok(_) => {
            let message = format!("instance {instance} does not know how to take an attempt");
            Err(Refusal::NeverBegan(infrastructure("assignment_refused", message)))
        }
        Err(error) => {
            let message = format!("instance {instance} did not take the attempt: {error}");
            Err(Refusal::Unknown(infrastructure("assignment_unanswered", message)))
        }
    }
}

/// Why an attempt is over that was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// It failed: a retry pays.
    Failure,
    /// Its instance is taken away: nothing pays.
    Interruption,
}

/// Records that an attempt is over without a grant, and has what it may have left behind taken away.
pub(crate) async fn end_with_leftovers(
    lead: &Arc<Lead>,
    attempt: AttemptId,
    ended: EndedBy,
    failure: Failure,
) -> bool {
    let leftovers = publish::leftovers(lead, attempt).await;
    let recorded = lead
        .persist(attempt, || {
            let (backend, failure, now) = (&lead.backend, failure.clone(), lead.now());
            async move {
                match ended {
                    EndedBy::Failure => dispatch::failed(backend, attempt, failure, None, now).await,
                    EndedBy::Interruption => {
                        dispatch::interrupted(backend, attempt, failure, None, now).await
                    }
                }
            }
        })
        .await;
    if let Some(leftovers) = leftovers.filter(|_| recorded) {
        lead.spawn(publish::close_epoch(lead.clone(), leftovers));
    }
    recorded
}

/// Takes the right of a silent attempt away.
pub(super) async fn lost(lead: Arc<Lead>, attempt: AttemptId) {
    let failure = Failure::new(
        FailureClass::Infrastructure,
        "lost",
        format!("nothing was heard of {attempt} for {} s", lead.config.lease.as_secs()),
    );
    let leftovers = publish::leftovers(&lead, attempt).await;
    let recorded =
        lead.persist(attempt, || dispatch::lost(&lead.backend, attempt, failure.clone(), lead.now())).await;
    if recorded {
        lead.metrics.lost();
        if let Some(leftovers) = leftovers {
            publish::close_epoch(lead, leftovers).await;
        }
    }
}

/// An instance names an attempt that the region does not know: its row says whether it may go on.
pub(super) async fn resolve(lead: Arc<Lead>, attempt: AttemptId, instance: InstanceId) {
    let Some(found) = lead.load(attempt.job).await else { return };
    let there = |job: &Job| job.state.run().is_some_and(|run| run.instance == instance);
    match found {
        Some(job) if job.live_attempt() == Some(attempt) && there(&job) => lead.tell_job(&job).await,
        Some(job) => {
            lead.tell_outcome(attempt, &job).await;
            stop_stranger(&lead, attempt, instance).await;
        }
        None => {
            lead.tell(RegionEvent::AttemptOver(attempt)).await;
            stop_stranger(&lead, attempt, instance).await;
        }
    }
}

async fn stop_stranger(lead: &Lead, attempt: AttemptId, instance: InstanceId) {
    let Some(coordinator) = lead.registry.coordinators.caller(instance) else { return };
    let reason = "another attempt has the right to the job".to_owned();
    let stop = StopAttempt { id: Some(attempt.into()), grace_millis: 0, reason };
    if let Err(error) = coordinator.call(from_manager::Body::StopAttempt(stop), ANSWER).await {
        warn!(%attempt, %instance, %error, "an attempt without a right was not stopped; it can publish nothing");
    }
}

/// An instance's hello does not name an attempt that was given to it. If it never began, it never arrived.
pub(super) async fn undelivered(lead: Arc<Lead>, attempt: AttemptId) {
    let Some(Some(job)) = lead.load(attempt.job).await else { return };
    if job.live_attempt() != Some(attempt) || !matches!(job.state, JobState::Assigned(_)) {
        return;
    }
    let failure = Failure::new(
        FailureClass::Infrastructure,
        "assignment_undelivered",
        "the instance connected again and does not know the attempt: its assignment never arrived",
    );
    end_with_leftovers(&lead, attempt, EndedBy::Failure, failure).await;
}

/// A queued job has waited as long as it may.
pub(super) async fn expire(lead: Arc<Lead>, job: JobId) {
    let result = dispatch::expire(&lead.backend, job, lead.now()).await;
    timed_out(&lead, job, result).await;
}

/// A job has taken as long as it may.
pub(super) async fn total_timeout(lead: Arc<Lead>, job: JobId) {
    let result = dispatch::total_timeout(&lead.backend, job, lead.now()).await;
    timed_out(&lead, job, result).await;
}

/// What is not recorded now is proposed again after a lease.
async fn timed_out(lead: &Arc<Lead>, job: JobId, result: Result<Job, ChangeError>) {
    match result {
        Ok(after) => lead.tell_job(&after).await,
        Err(ChangeError::Record(error)) => warn!(%job, %error, "a timeout was not recorded yet"),
        Err(refused) => {
            lead.count(&refused);
            match lead.load(job).await {
                Some(Some(found)) => lead.tell_job(&found).await,
                Some(None) => lead.tell(RegionEvent::JobLeft(job)).await,
                None => {}
            }
        }
    }
}
