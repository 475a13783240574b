//! The built engine on a socket, with real ffmpeg: what a worker sees of it.

mod engine;

use std::time::{Duration, Instant};

use engine::{End, Engine, Folder};
use telecine_proto::engine::v1::{DescribeRequest, FailureKind};

/// Leaves the test, which is counted as skipped, when ffmpeg or ffprobe is missing.
macro_rules! need_ffmpeg {
    () => {
        if !["ffmpeg", "ffprobe"].into_iter().all(telecine_test_support::has_program) {
            return;
        }
    };
}

const SMALL: &str = r#"{"container":"mp4","video":{"codec":"h264","width":160,"preset":"ultrafast"}}"#;

#[tokio::test]
async fn a_clip_is_made_with_progress_that_never_runs_backwards() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 4);
    let out = folder.path("out.mp4");
    let engine = Engine::start(&folder).await;
    let run = engine.run(SMALL, &clip, &out).await;

    let End::Done(summary) = &run.end else { panic!("{run:?}") };
    assert_eq!(summary["container"], "mp4");
    assert_eq!(summary["streams"][0]["width"], 160);
    assert_eq!(summary["streams"][0]["codec"], "h264");
    assert_eq!(summary["streams"][1]["codec"], "aac");
    assert!((3.9..4.2).contains(&summary["duration_seconds"].as_f64().unwrap()), "{summary}");
    assert_eq!(summary["size_bytes"], std::fs::metadata(&out).unwrap().len());

    let ratios: Vec<u32> = run.progress.iter().filter_map(|progress| progress.ratio_ppm).collect();
    assert!(ratios.is_sorted() && ratios.last().is_some_and(|ratio| *ratio > 950_000), "{ratios:?}");
    let phases: Vec<&str> = run.progress.iter().map(|progress| progress.phase.as_str()).collect();
    assert!(phases.contains(&"probing") && phases.contains(&"encoding") && phases.contains(&"verifying"));
    assert!(run.log.iter().any(|line| line.starts_with("ffmpeg -nostdin")), "{:?}", run.log);
    assert!(run.exit.success(), "{:?}", run.exit);
    assert!(!folder.path("engine.sock.tmp").exists());
    let head = std::fs::read(&out).unwrap();
    let position = |atom: &[u8]| head.windows(4).position(|window| window == atom).unwrap();
    assert!(position(b"moov") < position(b"mdat"), "fast start");
}

#[tokio::test]
async fn the_image_works_in_the_sandbox() {
    need_ffmpeg!();
    let made_by = "scripts/build-transform-image makes one";
    let Some(image) = telecine_test_support::wanted("TELECINE_TRANSFORM_IMAGE", made_by) else { return };
    let folder = Folder::new();
    folder.clip("clip.mp4", 2);
    let engine = Engine::start_in_container(&folder, &image).await;
    let run = engine.run(SMALL, "/telecine/clip.mp4".as_ref(), "/telecine/out.mp4".as_ref()).await;
    let End::Done(summary) = &run.end else { panic!("{run:?}") };
    assert_eq!(summary["streams"][0]["width"], 160);
    assert!(run.exit.success(), "{:?}", run.exit);
}

#[tokio::test]
async fn trimmed_and_into_every_container() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 4);
    for (processing, name, codecs) in [
        (
            r#"{"trim":{"start_seconds":1,"end_seconds":2.5},"video":{"width":160,"preset":"ultrafast"}}"#,
            "a.mov",
            vec!["h264", "aac"],
        ),
        (
            r#"{"trim":{"start_seconds":2.5},"video":{"codec":"hevc","preset":"ultrafast","height":96}}"#,
            "b.mkv",
            vec!["hevc", "aac"],
        ),
        (
            r#"{"trim":{"duration_seconds":1.5},"video":{"width":96,"frame_rate":5},"audio":{"channels":2}}"#,
            "c.webm",
            vec!["vp9", "opus"],
        ),
        (
            r#"{"trim":{"end_seconds":1.5},"video":{"codec":"copy"},"audio":{"codec":"copy"}}"#,
            "d.ts",
            vec!["h264", "aac"],
        ),
        (r#"{"trim":{"duration_seconds":1.5}}"#, "e.mp3", vec!["mp3"]),
        (
            r#"{"trim":{"duration_seconds":1.5},"audio":{"codec":"pcm_s24","sample_rate_hz":48000}}"#,
            "f.wav",
            vec!["pcm_s24le"],
        ),
        (
            r#"{"trim":{"duration_seconds":1.5},"video":{"codec":"av1","width":160,"frame_rate":"5/1"},"audio":null}"#,
            "g.mp4",
            vec!["av1"],
        ),
    ] {
        let engine = Engine::start(&folder).await;
        let run = engine.run(processing, &clip, &folder.path(name)).await;
        let End::Done(summary) = &run.end else { panic!("{name}: {run:?}") };
        let made: Vec<&str> =
            summary["streams"].as_array().unwrap().iter().map(|s| s["codec"].as_str().unwrap()).collect();
        assert_eq!(made, codecs, "{name}");
        let lasts = summary["duration_seconds"].as_f64().unwrap();
        assert!((1.3..1.8).contains(&lasts), "{name} lasts {lasts}");
    }
}

