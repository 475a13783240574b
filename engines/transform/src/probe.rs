//! What ffprobe says of a file: read once before the work, to know how long it is, and once after, to see what was made.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

/// Demuxers that read other files than the one they were given, or that make pictures of plain text. A hostile or
/// mistaken input must not choose them.
const REFUSED_FORMATS: [&str; 9] =
    ["hls", "dash", "concat", "image2", "imf", "tty", "sdp", "lavfi", "ffmetadata"];

/// The arguments of ffprobe for `path`; the report is JSON on stdout.
pub(crate) fn arguments(path: &str) -> Vec<String> {
    let fixed =
        "-hide_banner -loglevel level+error -protocol_whitelist file -show_format -show_streams -of json";
    fixed.split(' ').map(str::to_owned).chain([format!("file:{path}")]).collect()
}

/// A media file.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Probe {
    #[serde(default)]
    pub(crate) format: Format,
    #[serde(default)]
    pub(crate) streams: Vec<Stream>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Format {
    format_name: String,
    duration: Option<String>,
    size: Option<String>,
    bit_rate: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Stream {
    codec_type: String,
    codec_name: String,
    duration: Option<String>,
    width: Option<u32>,
    height: Option<u32>,
    pix_fmt: Option<String>,
    avg_frame_rate: Option<String>,
    sample_rate: Option<String>,
    channels: Option<u32>,
    bit_rate: Option<String>,
    disposition: BTreeMap<String, i64>,
    tags: BTreeMap<String, String>,
}

impl Probe {
    /// Reads ffprobe's report.
    pub(crate) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// The demuxer that may not be used, when it is one.
    pub(crate) fn refused_format(&self) -> Option<&str> {
        let name = self.format.format_name.as_str();
        name.split(',').any(|part| REFUSED_FORMATS.contains(&part)).then_some(name)
    }

    /// The first moving picture; cover art is none.
    pub(crate) fn video(&self) -> Option<&Stream> {
        let attached = |stream: &Stream| stream.disposition.get("attached_pic") == Some(&1);
        self.streams.iter().find(|stream| stream.codec_type == "video" && !attached(stream))
    }

    /// The first sound track.
    pub(crate) fn audio(&self) -> Option<&Stream> {
        self.streams.iter().find(|stream| stream.codec_type == "audio")
    }

    /// The length in microseconds of the longest of `streams`, else of the file; `None` when the file does not say.
    pub(crate) fn duration_micros<'s>(&self, streams: impl IntoIterator<Item = &'s Stream>) -> Option<u64> {
        let of_streams: Option<Vec<u64>> = streams.into_iter().map(Stream::duration_micros).collect();
        let of_file = self.format.duration.as_deref().and_then(seconds_to_micros);
        of_streams.and_then(|all| all.into_iter().max()).or(of_file)
    }

    /// What a job's record keeps of an output.
    pub(crate) fn summary(&self, container: &str) -> Value {
        let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u64>().ok());
        json!({
            "container": container,
            "duration_seconds": self.duration_micros([]).map(micros_to_seconds),
            "size_bytes": number(&self.format.size),
            "bit_rate_bps": number(&self.format.bit_rate),
            "streams": self.streams.iter().map(Stream::summary).collect::<Vec<_>>(),
        })
    }
}

impl Stream {
    fn duration_micros(&self) -> Option<u64> {
        let own = self.duration.as_deref().and_then(seconds_to_micros);
        // Matroska keeps it in a tag, as HH:MM:SS.fraction.
        own.or_else(|| clock_to_micros(self.tags.get("DURATION")?))
    }

    fn summary(&self) -> Value {
        let number = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<u64>().ok());
        let mut summary = json!({
            "type": self.codec_type,
            "codec": self.codec_name,
            "duration_seconds": self.duration_micros().map(micros_to_seconds),
            "bit_rate_bps": number(&self.bit_rate),
            "width": self.width,
            "height": self.height,
            "pixel_format": self.pix_fmt,
            "frame_rate": self.avg_frame_rate.as_deref().filter(|rate| *rate != "0/0"),
            "sample_rate_hz": number(&self.sample_rate),
            "channels": self.channels,
        });
        if let Value::Object(fields) = &mut summary {
            fields.retain(|_, value| !value.is_null());
        }
        summary
    }
}

