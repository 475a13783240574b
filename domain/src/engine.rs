//! Engine versions: which container (or command) does a service's work, and whether it may still be used.

use std::fmt;
use std::str::FromStr;

use semver::Version;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::id::ServiceName;
use crate::instance::RuntimeKind;
use crate::resources::Resources;
use crate::time::Timestamp;

/// An image named by its content: `host[:port]/repository@sha256:…`; a tag is refused, since it may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ImageReference(String);

/// A text does not name an image by digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` does not name an image by digest (host/repository@sha256: and 64 hexadecimal digits, no tag)")]
pub struct InvalidImage(String);

impl ImageReference {
    /// The whole reference, as Docker takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `sha256:…`
    pub fn digest(&self) -> &str {
        self.0.rsplit('@').next().unwrap_or_default()
    }
}

impl FromStr for ImageReference {
    type Err = InvalidImage;

    fn from_str(text: &str) -> Result<Self, InvalidImage> {
        let invalid = || InvalidImage(text.chars().take(120).collect());
        let (repository, digest) = text.split_once("@sha256:").ok_or_else(invalid)?;
        let hexadecimal =
            digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"./_-:".contains(&b);
        let path = repository.rsplit('/').next().unwrap_or_default();
        let named = !path.is_empty()
            && !path.contains(':')
            && repository.len() <= 255
            && repository.bytes().all(allowed);
        if hexadecimal && named { Ok(Self(text.to_owned())) } else { Err(invalid()) }
    }
}

impl<'de> Deserialize<'de> for ImageReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the engine is started and spoken to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Launch {
    /// A container that serves `telecine.engine.v1.Engine` on `/telecine/run/engine.sock`.
    Grpc {
        /// The image.
        image: ImageReference,
    },
    /// A container that runs a program with arguments; exit code and stdout are all it says. In each argument
    /// `{input.NAME}` and `{output.NAME}` become paths.
    Plain {
        /// The image.
        image: ImageReference,
        /// Arguments to the image's entry point, before those of the composition's `/processing/arguments`.
        #[serde(default)]
        arguments: Vec<String>,
    },
    /// A program on the instance itself, without a sandbox; only what an operator published so may run so.
    Command {
        /// Absolute path of the program.
        program: String,
        /// Its arguments, with the same placeholders as `Plain`.
        #[serde(default)]
        arguments: Vec<String>,
    },
}

impl Launch {
    /// What an instance must offer to run it.
    pub const fn runtime(&self) -> RuntimeKind {
        match self {
            Self::Grpc { .. } | Self::Plain { .. } => RuntimeKind::Docker,
            Self::Command { .. } => RuntimeKind::Process,
        }
    }

    /// The image, for what runs in a container.
    pub fn image(&self) -> Option<&ImageReference> {
        match self {
            Self::Grpc { image } | Self::Plain { image, .. } => Some(image),
            Self::Command { .. } => None,
        }
    }
}

/// Where an engine version is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Published, not yet recommended.
    Candidate,
    /// Recommended.
    Stable,
    /// Works, to be left.
    Deprecated,
    /// Refused.
    Withdrawn,
}

/// One published version of a service's engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineVersion {
    /// The service whose work it does.
    pub service: ServiceName,
    /// Semantic version.
    pub version: Version,
    /// How it is started.
    pub launch: Launch,
    /// What a job of it needs unless the job says otherwise.
    pub resources: Resources,
    /// JSON Schema (2020-12) of a composition's `processing`; `true` accepts anything.
    pub processing_schema: Value,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// After this time it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What changed, for people.
    #[serde(default)]
    pub changelog: String,
}

/// Why an engine version may not be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// It was withdrawn.
    #[error("version {version} of service {service} was withdrawn")]
    Withdrawn {
        /// The service.
        service: ServiceName,
        /// The version.
        version: Version,
    },
    /// It expired.
    #[error("version {version} of service {service} expired at {at}")]
    Expired {
        /// The service.
        service: ServiceName,
        /// The version.
        version: Version,
        /// When.
        at: Timestamp,
    },
}

impl EngineVersion {
    /// Whether new jobs may use it at `now`.
    ///
    /// # Errors
    /// When it was withdrawn or has expired.
    pub fn usable(&self, now: Timestamp) -> Result<(), Unusable> {
        let (service, version) = (self.service.clone(), self.version.clone());
        match (self.lifecycle, self.expires_at) {
            (Lifecycle::Withdrawn, _) => Err(Unusable::Withdrawn { service, version }),
            (_, Some(at)) if at <= now => Err(Unusable::Expired { service, version, at }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_by_digest_only() {
        let digest = "a".repeat(64);
        let image: ImageReference =
            format!("127.0.0.1:5000/telecine/transform@sha256:{digest}").parse().unwrap();
        assert_eq!(image.digest(), format!("sha256:{digest}"));
        for text in [
            "transform",
            "transform:latest",
            &format!("transform:1@sha256:{digest}"),
            "a@sha256:zz",
            &format!("@sha256:{digest}"),
            &format!("a b@sha256:{digest}"),
        ] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }
}
