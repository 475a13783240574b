//! Join tokens: what an instance presents once to get its certificate. A token is bound to one instance, pool and
//! region, and holds until that instance is retired, so that an agent may enrol again after a restart.
//!
//! A retired instance may still hold a certificate. That it is retired is recorded for longer than any certificate
//! lives, and nothing is signed for it or for its workers meanwhile.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{InstanceId, PoolName, RegionName};
use telecine_domain::time::Timestamp;
use zeroize::Zeroizing;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, Key};
use crate::record::{self, RecordError};

/// What a join token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The instance.
    pub instance: InstanceId,
    /// Its pool.
    pub pool: PoolName,
    /// Its region.
    pub region: RegionName,
}

/// An instance may not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The token is none of ours, or its instance was retired.
    #[error("the join token is not known: it was mistyped, or its instance was retired")]
    Unknown,
    /// The token is another instance's.
    #[error("the join token belongs to another instance than {0}")]
    OtherInstance(InstanceId),
    /// The instance is gone for good.
    #[error("instance {0} was retired")]
    Retired(InstanceId),
    /// The instance has a token already.
    #[error("instance {0} has a join token already")]
    Exists(InstanceId),
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRecord {
    binding: Binding,
    created_at: Timestamp,
}

/// That an instance is gone for good.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Retired {
    at: Timestamp,
}

/// How long a retired instance is remembered; no certificate lives as long.
const REMEMBERED: Duration = Duration::from_secs(400 * 24 * 3600);

/// Makes the join token of an instance: `tj_` and 64 hexadecimal digits. Only its hash is kept.
///
/// # Errors
/// `Exists` when the instance has one, `Retired`.
pub async fn create(
    backend: &Backend,
    binding: Binding,
    now: Timestamp,
) -> Result<Zeroizing<String>, EnrolmentError> {
    if is_retired(backend, binding.instance).await? {
        return Err(EnrolmentError::Retired(binding.instance));
    }
    let token = Zeroizing::new(format!("tj_{}", hex::encode(rand::random::<[u8; 32]>())));
    let row = layout::join_token(&token);
    let instance = binding.instance;
    let writes = vec![
        record::put_new(row.clone(), &TokenRecord { binding, created_at: now })?,
        record::put_new(layout::instance_join(instance), &row.partition)?,
    ];
    let there = || async { Ok(backend.table.get(&row).await?.is_some()) };
    if record::settle(backend.table.as_ref(), writes, there).await? {
        Ok(token)
    } else {
        Err(EnrolmentError::Exists(instance))
    }
}

/// What `token` stands for, presented by `instance`.
///
/// # Errors
/// `Unknown`, `OtherInstance`, `Retired`.
pub async fn check(backend: &Backend, token: &str, instance: InstanceId) -> Result<Binding, EnrolmentError> {
    if !token.starts_with("tj_") || token.len() > 200 {
        return Err(EnrolmentError::Unknown);
    }
    let found = record::get::<TokenRecord>(backend.table.as_ref(), &layout::join_token(token)).await?;
    let binding = found.ok_or(EnrolmentError::Unknown)?.value.binding;
    if binding.instance != instance {
        return Err(EnrolmentError::OtherInstance(instance));
    }
    if is_retired(backend, instance).await? { Err(EnrolmentError::Retired(instance)) } else { Ok(binding) }
}

/// Takes a join token back that never reached its instance; one without a token is no error.
///
/// # Errors
/// When the records are out of reach.
pub async fn withdraw(backend: &Backend, instance: InstanceId) -> Result<(), RecordError> {
    let place = layout::instance_join(instance);
    let Some(found) = record::get::<String>(backend.table.as_ref(), &place).await? else { return Ok(()) };
    let writes = vec![record::delete(Key::new(found.value, "token")), record::delete(place.clone())];
    let gone = || async { Ok(backend.table.get(&place).await?.is_none()) };
    record::settle(backend.table.as_ref(), writes, gone).await?;
    Ok(())
}

/// The instance is gone for good: its join token ends, and it gets no certificate any more.
///
/// # Errors
/// When the records are out of reach; it may be retired then, and retiring it again does no harm.
pub async fn retire(backend: &Backend, instance: InstanceId, now: Timestamp) -> Result<(), RecordError> {
    // First, so that no moment is left in which it could enrol unseen.
    let key = layout::instance_retired(instance);
    let mut row = record::row(key.clone(), 1, &Retired { at: now })?;
    row.expires_at = Some(now.after(REMEMBERED));
    let there = || async { Ok(backend.table.get(&key).await?.is_some()) };
    record::settle(backend.table.as_ref(), vec![record::put(row, Condition::Absent)], there).await?;
    withdraw(backend, instance).await
}

/// Whether the instance was retired: nothing may be signed for it.
///
/// # Errors
/// When the records are out of reach.
pub async fn is_retired(backend: &Backend, instance: InstanceId) -> Result<bool, RecordError> {
    let found = record::get::<Retired>(backend.table.as_ref(), &layout::instance_retired(instance)).await?;
    Ok(found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::HandClock;

    #[tokio::test]
    async fn a_token_is_one_instances_until_it_is_retired() {
        let now = Timestamp::from_millis(1_000_000);
        let (backend, _) = Backend::memory(HandClock::at(now).clock());
        let instance = InstanceId::new(now, 1);
        let (pool, region) = ("default".parse().unwrap(), "local".parse().unwrap());
        let binding = Binding { instance, pool, region };
        let token = create(&backend, binding.clone(), now).await.unwrap();
        assert_eq!(check(&backend, &token, instance).await.unwrap(), binding);
        assert_eq!(check(&backend, &token, instance).await.unwrap(), binding, "again after a restart");
        let other = check(&backend, &token, InstanceId::new(now, 2)).await;
        assert!(matches!(other, Err(EnrolmentError::OtherInstance(_))));
        assert!(matches!(create(&backend, binding.clone(), now).await, Err(EnrolmentError::Exists(_))));
        assert!(matches!(check(&backend, "tj_00", instance).await, Err(EnrolmentError::Unknown)));
        withdraw(&backend, instance).await.unwrap();
        withdraw(&backend, instance).await.unwrap();
        assert!(matches!(check(&backend, &token, instance).await, Err(EnrolmentError::Unknown)));
        let second = create(&backend, binding.clone(), now).await.unwrap();
        assert_ne!(second, token);
        assert!(!is_retired(&backend, instance).await.unwrap());
        retire(&backend, instance, now).await.unwrap();
        retire(&backend, instance, now).await.unwrap();
        assert!(is_retired(&backend, instance).await.unwrap());
        assert!(matches!(check(&backend, &second, instance).await, Err(EnrolmentError::Unknown)));
        assert!(matches!(create(&backend, binding, now).await, Err(EnrolmentError::Retired(_))));
    }
}
