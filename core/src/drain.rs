//! Drains by hand: a person's cordon, and taking one back. An instance that is drained finishes what it has, takes no more
//! and stays: only the autoscaler ends instances, and it leaves a person's cordon alone.

use telecine_domain::autoscale::CordonCause;
use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::cordon::{self, CordonError, CordonState, Cordoned, Outcome};
use crate::record::{self, RecordError};
use crate::{fleet, layout};

/// A drain was not begun or taken back.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// There is no such instance.
    #[error("there is no instance {0}")]
    NotFound(InstanceId),
    /// Its end was claimed, or the records were out of reach.
    #[error(transparent)]
    Cordon(#[from] CordonError),
}

impl From<RecordError> for DrainError {
    fn from(error: RecordError) -> Self {
        Self::Cordon(error.into())
    }
}

/// Cordons an instance for a person, also one that the autoscaler has cordoned: the cordon is the person's then. The same
/// again changes nothing.
///
/// # Errors
/// `NotFound`; `Cordon`, when its end was claimed.
pub async fn begin(backend: &Backend, instance: InstanceId, now: Timestamp) -> Result<Cordoned, DrainError> {
    let region = region_of(backend, instance).await?;
    for tried in 0..record::TRIES {
        let found = cordon::of(backend, &region, instance).await?;
        let stands = |found: &Cordoned| matches!(found.state, CordonState::Standing { .. });
        if let Some(found) =
            found.as_ref().filter(|found| stands(found) && found.cause == CordonCause::Operator)
        {
            return Ok(found.clone());
        }
        let number = found.map_or(0, |found| found.number) + 1;
        let cause = CordonCause::Operator;
        match cordon::place(backend, &region, instance, number, cause, now).await? {
            Outcome::Done => {
                let state = CordonState::Standing { acknowledged_at: None };
                return Ok(Cordoned { instance, region, number, cause, at: now, state });
            }
            Outcome::Stale => record::pause(tried).await,
        }
    }
    Err(RecordError::contended(&layout::cordon(&region, instance)).into())
}

/// Takes the cordon of an instance back, whoever placed it. `None` when it never had one; one that was lifted stays so.
///
/// # Errors
/// `NotFound`; `Cordon`, when its end was claimed.
pub async fn revoke(
    backend: &Backend,
    instance: InstanceId,
    now: Timestamp,
) -> Result<Option<Cordoned>, DrainError> {
    let region = region_of(backend, instance).await?;
    for tried in 0..record::TRIES {
        let Some(found) = cordon::of(backend, &region, instance).await? else { return Ok(None) };
        match cordon::lift(backend, &region, instance, found.number, now).await? {
            Outcome::Done => return Ok(Some(Cordoned { state: CordonState::Lifted, ..found })),
            Outcome::Stale => record::pause(tried).await,
        }
    }
    Err(RecordError::contended(&layout::cordon(&region, instance)).into())
}

async fn region_of(backend: &Backend, instance: InstanceId) -> Result<RegionName, DrainError> {
    let found = fleet::instance(backend, instance).await?;
    Ok(found.ok_or(DrainError::NotFound(instance))?.profile.region)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::HandClock;
    use crate::fixture::{FAULTS, instance, region};

    fn seen(id: InstanceId) -> telecine_domain::instance::Instance {
        serde_json::from_value(serde_json::json!({
            "profile": {
                "id": id, "region": region(), "pool": "small", "host": "box", "agent_version": "0.1.0",
                "capacity": {"cpu_milli": 4000, "memory_bytes": 8000}, "runtimes": ["process"],
            },
            "state": "ready", "allocated": {}, "state_since": "2026-11-22T12:00:00Z",
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_person_drains_and_takes_it_back_until_the_end_is_claimed() {
        for fault in FAULTS {
            let now = Timestamp::from_millis(1_000_000);
            let (backend, table) = Backend::memory(HandClock::at(now).clock());
            let id = instance(1);
            assert!(matches!(begin(&backend, id, now).await, Err(DrainError::NotFound(_))));
            fleet::put_instance(&backend, &seen(id)).await.unwrap();
            assert_eq!(revoke(&backend, id, now).await.unwrap(), None);
            let idle = cordon::place(&backend, &region(), id, 1, CordonCause::Idle, now).await.unwrap();
            assert_eq!(idle, Outcome::Done);
            table.fail_transaction(1, fault);
            let drained = begin(&backend, id, now).await.unwrap();
            assert_eq!((drained.number, drained.cause), (2, CordonCause::Operator), "{fault:?}");
            assert_eq!(begin(&backend, id, now).await.unwrap(), drained, "the same again");
            assert_eq!(cordon::of(&backend, &region(), id).await.unwrap(), Some(drained.clone()));
            table.fail_transaction(1, fault);
            let lifted = revoke(&backend, id, now).await.unwrap().unwrap();
            assert_eq!((lifted.number, lifted.state), (2, CordonState::Lifted));
            assert_eq!(revoke(&backend, id, now).await.unwrap(), Some(lifted));
            assert_eq!(begin(&backend, id, now).await.unwrap().number, 3);
            let acknowledged = cordon::acknowledge(&backend, &region(), id, 3, now).await.unwrap();
            let claimed = cordon::claim(&backend, &region(), id, 3, now).await.unwrap();
            assert_eq!((acknowledged, claimed), (Outcome::Done, Outcome::Done));
            for refused in [begin(&backend, id, now).await.err(), revoke(&backend, id, now).await.err()] {
                let is_claimed =
                    matches!(refused, Some(DrainError::Cordon(CordonError::Terminating { number: 3, .. })));
                assert!(is_claimed, "{refused:?}");
            }
        }
    }
}
