//! Accepting an attempt: reserve, write it down, answer; the rest goes on in the attempt's own task.
//!
//! The manager gives the room of an attempt out again when the attempt is over, and here its container, its mount and
//! its scratch go first. So an assignment waits a while for room before it is refused; and a refusal for want of room
//! says what is free, since it is nobody's failure.

use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::Failure;
use telecine_domain::job::JobSpec;
use telecine_domain::resources::Resources;
use telecine_domain::trace::TraceContext;
use telecine_proto::convert::{self, ConvertError};
use telecine_proto::coordinator::v1::{Assign, AssignReply};
use telecine_proto::tasks::Tasks;
use tokio::time::Instant;

use super::desk::{Desk, NotNow};
use super::orders::{Order, OrdersTaken};
use super::supervisor::{self, Origin};
use crate::failure::infrastructure;
use crate::folder::{Assignment, AttemptFolder};
use crate::ledger::Holding;

/// Answers an assignment. One that is here already is accepted again.
pub(super) async fn assign(
    desk: &Arc<Desk>,
    tasks: &Tasks,
    trace: Option<TraceContext>,
    asked: Assign,
) -> AssignReply {
    match accept(desk, trace, asked).await {
        Ok(None) => AssignReply { accepted: true, ..AssignReply::default() },
        Ok(Some((folder, assignment, orders))) => {
            let trace = assignment.trace.map(tracing::field::display);
            tracing::info!(attempt = %assignment.attempt, resources = %assignment.resources, trace, "accepted");
            tasks.spawn(supervisor::supervise(desk.clone(), folder, assignment, Origin::Assigned, orders));
            AssignReply { accepted: true, ..AssignReply::default() }
        }
        Err(Refused::NoRoom(failure)) => {
            let free = desk.refuse();
            tracing::info!(%failure, %free, "there is no room for an assignment");
            AssignReply { accepted: false, failure: Some(failure.into()), free: Some(free.into()) }
        }
        Err(Refused::Failed(failure)) => {
            tracing::info!(%failure, "an assignment is refused");
            AssignReply { accepted: false, failure: Some(failure.into()), free: None }
        }
    }
}

/// Why an attempt is not taken.
enum Refused {
    /// Not now: there is no room, or the instance takes no work. Says nothing about the attempt.
    NoRoom(Failure),
    /// It cannot be run here.
    Failed(Failure),
}

type Accepted = (AttemptFolder, Assignment, OrdersTaken);

async fn accept(
    desk: &Desk,
    trace: Option<TraceContext>,
    asked: Assign,
) -> Result<Option<Accepted>, Refused> {
    let wrong =
        |error: ConvertError| Refused::Failed(infrastructure("invalid_assignment", error.to_string()));
    let attempt = convert::attempt_id(asked.id).map_err(wrong)?;
    if desk.is_here(&attempt) {
        return Ok(None);
    }
    let spec = convert::spec(&asked.spec_json).map_err(wrong)?;
    let account = convert::parsed("account_id", &asked.account_id).map_err(wrong)?;
    let resources: Resources = asked.resources.map(Into::into).unwrap_or(spec.resources);
    end_older(desk, attempt);
    let patience = patience(Duration::from_millis(asked.lease_millis.into()));
    let accepted = reserve(desk, attempt, &spec, resources, patience).await?;
    let Some((holding, orders)) = accepted else { return Ok(None) };
    let mounted = !spec.composition.inputs.is_empty() || !spec.composition.outputs.is_empty();
    let assignment = Assignment {
        attempt,
        account,
        spec,
        resources,
        gpus: holding.gpus,
        lease_millis: asked.lease_millis,
        accepted_at: desk.clock.now(),
        trace: trace.map(|trace| trace.trace),
        mounted,
        surroundings: desk.surroundings(),
    };
    match AttemptFolder::create(&desk.config.attempts_folder(), &assignment) {
        Ok(folder) => Ok(Some((folder, assignment, orders))),
        Err(error) => {
            desk.forget(&attempt);
            Err(Refused::Failed(infrastructure("scratch_failed", describe(&error))))
        }
    }
}

/// How long an assignment waits for room: a part of its lease, so that its worker is heard of in time.
fn patience(lease: Duration) -> Duration {
    (lease / 3).min(ROOM_PATIENCE)
}

/// Takes what the attempt needs, once there is as much; `None` when the attempt is here already.
async fn reserve(
    desk: &Desk,
    attempt: AttemptId,
    spec: &JobSpec,
    resources: Resources,
    patience: Duration,
) -> Result<Option<(Holding, OrdersTaken)>, Refused> {
    let waiting = desk.expect(attempt);
    let deadline = Instant::now() + patience;
    let mut changes = desk.changes();
    loop {
        may_run(desk, spec).map_err(Refused::NoRoom)?;
        if waiting.is_given_up() {
            let message = "the attempt was stopped while it waited for room";
            return Err(Refused::Failed(infrastructure("stopped", message)));
        }
        let shortage = match desk.accept(attempt, resources) {
            Ok(accepted) => return Ok(accepted),
            Err(NotNow::Closed(failure)) => return Err(Refused::NoRoom(failure)),
            Err(NotNow::Short(shortage)) => shortage,
        };
        // What was put away meanwhile is seen at once; what can never be free is not waited for.
        let in_vain = !resources.fits_in(&desk.capacity());
        let changed = tokio::time::timeout_at(deadline, changes.changed());
        if in_vain || !matches!(changed.await, Ok(Ok(()))) {
            return Err(Refused::NoRoom(infrastructure("not_enough_free", shortage.to_string())));
        }
    }
}

fn may_run(desk: &Desk, spec: &JobSpec) -> Result<(), Failure> {
    let verdict = desk.problems();
    if let Some(problem) = verdict.problems.first() {
        return Err(infrastructure("unhealthy", format!("{}: {}", problem.gate, problem.message)));
    }
    let kind = spec.engine.launch.runtime();
    if !verdict.runtimes.contains(&kind) {
        return Err(infrastructure(
            "runtime_unavailable",
            format!("the instance offers no {kind:?} runtime"),
        ));
    }
    Ok(())
}

/// A new epoch of a job ends the older ones that are still here.
fn end_older(desk: &Desk, attempt: AttemptId) {
    for older in desk.older(&attempt) {
        desk.order(&older, Order::Fence { reason: format!("{attempt} has taken over") });
    }
}

/// An error with its causes.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    telecine_proto::dial::causes(error)
}

/// Pause between two tries of something that must be done.
pub(super) const RETRY: Duration = Duration::from_secs(2);
/// Longest wait of an assignment for room.
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assignment_waits_for_room_no_longer_than_its_lease_allows() {
        assert_eq!(patience(Duration::from_secs(60)), ROOM_PATIENCE);
        assert_eq!(patience(Duration::from_secs(6)), Duration::from_secs(2));
    }
}
