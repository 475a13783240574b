//! The first API key: made by the first `up`, shown once, kept in `client.toml` for the other verbs.
//!
//! Three steps, each of which may be the last one: the key is written beside `client.toml` under another name, then it is
//! recorded, then the file is renamed. Whoever finds the file under its other name goes on with the same key, so that
//! there is never a key that works and that nobody has. A `client.toml` that is there is taken as it is: its key may have
//! been revoked on purpose.

use std::path::Path;

use telecine_core::access::{self, AccessError, Scope};
use telecine_core::accounts::Account;
use telecine_core::backend::Backend;
use tracing::warn;

use crate::connection::{self, ClientFile};
use crate::failure::{Exit, Failure};
use crate::process;

/// Where the key is until it is recorded.
const UNRECORDED: &str = ".client.toml.first";
const NAME: &str = "first key of up";

/// Writes the file that the other verbs find this API by. The key is made once; it is returned then, to be shown.
///
/// # Errors
/// When the folder or the records are out of reach; the next `up` goes on where this one ended.
pub(super) async fn ensure(
    data: &Path,
    backend: &Backend,
    account: &Account,
    url: &str,
) -> Result<Option<String>, Failure> {
    if let Some(file) = ClientFile::read(data)? {
        warn_if_unknown(backend, &file.api_key).await;
        let file = ClientFile { url: url.to_owned(), ..file };
        write(&file, data, connection::FILE_NAME)?;
        return Ok(None);
    }
    let file = prepared(data, url)?;
    record(backend, account, &file).await?;
    finish(data)?;
    Ok(Some(file.api_key))
}

/// The key to be: the one that an `up` before has written and not finished, else a new one, on disk before it can work.
fn prepared(data: &Path, url: &str) -> Result<ClientFile, Failure> {
    let api_key = match ClientFile::read_from(&data.join(UNRECORDED))? {
        Some(unfinished) => unfinished.api_key,
        None => access::new_token(process::now()).to_string(),
    };
    let file = ClientFile { url: url.to_owned(), api_key };
    write(&file, data, UNRECORDED)?;
    Ok(file)
}

async fn record(backend: &Backend, account: &Account, file: &ClientFile) -> Result<(), Failure> {
    let scopes = [Scope::Read, Scope::Write, Scope::Admin].into();
    let made = access::create_from(backend, account.id, &file.api_key, NAME, scopes, process::now()).await;
    made.map_err(|problem| Failure::new(Exit::Failed, problem.to_string()))
}

fn finish(data: &Path) -> Result<(), Failure> {
    std::fs::rename(data.join(UNRECORDED), data.join(connection::FILE_NAME))
        .and_then(|()| std::fs::File::open(data)?.sync_all())
        .map_err(|problem| unwritable(data, connection::FILE_NAME, &problem))
}

/// The verbs of this folder will be refused, and nobody is asked why; so it is said here.
async fn warn_if_unknown(backend: &Backend, api_key: &str) {
    if let Err(AccessError::Unknown | AccessError::Expired(_)) =
        access::authenticate(backend, api_key, process::now()).await
    {
        let file = connection::FILE_NAME;
        warn!(
            "the API key in {file} was revoked or has expired; remove the file to be given a new one at the next start"
        );
    }
}

fn write(file: &ClientFile, data: &Path, name: &str) -> Result<(), Failure> {
    file.write(data, name).map_err(|problem| unwritable(data, name, &problem))
}

fn unwritable(data: &Path, name: &str, problem: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{} cannot be written: {problem}", data.join(name).display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use telecine_core::accounts;

    use super::*;

    const URL: &str = "http://127.0.0.1:1";

    async fn world() -> (tempfile::TempDir, Backend, Account) {
        let (backend, _) = Backend::memory(Arc::new(process::now));
        let region = "local".parse().unwrap();
        let account = accounts::ensure_default(&backend, &region, process::now()).await.unwrap();
        (tempfile::tempdir().unwrap(), backend, account)
    }

    async fn works(backend: &Backend, key: &str) -> bool {
        access::authenticate(backend, key, process::now()).await.is_ok()
    }

    #[tokio::test]
    async fn wherever_up_dies_the_next_one_has_the_one_key_that_works() {
        for step in 0..=2 {
            let (data, backend, account) = world().await;
            let data = data.path();
            if step >= 1 {
                let file = prepared(data, URL).unwrap();
                assert!(!works(&backend, &file.api_key).await, "it is on disk before it can work");
            }
            if step >= 2 {
                record(&backend, &account, &prepared(data, URL).unwrap()).await.unwrap();
            }
            ensure(data, &backend, &account, URL).await.unwrap();
            let file = ClientFile::read(data).unwrap().unwrap();
            assert!(works(&backend, &file.api_key).await, "died after step {step}");
            let keys = access::list(&backend, account.id).await.unwrap();
            assert_eq!(keys.len(), 1, "no key that nobody knows, died after step {step}");
        }
    }

    #[tokio::test]
    async fn a_key_is_shown_once_and_a_revoked_one_stays_revoked() {
        use std::os::unix::fs::PermissionsExt;
        let (data, backend, account) = world().await;
        let data = data.path();
        let shown = ensure(data, &backend, &account, URL).await.unwrap().expect("the first time");
        let mode = std::fs::metadata(data.join(connection::FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!data.join(UNRECORDED).exists());
        let moved = "http://127.0.0.1:2";
        assert_eq!(ensure(data, &backend, &account, moved).await.unwrap(), None);
        let file = ClientFile::read(data).unwrap().unwrap();
        assert_eq!((file.url.as_str(), &file.api_key), (moved, &shown));
        let key = access::list(&backend, account.id).await.unwrap().remove(0).id;
        access::revoke(&backend, account.id, key).await.unwrap();
        ensure(data, &backend, &account, URL).await.unwrap();
        assert!(!works(&backend, &shown).await, "nobody brings a revoked key back");
        std::fs::remove_file(data.join(connection::FILE_NAME)).unwrap();
        let second = ensure(data, &backend, &account, URL).await.unwrap().expect("a new one");
        assert!(second != shown && works(&backend, &second).await);
    }

    #[tokio::test]
    async fn a_folder_that_takes_no_file_gets_no_key() {
        let (data, backend, account) = world().await;
        std::fs::create_dir(data.path().join(".client.toml.new")).unwrap();
        let failure = ensure(data.path(), &backend, &account, URL).await.unwrap_err();
        assert!(failure.to_string().contains("cannot be written"), "{failure}");
        assert!(access::list(&backend, account.id).await.unwrap().is_empty());
    }
}
