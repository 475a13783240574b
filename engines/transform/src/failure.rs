//! How a run fails: whose matter it is, a stable code, and a sentence for a person.

use std::fmt;

use telecine_proto::engine::v1 as wire;

/// Whose matter a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The media or the request; trying again gives the same.
    Input,
    /// The engine or the machine it runs on.
    Engine,
    /// It was told to stop.
    Canceled,
}

/// A run that did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn input(code: &'static str, message: impl fmt::Display) -> Self {
        Self { kind: Kind::Input, code, message: message.to_string() }
    }

    pub(crate) fn engine(code: &'static str, message: impl fmt::Display) -> Self {
        Self { kind: Kind::Engine, code, message: message.to_string() }
    }

    pub(crate) fn canceled() -> Self {
        Self { kind: Kind::Canceled, code: "canceled", message: "the work was canceled".to_owned() }
    }
}

impl From<Failure> for wire::Failed {
    fn from(failure: Failure) -> Self {
        let kind = match failure.kind {
            Kind::Input => wire::FailureKind::Input,
            Kind::Engine => wire::FailureKind::Engine,
            Kind::Canceled => wire::FailureKind::Canceled,
        };
        Self { kind: kind.into(), code: failure.code.to_owned(), message: failure.message }
    }
}
