//! What a manager holds while it leads a region, shared by everything that runs under one term.
//!
//! When the leadership is over, `over` is canceled: sessions end, loops stop, and a new `Lead` with a higher term takes
//! the place of this one. Nothing here is the truth: the table is, and every write is conditional on it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use telecine_core::backend::Backend;
use telecine_core::cordon::Cordoned;
use telecine_core::dispatch;
use telecine_core::record::RecordError;
use telecine_core::update::ChangeError;
use telecine_domain::attempt::AttemptId;
use telecine_domain::autoscale::Waiting;
use telecine_domain::id::{InstanceId, JobId, RegionName, Term};
use telecine_domain::instance::{InstanceProfile, Notice};
use telecine_domain::job::{Job, JobState};
use telecine_domain::region::{LiveAttempt, QueuedJob, RegionEvent};
use telecine_domain::time::Timestamp;
use telecine_proto::identity::CertificateAuthority;
use telecine_proto::tasks::Tasks;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::ManagerConfig;
use crate::feed::Receipts;
use crate::metrics::{Refusal, RegionMetrics};
use crate::registry::{CoordinatorCaller, Open, Registry};
use crate::stops::Stops;

/// Commands that wait for the dispatch loop.
const COMMANDS: usize = 1024;
/// Pause before something that must be recorded is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the dispatch loop is asked.
pub(crate) enum Command {
    /// The region is told.
    Event(RegionEvent),
    /// A coordinator has said hello.
    Attach {
        /// What its instance is.
        profile: Box<InstanceProfile>,
        /// The attempts of its hello that go on.
        running: Vec<AttemptId>,
        /// Its cordon, which its coordinator was told on this stream.
        cordon: Option<Cordoned>,
        /// What its provider has announced.
        notice: Notice,
        /// Its stream.
        stream: Open<CoordinatorCaller>,
    },
    /// A coordinator's stream has ended.
    Detach {
        /// Which instance.
        instance: InstanceId,
        /// Which stream.
        generation: u64,
    },
    /// The cordons of the region, as read just now.
    Cordons(Vec<Cordoned>),
    /// A coordinator says that it holds no attempt at this cordon.
    IdleAt {
        /// Which instance.
        instance: InstanceId,
        /// Which stream.
        generation: u64,
        /// The number of the cordon.
        number: u64,
    },
    /// A worker was heard: does it still have its right?
    Renew {
        /// Which attempt.
        attempt: AttemptId,
        /// Gets the answer.
        answer: oneshot::Sender<bool>,
    },
    /// What is known of jobs?
    Survey(oneshot::Sender<Survey>),
    /// What waits, and may be placed now?
    Waiting(oneshot::Sender<Vec<Waiting>>),
}

/// The jobs the region knows.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) queued: Vec<JobId>,
    pub(crate) live: Vec<AttemptId>,
}

/// A leadership at work.
pub(crate) struct Lead {
    pub(crate) region: RegionName,
    pub(crate) term: Term,
    pub(crate) backend: Backend,
    pub(crate) authority: Arc<CertificateAuthority>,
    pub(crate) config: Arc<ManagerConfig>,
    /// When the leadership began: what was before, nobody may have seen.
    pub(crate) began: Timestamp,
    pub(crate) registry: Registry,
    pub(crate) receipts: Receipts,
    pub(crate) stops: Stops,
    pub(crate) metrics: RegionMetrics,
    /// Canceled when the leadership is over.
    pub(crate) over: CancellationToken,
    /// Everything that was started under this term.
    pub(crate) tasks: Tasks,
    /// Attempts whose assignment is on its way to their coordinator.
    sending: Mutex<BTreeSet<AttemptId>>,
    commands: mpsc::Sender<Command>,
}

/// Marks an attempt as being sent, until dropped.
pub(crate) struct Sending {
    lead: Arc<Lead>,
    attempt: AttemptId,
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.lead.sending.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.attempt);
    }
}

