//! Frames to values of the domain and back.
//!
//! What comes in may be hostile: every field is checked against the domain's own types and against a limit, a missing
//! part is an error that names the field, and nothing panics. Text for people is cut to its limit instead of refused,
//! so that a failure with a long message is still a failure.

use serde::Serialize;
use serde::de::DeserializeOwned;
use telecine_domain::attempt::{AttemptId, Counters, Phase, Progress};
use telecine_domain::failure::{Failure, FailureClass};
use telecine_domain::id::{AttemptNumber, Epoch};
use telecine_domain::instance::{InstanceProfile, Notice};
use telecine_domain::job::{JobSpec, MAX_SPEC_BYTES};
use telecine_domain::location::ObjectKey;
use telecine_domain::manifest::{Manifest, Sealed, SealedObject};
use telecine_domain::resources::Resources;
use telecine_domain::store::Provider;
use telecine_domain::time::Timestamp;

use crate::{types::v1 as wire, worker};

/// Most objects in a manifest.
pub const MAX_OBJECTS: usize = 5_000;
/// Most parts of one upload (S3's limit).
pub const MAX_PARTS: usize = 10_000;
/// Most bytes of a document in a message (profile, job spec, provider): any specification that is accepted, and room
/// for labels that were changed since (32 of them, every character escaped).
pub const MAX_DOCUMENT_BYTES: usize = MAX_SPEC_BYTES + 112 * 1024;
/// Most bytes of a text for people.
pub const MAX_TEXT_BYTES: usize = 4096;
/// Most bytes of a log chunk.
pub const MAX_LOG_BYTES: usize = 256 * 1024;
const MAX_WORD_BYTES: usize = 64;
const MAX_OPAQUE_BYTES: usize = 2048;
const MILLION: u32 = 1_000_000;

/// A frame is not what it should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConvertError {
    /// A part that must be there is not.
    #[error("the field `{0}` is missing")]
    Missing(&'static str),
    /// A part is not valid.
    #[error("the field `{field}` is not valid: {problem}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A part is too large.
    #[error("the field `{field}` has {size}, at most {most} is allowed")]
    TooLarge {
        /// Which.
        field: &'static str,
        /// Its bytes or elements.
        size: usize,
        /// What is allowed.
        most: usize,
    },
}

/// A field that must be there.
///
/// # Errors
/// `Missing`.
pub fn required<T>(field: &'static str, value: Option<T>) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing(field))
}

/// A text that parses as a type of the domain (an id, a name, a key).
///
/// # Errors
/// `Invalid` with the type's own words.
pub fn parsed<T>(field: &'static str, text: &str) -> Result<T, ConvertError>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| ConvertError::Invalid { field, problem: error.to_string() })
}

/// A document of the domain, as JSON.
///
/// # Errors
/// `TooLarge`, or `Invalid` with the place in the document.
pub fn document<T: DeserializeOwned>(field: &'static str, json: &[u8]) -> Result<T, ConvertError> {
    within(field, json.len(), MAX_DOCUMENT_BYTES)?;
    serde_json::from_slice(json).map_err(|error| ConvertError::Invalid { field, problem: error.to_string() })
}

/// The JSON of a document of the domain.
pub fn json<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("values of the domain have string keys only and always serialise")
}

fn within(field: &'static str, size: usize, most: usize) -> Result<(), ConvertError> {
    if size > most { Err(ConvertError::TooLarge { field, size, most }) } else { Ok(()) }
}

fn invalid(field: &'static str, problem: &str) -> ConvertError {
    ConvertError::Invalid { field, problem: problem.to_owned() }
}

