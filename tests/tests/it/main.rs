//! Tests of the whole: what no crate can test of itself.
//!
//! Most run the built binary with real Docker, FUSE and ffmpeg; `skip` says when one cannot.

mod arrivals;
mod bad_input;
mod crashes;
mod explain;
mod layering;
mod regions;
mod sandbox;
mod simulation;
mod spine;
mod workshop;
