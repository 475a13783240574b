//! Sealing of secrets, so that no row, backup or log holds one in the clear.

use async_trait::async_trait;
use zeroize::Zeroizing;

/// Why a secret was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It was sealed by another key, for another context, or was changed since.
    #[error("the secret does not open: wrong key, wrong context, or changed since it was sealed")]
    DoesNotOpen,
    /// The keeper of the key did not answer.
    #[error("the key is not available: {0}")]
    Unavailable(String),
}

/// Envelope encryption. `context` (such as `store:sto_…`) is bound to the result: it opens under the same one only.
#[async_trait]
pub trait Keys: Send + Sync {
    /// Encrypts.
    async fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, KeysError>;

    /// Decrypts.
    async fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError>;
}
