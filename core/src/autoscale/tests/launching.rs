//! Launches: once, within the caps, whatever dies and however many tick.

use super::cloud::Weather;
use super::*;
use crate::fixture::FAULTS;

#[tokio::test]
async fn a_queue_without_instances_leads_to_launches_in_one_tick() {
    let mut sky = Sky::new().await;
    sky.wait(3).await;
    let ticked = sky.tick().await;
    assert_eq!(launches(&ticked), [("small".to_owned(), 3)]);
    assert_eq!((ticked.recorded, ticked.launched, sky.cloud.ids().len()), (Some(1), 3, 3));
    let next = sky.tick().await;
    assert_eq!((launches(&next).len(), sky.rows("#launches")), (0, 0), "they are there");
    assert_eq!(codes(&next), ["expected"]);
    sky.ticks(5).await;
    assert_eq!(sky.cloud.asked(), 3);
}

#[tokio::test]
async fn what_is_asked_for_and_not_there_yet_is_not_asked_for_again() {
    for weather in [Weather::Slow, Weather::LostAfter] {
        let mut sky = Sky::new().await;
        sky.wait(2).await;
        sky.cloud.next([weather]);
        sky.tick().await;
        sky.ticks(4).await;
        assert_eq!(sky.cloud.asked(), 2, "{weather:?}");
        sky.cloud.deliver();
        sky.ticks(2).await;
        assert_eq!((sky.cloud.asked(), sky.cloud.ids().len(), sky.rows("#launches")), (2, 2, 0));
    }
}

#[tokio::test]
async fn a_launch_that_never_happened_is_asked_for_again_when_that_is_certain() {
    let mut sky = Sky::new().await;
    sky.wait(2).await;
    sky.cloud.next([Weather::LostBefore]);
    sky.tick().await;
    sky.ticks(7).await;
    assert_eq!(sky.cloud.asked(), 2, "it may still come");
    sky.ticks(4).await;
    assert_eq!((sky.cloud.asked(), sky.cloud.ids().len()), (4, 2));
}

#[tokio::test]
async fn what_was_taken_on_and_never_comes_is_no_capacity() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.cloud.next([Weather::Slow]);
    sky.tick().await;
    let mut ladder = Vec::new();
    for _ in 0..30 {
        ladder.extend(launches(&sky.tick().await));
    }
    assert_eq!(ladder, [("large".to_owned(), 1)], "the next pool, after the boot limit");
}

#[tokio::test]
async fn a_pool_without_capacity_is_avoided_and_remembered() {
    let mut sky = Sky::new().await;
    sky.wait(2).await;
    sky.cloud.next([Weather::Full]);
    let ticked = sky.tick().await;
    assert_eq!((ticked.launched, ticked.refused), (0, 2));
    assert!(ticked.problems[0].contains("small"), "{:?}", ticked.problems);
    let next = sky.tick().await;
    assert_eq!(launches(&next), [("large".to_owned(), 1)], "the ladder; two fit there");
    assert!(codes(&next).contains(&"pool_refused"));
}

#[tokio::test]
async fn a_boot_that_fails_is_ended_and_replaced_and_after_three_the_pool_is_closed() {
    let mut sky = Sky::new().await;
    pools::declare(&sky.backend, &[declared("small", 2000, 100_000, 9)]).await.unwrap();
    sky.wait(1).await;
    let (mut launched, mut closed) = (0, false);
    for _ in 0..120 {
        let ticked = sky.tick().await;
        launched += ticked.launched;
        closed |= codes(&ticked).contains(&"pool_broken");
        assert!(sky.cloud.ids().len() <= 2, "one that is ended, one that takes its place");
        if closed {
            break;
        }
    }
    assert!(closed);
    sky.ticks(10).await;
    assert_eq!((launched, sky.cloud.asked(), sky.cloud.ids().len()), (3, 3, 0), "none is left, none comes");
    assert_eq!((sky.rows("#bought"), sky.rows("#cordons")), (0, 0));
}

#[tokio::test]
async fn a_boot_that_was_only_late_is_not_ended_and_a_healthy_one_resets_the_count() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.tick().await;
    let id = sky.cloud.ids()[0];
    sky.ticks(25).await;
    assert!(sky.cordon_of(id).await.is_some(), "it is late, and cordoned");
    sky.seen(id, 0, "ready").await;
    sky.ticks(10).await;
    assert!(sky.cloud.ids().contains(&id), "it has said hello before it was ended");
    let books = super::super::books::read(&sky.backend, &region(), sky.now()).await.unwrap();
    assert_eq!(books.value.pools.len(), 0, "{:?}", books.value.pools);
}

