//! Real processes killed and stopped at bad moments; nothing is lost, nothing happens twice.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use telecine_test_support::s3::Moment;
use telecine_tests::clip;
use telecine_tests::up::{Process, pause};

use crate::bucket::Bucket;
use crate::spine::{jobs_of, studio};
use crate::workshop::{Workshop, workshop};

const SLOW: &str = "sleep 4; echo done > {output.made}";

#[test]
fn twenty_clips_survive_three_kills_and_doubled_events() {
    const CLIPS: usize = 20;
    let Some(mut studio) = studio() else { return };
    let inbox = studio.up.folder("inbox");
    let ready = studio.up.folder("elsewhere").join("clip.mov");
    clip::make(&ready, 1);
    for number in 0..CLIPS {
        fs::copy(&ready, inbox.join(format!("clip {number}.mov"))).expect("the clip is dropped");
    }
    for round in 0..3 {
        pause(Duration::from_millis(400 + 700 * round));
        studio.up.kill();
        // A rename away and back is the same object (inode, time, size) announced again.
        for number in 0..CLIPS {
            let (name, away) =
                (inbox.join(format!("clip {number}.mov")), inbox.join(format!("clip {number}.away")));
            fs::rename(&name, &away).and_then(|()| fs::rename(&away, &name)).expect("renamed back");
        }
        studio.up.restart();
        for number in 0..CLIPS {
            let (name, away) =
                (inbox.join(format!("clip {number}.mov")), inbox.join(format!("clip {number}.away")));
            fs::rename(&name, &away).and_then(|()| fs::rename(&away, &name)).expect("renamed back");
        }
    }
    studio.up.until("all jobs have succeeded", |up| {
        let jobs = jobs_of(up, &studio.factory);
        jobs.len() >= CLIPS && jobs.iter().all(|job| job["state"] == "succeeded")
    });
    let jobs = jobs_of(&studio.up, &studio.factory);
    assert_eq!(jobs.len(), CLIPS, "one job per clip");
    let keys: BTreeSet<&str> =
        jobs.iter().filter_map(|job| job["inputs"]["source"]["key"].as_str()).collect();
    assert_eq!(keys.len(), CLIPS, "each clip has its own");
    let renditions =
        fs::read_dir(studio.up.folder("outbox").join("renditions")).expect("the outputs").count();
    assert_eq!(renditions, CLIPS);
    let hidden = fs::read_dir(studio.up.folder("outbox")).expect("the outbox").flatten();
    let hidden: Vec<_> =
        hidden.filter(|e| e.file_name().to_string_lossy().starts_with(".telecine-upload")).collect();
    assert!(hidden.is_empty(), "no sealed bytes are left behind: {hidden:?}");
}

#[test]
fn a_killed_coordinator_leaves_its_jobs_running() {
    let Some(shop) = workshop(&[]) else { return };
    let job = shop.submit("kept", SLOW);
    shop.up.until("the job runs", |_| shop.is_running(&job));
    let agents = shop.up.processes("agent");
    assert_eq!(agents.len(), 1, "{agents:?}");
    agents[0].signal(Signal::KILL);
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(shop.attempts(&job).len(), 1, "the same attempt went on");
    assert_eq!(shop.made("kept").as_deref(), Some("done\n"));
}

#[test]
fn a_killed_worker_is_an_infrastructure_failure_and_is_retried() {
    let Some(shop) = workshop(&[]) else { return };
    let job = shop.submit("again", SLOW);
    shop.up.until("the job runs", |_| shop.is_running(&job));
    let workers = shop.up.processes("worker");
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0].signal(Signal::KILL);
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let attempts = shop.attempts(&job);
    assert_eq!(attempts.len(), 2, "{attempts:#?}");
    assert_eq!(attempts[0]["failure"]["class"], "infrastructure", "{attempts:#?}");
    assert_eq!((&done["user_retries"], &done["infrastructure_retries"]), (&json!(0), &json!(1)));
    assert_eq!(shop.made("again").as_deref(), Some("done\n"));
}

#[test]
fn a_job_finishes_while_up_is_dead_and_is_recorded_after_restart() {
    let Some(mut shop) = workshop(&[]) else { return };
    let job = shop.submit("alone", SLOW);
    shop.up.until("the job runs", |_| shop.is_running(&job));
    shop.up.kill();
    pause(Duration::from_secs(5));
    shop.up.restart();
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(shop.attempts(&job).len(), 1, "the same attempt went on");
    assert_eq!(shop.made("alone").as_deref(), Some("done\n"));
}

