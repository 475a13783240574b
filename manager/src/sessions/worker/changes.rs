//! The calls of a worker that change something, worked off one after the other.
//!
//! Each is answered from its conditional write. A call that comes again after a lost answer is answered like the first
//! time where its worker needs that to go on (`Seal`, `Published`, `EnterPhase`), else with `stale`.

use std::sync::Arc;

use telecine_core::dispatch::{self, GrantError, Granted};
use telecine_core::update::ChangeError;
use telecine_domain::attempt::{AttemptId, Phase};
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::job::JobState;
use telecine_proto::convert::{self, ConvertError};
use telecine_proto::worker::v1::{
    Accepted, Ended, EnterPhase, Grant, RenewCertificate, Seal, Signed, Stores, from_manager, from_worker,
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Certificate, Change, No, refused};
use crate::lead::Lead;
use crate::metrics::Refusal;
use crate::publish::{self, ACCESS_LIFE};
use crate::registry::WorkerCaller;
use crate::signing;

/// Works off the calls that change something, one after the other.
pub(super) struct Changes {
    pub(super) lead: Arc<Lead>,
    pub(super) attempt: AttemptId,
    pub(super) caller: WorkerCaller,
    pub(super) certificate: Certificate,
}

impl Changes {
    /// Runs until the stream has ended and everything is answered.
    pub(super) async fn run(self, mut waiting: mpsc::Receiver<Change>) {
        while let Some((id, change)) = waiting.recv().await {
            let body = self.answer(change).await.unwrap_or_else(refused);
            // A worker that is gone asks again when it is back, and gets the same answer.
            let _gone = self.caller.reply(id, body).await;
        }
    }

    async fn answer(&self, change: from_worker::Body) -> Result<from_manager::Body, No> {
        let (lead, attempt) = (&self.lead, self.attempt);
        match change {
            from_worker::Body::EnterPhase(enter) => self.enter(&enter).await,
            from_worker::Body::OpenStores(_) => self.open_stores().await,
            from_worker::Body::Seal(seal) => self.seal(seal).await,
            from_worker::Body::Published(published) => {
                let counters = published.counters.map(Into::into);
                let result = dispatch::published(&lead.backend, attempt, counters, lead.now()).await;
                let job = result.map_err(|error| self.no(&error))?;
                info!(%attempt, account = %job.account, "the outputs of an attempt are published");
                lead.tell_outcome(attempt, &job).await;
                Ok(accepted())
            }
            from_worker::Body::Ended(ended) => self.ended(ended).await,
            from_worker::Body::RenewCertificate(renew) => self.renew_certificate(&renew).await,
            from_worker::Body::Hello(_)
            | from_worker::Body::Progress(_)
            | from_worker::Body::Log(_)
            | from_worker::Body::RenewLease(_)
            | from_worker::Body::Stopping(_) => Err(No::from(Refusal::Invalid)),
        }
    }

    /// Counts a refused change and puts it into words.
    fn no(&self, error: &ChangeError) -> No {
        self.lead.count(error);
        match error {
            ChangeError::Stale { .. } | ChangeError::NotFound(_) | ChangeError::Outdated { .. } => {
                No::from(Refusal::Stale)
            }
            ChangeError::Illegal { state, .. } => {
                No::new(Refusal::Illegal.code(), format!("the job is {state}"))
            }
            ChangeError::Record(error) => {
                warn!(attempt = %self.attempt, %error, "a worker's report was not recorded; it will say it again");
                No::new("unavailable", "it could not be recorded just now; send it again")
            }
        }
    }

    /// Whether the attempt still has its right, whatever else was refused.
    async fn is_live(&self) -> bool {
        let found = dispatch::load(&self.lead.backend, self.attempt.job).await;
        found.is_ok_and(|job| job.is_some_and(|job| job.live_attempt() == Some(self.attempt)))
    }

    async fn enter(&self, enter: &EnterPhase) -> Result<from_manager::Body, No> {
        let (lead, attempt) = (&self.lead, self.attempt);
        let phase = convert::phase(&enter.phase).map_err(|error| self.bad(&error))?;
        let result = match phase {
            Phase::Running => dispatch::engine_running(&lead.backend, attempt, lead.now()).await.map(drop),
            phase => dispatch::enter_phase(&lead.backend, attempt, phase, lead.now()).await.map(drop),
        };
        match result {
            Ok(()) => Ok(accepted()),
            Err(error @ ChangeError::Record(_)) => Err(self.no(&error)),
            // It was said before, or the job is being canceled: the attempt lives, and a stop has its own message.
            Err(_) if self.is_live().await => Ok(accepted()),
            Err(error) => Err(self.no(&error)),
        }
    }

