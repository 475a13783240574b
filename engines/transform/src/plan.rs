//! The work, settled: `processing` with every default chosen, checked against what the input really is.

use crate::failure::Failure;
use crate::probe::Probe;
use crate::processing::{
    Audio, AudioCodec, Container, InvalidProcessing, PixelFormat, Processing, Track, Trim, Video, VideoCodec,
};

/// How far an end may lie behind the input's, in microseconds: containers round their durations.
const END_TOLERANCE_MICROS: u64 = 100_000;

/// What is to be done, with nothing left open.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) container: Container,
    pub(crate) fast_start: bool,
    /// Where the kept part begins, in microseconds.
    pub(crate) start_micros: Option<u64>,
    /// How long the kept part is, in microseconds; to the end when unset.
    pub(crate) length_micros: Option<u64>,
    /// The video settings and codec; no video when unset.
    pub(crate) video: Option<(VideoCodec, Video)>,
    /// The audio settings and codec; no audio when unset.
    pub(crate) audio: Option<(AudioCodec, Audio)>,
    /// How long the output should become, in microseconds, when the input tells.
    pub(crate) expected_micros: Option<u64>,
}

impl Plan {
    /// Settles what to do with an input that `probe` describes for an output in `container`.
    ///
    /// # Errors
    /// When the settings do not go together, a track that was asked for is not there, or the trim lies outside.
    pub(crate) fn settle(
        processing: &Processing,
        container: Container,
        probe: &Probe,
    ) -> Result<Self, Failure> {
        processing.check_container(container)?;
        let mut plan = Self {
            container,
            fast_start: container.has_fast_start() && processing.fast_start.unwrap_or(true),
            start_micros: None,
            length_micros: None,
            video: settle_video(&processing.video, container, probe)?,
            audio: settle_audio(&processing.audio, container, probe)?,
            expected_micros: None,
        };
        if plan.video.is_none() && plan.audio.is_none() {
            return Err(Failure::input(
                "no_such_stream",
                format!("the input has no track that {} can hold", container.word()),
            ));
        }
        let kept = probe.video().filter(|_| plan.video.is_some());
        let kept = kept.into_iter().chain(probe.audio().filter(|_| plan.audio.is_some()));
        plan.settle_trim(processing.trim.as_ref(), probe.duration_micros(kept))?;
        Ok(plan)
    }

    fn settle_trim(&mut self, trim: Option<&Trim>, input_micros: Option<u64>) -> Result<(), Failure> {
        let Some(trim) = trim else {
            self.expected_micros = input_micros;
            return Ok(());
        };
        let start = trim.start_seconds.map_or(0, micros);
        let end = match (trim.end_seconds, trim.duration_seconds) {
            (Some(end), _) => Some(micros(end)),
            (None, Some(duration)) => Some(start + micros(duration)),
            (None, None) => None,
        };
        let out_of_range = |message: String| Err(Failure::input("trim_out_of_range", message));
        if let Some(end) = end.filter(|end| *end <= start) {
            return out_of_range(format!(
                "the trim ends at {} but begins at {}",
                seconds(end),
                seconds(start)
            ));
        }
        if let Some(length) = input_micros {
            let last = end.unwrap_or(start);
            if start >= length || last > length + END_TOLERANCE_MICROS {
                return out_of_range(format!(
                    "the trim from {} to {} lies beyond the end of the input, which lasts {}",
                    seconds(start),
                    end.map_or("the end".to_owned(), seconds),
                    seconds(length)
                ));
            }
        }
        self.start_micros = (start > 0).then_some(start);
        self.length_micros = end.map(|end| end - start);
        self.expected_micros = self.length_micros.or_else(|| input_micros.map(|length| length - start));
        Ok(())
    }
}

fn settle_video(
    track: &Track<Video>,
    container: Container,
    probe: &Probe,
) -> Result<Option<(VideoCodec, Video)>, Failure> {
    let default = container.video_codecs().first().copied();
    let (Some(default), true) = (default, probe.video().is_some()) else {
        return match track {
            Track::Made(_) => Err(no_such_stream("video")),
            Track::Default | Track::Absent => Ok(None),
        };
    };
    let mut video = match track {
        Track::Absent => return Ok(None),
        Track::Default => Video::default(),
        Track::Made(video) => video.clone(),
    };
    let codec = video.codec.unwrap_or(default);
    video.check_codec(codec)?;
    if codec != VideoCodec::Copy {
        // What every player shows; the input's own format may be one that few do.
        video.pixel_format.get_or_insert(PixelFormat::Yuv420p);
    }
    Ok(Some((codec, video)))
}

fn settle_audio(
    track: &Track<Audio>,
    container: Container,
    probe: &Probe,
) -> Result<Option<(AudioCodec, Audio)>, Failure> {
    let audio = match (track, probe.audio().is_some()) {
        (Track::Absent, _) | (Track::Default, false) => return Ok(None),
        (Track::Made(_), false) => return Err(no_such_stream("audio")),
        (Track::Default, true) => Audio::default(),
        (Track::Made(audio), true) => audio.clone(),
    };
    let codec = audio.codec.or_else(|| container.audio_codecs().first().copied()).unwrap_or(AudioCodec::Aac);
    audio.check_codec(codec)?;
    Ok(Some((codec, audio)))
}

