//! Accepting an attempt: reserve, write it down, answer; the rest goes on in the attempt's own task.

use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::Failure;
use telecine_domain::job::JobSpec;
use telecine_domain::resources::Resources;
use telecine_proto::convert::{self, ConvertError};
use telecine_proto::coordinator::v1::{Assign, AssignReply};
use tokio::sync::mpsc;

use super::Tasks;
use super::desk::{Command, Desk};
use super::supervisor::{self, Origin};
use crate::failure::infrastructure;
use crate::folder::{Assignment, AttemptFolder};

/// Answers an assignment. One that is here already is accepted again.
pub(super) async fn assign(desk: &Arc<Desk>, tasks: &Tasks, asked: Assign) -> AssignReply {
    match accept(desk, asked).await {
        Ok(None) => AssignReply { accepted: true, failure: None },
        Ok(Some((folder, assignment, commands))) => {
            tracing::info!(attempt = %assignment.attempt, resources = %assignment.resources, "accepted");
            tasks.spawn(supervisor::supervise(desk.clone(), folder, assignment, Origin::Assigned, commands));
            AssignReply { accepted: true, failure: None }
        }
        Err(failure) => {
            tracing::info!(%failure, "an assignment is refused");
            AssignReply { accepted: false, failure: Some(failure.into()) }
        }
    }
}

type Accepted = (AttemptFolder, Assignment, mpsc::Receiver<Command>);

async fn accept(desk: &Desk, asked: Assign) -> Result<Option<Accepted>, Failure> {
    let wrong = |error: ConvertError| infrastructure("invalid_assignment", error.to_string());
    let attempt = convert::attempt_id(asked.id).map_err(wrong)?;
    if desk.commands(&attempt).is_some() {
        return Ok(None);
    }
    let spec = convert::spec(&asked.spec_json).map_err(wrong)?;
    let account = convert::parsed("account_id", &asked.account_id).map_err(wrong)?;
    let resources: Resources = asked.resources.map(Into::into).unwrap_or(spec.resources);
    may_run(desk, &spec)?;
    end_older(desk, attempt).await;
    let accepted = desk.accept(attempt, resources);
    let accepted = accepted.map_err(|shortage| infrastructure("not_enough_free", shortage.to_string()))?;
    let Some((holding, commands)) = accepted else { return Ok(None) };
    let mounted = !spec.composition.inputs.is_empty() || !spec.composition.outputs.is_empty();
    let assignment = Assignment {
        attempt,
        account,
        spec,
        resources,
        gpus: holding.gpus,
        lease_millis: asked.lease_millis,
        accepted_at: desk.clock.now(),
        mounted,
        surroundings: desk.surroundings(),
    };
    match AttemptFolder::create(&desk.config.attempts_folder(), &assignment) {
        Ok(folder) => Ok(Some((folder, assignment, commands))),
        Err(error) => {
            desk.forget(&attempt);
            Err(infrastructure("scratch_failed", describe(&error)))
        }
    }
}

fn may_run(desk: &Desk, spec: &JobSpec) -> Result<(), Failure> {
    if desk.is_draining() {
        return Err(infrastructure("draining", "the instance finishes what it has and takes no more"));
    }
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
async fn end_older(desk: &Desk, attempt: AttemptId) {
    for commands in desk.older(&attempt) {
        let _ = commands.try_send(Command::Fence { reason: format!("{attempt} has taken over") });
    }
}

/// An error with its causes.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    telecine_proto::dial::causes(error)
}

/// Pause between two tries of something that must be done.
pub(super) const RETRY: Duration = Duration::from_secs(2);
