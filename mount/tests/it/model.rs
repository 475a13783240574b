//! A plain folder is the model: whatever sequence of operations, the mount answers and contains the same.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use telecine_mount::OutputTarget;

use crate::s3::Fake;
use crate::support::{Bench, can_mount, noise, runtime};

#[derive(Clone, Debug)]
enum Step {
    Write { file: u8, offset: u32, length: u32, seed: u8 },
    Append { file: u8, length: u16 },
    Truncate { file: u8, size: u32 },
    Recreate { file: u8 },
    Remove { file: u8 },
    Rename { from: u8, to: u8 },
    MakeFolder { folder: u8 },
    RemoveFolder { folder: u8 },
    Read { file: u8, offset: u32, length: u32 },
    List { folder: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let (file, size) = (0..8_u8, 0..300_000_u32);
    prop_oneof![
        4 => (file.clone(), size.clone(), size.clone(), any::<u8>())
            .prop_map(|(file, offset, length, seed)| Step::Write { file, offset, length, seed }),
        1 => (file.clone(), any::<u16>()).prop_map(|(file, length)| Step::Append { file, length }),
        1 => (file.clone(), size.clone()).prop_map(|(file, size)| Step::Truncate { file, size }),
        1 => file.clone().prop_map(|file| Step::Recreate { file }),
        1 => file.clone().prop_map(|file| Step::Remove { file }),
        2 => (0..12_u8, 0..12_u8).prop_map(|(from, to)| Step::Rename { from, to }),
        1 => (0..4_u8).prop_map(|folder| Step::MakeFolder { folder }),
        1 => (0..4_u8).prop_map(|folder| Step::RemoveFolder { folder }),
        2 => (file, size.clone(), size).prop_map(|(file, offset, length)| Step::Read { file, offset, length }),
        1 => (0..4_u8).prop_map(|folder| Step::List { folder }),
    ]
}

/// Files 0–7 are spread over folders, 8–11 are the folders themselves.
fn name(number: u8) -> String {
    match number {
        0..4 => format!("f{number}"),
        4..8 => format!("d{}/f{number}", number % 3),
        _ => format!("d{}", number % 4),
    }
}

/// Performs one step below `root` and says what it answered.
fn perform(root: &Path, step: &Step) -> Result<Vec<u8>, ErrorKind> {
    let at = |number: u8| root.join(name(number));
    let folder = |number: u8| root.join(name(8 + number));
    let done = |result: std::io::Result<()>| result.map(|()| Vec::new());
    let writing = |number: u8| OpenOptions::new().write(true).create(true).truncate(false).open(at(number));
    let result =
        match *step {
            Step::Write { file, offset, length, seed } => done(writing(file).and_then(|file| {
                file.write_all_at(&noise(length as usize, u64::from(seed)), u64::from(offset))
            })),
            Step::Append { file, length } => done(
                OpenOptions::new()
                    .append(true)
                    .open(at(file))
                    .and_then(|mut file| file.write_all(&noise(length as usize, 5))),
            ),
            Step::Truncate { file, size } => done(
                OpenOptions::new().write(true).open(at(file)).and_then(|file| file.set_len(u64::from(size))),
            ),
            Step::Recreate { file } => done(File::create(at(file)).map(drop)),
            Step::Remove { file } => done(std::fs::remove_file(at(file))),
            Step::Rename { from, to } => done(std::fs::rename(at(from), at(to))),
            Step::MakeFolder { folder: number } => done(std::fs::create_dir(folder(number))),
            Step::RemoveFolder { folder: number } => done(std::fs::remove_dir(folder(number))),
            Step::Read { file, offset, length } => File::open(at(file)).and_then(|file| {
                let mut bytes = vec![0; length as usize];
                let count = file.read_at(&mut bytes, u64::from(offset))?;
                bytes.truncate(count);
                Ok(bytes)
            }),
            Step::List { folder: number } => std::fs::read_dir(folder(number)).map(|entries| {
                let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names.join(std::ffi::OsStr::new("\n")).into_encoded_bytes()
            }),
        };
    result.map_err(|error| error.kind())
}

fn contents(root: &Path) -> Vec<(String, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
                found.push((name, None));
            } else {
                found.push((name, Some(std::fs::read(path).unwrap())));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn any_sequence_of_operations_does_what_it_does_in_a_folder() {
    if !can_mount() {
        return;
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    runner
        .run(&(any::<bool>(), prop::collection::vec(step(), 1..60)), |(far, steps)| {
            let model = tempfile::tempdir().unwrap();
            let mut bench = Bench::new();
            if far {
                bench.output("main", s3.backing.clone(), OutputTarget::Folder { prefix: String::new() });
            } else {
                bench.folder_output();
            }
            let mounted = bench.mount(&runtime);
            let root = mounted.at("outputs/main");
            for step in &steps {
                prop_assert_eq!(perform(&root, step), perform(model.path(), step), "{:?}", step);
            }
            prop_assert!(contents(&root) == contents(model.path()));
            prop_assert_eq!(mounted.session().failures(), vec![]);
            Ok(())
        })
        .unwrap();
}
