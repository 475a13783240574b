//! Reading: the pinned bytes or an error, never anything else.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use telecine_mount::MountPath;

use crate::s3::Fake;
use crate::support::{Bench, can_mount, eventually, noise, runtime};

const EIO: Option<i32> = Some(libc::EIO);

/// Reads at places that a small generator picks, and compares.
fn compare_at_random(path: &std::path::Path, bytes: &[u8], seed: u64, times: u32) {
    let file = File::open(path).unwrap();
    let places = noise(times as usize * 16, seed);
    for place in places.chunks_exact(16) {
        let number = |at: usize| u64::from_le_bytes(place[at..at + 8].try_into().unwrap());
        let offset = number(0) % (bytes.len() as u64 + 10);
        let length = (number(8) % 300_000) as usize;
        let mut buffer = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match file.read_at(&mut buffer[filled..], offset + filled as u64).unwrap() {
                0 => break,
                count => filled += count,
            }
        }
        let from = bytes.len().min(offset as usize);
        let to = bytes.len().min(offset as usize + length);
        assert_eq!(filled, to - from, "at {offset} for {length}");
        assert!(buffer[..filled] == bytes[from..to], "at {offset} for {length}");
    }
}

#[test]
fn folder_inputs_read_like_the_files_they_are() {
    if !can_mount() {
        return;
    }
    let bytes = noise(5_000_001, 1);
    let mut bench = Bench::new();
    bench.input("clip.mov", &bytes).input("empty", b"");
    let mounted = bench.mount(&runtime());
    assert_eq!(std::fs::read(mounted.at("inputs/source/clip.mov")).unwrap(), bytes);
    assert_eq!(std::fs::read(mounted.at("inputs/source/empty")).unwrap(), b"");
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (path, bytes) = (mounted.at("inputs/source/clip.mov"), &bytes);
            scope.spawn(move || compare_at_random(&path, bytes, seed, 100));
        }
    });
    let counters = mounted.session().counters();
    assert!(counters.bytes_read >= 5_000_001 && counters.store_bytes_read >= 5_000_001, "{counters:?}");
    assert!(counters.requests > 5 && counters.store_requests == 0, "{counters:?}");
    mounted.seal().unwrap();
}

#[test]
fn object_inputs_read_right_in_any_order_and_are_fetched_about_once() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let bytes = noise(18_000_001, 2);
    let mut bench = Bench::new();
    bench.plan.inputs = vec![s3.input("a.mov", &bytes), s3.input("empty", b""), s3.input("b.mov", &bytes)];
    let mounted = bench.mount(&runtime);
    assert_eq!(std::fs::read(mounted.at("inputs/source/empty")).unwrap(), b"");
    assert!(std::fs::read(mounted.at("inputs/source/a.mov")).unwrap() == bytes);
    let fetched = s3.bucket.lock().unwrap().bytes_read;
    assert_eq!(fetched, bytes.len() as u64, "a sequential reader fetches every byte once");
    assert!(s3.bucket.lock().unwrap().reads <= 40, "{}", s3.bucket.lock().unwrap().reads);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (path, bytes) = (mounted.at("inputs/source/b.mov"), &bytes);
            scope.spawn(move || compare_at_random(&path, bytes, seed, 50));
        }
    });
    // What was fetched ahead may still be on its way.
    eventually(&runtime, || {
        let counters = mounted.session().counters();
        let bucket = s3.bucket.lock().unwrap();
        (counters.store_bytes_read, counters.store_requests) == (bucket.bytes_read, bucket.reads)
    });
    mounted.seal().unwrap();
}

#[test]
fn a_cache_far_smaller_than_the_object_is_enough() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let bytes = noise(12_000_000, 3);
    let mut bench = Bench::new();
    bench.plan.cache_bytes = 1;
    bench.plan.inputs = (0..4).map(|n| s3.input(&format!("{n}.mov"), &bytes)).collect();
    let mounted = bench.mount(&runtime);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let (path, bytes) = (mounted.at(&format!("inputs/source/{n}.mov")), &bytes);
            scope.spawn(move || assert!(std::fs::read(path).unwrap() == *bytes));
        }
    });
}

#[test]
fn the_index_at_the_end_costs_little() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let bytes = noise(20_000_000, 4);
    let mut bench = Bench::new();
    bench.plan.inputs = vec![s3.input("a.mp4", &bytes)];
    let mounted = bench.mount(&runtime);
    let file = File::open(mounted.at("inputs/source/a.mp4")).unwrap();
    let mut head = [0; 32_768];
    file.read_exact_at(&mut head, 0).unwrap();
    let mut tail = vec![0; 265_000];
    file.read_exact_at(&mut tail, 19_735_000).unwrap();
    assert!(tail == bytes[19_735_000..]);
    let fetched = s3.bucket.lock().unwrap().bytes_read;
    assert!(fetched < 2 << 20, "{fetched} bytes for a header and an index");
}

#[test]
fn faults_that_pass_are_not_seen() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let bytes = noise(3_000_000, 5);
    let mut bench = Bench::new();
    bench.plan.inputs = vec![s3.input("a", &bytes), s3.input("b", &bytes), s3.input("c", &bytes)];
    let mounted = bench.mount(&runtime);
    s3.faults(|faults| faults.unavailable = 4);
    assert!(std::fs::read(mounted.at("inputs/source/a")).unwrap() == bytes);
    s3.faults(|faults| faults.broken_bodies = 5);
    assert!(std::fs::read(mounted.at("inputs/source/b")).unwrap() == bytes);
    s3.faults(|faults| faults.delay = Duration::from_millis(200));
    assert!(std::fs::read(mounted.at("inputs/source/c")).unwrap() == bytes);
    assert_eq!(mounted.session().failures(), []);
}

