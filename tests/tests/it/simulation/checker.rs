//! The promises of the platform, held against what is seen: the history of each job, its row, and what appeared in the
//! store. It decides nothing and knows nothing of how the faults come about.

use std::collections::{BTreeMap, BTreeSet};

use telecine_core::update::{Happened, JobRecord};
use telecine_domain::failure::FailureClass;
use telecine_domain::id::{AttemptNumber, Epoch, JobId};
use telecine_domain::job::{Job, StateName};
use telecine_domain::transition::is_drawn;

use super::store::Published;

/// A promise was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation(pub(super) String);

fn check(holds: bool, broken: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(broken())) }
}

/// What was seen of a job so far.
#[derive(Clone, Debug, Default)]
struct Track {
    version: u64,
    state: Option<StateName>,
    epoch: Epoch,
    attempt: AttemptNumber,
    granted: Option<Epoch>,
    published: Option<Epoch>,
    /// Times the user's budget had to pay.
    user_requeues: u32,
    assigned: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Checker {
    tracks: BTreeMap<JobId, Track>,
}

impl Checker {
    /// The version up to which the job's history is known.
    pub(super) fn version(&self, job: JobId) -> u64 {
        self.tracks.get(&job).map_or(0, |track| track.version)
    }

    pub(super) fn state(&self, job: JobId) -> Option<StateName> {
        self.tracks.get(&job).and_then(|track| track.state)
    }

    pub(super) fn granted(&self, job: JobId) -> Option<Epoch> {
        self.tracks.get(&job).and_then(|track| track.granted)
    }

    pub(super) fn assignments(&self) -> u32 {
        self.tracks.values().map(|track| track.assigned).sum()
    }

    /// The next row of a job's history. `engine_failures` are the attempts whose engines really failed.
    pub(super) fn follow(
        &mut self,
        job: JobId,
        record: &JobRecord,
        engine_failures: &BTreeSet<(JobId, Epoch)>,
    ) -> Result<(), Violation> {
        let track = self.tracks.entry(job).or_default();
        check(record.version == track.version + 1, || {
            format!("{job}: version {} of its history follows {}", record.version, track.version)
        })?;
        let drawn = match track.state {
            None => record.event == Happened::Accepted,
            Some(from) => {
                is_drawn(from, record.state) || (from == record.state && record.event == Happened::Edited)
            }
        };
        check(drawn, || {
            format!("{job}: it went from {:?} to {} by {:?}", track.state, record.state, record.event)
        })?;
        check(record.epoch >= track.epoch && record.attempt >= track.attempt, || {
            format!("{job}: from epoch {} it went back to {}", track.epoch, record.epoch)
        })?;
        if record.event == Happened::Assigned {
            check(record.epoch > track.epoch && record.attempt > track.attempt, || {
                format!("{job}: epoch {} was handed out twice", record.epoch)
            })?;
            track.assigned += 1;
        }
        if record.event == Happened::Granted {
            check(track.granted.is_none(), || {
                format!("{job}: two grants, {:?} and {}", track.granted, record.epoch)
            })?;
            track.granted = Some(record.epoch);
        }
        if record.failure.as_ref().is_some_and(|failure| failure.class == FailureClass::Engine) {
            // The attempt that failed is the one before this change.
            check(engine_failures.contains(&(job, track.epoch)), || {
                format!("{job}: an interruption is charged to the user: {:?}", record.failure)
            })?;
            track.user_requeues += u32::from(record.state == StateName::Queued);
        }
        (track.version, track.state) = (record.version, Some(record.state));
        (track.epoch, track.attempt) = (record.epoch, record.attempt);
        Ok(())
    }

    /// A job's row; its history was followed after the row was read.
    pub(super) fn row(&self, job: &Job) -> Result<(), Violation> {
        let id = job.id;
        let track = self.tracks.get(&id).cloned().unwrap_or_default();
        check(track.version >= job.version, || {
            format!("{id}: it is at version {}, its history at {}", job.version, track.version)
        })?;
        if track.version > job.version {
            return Ok(());
        }
        check(track.state == Some(job.state.name()) && track.epoch == job.epoch, || {
            format!("{id}: it is {} at epoch {}, its history says {track:?}", job.state.name(), job.epoch)
        })?;
        check(track.user_requeues == job.user_retries, || {
            format!(
                "{id}: {} of the user's retries are used, {} were due",
                job.user_retries, track.user_requeues
            )
        })
    }

    /// Something appeared in the store; the histories were followed since.
    pub(super) fn published(&mut self, published: &Published) -> Result<(), Violation> {
        let Some(attempt) = published.attempt else {
            return Err(Violation(format!("{} was published by nobody", published.key)));
        };
        let track = self.tracks.entry(attempt.job).or_default();
        check(track.granted == Some(attempt.epoch), || {
            format!("{attempt} published {}, granted is {:?}", published.key, track.granted)
        })?;
        check(track.published.is_none(), || format!("{} was published twice", published.key))?;
        track.published = Some(attempt.epoch);
        Ok(())
    }

