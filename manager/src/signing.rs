//! Who gets a certificate: a worker whose attempt the job's row says is live, a coordinator that has one already.
//!
//! Nothing in a request but its key counts; what is signed is what the row and the asker's own certificate say. A retired
//! instance, and a worker on it, gets nothing.

use telecine_core::dispatch;
use telecine_core::enrolment;
use telecine_domain::attempt::AttemptId;
use telecine_domain::id::InstanceId;
use telecine_domain::job::Job;
use telecine_proto::identity::{AuthorityError, SignedCertificate};

use crate::lead::Lead;
use crate::metrics::Refusal;

/// The word for a retired instance.
const RETIRED: &str = "retired";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SigningError {
    /// The attempt has no right any more.
    #[error("{0} has no right any more")]
    Stale(AttemptId),
    /// The attempt runs somewhere else.
    #[error("{0} does not run on this instance")]
    NotYours(AttemptId),
    /// The instance is gone for good.
    #[error("instance {0} was retired")]
    Retired(InstanceId),
    /// The request is no good.
    #[error(transparent)]
    Request(#[from] AuthorityError),
    /// The records were out of reach.
    #[error("the records could not be read: {0}")]
    Unavailable(#[from] telecine_core::record::RecordError),
}

impl SigningError {
    /// The word in the answer.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Stale(_) => Refusal::Stale.code(),
            Self::NotYours(_) => Refusal::NotYours.code(),
            Self::Retired(_) => RETIRED,
            Self::Request(_) => Refusal::Invalid.code(),
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// What to count it as.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Stale(_) => Some(Refusal::Stale),
            Self::NotYours(_) | Self::Retired(_) => Some(Refusal::NotYours),
            Self::Request(_) => Some(Refusal::Invalid),
            Self::Unavailable(_) => None,
        }
    }
}

async fn live_job(lead: &Lead, attempt: AttemptId) -> Result<Job, SigningError> {
    let job = dispatch::load(&lead.backend, attempt.job).await?;
    let live = |job: &Job| job.live_attempt() == Some(attempt) && job.spec.region == lead.region;
    job.filter(live).ok_or(SigningError::Stale(attempt))
}

/// Refuses for a retired instance.
pub(crate) async fn in_service(lead: &Lead, instance: InstanceId) -> Result<(), SigningError> {
    let retired = enrolment::is_retired(&lead.backend, instance).await?;
    if retired { Err(SigningError::Retired(instance)) } else { Ok(()) }
}

/// For the worker of an attempt that runs on the asking coordinator's instance.
pub(crate) async fn worker(
    lead: &Lead,
    instance: InstanceId,
    attempt: AttemptId,
    request_der: &[u8],
) -> Result<SignedCertificate, SigningError> {
    let job = live_job(lead, attempt).await?;
    if job.state.run().is_none_or(|run| run.instance != instance) {
        return Err(SigningError::NotYours(attempt));
    }
    in_service(lead, instance).await?;
    let life = lead.config.worker_certificate;
    Ok(lead.authority.sign_worker(request_der, &lead.region, attempt, life, lead.now())?)
}

/// For a worker that has proven itself with the certificate before.
pub(crate) async fn worker_again(
    lead: &Lead,
    attempt: AttemptId,
    request_der: &[u8],
) -> Result<SignedCertificate, SigningError> {
    let job = live_job(lead, attempt).await?;
    if let Some(run) = job.state.run() {
        in_service(lead, run.instance).await?;
    }
    let life = lead.config.worker_certificate;
    Ok(lead.authority.sign_worker(request_der, &lead.region, attempt, life, lead.now())?)
}

/// For a coordinator that has proven itself with the certificate before.
pub(crate) async fn coordinator_again(
    lead: &Lead,
    instance: InstanceId,
    request_der: &[u8],
) -> Result<SignedCertificate, SigningError> {
    in_service(lead, instance).await?;
    let life = lead.config.certificate;
    Ok(lead.authority.sign_coordinator(request_der, &lead.region, instance, life, lead.now())?)
}