    fn bad(&self, error: &ConvertError) -> No {
        self.lead.metrics.refused(Refusal::Invalid);
        No::new(Refusal::Invalid.code(), error.to_string())
    }

    async fn open_stores(&self) -> Result<from_manager::Body, No> {
        let (lead, attempt) = (&self.lead, self.attempt);
        match dispatch::store_access(&lead.backend, attempt, ACCESS_LIFE, lead.now()).await {
            Ok(access) => Ok(from_manager::Body::Stores(Stores { stores: publish::to_wire(&access) })),
            Err(dispatch::AccessError::Change(error)) => Err(self.no(&error)),
            Err(error @ (dispatch::AccessError::StoreGone(_) | dispatch::AccessError::Refused { .. })) => {
                Err(No::new(Refusal::Invalid.code(), error.to_string()))
            }
            Err(error @ dispatch::AccessError::Credentials(_)) => {
                warn!(%attempt, %error, "a worker gets no access to its stores");
                Err(No::new("unavailable", error.to_string()))
            }
        }
    }

    async fn seal(&self, seal: Seal) -> Result<from_manager::Body, No> {
        let (lead, attempt) = (&self.lead, self.attempt);
        let manifest = convert::required("manifest", seal.manifest)
            .and_then(TryInto::try_into)
            .map_err(|error| self.bad(&error))?;
        let counters = seal.counters.unwrap_or_default().into();
        match dispatch::grant(&lead.backend, attempt, manifest, counters, lead.now()).await {
            Ok(Granted { job, ran }) => {
                if let Some(ran) = ran {
                    lead.learning.learn(&job, ran, lead.now());
                }
                lead.tell_outcome(attempt, &job).await;
                let (JobState::Finalizing { manifest, .. } | JobState::Succeeded { manifest, .. }) =
                    job.state
                else {
                    return Err(No::from(Refusal::Stale));
                };
                info!(%attempt, account = %job.account, objects = manifest.objects.len(), "an attempt was granted");
                Ok(from_manager::Body::Grant(Grant { manifest: Some(manifest.into()) }))
            }
            Err(GrantError::Manifest(error)) => {
                lead.metrics.refused(Refusal::Invalid);
                Err(No::new(Refusal::Invalid.code(), error.to_string()))
            }
            Err(GrantError::Change(error)) => Err(self.no(&error)),
        }
    }

    async fn ended(&self, ended: Ended) -> Result<from_manager::Body, No> {
        let (lead, attempt) = (&self.lead, self.attempt);
        let failure = ended.failure.map(Failure::try_from).transpose().map_err(|error| self.bad(&error))?;
        let counters = ended.counters.map(Into::into);
        let (backend, now) = (&lead.backend, lead.now());
        let result = match (failure, ended.interrupted) {
            (failure, true) => {
                let failure = failure.unwrap_or_else(|| unsaid("interrupted", "the instance is going away"));
                dispatch::interrupted(backend, attempt, failure, counters, now).await
            }
            (Some(failure), false) => dispatch::failed(backend, attempt, failure, counters, now).await,
            (None, false) => match dispatch::stopped(backend, attempt, counters, now).await {
                // Stopped, but nobody asked for it.
                Err(ChangeError::Illegal { .. }) => {
                    let failure = unsaid("stopped", "the worker stopped although nobody canceled the job");
                    dispatch::failed(backend, attempt, failure, counters, now).await
                }
                result => result,
            },
        };
        let job = result.map_err(|error| self.no(&error))?;
        info!(%attempt, account = %job.account, state = %job.state.name(), "an attempt has ended");
        lead.tell_outcome(attempt, &job).await;
        Ok(accepted())
    }

    async fn renew_certificate(&self, renew: &RenewCertificate) -> Result<from_manager::Body, No> {
        match signing::worker_again(&self.lead, self.attempt, &renew.request_der).await {
            Ok(signed) => {
                self.certificate.renewed(signed.not_after);
                Ok(from_manager::Body::Signed(Signed {
                    chain_der: signed.chain_der,
                    not_after_millis: signed.not_after.as_millis(),
                }))
            }
            Err(error) => {
                if let Some(refusal) = error.refusal() {
                    self.lead.metrics.refused(refusal);
                }
                Err(No::new(error.code(), error.to_string()))
            }
        }
    }
}

fn unsaid(code: &str, message: &str) -> Failure {
    Failure::new(FailureClass::Infrastructure, code, message)
}

fn accepted() -> from_manager::Body {
    from_manager::Body::Accepted(Accepted::default())
}
