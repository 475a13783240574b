//! Real processes killed and stopped at bad moments; nothing is lost, nothing happens twice.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use telecine_tests::clip;
use telecine_tests::up::pause;

use crate::spine::{jobs_of, studio};
use crate::workshop::workshop;

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

#[test]
fn a_worker_stopped_between_grant_and_publish_is_published_for_once() {
    let Some(mut shop) = workshop(&["--lease-seconds", "3"]) else { return };
    let job = shop.submit("granted", "sleep 2; echo done > {output.made}");
    shop.up.until("the job runs", |_| shop.is_running(&job));
    // While `up` does not read, the worker seals and its call waits in the socket; then the worker is stopped, and `up`
    // grants what nobody is there to publish.
    let up = shop.up.process();
    up.signal(Signal::STOP);
    pause(Duration::from_millis(2800));
    let worker = shop.up.processes("worker").remove(0);
    worker.signal(Signal::STOP);
    up.signal(Signal::CONT);
    let done = shop.up.finished(&job);
    assert_eq!(done["state"], "succeeded", "{done:#}");
    worker.signal(Signal::CONT);
    shop.up.until("the worker is gone", |_| !worker.is_alive());
    assert_eq!(shop.made("granted").as_deref(), Some("done\n"));
    shop.up.kill();
    shop.up.restart();
    assert_eq!(shop.up.finished(&job)["state"], "succeeded");
}