#[test]
fn a_worker_stopped_past_its_lease_publishes_nothing() {
    let Some(shop) = workshop(&["--lease-seconds", "3"]) else { return };
    // Each attempt writes its own number, so that what is published tells which attempt it was.
    let script = "sleep 2; sed -n 's/.*\"attempt\": *\\([0-9]*\\).*/\\1/p' /telecine/job.json | head -n 1 > {output.made}";
    let job = shop.submit("stale", script);
    shop.up.until("the job runs", |_| shop.is_running(&job));
    let stale = shop.up.processes("worker").remove(0);
    stale.signal(Signal::STOP);
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    let published = shop.made("stale");
    stale.signal(Signal::CONT);
    shop.up.until("the stale worker is gone", |_| !stale.is_alive());
    assert_eq!(shop.made("stale"), published, "the stale attempt changed nothing");
    assert_eq!(published.as_deref(), Some("2"));
    let attempts = shop.attempts(&job);
    assert_eq!(attempts[0]["state"], "lost", "{attempts:#?}");
}

/// Each attempt writes its own number, so that what is published tells which attempt it was.
const OWN_NUMBER: &str =
    "sed -n 's/.*\"attempt\": *\\([0-9]*\\).*/\\1/p' /telecine/job.json | head -n 1 > {output.made}";

/// The worker of the only attempt and its coordinator, stopped: nobody on that instance does anything until they go on.
struct Frozen {
    worker: Process,
    agent: Process,
}

impl Frozen {
    fn now(shop: &Workshop) -> Self {
        let workers = shop.up.processes("worker");
        assert_eq!(workers.len(), 1, "{workers:?}");
        let (agent, worker) = (workers[0].parent(), workers[0].clone());
        worker.signal(Signal::STOP);
        agent.signal(Signal::STOP);
        Self { worker, agent }
    }

    /// Lets the worker go on alone, so that nobody but itself ends it, then its coordinator.
    fn thaw(&self, shop: &Workshop) {
        assert!(self.worker.is_alive(), "nobody has ended it");
        self.worker.signal(Signal::CONT);
        shop.up.until("the stale worker has ended by itself", |_| !self.worker.is_alive());
        self.agent.signal(Signal::CONT);
    }
}

#[test]
fn a_worker_stopped_between_seal_and_grant_past_its_lease_publishes_nothing() {
    let Some(shop) = workshop(&["--lease-seconds", "3", "--instances", "2"]) else { return };
    let bucket = Bucket::start();
    let store = bucket.store(&shop.up);
    bucket.service.hold(Moment::PartStored);
    let job = shop.submit_into(&store, "stale", OWN_NUMBER);
    // All bytes of the attempt are in the store, and the worker is about to learn it and to ask for the grant.
    shop.up.until("the bytes are sealed", |_| bucket.service.holds());
    let frozen = Frozen::now(&shop);
    assert_eq!(shop.attempts(&job).len(), 1);
    bucket.service.release();
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(shop.attempts(&job)[0]["state"], "lost", "{:#?}", shop.attempts(&job));
    // The second may have been given to the frozen instance too, before that counted as silent.
    let last = shop.attempts(&job).len();
    assert!(last > 1);
    assert_eq!(bucket.text("made/stale"), last.to_string());
    frozen.thaw(&shop);
    assert_eq!(bucket.service.completions(), ["made/stale"], "published once");
    assert_eq!(bucket.text("made/stale"), last.to_string(), "by the last attempt");
    shop.up.until("the stale attempt's upload is taken away", |_| bucket.service.open_uploads() == 0);
    assert_eq!(shop.attempts(&job).len(), last);
}

#[test]
fn a_worker_stopped_between_grant_and_publish_is_published_for_once() {
    let Some(mut shop) = workshop(&["--lease-seconds", "3", "--instances", "2"]) else { return };
    let bucket = Bucket::start();
    let store = bucket.store(&shop.up);
    bucket.service.hold(Moment::BeforeCompletion);
    let job = shop.submit_into(&store, "granted", OWN_NUMBER);
    // The grant is recorded, and the worker's first word to the store about it waits there.
    shop.up.until("the worker publishes", |_| bucket.service.holds());
    assert_eq!(shop.up.cli(&["jobs", "get", &job])["state"], "finalizing");
    let frozen = Frozen::now(&shop);
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    assert_eq!(bucket.service.completions(), ["made/granted"]);
    bucket.service.release();
    frozen.thaw(&shop);
    assert_eq!(
        bucket.service.completions(),
        ["made/granted"],
        "the worker's own came too late and did nothing"
    );
    assert_eq!(bucket.text("made/granted"), "1");
    assert_eq!(bucket.service.open_uploads(), 0);
    assert_eq!(shop.attempts(&job).len(), 1, "a granted job has no other attempt");
    shop.up.kill();
    shop.up.restart();
    assert_eq!(shop.up.finished(&job)["state"], "succeeded");
}
