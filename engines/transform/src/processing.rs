//! The `processing` part of a composition: its shape, and the rules that need nothing but itself.
//!
//! `processing.schema.json` says the same for people and for the platform; `processing/tests.rs` holds one table of
//! documents that both must judge alike. What depends on the input or on the output's name is `plan`'s matter.

use serde::{Deserialize, Deserializer};
use serde_json::{Number, Value};

/// The JSON Schema (2020-12) of `processing`.
pub(crate) const SCHEMA: &str = include_str!("../processing.schema.json");

/// A track of the output: made in the container's default way, left out, or made as told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Track<T> {
    /// Nothing was said.
    #[default]
    Default,
    /// `null`.
    Absent,
    /// What was said.
    Made(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Track<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Absent, Self::Made))
    }
}

/// What is to be made.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Processing {
    #[serde(default, deserialize_with = "present")]
    pub(crate) container: Option<Container>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) fast_start: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) trim: Option<Trim>,
    #[serde(default)]
    pub(crate) video: Track<Video>,
    #[serde(default)]
    pub(crate) audio: Track<Audio>,
}

/// The part of the input to keep, in seconds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trim {
    #[serde(default, deserialize_with = "present")]
    pub(crate) start_seconds: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) end_seconds: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) duration_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Video {
    #[serde(default, deserialize_with = "present")]
    pub(crate) codec: Option<VideoCodec>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) width: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) height: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) frame_rate: Option<FrameRate>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) bitrate_kbps: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) crf: Option<u32>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) preset: Option<Preset>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) pixel_format: Option<PixelFormat>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Audio {
    #[serde(default, deserialize_with = "present")]
    pub(crate) codec: Option<AudioCodec>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) bitrate_kbps: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) sample_rate_hz: Option<u32>,
    #[serde(default, deserialize_with = "whole")]
    pub(crate) channels: Option<u32>,
}

/// Frames per second.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub(crate) enum FrameRate {
    Number(f64),
    Fraction(String),
}

