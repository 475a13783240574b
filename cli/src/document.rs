//! JSON documents named on the command line: a file, or `-` for standard input.

use std::io::{IsTerminal, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::output;

/// Longest document taken: what the API takes.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads the JSON document of `file`, or of standard input for `-`.
///
/// # Errors
/// When it cannot be read, is too long, or is not the JSON that is expected.
pub(crate) async fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Failure> {
    let name = if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() };
    let path = file.to_owned();
    let bytes = tokio::task::spawn_blocking(move || read_bytes(&path))
        .await
        .map_err(|error| Failure::usage(format!("{name} was not read: {error}")))?
        .map_err(|error| Failure::usage(format!("{name} cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Failure::usage(format!("{name} is longer than {MAX_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::usage(format!("{name} is not the JSON expected: {error}")))
}

fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            output::note("reading JSON from standard input; end with Ctrl-D");
        }
        stdin.lock().take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
