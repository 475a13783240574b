//! Carries a committed decision out: asks for what was reserved, places and lifts cordons, claims ends and has them
//! done, forgets what is gone. Each step may be the last one before a death: the next tick finds what is left of it.

use std::collections::BTreeSet;
use std::time::Duration;

use telecine_domain::autoscale::{CordonCause, ScaleAction, ScaleDecision};
use telecine_domain::id::{InstanceId, PoolName};
use telecine_domain::instance::InstanceState;
use telecine_domain::time::Timestamp;
use tokio::time::Instant;

use super::Ticked;
use super::books;
use super::commit::Committed;
use super::reconcile::UNSURE;
use super::rows::{Bought, BoughtState, Launch, LaunchState};
use super::world::World;
use crate::backend::Backend;
use crate::cordon::{self, CordonError, CordonState, Outcome};
use crate::ports::instances::InstancesError;
use crate::record::{self, RecordError};
use crate::{enrolment, fleet, layout};

/// Longest wait for the provider's word on a launch or an end.
const ANSWER: Duration = Duration::from_secs(20);
/// An instance whose boot has failed is cordoned for so long before it is ended: should it say hello now, it is given no
/// work, or is seen.
const SETTLED: Duration = Duration::from_secs(20);

/// Does it all; what does not work is named and tried again by the next tick.
pub(super) async fn carry_out(
    backend: &Backend,
    world: World,
    decision: ScaleDecision,
    committed: Committed,
    (now, began): (Timestamp, Instant),
) -> Ticked {
    let ticked = Ticked {
        decision,
        recorded: committed.number,
        launched: 0,
        refused: 0,
        retired: 0,
        forgotten: 0,
        problems: world.notes.clone(),
    };
    let mut act = Act { backend, world, now, began, ticked };
    for launch in committed.launches {
        act.launch(launch).await;
    }
    act.cordons().await;
    act.end_failed_boots().await;
    act.end_claimed().await;
    act.forget_gone().await;
    act.forget_decisions().await;
    act.ticked
}

struct Act<'b> {
    backend: &'b Backend,
    world: World,
    now: Timestamp,
    /// When `now` was.
    began: Instant,
    ticked: Ticked,
}

/// What the provider said to a launch.
enum Answer {
    Asked,
    Refused,
    Unknown,
}

