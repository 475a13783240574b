//! Enrolment: the one service for peers without a certificate.
//!
//! A join token is bound to one instance; whoever holds it gets that instance's certificate and no other, for as long
//! as the instance is not retired. Anybody can ask, so little is done at once and nothing of a request is logged but
//! the instance it claims to be.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_core::enrolment::{self, EnrolmentError};
use telecine_core::leader;
use telecine_domain::id::InstanceId;
use telecine_proto::enrolment::v1::enrolment_server::{Enrolment, EnrolmentServer};
use telecine_proto::enrolment::v1::{EnrolRequest, Enrolled};
use telecine_proto::identity::CertificateAuthority;
use telecine_proto::serve;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use crate::config::ManagerConfig;

/// Enrolments at the same time.
const AT_ONCE: usize = 16;
/// Longest wait for a turn.
const WAIT: Duration = Duration::from_secs(5);
/// Largest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024;

/// Gives instances their first certificate.
pub(crate) struct Desk {
    backend: Backend,
    authority: Arc<CertificateAuthority>,
    config: Arc<ManagerConfig>,
    turns: Semaphore,
}

impl Desk {
    /// The service, with its limits.
    pub(crate) fn service(
        backend: Backend,
        authority: Arc<CertificateAuthority>,
        config: Arc<ManagerConfig>,
    ) -> EnrolmentServer<Self> {
        let desk = Self { backend, authority, config, turns: Semaphore::new(AT_ONCE) };
        EnrolmentServer::new(desk).max_decoding_message_size(MAX_REQUEST)
    }

    async fn sign(&self, request: &EnrolRequest) -> Result<Enrolled, Status> {
        let instance: InstanceId =
            request.instance_id.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        let binding = match enrolment::check(&self.backend, &request.join_token, instance).await {
            Ok(binding) => binding,
            Err(EnrolmentError::Record(error)) => {
                warn!(%instance, %error, "a join token could not be checked");
                return Err(Status::unavailable("the join token cannot be checked just now; try again"));
            }
            Err(error) => return Err(Status::unauthenticated(error.to_string())),
        };
        let now = self.config.clock.now();
        let life = self.config.certificate;
        let signed = self
            .authority
            .sign_coordinator(&request.request_der, &binding.region, instance, life, now)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let managers = match leader::current(&self.backend, &binding.region).await {
            Ok(Some(leadership)) => leadership.addresses,
            Ok(None) | Err(_) => Vec::new(),
        };
        Ok(Enrolled {
            chain_der: signed.chain_der,
            not_after_millis: signed.not_after.as_millis(),
            region: binding.region.to_string(),
            pool: binding.pool.to_string(),
            managers,
        })
    }
}

#[tonic::async_trait]
impl Enrolment for Desk {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Enrolled>, Status> {
        let address = serve::remote(&request).map(|remote| remote.address);
        let busy = |_| Status::resource_exhausted("too many are enrolling; try again");
        let turn = tokio::time::timeout(WAIT, self.turns.acquire()).await.map_err(busy)?;
        let _turn = turn.map_err(|_| Status::internal("the desk is closed"))?;
        let request = request.into_inner();
        let result = self.sign(&request).await;
        match &result {
            Ok(enrolled) => {
                info!(
                    instance = request.instance_id,
                    region = enrolled.region,
                    ?address,
                    "an instance enrolled"
                );
            }
            Err(status) => info!(?address, reason = status.message(), "an enrolment was refused"),
        }
        result.map(Response::new)
    }
}