/// Declares an enum whose variants are words in the document.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
        pub(crate) enum $name { $(#[serde(rename = $word)] $variant),+ }
        impl $name {
            /// The word in the document.
            pub(crate) const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words!(/// The file format of the output; the word is also the usual extension.
    Container { Mp4 = "mp4", Mov = "mov", Mkv = "mkv", Webm = "webm", Ts = "ts", Mp3 = "mp3", Wav = "wav" });
words!(VideoCodec { H264 = "h264", Hevc = "hevc", Vp9 = "vp9", Av1 = "av1", Copy = "copy" });
words!(AudioCodec {
    Aac = "aac", Mp3 = "mp3", Opus = "opus", Flac = "flac", PcmS16 = "pcm_s16", PcmS24 = "pcm_s24", Copy = "copy",
});
words!(Preset {
    Ultrafast = "ultrafast", Superfast = "superfast", Veryfast = "veryfast", Faster = "faster", Fast = "fast",
    Medium = "medium", Slow = "slow", Slower = "slower", Veryslow = "veryslow",
});
words!(PixelFormat {
    Yuv420p = "yuv420p", Yuv422p = "yuv422p", Yuv444p = "yuv444p", Yuv420p10le = "yuv420p10le",
    Yuv422p10le = "yuv422p10le",
});

/// `processing` is not what this engine takes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidProcessing {
    /// Not JSON, an unknown field, or a value of the wrong kind.
    #[error("processing: {0}")]
    Shape(#[from] serde_json::Error),
    /// A value that is out of range or does not go with another.
    #[error("processing{pointer}: {reason}")]
    Value {
        /// JSON pointer of the field.
        pointer: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
}

/// A refusal of the field at `pointer`.
pub(crate) fn refuse(pointer: &'static str, reason: impl Into<String>) -> InvalidProcessing {
    InvalidProcessing::Value { pointer, reason: reason.into() }
}

impl Processing {
    /// Reads and checks the document.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, InvalidProcessing> {
        let document: Value = serde_json::from_slice(json)?;
        // serde would take a list for a struct, field by field.
        let is_list = |value: &Value| value.is_array();
        if is_list(&document) || document.as_object().is_some_and(|fields| fields.values().any(is_list)) {
            return Err(refuse("", "a list stands where an object is wanted"));
        }
        let processing: Self = serde_json::from_value(document)?;
        processing.trim.as_ref().map_or(Ok(()), Trim::check)?;
        if let Track::Made(video) = &processing.video {
            video.check()?;
        }
        if let Track::Made(audio) = &processing.audio {
            audio.check()?;
        }
        if processing.video == Track::Absent && processing.audio == Track::Absent {
            return Err(refuse("", "video and audio are both null: nothing would be left"));
        }
        processing.container.map_or(Ok(()), |container| processing.check_container(container))?;
        Ok(processing)
    }

    /// Whether tracks and options go into `container`.
    pub(crate) fn check_container(&self, container: Container) -> Result<(), InvalidProcessing> {
        let word = container.word();
        let list = |words: Vec<&str>| words.join(", ");
        if let Track::Made(video) = &self.video {
            let codecs = container.video_codecs();
            if codecs.is_empty() {
                return Err(refuse("/video", format!("{word} holds no video; leave `video` out")));
            }
            if video.codec.is_some_and(|codec| codec != VideoCodec::Copy && !codecs.contains(&codec)) {
                let known = list(codecs.iter().map(|codec| codec.word()).collect());
                return Err(refuse("/video/codec", format!("{word} holds {known} or copy")));
            }
        }
        if container.video_codecs().is_empty() && self.audio == Track::Absent {
            return Err(refuse("/audio", format!("{word} holds audio only, so audio cannot be null")));
        }
        if let Track::Made(Audio { codec: Some(codec), .. }) = &self.audio
            && *codec != AudioCodec::Copy
            && !container.audio_codecs().contains(codec)
        {
            let known = list(container.audio_codecs().iter().map(|codec| codec.word()).collect());
            return Err(refuse("/audio/codec", format!("{word} holds {known} or copy")));
        }
        if self.fast_start == Some(true) && !container.has_fast_start() {
            return Err(refuse("/fast_start", format!("{word} has no fast start; only mp4 and mov have")));
        }
        Ok(())
    }
}

impl Container {
    /// By the extension of a file name, in any case.
    pub(crate) fn of_file_name(name: &str) -> Option<Self> {
        let extension = name.rsplit_once('.')?.1.to_ascii_lowercase();
        let all = [Self::Mp4, Self::Mov, Self::Mkv, Self::Webm, Self::Ts, Self::Mp3, Self::Wav];
        all.into_iter().find(|container| container.word() == extension)
    }

    /// What it may hold besides a copied track, the default first.
    pub(crate) const fn video_codecs(self) -> &'static [VideoCodec] {
        use VideoCodec::{Av1, H264, Hevc, Vp9};
        match self {
            Self::Mp4 | Self::Mkv => &[H264, Hevc, Vp9, Av1],
            Self::Mov | Self::Ts => &[H264, Hevc],
            Self::Webm => &[Vp9, Av1],
            Self::Mp3 | Self::Wav => &[],
        }
    }

    /// What it may hold besides a copied track, the default first.
    pub(crate) const fn audio_codecs(self) -> &'static [AudioCodec] {
        use AudioCodec::{Aac, Flac, Mp3, Opus, PcmS16, PcmS24};
        match self {
            Self::Mp4 => &[Aac, Mp3, Opus],
            Self::Mov => &[Aac, Mp3, PcmS16, PcmS24],
            Self::Mkv => &[Aac, Mp3, Opus, Flac, PcmS16, PcmS24],
            Self::Webm => &[Opus],
            Self::Ts => &[Aac, Mp3],
            Self::Mp3 => &[Mp3],
            Self::Wav => &[PcmS16, PcmS24],
        }
    }

    /// Whether its index can be moved to the front.
    pub(crate) const fn has_fast_start(self) -> bool {
        matches!(self, Self::Mp4 | Self::Mov)
    }
}

impl Trim {
    fn check(&self) -> Result<(), InvalidProcessing> {
        const LONGEST: f64 = 360_000.0;
        let (start, end, duration) = (self.start_seconds, self.end_seconds, self.duration_seconds);
        if start.is_none() && end.is_none() && duration.is_none() {
            return Err(refuse("/trim", "says nothing; give start_seconds, end_seconds or duration_seconds"));
        }
        if end.is_some() && duration.is_some() {
            return Err(refuse("/trim", "give end_seconds or duration_seconds, not both"));
        }
        if start.is_some_and(|start| !(0.0..=LONGEST).contains(&start)) {
            return Err(refuse("/trim/start_seconds", "must be from 0 to 360000"));
        }
        let out_of_range = |value: Option<f64>| value.is_some_and(|v| v <= 0.0 || v > LONGEST || v.is_nan());
        match (out_of_range(end), out_of_range(duration)) {
            (true, _) => Err(refuse("/trim/end_seconds", "must be above 0 and at most 360000")),
            (_, true) => Err(refuse("/trim/duration_seconds", "must be above 0 and at most 360000")),
            _ => Ok(()),
        }
    }
}

impl Video {
    fn check(&self) -> Result<(), InvalidProcessing> {
        for (pointer, size) in [("/video/width", self.width), ("/video/height", self.height)] {
            if size.is_some_and(|size| !(16..=8192).contains(&size) || size % 2 != 0) {
                return Err(refuse(pointer, "must be an even number from 16 to 8192"));
            }
        }
        in_range("/video/bitrate_kbps", self.bitrate_kbps, 16, 400_000)?;
        in_range("/video/crf", self.crf, 0, 63)?;
        self.frame_rate.as_ref().map_or(Ok(()), FrameRate::check)?;
        if self.bitrate_kbps.is_some() && self.crf.is_some() {
            return Err(refuse("/video", "give bitrate_kbps or crf, not both"));
        }
        self.codec.map_or(Ok(()), |codec| self.check_codec(codec))
    }

    /// Whether the settings go with `codec`.
    pub(crate) fn check_codec(&self, codec: VideoCodec) -> Result<(), InvalidProcessing> {
        let only_codec = Self { codec: self.codec, ..Self::default() };
        match codec {
            VideoCodec::Copy if *self != only_codec => {
                Err(refuse("/video", "a copied track takes no other settings"))
            }
            VideoCodec::H264 | VideoCodec::Hevc => in_range("/video/crf", self.crf, 0, 51),
            VideoCodec::Vp9 | VideoCodec::Av1 if self.preset.is_some() => {
                Err(refuse("/video/preset", "only h264 and hevc have presets"))
            }
            VideoCodec::Av1
                if !matches!(
                    self.pixel_format,
                    None | Some(PixelFormat::Yuv420p | PixelFormat::Yuv420p10le)
                ) =>
            {
                Err(refuse("/video/pixel_format", "av1 is made in yuv420p or yuv420p10le"))
            }
            VideoCodec::Copy | VideoCodec::Vp9 | VideoCodec::Av1 => Ok(()),
        }
    }
}

impl FrameRate {
    fn check(&self) -> Result<(), InvalidProcessing> {
        let part = |text: &str| {
            (1..=7).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_digit())
                && !text.starts_with('0')
        };
        let good = match self {
            Self::Number(rate) => (1.0..=240.0).contains(rate),
            Self::Fraction(text) => text.split_once('/').is_some_and(|(n, d)| part(n) && part(d)),
        };
        if good {
            return Ok(());
        }
        Err(refuse(
            "/video/frame_rate",
            "must be a number from 1 to 240 or a fraction such as \"30000/1001\"",
        ))
    }
}