impl Lead {
    /// A leadership that has just begun, and the commands its dispatch loop is to take.
    pub(crate) fn new(
        region: RegionName,
        term: Term,
        backend: Backend,
        authority: Arc<CertificateAuthority>,
        config: Arc<ManagerConfig>,
        over: CancellationToken,
    ) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let lead = Self {
            metrics: RegionMetrics::new(&region),
            region,
            term,
            backend,
            authority,
            began: config.clock.now(),
            config,
            registry: Registry::new(),
            receipts: Receipts::default(),
            stops: Stops::default(),
            over,
            tasks: Tasks::default(),
            sending: Mutex::new(BTreeSet::new()),
            commands,
        };
        (Arc::new(lead), receiver)
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// Starts something that belongs to this leadership. A panic of it ends the manager: what it was to record is found
    /// again by the next.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Marks an attempt as being sent.
    pub(crate) fn sending(self: &Arc<Self>, attempt: AttemptId) -> Sending {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt);
        Sending { lead: self.clone(), attempt }
    }

    /// Whether an attempt's assignment is on its way.
    pub(crate) fn is_sending(&self, attempt: AttemptId) -> bool {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner).contains(&attempt)
    }

    /// Asks the dispatch loop; when it is gone, the leadership is over and nothing is lost by silence.
    pub(crate) async fn command(&self, command: Command) {
        let _over = self.commands.send(command).await;
    }

    /// Tells the region.
    pub(crate) async fn tell(&self, event: RegionEvent) {
        self.command(Command::Event(event)).await;
    }

    /// A worker was heard. `false` means that its right is gone: it must stop and publish nothing.
    pub(crate) async fn renew(&self, attempt: AttemptId) -> bool {
        let (answer, renewed) = oneshot::channel();
        self.command(Command::Renew { attempt, answer }).await;
        renewed.await.unwrap_or(false)
    }

    /// The jobs the region knows; `None` when the leadership is over.
    pub(crate) async fn survey(&self) -> Option<Survey> {
        let (answer, survey) = oneshot::channel();
        self.command(Command::Survey(answer)).await;
        survey.await.ok()
    }

    /// What waits, and may be placed now; `None` when the leadership is over.
    pub(crate) async fn waiting(&self) -> Option<Vec<Waiting>> {
        let (answer, waiting) = oneshot::channel();
        self.command(Command::Waiting(answer)).await;
        waiting.await.ok()
    }

    /// Tells everybody here what a job is, as recorded.
    pub(crate) async fn tell_job(self: &Arc<Self>, job: &Job) {
        if let Some(queued) = QueuedJob::of(job) {
            return self.tell(RegionEvent::JobQueued(queued)).await;
        }
        self.receipts.left(job.id);
        if let Some(live) = LiveAttempt::of(job) {
            self.tell(RegionEvent::AttemptLive(live)).await;
            if matches!(job.state, JobState::Canceling { .. }) {
                self.stops.request(self, job);
            }
            return;
        }
        self.tell(RegionEvent::JobLeft(job.id)).await;
        let last = AttemptId { job: job.id, attempt: job.attempts, epoch: job.epoch };
        self.tell(RegionEvent::AttemptOver(last)).await;
    }

    /// Tells everybody here what became of an attempt's job.
    pub(crate) async fn tell_outcome(self: &Arc<Self>, attempt: AttemptId, job: &Job) {
        if job.live_attempt() != Some(attempt) {
            self.tell(RegionEvent::AttemptOver(attempt)).await;
        }
        self.tell_job(job).await;
    }

    /// Records a change of an attempt, trying until it is recorded or refused, or the leadership is over. Whatever
    /// comes of it, the region hears how the job is then. Says whether it was recorded.
    pub(crate) async fn persist<F>(self: &Arc<Self>, attempt: AttemptId, change: impl Fn() -> F) -> bool
    where
        F: Future<Output = Result<Job, ChangeError>>,
    {
        while !self.over.is_cancelled() {
            match change().await {
                Ok(job) => {
                    self.tell_outcome(attempt, &job).await;
                    return true;
                }
                Err(ChangeError::Record(error)) => {
                    warn!(%attempt, %error, "a change was not recorded; it is tried again");
                    self.pause(RETRY).await;
                }
                Err(refused) => {
                    self.count(&refused);
                    self.reload(attempt).await;
                    return false;
                }
            }
        }
        false
    }

    /// Reads an attempt's job and tells everybody here; tries until it is read or the leadership is over.
    pub(crate) async fn reload(self: &Arc<Self>, attempt: AttemptId) -> Option<Job> {
        let job = self.load(attempt.job).await?;
        match &job {
            Some(job) => self.tell_outcome(attempt, job).await,
            None => {
                self.tell(RegionEvent::AttemptOver(attempt)).await;
                self.tell(RegionEvent::JobLeft(attempt.job)).await;
            }
        }
        job
    }

    /// Reads a job, trying until the table answers. `None` when the leadership is over.
    pub(crate) async fn load(&self, job: JobId) -> Option<Option<Job>> {
        while !self.over.is_cancelled() {
            match dispatch::load(&self.backend, job).await {
                Ok(found) => return Some(found),
                Err(error) if is_damaged(&error) => {
                    warn!(%job, %error, "a job cannot be read; it is left alone");
                    return Some(None);
                }
                Err(error) => {
                    warn!(%job, %error, "a job was not read; it is tried again");
                    self.pause(RETRY).await;
                }
            }
        }
        None
    }

    /// Waits, or until the leadership is over.
    pub(crate) async fn pause(&self, time: Duration) {
        let _over = tokio::time::timeout(time, self.over.cancelled()).await;
    }

    /// Counts a change that was refused.
    pub(crate) fn count(&self, error: &ChangeError) {
        match error {
            ChangeError::Stale { .. } | ChangeError::NotFound(_) | ChangeError::Outdated { .. } => {
                self.metrics.refused(Refusal::Stale);
            }
            ChangeError::Illegal { .. } => self.metrics.refused(Refusal::Illegal),
            ChangeError::Record(_) => {}
        }
    }
}

/// Whether trying again cannot help: the job's row, or what it refers to, is not what it should be.
pub(crate) fn is_damaged(error: &RecordError) -> bool {
    !error.is_transient()
}
