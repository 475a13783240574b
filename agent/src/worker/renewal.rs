//! Keeps the right to use the job's stores alive while the attempt's epoch stands: at half of its life it is asked for
//! again, and the opened stores, and the mount over them, go on with the new one.

use std::sync::Arc;
use std::time::Duration;

use telecine_domain::failure::Failure;
use telecine_proto::types::v1::StoreAccess;
use telecine_proto::worker::v1::{OpenStores, from_manager, from_worker};

use super::session::{self, NoAnswer};
use super::shared::{Halt, Shared};
use super::stores::Rights;

/// Between two questions, also when the right is over already.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// Renews `rights` for as long as they end some time and the epoch stands.
pub(super) async fn keep(shared: Arc<Shared>, mut rights: Rights) {
    while let Some(ends_at) = rights.ends_at() {
        let left = ends_at.since(shared.clock.now());
        tokio::time::sleep((left / 2).max(SHORTEST_PAUSE)).await;
        match ask(&shared).await {
            Ok(access) => match rights.renew(access, |secret| shared.learn_secret(secret)) {
                Ok(()) => tracing::debug!("the right to use the job's stores is renewed"),
                Err(failure) => {
                    tracing::warn!(%failure, "the renewed right to use the stores cannot be used")
                }
            },
            Err(NoAnswer::Fenced) => {
                return shared.halt(Halt::Fenced("the manager closed the epoch".to_owned()));
            }
            Err(NoAnswer::Refused { code, message }) => {
                tracing::warn!(%code, %message, "the right to use the stores is not renewed yet");
            }
        }
    }
}

/// The right to use the job's stores.
pub(super) async fn ask(shared: &Shared) -> Result<Vec<StoreAccess>, NoAnswer> {
    match session::call(shared, from_worker::Body::OpenStores(OpenStores {})).await? {
        from_manager::Body::Stores(stores) => Ok(stores.stores),
        _ => Err(NoAnswer::Refused {
            code: "unexpected".to_owned(),
            message: "the manager's answer is no list of stores".to_owned(),
        }),
    }
}

/// What the first question came to, when not to the right itself.
pub(super) fn refused(message: &str) -> Failure {
    crate::failure::infrastructure("stores_refused", format!("the job's stores were not opened: {message}"))
}
