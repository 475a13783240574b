//! The protocols between manager, coordinator, worker and engine: messages, services, conversions to and from the
//! domain, and how a connection is made, proven and used.
//!
//! Everything that crosses a machine boundary is here and nothing is decided here. Names and versions of the packages
//! are kept: a change that an older agent would not understand is a new package.
//!
//! From the bottom up: `net` makes byte streams, `identity` says who is at the other end, `serve` and `dial` put TLS
//! over a stream from either side, `calls` lets both ends of one gRPC stream call each other, `convert` turns frames
//! into values of the domain. `clock` and `tasks` are what every program at either end needs besides.

pub mod calls;
pub mod clock;
pub mod convert;
pub mod dial;
pub mod identity;
pub mod net;
mod redacted;
pub mod serve;
pub mod tasks;
pub mod trace;

#[expect(
    missing_docs,
    clippy::all,
    clippy::too_many_lines,
    reason = "generated from proto/, which documents itself"
)]
mod generated {
    pub mod types {
        pub mod v1 {
            tonic::include_proto!("telecine.types.v1");
        }
    }
    pub mod coordinator {
        pub mod v1 {
            tonic::include_proto!("telecine.coordinator.v1");
        }
    }
    pub mod worker {
        pub mod v1 {
            tonic::include_proto!("telecine.worker.v1");
        }
    }
    pub mod engine {
        pub mod v1 {
            tonic::include_proto!("telecine.engine.v1");
        }
    }
    pub mod enrolment {
        pub mod v1 {
            tonic::include_proto!("telecine.enrolment.v1");
        }
    }
}

pub use generated::{coordinator, engine, enrolment, types, worker};

/// Most bytes of one gRPC message, both ways.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Version of the protocols spoken by this build.
pub const PROTOCOL_VERSION: u32 = 1;
