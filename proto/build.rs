//! Compiles the protocol with protox (pure Rust: no protoc needed).

/// Messages that hold secrets: their `Debug` is written by hand and shows none (see `src/redacted.rs`).
const SECRET: [&str; 2] = ["telecine.types.v1.StoreAccess", "telecine.enrolment.v1.EnrolRequest"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["types", "coordinator", "worker", "engine", "enrolment"]
        .map(|name| format!("telecine/{name}/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
