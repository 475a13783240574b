//! A real manager against agents that speak the real protocol over real mutual TLS, in simulated time.
//!
//! The agents are scripted: they do what a test says and nothing else, so that every order of events can be tried.

mod agent;
mod attempt;
mod cancel;
mod cordons;
mod failover;
mod hostile;
mod observe;
mod queue;
mod world;