impl Audio {
    const RATES: [u32; 11] = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000];

    fn check(&self) -> Result<(), InvalidProcessing> {
        in_range("/audio/bitrate_kbps", self.bitrate_kbps, 8, 512)?;
        in_range("/audio/channels", self.channels, 1, 8)?;
        self.check_rate(&Self::RATES)?;
        self.codec.map_or(Ok(()), |codec| self.check_codec(codec))
    }

    fn check_rate(&self, rates: &[u32]) -> Result<(), InvalidProcessing> {
        if self.sample_rate_hz.is_none_or(|rate| rates.contains(&rate)) {
            return Ok(());
        }
        Err(refuse("/audio/sample_rate_hz", format!("must be one of {rates:?}")))
    }

    /// Whether the settings go with `codec`.
    pub(crate) fn check_codec(&self, codec: AudioCodec) -> Result<(), InvalidProcessing> {
        let only_codec = Self { codec: self.codec, ..Self::default() };
        match codec {
            AudioCodec::Copy if *self != only_codec => {
                Err(refuse("/audio", "a copied track takes no other settings"))
            }
            AudioCodec::Flac | AudioCodec::PcmS16 | AudioCodec::PcmS24 if self.bitrate_kbps.is_some() => {
                Err(refuse("/audio/bitrate_kbps", format!("{} has no bit rate to choose", codec.word())))
            }
            AudioCodec::Mp3 => {
                in_range("/audio/channels", self.channels, 1, 2)?;
                in_range("/audio/bitrate_kbps", self.bitrate_kbps, 8, 320)?;
                self.check_rate(&Self::RATES[..9])
            }
            AudioCodec::Opus => self.check_rate(&[8000, 12000, 16000, 24000, 48000]),
            AudioCodec::Copy
            | AudioCodec::Aac
            | AudioCodec::Flac
            | AudioCodec::PcmS16
            | AudioCodec::PcmS24 => Ok(()),
        }
    }
}

fn in_range(
    pointer: &'static str,
    value: Option<u32>,
    least: u32,
    most: u32,
) -> Result<(), InvalidProcessing> {
    if value.is_none_or(|value| (least..=most).contains(&value)) {
        return Ok(());
    }
    Err(refuse(pointer, format!("must be from {least} to {most}")))
}

/// A field that may be left out but not be null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A whole number; `25.0` is one, as it is in JSON Schema.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let number = Number::deserialize(deserializer)?;
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..1e9).contains(float))?;
        format!("{float:.0}").parse().ok()
    });
    let narrowed = whole.and_then(|whole| u32::try_from(whole).ok());
    narrowed
        .map(Some)
        .ok_or_else(|| serde::de::Error::custom(format!("{number} is not a whole number in range")))
}

#[cfg(test)]
mod tests;
