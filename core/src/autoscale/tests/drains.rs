//! Giving back: cordon, acknowledgement, claim, end, oblivion.

use telecine_domain::autoscale::CordonCause;

use super::*;
use crate::drain;
use crate::enrolment;

/// One ready, idle instance without work.
async fn idle() -> (Sky, InstanceId) {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    sky.all_ready().await;
    sky.jobs = 0;
    let id = sky.cloud.ids()[0];
    (sky, id)
}

#[tokio::test]
async fn an_idle_instance_is_cordoned_ended_when_it_has_acknowledged_and_forgotten() {
    let (mut sky, id) = idle().await;
    assert_eq!(actions(&sky.tick().await), ["cordon"]);
    sky.ticks(10).await;
    assert_eq!(sky.cloud.ids(), [id], "nobody has acknowledged");
    assert_eq!(sky.cordon_of(id).await, Some(CordonState::Standing { acknowledged_at: None }));
    sky.acknowledge().await;
    let ticked = sky.tick().await;
    assert_eq!((actions(&ticked), ticked.retired), (vec!["terminate"], 1));
    assert_eq!(sky.cloud.ids(), []);
    assert!(enrolment::is_retired(&sky.backend, id).await.unwrap(), "its certificate opens nothing");
    assert_eq!(sky.tick().await.forgotten, 1);
    assert_eq!((sky.rows("#bought"), sky.rows("#cordons"), sky.rows("#instances")), (0, 0, 0));
    sky.seen(id, 0, "lost").await;
    sky.tick().await;
    assert_eq!(sky.rows("#instances"), 0, "what the manager writes of it afterwards goes, too");
}

#[tokio::test]
async fn whatever_step_it_dies_at_an_end_is_whole_in_the_end() {
    let mut steps = 0;
    loop {
        let (mut sky, id) = idle().await;
        sky.tick().await;
        sky.acknowledge().await;
        let died = sky.dies_at(steps).await;
        sky.ticks(4).await;
        assert_eq!(sky.cloud.ids(), [], "died at step {steps}");
        assert_eq!((sky.rows("#bought"), sky.rows("#cordons"), sky.rows("#instances")), (0, 0, 0));
        assert!(enrolment::is_retired(&sky.backend, id).await.unwrap());
        if !died {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15, "a tick has many steps: {steps}");
}

#[tokio::test]
async fn a_cordon_is_taken_back_when_jobs_come() {
    let (mut sky, id) = idle().await;
    sky.tick().await;
    sky.wait(1).await;
    assert_eq!(actions(&sky.tick().await), ["uncordon"]);
    assert_eq!(sky.cordon_of(id).await, Some(CordonState::Lifted));
    sky.acknowledge().await;
    sky.wait(0).await;
    assert_eq!(actions(&sky.tick().await), ["cordon"], "with a new number");
    assert_eq!(sky.cordon_of(id).await, Some(CordonState::Standing { acknowledged_at: None }));
}

#[tokio::test]
async fn an_instance_with_a_lease_is_never_ended() {
    let (mut sky, id) = idle().await;
    sky.tick().await;
    // The job was assigned before the cordon was known: the agent does not acknowledge.
    sky.seen(id, 1, "ready").await;
    for _ in 0..20 {
        sky.acknowledge().await;
        let ticked = sky.tick().await;
        assert_eq!((sky.cloud.ids(), ticked.retired), (vec![id], 0));
    }
}

#[tokio::test]
async fn a_person_s_drain_is_left_alone_and_can_be_taken_back() {
    let (mut sky, id) = idle().await;
    let drained = drain::begin(&sky.backend, id, sky.now()).await.unwrap();
    assert_eq!(drained.cause, CordonCause::Operator);
    sky.acknowledge().await;
    sky.ticks(5).await;
    assert_eq!(sky.cloud.ids(), [id]);
    drain::revoke(&sky.backend, id, sky.now()).await.unwrap();
    assert_eq!(actions(&sky.tick().await), ["cordon"], "it is idle");
    sky.acknowledge().await;
    sky.tick().await;
    assert_eq!(sky.cloud.ids(), []);
}

#[tokio::test]
async fn an_instance_that_the_market_takes_is_replaced_and_forgotten() {
    let (mut sky, id) = idle().await;
    sky.seen(id, 1, "cordoned").await;
    let mut seen = fleet::instance(&sky.backend, id).await.unwrap().unwrap();
    seen.notice = Some(sky.now().after(Duration::from_secs(30)));
    fleet::put_instance(&sky.backend, &seen).await.unwrap();
    let ticked = sky.tick().await;
    assert_eq!(actions(&ticked), ["launch", "cordon"], "the work there does not end in time");
    sky.cloud.take(id);
    sky.seen(id, 1, "disconnected").await;
    assert_eq!(sky.tick().await.forgotten, 1);
    assert!(enrolment::is_retired(&sky.backend, id).await.unwrap());
    assert_eq!(sky.rows("#cordons"), 0);
}

#[tokio::test]
async fn without_a_fresh_look_at_the_queue_nothing_is_done() {
    let (sky, id) = idle().await;
    sky.clock.advance(Duration::from_secs(61));
    let ticked = sky.try_tick().await.unwrap();
    assert_eq!((actions(&ticked), codes(&ticked)), (vec![], vec!["stale"]));
    assert_eq!(sky.cloud.ids(), [id]);
    let unseen = Sky::new().await;
    let ticked = unseen.try_tick().await.unwrap();
    assert_eq!(codes(&ticked), ["stale"], "nobody has ever looked");
}
