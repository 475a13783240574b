//! Core's errors as problems: one place that decides what a caller is told.

use telecine_core::access::AccessError;
use telecine_core::cordon::CordonError;
use telecine_core::drain::DrainError;
use telecine_core::engines::EnginesError;
use telecine_core::idempotency::IdempotencyError;
use telecine_core::jobs::{EditError, LookupError};
use telecine_core::ports::instances::InstancesError;
use telecine_core::ports::keys::KeysError;
use telecine_core::ports::table::TableError;
use telecine_core::problem::Problem as Finding;
use telecine_core::record::RecordError;
use telecine_core::stores::{StoreError, StoreErrorClass, StoresError};
use telecine_core::update::ChangeError;

use crate::problem::{Code, FieldProblem, Problem};

impl From<Finding> for FieldProblem {
    fn from(finding: Finding) -> Self {
        Self::at(finding.pointer, finding.code, finding.message)
    }
}

/// Everything that is wrong with a request, as core found it.
pub(crate) fn invalid(findings: Vec<Finding>) -> Problem {
    Problem::invalid(findings.into_iter().map(FieldProblem::from).collect())
}

/// The same for requests whose shape is flatter here than in core: `from` of a pointer becomes `to`.
fn invalid_at(findings: Vec<Finding>, places: &[(&str, &str)]) -> Problem {
    let moved = findings.into_iter().map(|mut finding| {
        let found =
            places.iter().find_map(|(from, to)| Some(format!("{to}{}", finding.pointer.strip_prefix(from)?)));
        finding.pointer = found.unwrap_or(finding.pointer);
        finding
    });
    invalid(moved.collect())
}

/// Whether all that is wrong is that the name is taken.
pub(crate) fn name_taken(findings: &[Finding]) -> bool {
    matches!(findings, [only] if only.code == "name_taken")
}

impl From<RecordError> for Problem {
    fn from(error: RecordError) -> Self {
        match &error {
            // The only request that a caller can make wrong at the table is one with a foreign page token.
            RecordError::Table(TableError::Invalid(problem)) if problem.contains("page token") => {
                crate::page::wrong_cursor()
            }
            RecordError::Contended { .. } => {
                Self::new(Code::Contended, "others change it at the same moment; try again").worth_retrying()
            }
            _ if error.is_transient() => {
                tracing::warn!(%error, "the records are out of reach");
                Self::unavailable("the records are out of reach just now; try again")
            }
            _ => Self::internal(&error),
        }
    }
}

impl From<InstancesError> for Problem {
    fn from(error: InstancesError) -> Self {
        match error {
            InstancesError::NoSuchPool(_)
            | InstancesError::NoCapacity { .. }
            | InstancesError::NoSuchInstance { .. }
            | InstancesError::NotSupported(_) => Self::new(Code::IllegalState, error.to_string()),
            InstancesError::Unavailable(_) => {
                tracing::warn!(%error, "the instance provider is out of reach");
                Self::unavailable("the provider of instances is out of reach just now; try again")
            }
        }
    }
}

impl From<KeysError> for Problem {
    fn from(error: KeysError) -> Self {
        match error {
            KeysError::Unavailable(_) => {
                tracing::warn!(%error, "the keys are out of reach");
                Self::unavailable("secrets cannot be sealed or opened just now; try again")
            }
            KeysError::DoesNotOpen => Self::internal(&error),
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Stale { .. } | ChangeError::Illegal { .. } => {
                Self::new(Code::IllegalState, error.to_string())
            }
            ChangeError::Outdated { version, .. } => crate::etag::mismatch(version),
            ChangeError::NotFound(job) => Self::not_found("job", &job.to_string()),
            ChangeError::Record(error) => error.into(),
        }
    }
}

impl From<DrainError> for Problem {
    fn from(error: DrainError) -> Self {
        match error {
            DrainError::NotFound(instance) => Self::not_found("instance", &instance.to_string()),
            DrainError::Cordon(error @ CordonError::Terminating { .. }) => {
                Self::new(Code::IllegalState, error.to_string())
            }
            DrainError::Cordon(CordonError::Record(error)) => error.into(),
        }
    }
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Invalid(findings) => invalid(findings),
            EditError::Change(error) => error.into(),
        }
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Unknown | AccessError::Expired(_) => Self::unauthorized(error.to_string()),
            AccessError::Invalid(findings) => invalid(findings),
            AccessError::NotFound(key) => Self::not_found("API key", &key.to_string()),
            AccessError::Record(error) => error.into(),
        }
    }
}

impl From<EnginesError> for Problem {
    fn from(error: EnginesError) -> Self {
        match error {
            EnginesError::Invalid(findings) => {
                let kinds = ["/launch/command/", "/launch/plain/", "/launch/grpc/"];
                invalid_at(findings, &kinds.map(|kind| (kind, "/launch/")))
            }
            EnginesError::Published { .. } => Self::new(Code::AlreadyExists, error.to_string()),
            EnginesError::NotFound { .. } => Self::new(Code::NotFound, error.to_string()),
            EnginesError::Record(error) => error.into(),
        }
    }
}

impl From<StoresError> for Problem {
    fn from(error: StoresError) -> Self {
        match error {
            StoresError::Invalid(findings) => {
                invalid_at(findings, &[("/provider/", "/"), ("/secret", "/secret_access_key")])
            }
            StoresError::NotFound(name) => Self::not_found("store", &name),
            StoresError::InUse { .. } => Self::new(Code::InUse, error.to_string()),
            StoresError::Keys(error) => error.into(),
            StoresError::Credentials(_) | StoresError::Open(_) => {
                Self::new(Code::StoreUnreachable, format!("{error}; `validate` says more"))
            }
            StoresError::Record(error) => error.into(),
        }
    }
}

impl From<IdempotencyError> for Problem {
    fn from(error: IdempotencyError) -> Self {
        match error {
            IdempotencyError::KeyReused => Self::new(Code::IdempotencyKeyReused, error.to_string()),
            IdempotencyError::Record(error) => error.into(),
        }
    }
}

impl From<LookupError> for Problem {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Record(error) => error.into(),
            LookupError::Store { .. } => {
                Self::new(Code::StoreUnreachable, error.to_string()).worth_retrying()
            }
        }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = error.to_string();
        match error.class {
            StoreErrorClass::Invalid | StoreErrorClass::Changed => {
                Self::invalid_at("", "invalid_value", detail)
            }
            StoreErrorClass::NoSpace => Self::new(Code::InsufficientStorage, detail),
            StoreErrorClass::NotFound | StoreErrorClass::Denied => Self::new(Code::StoreUnreachable, detail),
            StoreErrorClass::Unreachable => Self::new(Code::StoreUnreachable, detail).worth_retrying(),
        }
    }
}
