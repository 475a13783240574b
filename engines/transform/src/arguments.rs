//! The ffmpeg command line of a plan: a pure function, with its results written out in the tests.

use crate::plan::{Plan, decimal};
use crate::processing::{Audio, AudioCodec, Container, FrameRate, Video, VideoCodec};

/// The arguments that make `output` of `input`, with `threads` threads for each codec (ffmpeg's choice when 0).
///
/// Paths get the prefix `file:`, so that no name is read as an option or as a protocol, and only that protocol is
/// allowed to whatever the input refers to.
pub(crate) fn arguments(plan: &Plan, input: &str, output: &str, threads: u64) -> Vec<String> {
    let mut line = Line::default();
    line.words("-nostdin -hide_banner -nostats -loglevel level+info -progress pipe:1 -y");
    if threads > 0 {
        line.words(&format!("-filter_threads {threads} -threads {threads}"));
    }
    if let Some(start) = plan.start_micros {
        line.words("-ss").word(decimal(start));
    }
    line.words("-protocol_whitelist file -i").word(format!("file:{input}"));
    if let Some(length) = plan.length_micros {
        line.words("-t").word(decimal(length));
    }
    match &plan.video {
        Some((codec, video)) => line.words("-map 0:V:0").video(*codec, video, plan.container),
        None => line.words("-vn"),
    };
    match &plan.audio {
        Some((codec, audio)) => line.words("-map 0:a:0").audio(*codec, audio),
        None => line.words("-an"),
    };
    if threads > 0 {
        line.words(&format!("-threads {threads}"));
    }
    if plan.fast_start {
        line.words("-movflags +faststart");
    }
    line.words("-f").word(muxer(plan.container)).word(format!("file:{output}"));
    line.0
}

const fn muxer(container: Container) -> &'static str {
    match container {
        Container::Mkv => "matroska",
        Container::Ts => "mpegts",
        Container::Mp4 | Container::Mov | Container::Webm | Container::Mp3 | Container::Wav => {
            container.word()
        }
    }
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn word(&mut self, word: impl Into<String>) -> &mut Self {
        self.0.push(word.into());
        self
    }

    fn words(&mut self, words: &str) -> &mut Self {
        self.0.extend(words.split(' ').map(str::to_owned));
        self
    }

    fn video(&mut self, codec: VideoCodec, video: &Video, container: Container) -> &mut Self {
        let encoder = match codec {
            VideoCodec::H264 => "libx264",
            VideoCodec::Hevc => "libx265",
            VideoCodec::Vp9 => "libvpx-vp9",
            VideoCodec::Av1 => "libsvtav1",
            VideoCodec::Copy => "copy",
        };
        self.words("-c:v").word(encoder);
        if codec == VideoCodec::Copy {
            return self;
        }
        if codec == VideoCodec::Hevc && container.has_fast_start() {
            // The tag by which players of Apple's know it.
            self.words("-tag:v hvc1");
        }
        let filters = filters(video);
        if !filters.is_empty() {
            self.words("-vf").word(filters);
        }
        if let Some(format) = video.pixel_format {
            self.words("-pix_fmt").word(format.word());
        }
        if let Some(preset) = video.preset {
            self.words("-preset").word(preset.word());
        }
        self.quality(codec, video)
    }

    fn quality(&mut self, codec: VideoCodec, video: &Video) -> &mut Self {
        let constant = match (codec, video.crf) {
            (_, Some(crf)) => Some(crf),
            // These two have no usable default of their own.
            (VideoCodec::Vp9, None) => Some(31),
            (VideoCodec::Av1, None) => Some(35),
            (VideoCodec::H264 | VideoCodec::Hevc | VideoCodec::Copy, None) => None,
        };
        match (video.bitrate_kbps, constant) {
            (Some(kbps), _) => self.words(&format!("-b:v {kbps}k")),
            (None, Some(crf)) if codec == VideoCodec::Vp9 => self.words(&format!("-b:v 0 -crf {crf}")),
            (None, Some(crf)) => self.words(&format!("-crf {crf}")),
            (None, None) => self,
        }
    }

    fn audio(&mut self, codec: AudioCodec, audio: &Audio) -> &mut Self {
        let encoder = match codec {
            AudioCodec::Aac => "aac",
            AudioCodec::Mp3 => "libmp3lame",
            AudioCodec::Opus => "libopus",
            AudioCodec::Flac => "flac",
            AudioCodec::PcmS16 => "pcm_s16le",
            AudioCodec::PcmS24 => "pcm_s24le",
            AudioCodec::Copy => "copy",
        };
        self.words("-c:a").word(encoder);
        if let Some(kbps) = audio.bitrate_kbps {
            self.words(&format!("-b:a {kbps}k"));
        }
        // libopus takes no other rate than these; 44.1 kHz is what most inputs have.
        let rate = audio.sample_rate_hz.or((codec == AudioCodec::Opus).then_some(48_000));
        if let Some(rate) = rate {
            self.words(&format!("-ar {rate}"));
        }
        if let Some(channels) = audio.channels {
            self.words(&format!("-ac {channels}"));
        }
        self
    }
}

