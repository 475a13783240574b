//! What each way to fail is called: one place decides class and code, so that retries and documentation agree.
//!
//! | what happened | class | code |
//! | --- | --- | --- |
//! | the registry has no such image | engine | `image_not_found` |
//! | the registry does not answer | infrastructure | `registry_unreachable` |
//! | Docker does not answer | infrastructure | `runtime_unavailable` |
//! | the container or program cannot be started | engine | `engine_start_failed` |
//! | the engine left with another code than 0 | engine | `engine_exit` |
//! | a gRPC engine ended without a verdict, or never answered | engine | `engine_died`, `engine_silent` |
//! | the engine blames the media | input | the engine's own |
//! | memory ran out | policy | `out_of_memory` |
//! | a limit in time | policy | `attempt_timeout`, `no_progress` |
//! | more outputs than one attempt may publish | policy | `too_many_outputs` |
//! | an input changed since submission | input | `input_changed` |
//! | an input cannot be read | infrastructure | `input_read_failed` |
//! | an output cannot be written | infrastructure | `output_write_failed`, `no_space` |
//! | the engine made no such output | engine | `output_missing` |
//! | the composition cannot be mounted or started as it is | input | `invalid_arguments`, `invalid_document` |
//! | the worker died | infrastructure | `worker_died` |
//! | the instance is taken away | infrastructure | `interrupted` |

use telecine_domain::failure::{Failure, FailureClass};

use crate::runtime::{Exit, RuntimeError};

/// What a runtime's refusal means for the job.
pub fn of_runtime(error: &RuntimeError) -> Failure {
    let (class, code, advice) = match error {
        RuntimeError::ImageAbsent(_) | RuntimeError::ImageNotFound { .. } => (
            FailureClass::Engine,
            "image_not_found",
            "publish the engine version with an image that the registry has",
        ),
        RuntimeError::RegistryUnreachable { .. } => (
            FailureClass::Infrastructure,
            "registry_unreachable",
            "check the registry and the instance's network",
        ),
        RuntimeError::Unavailable { .. } => {
            (FailureClass::Infrastructure, "runtime_unavailable", "check the Docker service of the instance")
        }
        RuntimeError::Refused { .. } => (
            FailureClass::Engine,
            "engine_start_failed",
            "check the engine version's image, program and arguments",
        ),
    };
    Failure::new(class, code, format!("{error}; {advice}"))
}

/// What a plain engine's end means; `None` when it succeeded.
pub fn of_exit(exit: Exit, memory_bytes: u64, log_tail: String) -> Option<Failure> {
    if exit.out_of_memory {
        let limit = telecine_domain::resources::display_bytes(memory_bytes);
        let message = format!(
            "the engine needed more memory than the {limit} it may use; ask for more memory in the job's resources"
        );
        let failure = Failure::new(FailureClass::Policy, "out_of_memory", message);
        return Some(Failure { exit_code: Some(exit.code), log_tail, ..failure });
    }
    if exit.code == 0 {
        return None;
    }
    let how = match exit.code {
        128..=192 => format!("the engine was ended by signal {}", exit.code - 128),
        code => format!("the engine ended with exit code {code}"),
    };
    let failure =
        Failure::new(FailureClass::Engine, "engine_exit", format!("{how}; the end of its log says more"));
    Some(Failure { exit_code: Some(exit.code), log_tail, ..failure })
}

/// A limit in time was reached.
pub fn attempt_timeout(seconds: u64) -> Failure {
    let message = format!(
        "the attempt took longer than its limit of {seconds} s; raise timeouts.attempt_seconds or split the work"
    );
    Failure::new(FailureClass::Policy, "attempt_timeout", message)
}

/// The engine went on without getting on.
pub fn no_progress(seconds: u64) -> Failure {
    let message = format!(
        "the engine made no progress for {seconds} s; raise timeouts.no_progress_seconds if it needs longer in silence"
    );
    Failure::new(FailureClass::Policy, "no_progress", message)
}

/// What the mount could not do for the engine. It explains whatever the engine said about itself, also success.
pub fn of_mount(path: &str, key: &str, message: &str, errno: i32, is_input: bool) -> Failure {
    let lower = message.to_ascii_lowercase();
    let changed = is_input && (lower.contains("changed") || errno == rustix::io::Errno::STALE.raw_os_error());
    let no_space =
        errno == rustix::io::Errno::NOSPC.raw_os_error() || errno == rustix::io::Errno::DQUOT.raw_os_error();
    let (class, code, what) = match (is_input, changed, no_space) {
        (true, true, _) => {
            (FailureClass::Input, "input_changed", "changed after the job was submitted; submit it again")
        }
        (true, false, _) => (FailureClass::Infrastructure, "input_read_failed", "could not be read"),
        (false, _, true) => {
            (FailureClass::Infrastructure, "no_space", "could not be written, there is no space left")
        }
        (false, _, false) => (FailureClass::Infrastructure, "output_write_failed", "could not be written"),
    };
    let side = if is_input { "input" } else { "output" };
    Failure::new(class, code, format!("{side} {key:?} (at {path}) {what}: {message}"))
}

