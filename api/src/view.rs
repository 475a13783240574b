//! The shapes of the API: what a caller reads and writes, apart from how core keeps it.
//!
//! Rows may change their shape with a migration; these may not, save by addition. Reading types also implement
//! `Deserialize` (without refusing unknown fields) so that the CLI and tests read what the API writes.

pub mod attempt;
pub mod engine;
pub mod explanation;
pub mod factory;
pub mod job;
pub mod key;
pub mod place;
pub mod pool;
pub mod scaling;
pub mod store;
pub mod values;
