//! Short-lived rights to stores, for the attempts that need them.

use std::time::Duration;

use async_trait::async_trait;
use telecine_domain::location::Location;
use telecine_domain::store::Store;
use telecine_domain::time::Timestamp;
use telecine_stores::StoreSecret;

/// What an attempt may do at which locations of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grants {
    /// May be read.
    pub read: Vec<Location>,
    /// May be written (a key that ends with `/`: everything below it).
    pub write: Vec<Location>,
}

impl Grants {
    /// The whole store: what core itself asks for, to look at objects, list and validate. No attempt gets this.
    pub fn whole() -> Self {
        Self { read: Vec::new(), write: Vec::new() }
    }

    /// Whether these are the rights to the whole store.
    pub fn is_whole(&self) -> bool {
        self.read.is_empty() && self.write.is_empty()
    }
}

/// A right to a store.
#[derive(Clone, Debug)]
pub struct Minted {
    /// The secret itself; held in memory only.
    pub secret: StoreSecret,
    /// When it ends, if it does.
    pub expires_at: Option<Timestamp>,
    /// Whether it is limited to the asked locations; `false` means it opens the whole store.
    pub narrowed: bool,
}

/// No right could be made.
#[derive(Debug, thiserror::Error)]
#[error("no credentials for store {store}: {problem}")]
pub struct CredentialsError {
    /// Name of the store.
    pub store: String,
    /// What went wrong and what to do.
    pub problem: String,
}

/// Makes rights.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// A right to `store`, limited to `grants` where the provider can, for about `life`.
    async fn mint(
        &self,
        store: &Store,
        grants: &Grants,
        life: Duration,
        now: Timestamp,
    ) -> Result<Minted, CredentialsError>;
}
