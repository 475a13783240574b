//! Drains: somebody cordons instances, takes that back, and takes those away whose end he could claim. Held against it:
//! what he takes away runs nothing.

use rand::RngExt as _;
use telecine_core::cordon::{self, CordonState, Outcome};
use telecine_domain::autoscale::CordonCause;
use telecine_domain::job::StateName;

use super::*;

impl World {
    /// One step of a drain, on some instance.
    pub(super) async fn drain_somewhere(&mut self) -> Result<(), Violation> {
        let nth = self.drains.random_range(0..HOSTS);
        let instance = self.instances[nth].config.instance_id.expect("every instance has an id");
        let row = cordon::of(&self.plain, &region(), instance).await.expect("the plain table answers");
        match row.map(|row| (row.number, row.state)) {
            None => self.cordon(nth, instance, 1).await,
            Some((number, CordonState::Lifted)) => self.cordon(nth, instance, number + 1).await,
            Some((number, CordonState::Standing { .. })) if self.drains.random_bool(0.2) => {
                self.lift(nth, instance, number).await;
            }
            Some((number, CordonState::Standing { .. } | CordonState::Terminating { .. })) => {
                self.claim(nth, instance, number).await?;
            }
        }
        Ok(())
    }

    async fn cordon(&mut self, nth: usize, instance: InstanceId, number: u64) {
        let (region, now) = (region(), self.clock.now());
        let placed = cordon::place(&self.plain, &region, instance, number, CordonCause::Idle, now).await;
        // A write may be spoilt: then another look sees what came of it.
        self.tally.cordoned += u32::from(matches!(placed, Ok(Outcome::Done)));
        self.note(format!("instance {nth} is cordoned, {number}: {placed:?}"));
    }

    async fn lift(&mut self, nth: usize, instance: InstanceId, number: u64) {
        let lifted = cordon::lift(&self.plain, &region(), instance, number, self.clock.now()).await;
        self.tally.lifted += u32::from(matches!(lifted, Ok(Outcome::Done)));
        self.note(format!("the cordon {number} of instance {nth} is lifted: {lifted:?}"));
    }

    async fn claim(&mut self, nth: usize, instance: InstanceId, number: u64) -> Result<(), Violation> {
        if self.stage.mutant == Some(Mutant::AcknowledgesAtOnce) {
            let at_once =
                cordon::acknowledge(&self.plain, &region(), instance, number, self.clock.now()).await;
            self.note(format!("the cordon {number} of instance {nth} is acknowledged at once: {at_once:?}"));
        }
        let claimed = cordon::claim(&self.plain, &region(), instance, number, self.clock.now()).await;
        if !matches!(claimed, Ok(Outcome::Done)) {
            return Ok(());
        }
        self.note(format!("the end of instance {nth} is claimed with {number}"));
        self.runs_nothing(nth, instance).await?;
        self.tally.terminated += 1;
        self.take_away(nth, instance).await;
        Ok(())
    }

    /// No worker lives there, and no job's row says that one has begun there.
    async fn runs_nothing(&self, nth: usize, instance: InstanceId) -> Result<(), Violation> {
        let workers = self.instances[nth].host.workers();
        if !workers.is_empty() {
            return Err(Violation(format!("instance {nth} is ended while {workers:?} live there")));
        }
        for job in self.promises.keys() {
            let found = dispatch::load(&self.plain, *job).await.expect("the plain table answers");
            let run = found.as_ref().and_then(|job| Some((job.state.run()?.instance, job.state.name())));
            // An assignment of a manager that leads no more may be recorded late; nobody is told of it.
            let leased = |state| state != StateName::Assigned;
            if run.is_some_and(|(on, state)| on == instance && leased(state)) {
                return Err(Violation(format!(
                    "instance {nth} is ended while {job} has a lease there: {run:?}"
                )));
            }
        }
        Ok(())
    }

    /// The instance is gone for good, its disk too; another one comes in its place.
    async fn take_away(&mut self, nth: usize, instance: InstanceId) {
        if let Some((task, shutdown)) = self.instances[nth].running.take() {
            shutdown.now.cancel();
            task.await.expect("a coordinator does not panic").expect("it could run");
        }
        self.instances[nth].host.power_cut();
        let folder = self.data.path().join(&self.instances[nth].name);
        std::fs::remove_dir_all(folder).expect("nothing is mounted in a simulation");
        while enrolment::retire(&self.plain, instance, self.clock.now()).await.is_err()
            || cordon::forget(&self.plain, &region(), instance).await.is_err()
        {
            tokio::time::sleep(TICK).await;
        }
        self.instances[nth] = self.launch().await;
        self.note(format!("instance {nth} is gone, {} comes", self.instances[nth].name));
    }

    /// From now on every instance takes work.
    pub(super) async fn lift_all(&mut self) {
        for row in cordon::of_region(&self.plain, &region()).await.expect("the plain table answers") {
            let now = self.clock.now();
            let lifted = cordon::lift(&self.plain, &region(), row.instance, row.number, now).await;
            // One whose end was claimed by a write that was not acknowledged stays as it is.
            self.note(format!("the cordon {} of {} is lifted: {lifted:?}", row.number, row.instance));
        }
    }
}
