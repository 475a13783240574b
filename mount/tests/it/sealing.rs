//! Sealing, publishing and taking away: nothing lost, nothing twice, nothing half-done.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::mount::MountFlags;
use telecine_mount::{
    Backing, CompleteError, OutputTarget, SealError, SealedBytes, SealedFile, abort, abort_journal, complete,
};

use crate::s3::Fake;
use crate::support::{Bench, can_mount, noise, open_folder, runtime};

#[test]
fn a_folder_output_appears_whole_only_when_completed_and_once() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let mut bench = Bench::new();
    let backing = bench.backing();
    bench.file_output(backing, "out.mp4");
    let mounted = bench.mount(&runtime);
    let bytes = noise(2_000_000, 1);
    std::fs::write(mounted.at("outputs/main/out.mp4"), &bytes).unwrap();
    std::fs::write(mounted.at("outputs/main/pass.log"), b"left").unwrap();
    let not_text = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"scratch-\xff");
    std::fs::write(mounted.at("outputs/main").join(not_text), b"left too").unwrap();
    assert!(!mounted.store("done").exists());
    let sealed = mounted.seal().unwrap();
    assert_eq!(mounted.seal().unwrap(), sealed, "sealing again gives the same answer");
    assert_eq!((sealed.left_out[0].path.as_str(), sealed.left_out[0].size), ("pass.log", 4));
    assert_eq!(sealed.left_out[1].size, 8);
    assert_eq!(mounted.hidden().len(), 1, "what is left out is deleted");
    assert!(!mounted.store("done").exists(), "sealed is not published");
    let refused = std::fs::write(mounted.at("outputs/main/late"), b"").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    // Another process has nothing but this text.
    let text = serde_json::to_string(&sealed.files[0]).unwrap();
    let backing = mounted.backing();
    let file: SealedFile = serde_json::from_str(&text).unwrap();
    for _ in 0..3 {
        let done = runtime.block_on(complete(&backing, &file)).unwrap();
        assert_eq!(done.etag, file.etag);
        assert!(std::fs::read(mounted.store("done/out.mp4")).unwrap() == bytes);
    }
    let meta = open_folder(&mounted.store("")).metadata("done/out.mp4").unwrap();
    assert_eq!(Some(telecine_mount::folder_etag(&meta)), file.etag);
    // Aborting what is published touches nothing.
    runtime.block_on(abort(&backing, &file)).unwrap();
    runtime.block_on(abort_journal(&mounted.journal, |_| Some(backing.clone()))).unwrap();
    assert!(mounted.store("done/out.mp4").exists() && mounted.hidden().is_empty());
    std::fs::write(mounted.store("done/out.mp4"), b"somebody else's").unwrap();
    let error = runtime.block_on(complete(&backing, &file)).unwrap_err();
    assert!(matches!(error, CompleteError::Gone { .. }), "{error}");
}

#[test]
fn aborting_twice_and_completing_what_was_aborted() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.folder_output().output("far", s3.backing.clone(), OutputTarget::Folder { prefix: "f".into() });
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
    std::fs::write(mounted.at("outputs/far/b"), b"b").unwrap();
    let files = mounted.seal().unwrap().files;
    for (backing, file) in [(mounted.backing(), &files[0]), (s3.backing.clone(), &files[1])] {
        for _ in 0..2 {
            runtime.block_on(abort(&backing, file)).unwrap();
        }
        let error = runtime.block_on(complete(&backing, file)).unwrap_err();
        assert!(matches!(error, CompleteError::Gone { .. }), "{error}");
    }
    assert_eq!((mounted.hidden().len(), s3.uploads()), (0, 0));
}

