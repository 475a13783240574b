//! The tasks of one owner: all of them end with it, and one that panics is noticed by it.
//!
//! Invariant: a task that dies ends its owner. Without it the owner would live on and do nothing, which nobody sees; a
//! program that ends is started again, and everything that matters is found again then.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks with an owner. Clones are the same tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    panic: Arc<OnceLock<String>>,
    panicked: CancellationToken,
}

impl Tasks {
    /// Starts a task; it ends at the latest with [`Self::end`].
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let (stop, panic, panicked) = (self.stop.clone(), self.panic.clone(), self.panicked.clone());
        self.tracker.spawn(async move {
            // `None`: it was ended.
            if let Some(Err(words)) = stop.run_until_cancelled_owned(caught(task)).await {
                tracing::error!(panic = words, "a task panicked");
                panic.get_or_init(|| words);
                panicked.cancel();
            }
        });
    }

    /// Waits until a task has panicked; answers with what it said. Safe to cancel.
    pub async fn panicked(&self) -> String {
        self.panicked.cancelled().await;
        self.panic.get().cloned().unwrap_or_default()
    }

    /// How many have not ended.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Lets every task come to its own end, for at most `patience`; says how many had to be ended.
    pub async fn drain(&self, patience: Duration) -> usize {
        self.tracker.close();
        if tokio::time::timeout(patience, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let left = self.len();
        self.end().await;
        left
    }

    /// Ends every task where it waits.
    pub async fn end(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs a future; a panic of it is an error with the panic's words. Nothing that a panic may have left half done is used
/// again: the owner ends.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(payload) => Poll::Ready(Err(words(payload.as_ref()))),
    })
    .await
}

/// What a panic said.
fn words(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no words").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed_and_everything_else_ends() {
        let tasks = Tasks::default();
        let still_there = Arc::new(());
        let held = still_there.clone();
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        tasks.spawn(async {});
        let quiet = tokio::time::timeout(Duration::from_millis(20), tasks.panicked()).await;
        assert!(quiet.is_err(), "an end without a panic is none");
        tasks.spawn(async { panic!("attempt {}", 7) });
        assert_eq!(tasks.panicked().await, "attempt 7");
        tasks.end().await;
        assert_eq!(Arc::strong_count(&still_there), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_in_time_is_ended() {
        let tasks = Tasks::default();
        tasks.spawn(tokio::time::sleep(Duration::from_secs(1)));
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, 0);
        let tasks = Tasks::default();
        tasks.spawn(tokio::time::sleep(Duration::from_secs(1)));
        tasks.spawn(std::future::pending());
        assert_eq!(tasks.drain(Duration::from_secs(5)).await, 1);
        assert!(tasks.is_empty());
    }
}
