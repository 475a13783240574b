//! What the handlers are given.

use std::sync::Arc;

use telecine_core::backend::Backend;
use telecine_core::ports::Clock;
use telecine_domain::id::RegionName;
use telecine_domain::time::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::idempotent::InFlight;

/// Everything a handler needs. Cloning is cheap.
#[derive(Clone)]
pub struct ApiState {
    pub(crate) backend: Backend,
    pub(crate) clock: Clock,
    pub(crate) regions: Arc<Vec<RegionName>>,
    pub(crate) default_region: RegionName,
    pub(crate) in_flight: InFlight,
    pub(crate) shutdown: CancellationToken,
}

impl ApiState {
    /// An API over `backend`. `regions` are those there are; jobs go to `default_region` when nothing else decides.
    pub fn new(backend: Backend, clock: Clock, regions: Vec<RegionName>, default_region: RegionName) -> Self {
        Self {
            backend,
            clock,
            regions: Arc::new(regions),
            default_region,
            in_flight: InFlight::default(),
            shutdown: CancellationToken::new(),
        }
    }

    /// Ends event and log streams when `shutdown` is cancelled, so that a server can drain.
    #[must_use]
    pub fn ending_with(self, shutdown: CancellationToken) -> Self {
        Self { shutdown, ..self }
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
