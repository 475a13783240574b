//! What went wrong under the mount, remembered even when the engine ignores it: ffmpeg takes a failed read for the end of
//! its input and exits 0 after a failed close.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// How many failures are kept; one is enough to fail a job, a hundred are enough to explain it.
const KEPT: usize = 100;

/// One failed operation on one file. Any of them makes `seal` refuse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFailure {
    /// The file as the engine saw it, below the mount point.
    pub path: String,
    /// The key below the store's root that it stands for, where it has one.
    pub key: String,
    /// What happened, for a person: names the object and what to do.
    pub message: String,
    /// The error number the engine was given.
    pub errno: i32,
    /// Whether an input was being read (otherwise an output was being written).
    pub is_input: bool,
}

impl std::fmt::Display for MountFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// The failures of one mount, the first ones kept, each distinct one once.
#[derive(Debug, Default)]
pub(crate) struct FailureLog(Mutex<Vec<MountFailure>>);

impl FailureLog {
    pub(crate) fn record(&self, failure: MountFailure) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && !kept.contains(&failure) {
            tracing::warn!(path = %failure.path, errno = failure.errno, "{}", failure.message);
            kept.push(failure);
        }
    }

    pub(crate) fn all(&self) -> Vec<MountFailure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_failure_is_kept_once_and_the_log_is_bounded() {
        let log = FailureLog::default();
        let failure = |n: usize| MountFailure {
            path: format!("outputs/main/{n}"),
            key: String::new(),
            message: "no space".into(),
            errno: 28,
            is_input: false,
        };
        for n in 0..300 {
            log.record(failure(n));
            log.record(failure(0));
        }
        assert_eq!(log.all().len(), KEPT);
        assert_eq!(log.all().iter().filter(|kept| kept.path == "outputs/main/0").count(), 1);
    }
}
