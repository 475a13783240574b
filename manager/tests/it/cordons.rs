//! Cordons and notices on their way through a manager: what is told to whom, in which order, and what is recorded of the
//! answers.

use std::time::Duration;

use serde_json::json;
use telecine_core::cordon::{self, CordonState, Outcome};
use telecine_core::fleet;
use telecine_domain::attempt::AttemptId;
use telecine_domain::autoscale::CordonCause;
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::instance::InstanceState;
use telecine_domain::job::StateName;
use telecine_proto::convert;
use telecine_proto::coordinator::v1::{self as c, from_coordinator::Body};

use crate::agent::{Asked, Coordinator, Habit, coordinator_identity, hello, instance, profile};
use crate::world::{World, region};

/// Two looks of the manager, and more.
const LOOKS: Duration = Duration::from_secs(3);

async fn place(world: &World, number: u64) {
    let cause = CordonCause::Idle;
    let placed = cordon::place(&world.backend, &region(), instance(1), number, cause, world.now()).await;
    assert_eq!(placed.unwrap(), Outcome::Done);
}

async fn lift(world: &World, number: u64) {
    let lifted = cordon::lift(&world.backend, &region(), instance(1), number, world.now()).await;
    assert_eq!(lifted.unwrap(), Outcome::Done);
}

async fn state(world: &World) -> CordonState {
    cordon::of(&world.backend, &region(), instance(1)).await.unwrap().expect("there is one").state
}

async fn is_acknowledged(world: &World) -> bool {
    matches!(state(world).await, CordonState::Standing { acknowledged_at: Some(_) })
}

impl Coordinator {
    async fn says_idle(&self, number: u64) {
        self.notify(Body::Cordoned(c::Cordoned { number })).await;
    }

    /// What it was asked until now.
    fn asked_so_far(&mut self) -> Vec<Asked> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_cordon_is_told_acknowledged_and_taken_back() {
    let world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    place(&world, 4).await;
    assert_eq!(own.next().await, Asked::Cordon(4, false));
    let job = world.submit("out.mp4", json!({})).await;
    tokio::time::sleep(LOOKS).await;
    assert_eq!(own.asked_so_far(), [], "told once, and given nothing");
    let record = fleet::instances(&world.backend, &region()).await.unwrap().remove(0);
    assert_eq!(record.state, InstanceState::Cordoned);
    assert!(!is_acknowledged(&world).await, "nobody has said so");
    own.says_idle(3).await;
    tokio::time::sleep(LOOKS).await;
    assert!(!is_acknowledged(&world).await, "that was another one");
    own.says_idle(4).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(is_acknowledged(&world).await);
    lift(&world, 4).await;
    assert_eq!(own.next().await, Asked::Cordon(4, true));
    assert_eq!(own.assigned().await.job, job);
    place(&world, 5).await;
    assert_eq!(own.next().await, Asked::Cordon(5, false));
}

#[tokio::test(start_paused = true)]
async fn a_cordon_is_told_before_the_instance_takes_part_also_by_the_next_manager() {
    let mut world = World::new().await;
    place(&world, 1).await;
    world.submit("out.mp4", json!({})).await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    tokio::time::sleep(LOOKS).await;
    world.kill().await;
    own.die().await;
    world.start().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    tokio::time::sleep(LOOKS).await;
    assert_eq!(own.asked_so_far(), []);
    own.die().await;
    lift(&world, 1).await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    assert_eq!(own.next().await, Asked::Cordon(1, true), "it may not know that yet");
    own.assigned().await;
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_crosses_an_assignment_is_not_recorded_until_that_is_over() {
    let world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    world.submit("out.mp4", json!({})).await;
    let attempt = own.assigned().await;
    place(&world, 1).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    own.says_idle(1).await;
    tokio::time::sleep(LOOKS).await;
    assert!(!is_acknowledged(&world).await, "an attempt is recorded there");
    own.worker_gone(attempt).await;
    tokio::time::sleep(LOOKS).await;
    assert!(is_acknowledged(&world).await, "what was said holds as long as the cordon stands");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_said_on_a_broken_stream_counts_no_more() {
    let world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    world.submit("out.mp4", json!({})).await;
    own.assigned().await;
    place(&world, 1).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    own.says_idle(1).await;
    own.die().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    tokio::time::sleep(LOOKS).await;
    assert!(!is_acknowledged(&world).await, "nor does the silence of an agent that knows no cordons");
    own.says_idle(1).await;
    tokio::time::sleep(LOOKS).await;
    assert!(is_acknowledged(&world).await);
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_a_cordon_that_was_lifted_or_replaced_is_no_news() {
    let world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    place(&world, 1).await;
    assert_eq!(own.next().await, Asked::Cordon(1, false));
    place(&world, 2).await;
    own.says_idle(1).await;
    tokio::time::sleep(LOOKS).await;
    assert!(!is_acknowledged(&world).await);
    assert_eq!(own.next().await, Asked::Cordon(2, false));
    lift(&world, 2).await;
    own.says_idle(2).await;
    tokio::time::sleep(LOOKS).await;
    assert_eq!(state(&world).await, CordonState::Lifted);
}

fn going(at_millis: u64) -> c::ProfileChanged {
    c::ProfileChanged {
        profile_json: convert::json(&profile(instance(1), region())),
        notice_at_millis: at_millis,
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_whose_end_is_announced_gets_no_new_work() {
    let world = World::new().await;
    let end = world.now().after(Duration::from_secs(120));
    let first = c::Hello { notice_at_millis: end.as_millis(), ..hello(instance(1), region(), &[]) };
    let identity = coordinator_identity(&world, instance(1), &region());
    let mut own = Coordinator::try_attach(&world, identity, first, Habit::Willing).await.unwrap();
    let job = world.submit("out.mp4", json!({})).await;
    tokio::time::sleep(LOOKS).await;
    assert_eq!(own.asked_so_far(), []);
    let recorded = async || fleet::instances(&world.backend, &region()).await.unwrap().remove(0);
    let record = recorded().await;
    assert_eq!((record.state, record.notice), (InstanceState::Cordoned, Some(end)));
    own.notify(Body::ProfileChanged(going(0))).await;
    assert_eq!(own.assigned().await.job, job, "it was taken back");
    own.notify(Body::ProfileChanged(c::ProfileChanged { rebalance: true, ..going(0) })).await;
    tokio::time::sleep(LOOKS).await;
    let record = recorded().await;
    assert_eq!((record.state, record.notice, record.rebalance), (InstanceState::Ready, None, true));
}

#[tokio::test(start_paused = true)]
async fn an_interruption_that_the_coordinator_reports_costs_nothing() {
    let world = World::new().await;
    let mut own = Coordinator::attach(&world, instance(1)).await;
    let job = world.submit("out.mp4", json!({"retry": {"user": 0, "infrastructure": 0}})).await;
    let before = world.job(job).await.queued_at;
    let attempt: AttemptId = own.assigned().await;
    own.notify(Body::ProfileChanged(going(world.now().as_millis() + 60_000))).await;
    let failure = Failure::new(FailureClass::Infrastructure, "interrupted", "the provider takes it away");
    let gone = c::WorkerGone { id: Some(attempt.into()), failure: Some(failure.into()), interrupted: true };
    own.call(Body::WorkerGone(gone)).await;
    let found = world.wait_for(job, StateName::Queued, LOOKS).await;
    assert_eq!((found.user_retries, found.infrastructure_retries, found.queued_at), (0, 0, before));
    let mut other = Coordinator::attach(&world, instance(2)).await;
    assert_eq!(other.assigned().await.job, job, "at once, elsewhere");
}