#[tokio::test]
async fn inputs_that_are_no_media_are_the_inputs_fault() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = std::fs::read(folder.clip("clip.mp4", 4)).unwrap();
    let text = "no media, only words\n".repeat(100);
    let playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nclip.mp4\n";
    for (name, bytes, reason) in [
        ("truncated.mp4", &clip[..clip.len() / 2], "moov atom not found"),
        ("text.txt", text.as_bytes(), "tty"),
        ("text.mov", text.as_bytes(), "moov atom not found"),
        ("empty.mov", &[], "it is empty"),
        ("playlist.mov", playlist.as_bytes(), "hls"),
        ("list.mov", b"ffconcat version 1.0\nfile clip.mp4\n", "concat"),
    ] {
        let engine = Engine::start(&folder).await;
        let run = engine.run("{}", &folder.write(name, bytes), &folder.path("out.mp4")).await;
        let (kind, code, message) = run.failure();
        assert_eq!((kind, code), (FailureKind::Input, "unreadable_input"), "{name}: {message}");
        assert!(message.contains(reason), "{name}: {message}");
        assert!(run.exit.success());
    }
}

#[tokio::test]
async fn an_input_that_breaks_off_half_way_is_not_taken_for_whole() {
    need_ffmpeg!();
    let folder = Folder::new();
    let whole = std::fs::read(folder.fast_start_clip("clip.mp4", 8)).unwrap();
    let half = folder.write("half.mp4", &whole[..whole.len() * 6 / 10]);
    let run = Engine::start(&folder).await.run(SMALL, &half, &folder.path("out.mp4")).await;
    let (kind, code, message) = run.failure();
    assert_eq!((kind, code), (FailureKind::Input, "unreadable_input"), "{message}");
    assert!(message.contains("breaks off"), "{message}");
}

