//! One table of documents that the types and the JSON Schema must judge alike.

use serde_json::{Value, json};

use super::*;

fn accepted() -> Vec<Value> {
    vec![
        json!({}),
        json!({"container": "mp4", "video": {"codec": "h264", "width": 1280, "crf": 23, "preset": "fast"}}),
        json!({"video": {"width": 1280.0, "height": 720}, "audio": {"bitrate_kbps": 128}}),
        json!({"video": null, "container": "mp3"}),
        json!({"video": null, "audio": {"codec": "aac"}}),
        json!({"audio": null}),
        json!({"trim": {"start_seconds": 0}}),
        json!({"trim": {"start_seconds": 1.5, "end_seconds": 3.25}}),
        json!({"trim": {"duration_seconds": 0.04}}),
        json!({"video": {"frame_rate": 23.976}}),
        json!({"video": {"frame_rate": "30000/1001"}}),
        json!({"video": {"codec": "copy"}, "audio": {"codec": "copy"}, "container": "mkv"}),
        json!({"video": {"codec": "vp9", "crf": 63}, "container": "webm"}),
        json!({"video": {"codec": "av1", "pixel_format": "yuv420p10le"}}),
        json!({"container": "wav", "audio": {"codec": "pcm_s24", "sample_rate_hz": 96000, "channels": 8}}),
        json!({"container": "mov", "audio": {"codec": "pcm_s16"}, "fast_start": true}),
        json!({"container": "mkv", "fast_start": false}),
        json!({"container": "webm", "audio": {"codec": "opus", "sample_rate_hz": 48000}}),
        json!({"container": "ts", "video": null}),
    ]
}

fn refused() -> Vec<Value> {
    vec![
        json!(null),
        json!([]),
        json!("mp4"),
        json!({"contaner": "mp4"}),
        json!({"container": "avi"}),
        json!({"container": null}),
        json!({"fast_start": "yes"}),
        json!({"fast_start": null}),
        json!({"trim": {}}),
        json!({"trim": null}),
        json!({"trim": []}),
        json!({"video": ["h264"]}),
        json!({"trim": {"start_seconds": -1}}),
        json!({"trim": {"start_seconds": "1"}}),
        json!({"trim": {"start_seconds": 1, "stop": 2}}),
        json!({"trim": {"end_seconds": 0}}),
        json!({"trim": {"end_seconds": 1, "duration_seconds": 1}}),
        json!({"trim": {"duration_seconds": 1e9}}),
        json!({"video": {"width": 1281}}),
        json!({"video": {"width": -2}}),
        json!({"video": {"width": 100.5}}),
        json!({"video": {"width": 1e300}}),
        json!({"video": {"width": 8194}}),
        json!({"video": {"width": null}}),
        json!({"video": {"codec": "h263"}}),
        json!({"video": {"codec": "copy", "width": 640}}),
        json!({"video": {"codec": "h264", "crf": 52}}),
        json!({"video": {"crf": 20, "bitrate_kbps": 1000}}),
        json!({"video": {"codec": "vp9", "preset": "fast"}}),
        json!({"video": {"codec": "av1", "pixel_format": "yuv444p"}}),
        json!({"video": {"frame_rate": 0}}),
        json!({"video": {"frame_rate": "25"}}),
        json!({"video": {"frame_rate": "25/0"}}),
        json!({"video": {"frame_rate": "25/1:eval=x"}}),
        json!({"video": {"preset": "fast; rm"}}),
        json!({"video": {"pixel_format": "rgb24"}}),
        json!({"video": true}),
        json!({"video": null, "audio": null}),
        json!({"audio": {"codec": "copy", "channels": 2}}),
        json!({"audio": {"codec": "pcm_s16", "bitrate_kbps": 128}}),
        json!({"audio": {"codec": "mp3", "channels": 6}}),
        json!({"audio": {"codec": "mp3", "sample_rate_hz": 96000}}),
        json!({"audio": {"codec": "opus", "sample_rate_hz": 44100}}),
        json!({"audio": {"sample_rate_hz": 44000}}),
        json!({"audio": {"channels": 0}}),
        json!({"audio": {"language": "de"}}),
        json!({"container": "webm", "video": {"codec": "h264"}}),
        json!({"container": "webm", "audio": {"codec": "aac"}}),
        json!({"container": "mp4", "audio": {"codec": "flac"}}),
        json!({"container": "mov", "video": {"codec": "vp9"}}),
        json!({"container": "ts", "video": {"codec": "av1"}}),
        json!({"container": "mp3", "video": {"codec": "copy"}}),
        json!({"container": "mp3", "audio": null}),
        json!({"container": "wav", "audio": {"codec": "mp3"}}),
        json!({"container": "mkv", "fast_start": true}),
    ]
}

fn parse(document: &Value) -> Result<Processing, InvalidProcessing> {
    Processing::parse(&serde_json::to_vec(document).unwrap())
}

#[test]
fn types_and_schema_judge_alike() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema).expect("the schema is one");
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    for document in accepted() {
        assert!(validator.is_valid(&document), "the schema refuses {document}");
        assert!(parse(&document).is_ok(), "the types refuse {document}: {:?}", parse(&document));
    }
    for document in refused() {
        assert!(!validator.is_valid(&document), "the schema accepts {document}");
        assert!(parse(&document).is_err(), "the types accept {document}");
    }
}

#[test]
fn a_refusal_names_the_field_and_what_would_be_right() {
    let text = |document: Value| parse(&document).unwrap_err().to_string();
    assert_eq!(
        text(json!({"video": {"width": 7}})),
        "processing/video/width: must be an even number from 16 to 8192"
    );
    assert!(text(json!({"vidio": {}})).starts_with("processing: unknown field `vidio`, expected one of"));
    assert_eq!(
        text(json!({"container": "webm", "video": {"codec": "h264"}})),
        "processing/video/codec: webm holds vp9, av1 or copy"
    );
    assert!(Processing::parse(b"{").is_err());
    assert!(Processing::parse(b"").is_err());
}

#[test]
fn the_published_version_agrees_with_the_engine() {
    let version: Value = serde_json::from_str(include_str!("../../engine-version.json")).unwrap();
    assert_eq!(version["version"], crate::service::VERSION);
    assert_eq!(version["processing_schema"], "processing.schema.json");
}
