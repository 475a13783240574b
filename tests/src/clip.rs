//! Real media, made by ffmpeg.

use std::path::Path;
use std::process::Command;

/// Makes an H.264 + AAC clip of `seconds` at 320x180 in the format that `path`'s name says.
///
/// # Panics
/// When ffmpeg is missing or fails.
pub fn make(path: &Path, seconds: u32) {
    let picture = format!("testsrc2=size=320x180:rate=25:duration={seconds}");
    let tone = format!("sine=frequency=440:duration={seconds}");
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y", "-f", "lavfi", "-i", &picture])
        .args([
            "-f",
            "lavfi",
            "-i",
            &tone,
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-c:a",
            "aac",
            "-shortest",
        ])
        .arg(path)
        .output()
        .expect("ffmpeg is installed (scripts/setup)");
    assert!(output.status.success(), "ffmpeg: {}", String::from_utf8_lossy(&output.stderr));
}

/// What ffprobe says about a file: container and streams.
///
/// # Panics
/// When the file is not readable media.
pub fn probe(path: &Path) -> serde_json::Value {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-show_format", "-show_streams", "-of", "json"])
        .arg(path)
        .output()
        .expect("ffprobe is installed (scripts/setup)");
    assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("ffprobe prints JSON")
}
