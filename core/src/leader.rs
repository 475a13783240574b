//! Who leads a region: one row with a holder, a term and an end.
//!
//! Invariant: a term belongs to one holder and one `acquire`; terms only grow. A leader whose clock or renewal fails is
//! replaced, and what it still sends carries an old term, which agents refuse. The row never expires as a row: a term
//! that was forgotten would be handed out again.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use telecine_domain::id::{RegionName, Term};
use telecine_domain::time::Timestamp;

use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{Condition, TableError};
use crate::record::{self, RecordError, Versioned};

/// A leadership, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leadership {
    /// Of which region.
    pub region: RegionName,
    /// Id of the manager.
    pub holder: String,
    /// Where agents reach it, in order of preference.
    pub addresses: Vec<String>,
    /// Its number.
    pub term: Term,
    /// When it ends unless renewed.
    pub until: Timestamp,
    /// Tells one `acquire` from another of the same holder.
    token: String,
}

/// No leadership.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// Another manager leads.
    #[error("region {region} is led by manager {holder} until {until}")]
    Held {
        /// The region.
        region: RegionName,
        /// Who leads it.
        holder: String,
        /// Until when, unless renewed.
        until: Timestamp,
    },
    /// The leadership is over: another one has begun.
    #[error("the leadership of region {region} with term {term} is over")]
    Lost {
        /// The region.
        region: RegionName,
        /// The term that is over.
        term: Term,
    },
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Takes the leadership of a region that nobody leads, with a new term. A manager that led it before its restart (the
/// same `holder`) need not wait for its own lease to end.
///
/// # Errors
/// `Held`.
pub async fn acquire(
    backend: &Backend,
    region: &RegionName,
    holder: &str,
    addresses: &[String],
    ttl: Duration,
    now: Timestamp,
) -> Result<Leadership, LeaderError> {
    let key = layout::leader(region);
    let token = format!("{:032x}", rand::random::<u128>());
    for tried in 0..record::TRIES {
        let found = read(backend, region).await?;
        match &found {
            Some(found) if found.value.token == token => return Ok(found.value.clone()),
            Some(found) if found.value.until > now && found.value.holder != holder => {
                let Leadership { holder, until, .. } = found.value.clone();
                return Err(LeaderError::Held { region: region.clone(), holder, until });
            }
            Some(_) | None => {}
        }
        let leadership = Leadership {
            region: region.clone(),
            holder: holder.to_owned(),
            addresses: addresses.to_vec(),
            term: found.as_ref().map_or(Term(0), |found| found.value.term).next(),
            until: now.after(ttl),
            token: token.clone(),
        };
        let (version, condition) = following(found.as_ref());
        let writes = vec![
            record::put(record::row(key.clone(), version, &leadership)?, condition),
            record::put(record::row(layout::region(region), 1, region)?, Condition::Any),
        ];
        match backend.table.transact(writes).await {
            Ok(()) => return Ok(leadership),
            Err(error @ TableError::Invalid(_)) => return Err(RecordError::from(error).into()),
            Err(_) => record::pause(tried).await,
        }
    }
    Err(RecordError::contended(&key).into())
}

/// Prolongs a leadership.
///
/// # Errors
/// `Lost` when another one has begun: stop at once. `Record` when nobody knows; it ends at `until` then.
pub async fn renew(
    backend: &Backend,
    leadership: &Leadership,
    ttl: Duration,
    now: Timestamp,
) -> Result<Leadership, LeaderError> {
    rewrite(backend, leadership, now.after(ttl)).await
}

/// Ends a leadership, so that a standby need not wait. One that is over already stays so.
///
/// # Errors
/// When the records are out of reach.
pub async fn release(backend: &Backend, leadership: &Leadership, now: Timestamp) -> Result<(), RecordError> {
    match rewrite(backend, leadership, now).await {
        Ok(_) | Err(LeaderError::Lost { .. } | LeaderError::Held { .. }) => Ok(()),
        Err(LeaderError::Record(error)) => Err(error),
    }
}

/// The last leadership of a region, over or not.
///
/// # Errors
/// When the records are out of reach.
pub async fn current(backend: &Backend, region: &RegionName) -> Result<Option<Leadership>, RecordError> {
    Ok(read(backend, region).await?.map(|found| found.value))
}

async fn rewrite(
    backend: &Backend,
    leadership: &Leadership,
    until: Timestamp,
) -> Result<Leadership, LeaderError> {
    let region = &leadership.region;
    let renewed = Leadership { until, ..leadership.clone() };
    record::replace(
        backend.table.as_ref(),
        &layout::leader(region),
        |found: Option<&Versioned<Leadership>>| match found {
            Some(found) if found.value.token == leadership.token => {
                Ok(Some(record::row(layout::leader(region), 1, &renewed)?))
            }
            Some(_) | None => Err(LeaderError::Lost { region: region.clone(), term: leadership.term }),
        },
    )
    .await?;
    Ok(renewed)
}

fn following(found: Option<&Versioned<Leadership>>) -> (u64, Condition) {
    match found {
        Some(found) => (found.version + 1, Condition::Version(found.version)),
        None => (1, Condition::Absent),
    }
}

async fn read(backend: &Backend, region: &RegionName) -> Result<Option<Versioned<Leadership>>, RecordError> {
    record::get(backend.table.as_ref(), &layout::leader(region)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::HandClock;
    use crate::memory::Fault;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn one_manager_leads_and_terms_grow() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, table) = Backend::memory(clock.clock());
        let region: RegionName = "local".parse().unwrap();
        let take = async |holder: &str| acquire(&backend, &region, holder, &[], TTL, clock.now()).await;
        table.fail_transaction(1, Fault::LostAfter);
        let first = take("a").await.unwrap();
        assert_eq!(first.term, Term(1), "an unknown result is settled, not counted twice");
        assert!(matches!(take("b").await, Err(LeaderError::Held { .. })));
        clock.advance(TTL / 2);
        let first = renew(&backend, &first, TTL, clock.now()).await.unwrap();
        clock.advance(TTL / 2);
        assert!(matches!(take("b").await, Err(LeaderError::Held { .. })), "it was renewed");
        clock.advance(TTL);
        let second = take("b").await.unwrap();
        assert_eq!(second.term, Term(2));
        let late = renew(&backend, &first, TTL, clock.now()).await;
        assert!(matches!(late, Err(LeaderError::Lost { term: Term(1), .. })));
        release(&backend, &first, clock.now()).await.unwrap();
        assert_eq!(current(&backend, &region).await.unwrap(), Some(second.clone()), "not a's to release");
        let restarted = take("b").await.unwrap();
        assert_eq!(restarted.term, Term(3), "a restarted manager is a new leader");
        assert!(renew(&backend, &second, TTL, clock.now()).await.is_err());
        release(&backend, &restarted, clock.now()).await.unwrap();
        assert_eq!(take("a").await.unwrap().term, Term(4), "a released region is free at once");
    }

    #[tokio::test]
    async fn of_many_that_try_at_once_one_leads() {
        let clock = HandClock::at(Timestamp::from_millis(1_000_000));
        let (backend, _) = Backend::memory(clock.clock());
        let region: RegionName = "local".parse().unwrap();
        let tries = (0..20).map(|n| {
            let (backend, region, now) = (backend.clone(), region.clone(), clock.now());
            async move { acquire(&backend, &region, &format!("m{n}"), &[], TTL, now).await }
        });
        let leaders = futures::future::join_all(tries).await.into_iter().filter(Result::is_ok).count();
        assert_eq!(leaders, 1);
    }
}
