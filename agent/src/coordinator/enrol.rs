//! Proving who the instance is: a key made in memory, a certificate for the join token, and its renewal.

use std::path::Path;
use std::time::Duration;

use telecine_domain::id::InstanceId;
use telecine_proto::coordinator::v1::{FromCoordinator, SignCoordinator, from_coordinator, from_manager};
use telecine_proto::dial::{DialError, Dialer};
use telecine_proto::enrolment::v1::EnrolRequest;
use telecine_proto::enrolment::v1::enrolment_client::EnrolmentClient;
use telecine_proto::identity::{ClientIdentity, CredentialError, KeyAndRequest};

use super::desk::{Desk, ManagerCaller};
use super::{CoordinatorError, CoordinatorParts};
use crate::config::AgentConfig;

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const RETRY: Duration = Duration::from_secs(30);

/// Why the instance has no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnrolError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    File(#[from] CoordinatorError),
    #[error("the manager refused to enrol this instance: {} ({:?}); check the join token", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    #[error("the manager did not answer the enrolment")]
    Silent,
    #[error("the manager's certificate for this instance cannot be used: {0}")]
    Credential(#[from] CredentialError),
}

/// Reads a file that the configuration names.
pub(super) fn read(field: &'static str, path: &Path) -> Result<String, CoordinatorError> {
    std::fs::read_to_string(path).map_err(|error| CoordinatorError::File {
        field,
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// A dialer that trusts the configured authority and shows nothing yet.
pub(super) fn dialer(config: &AgentConfig, parts: &CoordinatorParts) -> Result<Dialer, CoordinatorError> {
    let ca_pem = read("ca_file", &config.ca_file)?;
    let dialer = Dialer::new(parts.network.clone(), &ca_pem, ClientIdentity::anonymous(), parts.clock.wall());
    dialer.map_err(|error| CoordinatorError::File {
        field: "ca_file",
        path: config.ca_file.clone(),
        problem: error.to_string(),
    })
}

/// Gets a certificate when there is none that holds for a while.
pub(super) async fn ensure(desk: &Desk, dialer: &Dialer, address: &str) -> Result<(), EnrolError> {
    let soon = desk.clock.now().after(Duration::from_secs(60));
    if dialer.identity().current().is_some_and(|credential| credential.not_after() > soon) {
        return Ok(());
    }
    let token = read("join_token_file", &desk.config.join_token_file)?;
    let key = KeyAndRequest::generate()?;
    let chain = enrol(dialer, address, token.trim(), desk.instance, key.request_der(), desk).await?;
    dialer.identity().replace(key.with_chain(chain)?);
    tracing::info!(instance = %desk.instance, manager = address, "enrolled");
    Ok(())
}

async fn enrol(
    dialer: &Dialer,
    address: &str,
    token: &str,
    instance: InstanceId,
    request_der: &[u8],
    desk: &Desk,
) -> Result<Vec<Vec<u8>>, EnrolError> {
    let channel = dialer.connect(address).await?;
    let request = EnrolRequest {
        join_token: token.to_owned(),
        instance_id: instance.to_string(),
        request_der: request_der.to_vec(),
    };
    let mut client = EnrolmentClient::new(channel);
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.enrol(request)).await;
    let enrolled =
        answer.map_err(|_| EnrolError::Silent)?.map_err(|status| EnrolError::Refused(Box::new(status)))?;
    let enrolled = enrolled.into_inner();
    if enrolled.region != desk.config.region.as_str() || enrolled.pool != desk.config.pool.as_str() {
        tracing::warn!(
            region = %enrolled.region,
            pool = %enrolled.pool,
            "the join token is for another region or pool than the configuration says"
        );
    }
    desk.learn_managers(enrolled.managers);
    Ok(enrolled.chain_der)
}

/// At half of its life the certificate is replaced, under the one that still holds. Never ends.
pub(super) async fn renew(desk: &Desk, dialer: &Dialer, caller: &ManagerCaller) {
    loop {
        let Some(credential) = dialer.identity().current() else { return std::future::pending().await };
        tokio::time::sleep(credential.not_after().since(desk.clock.now()) / 2).await;
        if let Err(problem) = renew_once(dialer, caller).await {
            tracing::warn!(%problem, "the instance's certificate was not renewed");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn renew_once(dialer: &Dialer, caller: &ManagerCaller) -> Result<(), String> {
    let key = KeyAndRequest::generate().map_err(|error| error.to_string())?;
    let body =
        from_coordinator::Body::SignCoordinator(SignCoordinator { request_der: key.request_der().to_vec() });
    let message = FromCoordinator { call_id: 0, trace: None, body: Some(body) };
    let answer = caller.call(message, CALL_TIMEOUT).await.map_err(|error| error.to_string())?;
    match answer.body {
        Some(from_manager::Body::Signed(signed)) => {
            let credential = key.with_chain(signed.chain_der).map_err(|error| error.to_string())?;
            dialer.identity().replace(credential);
            Ok(())
        }
        Some(from_manager::Body::Refused(refused)) => Err(format!("{}: {}", refused.code, refused.message)),
        other => Err(format!("an unexpected answer {other:?}")),
    }
}