/// The beginning of a text, at most `most` bytes.
fn head(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// The end of a text, at most `most` bytes.
fn tail(text: String, most: usize) -> String {
    match text.len().checked_sub(most) {
        Some(excess) if excess > 0 => text[text.ceil_char_boundary(excess)..].to_owned(),
        _ => text,
    }
}

impl From<AttemptId> for wire::AttemptId {
    fn from(id: AttemptId) -> Self {
        Self { job_id: id.job.to_string(), attempt: id.attempt.0, epoch: id.epoch.0 }
    }
}

impl TryFrom<wire::AttemptId> for AttemptId {
    type Error = ConvertError;

    fn try_from(id: wire::AttemptId) -> Result<Self, ConvertError> {
        if id.attempt == 0 || id.epoch == 0 {
            return Err(invalid("id", "attempts and epochs count from 1"));
        }
        let job = parsed("id.job_id", &id.job_id)?;
        Ok(Self { job, attempt: AttemptNumber(id.attempt), epoch: Epoch(id.epoch) })
    }
}

/// The attempt that a message must name.
///
/// # Errors
/// `Missing` or `Invalid`.
pub fn attempt_id(id: Option<wire::AttemptId>) -> Result<AttemptId, ConvertError> {
    required("id", id)?.try_into()
}

impl From<Resources> for wire::Resources {
    fn from(amount: Resources) -> Self {
        let Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = amount;
        Self { cpu_milli, memory_bytes, scratch_bytes, gpus }
    }
}

impl From<wire::Resources> for Resources {
    fn from(amount: wire::Resources) -> Self {
        let wire::Resources { cpu_milli, memory_bytes, scratch_bytes, gpus } = amount;
        Self { cpu_milli, memory_bytes, scratch_bytes, gpus }
    }
}

impl From<FailureClass> for wire::FailureClass {
    fn from(class: FailureClass) -> Self {
        match class {
            FailureClass::Input => Self::Input,
            FailureClass::Engine => Self::Engine,
            FailureClass::Infrastructure => Self::Infrastructure,
            FailureClass::Policy => Self::Policy,
            FailureClass::Internal => Self::Internal,
        }
    }
}

impl TryFrom<wire::FailureClass> for FailureClass {
    type Error = ConvertError;

    fn try_from(class: wire::FailureClass) -> Result<Self, ConvertError> {
        match class {
            wire::FailureClass::Input => Ok(Self::Input),
            wire::FailureClass::Engine => Ok(Self::Engine),
            wire::FailureClass::Infrastructure => Ok(Self::Infrastructure),
            wire::FailureClass::Policy => Ok(Self::Policy),
            wire::FailureClass::Internal => Ok(Self::Internal),
            wire::FailureClass::Unspecified => Err(ConvertError::Missing("failure.class")),
        }
    }
}

impl From<Failure> for wire::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            class: wire::FailureClass::from(failure.class).into(),
            code: failure.code,
            message: failure.message,
            exit_code: failure.exit_code,
            log_tail: failure.log_tail,
        }
    }
}

impl TryFrom<wire::Failure> for Failure {
    type Error = ConvertError;

    /// Cuts the message and the log's tail to 4 KiB each.
    fn try_from(failure: wire::Failure) -> Result<Self, ConvertError> {
        let class = wire::FailureClass::try_from(failure.class)
            .map_err(|_| invalid("failure.class", "this version does not know the class"))?;
        let code = word("failure.code", failure.code)?;
        Ok(Self {
            class: class.try_into()?,
            code,
            message: head(failure.message, MAX_TEXT_BYTES),
            exit_code: failure.exit_code,
            log_tail: tail(failure.log_tail, MAX_TEXT_BYTES),
        })
    }
}

