//! Cordons: one row for each instance that was ever cordoned. The autoscaler or a person places one, the manager relays
//! it and records the agent's acknowledgement, the autoscaler claims the end of the instance on both.
//!
//! Invariant: numbers of an instance only grow, and whoever speaks of a number that is not the row's is not heard.
//! Invariant: only a standing, acknowledged cordon is claimed, and a claim is never taken back: whatever comes later is
//! refused. So nothing is ended that was given work after its agent had said that it holds none.

use serde::{Deserialize, Serialize};
use telecine_domain::autoscale::CordonCause;
use telecine_domain::id::{InstanceId, RegionName};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::Source;
use crate::record::{self, RecordError, Versioned};

/// The cordon of an instance, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cordoned {
    /// Of which instance.
    pub instance: InstanceId,
    /// Where that is.
    pub region: RegionName,
    /// Number of the cordon, from 1.
    pub number: u64,
    /// Why it was placed.
    pub cause: CordonCause,
    /// When it was placed.
    pub at: Timestamp,
    /// How it stands.
    pub state: CordonState,
}

/// How a cordon stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CordonState {
    /// The instance is to take no new work.
    Standing {
        /// When its agent said that it holds no lease at this number; `None` until then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        acknowledged_at: Option<Timestamp>,
    },
    /// It was taken back.
    Lifted,
    /// The end of the instance was claimed.
    Terminating {
        /// When.
        claimed_at: Timestamp,
    },
}

/// What became of a change; both are normal.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The row is as asked for, written now or before.
    Done,
    /// The row has moved on; nothing was written.
    Stale,
}

