//! Why a command did not do what was asked, what to tell the person, and with which exit code to end.

use std::fmt;
use std::process::ExitCode;

use telecine_api::problem::ProblemBody;

/// Exit codes: documented in `telecine --help`, relied on by scripts, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The job failed, or the request was refused for what it asks.
    Failed = 1,
    /// The command line or the document is wrong.
    Usage = 2,
    /// No valid API key, or one that may not do this.
    Access = 3,
    /// There is no such thing.
    NotFound = 4,
    /// It did not happen in time, or nobody answers.
    TimedOut = 5,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    /// With which code to end.
    pub exit: Exit,
    /// What went wrong, one line.
    pub title: String,
    /// More about it, one line each.
    pub details: Vec<String>,
    /// What to do.
    pub advice: Option<String>,
}

impl Failure {
    /// A failure with nothing but a title.
    pub(crate) fn new(exit: Exit, title: impl Into<String>) -> Self {
        Self { exit, title: title.into(), details: Vec::new(), advice: None }
    }

    /// The command line is wrong.
    pub(crate) fn usage(title: impl Into<String>) -> Self {
        Self::new(Exit::Usage, title)
    }

    /// The same with advice.
    #[must_use]
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// The same with one more detail.
    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// What the API answered.
    pub(crate) fn from_problem(problem: &ProblemBody) -> Self {
        let mut failure = Self::new(exit_of(problem.status), problem.title.clone());
        failure.details.push(problem.detail.clone());
        for error in problem.errors.iter().filter(|error| !problem.detail.contains(&error.detail)) {
            let place = error.pointer.as_deref().or(error.parameter.as_deref()).unwrap_or("");
            failure.details.push(format!("{place}: {} ({})", error.detail, error.code));
        }
        failure.details.push(format!("code {}, request {}", problem.code, problem.request_id));
        failure.advice = advice(problem);
        failure
    }

    /// The code to end the process with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit as u8)
    }
}

fn exit_of(status: u16) -> Exit {
    match status {
        400 | 406 | 413 | 415 | 422 => Exit::Usage,
        401 | 403 => Exit::Access,
        404 => Exit::NotFound,
        503 | 504 => Exit::TimedOut,
        _ => Exit::Failed,
    }
}

fn advice(problem: &ProblemBody) -> Option<String> {
    let text = match problem.code.as_str() {
        "unauthorized" => {
            "give a key with --api-key or TELECINE_API_KEY, or point --data at the folder that `telecine up` uses"
        }
        "forbidden" => "use a key that has the scope, or make one with `telecine keys create`",
        "etag_mismatch" => "read it again and repeat the change",
        "idempotency_key_reused" => "use another --idempotency-key for another request",
        "internal" => "look for the request id in the log of the API",
        "unavailable" | "contended" | "idempotency_in_flight" => "try again in a moment",
        _ => return None,
    };
    Some(text.to_owned())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.title)?;
        for detail in &self.details {
            write!(f, "\n  {detail}")?;
        }
        match &self.advice {
            Some(advice) => write!(f, "\n  do: {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let mut chain = error.chain().map(ToString::to_string);
        let mut failure = Self::new(Exit::Failed, chain.next().unwrap_or_default());
        failure.details.extend(chain);
        failure
    }
}

#[cfg(test)]
mod tests {
    use telecine_api::problem::FieldProblem;

    use super::*;

    #[test]
    fn each_wrong_place_and_the_next_step_are_shown() {
        let problem = ProblemBody {
            kind: String::new(),
            title: "The request is not valid".to_owned(),
            status: 422,
            detail: "2 things are wrong; `errors` names each".to_owned(),
            instance: "/v1/jobs".to_owned(),
            code: "unauthorized".to_owned(),
            request_id: "req_1".to_owned(),
            errors: vec![
                FieldProblem::at("/composition/inputs/source", "object_missing", "there is no `a.mov`"),
                FieldProblem::at("/priority", "out_of_range", "at most 1000"),
            ],
            retry_after_seconds: None,
        };
        let failure = Failure::from_problem(&problem);
        assert_eq!(failure.exit, Exit::Usage);
        let text = failure.to_string();
        for part in [
            "error: The request is not valid",
            "/composition/inputs/source: there is no `a.mov` (object_missing)",
            "/priority: at most 1000",
            "request req_1",
            "do: give a key",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