#[tokio::test]
async fn requests_that_cannot_be_done_are_refused_with_a_reason() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 1);
    let silent = folder.silent_clip("silent.mp4", 1);
    for (processing, input, output, code, words) in [
        (r#"{"video":{"codec":"h265"}}"#, &clip, "o.mp4", "invalid_processing", "unknown variant `h265`"),
        ("", &clip, "o.mp4", "invalid_processing", "processing"),
        ("{}", &clip, "o", "invalid_processing", "processing/container"),
        (r#"{"trim":{"start_seconds":7}}"#, &clip, "o.mp4", "trim_out_of_range", "lasts 1"),
        (r#"{"audio":{"codec":"aac"}}"#, &silent, "o.mp4", "no_such_stream", "audio"),
        (r#"{"container":"webm","video":{"codec":"copy"}}"#, &clip, "o.webm", "incompatible_stream", "WebM"),
    ] {
        let run = Engine::start(&folder).await.run(processing, input, &folder.path(output)).await;
        let (kind, got, message) = run.failure();
        assert_eq!((kind, got), (FailureKind::Input, code), "{processing}: {message}");
        assert!(message.contains(words), "{processing}: {message}");
    }
}

#[tokio::test]
async fn an_output_that_cannot_be_written_is_the_engines_fault() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 1);
    let run = Engine::start(&folder).await.run(SMALL, &clip, &folder.path("missing/out.mp4")).await;
    assert_eq!(run.failure().0, FailureKind::Engine, "{run:?}");
    // A device on which every write fails with ENOSPC.
    let run = Engine::start(&folder).await.run(r#"{"container":"ts"}"#, &clip, "/dev/full".as_ref()).await;
    let (kind, code, message) = run.failure();
    assert_eq!((kind, code), (FailureKind::Engine, "output_write_error"), "{message}");
    assert!(message.contains("No space left on device"), "{message}");
}

#[tokio::test]
async fn hostile_names_are_only_names() {
    need_ffmpeg!();
    let folder = Folder::new();
    let bytes = std::fs::read(folder.clip("clip.mp4", 1)).unwrap();
    for name in
        ["-y.mp4", "a 'b' \"c\".mp4", "new\nline.mp4", "http:--x|y.mp4", "%d.mp4", "ü🎬.mp4", "[error].mp4"]
    {
        let input = folder.write(name, &bytes);
        let run = Engine::start(&folder).await.run(SMALL, &input, &folder.path(&format!("out-{name}"))).await;
        assert!(matches!(run.end, End::Done(_)), "{name:?}: {run:?}");
        assert!(folder.path(&format!("out-{name}")).exists());
    }
}

#[tokio::test]
async fn cancel_ends_within_a_moment_and_leaves_no_ffmpeg() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 30);
    let slow = r#"{"video":{"codec":"hevc","preset":"veryslow","width":1920}}"#;
    for how in ["cancel", "sigterm"] {
        let engine = Engine::start(&folder).await;
        let mut began = None;
        let run = engine
            .run_until(slow, &clip, &folder.path("out.mp4"), async |engine| {
                began = Some(Instant::now());
                if how == "cancel" { engine.cancel().await } else { engine.terminate() }
            })
            .await;
        let took = began.unwrap().elapsed();
        assert_eq!(run.failure().0, FailureKind::Canceled, "{how}: {run:?}");
        assert_eq!(run.failure().1, "canceled");
        assert!(took < Duration::from_secs(4), "{how} took {took:?}");
        assert!(run.exit.success(), "{:?}", run.exit);
        assert_eq!(engine::processes_naming(&folder), 0, "{how} left a process");
    }
}

#[tokio::test]
async fn a_killed_engine_takes_its_ffmpeg_along() {
    need_ffmpeg!();
    let folder = Folder::new();
    let clip = folder.clip("clip.mp4", 30);
    let slow = r#"{"video":{"codec":"hevc","preset":"veryslow","width":1920}}"#;
    let run = Engine::start(&folder)
        .await
        .run_until(slow, &clip, &folder.path("out.mp4"), async |engine| engine.kill().await)
        .await;
    assert!(matches!(run.end, End::Broken), "a stream without an end means that the engine died: {run:?}");
    let deadline = Instant::now() + Duration::from_secs(5);
    while engine::processes_naming(&folder) > 0 {
        assert!(Instant::now() < deadline, "ffmpeg lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn it_says_what_it_is_and_runs_once() {
    need_ffmpeg!();
    let folder = Folder::new();
    let engine = Engine::start(&folder).await;
    assert!(engine.is_healthy("telecine.engine.v1.Engine").await);
    let described = engine.client.clone().describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((described.name.as_str(), described.version.as_str()), ("telecine-transform", "1.0.0"));
    let schema: serde_json::Value = serde_json::from_slice(&described.processing_schema_json).unwrap();
    assert_eq!(schema["type"], "object");
    // A second call while the first runs.
    let clip = folder.clip("clip.mp4", 30);
    let slow = r#"{"video":{"codec":"hevc","preset":"veryslow","width":1920}}"#;
    let run = engine
        .run_until(slow, &clip, &folder.path("out.mp4"), async |engine| {
            let second = engine.client.clone().run(engine::request("{}", &clip, &clip)).await;
            assert_eq!(second.unwrap_err().code(), tonic::Code::FailedPrecondition);
            engine.cancel().await;
        })
        .await;
    assert_eq!(run.failure().0, FailureKind::Canceled);
}

#[tokio::test]
async fn without_work_sigterm_ends_it_at_once() {
    need_ffmpeg!();
    let folder = Folder::new();
    let mut engine = Engine::start(&folder).await;
    engine.terminate();
    let exit = tokio::time::timeout(Duration::from_secs(5), engine.process.wait()).await.unwrap().unwrap();
    assert!(exit.success(), "{exit:?}");
}
