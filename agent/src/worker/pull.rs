//! Makes the container, fetching its image first when it is not there.
//!
//! The usual case is one call: the image is there. Otherwise attempts of the same image wait for each other on a lock
//! file of the instance, so that it is fetched once.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;
use telecine_domain::attempt::Phase;
use telecine_domain::engine::ImageReference;
use telecine_domain::failure::Failure;
use tokio::sync::watch;
use tokio::time::Instant;

use super::shared::Shared;
use crate::failure;
use crate::plain::ProgressReport;
use crate::runtime::{ContainerRuntime, ContainerSpec, Program, PullProgress, RuntimeError};

const LOCK_PAUSE: Duration = Duration::from_millis(100);
const TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long a pull may go on without a byte or any other sign. A pull that has tried this long is not tried again here.
const SILENCE: Duration = Duration::from_secs(120);

/// Makes the container of `spec`. An attempt that is stopped while it waits for the image gets none, and `Ok`: why it
/// stops is found in `shared`.
pub(crate) async fn create(
    shared: &Shared,
    runtime: &dyn ContainerRuntime,
    spec: &ContainerSpec,
    pulls_folder: &Path,
) -> Result<(), Failure> {
    let absent = match runtime.create(spec).await {
        Ok(()) => return Ok(()),
        Err(RuntimeError::ImageAbsent(_)) => true,
        Err(error) => return Err(failure::of_runtime(&error)),
    };
    debug_assert!(absent, "every other answer has returned");
    let Program::Image(image) = &spec.program else {
        return Err(failure::infrastructure("runtime_unavailable", "a program cannot lack an image"));
    };
    shared.enter(Phase::Pulling);
    let _turn = tokio::select! {
        biased;
        _ = shared.until_halted() => return Ok(()),
        turn = turn(image, pulls_folder) => turn,
    };
    // Another attempt may have fetched it while this one waited for its turn.
    match runtime.create(spec).await {
        Ok(()) => return Ok(()),
        Err(RuntimeError::ImageAbsent(_)) => {}
        Err(error) => return Err(failure::of_runtime(&error)),
    }
    tokio::select! {
        biased;
        _ = shared.until_halted() => return Ok(()),
        pulled = pull(shared, runtime, image) => pulled?,
    }
    runtime.create(spec).await.map_err(|error| failure::of_runtime(&error))
}

/// A registry that does not answer is asked again: most silences are short.
async fn pull(
    shared: &Shared,
    runtime: &dyn ContainerRuntime,
    image: &ImageReference,
) -> Result<(), Failure> {
    let mut pause = FIRST_PAUSE;
    let began = Instant::now();
    for attempt in 1..=TRIES {
        match pull_once(shared, runtime, image).await {
            Err(RuntimeError::RegistryUnreachable { answer, .. })
                if attempt < TRIES && began.elapsed() < SILENCE =>
            {
                tracing::warn!(%image, %answer, "the pull is tried again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            answer => return answer.map_err(|error| failure::of_runtime(&error)),
        }
    }
    Ok(())
}

async fn pull_once(
    shared: &Shared,
    runtime: &dyn ContainerRuntime,
    image: &ImageReference,
) -> Result<(), RuntimeError> {
    let (sender, mut progress) = watch::channel(PullProgress::default());
    shared.progress(phase("pulling".to_owned()));
    let telling = async {
        // The sender lives as long as this does: no change means no news.
        while let Ok(Ok(())) = tokio::time::timeout(SILENCE, progress.changed()).await {
            let now = *progress.borrow_and_update();
            if let Some(percent) = (now.done_bytes * 100).checked_div(now.total_bytes) {
                shared.progress(phase(format!("pulling {percent}%")));
            }
        }
    };
    tokio::select! {
        pulled = runtime.pull(image, &sender) => pulled,
        () = telling => Err(RuntimeError::RegistryUnreachable {
            image: image.to_string(),
            answer: format!("the pull brought nothing for {} s", SILENCE.as_secs()),
        }),
    }
}

fn phase(text: String) -> ProgressReport {
    ProgressReport { phase: Some(text), ..Default::default() }
}

/// The turn to fetch an image on this instance, given back when dropped. Without a lock file everybody fetches, which
/// is slower and no less right.
async fn turn(image: &ImageReference, folder: &Path) -> Option<File> {
    let path = folder.join(format!("{}.lock", image.digest().replace(':', "-")));
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "no lock for the pull"))
        .ok()?;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(file),
            Err(rustix::io::Errno::WOULDBLOCK) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(_) => return None,
        }
    }
}