#[test]
fn an_object_appears_whole_only_when_completed_and_once() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.output("main", s3.backing.clone(), OutputTarget::Folder { prefix: "out".into() });
    bench.plan.tuning.part_bytes = 5 << 20;
    let mounted = bench.mount(&runtime);
    let large = noise(11_000_000, 2);
    std::fs::write(mounted.at("outputs/main/large é%20.mp4"), &large).unwrap();
    File::create(mounted.at("outputs/main/zero")).unwrap();
    s3.faults(|faults| faults.unavailable = 3);
    let files = mounted.seal().unwrap().files;
    assert!(s3.object("out/zero").is_none() && s3.uploads() == 2);
    let counters = mounted.session().counters();
    assert!(counters.store_bytes_written >= 11_000_000 && counters.store_requests >= 7, "{counters:?}");
    let SealedBytes::Upload { parts, .. } = &files[0].sealed else { panic!("{files:?}") };
    assert_eq!(parts.len(), 3);
    s3.faults(|faults| faults.lost_completions = 2);
    for file in &files {
        for _ in 0..2 {
            runtime.block_on(complete(&s3.backing, file)).unwrap();
        }
    }
    assert!(s3.object("out/large é%20.mp4").unwrap() == large);
    assert!(s3.object("out/zero").unwrap().is_empty());
    runtime.block_on(abort_journal(&mounted.journal, |_| Some(s3.backing.clone()))).unwrap();
    assert!(s3.object("out/zero").is_some(), "aborting the journal touches nothing that is published");
    let (first, zero) = (&files[0], &files[1]);
    s3.put("out/large é%20.mp4", &noise(11_000_000, 3));
    let error = runtime.block_on(complete(&s3.backing, first)).unwrap_err();
    assert!(matches!(error, CompleteError::Gone { .. }), "as large, but not ours: {error}");
    s3.put("out/zero", b"another");
    let error = runtime.block_on(complete(&s3.backing, zero)).unwrap_err();
    assert!(matches!(error, CompleteError::Gone { .. }), "{error}");
}

#[test]
fn a_full_spill_is_enospc_and_fails_the_seal_though_the_writer_ignored_it() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.plan.spill_bytes = 1_000_000;
    bench.file_output(s3.backing.clone(), "a");
    let mounted = bench.mount(&runtime);
    let mut file = File::create(mounted.at("outputs/main/a")).unwrap();
    file.write_all(&noise(900_000, 3)).unwrap();
    let error = file.write_all(&noise(900_000, 4)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    let error = mounted.seal().unwrap_err();
    let SealError::Failed(failures) = &error else { panic!("{error}") };
    let failure = &failures[0];
    assert_eq!((failure.path.as_str(), failure.key.as_str()), ("outputs/main/a", "done/a"));
    assert_eq!((failure.errno, failure.is_input), (libc::ENOSPC, false));
    assert_eq!(s3.uploads(), 0, "nothing was sent");
}

#[test]
fn a_refused_upload_fails_the_seal_and_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.file_output(s3.backing.clone(), "a");
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.at("outputs/main/a"), noise(9_000_000, 5)).unwrap();
    s3.faults(|faults| faults.refuse_parts = true);
    let error = mounted.seal().unwrap_err();
    assert!(matches!(error, SealError::Upload { .. }) && error.to_string().contains("done/a"), "{error}");
    assert_eq!((s3.uploads(), s3.object("done/a")), (0, None));
    s3.faults(|faults| faults.refuse_parts = false);
    let files = mounted.seal().unwrap().files;
    runtime.block_on(complete(&s3.backing, &files[0])).unwrap();
    assert_eq!(s3.object("done/a").unwrap().len(), 9_000_000);
}

#[test]
fn after_a_crash_the_journal_takes_everything_away() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.folder_output().output("far", s3.backing.clone(), OutputTarget::Folder { prefix: "f".into() });
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.store("precious"), b"not ours").unwrap();
    std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
    std::fs::write(mounted.at("outputs/far/b"), b"b").unwrap();
    let open = File::create(mounted.at("outputs/main/c")).unwrap();
    open.write_all_at(b"c", 0).unwrap();
    assert_eq!(mounted.hidden().len(), 2);
    // The crash: nobody seals, somebody finds the journal. Once more for one that dies in between.
    let (near, far) = (mounted.backing(), s3.backing.clone());
    let backing_of = |name: &str| if name == "main" { Some(near.clone()) } else { Some(far.clone()) };
    runtime.block_on(abort_journal(&mounted.journal, |_| None)).unwrap_err();
    assert!(mounted.journal.exists(), "what cannot be aborted now is not forgotten");
    let files = mounted.seal().unwrap().files;
    assert_eq!((files.len(), s3.uploads()), (3, 1));
    for _ in 0..2 {
        runtime.block_on(abort_journal(&mounted.journal, backing_of)).unwrap();
    }
    assert!(mounted.hidden().is_empty() && s3.uploads() == 0 && !mounted.journal.exists());
    assert!(mounted.store("precious").exists());
}

