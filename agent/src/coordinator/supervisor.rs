//! One task per attempt: launches or adopts its worker, relays for it, passes on what the manager asks, and sees to what
//! is left when it is dead.

use std::sync::Arc;
use std::time::Duration;

use telecine_domain::attempt::AttemptId;
use telecine_domain::failure::Failure;
use telecine_domain::trace::TraceId;
use telecine_proto::coordinator::v1::{SignWorker, from_coordinator, from_manager};
use telecine_proto::trace;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::aftermath;
use super::assign::describe;
use super::desk::Desk;
use super::orders::{Order, OrdersTaken};
use super::session::message_in;
use crate::control::{CoordinatorEnd, FromWorker, ToWorker};
use crate::failure::infrastructure;
use crate::folder::{Assignment, AttemptFolder};
use crate::launcher::LiveWorker;

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
const CALL_PAUSE: Duration = Duration::from_millis(200);
/// What a worker may take beyond the grace period to take everything away and report.
const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// How long the manager's closing of an epoch may wait for the end of its attempt here. The closing answers within
/// this time, so a fenced worker must be dead and what it left taken away well before.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(50);
/// Of that, the part that is kept for cleaning up after the worker.
const CLEAN_UP_ROOM: Duration = Duration::from_secs(30);
/// What a fenced worker may take to end by itself: it has nothing to publish and nothing to report.
const FENCE_PATIENCE: Duration = CLOSE_PATIENCE.saturating_sub(CLEAN_UP_ROOM);

/// How the attempt came to this coordinator.
pub(super) enum Origin {
    /// Assigned now.
    Assigned,
    /// Found with a living worker.
    Alive,
    /// Found dead.
    Dead,
}

/// Sees an attempt through to the end.
pub(super) async fn supervise(
    desk: Arc<Desk>,
    folder: AttemptFolder,
    assignment: Assignment,
    origin: Origin,
    mut orders: OrdersTaken,
) {
    let attempt = assignment.attempt;
    let failure = match begin(&desk, &folder, &assignment, origin).await {
        Ok(Some(worker)) => {
            watch(&desk, (attempt, assignment.trace), worker, &mut orders).await;
            None
        }
        Ok(None) => None,
        Err(failure) => Some(failure),
    };
    aftermath::clean_up(&desk, &folder, &assignment, failure).await;
    metrics::counter!("telecine_agent_attempts_ended_total").increment(1);
}

async fn begin(
    desk: &Desk,
    folder: &AttemptFolder,
    assignment: &Assignment,
    origin: Origin,
) -> Result<Option<LiveWorker>, Failure> {
    match origin {
        Origin::Dead => Ok(None),
        Origin::Alive => Ok(Some(desk.launcher.adopt(folder, assignment.attempt).await)),
        Origin::Assigned => {
            let device = desk.launcher.mount(folder, assignment).map_err(|error| {
                infrastructure("mount_failed", format!("the attempt's folders cannot be mounted: {error}"))
            })?;
            let launched = desk.launcher.launch(folder, assignment.attempt, device).await;
            launched
                .map(Some)
                .map_err(|error| infrastructure("worker_failed", format!("no worker: {}", describe(&error))))
        }
    }
}

