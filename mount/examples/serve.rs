//! `serve STORE MOUNTPOINT FILE…`: shows files of the folder STORE below `MOUNTPOINT/inputs/source/` and publishes what is
//! written to `MOUNTPOINT/outputs/main/` below `STORE/out/` when its standard input ends. Needs root. For trying and measuring.
#![allow(clippy::print_stdout)]

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use telecine_mount::{
    Backing, InputFile, MountPath, MountPlan, MountSession, OutputFolder, OutputTarget, Tuning, complete,
    folder_etag, open_device_and_mount, raise_readahead, unmount,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(point)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve STORE MOUNTPOINT FILE…".into());
    };
    let point = Path::new(&point);
    let scratch = tempfile::tempdir()?;
    let dir = Arc::new(cap_std::fs::Dir::open_ambient_dir(&store, cap_std::ambient_authority())?);
    let backing = Backing::Folder { dir: dir.clone() };
    let mut inputs = Vec::new();
    for key in arguments {
        let meta = dir.metadata(&key)?;
        let path = MountPath::input("source", key.rsplit('/').next().unwrap_or(&key))?;
        inputs.push(InputFile {
            path,
            backing: backing.clone(),
            key,
            etag: folder_etag(&meta),
            size: meta.len(),
        });
    }
    let plan = MountPlan {
        inputs,
        outputs: vec![OutputFolder {
            name: "main".into(),
            backing: backing.clone(),
            target: OutputTarget::Folder { prefix: "out".into() },
            hidden_tag: format!("serve-{}", std::process::id()),
        }],
        uid: 0,
        gid: 0,
        cache_bytes: 256 << 20,
        spill: scratch.path().join("spill"),
        spill_bytes: 0,
        journal: scratch.path().join("journal"),
        tuning: Tuning::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let device = open_device_and_mount(point)?;
    let session = MountSession::serve(plan, device, runtime.handle().clone())?;
    raise_readahead(point, 1024)?;
    println!("serving");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let sealed = runtime.block_on(session.seal());
    println!("{:?}", session.counters());
    unmount(point)?;
    session.close();
    for file in sealed?.files {
        runtime.block_on(complete(&backing, &file))?;
        println!("{} {} {}", file.sha256, file.size, file.key);
    }
    Ok(())
}
