//! Nobody hangs: not behind a store that does not answer, not behind a mount that nobody serves.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use telecine_mount::{
    MountSession, OutputTarget, abort_connection, open_device_and_mount, raise_readahead, unmount,
};

use crate::s3::Fake;
use crate::support::{Bench, can_mount, eventually, noise, runtime};

#[test]
fn a_store_that_does_not_answer_holds_up_nothing_else() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.input("near", b"near").folder_output();
    bench.plan.inputs.extend((0..12).map(|n| s3.input(&format!("far{n}"), &noise(500_000, n))));
    bench.plan.tuning.stall = Duration::from_secs(300);
    bench.plan.tuning.retry_budget = Duration::from_secs(600);
    let mounted = bench.mount(&runtime);
    s3.faults(|faults| faults.delay = Duration::from_secs(3600));
    let (sender, receiver) = mpsc::channel();
    for n in 0..12 {
        let (sender, path) = (sender.clone(), mounted.at(&format!("inputs/source/far{n}")));
        std::thread::spawn(move || sender.send(std::fs::read(path).map_err(|error| error.raw_os_error())));
    }
    assert!(receiver.recv_timeout(Duration::from_secs(1)).is_err(), "they wait");
    let started = Instant::now();
    assert_eq!(std::fs::read(mounted.at("inputs/source/near")).unwrap(), b"near");
    assert_eq!(std::fs::read_dir(mounted.at("inputs/source")).unwrap().count(), 13);
    assert_eq!(std::fs::metadata(mounted.at("inputs/source/far11")).unwrap().len(), 500_000);
    std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    mounted.session().interrupt();
    for _ in 0..12 {
        let answer = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(answer, Err(Some(libc::EIO)));
    }
}

#[test]
fn a_mount_that_nobody_serves_is_freed_by_aborting_its_connection() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let point = bench.folder.path().join("a mount");
    std::fs::create_dir(&point).unwrap();
    let device = open_device_and_mount(&point).unwrap();
    let (sender, receiver) = mpsc::channel();
    let place = point.clone();
    std::thread::spawn(move || sender.send(std::fs::read_dir(place).map(drop)));
    assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
    abort_connection(&point).unwrap();
    receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap_err();
    unmount(&point).unwrap();
    unmount(&point).unwrap();
    abort_connection(&point).unwrap();
    drop(device);
    assert!(raise_readahead(&point, 1024).is_err());
    assert_eq!(std::fs::read_dir(&point).unwrap().count(), 0);
}

#[test]
fn a_served_mount_ends_when_it_is_unmounted_and_leaves_no_spill() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.output("main", s3.backing, OutputTarget::Folder { prefix: "out".into() });
    let spill = bench.plan.spill.clone();
    std::fs::write(spill.join("spill-0"), b"of a predecessor").unwrap();
    std::fs::write(spill.join("other"), b"not ours").unwrap();
    let mut mounted = bench.mount(&runtime);
    raise_readahead(&mounted.point, 1024).unwrap();
    std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
    let session = mounted.session.take().unwrap();
    assert!(session.is_serving());
    unmount(&mounted.point).unwrap();
    eventually(&runtime, || !session.is_serving());
    MountSession::close(session);
    let left: Vec<_> = std::fs::read_dir(spill).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
}
