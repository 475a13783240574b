//! What goes wrong in a world, by its seed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::RngExt as _;
use telecine_core::jobs;
use telecine_core::memory::Fault;
use telecine_domain::id::JobId;
use tokio::time::Instant;

use super::{HOSTS, MANAGERS, World};
use crate::simulation::weather::Direction;

impl World {
    /// One fault, of whatever kind.
    pub(super) async fn something_fails(&mut self) {
        self.tally.faults += 1;
        let host = self.random.random_range(0..HOSTS);
        let manager = self.random.random_range(0..MANAGERS.len());
        let links = self.weather.open_links().max(1);
        let link = self.random.random_range(0..links);
        let direction = [Direction::In, Direction::Out, Direction::Both][self.random.random_range(0..3)];
        let (short, long) = (self.millis(200..8_000), self.millis(5_000..40_000));
        match self.random.random_range(0..16) {
            0 | 1 => {
                self.weather.cut(link);
                self.note(format!("connection {link} of {links} is cut"));
            }
            2 | 3 => self.hold(link, direction, short),
            4 => self.hold(link, direction, long),
            5 => self.isolate(&self.instances[host].name.clone(), long),
            6 => self.isolate(MANAGERS[manager], long),
            7 | 8 => self.kill_worker(host),
            9 => self.restart_coordinator(host, short).await,
            10 => self.power_cut(host, long).await,
            11 => self.kill_manager(manager, long),
            12 => self.stop_manager(manager, short),
            13 => self.spoil_writes(),
            14 => {
                self.managers[manager].table.away_for(long / 2);
                self.note(format!("manager {manager} has no table for {:?}", long / 2));
            }
            _ => self.cancel().await,
        }
    }

    fn hold(&mut self, link: usize, direction: Direction, time: Duration) {
        self.weather.hold(link, direction, time);
        self.note(format!("connection {link} is held {direction:?} for {time:?}"));
    }

    fn isolate(&mut self, place: &str, time: Duration) {
        self.weather.isolate(place, time);
        self.note(format!("{place} is cut off for {time:?}"));
    }

    fn kill_worker(&mut self, host: usize) {
        let workers = self.instances[host].host.workers();
        if workers.is_empty() {
            return;
        }
        let worker = workers[self.random.random_range(0..workers.len())];
        self.instances[host].host.kill_worker(worker);
        self.note(format!("the worker of {worker} is killed"));
    }

    async fn restart_coordinator(&mut self, host: usize, away: Duration) {
        let instance = &mut self.instances[host];
        let Some((task, shutdown)) = instance.running.take() else { return };
        shutdown.now.cancel();
        task.await.expect("a coordinator does not panic").expect("it could run");
        instance.back_at = Some(Instant::now() + away);
        self.note(format!("coordinator {host} is away for {away:?}"));
    }

    async fn power_cut(&mut self, host: usize, away: Duration) {
        self.restart_coordinator(host, away).await;
        self.instances[host].host.power_cut();
        self.note(format!("instance {host} is without power"));
    }

    fn kill_manager(&mut self, nth: usize, away: Duration) {
        let manager = &mut self.managers[nth];
        let Some((task, _)) = manager.running.take() else { return };
        task.abort();
        manager.back_at = Some(Instant::now() + away);
        self.note(format!("manager {nth} is killed, back in {away:?}"));
    }

    fn stop_manager(&mut self, nth: usize, away: Duration) {
        let manager = &mut self.managers[nth];
        let Some((_, shutdown)) = &manager.running else { return };
        shutdown.cancel();
        manager.back_at = Some(Instant::now() + away);
        self.note(format!("manager {nth} is stopped, back in {away:?}"));
    }

    fn spoil_writes(&mut self) {
        for _ in 0..self.random.random_range(1..6) {
            let fault = [Fault::Refused, Fault::LostBefore, Fault::LostAfter][self.random.random_range(0..3)];
            let nth = self.random.random_range(1..12);
            self.memory.fail_transaction(nth, fault);
            self.note(format!("write {nth} from now: {fault:?}"));
        }
    }

    async fn cancel(&mut self) {
        let all: Vec<JobId> = self.promises.keys().copied().collect();
        if all.is_empty() {
            return;
        }
        let job = all[self.random.random_range(0..all.len())];
        let acknowledged = jobs::cancel(&self.client, self.account, job, self.clock.now()).await.is_ok();
        self.note(format!("{job} is canceled: {acknowledged}"));
        self.promises.get_mut(&job).unwrap().canceled |= acknowledged;
    }

    /// The end of all faults.
    pub(super) fn calm_down(&mut self) {
        self.weather.clear();
        self.memory.mend();
        self.queue.rough.store(false, Ordering::Relaxed);
        self.stage.rough.store(false, Ordering::Relaxed);
        let now = Instant::now();
        self.managers.iter_mut().for_each(|manager| {
            manager.table.away_for(Duration::ZERO);
            manager.back_at = manager.back_at.map(|_| now);
        });
        self.instances.iter_mut().for_each(|instance| instance.back_at = instance.back_at.map(|_| now));
        self.note("nothing fails any more".to_owned());
    }
}