/// An output that the engine was to make is not there.
pub fn output_missing(slot: &str, key: &str, log_tail: String) -> Failure {
    let message = format!("the engine ended well but made no output {slot:?} ({key:?}); check its arguments");
    Failure { log_tail, ..Failure::new(FailureClass::Engine, "output_missing", message) }
}

/// The outputs are too many, or their description is too long, for one grant: no retry changes that.
pub fn too_many_outputs(objects: usize, most: usize, bytes: usize, most_bytes: usize) -> Failure {
    let message = format!(
        "the engine made {objects} output files, described in {bytes} bytes; one attempt may publish at most {most} \
         files, described in at most {most_bytes} bytes; split the job, or have the engine make fewer files with \
         shorter names"
    );
    Failure::new(FailureClass::Policy, "too_many_outputs", message)
}

/// The worker ended without a word.
pub fn worker_died() -> Failure {
    let message = "the worker process of the attempt died; the instance has removed what it left behind";
    Failure::new(FailureClass::Infrastructure, "worker_died", message)
}

/// The instance is taken away before the attempt is over.
pub fn interrupted(why: impl Into<String>) -> Failure {
    Failure::new(FailureClass::Infrastructure, "interrupted", why)
}

/// Something on the instance did not work.
pub fn infrastructure(code: &str, message: impl Into<String>) -> Failure {
    Failure::new(FailureClass::Infrastructure, code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(failure: &Failure) -> (FailureClass, &str) {
        (failure.class, failure.code.as_str())
    }

    #[test]
    fn runtimes_refuse_for_different_reasons() {
        let answer = || "why".to_owned();
        let image = || "a@sha256:0".to_owned();
        for (error, expected) in [
            (
                RuntimeError::ImageNotFound { image: image(), answer: answer() },
                (FailureClass::Engine, "image_not_found"),
            ),
            (
                RuntimeError::RegistryUnreachable { image: image(), answer: answer() },
                (FailureClass::Infrastructure, "registry_unreachable"),
            ),
            (
                RuntimeError::Unavailable { runtime: "Docker", answer: answer() },
                (FailureClass::Infrastructure, "runtime_unavailable"),
            ),
            (
                RuntimeError::Refused {
                    runtime: "Docker",
                    action: "start",
                    name: "n".into(),
                    answer: answer(),
                },
                (FailureClass::Engine, "engine_start_failed"),
            ),
        ] {
            let failure = of_runtime(&error);
            assert_eq!(named(&failure), expected);
            assert!(failure.message.contains("why"));
        }
    }

    #[test]
    fn exits_are_verdicts() {
        let exit = |code, out_of_memory| Exit { code, out_of_memory };
        assert_eq!(of_exit(exit(0, false), 1, "log".into()), None);
        let failed = of_exit(exit(3, false), 1, "log".into()).unwrap();
        assert_eq!((named(&failed), failed.exit_code), ((FailureClass::Engine, "engine_exit"), Some(3)));
        assert_eq!(failed.log_tail, "log");
        assert!(of_exit(exit(139, false), 1, String::new()).unwrap().message.contains("signal 11"));
        let memory = of_exit(exit(137, true), 64 << 20, String::new()).unwrap();
        assert_eq!(named(&memory), (FailureClass::Policy, "out_of_memory"));
        assert!(memory.message.contains("64.00 MiB"));
    }

    #[test]
    fn the_mount_names_what_failed() {
        let space = of_mount("outputs/a/x.mp4", "out/x.mp4", "disk full", 28, false);
        assert_eq!(named(&space), (FailureClass::Infrastructure, "no_space"));
        assert!(space.message.contains("out/x.mp4") && space.message.contains("disk full"));
        let write = of_mount("outputs/a/x.mp4", "out/x.mp4", "503 slow down", 5, false);
        assert_eq!(named(&write), (FailureClass::Infrastructure, "output_write_failed"));
        let changed = of_mount("inputs/a/x.mov", "in/x.mov", "the object has changed", 116, true);
        assert_eq!(named(&changed), (FailureClass::Input, "input_changed"));
        let read = of_mount("inputs/a/x.mov", "in/x.mov", "timeout", 5, true);
        assert_eq!(named(&read), (FailureClass::Infrastructure, "input_read_failed"));
    }
}
