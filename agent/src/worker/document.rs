//! What the engine is told: the paths of its inputs and outputs and the document at `/telecine/job.json`.

use serde_json::{Value, json};

use crate::folder::Assignment;
use crate::plain::EnginePaths;

/// The paths of an attempt's inputs and outputs below `root`, where the engine sees `/telecine`. A folder ends with a
/// slash.
pub(crate) fn paths(assignment: &Assignment, root: &str) -> EnginePaths {
    let composition = &assignment.spec.composition;
    let inputs = composition.inputs.iter().map(|(slot, location)| {
        (slot.to_string(), format!("{root}/data/inputs/{slot}/{}", location.key.file_name()))
    });
    let outputs = composition.outputs.iter().map(|(slot, location)| {
        let name = if location.key.is_folder() { "" } else { location.key.file_name() };
        (slot.to_string(), format!("{root}/data/outputs/{slot}/{name}"))
    });
    EnginePaths { inputs: inputs.collect(), outputs: outputs.collect() }
}

/// The document at `/telecine/job.json`. It names no store and no key: an engine knows files.
pub(crate) fn job(assignment: &Assignment, paths: &EnginePaths) -> Value {
    let spec = &assignment.spec;
    json!({
        "job": assignment.attempt.job,
        "attempt": assignment.attempt.attempt,
        "service": spec.service,
        "engine_version": spec.engine.version,
        "processing": spec.composition.processing,
        "inputs": paths.inputs,
        "outputs": paths.outputs,
        "resources": {
            "cpu_milli": assignment.resources.cpu_milli,
            "memory_bytes": assignment.resources.memory_bytes,
            "gpus": assignment.gpus.len(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::tests::assignment;

    #[test]
    fn engines_see_files_and_folders_and_no_stores() {
        let mut assignment = assignment();
        assignment.spec.composition = serde_json::from_value(json!({
            "inputs": {"source": {"store": "sto_00000000000000000000000001", "key": "in/day 1/a.mov"}},
            "processing": {"x": 1},
            "outputs": {
                "one": {"store": "sto_00000000000000000000000001", "key": "out/a.mp4"},
                "many": {"store": "sto_00000000000000000000000001", "key": "hls/a/"}
            }
        }))
        .unwrap();
        let paths = paths(&assignment, "/telecine");
        assert_eq!(paths.inputs["source"], "/telecine/data/inputs/source/a.mov");
        assert_eq!(paths.outputs["one"], "/telecine/data/outputs/one/a.mp4");
        assert_eq!(paths.outputs["many"], "/telecine/data/outputs/many/");
        let job = job(&assignment, &paths);
        assert_eq!(job["processing"]["x"], 1);
        assert!(!job.to_string().contains("sto_"));
    }
}
