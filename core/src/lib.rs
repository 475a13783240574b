//! The use cases of Telecine over its ports: what is recorded when a job is submitted, assigned, granted or canceled,
//! an object arrives, a store is registered.
//!
//! `core` knows no database, no cloud and no transport: it speaks to `Table`, `Queue`, `Instances`, `Keys` and
//! `Credentials`, and `Backend` holds one of each. Decisions are `telecine-domain`'s; here they are read, asked for and
//! recorded with conditional writes. Time is an argument everywhere.
//!
//! Invariant: the record comes first, then the hint. Invariant: `update` is the only place that changes a job's row.
//! Invariant: a write whose result is unknown is settled by reading what it would have left behind.

pub mod access;
pub mod accounts;
pub mod backend;
pub mod contract;
pub mod dispatch;
pub mod engines;
pub mod enrolment;
pub mod explain;
pub mod factories;
pub mod fleet;
pub mod idempotency;
pub mod ingest;
mod job_row;
pub mod jobs;
mod layout;
pub mod leader;
pub mod memory;
pub mod ports;
pub mod problem;
mod produced;
pub mod record;
pub mod recorder;
pub mod stores;
pub mod sweep;
pub mod system_store;
pub mod update;

pub use backend::Backend;
