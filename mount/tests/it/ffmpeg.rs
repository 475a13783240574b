//! Every container ffmpeg writes comes out as on a local disk.

use std::path::Path;
use std::process::Command;

use telecine_mount::OutputTarget;

use crate::s3::Fake;
use crate::support::{Bench, can_mount, runtime};

/// Name and muxer arguments of what is written.
const OUTPUTS: [(&str, &[&str]); 9] = [
    ("a.mp4", &[]),
    ("fast.mp4", &["-movflags", "+faststart"]),
    ("frag.mp4", &["-movflags", "+frag_keyframe+empty_moov"]),
    ("a.mov", &[]),
    ("a.mkv", &[]),
    ("a.ts", &[]),
    ("a.mxf", &["-c:v", "mpeg2video", "-ar", "48000", "-c:a", "pcm_s16le"]),
    ("a.wav", &["-vn"]),
    ("list.m3u8", &["-f", "hls", "-hls_time", "1", "-hls_flags", "temp_file"]),
];

fn ffmpeg(input: &Path, folder: &Path, name: &str, arguments: &[&str]) {
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-i"])
        .arg(input)
        .args(["-fflags", "+bitexact", "-flags", "+bitexact", "-threads", "1"])
        .args(arguments)
        .arg(name)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("rror"), "{name}: {text}");
}

#[test]
fn every_container_comes_out_as_on_a_local_disk() {
    if !can_mount() {
        return;
    }
    if !telecine_test_support::has_program("ffmpeg") {
        return;
    }
    let local = tempfile::tempdir().unwrap();
    let made = Command::new("ffmpeg")
        .args([
            "-nostdin",
            "-loglevel",
            "error",
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=320x180:rate=25:duration=3",
        ])
        .args([
            "-f",
            "lavfi",
            "-i",
            "sine=frequency=440:duration=3",
            "-c:v",
            "mpeg4",
            "-c:a",
            "aac",
            "source.mp4",
        ])
        .current_dir(local.path())
        .status()
        .unwrap();
    assert!(made.success());
    let source = local.path().join("source.mp4");
    let bytes = std::fs::read(&source).unwrap();
    for (name, arguments) in OUTPUTS {
        ffmpeg(&source, local.path(), name, arguments);
    }
    let runtime = runtime();
    let s3 = Fake::start(&runtime);
    let mut near = Bench::new();
    near.input("source.mp4", &bytes).folder_output();
    let mut far = Bench::new();
    far.plan.inputs.push(s3.input("source.mp4", &bytes));
    far.output("main", s3.backing, OutputTarget::Folder { prefix: "out".into() });
    for mounted in [near.mount(&runtime), far.mount(&runtime)] {
        let folder = mounted.at("outputs/main");
        for (name, arguments) in OUTPUTS {
            ffmpeg(&mounted.at("inputs/source/source.mp4"), &folder, name, arguments);
        }
        let sealed = mounted.seal().unwrap();
        let expected = std::fs::read_dir(local.path()).unwrap().count() - 1;
        assert_eq!(sealed.files.len(), expected);
        for file in sealed.files {
            let name = file.key.strip_prefix("out/").unwrap();
            let wanted = std::fs::read(local.path().join(name)).unwrap();
            let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&wanted));
            assert_eq!((file.size, file.sha256), (wanted.len() as u64, sum), "{name}");
        }
    }
}