/// The video filter graph; empty when nothing is to be changed. A missing side keeps the shape of the picture.
fn filters(video: &Video) -> String {
    let side = |side: Option<u32>| side.map_or("-2".to_owned(), |pixels| pixels.to_string());
    let scale = (video.width.is_some() || video.height.is_some())
        .then(|| format!("scale=w={}:h={}", side(video.width), side(video.height)));
    let rate = video.frame_rate.as_ref().map(|rate| match rate {
        FrameRate::Number(rate) => format!("fps={rate}"),
        FrameRate::Fraction(rate) => format!("fps={rate}"),
    });
    // Fewer frames first: fewer pictures to scale.
    [rate, scale].into_iter().flatten().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Probe;
    use crate::processing::Processing;

    const START: &str = "-nostdin -hide_banner -nostats -loglevel level+info -progress pipe:1 -y";

    /// The arguments for a clip of 10 s with both tracks, in two threads, as one line.
    fn line(json: &str) -> String {
        let probe =
            br#"{"streams":[{"codec_type":"video"},{"codec_type":"audio"}],"format":{"duration":"10"}}"#;
        let processing = Processing::parse(json.as_bytes()).unwrap();
        let container = processing.container.unwrap_or(Container::Mp4);
        let plan = Plan::settle(&processing, container, &Probe::parse(probe).unwrap()).unwrap();
        let arguments = arguments(&plan, "/in/a.mov", "/out/a", 2).join(" ");
        let rest = arguments
            .strip_prefix(START)
            .and_then(|rest| rest.strip_prefix(" -filter_threads 2 -threads 2 "));
        let rest = rest.unwrap_or_else(|| panic!("{arguments}"));
        rest.strip_suffix(" file:/out/a").unwrap_or_else(|| panic!("{arguments}")).to_owned()
    }

    #[test]
    fn the_lines_written_out() {
        let table = [
            (
                "{}",
                "-protocol_whitelist file -i file:/in/a.mov -map 0:V:0 -c:v libx264 -pix_fmt yuv420p \
                 -map 0:a:0 -c:a aac -threads 2 -movflags +faststart -f mp4",
            ),
            (
                r#"{"trim":{"start_seconds":1.5,"end_seconds":3},"container":"mkv",
                    "video":{"codec":"hevc","width":1280,"frame_rate":"30000/1001","crf":20,"preset":"slow",
                    "pixel_format":"yuv420p10le"},"audio":{"codec":"flac","sample_rate_hz":48000,"channels":2}}"#,
                "-ss 1.5 -protocol_whitelist file -i file:/in/a.mov -t 1.5 -map 0:V:0 -c:v libx265 \
                 -vf fps=30000/1001,scale=w=1280:h=-2 -pix_fmt yuv420p10le -preset slow -crf 20 \
                 -map 0:a:0 -c:a flac -ar 48000 -ac 2 -threads 2 -f matroska",
            ),
            (
                r#"{"container":"webm","video":{"height":360,"frame_rate":12.5}}"#,
                "-protocol_whitelist file -i file:/in/a.mov -map 0:V:0 -c:v libvpx-vp9 -vf fps=12.5,scale=w=-2:h=360 \
                 -pix_fmt yuv420p -b:v 0 -crf 31 -map 0:a:0 -c:a libopus -ar 48000 -threads 2 -f webm",
            ),
            (
                r#"{"container":"mp3","audio":{"bitrate_kbps":192}}"#,
                "-protocol_whitelist file -i file:/in/a.mov -vn -map 0:a:0 -c:a libmp3lame -b:a 192k -threads 2 -f mp3",
            ),
            (
                r#"{"container":"wav","video":null}"#,
                "-protocol_whitelist file -i file:/in/a.mov -vn -map 0:a:0 -c:a pcm_s16le -threads 2 -f wav",
            ),
            (
                r#"{"container":"ts","video":{"codec":"copy"},"audio":{"codec":"copy"}}"#,
                "-protocol_whitelist file -i file:/in/a.mov -map 0:V:0 -c:v copy -map 0:a:0 -c:a copy -threads 2 -f mpegts",
            ),
            (
                r#"{"audio":null,"fast_start":false,"video":{"codec":"hevc","bitrate_kbps":800},"container":"mov"}"#,
                "-protocol_whitelist file -i file:/in/a.mov -map 0:V:0 -c:v libx265 -tag:v hvc1 -pix_fmt yuv420p \
                 -b:v 800k -an -threads 2 -f mov",
            ),
            (
                r#"{"video":{"codec":"av1"},"audio":null,"container":"mkv"}"#,
                "-protocol_whitelist file -i file:/in/a.mov -map 0:V:0 -c:v libsvtav1 -pix_fmt yuv420p -crf 35 -an \
                 -threads 2 -f matroska",
            ),
        ];
        for (processing, expected) in table {
            assert_eq!(line(processing), expected, "{processing}");
        }
    }

    #[test]
    fn hostile_names_stay_one_argument_each() {
        let plan = Plan {
            container: Container::Mp4,
            fast_start: false,
            start_micros: None,
            length_micros: None,
            video: None,
            audio: Some((AudioCodec::Copy, Audio::default())),
            expected_micros: None,
        };
        let (input, output) = ("/in/-y \"a'\n|b.mov", "/out/http://x?y.mp4");
        let arguments = arguments(&plan, input, output, 0);
        assert_eq!(arguments.iter().filter(|argument| argument.ends_with(input)).count(), 1);
        assert!(arguments.contains(&format!("file:{input}")));
        assert_eq!(arguments.last(), Some(&format!("file:{output}")));
        assert!(!arguments.contains(&"-threads".to_owned()));
    }
}
