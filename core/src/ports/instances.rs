//! The provider of instances: how many there are, one more, this one less.

use async_trait::async_trait;
use telecine_domain::id::{InstanceId, PoolName};

/// What the provider knows of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvidedInstance {
    /// Its id.
    pub id: InstanceId,
    /// Whether the provider counts it as running (else it is starting or going away).
    pub running: bool,
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
}
