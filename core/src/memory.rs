//! The ports in memory, for tests and simulations: they pass the contract suites, and the table can be made to fail.
//!
//! Nothing here outlives the process.

mod keys;
mod queue;
mod table;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::store::Store;
use telecine_domain::time::Timestamp;

use crate::ports::credentials::{Credentials, CredentialsError, Grants, Minted};
use crate::ports::instances::{Instances, InstancesError, PoolStatus};
use crate::ports::keys::Keys;
use crate::ports::table::Table;
use crate::stores::stored_secret;

pub use keys::MemoryKeys;
pub use queue::MemoryQueue;
pub use table::{Fault, MemoryTable};

/// Hands out the secret that was sealed in the store's row: not narrowed, without an end.
pub struct StoredCredentials {
    table: Arc<dyn Table>,
    keys: Arc<dyn Keys>,
}

impl StoredCredentials {
    /// Over the table that holds the stores and the keys that sealed their secrets.
    pub fn new(table: Arc<dyn Table>, keys: Arc<dyn Keys>) -> Self {
        Self { table, keys }
    }
}

#[async_trait]
impl Credentials for StoredCredentials {
    async fn mint(
        &self,
        store: &Store,
        _grants: &Grants,
        _life: Duration,
        _now: Timestamp,
    ) -> Result<Minted, CredentialsError> {
        let secret = stored_secret(self.table.as_ref(), self.keys.as_ref(), store.account, store.id)
            .await
            .map_err(|error| CredentialsError { store: store.name.clone(), problem: error.to_string() })?;
        Ok(Minted { secret, expires_at: None, narrowed: false })
    }
}

/// No pools, no instances: for regions whose machines are registered by hand.
pub struct NoInstances;

#[async_trait]
impl Instances for NoInstances {
    async fn status(&self, pool: &PoolName) -> Result<PoolStatus, InstancesError> {
        Err(InstancesError::NoSuchPool(pool.clone()))
    }

    async fn launch(&self, pool: &PoolName, _count: u32) -> Result<(), InstancesError> {
        Err(InstancesError::NoSuchPool(pool.clone()))
    }

    async fn retire(&self, _pool: &PoolName, _instance: InstanceId) -> Result<(), InstancesError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract;

    #[tokio::test]
    async fn the_table_keeps_the_contract() {
        contract::table_contract(async |clock| Arc::new(MemoryTable::new(clock)) as Arc<dyn Table>).await;
    }

    #[tokio::test]
    async fn the_keys_keep_the_contract() {
        contract::keys_contract(async || Arc::new(MemoryKeys::default()) as _).await;
    }

    #[tokio::test]
    async fn stored_credentials_keep_the_contract() {
        const SECRET: &str = "the-secret-key-itself";
        let make = async || {
            let clock = contract::HandClock::at(Timestamp::from_millis(1_000_000));
            let (backend, _) = crate::Backend::memory(clock.clock());
            let provider = serde_json::json!({"provider": "s3", "bucket": "masters"});
            let secret = serde_json::json!({"s3_keys": {"access_key_id": "id", "secret_access_key": SECRET}});
            let new = crate::stores::NewStore {
                name: "masters".to_owned(),
                provider: serde_json::from_value(provider).unwrap(),
                region: "local".parse().unwrap(),
                secret: serde_json::from_value(secret).unwrap(),
            };
            let account = telecine_domain::id::AccountId::new(clock.now(), 1);
            let store = crate::stores::create(&backend, account, new, clock.now()).await.unwrap();
            let id = telecine_domain::id::StoreId::new(clock.now(), 7);
            let unknown = Store { id, name: "unknown".to_owned(), ..store.clone() };
            (backend.credentials, store, unknown)
        };
        contract::credentials_contract(make, SECRET).await;
    }

    #[tokio::test]
    async fn no_instances_keeps_the_contract() {
        contract::instances_contract(async || Arc::new(NoInstances) as _).await;
    }
}