fn word(field: &'static str, text: String) -> Result<String, ConvertError> {
    let is_word = (1..=MAX_WORD_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if is_word { Ok(text) } else { Err(invalid(field, "not a word of 1 to 64 characters of a-z, 0-9 and _")) }
}

impl From<Counters> for wire::Counters {
    fn from(counters: Counters) -> Self {
        Self {
            mount_bytes_read: counters.mount_bytes_read,
            mount_bytes_written: counters.mount_bytes_written,
            mount_requests: counters.mount_requests,
            store_bytes_read: counters.store_bytes_read,
            store_bytes_written: counters.store_bytes_written,
            store_requests: counters.store_requests,
        }
    }
}

impl From<wire::Counters> for Counters {
    fn from(counters: wire::Counters) -> Self {
        Self {
            mount_bytes_read: counters.mount_bytes_read,
            mount_bytes_written: counters.mount_bytes_written,
            mount_requests: counters.mount_requests,
            store_bytes_read: counters.store_bytes_read,
            store_bytes_written: counters.store_bytes_written,
            store_requests: counters.store_requests,
        }
    }
}

impl From<Manifest> for wire::Manifest {
    fn from(manifest: Manifest) -> Self {
        Self { objects: manifest.objects.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<wire::Manifest> for Manifest {
    type Error = ConvertError;

    fn try_from(manifest: wire::Manifest) -> Result<Self, ConvertError> {
        within("manifest.objects", manifest.objects.len(), MAX_OBJECTS)?;
        let objects: Vec<SealedObject> =
            manifest.objects.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        Ok(Self { objects })
    }
}

impl From<SealedObject> for wire::SealedObject {
    fn from(object: SealedObject) -> Self {
        let sealed = match object.sealed {
            Sealed::HiddenFile { hidden_key } => wire::sealed_object::Sealed::HiddenFile(hidden_key),
            Sealed::Upload { upload_id, parts } => {
                wire::sealed_object::Sealed::Upload(wire::sealed_object::Upload { upload_id, parts })
            }
        };
        Self {
            slot: object.slot.to_string(),
            store_id: object.store.to_string(),
            key: object.key.to_string(),
            size_bytes: object.size_bytes,
            sha256: object.sha256,
            etag: object.etag,
            sealed: Some(sealed),
        }
    }
}

impl TryFrom<wire::SealedObject> for SealedObject {
    type Error = ConvertError;

    fn try_from(object: wire::SealedObject) -> Result<Self, ConvertError> {
        let key: ObjectKey = parsed("manifest.objects.key", &object.key)?;
        if key.is_folder() {
            return Err(invalid("manifest.objects.key", "names a folder"));
        }
        let is_digest = object.sha256.len() == 64
            && object.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_digest {
            return Err(invalid("manifest.objects.sha256", "not 64 lower-case hexadecimal digits"));
        }
        let etag = object.etag.map(|etag| opaque("manifest.objects.etag", etag)).transpose()?;
        Ok(Self {
            slot: parsed("manifest.objects.slot", &object.slot)?,
            store: parsed("manifest.objects.store_id", &object.store_id)?,
            key,
            size_bytes: object.size_bytes,
            sha256: object.sha256,
            etag,
            sealed: sealed(required("manifest.objects.sealed", object.sealed)?)?,
        })
    }
}

fn sealed(sealed: wire::sealed_object::Sealed) -> Result<Sealed, ConvertError> {
    match sealed {
        wire::sealed_object::Sealed::HiddenFile(hidden_key) => {
            let key: ObjectKey = parsed("manifest.objects.hidden_file", &hidden_key)?;
            if key.is_folder() {
                return Err(invalid("manifest.objects.hidden_file", "names a folder"));
            }
            Ok(Sealed::HiddenFile { hidden_key })
        }
        wire::sealed_object::Sealed::Upload(wire::sealed_object::Upload { upload_id, parts }) => {
            within("manifest.objects.upload.parts", parts.len(), MAX_PARTS)?;
            let upload_id = opaque("manifest.objects.upload.upload_id", upload_id)?;
            let parts = parts
                .into_iter()
                .map(|part| opaque("manifest.objects.upload.parts", part))
                .collect::<Result<_, _>>()?;
            Ok(Sealed::Upload { upload_id, parts })
        }
    }
}

/// A word of a store: not ours to understand, but not empty and not endless.
fn opaque(field: &'static str, text: String) -> Result<String, ConvertError> {
    within(field, text.len(), MAX_OPAQUE_BYTES)?;
    if text.is_empty() { Err(ConvertError::Missing(field)) } else { Ok(text) }
}

/// The name of a phase in messages.
pub const fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Leased => "leased",
        Phase::Pulling => "pulling",
        Phase::Mounting => "mounting",
        Phase::Running => "running",
        Phase::Flushing => "flushing",
    }
}

/// The phase of a name in messages.
///
/// # Errors
/// `Invalid` for any other word.
pub fn phase(name: &str) -> Result<Phase, ConvertError> {
    [Phase::Leased, Phase::Pulling, Phase::Mounting, Phase::Running, Phase::Flushing]
        .into_iter()
        .find(|&phase| phase_name(phase) == name)
        .ok_or_else(|| invalid("phase", "not leased, pulling, mounting, running or flushing"))
}

/// The progress of `attempt` from its message. The engine's own phase is cut to 64 bytes.
///
/// # Errors
/// `Invalid` for a ratio above one.
pub fn progress(attempt: AttemptId, progress: worker::v1::Progress) -> Result<Progress, ConvertError> {
    if progress.ratio_ppm.is_some_and(|ratio| ratio > MILLION) {
        return Err(invalid("progress.ratio_ppm", "more than 1,000,000 parts per million"));
    }
    Ok(Progress {
        attempt,
        sequence: progress.sequence,
        ratio_ppm: progress.ratio_ppm,
        media_millis: progress.media_millis,
        phase: head(progress.phase, MAX_WORD_BYTES),
        at: Timestamp::from_millis(progress.at_millis),
    })
}

impl From<Progress> for worker::v1::Progress {
    fn from(progress: Progress) -> Self {
        Self {
            sequence: progress.sequence,
            ratio_ppm: progress.ratio_ppm,
            media_millis: progress.media_millis,
            phase: progress.phase,
            at_millis: progress.at.as_millis(),
        }
    }
}

/// The data of a log chunk: numbered from 1 and at most 256 KiB.
///
/// # Errors
/// `Invalid` or `TooLarge`.
pub fn log_chunk(chunk: worker::v1::LogChunk) -> Result<(u64, Vec<u8>), ConvertError> {
    within("log.data", chunk.data.len(), MAX_LOG_BYTES)?;
    if chunk.sequence == 0 {
        return Err(invalid("log.sequence", "chunks count from 1"));
    }
    Ok((chunk.sequence, chunk.data))
}

/// A profile from a hello.
///
/// # Errors
/// `TooLarge` or `Invalid`.
pub fn profile(json: &[u8]) -> Result<InstanceProfile, ConvertError> {
    document("profile_json", json)
}

/// A job's spec from an assignment.
///
/// # Errors
/// `TooLarge` or `Invalid`.
pub fn spec(json: &[u8]) -> Result<JobSpec, ConvertError> {
    document("spec_json", json)
}

/// Where a store is, from the right to use it.
///
/// # Errors
/// `TooLarge` or `Invalid`.
pub fn provider(access: &wire::StoreAccess) -> Result<Provider, ConvertError> {
    document("provider_json", &access.provider_json)
}

/// What an instance's provider has announced, from a hello or a changed profile.
pub fn notice(at_millis: u64, rebalance: bool) -> Notice {
    Notice { terminate_at: optional_time(at_millis), rebalance }
}

/// When the provider takes the instance away, for a message; 0 when that was not announced.
pub fn notice_at_millis(notice: &Notice) -> u64 {
    notice.terminate_at.map_or(0, Timestamp::as_millis)
}

/// A time that may be absent, written as 0.
pub fn optional_time(millis: u64) -> Option<Timestamp> {
    (millis != 0).then(|| Timestamp::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use telecine_domain::id::{JobId, StoreId};

    use super::*;

    fn id() -> AttemptId {
        let job = JobId::new(Timestamp::from_millis(3), 4);
        AttemptId { job, attempt: AttemptNumber(1), epoch: Epoch(2) }
    }

    fn object() -> SealedObject {
        SealedObject {
            slot: "out".parse().unwrap(),
            store: StoreId::new(Timestamp::from_millis(3), 4),
            key: "a/b \"é\".mp4".parse().unwrap(),
            size_bytes: 7,
            sha256: "0123456789abcdef".repeat(4),
            etag: Some("x-1".to_owned()),
            sealed: Sealed::Upload { upload_id: "u".to_owned(), parts: vec!["p".to_owned()] },
        }
    }

    #[test]
    fn values_survive_the_way_there_and_back() {
        assert_eq!(AttemptId::try_from(wire::AttemptId::from(id())), Ok(id()));
        let hidden = SealedObject {
            sealed: Sealed::HiddenFile { hidden_key: ".telecine-upload-x-0".to_owned() },
            etag: None,
            ..object()
        };
        let manifest = Manifest { objects: vec![object(), hidden] };
        assert_eq!(Manifest::try_from(wire::Manifest::from(manifest.clone())), Ok(manifest));
        let failure = Failure {
            exit_code: Some(-9),
            log_tail: "tail".to_owned(),
            ..Failure::new(FailureClass::Engine, "engine_exit", "it broke")
        };
        assert_eq!(Failure::try_from(wire::Failure::from(failure.clone())), Ok(failure));
        let amount = Resources { cpu_milli: 1, memory_bytes: 2, scratch_bytes: 3, gpus: 4 };
        assert_eq!(Resources::from(wire::Resources::from(amount)), amount);
        let counters = Counters { mount_bytes_read: 1, store_requests: u64::MAX, ..Counters::default() };
        assert_eq!(Counters::from(wire::Counters::from(counters)), counters);
        for class in
            [FailureClass::Input, FailureClass::Infrastructure, FailureClass::Internal, FailureClass::Policy]
        {
            assert_eq!(FailureClass::try_from(wire::FailureClass::from(class)), Ok(class));
        }
        let said = Progress {
            attempt: id(),
            sequence: 9,
            ratio_ppm: Some(1_000_000),
            media_millis: None,
            phase: "encode".to_owned(),
            at: Timestamp::from_millis(11),
        };
        assert_eq!(progress(id(), said.clone().into()), Ok(said));
        for said in [
            Notice::default(),
            Notice { terminate_at: Some(Timestamp::from_millis(7)), rebalance: false },
            Notice { terminate_at: None, rebalance: true },
        ] {
            assert_eq!(notice(notice_at_millis(&said), said.rebalance), said);
        }
        for value in [Phase::Leased, Phase::Pulling, Phase::Mounting, Phase::Running, Phase::Flushing] {
            assert_eq!(phase(phase_name(value)), Ok(value));
        }
    }

    #[test]
    fn hostile_objects_are_refused_by_field() {
        let good = || wire::SealedObject::from(object());
        let hidden = |key: &str| Some(wire::sealed_object::Sealed::HiddenFile(key.to_owned()));
        let upload = |upload_id: &str, parts: usize| {
            let parts = vec!["p".to_owned(); parts];
            Some(wire::sealed_object::Sealed::Upload(wire::sealed_object::Upload {
                upload_id: upload_id.to_owned(),
                parts,
            }))
        };
        for (bad, field) in [
            (wire::SealedObject { key: "../../etc/passwd".to_owned(), ..good() }, "key"),
            (wire::SealedObject { key: "folder/".to_owned(), ..good() }, "key"),
            (wire::SealedObject { sha256: "F".repeat(64), ..good() }, "sha256"),
            (wire::SealedObject { sha256: String::new(), ..good() }, "sha256"),
            (wire::SealedObject { slot: "*".to_owned(), ..good() }, "slot"),
            (wire::SealedObject { store_id: "job_1".to_owned(), ..good() }, "store_id"),
            (wire::SealedObject { etag: Some("x".repeat(5000)), ..good() }, "etag"),
            (wire::SealedObject { sealed: None, ..good() }, "sealed"),
            (wire::SealedObject { sealed: hidden("/etc/shadow"), ..good() }, "hidden_file"),
            (wire::SealedObject { sealed: hidden("a/../../b"), ..good() }, "hidden_file"),
            (wire::SealedObject { sealed: upload("", 1), ..good() }, "upload_id"),
            (wire::SealedObject { sealed: upload("u", MAX_PARTS + 1), ..good() }, "parts"),
        ] {
            let error = SealedObject::try_from(bad).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let many = wire::Manifest { objects: vec![good(); MAX_OBJECTS + 1] };
        assert!(matches!(Manifest::try_from(many), Err(ConvertError::TooLarge { .. })));
    }

    #[test]
    fn hostile_frames_are_refused_or_cut() {
        assert_eq!(attempt_id(None), Err(ConvertError::Missing("id")));
        for bad in [
            wire::AttemptId { job_id: "job_x".to_owned(), attempt: 1, epoch: 1 },
            wire::AttemptId { attempt: 0, ..id().into() },
            wire::AttemptId { epoch: 0, ..id().into() },
        ] {
            assert!(attempt_id(Some(bad)).is_err());
        }
        let long = wire::Failure {
            class: wire::FailureClass::Engine.into(),
            code: "engine_exit".to_owned(),
            message: "é".repeat(5000),
            log_tail: format!("{}end", "é".repeat(5000)),
            exit_code: None,
        };
        let cut = Failure::try_from(long.clone()).unwrap();
        assert!(cut.message.len() <= MAX_TEXT_BYTES && cut.log_tail.len() <= MAX_TEXT_BYTES);
        assert!(cut.log_tail.ends_with("end"));
        for bad in [
            wire::Failure { class: 99, ..long.clone() },
            wire::Failure { class: 0, ..long.clone() },
            wire::Failure { code: "Not a word".to_owned(), ..long.clone() },
            wire::Failure { code: String::new(), ..long },
        ] {
            assert!(Failure::try_from(bad).is_err());
        }
        assert!(phase("running ").is_err());
        assert!(profile(&vec![b' '; MAX_DOCUMENT_BYTES + 1]).is_err());
        assert!(profile(b"{\"id\":1}").is_err() && spec(b"[").is_err());
        let above_one = worker::v1::Progress { ratio_ppm: Some(1_000_001), ..Default::default() };
        assert!(progress(id(), above_one).is_err());
        let chunk = |sequence, bytes| worker::v1::LogChunk { sequence, data: vec![0; bytes], at_millis: 0 };
        assert!(log_chunk(chunk(0, 1)).is_err() && log_chunk(chunk(1, MAX_LOG_BYTES + 1)).is_err());
        assert_eq!(log_chunk(chunk(1, 1)), Ok((1, vec![0])));
    }
}
