//! A registered store and its secret become something that can be read, listed, written, validated and signed.
//!
//! [`open`] gives an [`OpenedStore`]: a local folder held open through a descriptor that no symbolic link leads out of,
//! or a bucket. Keys are bytes to both: nothing is decoded, normalised or interpreted. Names of which a segment begins
//! with `.telecine-` are ours: listings leave them out. What it is not: a cache, a mount (`telecine-mount`) or a keeper
//! of secrets (`telecine-core`).

mod error;
mod folder;
mod objects;
mod open;
mod opened;
mod secret;
mod validate;

pub use error::{Action, StoreError, StoreErrorClass};
pub use folder::{FolderStore, folder_etag};
pub use objects::ObjectsStore;
pub use open::{OpenError, open};
pub use opened::{ObjectEntry, ObjectRead, OpenedStore};
pub use secret::StoreSecret;
pub use validate::validate;

/// Whether a key, or part of one, has a segment that is ours: `telecine_domain::location::is_hidden` for text that is
/// not known to be a key.
pub fn is_hidden(key: &str) -> bool {
    key.split('/').any(|segment| segment.starts_with(telecine_domain::location::HIDDEN_PREFIX))
}
