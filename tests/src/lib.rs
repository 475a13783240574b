//! Support for the end-to-end tests and benchmarks: the built binary, real folders, real containers.
//!
//! Everything started here is ended here, by process id. A test that cannot run on a machine says so and is counted as
//! skipped by `skip`; with `TELECINE_NO_SKIP=1` (CI) it fails instead.

pub mod clip;
pub mod up;

use std::path::PathBuf;

/// Says why a test cannot run here; fails where skipping is forbidden.
#[expect(clippy::print_stderr, reason = "the reason belongs into the test's output")]
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("TELECINE_NO_SKIP").is_none_or(|value| value != "1"),
        "may not be skipped here: {why}"
    );
    eprintln!("skipped: {why}");
}

/// A binary of the workspace, built beside the test that asks (`cargo build --workspace --bins` before).
///
/// # Panics
/// When it is not there.
pub fn binary(name: &str) -> PathBuf {
    let mut folder = std::env::current_exe().expect("a running test has a path");
    while folder.pop() {
        let candidate = folder.join(name);
        if candidate.is_file() && folder.file_name().is_some_and(|last| last != "deps") {
            return candidate;
        }
    }
    panic!("no binary `{name}` beside the tests: run `cargo build --workspace --bins` first");
}

/// The engine image that a set-up script has pushed, from the environment or from the state folder's note.
pub fn image(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|reference| !reference.is_empty())
}
