//! Keys without cryptography: what is sealed stays here, and the sealed form is a random handle to it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::ports::keys::{Keys, KeysError};

/// Keeps secrets in memory; the sealed form says nothing about them and opens in this value only.
#[derive(Default)]
pub struct MemoryKeys {
    /// By handle.
    sealed: Mutex<BTreeMap<[u8; 16], Secret>>,
}

struct Secret {
    context: String,
    plain: Zeroizing<Vec<u8>>,
}

#[async_trait]
impl Keys for MemoryKeys {
    async fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, KeysError> {
        let handle = rand::random::<u128>().to_be_bytes();
        let secret = Secret { context: context.to_owned(), plain: Zeroizing::new(plain.to_vec()) };
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, secret);
        Ok(handle.to_vec())
    }

    async fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let handle: [u8; 16] = sealed.try_into().map_err(|_| KeysError::DoesNotOpen)?;
        let secrets = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        match secrets.get(&handle) {
            Some(secret) if secret.context == context => Ok(secret.plain.clone()),
            Some(_) | None => Err(KeysError::DoesNotOpen),
        }
    }
}
