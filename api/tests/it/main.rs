//! The API over a backend in memory, called through tower without a socket.

mod access;
mod conventions;
mod document;
mod engines;
mod factories;
mod fleet;
mod harness;
mod hostile;
mod jobs;
mod scaling;
mod stores;
mod watch;
