//! Cordons on their way: the rows to the region and to the coordinators, the coordinators' answers to the rows.
//!
//! A cordon of an instance that connects is told to its coordinator before the instance takes part, and to the region
//! with it. So an instance that has answered is given nothing as long as its cordon stands: the region proposes nothing,
//! and what is still on its way the coordinator refuses. Rows only go forward (a higher number, then standing, lifted,
//! claimed), so of two readings the later one counts, in whatever order they come.
//!
//! Invariant: an acknowledgement is recorded only of what the instance's present coordinator has said on its present
//! stream, while the region knows nothing that runs or is about to run there.

use std::collections::BTreeMap;
use std::sync::Arc;

use telecine_core::cordon::{self, CordonState, Cordoned, Outcome};
use telecine_domain::id::InstanceId;
use telecine_domain::region::RegionEvent;
use telecine_proto::coordinator::v1::{Cordon, from_manager};
use tracing::{debug, info, warn};

use super::Dispatcher;
use crate::lead::Lead;
use crate::registry::CoordinatorCaller;

/// What is known of each attached instance.
pub(super) type Cordons = BTreeMap<InstanceId, Known>;

/// See [`Cordons`].
pub(super) struct Known {
    generation: u64,
    /// The newest row that was read.
    row: Option<Cordoned>,
    /// What its coordinator was told on this stream.
    told: Option<Told>,
    /// The cordon at which its coordinator said, on this stream, that it holds nothing.
    idle_at: Option<u64>,
}

/// A cordon as a coordinator is told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    number: u64,
    lifted: bool,
}

impl Told {
    fn of(row: &Cordoned) -> Self {
        Self { number: row.number, lifted: standing(row).is_none() }
    }
}

/// The number of the row's cordon, if that keeps new work away.
fn standing(row: &Cordoned) -> Option<u64> {
    match row.state {
        CordonState::Standing { .. } | CordonState::Terminating { .. } => Some(row.number),
        CordonState::Lifted => None,
    }
}

/// How far a row is on its way.
fn progress(row: &Cordoned) -> (u64, u8) {
    let state = match row.state {
        CordonState::Standing { acknowledged_at: None } => 0,
        CordonState::Standing { acknowledged_at: Some(_) } => 1,
        CordonState::Lifted => 2,
        CordonState::Terminating { .. } => 3,
    };
    (row.number, state)
}

/// The message that tells a cordon to its coordinator.
pub(crate) fn message(row: &Cordoned) -> from_manager::Body {
    let Told { number, lifted } = Told::of(row);
    from_manager::Body::Cordon(Cordon { number, lifted })
}

impl Dispatcher {
    /// An instance is about to attach on a new stream, on which `row` was told to its coordinator.
    pub(super) fn cordon_of_new(&mut self, instance: InstanceId, generation: u64, row: Option<Cordoned>) {
        let told = row.as_ref().map(Told::of);
        let before = self.cordons.remove(&instance).and_then(|known| known.row);
        let known = Known { generation, row, told, idle_at: None };
        self.cordons.insert(instance, known);
        self.tell_region(instance);
        if let Some(before) = before {
            self.cordon_seen(before);
        }
    }

    /// The rows of the region, as read just now.
    pub(super) fn cordons_seen(&mut self, rows: Vec<Cordoned>) {
        for row in rows {
            let instance = row.instance;
            self.cordon_seen(row);
            self.acknowledge(instance);
        }
    }

    /// A row was read; one of an instance that is not here is told when that attaches.
    fn cordon_seen(&mut self, row: Cordoned) {
        let instance = row.instance;
        let Some(known) = self.cordons.get_mut(&instance) else { return };
        if known.row.as_ref().is_some_and(|before| progress(before) >= progress(&row)) {
            return;
        }
        let told = Told::of(&row);
        let is_news = known.told.replace(told) != Some(told);
        let body = message(&row);
        known.row = Some(row);
        self.tell_region(instance);
        if is_news && let Some(coordinator) = self.lead.registry.coordinators.caller(instance) {
            info!(%instance, number = told.number, lifted = told.lifted, region = %self.lead.region, "a cordon is told");
            self.lead.spawn(tell(coordinator, instance, body));
        }
    }

    pub(super) fn tell_region(&mut self, instance: InstanceId) {
        let cordon = self.cordons.get(&instance).and_then(|known| known.row.as_ref()).and_then(standing);
        self.handle(RegionEvent::Cordon { instance, cordon });
    }

    /// A coordinator says that it holds nothing at this cordon.
    pub(super) fn idle_at(&mut self, instance: InstanceId, generation: u64, number: u64) {
        let known = self.cordons.get_mut(&instance).filter(|known| known.generation == generation);
        if let Some(known) = known {
            known.idle_at = Some(number);
            self.acknowledge(instance);
        }
    }

    /// Records what the coordinator has said, if it is so as far as is known here; else the next look tries again.
    fn acknowledge(&mut self, instance: InstanceId) {
        let Some(known) = self.cordons.get(&instance) else { return };
        let Some(row) = &known.row else { return };
        let waits = row.state == CordonState::Standing { acknowledged_at: None };
        if waits && known.idle_at == Some(row.number) && self.region.is_idle(instance) {
            self.lead.spawn(record(self.lead.clone(), instance, row.number));
        }
    }

    /// The stream of an instance has ended.
    pub(super) fn cordon_of_gone(&mut self, instance: InstanceId, generation: u64) {
        if self.cordons.get(&instance).is_some_and(|known| known.generation == generation) {
            self.cordons.remove(&instance);
        }
    }
}

async fn tell(coordinator: CoordinatorCaller, instance: InstanceId, body: from_manager::Body) {
    if let Err(error) = coordinator.reply(0, body).await {
        debug!(%instance, %error, "a cordon was not told; it is when the instance is back");
    }
}

async fn record(lead: Arc<Lead>, instance: InstanceId, number: u64) {
    match cordon::acknowledge(&lead.backend, &lead.region, instance, number, lead.now()).await {
        Ok(Outcome::Done) => info!(%instance, number, region = %lead.region, "a cordon is acknowledged"),
        Ok(Outcome::Stale) => {
            debug!(%instance, number, "a cordon was acknowledged, lifted or replaced before")
        }
        Err(error) => {
            warn!(%instance, number, %error, "an acknowledgement was not recorded; it is tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use telecine_domain::autoscale::CordonCause;
    use telecine_domain::time::Timestamp;

    use super::*;

    fn row(number: u64, state: CordonState) -> Cordoned {
        let at = Timestamp::from_millis(1);
        let instance = InstanceId::new(at, 1);
        Cordoned { instance, region: "local".parse().unwrap(), number, cause: CordonCause::Idle, at, state }
    }

    #[test]
    fn a_row_goes_forward_only_and_a_lifted_one_keeps_nothing_away() {
        let at = Timestamp::from_millis(2);
        let life = [
            row(1, CordonState::Standing { acknowledged_at: None }),
            row(1, CordonState::Standing { acknowledged_at: Some(at) }),
            row(1, CordonState::Lifted),
            row(2, CordonState::Standing { acknowledged_at: None }),
            row(2, CordonState::Terminating { claimed_at: at }),
        ];
        assert!(life.windows(2).all(|pair| progress(&pair[0]) < progress(&pair[1])));
        assert_eq!(life.each_ref().map(standing), [Some(1), Some(1), None, Some(2), Some(2)]);
        assert_eq!(life.each_ref().map(|row| Told::of(row).lifted), [false, false, true, false, false]);
    }
}
