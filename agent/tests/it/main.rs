//! Integration tests of the agent: real Docker where it answers, real processes, and workers and coordinators run in
//! this process against a scripted manager.

mod coordinator;
mod docker;
mod fake;
mod manager;
mod process;
mod support;
mod worker;
