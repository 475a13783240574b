//! Why an attempt or a job failed, and whether trying again can help.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose matter a failure is; decides which retry budget it takes (SPEC 3.2, 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The media or the composition: trying again gives the same.
    Input,
    /// The engine: it crashed, refused or was wrong. Takes a retry of the user's budget.
    Engine,
    /// The instance, its network, a pull, a store that did not answer. Takes a retry of the infrastructure's budget.
    Infrastructure,
    /// A limit that somebody set: a timeout, memory, space.
    Policy,
    /// A defect of Telecine. Takes a retry of the infrastructure's budget.
    Internal,
}

/// Which budget another attempt would be taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryBudget {
    /// The user's.
    User,
    /// The infrastructure's.
    Infrastructure,
    /// None: the failure is final.
    None,
}

impl FailureClass {
    /// Decides which budget pays for another attempt.
    pub const fn retry_budget(self) -> RetryBudget {
        match self {
            Self::Engine => RetryBudget::User,
            Self::Infrastructure | Self::Internal => RetryBudget::Infrastructure,
            Self::Input | Self::Policy => RetryBudget::None,
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Input => "input",
            Self::Engine => "engine",
            Self::Infrastructure => "infrastructure",
            Self::Policy => "policy",
            Self::Internal => "internal",
        })
    }
}

/// A failure as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Whose matter it is.
    pub class: FailureClass,
    /// Stable word for programs, such as `attempt_timeout`; see docs/operations.md for all of them.
    pub code: String,
    /// What happened, for a person: names the subject and what to do.
    pub message: String,
    /// The engine's exit code, where it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The last lines of the engine's log, at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log_tail: String,
}

impl Failure {
    /// A failure without exit code and log.
    pub fn new(class: FailureClass, code: &str, message: impl Into<String>) -> Self {
        Self {
            class,
            code: code.to_owned(),
            message: message.into(),
            exit_code: None,
            log_tail: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.message, self.class, self.code)
    }
}
