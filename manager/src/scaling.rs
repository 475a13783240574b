//! The autoscaler of a led region, on a timer: writes down what waits, and, where it is to, decides and acts.
//!
//! What waits is written when it has changed, and at least so often that whoever decides need not distrust it. Deciding is
//! core's: here is only the clock. A tick that fails is tried again by the next; nothing is remembered in between but
//! what was written last.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::autoscale::{self, Observation, Settings, Ticked};
use telecine_domain::autoscale::{Planned, Waiting};
use telecine_domain::time::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use crate::lead::Lead;

/// What has not changed is written again after this, far before any policy distrusts it.
const AGAIN: Duration = Duration::from_secs(15);

/// Runs until the leadership is over.
pub(crate) async fn run(lead: Arc<Lead>) {
    let mut timer = tokio::time::interval(lead.config.autoscaling.tick());
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let settings = lead.config.autoscaling.settings();
    let mut scaler = Scaler { lead: lead.clone(), settings, sequence: 0, written: None };
    loop {
        tokio::select! {
            () = lead.over.cancelled() => return,
            _ = timer.tick() => {}
        }
        tokio::select! {
            // Whatever a tick has begun, the next one finds: here or at the next leader.
            () = lead.over.cancelled() => return,
            () = scaler.tick() => {}
        }
    }
}

struct Scaler {
    lead: Arc<Lead>,
    settings: Settings,
    /// Of the last observation that was tried to write.
    sequence: u64,
    /// What was written last, and when.
    written: Option<(Vec<Waiting>, Instant)>,
}

impl Scaler {
    async fn tick(&mut self) {
        let Some(lines) = self.lead.waiting().await else { return };
        let now = self.lead.now();
        self.observe(lines, now).await;
        if self.lead.config.autoscaling.is_enabled() {
            self.decide(now).await;
        }
    }

    async fn observe(&mut self, lines: Vec<Waiting>, now: Timestamp) {
        let is_written =
            self.written.as_ref().is_some_and(|(written, at)| *written == lines && at.elapsed() < AGAIN);
        if is_written {
            return;
        }
        self.sequence += 1;
        let (term, sequence) = (self.lead.term.0, self.sequence);
        let observation = Observation { term, sequence, observed_at: now, lines };
        match autoscale::observe(&self.lead.backend, &self.lead.region, &observation).await {
            Ok(true) => self.written = Some((observation.lines, Instant::now())),
            Ok(false) => debug!(region = %self.lead.region, "another manager observes the region"),
            Err(error) => {
                warn!(region = %self.lead.region, %error, "what waits was not written down; it is tried again")
            }
        }
    }

    async fn decide(&self, now: Timestamp) {
        let Lead { backend, region, metrics, .. } = self.lead.as_ref();
        match autoscale::tick(backend, region, &self.settings, now).await {
            Ok(ticked) => {
                metrics.ticked(if ticked.recorded.is_some() { "recorded" } else { "unchanged" });
                metrics.launches("asked", ticked.launched);
                metrics.launches("refused", ticked.refused);
                metrics.retirements(ticked.forgotten);
                self.tell(&ticked);
            }
            Err(error) => {
                metrics.ticked("failed");
                warn!(%region, %error, "the region was not scaled; it is tried again");
            }
        }
    }

    fn tell(&self, ticked: &Ticked) {
        let (region, decision) = (&self.lead.region, ticked.recorded);
        for Planned { action, because } in &ticked.decision.actions {
            info!(%region, decision, action = ?action, because = %because, "scaling");
        }
        for problem in &ticked.problems {
            warn!(%region, problem, "a part of scaling is tried again");
        }
    }
}
