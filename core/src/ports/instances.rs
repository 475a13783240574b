//! The provider of instances: how many there are, one more, this one less.

use async_trait::async_trait;
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::time::Timestamp;

/// What the provider knows of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedInstance {
    /// Its id.
    pub id: InstanceId,
    /// Whether the provider counts it as running (else it is starting or going away).
    pub running: bool,
    /// Why it does not come up, in the provider's words, when it has tried and given little hope.
    pub failed: Option<String>,
}

/// What the provider knows of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Its instances.
    pub instances: Vec<ProvidedInstance>,
    /// Launches asked for that have no instance yet.
    pub pending: u32,
}

/// Why the provider did not do it.
#[derive(Debug, thiserror::Error)]
pub enum InstancesError {
    /// There is no such pool.
    #[error("there is no pool {0}")]
    NoSuchPool(PoolName),
    /// The provider has none to give just now.
    #[error("pool {pool} has no capacity: {problem}")]
    NoCapacity {
        /// Which pool.
        pool: PoolName,
        /// The provider's words.
        problem: String,
    },
    /// There is no such instance, or it is going away already.
    #[error("pool {pool} has no instance {instance} that runs")]
    NoSuchInstance {
        /// The pool.
        pool: PoolName,
        /// The instance.
        instance: InstanceId,
    },
    /// The provider cannot be asked for that.
    #[error("this provider of instances cannot {0}")]
    NotSupported(&'static str),
    /// The provider did not answer.
    #[error("the instance provider is not available: {0}")]
    Unavailable(String),
}

/// Launches and retires instances.
#[async_trait]
pub trait Instances: Send + Sync {
    /// What there is in a pool.
    async fn status(&self, pool: &PoolName) -> Result<PoolStatus, InstancesError>;

    /// Asks for `count` more.
    async fn launch(&self, pool: &PoolName, count: u32) -> Result<(), InstancesError>;

    /// Ends exactly this one; one that is gone is no error.
    async fn retire(&self, pool: &PoolName, instance: InstanceId) -> Result<(), InstancesError>;

    /// Has the provider take exactly this one away as a spot market does: announced to it now, done at `at`, whatever
    /// runs there. Of two asked for one instance the earlier counts.
    ///
    /// # Errors
    /// `NotSupported` where the provider cannot be made to; `NoSuchInstance`.
    async fn interrupt(
        &self,
        pool: &PoolName,
        instance: InstanceId,
        at: Timestamp,
    ) -> Result<(), InstancesError> {
        let _ = (pool, instance, at);
        Err(InstancesError::NotSupported("take an instance away on request"))
    }
}