/// `12.345` as 12,345,000; `None` for `N/A` and what is not above zero.
fn seconds_to_micros(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000000".chars()).take(6).collect();
    let micros = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction.parse().ok()?)?;
    (micros > 0).then_some(micros)
}

fn clock_to_micros(text: &str) -> Option<u64> {
    let mut parts = text.splitn(3, ':');
    let hours: u64 = parts.next()?.parse().ok()?;
    let minutes: u64 = parts.next()?.parse().ok()?;
    let seconds = parts.next()?;
    let micros = seconds_to_micros(seconds).unwrap_or(0);
    hours.checked_mul(60)?.checked_add(minutes)?.checked_mul(60_000_000)?.checked_add(micros)
}

/// Seconds with three decimals, which is as exact as a person reads.
fn micros_to_seconds(micros: u64) -> f64 {
    f64::from(u32::try_from(micros / 1000).unwrap_or(u32::MAX)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    // ffprobe 5.1 of an mp4 and a Matroska file, shortened.
    const MP4: &str = r#"{"streams":[
        {"index":0,"codec_name":"mjpeg","codec_type":"video","disposition":{"attached_pic":1}},
        {"index":1,"codec_name":"h264","codec_type":"video","width":320,"height":180,"pix_fmt":"yuv420p",
         "avg_frame_rate":"25/1","duration":"4.000000","bit_rate":"31000","disposition":{"attached_pic":0}},
        {"index":2,"codec_name":"aac","codec_type":"audio","sample_rate":"44100","channels":1,"duration":"4.021"}],
        "format":{"format_name":"mov,mp4,m4a,3gp,3g2,mj2","duration":"9.500000","size":"55456","bit_rate":"110912"}}"#;
    const MKV: &str = r#"{"streams":[{"codec_name":"h264","codec_type":"video","tags":{"DURATION":"00:00:20.000000000"}}],
        "format":{"format_name":"matroska,webm","duration":"N/A"}}"#;

    #[test]
    fn streams_and_lengths_are_read() {
        let probe = Probe::parse(MP4.as_bytes()).unwrap();
        let (video, audio) = (probe.video().unwrap(), probe.audio().unwrap());
        assert_eq!((video.codec_name.as_str(), audio.codec_name.as_str()), ("h264", "aac"));
        assert_eq!(probe.duration_micros([video]), Some(4_000_000));
        assert_eq!(probe.duration_micros([video, audio]), Some(4_021_000));
        assert_eq!(probe.duration_micros([]), Some(9_500_000));
        let summary = probe.summary("mp4");
        assert_eq!(summary["size_bytes"], 55456);
        assert_eq!(summary["streams"][1]["frame_rate"], "25/1");
        assert!(summary["streams"][2].get("width").is_none());
        let mkv = Probe::parse(MKV.as_bytes()).unwrap();
        assert_eq!(mkv.duration_micros(mkv.video()), Some(20_000_000));
        assert_eq!(mkv.duration_micros([]), None);
    }

    #[test]
    fn formats_that_open_other_files_are_refused() {
        let of = |name: &str| {
            let json = format!(r#"{{"format":{{"format_name":"{name}"}}}}"#);
            Probe::parse(json.as_bytes()).unwrap().refused_format().map(str::to_owned)
        };
        for name in ["hls", "concat", "tty", "image2", "dash"] {
            assert_eq!(of(name).as_deref(), Some(name));
        }
        assert_eq!(of("mov,mp4,m4a,3gp,3g2,mj2"), None);
        assert_eq!(of("png_pipe"), None);
    }

    #[test]
    fn hostile_numbers_are_no_lengths() {
        for text in ["N/A", "", "-1.0", ".5", "1e9", "99999999999999999999", "0.000000", "１"] {
            assert_eq!(seconds_to_micros(text), None, "{text}");
        }
        assert_eq!(seconds_to_micros("4.0210001"), Some(4_021_000));
        assert_eq!(clock_to_micros("18446744073709551615:00:00"), None);
        assert!(Probe::parse(b"{}").unwrap().streams.is_empty());
    }
}
