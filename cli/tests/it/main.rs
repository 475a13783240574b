//! The built binary against an API in this process: help, exit codes, tables and JSON.

mod exits;
mod help;
mod server;
mod simulate;
mod verbs;
