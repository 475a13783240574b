//! One region: wait for its leadership, work under its term, step down when it is lost, and wait again.
//!
//! Invariant: nothing is done under a term after the time at which its last renewal (counted from when it was asked
//! for) runs out, so that a manager that was frozen wakes up without a region. What slips through is stopped by the
//! conditional writes.

use std::sync::Arc;
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_core::leader::{self, LeaderError, Leadership};
use telecine_domain::id::RegionName;
use telecine_proto::identity::CertificateAuthority;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::ManagerConfig;
use crate::lead::Lead;
use crate::metrics::RegionMetrics;
use crate::sessions::Leads;
use crate::{cordons, dispatch, feed, scaling, stops};

/// A region and what a manager needs to lead it.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) region: RegionName,
    pub(crate) backend: Backend,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) config: Arc<ManagerConfig>,
    pub(crate) leads: Leads,
    /// Where agents reach this manager.
    pub(crate) addresses: Vec<String>,
}

/// Leads the region whenever it can, until `shutdown`.
///
/// # Errors
/// When a part of it has died: only a defect does that, and leading again would only hide it.
pub(crate) async fn run(candidate: Candidate, shutdown: CancellationToken) -> Result<(), String> {
    let metrics = RegionMetrics::new(&candidate.region);
    let mut told = String::new();
    while !shutdown.is_cancelled() {
        metrics.leading(false);
        let asked = Instant::now();
        let clock = candidate.config.clock;
        let acquired = leader::acquire(
            &candidate.backend,
            &candidate.region,
            &candidate.config.id,
            &candidate.addresses,
            candidate.config.leadership,
            clock.now(),
        );
        match acquired.await {
            Ok(leadership) => {
                metrics.leading(true);
                told.clear();
                reign(&candidate, leadership, asked, &shutdown)
                    .await
                    .inspect_err(|_| metrics.leading(false))?;
                // Whatever ended it may end the next one, too; and another manager may want its turn.
                wait(candidate.config.leadership / 4, &shutdown).await;
            }
            Err(LeaderError::Held { holder, .. }) => {
                if told != holder {
                    info!(region = %candidate.region, leader = holder, "standing by");
                    told = holder;
                }
                wait(candidate.config.leadership / 4, &shutdown).await;
            }
            Err(problem) => {
                warn!(region = %candidate.region, %problem, "the leadership was not taken; it is tried again");
                wait(candidate.config.leadership / 4, &shutdown).await;
            }
        }
    }
    metrics.leading(false);
    Ok(())
}

async fn wait(time: Duration, shutdown: &CancellationToken) {
    let _shut_down = timeout(time, shutdown.cancelled()).await;
}

/// Works under one term until it is lost or the manager stops.
async fn reign(
    candidate: &Candidate,
    leadership: Leadership,
    asked: Instant,
    shutdown: &CancellationToken,
) -> Result<(), String> {
    let region = &candidate.region;
    let over = shutdown.child_token();
    // Also when this future is dropped: nothing may go on under a term that nobody renews.
    let _guard = over.clone().drop_guard();
    let (lead, commands) = Lead::new(
        region.clone(),
        leadership.term,
        candidate.backend.clone(),
        candidate.authority.clone(),
        candidate.config.clone(),
        over.clone(),
    );
    info!(%region, term = leadership.term.0, "leading");
    lead.spawn(until_over(lead.clone(), "dispatch", dispatch::run(lead.clone(), commands)));
    lead.spawn(work(lead.clone(), candidate.leads.clone()));
    let (leadership, ended) = tokio::select! {
        leadership = hold(candidate, leadership, asked, &over) => (leadership, Ok(())),
        words = lead.tasks.panicked() => (None, Err(words)),
    };
    candidate.leads.end(&lead);
    over.cancel();
    info!(%region, term = lead.term.0, "not leading any more");
    let left = lead.tasks.drain(candidate.config.drain).await;
    if left > 0 {
        warn!(%region, left, "not everything ended in time; the next leader sees what was recorded");
    }
    if let Some(leadership) = leadership
        && let Err(problem) =
            leader::release(&candidate.backend, &leadership, candidate.config.clock.now()).await
    {
        warn!(%region, %problem, "the leadership was not given back; it runs out by itself");
    }
    ended.inspect_err(|words| error!(%region, words, "a part of the manager has died"))
}

/// One of the loops of a leadership: that it ends before the leadership is a defect.
async fn until_over(lead: Arc<Lead>, name: &'static str, task: impl Future<Output = ()>) {
    task.await;
    assert!(lead.over.is_cancelled(), "{name} of region {} ended by itself", lead.region);
}

/// Loads the region, opens it to its agents, and runs what feeds it.
async fn work(lead: Arc<Lead>, leads: Leads) {
    while let Err(problem) = feed::load_all(&lead).await {
        warn!(region = %lead.region, %problem, "the region was not loaded; it is tried again");
        lead.pause(Duration::from_secs(1)).await;
        if lead.over.is_cancelled() {
            return;
        }
    }
    // Only now: a hello that came before the live attempts were known would give their capacity out twice.
    leads.begin(lead.clone());
    lead.spawn(until_over(lead.clone(), "receive", feed::receive(lead.clone())));
    lead.spawn(until_over(lead.clone(), "keep_receipts", feed::keep_receipts(lead.clone())));
    lead.spawn(until_over(lead.clone(), "reconcile", feed::reconcile(lead.clone())));
    lead.spawn(until_over(lead.clone(), "cordons", cordons::watch(lead.clone())));
    lead.spawn(until_over(lead.clone(), "stops", stops::poll(lead.clone())));
    lead.spawn(until_over(lead.clone(), "scaling", scaling::run(lead.clone())));
}

/// Renews the leadership until it is lost. Gives it back when it may still be ours.
async fn hold(
    candidate: &Candidate,
    mut leadership: Leadership,
    mut asked: Instant,
    over: &CancellationToken,
) -> Option<Leadership> {
    let life = candidate.config.leadership;
    loop {
        if timeout(life / 3, over.cancelled()).await.is_ok() {
            return Some(leadership);
        }
        let ends = asked + life;
        let now = Instant::now();
        let renewed = leader::renew(&candidate.backend, &leadership, life, candidate.config.clock.now());
        match timeout_at(ends, renewed).await {
            Ok(Ok(renewed)) => (leadership, asked) = (renewed, now),
            Ok(Err(LeaderError::Record(problem))) if Instant::now() < ends => {
                warn!(region = %candidate.region, %problem, "the leadership was not renewed yet");
            }
            Ok(Err(LeaderError::Record(_))) | Err(_) => {
                warn!(region = %candidate.region, "the leadership could not be renewed in time; stepping down");
                return None;
            }
            Ok(Err(lost)) => {
                warn!(region = %candidate.region, %lost, "another manager leads; stepping down");
                return None;
            }
        }
    }
}
