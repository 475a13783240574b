//! The autoscaler at work: one tick reads the world, lets [`decide`] say what to do, records it and carries it out.
//!
//! Level-triggered: a tick knows nothing of the one before but what rows say, so it may run in a manager, in a function,
//! twice at once or not at all for a while. In this order: the row of the books (its version is what everything else
//! hangs on), launches and purchases, the provider's answer, what the manager has observed; then the rows are brought
//! up to what the provider says; then the decision is recorded together with what it reserves; then it is acted on.
//!
//! Invariant: whatever changes launches, purchases or money is one transaction with the books, on the version that was
//! read before anything else. Of two ticks that look at the same moment one writes; the other reads and decides again.
//! So no cap is overshot however many tick. Invariant: nothing is launched that was not reserved, and what was reserved
//! counts until it has become instances, was refused, or cannot come any more. Invariant: an instance is retired only
//! after its end was claimed (see [`crate::cordon`]); one that never said hello has no agent that could acknowledge, is
//! cordoned first, and is retired when it has not said hello after that either.

mod act;
mod books;
mod commit;
mod decisions;
mod facts;
mod observation;
mod reconcile;
mod rows;
#[cfg(test)]
mod tests;
mod world;

use std::time::Duration;

use telecine_domain::autoscale::{Policy, ScaleDecision, decide};
use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::ports::instances::InstancesError;
use crate::record::{self, RecordError};

pub use decisions::{Decided, Replayed, find, list, replay};
pub use observation::{Observation, observe, observed};

use world::World;

/// How a region is scaled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is bought and given back.
    pub policy: Policy,
    /// An instance that has not said hello for so long since it was asked for does not boot.
    pub boot_limit: Duration,
}

/// What a tick did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticked {
    /// What was decided.
    pub decision: ScaleDecision,
    /// The number under which that was recorded; `None` when nothing was to be done, for the reasons of the last time.
    pub recorded: Option<u64>,
    /// Instances that the provider was asked for, and did not refuse.
    pub launched: u32,
    /// Instances that the provider had no capacity for.
    pub refused: u32,
    /// Instances that the provider was asked to end, those of earlier ticks that are still there included.
    pub retired: u32,
    /// Instances that are gone for good and forgotten.
    pub forgotten: u32,
    /// What did not work and is tried again by the next tick, for people.
    pub problems: Vec<String>,
}

/// A tick came to nothing; the next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum TickError {
    /// The records were out of reach.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The provider did not say what there is.
    #[error("what instances there are is not known: {0}")]
    Instances(#[from] InstancesError),
    /// Others wrote every time.
    #[error("region {0} is being scaled by too many at once")]
    Contended(RegionName),
}

/// Looks at a region, decides, and does it.
///
/// # Errors
/// When the world could not be read or the decision not be recorded: then nothing was begun that the next tick would not
/// find. What fails later is in [`Ticked::problems`].
pub async fn tick(
    backend: &Backend,
    region: &RegionName,
    settings: &Settings,
    now: Timestamp,
) -> Result<Ticked, TickError> {
    let began = Instant::now();
    for tried in 0..record::TRIES {
        let mut world = World::read(backend, region, now).await?;
        if !reconcile::bring_up(backend, &mut world, settings.boot_limit, now).await? {
            record::pause(tried).await;
            continue;
        }
        let snapshot = facts::snapshot(&world, now);
        let decision = decide(&snapshot, &settings.policy, now);
        match commit::commit(backend, &mut world, &snapshot, &settings.policy, &decision).await? {
            Some(committed) => {
                return Ok(act::carry_out(backend, world, decision, committed, (now, began)).await);
            }
            None => record::pause(tried).await,
        }
    }
    Err(TickError::Contended(region.clone()))
}