/// A cordon was not changed.
#[derive(Debug, thiserror::Error)]
pub enum CordonError {
    /// The end of the instance was claimed; nothing takes that back.
    #[error("the end of instance {instance} was claimed with cordon {number}; it cannot be taken back")]
    Terminating {
        /// Which instance.
        instance: InstanceId,
        /// The number of the claimed cordon.
        number: u64,
    },
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Places a cordon whose number is above the last one. The same again, while it stands, changes nothing; a number that
/// was used is `Stale`.
///
/// # Errors
/// `Terminating`; `Record`.
pub async fn place(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
    number: u64,
    cause: CordonCause,
    now: Timestamp,
) -> Result<Outcome, CordonError> {
    let state = CordonState::Standing { acknowledged_at: None };
    let placed = Cordoned { instance, region: region.clone(), number, cause, at: now, state };
    change(backend, region, instance, |found| {
        let Some(found) = found else { return Ok(Some(placed.clone())) };
        match found.state {
            CordonState::Terminating { .. } => Err(terminating(found)),
            CordonState::Standing { .. } | CordonState::Lifted if number > found.number => {
                Ok(Some(placed.clone()))
            }
            CordonState::Standing { .. } if (found.number, found.cause) == (number, cause) => {
                Ok(Some(found.clone()))
            }
            CordonState::Standing { .. } | CordonState::Lifted => Ok(None),
        }
    })
    .await
}

/// Takes a cordon back: the instance takes work again. The same again changes nothing.
///
/// # Errors
/// `Terminating`; `Record`.
pub async fn lift(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
    number: u64,
    _now: Timestamp,
) -> Result<Outcome, CordonError> {
    change(backend, region, instance, |found| match found {
        Some(found) if matches!(found.state, CordonState::Terminating { .. }) => Err(terminating(found)),
        Some(found) if found.number == number => {
            Ok(Some(Cordoned { state: CordonState::Lifted, ..found.clone() }))
        }
        Some(_) | None => Ok(None),
    })
    .await
}

/// Records that the agent holds no lease at this number. `Stale` when the cordon does not stand, has another number or
/// was acknowledged before.
///
/// # Errors
/// `Record`.
pub async fn acknowledge(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
    number: u64,
    now: Timestamp,
) -> Result<Outcome, CordonError> {
    let acknowledged = CordonState::Standing { acknowledged_at: Some(now) };
    change(backend, region, instance, |found| match found {
        Some(found) if found.number == number => match found.state {
            CordonState::Standing { acknowledged_at: None } => {
                Ok(Some(Cordoned { state: acknowledged, ..found.clone() }))
            }
            CordonState::Standing { acknowledged_at: Some(_) }
            | CordonState::Lifted
            | CordonState::Terminating { .. } => Ok(None),
        },
        Some(_) | None => Ok(None),
    })
    .await
}

/// Claims the end of an instance: from now on nothing takes its cordon back, and it may be retired. Only a standing,
/// acknowledged cordon of this number is claimed; the same again changes nothing.
///
/// # Errors
/// `Record`.
pub async fn claim(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
    number: u64,
    now: Timestamp,
) -> Result<Outcome, CordonError> {
    let claimed = CordonState::Terminating { claimed_at: now };
    change(backend, region, instance, |found| match found {
        Some(found) if found.number == number => match found.state {
            CordonState::Standing { acknowledged_at: Some(_) } => {
                Ok(Some(Cordoned { state: claimed, ..found.clone() }))
            }
            CordonState::Terminating { .. } => Ok(Some(found.clone())),
            CordonState::Standing { acknowledged_at: None } | CordonState::Lifted => Ok(None),
        },
        Some(_) | None => Ok(None),
    })
    .await
}

/// Every cordon of a region, by instance; those that were lifted or claimed, too.
///
/// # Errors
/// When the records are out of reach.
pub async fn of_region(backend: &Backend, region: &RegionName) -> Result<Vec<Cordoned>, RecordError> {
    record::all(backend.table.as_ref(), Source::Rows, layout::cordons_of(region)).await
}

/// The cordon of an instance; `None` when it never had one.
///
/// # Errors
/// When the records are out of reach.
pub async fn of(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
) -> Result<Option<Cordoned>, RecordError> {
    let found = record::get(backend.table.as_ref(), &layout::cordon(region, instance)).await?;
    Ok(found.map(|found: Versioned<Cordoned>| found.value))
}

/// Forgets the cordon of an instance that is gone for good; one that has none is no error.
///
/// # Errors
/// When the records are out of reach.
pub async fn forget(backend: &Backend, region: &RegionName, instance: InstanceId) -> Result<(), RecordError> {
    let key = layout::cordon(region, instance);
    let gone = || async { Ok(backend.table.get(&key).await?.is_none()) };
    record::settle(backend.table.as_ref(), vec![record::delete(key.clone())], gone).await?;
    Ok(())
}

fn terminating(found: &Cordoned) -> CordonError {
    CordonError::Terminating { instance: found.instance, number: found.number }
}

/// Lets `next` say what the row is to be; `None` says that it has moved on.
async fn change(
    backend: &Backend,
    region: &RegionName,
    instance: InstanceId,
    next: impl Fn(Option<&Cordoned>) -> Result<Option<Cordoned>, CordonError>,
) -> Result<Outcome, CordonError> {
    let key = layout::cordon(region, instance);
    let mut outcome = Outcome::Stale;
    record::replace(backend.table.as_ref(), &key, |found: Option<&Versioned<Cordoned>>| {
        let found = found.map(|found| &found.value);
        let wanted = next(found)?;
        outcome = if wanted.is_some() { Outcome::Done } else { Outcome::Stale };
        let Some(wanted) = wanted.filter(|wanted| Some(wanted) != found) else {
            return Ok::<_, CordonError>(None);
        };
        Ok(Some(record::row(key.clone(), 1, &wanted)?))
    })
    .await?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::contract::HandClock;
    use crate::fixture::{FAULTS, instance, region};
    use crate::memory::MemoryTable;

    const IDLE: CordonCause = CordonCause::Idle;

    struct Yard {
        clock: HandClock,
        backend: Backend,
        table: std::sync::Arc<MemoryTable>,
        region: RegionName,
        instance: InstanceId,
    }

    impl Yard {
        fn new() -> Self {
            let clock = HandClock::at(Timestamp::from_millis(1_000_000));
            let (backend, table) = Backend::memory(clock.clock());
            Self { clock, backend, table, region: region(), instance: instance(1) }
        }

        async fn place(&self, number: u64, cause: CordonCause) -> Result<Outcome, CordonError> {
            place(&self.backend, &self.region, self.instance, number, cause, self.clock.now()).await
        }

        async fn lift(&self, number: u64) -> Result<Outcome, CordonError> {
            lift(&self.backend, &self.region, self.instance, number, self.clock.now()).await
        }

        async fn acknowledge(&self, number: u64) -> Outcome {
            let now = self.clock.now();
            acknowledge(&self.backend, &self.region, self.instance, number, now).await.unwrap()
        }

        async fn claim(&self, number: u64) -> Outcome {
            claim(&self.backend, &self.region, self.instance, number, self.clock.now()).await.unwrap()
        }

        async fn state(&self) -> Option<CordonState> {
            let found = of(&self.backend, &self.region, self.instance).await.unwrap();
            found.map(|cordoned| cordoned.state)
        }

        /// Does `change` again after a while: the row stays as it was.
        async fn stays(&self) -> String {
            self.clock.advance(Duration::from_secs(1));
            format!("{:?}", self.table.rows())
        }
    }

    #[tokio::test]
    async fn a_cordon_is_placed_acknowledged_and_claimed_whatever_fails() {
        for fault in FAULTS {
            let yard = Yard::new();
            yard.table.fail_transaction(1, fault);
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done, "{fault:?}");
            let before = yard.stays().await;
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done);
            assert_eq!(yard.stays().await, before, "the same again changes nothing");
            assert_eq!(yard.claim(1).await, Outcome::Stale, "nobody has acknowledged it");
            yard.table.fail_transaction(1, fault);
            assert_eq!(yard.acknowledge(1).await, Outcome::Done);
            let before = yard.stays().await;
            assert_eq!(yard.acknowledge(1).await, Outcome::Stale);
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done, "it stands, acknowledged");
            assert_eq!(yard.stays().await, before, "the first acknowledgement stays");
            yard.table.fail_transaction(1, fault);
            assert_eq!(yard.claim(1).await, Outcome::Done);
            let before = yard.stays().await;
            assert_eq!(yard.claim(1).await, Outcome::Done);
            assert_eq!(yard.stays().await, before, "claimed once");
            yard.table.fail_transaction(1, fault);
            forget(&yard.backend, &yard.region, yard.instance).await.unwrap();
            forget(&yard.backend, &yard.region, yard.instance).await.unwrap();
            assert_eq!(yard.state().await, None);
        }
    }

    #[tokio::test]
    async fn it_is_lifted_until_the_claim_and_not_after_it() {
        for fault in FAULTS {
            let yard = Yard::new();
            assert_eq!(yard.lift(1).await.unwrap(), Outcome::Stale, "there is none");
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done);
            assert_eq!(yard.acknowledge(1).await, Outcome::Done);
            assert_eq!(yard.lift(2).await.unwrap(), Outcome::Stale, "another one");
            yard.table.fail_transaction(1, fault);
            assert_eq!(yard.lift(1).await.unwrap(), Outcome::Done, "{fault:?}");
            assert_eq!(yard.lift(1).await.unwrap(), Outcome::Done);
            assert_eq!(yard.state().await, Some(CordonState::Lifted));
            assert_eq!(yard.claim(1).await, Outcome::Stale, "what was acknowledged was lifted");
            assert_eq!(yard.acknowledge(1).await, Outcome::Stale);
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Stale, "that number was used");
            assert_eq!(yard.place(2, IDLE).await.unwrap(), Outcome::Done);
            assert_eq!(yard.claim(2).await, Outcome::Stale, "an acknowledgement is of one number");
            assert_eq!(yard.acknowledge(1).await, Outcome::Stale);
            assert_eq!(yard.acknowledge(2).await, Outcome::Done);
            assert_eq!(yard.claim(1).await, Outcome::Stale);
            assert_eq!(yard.claim(2).await, Outcome::Done);
            for refused in [yard.lift(2).await, yard.lift(1).await, yard.place(3, IDLE).await] {
                assert!(matches!(refused, Err(CordonError::Terminating { number: 2, .. })), "{refused:?}");
            }
            assert!(matches!(yard.state().await, Some(CordonState::Terminating { .. })));
        }
    }

    #[tokio::test]
    async fn a_person_takes_over_what_the_autoscaler_has_cordoned() {
        let yard = Yard::new();
        assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done);
        assert_eq!(yard.acknowledge(1).await, Outcome::Done);
        assert_eq!(
            yard.place(1, CordonCause::Operator).await.unwrap(),
            Outcome::Stale,
            "numbers are used once"
        );
        assert_eq!(yard.place(2, CordonCause::Operator).await.unwrap(), Outcome::Done);
        assert_eq!(yard.claim(1).await, Outcome::Stale);
        let all = of_region(&yard.backend, &yard.region).await.unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].number, all[0].cause), (2, CordonCause::Operator));
        assert_eq!(all[0].state, CordonState::Standing { acknowledged_at: None });
    }

    /// A lift and a claim at the same time: one of them happens.
    #[tokio::test]
    async fn of_a_lift_and_a_claim_one_happens() {
        for _ in 0..20 {
            let yard = Yard::new();
            assert_eq!(yard.place(1, IDLE).await.unwrap(), Outcome::Done);
            assert_eq!(yard.acknowledge(1).await, Outcome::Done);
            let (lifted, claimed) = tokio::join!(yard.lift(1), yard.claim(1));
            let lifted = matches!(lifted, Ok(Outcome::Done));
            assert_ne!(lifted, claimed == Outcome::Done);
            assert_eq!(lifted, yard.state().await == Some(CordonState::Lifted));
        }
    }
}
