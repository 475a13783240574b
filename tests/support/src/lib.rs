//! What the tests of every crate share: how a test that cannot run here says so, and services that stand in for others.
//!
//! Only tests depend on this crate; it depends on nothing of ours.

pub mod s3;

use std::io::Write as _;

/// Forbids skipping when it is `1`: a test that cannot run fails then.
const NO_SKIP: &str = "TELECINE_NO_SKIP";
/// Names the file to which each skipped test adds a line, so that whoever runs all of them can count.
const SKIPPED: &str = "TELECINE_SKIPPED";

/// Says that the test which calls this cannot run here and why; the caller returns then. It is told past the capture of
/// the test's output, and counted in the file that `TELECINE_SKIPPED` names.
///
/// # Panics
/// Where `TELECINE_NO_SKIP=1` forbids skipping, or the count cannot be written.
#[track_caller]
pub fn skip(why: &str) {
    let forbidden = std::env::var(NO_SKIP).is_ok_and(|value| value == "1");
    assert!(!forbidden, "may not be skipped here: {why}");
    let thread = std::thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a test"));
    // Not `eprint`: the harness shows that only of tests that fail. A closed stderr is nobody's loss.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os(SKIPPED) {
        let file = std::fs::File::options().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

/// What the environment variable `variable` says, such as the name of an image; else the test is skipped, with `mend`
/// as what to do.
#[track_caller]
pub fn wanted(variable: &str, mend: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if found.is_none() {
        skip(&format!("{variable} is not set ({mend})"));
    }
    found
}

/// Whether `program` can be started; else the test is skipped.
#[track_caller]
pub fn has_program(program: &str) -> bool {
    let probe = std::process::Command::new(program)
        .arg("-version")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status();
    if let Err(error) = &probe {
        skip(&format!("{program}: {error} (scripts/setup installs it)"));
    }
    probe.is_ok()
}

/// What [`has_program`] and others found missing, when somebody else has looked: skips with the reason of an `Err`.
#[track_caller]
pub fn available<T>(found: Result<T, impl std::fmt::Display>) -> Option<T> {
    found.inspect_err(|why| skip(&why.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Runs `inner` in a process of its own, in which the variables can be set.
    fn run(variables: &[(&str, &str)]) -> (bool, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::inner", "--ignored", "--test-threads=1"])
            .env_remove(super::NO_SKIP)
            .env_remove(super::SKIPPED)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    #[ignore = "what the others run"]
    fn inner() {
        assert_eq!(super::wanted("TELECINE_NEVER_SET", "set it"), None);
    }

    #[test]
    fn a_skip_is_told_counted_and_where_it_is_forbidden_a_failure() {
        let folder = std::env::temp_dir().join(format!("telecine-skip-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let count = folder.join("skipped");
        let (passed, told) = run(&[(super::SKIPPED, count.to_str().unwrap())]);
        assert!(
            passed && told.contains("skipped: tests::inner: TELECINE_NEVER_SET is not set (set it)"),
            "{told}"
        );
        run(&[(super::SKIPPED, count.to_str().unwrap())]);
        assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 2);
        let (passed, _) = run(&[(super::NO_SKIP, "1"), (super::SKIPPED, count.to_str().unwrap())]);
        assert!(!passed);
        assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), 2);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
