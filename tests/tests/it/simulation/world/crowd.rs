//! More jobs than there is room, on instances that take their time to clean up.

use super::*;

/// Every job of a crowd is over within this.
const OVER: Duration = Duration::from_secs(1_200);

impl World {
    /// Submits `jobs` that may not be tried again, none of which does anything wrong, and sees all of them through.
    /// Gives how many attempts that took.
    pub(crate) async fn crowd(&mut self, jobs: usize, clean_up: Duration) -> Result<u32, Violation> {
        self.calm_down();
        *self.stage.clean_up.lock().unwrap() = clean_up;
        for number in 0..jobs {
            let key = format!("1s-0f-{number}");
            let body = json!({
                "service": "stub",
                "composition": {
                    "inputs": {},
                    "processing": {},
                    "outputs": {"result": {"store": "media", "key": key}},
                },
                "retry": {"user": 0, "infrastructure": 0},
            });
            let accepted = jobs::submit(&self.client, self.account, &body, None, self.clock.now()).await;
            let job = accepted.expect("a calm table").job.id;
            self.promises.insert(job, Promise { must_succeed: true, canceled: false, key });
        }
        self.until(OVER, Self::all_over).await?;
        self.judge().await?;
        Ok(self.checker.assignments())
    }
}