impl Act<'_> {
    fn problem(&mut self, problem: &impl ToString) {
        self.ticked.problems.push(problem.to_string());
    }

    async fn launch(&mut self, launch: Launch) {
        // Another tick may count on it that nobody asks any more.
        if self.began.elapsed() + ANSWER >= UNSURE {
            return self.problem(&format!("a launch in pool {} came too late to be asked for", launch.pool));
        }
        let asked = self.backend.instances.launch(&launch.pool, launch.left);
        let answer = match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(())) => Answer::Asked,
            Ok(Err(
                error @ (InstancesError::NoCapacity { .. }
                | InstancesError::NoSuchPool(_)
                | InstancesError::NoSuchInstance { .. }
                | InstancesError::NotSupported(_)),
            )) => {
                self.problem(&error);
                Answer::Refused
            }
            Ok(Err(error @ InstancesError::Unavailable(_))) => {
                self.problem(&error);
                Answer::Unknown
            }
            Err(_) => {
                self.problem(&format!(
                    "the provider did not answer to a launch in pool {} in time",
                    launch.pool
                ));
                Answer::Unknown
            }
        };
        match answer {
            Answer::Asked | Answer::Unknown => self.ticked.launched += launch.left,
            Answer::Refused => self.ticked.refused += launch.left,
        }
        if let Err(error) = self.note(&launch, &answer).await {
            // It stays reserved: nobody launches for the same work until it is known that nothing came of it.
            self.problem(&format!("what came of a launch in pool {} was not recorded: {error}", launch.pool));
        }
    }

    /// Records the provider's answer. A launch that has become instances meanwhile needs no record.
    async fn note(&self, launch: &Launch, answer: &Answer) -> Result<(), RecordError> {
        let (region, key) = (&self.world.region, launch.key(&self.world.region));
        for tried in 0..record::TRIES {
            let mut books = books::read(self.backend, region, self.now).await?;
            let Some(found) = record::get::<Launch>(self.backend.table.as_ref(), &key).await? else {
                return Ok(());
            };
            let write = match answer {
                Answer::Asked => Launch { state: LaunchState::Asked, ..found.value }.put(region)?,
                Answer::Unknown => Launch { state: LaunchState::Unknown, ..found.value }.put(region)?,
                Answer::Refused => {
                    books.value.refused(&launch.pool, self.now);
                    record::delete(key.clone())
                }
            };
            if books::write(self.backend, region, books, vec![write]).await?.is_some() {
                return Ok(());
            }
            record::pause(tried).await;
        }
        Err(RecordError::contended(&layout::scaling(region)))
    }

    /// Places, lifts and claims. That a row has moved on is normal: the next tick sees how it stands.
    async fn cordons(&mut self) {
        for planned in self.ticked.decision.actions.clone() {
            let (backend, region, now) = (self.backend, self.world.region.clone(), self.now);
            let done = match planned.action {
                ScaleAction::Launch { .. } => continue,
                ScaleAction::Cordon { instance, cordon, cause } => {
                    cordon::place(backend, &region, instance, cordon, cause, now).await
                }
                ScaleAction::Uncordon { instance, cordon } => {
                    cordon::lift(backend, &region, instance, cordon, now).await
                }
                ScaleAction::Terminate { instance, cordon } => self.claim(instance, cordon).await,
            };
            match done {
                Ok(Outcome::Done | Outcome::Stale) | Err(CordonError::Terminating { .. }) => {}
                Err(CordonError::Record(error)) => self.problem(&error),
            }
        }
    }

    async fn claim(&mut self, instance: InstanceId, number: u64) -> Result<Outcome, CordonError> {
        let claimed = cordon::claim(self.backend, &self.world.region, instance, number, self.now).await?;
        if let (Outcome::Done, Some(cordoned)) = (claimed, self.world.cordons.get_mut(&instance)) {
            cordoned.state = CordonState::Terminating { claimed_at: self.now };
        }
        Ok(claimed)
    }

    /// Instances that never said hello are cordoned, and ended when they do not say it then.
    async fn end_failed_boots(&mut self) {
        let failed: Vec<(InstanceId, PoolName)> = self
            .world
            .listed()
            .filter_map(|(pool, one)| match self.world.bought.get(&one.id)?.state {
                BoughtState::Failed { .. } => Some((one.id, pool.name.clone())),
                BoughtState::Booting | BoughtState::Ready => None,
            })
            .collect();
        for (instance, pool) in failed {
            let settled = match self.cordon_failed(instance).await {
                Ok(()) => self.is_settled(instance).await,
                Err(error) => Err(error),
            };
            match settled {
                Ok(true) => self.end(&pool, instance).await,
                Ok(false) => {}
                Err(error) => self.problem(&error),
            }
        }
    }

    /// Whether its cordon stands, now and long enough.
    async fn is_settled(&self, instance: InstanceId) -> Result<bool, RecordError> {
        let found = cordon::of(self.backend, &self.world.region, instance).await?;
        Ok(found
            .is_some_and(|found| found.state != CordonState::Lifted && found.at.after(SETTLED) <= self.now))
    }

    async fn cordon_failed(&self, instance: InstanceId) -> Result<(), RecordError> {
        let before = self.world.cordons.get(&instance);
        let stands = before.is_some_and(|cordoned| cordoned.state != CordonState::Lifted);
        if stands {
            return Ok(());
        }
        let number = before.map_or(0, |cordoned| cordoned.number) + 1;
        let (backend, region) = (self.backend, &self.world.region);
        match cordon::place(backend, region, instance, number, CordonCause::Idle, self.now).await {
            Ok(Outcome::Done | Outcome::Stale) | Err(CordonError::Terminating { .. }) => Ok(()),
            Err(CordonError::Record(error)) => Err(error),
        }
    }

    /// Everything whose end was claimed and that is still there.
    async fn end_claimed(&mut self) {
        let is_claimed = |id: &InstanceId| {
            let cordoned = self.world.cordons.get(id);
            cordoned.is_some_and(|cordoned| matches!(cordoned.state, CordonState::Terminating { .. }))
        };
        let claimed: Vec<(PoolName, InstanceId)> = self
            .world
            .listed()
            .filter(|(_, one)| is_claimed(&one.id))
            .map(|(pool, one)| (pool.name.clone(), one.id))
            .collect();
        for (pool, instance) in claimed {
            self.end(&pool, instance).await;
        }
    }

    /// First its certificate, so that nothing opens for it any more; then the instance itself.
    async fn end(&mut self, pool: &PoolName, instance: InstanceId) {
        if let Err(error) = enrolment::retire(self.backend, instance, self.now).await {
            return self.problem(&error);
        }
        match tokio::time::timeout(ANSWER, self.backend.instances.retire(pool, instance)).await {
            Ok(Ok(())) => self.ticked.retired += 1,
            Ok(Err(error)) => self.problem(&error),
            Err(_) => self.problem(&format!("the provider did not answer to the end of {instance} in time")),
        }
    }

    /// What the provider does not list any more, and nobody hears of: its rows go.
    async fn forget_gone(&mut self) {
        let listed: BTreeSet<InstanceId> = self.world.listed().map(|(_, one)| one.id).collect();
        let bought = self.world.bought.values();
        let gone = bought.filter(|bought| !listed.contains(&bought.instance) && self.is_gone(bought));
        let gone: Vec<InstanceId> = gone.map(|bought| bought.instance).collect();
        // Of what has been forgotten the manager may write once more.
        let seen = self.world.instances.iter().filter(|(id, seen)| {
            is_silent(seen.state) && !listed.contains(id) && !self.world.bought.contains_key(id)
        });
        let echoes: Vec<InstanceId> = seen.map(|(id, _)| *id).collect();
        for instance in gone {
            match self.forget(instance).await {
                Ok(()) => self.ticked.forgotten += 1,
                Err(error) => self.problem(&error),
            }
        }
        for instance in echoes {
            if let Err(error) = self.forget_echo(instance).await {
                self.problem(&error);
            }
        }
    }

    fn is_gone(&self, bought: &Bought) -> bool {
        let cordoned = self.world.cordons.get(&bought.instance);
        let is_claimed =
            cordoned.is_some_and(|cordoned| matches!(cordoned.state, CordonState::Terminating { .. }));
        let seen = self.world.instances.get(&bought.instance);
        is_claimed || seen.is_none_or(|seen| is_silent(seen.state))
    }

    /// The purchase goes last, so that a death in between is mended.
    async fn forget(&self, instance: InstanceId) -> Result<(), RecordError> {
        let (backend, region) = (self.backend, &self.world.region);
        enrolment::retire(backend, instance, self.now).await?;
        fleet::remove_instance(backend, region, instance).await?;
        cordon::forget(backend, region, instance).await?;
        let key = layout::bought(region, instance);
        let gone = || async { Ok(backend.table.get(&key).await?.is_none()) };
        record::settle(backend.table.as_ref(), vec![record::delete(key.clone())], gone).await?;
        Ok(())
    }

    /// Only of what was retired: nobody else's instance is touched.
    async fn forget_echo(&self, instance: InstanceId) -> Result<(), RecordError> {
        if enrolment::is_retired(self.backend, instance).await? {
            fleet::remove_instance(self.backend, &self.world.region, instance).await?;
        }
        Ok(())
    }

    async fn forget_decisions(&mut self) {
        if self.ticked.recorded.is_none() {
            return;
        }
        let forgotten = super::decisions::forget_old(self.backend, &self.world.region, self.now).await;
        if let Err(error) = forgotten {
            self.problem(&error);
        }
    }
}

/// Nothing is heard of it.
const fn is_silent(state: InstanceState) -> bool {
    match state {
        InstanceState::Disconnected | InstanceState::Lost => true,
        InstanceState::Ready
        | InstanceState::Unhealthy
        | InstanceState::Draining
        | InstanceState::Cordoned => false,
    }
}
