//! Records what a live attempt says about itself without changing the job: its log, at once and in order, and its
//! progress, as rarely as nobody minds.
//!
//! Unwatched progress must not cost writes (SPEC 3.6): while somebody watches at most one write a second, else at most
//! one a minute, always of the newest report. Log chunks are numbered; one that comes twice is answered like the first
//! time, one that skips is answered with the last that is stored, and the worker goes on from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use telecine_core::recorder::{self, Appended};
use telecine_domain::attempt::{AttemptId, Progress};
use telecine_domain::id::AccountId;
use telecine_domain::job::Job;
use telecine_proto::worker::v1::{Accepted, Refused, Watch, from_manager};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::warn;

use crate::lead::Lead;
use crate::registry::WorkerCaller;

/// Reports that wait to be recorded.
const WAITING: usize = 16;
/// Shortest time between two writes of progress while somebody watches.
const WATCHED: Duration = Duration::from_secs(1);
/// Shortest time between two writes of progress while nobody does.
const UNWATCHED: Duration = Duration::from_secs(60);
/// How often the mark of a watcher is looked for when something was written.
const LOOK: Duration = Duration::from_millis(500);

/// A report.
pub(crate) enum Media {
    /// How far it is.
    Progress(Progress),
    /// Engine output: a call, the chunk's number from 1, its bytes.
    Log {
        /// The call to answer; 0 for none.
        call: u64,
        /// From 1.
        sequence: u64,
        /// The bytes.
        data: Vec<u8>,
    },
}

/// Where a session puts reports.
pub(crate) struct Lane {
    reports: mpsc::Sender<Media>,
    watched: Arc<AtomicBool>,
}

impl Lane {
    /// Puts a report in line; `false` when the line is full. Progress that finds no place is superseded by the next.
    pub(crate) fn offer(&self, report: Media) -> bool {
        self.reports.try_send(report).is_ok()
    }

    /// Whether somebody watched when it was last looked for.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }
}

/// Records the reports of one worker's stream.
pub(crate) struct Recorder {
    lead: Arc<Lead>,
    account: AccountId,
    attempt: AttemptId,
    caller: WorkerCaller,
    reports: mpsc::Receiver<Media>,
    watched: Arc<AtomicBool>,
    revision: watch::Receiver<u64>,
    newest: Option<Progress>,
    /// When progress may be written again.
    write_at: Instant,
    look_at: Instant,
    looked_at: Option<Instant>,
}

impl Recorder {
    /// The recorder of a stream, to be run, and where its reports go.
    pub(crate) fn start(
        lead: &Arc<Lead>,
        job: &Job,
        attempt: AttemptId,
        caller: WorkerCaller,
    ) -> (Lane, Self) {
        let (sender, reports) = mpsc::channel(WAITING);
        let watched = Arc::new(AtomicBool::new(false));
        let now = Instant::now();
        let recorder = Self {
            lead: lead.clone(),
            account: job.account,
            attempt,
            caller,
            reports,
            watched: watched.clone(),
            revision: lead.backend.table.revision(),
            newest: None,
            write_at: now + UNWATCHED,
            look_at: now,
            looked_at: None,
        };
        (Lane { reports: sender, watched }, recorder)
    }

    /// Runs until the stream has ended and everything is recorded.
    pub(crate) async fn run(mut self) {
        loop {
            let write_at = if self.newest.is_some() { self.write_at } else { self.look_at };
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(Media::Progress(progress)) => self.newest = Some(progress),
                    Some(Media::Log { call, sequence, data }) => self.log(call, sequence, &data).await,
                    None => break,
                },
                () = tokio::time::sleep_until(write_at.min(self.look_at)) => {}
            }
            self.look().await;
            if Instant::now() >= self.write_at {
                self.write_progress().await;
            }
        }
        if self.is_watched() {
            self.write_progress().await;
        }
    }

    fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Looks whether somebody watches: soon when something was written through this process, else now and then.
    async fn look(&mut self) {
        let now = Instant::now();
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK;
        let is_changed = self.revision.has_changed().unwrap_or(false);
        let is_due = self.looked_at.is_none_or(|at| now >= at + self.lead.config.watch_poll);
        if !is_changed && !is_due {
            return;
        }
        self.revision.borrow_and_update();
        self.looked_at = Some(now);
        let asked = recorder::watched(&self.lead.backend, self.account, self.attempt.job, self.lead.now());
        match asked.await {
            Ok(watched) => self.set_watched(watched).await,
            Err(error) => warn!(attempt = %self.attempt, %error, "it is not known whether somebody watches"),
        }
    }

    async fn set_watched(&mut self, watched: bool) {
        if self.watched.swap(watched, Ordering::Relaxed) == watched {
            return;
        }
        let now = Instant::now();
        self.write_at = if watched { now } else { now + UNWATCHED };
        // A worker that is gone asks again with its next hello.
        let _gone = self.caller.reply(0, from_manager::Body::Watch(Watch { watched })).await;
    }

    async fn write_progress(&mut self) {
        let Some(progress) = self.newest.take() else { return };
        self.write_at = Instant::now() + if self.is_watched() { WATCHED } else { UNWATCHED };
        match recorder::put_progress(&self.lead.backend, self.account, &progress).await {
            Ok(_) => self.lead.metrics.progress_written(),
            Err(error) => {
                warn!(attempt = %self.attempt, %error, "progress was not recorded; a later report follows");
            }
        }
    }

    async fn log(&self, call: u64, sequence: u64, data: &[u8]) {
        let (lead, attempt) = (&self.lead, self.attempt);
        // Here chunks count from 1, so that 0 says "none"; in the table they count from 0.
        let appended =
            recorder::append_log(&lead.backend, self.account, attempt, sequence - 1, data, lead.now()).await;
        let body = match appended {
            Ok(Appended::Written) => {
                lead.metrics.log_stored(data.len());
                stored(sequence)
            }
            Ok(Appended::Duplicate) => stored(sequence),
            Ok(Appended::Gap { expected }) => stored(expected),
            Err(error) => {
                warn!(%attempt, %error, "a log chunk was not stored; the worker sends it again");
                let message = "the chunk could not be stored just now; send it again".to_owned();
                from_manager::Body::Refused(Refused { code: "unavailable".to_owned(), message })
            }
        };
        if call != 0 {
            // A worker that is gone asks again with its next hello.
            let _gone = self.caller.reply(call, body).await;
        }
    }
}

fn stored(log_sequence: u64) -> from_manager::Body {
    from_manager::Body::Accepted(Accepted { log_sequence, ..Default::default() })
}
