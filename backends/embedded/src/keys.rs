//! Secrets sealed with a key that lies in a file of the data folder.
//!
//! AES-256-GCM; the context is authenticated with the secret. A sealed secret is: format (1 byte), key id (8 bytes, the
//! beginning of the key's SHA-256), nonce (12 random bytes), ciphertext and tag. The key file has 32 random bytes and is
//! for its owner only. It belongs into backups, apart from the database.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest;
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use telecine_core::ports::keys::{Keys, KeysError};
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES;

/// The key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It is gone, and there are secrets that only it opens.
    #[error(
        "the key file {file:?} is missing while the database exists: restore it from your backup, or the secrets of all stores are lost (to go on without them, create it with 32 random bytes)"
    )]
    Missing {
        /// Which.
        file: PathBuf,
    },
    /// Others may read it.
    #[error("the key file {file:?} may be read by others (mode {mode:o}): run chmod 600 on it")]
    Exposed {
        /// Which.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no key.
    #[error("the key file {file:?} must have {KEY_BYTES} bytes and has {found}: restore it from your backup")]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Its size.
        found: usize,
    },
    /// The system refused.
    #[error("the key file {file:?} cannot be used: {source}")]
    Io {
        /// Which.
        file: PathBuf,
        /// Its words.
        source: std::io::Error,
    },
}

/// `Keys` with a key from a file.
pub struct FileKeys {
    key: RandomizedNonceKey,
    id: [u8; KEY_ID_BYTES],
}

impl FileKeys {
    /// Reads the key file; makes it first when it is missing and `may_create`. The caller holds the folder's lock.
    ///
    /// # Errors
    /// See [`KeyFileError`].
    pub fn open(file: &Path, may_create: bool) -> Result<Self, KeyFileError> {
        if !file.exists() {
            if !may_create {
                return Err(KeyFileError::Missing { file: file.to_owned() });
            }
            create(file).map_err(|source| KeyFileError::Io { file: file.to_owned(), source })?;
        }
        let key = read(file)?;
        let digest = digest::digest(&digest::SHA256, &key[..]);
        let id = digest.as_ref()[..KEY_ID_BYTES].try_into().expect("a digest is longer");
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key[..]).expect("32 bytes are a key of AES-256");
        Ok(Self { key, id })
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [FORMAT; HEADER_BYTES];
        header[1..].copy_from_slice(&self.id);
        header
    }

    /// The header and the context are authenticated; the header has a fixed length, so they cannot be shifted.
    fn associated(&self, context: &str) -> Aad<Vec<u8>> {
        Aad::from([&self.header()[..], context.as_bytes()].concat())
    }
}

/// Written beside its place and renamed: a crash leaves a whole key or none.
fn create(file: &Path) -> std::io::Result<()> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    SystemRandom::new().fill(&mut key[..]).map_err(|_| std::io::Error::other("no random bytes"))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let unfinished = file.with_extension("unfinished");
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    written.write_all(&key[..])?;
    written.sync_all()?;
    std::fs::rename(&unfinished, file)?;
    File::open(folder)?.sync_all()
}

fn read(file: &Path) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyFileError> {
    let failed = |source| KeyFileError::Io { file: file.to_owned(), source };
    let mut opened = File::open(file).map_err(failed)?;
    let mode = opened.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { file: file.to_owned(), mode });
    }
    // Never grows, so no copy of the key is left behind; one byte more shows a file that is too long.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 1]);
    let mut found = 0;
    while found < bytes.len() {
        match opened.read(&mut bytes[found..]).map_err(failed)? {
            0 => break,
            read => found += read,
        }
    }
    if found != KEY_BYTES {
        return Err(KeyFileError::Damaged { file: file.to_owned(), found });
    }
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(&bytes[..KEY_BYTES]);
    Ok(key)
}

#[async_trait]
impl Keys for FileKeys {
    async fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, KeysError> {
        let unavailable = |_| KeysError::Unavailable("the cipher refused the secret".to_owned());
        let mut text = plain.to_vec();
        let nonce =
            self.key.seal_in_place_append_tag(self.associated(context), &mut text).map_err(unavailable)?;
        Ok([&self.header()[..], nonce.as_ref(), &text].concat())
    }

    async fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeysError> {
        let does_not_open = |_| KeysError::DoesNotOpen;
        let body = sealed.strip_prefix(&self.header()).ok_or(KeysError::DoesNotOpen)?;
        let (nonce, text) = body.split_at_checked(NONCE_LEN).ok_or(KeysError::DoesNotOpen)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(does_not_open)?;
        let mut text = Zeroizing::new(text.to_vec());
        let length =
            self.key.open_in_place(nonce, self.associated(context), &mut text).map_err(does_not_open)?.len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_contract_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        telecine_core::contract::keys_contract(async || Arc::new(FileKeys::open(&file, true).unwrap()) as _)
            .await;
    }

    #[tokio::test]
    async fn the_same_file_opens_what_it_sealed_and_another_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("master.key");
        let sealed = FileKeys::open(&file, true).unwrap().seal("store:1", b"secret").await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = FileKeys::open(&file, false).unwrap();
        assert_eq!(again.open("store:1", &sealed).await.unwrap().as_slice(), b"secret");
        let other = FileKeys::open(&folder.path().join("other.key"), true).unwrap();
        assert!(matches!(other.open("store:1", &sealed).await, Err(KeysError::DoesNotOpen)));
    }

    #[test]
    fn files_that_are_no_keys_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("master.key");
        assert!(matches!(FileKeys::open(&file, false), Err(KeyFileError::Missing { .. })));
        FileKeys::open(&file, true).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        let exposed = FileKeys::open(&file, true).err().unwrap().to_string();
        assert!(exposed.contains("chmod 600") && exposed.contains("master.key"), "{exposed}");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        for (bytes, found) in [(0, 0), (31, 31), (100, 33)] {
            std::fs::write(&file, vec![7; bytes]).unwrap();
            let error = FileKeys::open(&file, true).err().unwrap();
            assert!(matches!(error, KeyFileError::Damaged { found: size, .. } if size == found), "{error}");
        }
    }

    #[test]
    fn what_a_crash_left_of_making_a_key_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("master.key");
        std::fs::write(file.with_extension("unfinished"), "half").unwrap();
        FileKeys::open(&file, true).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
