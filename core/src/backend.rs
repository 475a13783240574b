//! One of each port: all that a use case is given.

use std::path::PathBuf;
use std::sync::Arc;

use telecine_domain::id::RegionName;

use crate::memory::{MemoryKeys, MemoryQueue, MemoryTable, NoInstances, StoredCredentials};
use crate::ports::Clock;
use crate::ports::credentials::Credentials;
use crate::ports::instances::Instances;
use crate::ports::keys::Keys;
use crate::ports::queue::Queue;
use crate::ports::table::Table;
use crate::system_store::SystemStore;

/// The world, as far as core needs it. Cloning is cheap.
#[derive(Clone)]
pub struct Backend {
    /// The truth.
    pub table: Arc<dyn Table>,
    /// Hints.
    pub queue: Arc<dyn Queue>,
    /// Seals secrets.
    pub keys: Arc<dyn Keys>,
    /// Makes rights to stores.
    pub credentials: Arc<dyn Credentials>,
    /// Provides instances.
    pub instances: Arc<dyn Instances>,
    /// Bytes too large for rows.
    pub system: SystemStore,
    /// The platform's own folders on this machine: no local store is, holds or lies in one of them.
    pub forbidden_folders: Arc<[PathBuf]>,
    /// The regions that the platform's managers run: what is to run elsewhere is refused. Empty: any may be.
    pub regions: Arc<[RegionName]>,
}

impl Backend {
    /// A world in memory, for tests and simulations: gone with the process.
    pub fn memory(clock: Clock) -> (Self, Arc<MemoryTable>) {
        let memory = Arc::new(MemoryTable::new(clock));
        let table: Arc<dyn Table> = memory.clone();
        let keys: Arc<dyn Keys> = Arc::new(MemoryKeys::default());
        let backend = Self {
            credentials: Arc::new(StoredCredentials::new(table.clone(), keys.clone())),
            table,
            queue: Arc::new(MemoryQueue::default()),
            keys,
            instances: Arc::new(NoInstances),
            system: SystemStore::memory(),
            forbidden_folders: Arc::from([]),
            regions: Arc::from([]),
        };
        (backend, memory)
    }
}
