//! The secret of a store, in memory.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What authenticates requests to a store. Its `Debug` shows no secret; it is wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreSecret {
    /// The store needs none.
    #[default]
    None,
    /// Keys of S3 or a compatible service.
    S3Keys {
        /// The access key id.
        access_key_id: String,
        /// The secret key.
        secret_access_key: String,
        /// The token of temporary keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_token: Option<String>,
    },
}

impl fmt::Debug for StoreSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "StoreSecret::None",
            Self::S3Keys { .. } => "StoreSecret::S3Keys(…)",
        })
    }
}
