//! What the autoscaler has decided, as a job that waits is told of it.

use telecine_domain::autoscale::Cap;
use telecine_domain::explain::Closed;

use super::cloud::Weather;
use super::*;
use crate::explain::pools_of;

/// What keeps each pool from being launched.
async fn closed(sky: &Sky) -> Vec<(String, Option<Closed>)> {
    let pools = pools_of(&sky.backend, &region(), sky.now()).await.unwrap();
    pools.into_iter().map(|now| (now.pool.name.to_string(), now.closed)).collect()
}

#[tokio::test]
async fn a_pool_without_capacity_is_told_until_it_is_asked_again() {
    let mut sky = Sky::new().await;
    assert!(closed(&sky).await.iter().all(|(_, closed)| closed.is_none()));
    sky.jobs = 1;
    sky.cloud.next([Weather::Full]);
    sky.tick().await;
    sky.tick().await;
    let told = closed(&sky).await;
    let refused = told.iter().find(|(_, closed)| closed.is_some());
    let Some((name, Some(Closed::NoCapacity { until }))) = refused else { panic!("{told:?}") };
    assert!(*until > sky.now());
    let (name, until) = (name.clone(), *until);
    sky.clock.advance(until.since(sky.now()));
    let later = closed(&sky).await;
    assert!(later.iter().any(|(pool, closed)| *pool == name && closed.is_none()), "{later:?}");
}

#[tokio::test]
async fn a_cap_that_is_reached_is_told_of_every_pool() {
    let mut sky = Sky::capped(1).await;
    sky.jobs = 3;
    sky.ticks(3).await;
    let told = closed(&sky).await;
    assert!(told.iter().all(|(_, closed)| *closed == Some(Closed::Cap(Cap::Instances))), "{told:?}");
}
