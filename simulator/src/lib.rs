//! The autoscaler in simulated time: a cloud that boots, bills, refuses and interrupts, jobs from a trace or a
//! generator, lower bounds, and what others would have done.
//!
//! Deterministic: the same jobs, kinds, policy and seed give the same report. Nothing here is asked by a running
//! platform; the decisions under test are those of `telecine_domain::autoscale`.

pub mod baselines;
pub mod bound;
pub mod catalog;
pub mod cloud;
pub mod outside;
pub mod picture;
pub mod report;
mod rng;
pub mod telecine;
pub mod workload;
