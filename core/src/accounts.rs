//! Accounts: whose everything is. `up` begins with one.

use serde::{Deserialize, Serialize};
use telecine_domain::id::{AccountId, RegionName};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::record::{self, RecordError};

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// A name for people.
    pub name: String,
    /// Where jobs run whose data says nothing about it.
    pub default_region: RegionName,
    /// When it was created.
    pub created_at: Timestamp,
}

/// Creates an account.
///
/// # Errors
/// When the records are out of reach.
pub async fn create(
    backend: &Backend,
    name: &str,
    default_region: &RegionName,
    now: Timestamp,
) -> Result<Account, RecordError> {
    let account = new_account(name, default_region, now);
    let key = layout::account(account.id);
    let writes = vec![record::put_new(key.clone(), &account)?];
    let there = || async { Ok(backend.table.get(&key).await?.is_some()) };
    if record::settle(backend.table.as_ref(), writes, there).await? {
        Ok(account)
    } else {
        Err(RecordError::contended(&key))
    }
}

/// The account that an installation begins with; creates it the first time.
///
/// # Errors
/// When the records are out of reach.
pub async fn ensure_default(
    backend: &Backend,
    default_region: &RegionName,
    now: Timestamp,
) -> Result<Account, RecordError> {
    let pointer = layout::default_account();
    if find_default(backend).await?.is_none() {
        let account = new_account("default", default_region, now);
        let writes = vec![
            record::put_new(pointer.clone(), &account.id)?,
            record::put_new(layout::account(account.id), &account)?,
        ];
        // Whoever was first, the account that stands counts.
        let there = || async { Ok(find_default(backend).await?.is_some()) };
        record::settle(backend.table.as_ref(), writes, there).await?;
    }
    find_default(backend).await?.ok_or_else(|| RecordError::contended(&pointer))
}

/// The account with this id.
///
/// # Errors
/// When the records are out of reach.
pub async fn find(backend: &Backend, account: AccountId) -> Result<Option<Account>, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::account(account)).await?;
    Ok(found.map(|found| found.value))
}

async fn find_default(backend: &Backend) -> Result<Option<Account>, RecordError> {
    let pointer = record::get(backend.table.as_ref(), &layout::default_account()).await?;
    match pointer {
        Some(pointer) => find(backend, pointer.value).await,
        None => Ok(None),
    }
}

fn new_account(name: &str, default_region: &RegionName, now: Timestamp) -> Account {
    Account {
        id: AccountId::new(now, rand::random()),
        name: name.to_owned(),
        default_region: default_region.clone(),
        created_at: now,
    }
}
