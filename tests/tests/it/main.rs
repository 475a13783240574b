//! Tests of the whole: what no crate can test of itself.
//!
//! Most run the built binary with real Docker, FUSE and ffmpeg; `telecine-test-support` counts one that cannot.

mod arrivals;
mod autoscaling;
mod bad_input;
mod bucket;
mod crashes;
mod explain;
mod fleet;
mod layering;
mod pools;
mod regions;
mod sandbox;
mod simulation;
mod spine;
mod workshop;
