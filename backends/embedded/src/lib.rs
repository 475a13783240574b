//! The ports on one SQLite file and the machine it lies on: what `telecine up` stands on.
//!
//! A data folder holds the database (`telecine.db`), the key that seals secrets (`master.key`), the platform's own
//! objects (`system/`) and the folders of local agents (`agents/`). One process at a time has it. Agents outlive that
//! process and are found again by the next one.

mod embedded;
mod instances;
mod keys;
mod lock;
mod table;
mod watch;

pub use embedded::{Embedded, EmbeddedConfig, EmbeddedError, drain_agents};
pub use instances::{
    AgentCommand, LocalInstances, LocalInstancesError, LocalPool, NOTICE_FILE, NewAgent, Provisioner,
};
pub use keys::{FileKeys, KeyFileError};
pub use lock::{FolderLock, LockError};
pub use table::{SchemaError, SqliteTable};
pub use watch::{LocalWatcher, WatchSettings};
