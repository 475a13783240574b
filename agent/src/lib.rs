//! The agent: the binary on an instance. One coordinator, plus one worker process per attempt.
//!
//! The coordinator enrols, reports what is free, accepts attempts, mounts, launches workers and cleans up after them.
//! A worker prepares, runs and watches one engine and reports on its own connection. They share nothing but the
//! attempt's folder and a unix socket, so that either can die without the other. `agent` never sees a database.

pub mod clock;
pub mod config;
pub mod control;
pub mod coordinator;
pub mod engine_client;
pub mod entry;
pub mod failure;
pub mod folder;
pub mod health;
pub mod inventory;
pub mod launcher;
pub mod lease;
pub mod ledger;
pub mod log;
mod metrics_endpoint;
pub mod mounts;
pub mod plain;
pub mod redact;
pub mod remains;
pub mod runtime;
pub mod worker;
