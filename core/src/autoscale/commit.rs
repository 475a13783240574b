//! A decision becomes a fact: its record, its reservations and the caps' ledger in one transaction, before any of it is
//! done.

use telecine_domain::autoscale::caps::Claim;
use telecine_domain::autoscale::{self, Planned, Policy, ScaleAction, ScaleDecision, Snapshot};

use super::rows::{Launch, LaunchState};
use super::world::World;
use super::{books, decisions};
use crate::backend::Backend;
use crate::layout;
use crate::ports::table::{MAX_WRITES, Write};
use crate::record::RecordError;

/// Most launches of one decision; the next one asks for the rest.
const MOST: usize = MAX_WRITES - 10;

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Committed {
    /// The number of the decision; `None` when there was nothing to record.
    pub(super) number: Option<u64>,
    /// What was reserved and is to be asked for now.
    pub(super) launches: Vec<Launch>,
}

/// Records a decision and reserves what it launches. `None` when somebody else wrote since the world was read.
pub(super) async fn commit(
    backend: &Backend,
    world: &mut World,
    snapshot: &Snapshot,
    policy: &Policy,
    decision: &ScaleDecision,
) -> Result<Option<Committed>, RecordError> {
    let said = digest(decision);
    if decision.actions.is_empty() && world.books.value.last.as_ref() == Some(&said) {
        return Ok(Some(Committed::default()));
    }
    let mut books = world.books.clone();
    let number = books.value.decisions + 1;
    let launches = reserve(&mut books.value.ledger, number, snapshot, policy, decision);
    (books.value.decisions, books.value.last) = (number, Some(said));
    let region = &world.region;
    let mut writes = vec![decisions::recording(backend, (region, number), snapshot, policy, decision).await?];
    let rows: Result<Vec<Write>, RecordError> = launches.iter().map(|launch| launch.put(region)).collect();
    writes.extend(rows?);
    let Some(written) = books::write(backend, region, books, writes).await? else { return Ok(None) };
    world.books = written;
    Ok(Some(Committed { number: Some(number), launches }))
}

/// The launches of a decision as far as the caps allow them, which they do: it was decided on the same ledger.
fn reserve(
    ledger: &mut autoscale::caps::Ledger,
    number: u64,
    snapshot: &Snapshot,
    policy: &Policy,
    decision: &ScaleDecision,
) -> Vec<Launch> {
    *ledger = autoscale::ledger(snapshot, decision.at);
    let mut reserved = Vec::new();
    for Planned { action, .. } in &decision.actions {
        let ScaleAction::Launch { pool, count, expected_end } = action else { continue };
        let facts = snapshot.pools.iter().find(|facts| facts.name == *pool);
        let life = expected_end.as_millis().saturating_sub(decision.at.as_millis());
        let Some(claim) = facts.map(|facts| Claim::of(facts, life)) else { continue };
        let Ok(next) = ledger.reserve(*count, claim, &policy.caps) else { continue };
        *ledger = next;
        reserved.push(Launch {
            decision: number,
            index: u32::try_from(reserved.len()).unwrap_or(u32::MAX),
            pool: pool.clone(),
            left: *count,
            requested_at: decision.at,
            expected_end: *expected_end,
            state: LaunchState::Reserved,
        });
        if reserved.len() == MOST {
            break;
        }
    }
    reserved
}

/// The same for decisions that say the same, whenever they were taken.
pub(super) fn digest(decision: &ScaleDecision) -> String {
    let said = serde_json::to_vec(&(&decision.actions, &decision.reasons)).expect("decisions are JSON");
    layout::sha256(said)
}