#[test]
fn missing_and_impossible_outputs_are_named() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let mut bench = Bench::new();
    let backing = bench.backing();
    bench.file_output(backing, "a.mp4");
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.at("outputs/main/other.mp4"), b"").unwrap();
    let error = mounted.seal().unwrap_err();
    assert!(matches!(error, SealError::Missing { .. }), "{error}");
    assert_eq!(error.to_string(), "output \"main\": the engine wrote no file \"a.mp4\"");

    let s3 = Fake::start(&runtime);
    let mut bench = Bench::new();
    bench.output("main", s3.backing, OutputTarget::Folder { prefix: "out".into() });
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.at("outputs/main/new\nline"), b"").unwrap();
    let error = mounted.seal().unwrap_err();
    assert!(matches!(error, SealError::Name { .. }), "{error}");
}

#[test]
fn links_and_other_file_systems_in_the_way_are_refused() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let elsewhere = tempfile::tempdir().unwrap();
    for obstacle in ["link", "mount", "folder", "file"] {
        let mut bench = Bench::new();
        let done = bench.store().join("done");
        let mut mounted_there = false;
        match obstacle {
            "link" => std::os::unix::fs::symlink(elsewhere.path(), &done).unwrap(),
            "folder" => std::fs::create_dir_all(done.join("a")).unwrap(),
            "file" => std::fs::write(&done, b"").unwrap(),
            _ => {
                std::fs::create_dir(&done).unwrap();
                rustix::mount::mount("tmpfs", &done, "tmpfs", MountFlags::empty(), None).unwrap();
                mounted_there = true;
            }
        }
        let backing = bench.backing();
        bench.file_output(backing, "a");
        let mounted = bench.mount(&runtime);
        std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
        let error = mounted.seal().map(|sealed| sealed.files);
        if mounted_there {
            telecine_mount::unmount(&done).unwrap();
        }
        let error = error.unwrap_err();
        assert!(matches!(error, SealError::Destination { .. }), "{obstacle}: {error}");
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_link_that_appears_after_sealing_is_not_followed() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut bench = Bench::new();
    let backing = bench.backing();
    bench.file_output(backing.clone(), "a");
    let mounted = bench.mount(&runtime);
    std::fs::write(mounted.at("outputs/main/a"), b"a").unwrap();
    let file = mounted.seal().unwrap().files.remove(0);
    std::os::unix::fs::symlink(elsewhere.path(), mounted.store("done")).unwrap();
    runtime.block_on(complete(&backing, &file)).unwrap_err();
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(mounted.hidden().len(), 1, "the bytes still wait");
    std::fs::remove_file(mounted.store("done")).unwrap();
    runtime.block_on(complete(&backing, &file)).unwrap();
    assert_eq!(std::fs::read(mounted.store("done/a")).unwrap(), b"a");
}

#[test]
fn forged_manifests_touch_nothing_of_others() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("precious"), b"x").unwrap();
    let backing = Backing::Folder { dir: open_folder(folder.path()) };
    for (key, hidden_key) in [("a", "precious"), ("../a", ".telecine-upload-x-0"), ("a", "../x")] {
        let file = SealedFile {
            output: "main".into(),
            key: key.into(),
            size: 1,
            sha256: String::new(),
            etag: None,
            sealed: SealedBytes::HiddenFile { hidden_key: hidden_key.into() },
        };
        runtime.block_on(complete(&backing, &file)).unwrap_err();
        let aborted = runtime.block_on(abort(&backing, &file));
        assert_eq!(aborted.is_ok(), hidden_key.starts_with(".telecine-upload-"));
    }
    assert!(folder.path().join("precious").exists());
}
