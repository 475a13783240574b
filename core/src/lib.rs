//! The use cases of Telecine over its ports: what is recorded when a job is submitted, assigned, granted or canceled,
//! an object arrives, a store is registered.
//!
//! `core` knows no database, no cloud and no transport: it speaks to `Table`, `Queue`, `Instances`, `Keys` and
//! `Credentials`, and `Backend` holds one of each. Decisions are `telecine-domain`'s; here they are read, asked for and
//! recorded with conditional writes. Time is an argument everywhere.

pub mod ports;
