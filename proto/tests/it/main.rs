//! The connection as agents and managers have it: our own accept loop, TLS, identity and calls, over a network.

mod authority;
mod connection;
mod support;