fn no_such_stream(kind: &str) -> Failure {
    Failure::input(
        "no_such_stream",
        format!("processing asks for {kind}, and the input has none; leave `{kind}` out or set it to null"),
    )
}

impl From<InvalidProcessing> for Failure {
    fn from(error: InvalidProcessing) -> Self {
        Self::input("invalid_processing", error.to_string())
    }
}

/// Microseconds of checked seconds (from 0 to 360,000).
fn micros(seconds: f64) -> u64 {
    format!("{:.0}", seconds * 1e6).parse().unwrap_or(0)
}

/// `12.5 s`, without needless zeros.
fn seconds(micros: u64) -> String {
    format!("{} s", decimal(micros))
}

/// Microseconds as decimal seconds without needless zeros: `12.5`.
pub(crate) fn decimal(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Kind;

    fn probe(json: &str) -> Probe {
        Probe::parse(json.as_bytes()).unwrap()
    }

    fn clip() -> Probe {
        probe(
            r#"{"streams":[{"codec_type":"video","codec_name":"h264","duration":"4.0"},
                {"codec_type":"audio","codec_name":"aac","duration":"4.02"}],"format":{"duration":"4.02"}}"#,
        )
    }

    fn settle(json: &str, probe: &Probe) -> Result<Plan, Failure> {
        let processing = Processing::parse(json.as_bytes()).unwrap();
        Plan::settle(&processing, processing.container.unwrap_or(Container::Mp4), probe)
    }

    #[test]
    fn defaults_are_the_containers() {
        let plan = settle("{}", &clip()).unwrap();
        assert_eq!(plan.video.unwrap().0, VideoCodec::H264);
        assert_eq!(plan.audio.unwrap().0, AudioCodec::Aac);
        assert!(plan.fast_start);
        assert_eq!(plan.expected_micros, Some(4_020_000));
        let plan = settle(r#"{"container":"mp3"}"#, &clip()).unwrap();
        assert_eq!((plan.video, plan.audio.unwrap().0), (None, AudioCodec::Mp3));
        let plan = settle(r#"{"audio":null,"container":"webm"}"#, &clip()).unwrap();
        assert_eq!((plan.audio, plan.expected_micros), (None, Some(4_000_000)));
    }

    #[test]
    fn a_track_that_is_asked_for_must_be_there() {
        let silent = probe(r#"{"streams":[{"codec_type":"video"}]}"#);
        let failure = settle(r#"{"audio":{"codec":"aac"}}"#, &silent).unwrap_err();
        assert_eq!((failure.kind, failure.code), (Kind::Input, "no_such_stream"));
        assert_eq!(settle(r#"{"container":"wav"}"#, &silent).unwrap_err().code, "no_such_stream");
        assert_eq!(settle("{}", &silent).unwrap().audio, None);
        let cover = probe(
            r#"{"streams":[{"codec_type":"video","disposition":{"attached_pic":1}},{"codec_type":"audio"}]}"#,
        );
        assert_eq!(settle(r#"{"video":{"width":64}}"#, &cover).unwrap_err().code, "no_such_stream");
        assert_eq!(settle("{}", &cover).unwrap().video, None);
        assert_eq!(settle("{}", &Probe::default()).unwrap_err().code, "no_such_stream");
    }

    #[test]
    fn a_trim_lies_inside_the_input() {
        let plan = settle(r#"{"trim":{"start_seconds":1.5,"end_seconds":3.25}}"#, &clip()).unwrap();
        assert_eq!((plan.start_micros, plan.length_micros), (Some(1_500_000), Some(1_750_000)));
        assert_eq!(plan.expected_micros, Some(1_750_000));
        let plan = settle(r#"{"trim":{"start_seconds":3}}"#, &clip()).unwrap();
        assert_eq!((plan.length_micros, plan.expected_micros), (None, Some(1_020_000)));
        assert!(settle(r#"{"trim":{"end_seconds":4.1}}"#, &clip()).is_ok(), "containers round");
        for trim in [
            r#"{"trim":{"start_seconds":4.02}}"#,
            r#"{"trim":{"start_seconds":1,"duration_seconds":4}}"#,
            r#"{"trim":{"end_seconds":4.2}}"#,
            r#"{"trim":{"start_seconds":2,"end_seconds":2}}"#,
        ] {
            let failure = settle(trim, &clip()).unwrap_err();
            assert_eq!((failure.kind, failure.code), (Kind::Input, "trim_out_of_range"), "{trim}");
        }
        let endless = probe(r#"{"streams":[{"codec_type":"video"}]}"#);
        assert_eq!(settle(r#"{"trim":{"start_seconds":9}}"#, &endless).unwrap().expected_micros, None);
    }

    #[test]
    fn defaults_that_a_file_name_chose_are_checked_too() {
        let processing = Processing::parse(br#"{"video":{"preset":"fast"}}"#).unwrap();
        let failure = Plan::settle(&processing, Container::Webm, &clip()).unwrap_err();
        assert_eq!(failure.code, "invalid_processing");
        assert!(failure.message.contains("/video/preset"), "{}", failure.message);
    }

    #[test]
    fn seconds_have_no_needless_zeros() {
        assert_eq!(decimal(1_500_000), "1.5");
        assert_eq!(decimal(2_000_000), "2");
        assert_eq!(decimal(40_001), "0.040001");
        assert_eq!(micros(0.1 + 0.2), 300_000);
    }
}
