//! When a granted job is given up: the bytes it sealed are on the disk of an instance that does not come back.
//!
//! A granted job only ever waits for somebody to publish it (SPEC 3.9). What waits as an open upload is the store's and
//! anybody can complete it; a hidden file may be on one machine's disk alone. Only then, and only after the patience,
//! is a granted job failed.

use std::time::Duration;

use crate::failure::{Failure, FailureClass};
use crate::job::{Job, JobState};
use crate::manifest::Sealed;
use crate::time::Timestamp;

/// How long the instance must have been away, and the job granted.
pub const PATIENCE: Duration = Duration::from_secs(3600);

/// Code of the failure.
pub const SEALED_BYTES_LOST: &str = "sealed_bytes_lost";

/// Why a granted job fails now, if it does. `away_since` is since when the instance that sealed is away, `None` while
/// it is not. To be asked only when no other instance can reach the bytes.
pub fn given_up(job: &Job, away_since: Option<Timestamp>, now: Timestamp) -> Option<Failure> {
    let JobState::Finalizing { run, manifest } = &job.state else { return None };
    let waiting_since = away_since?.max(job.state_since);
    if now.since(waiting_since) < PATIENCE {
        return None;
    }
    let on_disk =
        || manifest.objects.iter().filter(|object| matches!(object.sealed, Sealed::HiddenFile { .. }));
    let first = on_disk().next()?;
    let message = format!(
        "{} sealed outputs (the first is {}) are on the disk of instance {}, which has been away for {} minutes, and on no \
         other instance; outputs in other stores may be published. If the instance will not come back, run the job again \
         with `telecine jobs retry {}`; keep its outputs in a store that every instance reaches to be safe from this",
        on_disk().count(),
        first.key,
        run.instance,
        now.since(waiting_since).as_secs() / 60,
        job.id,
    );
    Some(Failure::new(FailureClass::Infrastructure, SEALED_BYTES_LOST, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{at, instance_id, job, manifest, sealed};
    use crate::id::{AttemptNumber, Epoch};
    use crate::job::Run;
    use crate::manifest::Manifest;

    fn granted(manifest: Manifest) -> Job {
        let run = Run { attempt: AttemptNumber(1), epoch: Epoch(1), instance: instance_id(1), since: at(0) };
        Job { state: JobState::Finalizing { run, manifest }, state_since: at(100), ..job(1) }
    }

    fn on_disk() -> Manifest {
        let mut object = sealed("out/a.mp4", 7);
        object.sealed = Sealed::HiddenFile { hidden_key: "out/.telecine-upload-x".to_owned() };
        Manifest { objects: vec![object] }
    }

    fn uploaded() -> Manifest {
        let mut object = sealed("out/a.mp4", 7);
        object.sealed = Sealed::Upload { upload_id: "u".to_owned(), parts: vec![] };
        Manifest { objects: vec![object] }
    }

    #[test]
    fn only_bytes_on_a_disk_that_is_long_away_are_given_up() {
        let job = granted(on_disk());
        assert_eq!(given_up(&job, None, at(1_000_000)), None, "its instance is here");
        assert_eq!(given_up(&job, Some(at(0)), at(3_699)), None, "an hour counts from the grant, too");
        let failure = given_up(&job, Some(at(0)), at(3_700)).unwrap();
        assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Infrastructure, SEALED_BYTES_LOST));
        for word in ["out/a.mp4", "60 minutes", "telecine jobs retry", &instance_id(1).to_string()] {
            assert!(failure.message.contains(word), "{}", failure.message);
        }
        assert_eq!(given_up(&job, Some(at(500)), at(3_700)), None, "away later than granted");
        assert_eq!(
            given_up(&granted(uploaded()), Some(at(0)), at(1_000_000)),
            None,
            "anybody can complete it"
        );
    }

    #[test]
    fn what_is_not_granted_is_never_given_up_here() {
        let mut running = granted(manifest());
        let JobState::Finalizing { run, .. } = running.state else { unreachable!("made so above") };
        running.state = JobState::Running(run);
        assert_eq!(given_up(&running, Some(at(0)), at(1_000_000)), None);
    }
}
