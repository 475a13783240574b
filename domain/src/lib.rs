//! The values and decisions of Telecine: what a job, an engine version, a store and an instance are, and every
//! decision taken about them.
//!
//! Everything here is pure and synchronous: no clock, no random source, no I/O, no hash-map iteration. `now` and
//! seeds are arguments, so that the same input gives the same output in the manager, in a test and in the simulator.
//! What it is not: it stores nothing (see `telecine-core`) and sends nothing (see `telecine-proto`).

pub mod attempt;
pub mod autoscale;
pub mod composition;
pub mod engine;
pub mod estimate;
pub mod explain;
pub mod factory;
pub mod failure;
#[cfg(test)]
mod fixture;
pub mod forecast;
pub mod id;
pub mod instance;
pub mod job;
pub mod learn;
pub mod location;
pub mod manifest;
pub mod packing;
pub mod placement;
pub mod pool;
pub mod publication;
pub mod region;
pub mod resources;
pub mod store;
pub mod time;
pub mod trace;
pub mod transition;
