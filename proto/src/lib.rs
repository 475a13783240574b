//! The protocols between manager, coordinator, worker and engine: messages, services, and conversions to and from the
//! domain.
//!
//! Everything that crosses a machine boundary is here and nothing is decided here. Names and versions of the packages
//! are kept: a change that an older agent would not understand is a new package.

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
}

pub use generated::{coordinator, engine, types, worker};