    /// The job's end, in a whole world: `must_succeed` when nothing but faults stood in its way.
    pub(super) fn over(&self, job: JobId, must_succeed: bool, canceled: bool) -> Result<(), Violation> {
        let track = self.tracks.get(&job).cloned().unwrap_or_default();
        check(track.state.is_some_and(StateName::is_terminal), || {
            format!("{job}: it never ended: {track:?}")
        })?;
        let succeeded = track.state == Some(StateName::Succeeded);
        check(succeeded == track.granted.is_some() && track.granted == track.published, || {
            format!("{job}: state, grant and publishing disagree: {track:?}")
        })?;
        check(!canceled || track.state == Some(StateName::Canceled), || {
            format!("{job}: its cancellation was acknowledged, it is {:?}", track.state)
        })?;
        check(canceled || succeeded || !must_succeed, || format!("{job}: faults alone ended it: {track:?}"))
    }
}

#[cfg(test)]
mod tests {
    use telecine_domain::attempt::AttemptId;
    use telecine_domain::failure::Failure;
    use telecine_domain::time::Timestamp;

    use super::*;

    fn job() -> JobId {
        JobId::new(Timestamp::from_millis(1), 1)
    }

    fn record(version: u64, event: Happened, state: StateName, epoch: u64) -> JobRecord {
        JobRecord {
            version,
            at: Timestamp::from_millis(version),
            event,
            state,
            attempt: AttemptNumber(u32::try_from(epoch).unwrap()),
            epoch: Epoch(epoch),
            instance: None,
            failure: None,
            token: String::new(),
        }
    }

    /// A life up to the grant of epoch 1.
    fn granted() -> Vec<JobRecord> {
        vec![
            record(1, Happened::Accepted, StateName::Queued, 0),
            record(2, Happened::Assigned, StateName::Assigned, 1),
            record(3, Happened::Started, StateName::Starting, 1),
            record(4, Happened::EngineRunning, StateName::Running, 1),
            record(5, Happened::Granted, StateName::Finalizing, 1),
        ]
    }

    fn follow(records: &[JobRecord]) -> Result<Checker, Violation> {
        let mut checker = Checker::default();
        records.iter().try_for_each(|record| checker.follow(job(), record, &BTreeSet::new()))?;
        Ok(checker)
    }

    fn publish(checker: &mut Checker, epoch: u64) -> Result<(), Violation> {
        let attempt = AttemptId { job: job(), attempt: AttemptNumber(1), epoch: Epoch(epoch) };
        checker.published(&Published { attempt: Some(attempt), key: "out".to_owned() })
    }

    #[test]
    fn a_good_life_is_good() {
        let mut records = granted();
        records.push(record(6, Happened::Published, StateName::Succeeded, 1));
        let mut checker = follow(&records).unwrap();
        publish(&mut checker, 1).unwrap();
        checker.over(job(), true, false).unwrap();
    }

    #[test]
    fn every_broken_history_is_seen() {
        let change = |change: &dyn Fn(&mut Vec<JobRecord>)| {
            let mut records = granted();
            change(&mut records);
            follow(&records).err().expect("it is broken").0
        };
        assert!(change(&|records| drop(records.remove(2))).contains("follows"));
        assert!(change(&|records| records[2].state = StateName::Succeeded).contains("it went from"));
        assert!(change(&|records| records[3].epoch = Epoch(0)).contains("went back"));
        assert!(change(&|records| records[1].epoch = Epoch(0)).contains("handed out twice"));
        let lost = Failure::new(FailureClass::Engine, "engine_exit", "a lost instance");
        let charged = change(&|records| {
            records[4] = JobRecord {
                failure: Some(lost.clone()),
                ..record(5, Happened::AttemptFailed, StateName::Queued, 1)
            }
        });
        assert!(charged.contains("charged to the user"), "{charged}");
    }

    #[test]
    fn every_wrong_publishing_is_seen() {
        let mut checker = follow(&granted()).unwrap();
        assert!(publish(&mut checker, 2).unwrap_err().0.contains("granted is"));
        publish(&mut checker, 1).unwrap();
        assert!(publish(&mut checker, 1).unwrap_err().0.contains("twice"));
        assert!(publish(&mut follow(&granted()[..4]).unwrap(), 1).is_err(), "there is no grant yet");
        let nobody = Published { attempt: None, key: "out".to_owned() };
        assert!(checker.published(&nobody).unwrap_err().0.contains("nobody"));
    }

    #[test]
    fn a_job_that_does_not_end_well_is_seen() {
        let checker = follow(&granted()).unwrap();
        assert!(checker.over(job(), true, false).unwrap_err().0.contains("never ended"));
        let mut records = granted();
        records.push(record(6, Happened::Published, StateName::Succeeded, 1));
        let mut checker = follow(&records).unwrap();
        assert!(
            checker.over(job(), true, false).unwrap_err().0.contains("disagree"),
            "nothing was published"
        );
        publish(&mut checker, 1).unwrap();
        assert!(checker.over(job(), true, true).unwrap_err().0.contains("acknowledged"));
        let mut records = granted()[..1].to_vec();
        records.push(record(2, Happened::AttemptFailed, StateName::Failed, 0));
        assert!(follow(&records).unwrap().over(job(), true, false).unwrap_err().0.contains("faults alone"));
    }
}