#[tokio::test]
async fn a_boot_that_the_provider_says_has_failed_is_replaced_at_once() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    let id = sky.cloud.ids()[0];
    sky.cloud.break_down(id);
    let ticked = sky.tick().await;
    assert_eq!(launches(&ticked), [("small".to_owned(), 1)]);
    assert!(ticked.problems[0].contains("exit status: 1"), "{:?}", ticked.problems);
    sky.ticks(6).await;
    assert!(!sky.cloud.ids().contains(&id), "it was ended");
    assert_eq!(sky.cloud.ids().len(), 1);
}

#[tokio::test]
async fn an_instance_that_vanishes_while_it_boots_is_a_boot_that_failed() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    sky.cloud.take(sky.cloud.ids()[0]);
    sky.tick().await;
    let books = super::super::books::read(&sky.backend, &region(), sky.now()).await.unwrap();
    let memory = books.value.pools[&name("small")];
    assert_eq!(memory.boot_failures.map(|trouble| trouble.times), Some(1));
    assert_eq!(sky.cloud.ids().len(), 1, "another one comes");
    sky.tick().await;
    assert_eq!(sky.rows("#bought"), 1, "the one that is gone is forgotten");
}

#[tokio::test]
async fn whatever_step_a_tick_dies_at_the_caps_hold_and_the_work_is_served() {
    let mut steps = 0;
    loop {
        let mut sky = Sky::capped(3).await;
        sky.wait(5).await;
        let died = sky.dies_at(steps).await;
        for _ in 0..15 {
            sky.tick().await;
            assert!(sky.cloud.most() <= 3, "died at step {steps}");
        }
        assert_eq!(sky.cloud.ids().len(), 3, "died at step {steps}");
        assert_eq!(sky.rows("#launches"), 0);
        if !died {
            break;
        }
        steps += 1;
    }
    assert!(steps > 15, "a tick has many steps: {steps}");
}

#[tokio::test(start_paused = true)]
async fn whatever_write_fails_the_caps_hold_and_the_work_is_served() {
    for fault in FAULTS {
        for nth in 1..=6 {
            let mut sky = Sky::capped(3).await;
            sky.wait(5).await;
            sky.clock.advance(TICK);
            sky.look().await;
            sky.table.fail_transaction(nth, fault);
            sky.try_tick().await.unwrap();
            for _ in 0..15 {
                sky.tick().await;
                assert!(sky.cloud.most() <= 3, "{fault:?} of write {nth}");
            }
            assert_eq!(sky.cloud.ids().len(), 3, "{fault:?} of write {nth}");
        }
    }
}

/// Without the ledger's version as the condition each of them would launch.
#[tokio::test(start_paused = true)]
async fn however_many_tick_at_once_no_cap_is_overshot() {
    for lead in 0..40 {
        let mut sky = Sky::capped(3).await;
        sky.settings.policy.caps.micros_per_hour = Some(250_000);
        sky.wait(9).await;
        let late = async {
            for _ in 0..lead {
                tokio::task::yield_now().await;
            }
            sky.try_tick().await
        };
        let (first, second, third) = tokio::join!(sky.try_tick(), late, sky.try_tick());
        let launched: u32 = [first, second, third].iter().flatten().map(|ticked| ticked.launched).sum();
        assert_eq!((launched, sky.cloud.most()), (2, 2), "with {lead} steps in between");
    }
}

#[tokio::test]
async fn money_is_counted_and_its_cap_holds() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    let before = super::super::books::read(&sky.backend, &region(), sky.now()).await.unwrap().value.spent;
    sky.clock.advance(Duration::from_secs(3600));
    sky.all_ready().await;
    sky.tick().await;
    let after = super::super::books::read(&sky.backend, &region(), sky.now()).await.unwrap().value.spent;
    let counted = after.micros - before.micros;
    assert!((100_138..=100_139).contains(&counted), "an hour and a tick of one instance: {counted}");
    sky.settings.policy.caps.micros_per_month = Some(after.micros + 1000);
    sky.wait(9).await;
    let ticked = sky.tick().await;
    assert_eq!(launches(&ticked), []);
    assert!(codes(&ticked).contains(&"cap_reached"));
}

#[tokio::test]
async fn a_month_begins_at_nothing_though_nothing_runs() {
    let mut sky = Sky::new().await;
    sky.wait(1).await;
    sky.ticks(2).await;
    sky.clock.advance(Duration::from_secs(3600));
    sky.all_ready().await;
    sky.tick().await;
    sky.settings.policy.caps.micros_per_month = Some(1000);
    sky.cloud.ids().into_iter().for_each(|id| sky.cloud.take(id));
    assert_eq!(launches(&sky.tick().await), [], "the month's money is spent");
    sky.clock.advance(Duration::from_secs(31 * 24 * 3600));
    sky.settings.policy.caps.micros_per_month = Some(50_000);
    assert_eq!(launches(&sky.tick().await), [("small".to_owned(), 1)]);
}
