//! Writing: whatever a muxer does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use telecine_mount::OutputTarget;
use tokio::runtime::Runtime;

use crate::s3::Fake;
use crate::support::{Bench, Mounted, can_mount, noise, runtime};

/// A folder-backed and an S3-backed mount with a folder output `main` each.
fn both() -> Vec<(Mounted, Option<Fake>, Arc<Runtime>)> {
    let runtime = runtime();
    let mut folder = Bench::new();
    folder.folder_output();
    let s3 = Fake::start(&runtime);
    let mut objects = Bench::new();
    objects.output("main", s3.backing.clone(), OutputTarget::Folder { prefix: "out".into() });
    vec![(folder.mount(&runtime), None, runtime.clone()), (objects.mount(&runtime), Some(s3), runtime)]
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn patches_holes_truncation_and_reading_back() {
    if !can_mount() {
        return;
    }
    for (mounted, ..) in both() {
        let path = mounted.at("outputs/main/a.mp4");
        let mut model = noise(3_000_000, 1);
        let mut file = read_write(&path);
        file.write_all(&model).unwrap();
        file.seek(SeekFrom::Start(40)).unwrap();
        file.write_all(b"header").unwrap();
        model[40..46].copy_from_slice(b"header");
        file.write_all_at(b"tail", 4_000_000).unwrap();
        model.resize(4_000_000, 0);
        model.extend_from_slice(b"tail");
        let mut back = vec![0; 10];
        file.read_exact_at(&mut back, 38).unwrap();
        assert_eq!(back, model[38..48]);
        // A second descriptor reads while the first one still writes, as for faststart.
        assert!(std::fs::read(&path).unwrap() == model);
        file.set_len(2_000_000).unwrap();
        file.set_len(2_500_000).unwrap();
        model.truncate(2_000_000);
        model.resize(2_500_000, 0);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"appended").unwrap();
        model.extend_from_slice(b"appended");
        file.sync_all().unwrap();
        drop(file);
        assert!(std::fs::read(&path).unwrap() == model);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), model.len() as u64);
        let truncated = File::create(&path).unwrap();
        assert_eq!(truncated.metadata().unwrap().len(), 0);
        assert_eq!(mounted.session().failures(), []);
        assert!(mounted.session().counters().bytes_written >= 3_000_000);
    }
}

#[test]
fn preallocation() {
    if !can_mount() {
        return;
    }
    for (mounted, s3, _) in both() {
        let file = read_write(&mounted.at("outputs/main/a"));
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 100_000);
        file.write_all_at(b"xyz", 50_000).unwrap();
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, punch, 50_001, 1).unwrap();
        let mut back = [9; 3];
        file.read_exact_at(&mut back, 50_000).unwrap();
        assert_eq!(back, *b"x\0z");
        let moved = rustix::fs::fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, 4096).unwrap_err();
        assert_eq!(moved, rustix::io::Errno::OPNOTSUPP);
        let kept = rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 200_000);
        assert_eq!(kept.is_ok(), s3.is_none(), "the spill cannot promise space beyond the end");
        assert_eq!(mounted.session().failures(), []);
    }
}

#[test]
fn names() {
    if !can_mount() {
        return;
    }
    for (mounted, ..) in both() {
        let at = |name: &str| mounted.at("outputs/main").join(name);
        std::fs::write(at("list.m3u8"), b"old").unwrap();
        std::fs::write(at("list.m3u8.tmp"), b"new").unwrap();
        std::fs::rename(at("list.m3u8.tmp"), at("list.m3u8")).unwrap();
        assert_eq!(std::fs::read(at("list.m3u8")).unwrap(), b"new");
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/seg.ts"), b"1").unwrap();
        assert_eq!(std::fs::remove_dir(at("a/b")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
        std::fs::rename(at("a"), at("c")).unwrap();
        assert_eq!(std::fs::read(at("c/b/seg.ts")).unwrap(), b"1");
        let mut open = File::open(at("c/b/seg.ts")).unwrap();
        std::fs::remove_file(at("c/b/seg.ts")).unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert_eq!(text, "1", "an open file outlives its name");
        drop(open);
        std::fs::remove_dir(at("c/b")).unwrap();
        let refused = Some(libc::EPERM);
        assert_eq!(std::os::unix::fs::symlink("x", at("l")).unwrap_err().raw_os_error(), refused);
        assert_eq!(std::fs::hard_link(at("list.m3u8"), at("l")).unwrap_err().raw_os_error(), refused);
        assert_eq!(std::fs::write(at(".telecine-x"), b"").unwrap_err().raw_os_error(), refused);
        let fifo = rustix::fs::mkfifoat(rustix::fs::CWD, at("f"), rustix::fs::Mode::RWXU).unwrap_err();
        assert_eq!(fifo, rustix::io::Errno::PERM);
        assert_eq!(mounted.session().failures(), []);
        let files = mounted.seal().unwrap().files;
        assert_eq!(files.iter().map(|file| file.key.as_str()).collect::<Vec<_>>(), ["out/list.m3u8"]);
    }
}

#[test]
fn attributes() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.folder_output().plan.uid = 65534;
    let mounted = bench.mount(&runtime());
    let path = mounted.at("outputs/main/a");
    std::fs::write(&path, b"x").unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.nlink()), (65534, 0, 1));
    assert_eq!(std::fs::metadata(mounted.at("inputs")).unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(std::fs::metadata(mounted.at("outputs/main")).unwrap().permissions().mode() & 0o777, 0o755);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4600)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    std::os::unix::fs::chown(&path, Some(65534), Some(0)).unwrap();
    let other = std::os::unix::fs::chown(&path, Some(1), None).unwrap_err();
    assert_eq!(other.raw_os_error(), Some(libc::EPERM));
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), time);
}

#[test]
fn shared_mappings() {
    if !can_mount() {
        return;
    }
    for (mounted, ..) in both() {
        let path = mounted.at("outputs/main/mapped");
        let file = read_write(&path);
        let size = 3_000_000;
        file.set_len(size as u64).unwrap();
        let bytes = noise(size, 9);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping of `size` bytes of a file that long; nobody else touches it until it is unmapped.
        unsafe {
            let map =
                libc::mmap(std::ptr::null_mut(), size, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.cast(), size);
            drop(file);
            libc::munmap(map, size);
        }
        let sealed = mounted.seal().unwrap();
        let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        assert_eq!((sealed.files[0].size, sealed.files[0].sha256.as_str()), (size as u64, sum.as_str()));
    }
}

#[test]
fn thousands_of_segments_cost_no_descriptors() {
    if !can_mount() {
        return;
    }
    let mut bench = Bench::new();
    bench.folder_output();
    let mounted = bench.mount(&runtime());
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for n in 0..300 {
        std::fs::write(mounted.at(&format!("outputs/main/{n}.ts")), b"segment").unwrap();
    }
    assert!(open() < before + 100, "{before} then {}", open());
    assert_eq!(std::fs::read_dir(mounted.at("outputs/main")).unwrap().count(), 300);
    for n in 0..290 {
        std::fs::remove_file(mounted.at(&format!("outputs/main/{n}.ts"))).unwrap();
    }
    assert_eq!(mounted.hidden().len(), 10, "removed segments are gone from the store too");
}
