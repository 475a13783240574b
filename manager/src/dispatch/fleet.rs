//! Brings the records of instances and the gauges up to date, about once a second and only where something changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use telecine_core::fleet;
use telecine_domain::id::InstanceId;
use telecine_domain::instance::{Instance, InstanceState};
use telecine_domain::region::Region;
use telecine_domain::resources::Resources;
use telecine_domain::time::Timestamp;
use tokio::sync::mpsc;
use tracing::warn;

use crate::lead::Lead;

/// The records as they were written last.
pub(super) struct FleetRecords {
    lead: Arc<Lead>,
    written: BTreeMap<InstanceId, Instance>,
    /// Records of an earlier manager; those that nobody claims within a lease are of lost instances.
    inherited_until: Timestamp,
    inherited: mpsc::Receiver<Instance>,
    writer: mpsc::Sender<Vec<Instance>>,
}

const STATES: [InstanceState; 6] = [
    InstanceState::Ready,
    InstanceState::Unhealthy,
    InstanceState::Draining,
    InstanceState::Cordoned,
    InstanceState::Disconnected,
    InstanceState::Lost,
];

impl FleetRecords {
    pub(super) fn new(lead: Arc<Lead>) -> Self {
        // One batch at a time: what changes meanwhile is in the next.
        let (writer, batches) = mpsc::channel(1);
        let (found, inherited) = mpsc::channel(64);
        lead.spawn(write(lead.clone(), batches));
        lead.spawn(inherit(lead.clone(), found));
        let inherited_until = lead.now().after(lead.config.lease);
        Self { lead, written: BTreeMap::new(), inherited_until, inherited, writer }
    }

    /// An instance has been away for a lease; the region may forget it with this.
    pub(super) fn lost(&mut self, instance: InstanceId) {
        let now = self.lead.now();
        let record = self.written.get(&instance).map(|record| Instance {
            state: InstanceState::Lost,
            allocated: Resources::ZERO,
            state_since: now,
            ..record.clone()
        });
        if let Some(record) = record
            && self.writer.try_send(vec![record.clone()]).is_ok()
        {
            self.written.insert(instance, record);
        }
    }

    /// Writes what changed and sets the gauges.
    pub(super) fn update(&mut self, region: &Region) {
        while let Ok(record) = self.inherited.try_recv() {
            self.written.entry(record.profile.id).or_insert(record);
        }
        let mut counts = STATES.map(|state| (state, 0));
        let mut changed = Vec::new();
        for view in region.instances() {
            counts.iter_mut().filter(|(state, _)| *state == view.state).for_each(|(_, count)| *count += 1);
            let record = view.to_record();
            if self.written.get(&view.profile.id) != Some(&record) {
                changed.push(record);
            }
        }
        changed.extend(self.forgotten(region));
        if !changed.is_empty() && self.writer.try_send(changed.clone()).is_ok() {
            self.written.extend(changed.into_iter().map(|record| (record.profile.id, record)));
        }
        self.gauges(region, &counts);
    }

    /// Records of instances that the region does not know and that do not say so yet.
    fn forgotten(&self, region: &Region) -> Vec<Instance> {
        let now = self.lead.now();
        if now < self.inherited_until {
            return Vec::new();
        }
        let unknown = self.written.values().filter(|record| {
            record.state != InstanceState::Lost && region.instance(record.profile.id).is_none()
        });
        let lost = |record: &Instance| Instance {
            state: InstanceState::Lost,
            allocated: Resources::ZERO,
            state_since: now,
            ..record.clone()
        };
        unknown.map(lost).collect()
    }

    fn gauges(&self, region: &Region, counts: &[(InstanceState, usize)]) {
        let metrics = &self.lead.metrics;
        for (state, count) in counts {
            metrics.instances(*state, *count);
        }
        metrics.queue_length(region.queue_length());
        metrics.live(region.attempts().count());
        metrics.sessions("coordinator", self.lead.registry.coordinators.len());
        metrics.sessions("worker", self.lead.registry.workers.len());
        metrics.occupancy(region.occupancy().thousandths().unwrap_or(0));
    }
}

async fn write(lead: Arc<Lead>, mut batches: mpsc::Receiver<Vec<Instance>>) {
    while let Some(batch) = batches.recv().await {
        for record in batch {
            let mut tries = 0;
            while let Err(error) = fleet::put_instance(&lead.backend, &record).await {
                tries += 1;
                warn!(instance = %record.profile.id, %error, "the record of an instance was not written");
                if tries == 3 || lead.over.is_cancelled() {
                    break;
                }
                lead.pause(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn inherit(lead: Arc<Lead>, found: mpsc::Sender<Instance>) {
    loop {
        match fleet::instances(&lead.backend, &lead.region).await {
            Ok(records) => {
                for record in records {
                    if found.send(record).await.is_err() {
                        return;
                    }
                }
                return;
            }
            Err(error) => {
                warn!(region = %lead.region, %error, "the instances were not listed; it is tried again");
                lead.pause(std::time::Duration::from_secs(1)).await;
                if lead.over.is_cancelled() {
                    return;
                }
            }
        }
    }
}
