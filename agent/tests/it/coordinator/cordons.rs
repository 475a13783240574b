//! Cordons and the notice of a provider, as a coordinator keeps to them.

use telecine_proto::coordinator::v1::Cordon;

use super::*;

impl Stage {
    async fn cordon(&self, term: u64, number: u64, lifted: bool) {
        let body = Some(from_manager::Body::Cordon(Cordon { number, lifted }));
        let message = FromManager { call_id: 0, trace: None, term, body };
        self.manager.book.attached().await.notify(message).await.unwrap();
    }

    fn told(&self, event: &str) -> usize {
        self.manager.book.events().iter().filter(|told| *told == event).count()
    }

    async fn stop(&self, attempt: AttemptId) {
        let stop = StopAttempt { id: Some(attempt.into()), grace_millis: 0, reason: "a test".into() };
        self.call(from_manager::Body::StopAttempt(stop)).await;
    }
}

fn code(reply: AssignReply) -> String {
    assert!(!reply.accepted);
    assert_eq!(reply.free.map(Resources::from), Some(Resources::ZERO), "no retry may pay for it");
    reply.failure.unwrap().code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordon_is_acknowledged_once_nothing_is_held_and_nothing_is_taken_until_it_is_lifted() {
    let stage = Stage::new(None).await;
    let first = attempt();
    assert!(stage.assign(first, &shell("sleep 60")).await.accepted);
    stage.manager.book.until("phase running").await;
    stage.cordon(3, 1, false).await;
    assert_eq!(code(stage.assign(attempt(), &shell("exit 0")).await), "cordoned");
    assert!(stage.assign(first, &shell("sleep 60")).await.accepted, "what is here is here");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(stage.told("cordoned 1"), 0, "an attempt is held");
    stage.stop(first).await;
    stage.manager.book.until("cordoned 1").await;
    assert_eq!(stage.attempts(), Vec::<String>::new(), "cleaned up before it was said");
    let late = stage.assign(attempt(), &shell("exit 0")).await;
    assert_eq!(code(late), "cordoned", "one that was on its way");
    let profiles = stage.profiles_told();
    stage.cordon(3, 1, true).await;
    eventually("that it takes work is told", || stage.profiles_told() > profiles).await;
    assert!(stage.assign(attempt(), &shell("exit 0")).await.accepted);
    stage.manager.book.until("published").await;
    stage.cordon(3, 1, false).await;
    assert!(stage.assign(attempt(), &shell("exit 0")).await.accepted, "a lifted one does not come back");
    stage.until_clean().await;
    assert_eq!(stage.told("cordoned 1"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_that_waits_for_room_is_refused_when_the_cordon_comes() {
    let stage = Stage::new(None).await;
    let first = attempt();
    assert!(stage.assign(first, &shell("sleep 60")).await.accepted);
    let nothing = shell("exit 0");
    let cordoning = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stage.cordon(3, 1, false).await;
    };
    let asked = Instant::now();
    let (reply, ()) = tokio::join!(stage.assign(attempt(), &nothing), cordoning);
    assert_eq!(code(reply), "cordoned");
    assert!(asked.elapsed() < Duration::from_secs(5), "it does not wait for room any more");
    stage.stop(first).await;
    stage.manager.book.until("cordoned 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_is_said_on_each_stream_anew_and_old_news_are_not_heard() {
    let mut stage = Stage::new(None).await;
    stage.cordon(3, 7, false).await;
    stage.manager.book.until("cordoned 7").await;
    stage.manager.book.cut();
    eventually("it is said again", || stage.told("cordoned 7") == 2).await;
    stage.cordon(3, 6, true).await;
    assert_eq!(code(stage.assign(attempt(), &shell("exit 0")).await), "cordoned");
    stage.cordon(3, 8, false).await;
    stage.manager.book.until("cordoned 8").await;
    // A manager that leads no more is not obeyed: the stream to it ends.
    let hellos = || stage.manager.book.hellos.lock().unwrap().len();
    let before = hellos();
    stage.cordon(2, 8, true).await;
    eventually("it looks for another manager", || hellos() > before).await;
    assert_eq!(code(stage.assign(attempt(), &shell("exit 0")).await), "cordoned");
    stage.leave().await;
    stage.start().await;
    assert!(stage.assign(attempt(), &shell("exit 0")).await.accepted, "the next one waits to be told");
    stage.until_clean().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_goes_on_until_shortly_before_the_announced_end_and_nothing_new_begins() {
    let folder = tempfile::tempdir().unwrap();
    let notice = folder.path().join("notice.json");
    let stage = Stage::with(None, |config| {
        config.notice_file = Some(notice.clone());
        config.capacity.cpu_milli = Some(2000);
    })
    .await;
    let (long, short) = (attempt(), attempt());
    assert!(stage.assign(long, &shell("trap 'exit 0' TERM; while :; do sleep 0.1; done")).await.accepted);
    assert!(stage.assign(short, &shell("sleep 3")).await.accepted);
    stage.manager.book.until("phase running").await;
    std::fs::write(&notice, r#"{"terminate_at": "whenever"}"#).unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let is_notice = |event: &String| event.ends_with(" going") || event.ends_with(" rebalance");
    assert!(!stage.manager.book.events().iter().any(is_notice), "what is not valid is ignored");
    std::fs::write(&notice, r#"{"rebalance": true}"#).unwrap();
    stage.manager.book.until("profile draining=false rebalance").await;
    let end = Clock::default().now().after(Duration::from_secs(16));
    let announced = Instant::now();
    std::fs::write(&notice, json!({ "terminate_at": end }).to_string()).unwrap();
    stage.manager.book.until("profile draining=false going").await;
    assert_eq!(code(stage.assign(attempt(), &shell("exit 0")).await), "going_away");
    stage.manager.book.until("published").await;
    assert!(stage.manager.book.events().iter().all(|event| !event.starts_with("interrupted")));
    let told = stage.manager.book.until("interrupted").await;
    assert!(told.contains("takes it away at"), "{told}");
    let after = announced.elapsed().as_secs();
    assert!((6..=13).contains(&after), "in the second half of the time, and with some left: {after} s");
    stage.until_clean().await;
    assert!(!stage.manager.book.events().iter().any(|event| event.starts_with("worker gone")));
    stage.manager.book.cut();
    eventually("the next hello says so, too", || {
        let hellos = stage.manager.book.hellos.lock().unwrap();
        hellos.last().is_some_and(|hello| hello.notice_at_millis == end.as_millis())
    })
    .await;
}
