//! Support for the end-to-end tests and benchmarks: the built binary, real folders, real containers.
//!
//! Everything started here is ended here, by process id. How a test that cannot run on a machine is counted as skipped:
//! `telecine-test-support`.

pub mod clip;
pub mod up;

use std::path::PathBuf;

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