#[test]
fn a_fault_that_stays_is_an_error_within_the_budget_and_fails_the_seal() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let bytes = noise(100_000, 6);
    let mut bench = Bench::new();
    bench.plan.inputs = vec![s3.input("a", &bytes)];
    bench.plan.tuning.retry_budget = Duration::from_secs(1);
    let mounted = bench.mount(&runtime);
    s3.faults(|faults| faults.unavailable = u32::MAX);
    let started = Instant::now();
    let error = std::fs::read(mounted.at("inputs/source/a")).unwrap_err();
    assert_eq!(error.raw_os_error(), EIO);
    assert!(started.elapsed() < Duration::from_secs(20));
    // Metadata needs no store.
    assert_eq!(std::fs::metadata(mounted.at("inputs/source/a")).unwrap().len(), 100_000);
    s3.faults(|faults| faults.unavailable = 0);
    let error = mounted.seal().unwrap_err().to_string();
    assert!(error.contains("inputs/source/a") && error.contains("503"), "{error}");
}

#[test]
fn another_version_of_an_object_is_an_error_that_names_both() {
    if !can_mount() {
        return;
    }
    for ignore_conditions in [false, true] {
        let runtime = runtime();
        let s3 = Fake::start(&runtime);
        let (old, new) = (noise(8_000_000, 7), noise(8_000_000, 8));
        let mut bench = Bench::new();
        bench.plan.inputs = vec![s3.input("a", &old)];
        let mounted = bench.mount(&runtime);
        let mut file = File::open(mounted.at("inputs/source/a")).unwrap();
        let mut head = vec![0; 100_000];
        file.read_exact(&mut head).unwrap();
        assert!(head == old[..100_000]);
        s3.faults(|faults| faults.ignore_conditions = ignore_conditions);
        s3.put("a", &new);
        let mut rest = Vec::new();
        assert_eq!(file.read_to_end(&mut rest).unwrap_err().raw_os_error(), EIO);
        assert!(rest == old[100_000..100_000 + rest.len()], "no byte of the other version");
        let failures = mounted.session().failures();
        assert!(failures[0].is_input && failures[0].key == "a" && failures[0].errno == libc::EIO);
        for etag in [crate::s3::etag(&old), crate::s3::etag(&new)] {
            assert!(failures[0].message.contains(&etag), "{}", failures[0].message);
        }
        assert!(mounted.seal().is_err());
    }
}

#[test]
fn another_version_of_a_file_is_an_error_and_fails_the_seal() {
    if !can_mount() {
        return;
    }
    let bytes = noise(8_000_000, 9);
    let mut bench = Bench::new();
    bench.input("a", &bytes).input("b", &bytes).input("c", &bytes);
    bench.plan.inputs[1].etag = "1-2-3".into();
    let mounted = bench.mount(&runtime());
    let file = File::open(mounted.at("inputs/source/a")).unwrap();
    let mut head = [0; 1000];
    file.read_exact_at(&mut head, 0).unwrap();
    File::options().write(true).open(mounted.store("a")).unwrap().write_all_at(b"x", 5_000_000).unwrap();
    assert_eq!(file.read_exact_at(&mut head, 4_999_000).unwrap_err().raw_os_error(), EIO);
    assert_eq!(File::open(mounted.at("inputs/source/b")).unwrap_err().raw_os_error(), EIO);
    std::fs::remove_file(mounted.store("c")).unwrap();
    assert_eq!(File::open(mounted.at("inputs/source/c")).unwrap_err().raw_os_error(), EIO);
    let error = mounted.seal().unwrap_err().to_string();
    assert!(error.contains("has changed since the job was submitted"), "{error}");
    let failures = mounted.session().failures();
    assert!(failures.iter().any(|failure| failure.message.contains("1-2-3")), "{failures:?}");
    assert!(failures.iter().any(|failure| failure.message.contains("is gone")), "{failures:?}");
}

#[test]
fn a_file_replaced_after_it_was_read_fails_the_seal() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.input("a", b"old").input("unread", b"old");
    let mounted = bench.mount(&runtime());
    assert_eq!(std::fs::read(mounted.at("inputs/source/a")).unwrap(), b"old");
    std::fs::write(mounted.store("unread"), b"changed, but nobody looked").unwrap();
    std::fs::write(mounted.store("new"), b"new").unwrap();
    std::fs::rename(mounted.store("new"), mounted.store("a")).unwrap();
    mounted.seal().unwrap_err();
    assert_eq!(mounted.session().failures().len(), 1);
}

#[test]
fn inputs_cannot_be_changed_and_names_may_be_hostile() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    let names = ["a b", "\"q\" 'q'", "new\nline", "100%2Fetc", "é漢", "-rf", "..hidden", "*?#[]\\"];
    for name in names {
        bench.input(name, name.as_bytes());
    }
    let long = "x".repeat(1024);
    let mut input = bench.plan.inputs[0].clone();
    input.path = MountPath::input("source", &long).unwrap();
    bench.plan.inputs.push(input);
    let mounted = bench.mount(&runtime());
    let folder = mounted.at("inputs/source");
    let mut listed: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    listed.sort();
    let mut expected: Vec<&str> = names.into_iter().chain([long.as_str()]).collect();
    expected.sort_unstable();
    assert_eq!(listed, expected);
    for name in names {
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), name.as_bytes());
    }
    let read_only = Some(libc::EROFS);
    let file = folder.join("a b");
    assert_eq!(File::options().write(true).open(&file).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::remove_file(&file).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::rename(&file, folder.join("z")).unwrap_err().raw_os_error(), read_only);
    assert_eq!(File::create(folder.join("z")).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::create_dir(mounted.at("z")).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::remove_dir(mounted.at("outputs")).unwrap_err().raw_os_error(), read_only);
}