/// Until the worker is dead.
async fn watch(
    desk: &Arc<Desk>,
    (attempt, trace): (AttemptId, Option<TraceId>),
    worker: LiveWorker,
    orders: &mut OrdersTaken,
) {
    let LiveWorker { control, mut gone, kill } = worker;
    // The relay (`_task`) carries what is said until the worker is dead.
    let CoordinatorEnd { mut incoming, outgoing, _task } = control;
    // Ends with this function.
    let mut relays = JoinSet::new();
    let mut listening = true;
    // Kept until the worker's end takes it, however long that is.
    let mut unsaid: Option<ToWorker> = None;
    let mut deadline: Option<Instant> = None;
    loop {
        tokio::select! {
            () = &mut gone => return,
            said = incoming.recv(), if listening => match said {
                Some(FromWorker::Sign(request)) => {
                    let (desk, answers) = (desk.clone(), outgoing.clone());
                    relays.spawn(async move {
                        // A worker that is gone needs no certificate.
                        let _gone = answers.send(sign(&desk, attempt, trace, &request).await).await;
                    });
                }
                Some(FromWorker::Attached(_)) => {}
                None => listening = false,
            },
            Some(ended) = relays.join_next() => pass_on_panic(ended),
            order = orders.next() => {
                let (message, patience) = translate(order);
                tracing::info!(%attempt, ?message, "the worker is told");
                unsaid = Some(message);
                let latest = Instant::now() + patience;
                deadline = Some(deadline.map_or(latest, |earlier| earlier.min(latest)));
            }
            // A worker that cannot be told any more is killed at the deadline.
            room = outgoing.reserve(), if unsaid.is_some() => if let (Some(message), Ok(room)) = (unsaid.take(), room) {
                room.send(message);
            },
            () = until(deadline) => {
                tracing::warn!(%attempt, "the worker does not stop; it is killed");
                kill();
                deadline = None;
            }
        }
    }
}

/// A panic of a task of ours is ours.
fn pass_on_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn translate(order: Order) -> (ToWorker, Duration) {
    match order {
        Order::Interrupt { grace, reason } => {
            let grace_millis = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            (ToWorker::Interrupt { grace_millis, reason }, grace + STOP_PATIENCE)
        }
        Order::Stop { grace, reason } => {
            let grace_millis = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            (ToWorker::Stop { grace_millis, reason }, grace + STOP_PATIENCE)
        }
        Order::Fence { reason } => (ToWorker::Fence { reason }, FENCE_PATIENCE),
    }
}

/// Has the manager sign the worker's request, over as many connections as it takes.
async fn sign(desk: &Desk, attempt: AttemptId, trace: Option<TraceId>, request: &str) -> ToWorker {
    let Ok(request_der) = hex::decode(request) else {
        return ToWorker::Refused { stale: false, message: "the request is not hexadecimal".to_owned() };
    };
    let body = SignWorker { id: Some(attempt.into()), request_der };
    match call(desk, trace, from_coordinator::Body::SignWorker(body)).await {
        from_manager::Body::Signed(signed) => {
            ToWorker::Certificate(signed.chain_der.iter().map(hex::encode).collect())
        }
        from_manager::Body::Refused(refused) => {
            let stale = matches!(refused.code.as_str(), "stale" | "not_yours" | "retired");
            ToWorker::Refused { stale, message: format!("{}: {}", refused.code, refused.message) }
        }
        _ => ToWorker::Refused { stale: false, message: "the manager's answer is no certificate".to_owned() },
    }
}

/// Calls the manager until it answers.
pub(super) async fn call(
    desk: &Desk,
    trace: Option<TraceId>,
    body: from_coordinator::Body,
) -> from_manager::Body {
    let trace = trace.map(trace::begin);
    let mut callers = desk.caller.subscribe();
    loop {
        // The sender lives in the desk, so the wait ends only with a caller.
        let Some(caller) = callers.wait_for(Option::is_some).await.ok().and_then(|caller| caller.clone())
        else {
            tokio::time::sleep(CALL_PAUSE).await;
            continue;
        };
        match caller.call(message_in(trace, body.clone()), CALL_TIMEOUT).await.map(|answer| answer.body) {
            Ok(Some(from_manager::Body::Refused(refused)))
                if matches!(refused.code.as_str(), "busy" | "unavailable" | "internal") =>
            {
                tracing::warn!(code = %refused.code, message = %refused.message, "the manager asks for patience");
            }
            Ok(Some(answer)) => return answer,
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "a call is made again"),
        }
        tokio::time::sleep(CALL_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_over_before_the_closing_of_the_epoch_gives_up() {
        let (_, fenced) = translate(Order::Fence { reason: String::new() });
        assert!(fenced >= Duration::from_secs(10) && fenced + CLEAN_UP_ROOM <= CLOSE_PATIENCE, "{fenced:?}");
        let (_, stopped) = translate(Order::Stop { grace: Duration::from_secs(7), reason: String::new() });
        assert_eq!(stopped, Duration::from_secs(7) + STOP_PATIENCE);
    }
}
