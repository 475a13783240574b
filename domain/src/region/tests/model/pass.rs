//! The reference's pass over the queue: every head against every instance, anew for each assignment.

use std::cmp::Reverse;

use super::*;
use crate::placement::{choose, share_sum};

impl Reference {
    /// The first of each line: jobs that are alike in everything that counts wait behind the oldest of them.
    fn heads(&self, now: Timestamp) -> Vec<&QueuedJob> {
        let mut heads: Vec<&QueuedJob> = Vec::new();
        for job in
            self.waiting.iter().filter(|waiting| Self::may_run(waiting, now)).map(|waiting| &waiting.job)
        {
            let alike = heads.iter_mut().find(|head| {
                (head.priority, head.account, head.factory, &head.request)
                    == (job.priority, job.account, job.factory, &job.request)
            });
            match alike {
                Some(head) if (job.queued_at, job.id) < (head.queued_at, head.id) => *head = job,
                Some(_) => {}
                None => heads.push(job),
            }
        }
        heads
    }

    fn served(&self, mut heads: Vec<&QueuedJob>) -> Vec<QueuedJob> {
        heads.sort_by_key(|job| {
            (Reverse(job.priority), self.usage.of(job.account), job.account, job.queued_at, job.id)
        });
        heads.into_iter().cloned().collect()
    }

    fn is_old(&self, job: &QueuedJob, now: Timestamp) -> bool {
        now.since(job.queued_at) >= self.config.aging.after
    }

    fn is_limited(&self, job: &QueuedJob) -> bool {
        let flights = self.flights.iter().map(|flight| (flight.job.account, flight.job.factory));
        let live = self.running.iter().map(|live| (live.attempt.account, live.attempt.factory));
        let (mut of_account, mut of_factory) = (0, 0);
        for (account, factory) in flights.chain(live) {
            of_account += u32::from(account == job.account);
            of_factory += u32::from(factory == job.factory);
        }
        let limits = &self.config.limits;
        let account = limits.accounts.get(&job.account).copied().or(limits.every_account);
        let factory = job.factory.and_then(|factory| limits.factories.get(&factory));
        account.is_some_and(|limit| of_account >= limit) || factory.is_some_and(|&limit| of_factory >= limit)
    }

    /// Where the job may go now, and the best of it.
    fn place(&self, job: &QueuedJob) -> Option<InstanceId> {
        let place = |job: &QueuedJob| (Reverse(job.priority), job.queued_at, job.id);
        let kept = |instance: InstanceId| {
            self.kept.iter().filter(|kept| kept.instance == instance).any(|kept| {
                let holder = &self.waiting.iter().find(|waiting| waiting.job.id == kept.job).unwrap().job;
                if self.kept.iter().any(|own| own.job == job.id && own.instance == instance) {
                    false
                } else if kept.oldest {
                    (holder.queued_at, holder.id) < (job.queued_at, job.id)
                } else {
                    place(holder) < place(job)
                }
            })
        };
        let candidates = self.hosts.iter().map(|host| self.candidate(host));
        let candidates = candidates.filter(|candidate| !kept(candidate.id));
        choose(&job.request, candidates, &Policy::default()).filter(|_| !self.is_limited(job))
    }

    fn could_go(&self, job: &QueuedJob, instance: Option<InstanceId>) -> bool {
        let asked = |host: &&Host| instance.is_none_or(|instance| host.profile.id == instance);
        self.hosts.iter().filter(asked).any(|host| could_take(&job.request, &self.candidate(host)))
    }

    pub(super) fn pass(&mut self, now: Timestamp) -> Vec<Action> {
        self.check_kept(now);
        let mut actions = Vec::new();
        loop {
            let heads = self.heads(now);
            let oldest = heads.iter().min_by_key(|job| (job.queued_at, job.id)).copied().cloned();
            let forced = self.turn + 1 >= self.config.aging.every;
            let mut old: Vec<QueuedJob> =
                heads.iter().filter(|job| forced && self.is_old(job, now)).copied().cloned().collect();
            old.sort_by_key(|job| (job.queued_at, job.id));
            let served = self.served(heads);
            let by_age = old.iter().find_map(|job| Some((job, self.place(job)?)));
            let in_rank = || served.iter().find_map(|job| Some((job, self.place(job)?)));
            let Some((job, instance)) = by_age.or_else(in_rank) else { break };
            let overtaken = old.iter().find(|old| self.may_reserve(old)).filter(|old| old.id != job.id);
            if let Some(overtaken) = overtaken.filter(|_| !self.kept.iter().any(|kept| kept.oldest)) {
                self.reserve(&overtaken.clone(), true);
                continue;
            }
            let mut before = served.iter().take_while(|other| other.id != job.id);
            let overtaken = before.find(|other| self.stood_long(other, now) && self.may_reserve(other));
            let free = by_age.is_none() && self.kept.iter().all(|kept| kept.oldest);
            if let Some(overtaken) = overtaken.filter(|_| free) {
                self.reserve(&overtaken.clone(), false);
                continue;
            }
            self.turn = match oldest {
                Some(oldest) if self.is_old(&oldest, now) && !self.is_old(job, now) => {
                    (self.turn + 1).min(self.config.aging.every)
                }
                _ => 0,
            };
            let job = job.clone();
            actions.push(self.assign(&job, instance, now));
        }
        self.contend(now);
        actions
    }

    fn check_kept(&mut self, now: Timestamp) {
        let stands = |kept: &Kept| {
            let waiting = self.waiting.iter().find(|waiting| waiting.job.id == kept.job);
            waiting.is_some_and(|waiting| {
                Self::may_run(waiting, now) && self.could_go(&waiting.job, Some(kept.instance))
            })
        };
        let kept: Vec<Kept> = self.kept.iter().filter(|kept| stands(kept)).copied().collect();
        self.kept = kept;
    }

    fn assign(&mut self, job: &QueuedJob, instance: InstanceId, now: Timestamp) -> Action {
        self.waiting.retain(|waiting| waiting.job.id != job.id);
        self.unreserve(job.id);
        let (from, resources) = (job.epoch, job.request.resources);
        let charge = self.charge((job.account, job.factory), &resources, now);
        self.flights.push(Flight { job: job.clone(), from, instance, resources, charge });
        Action::Assign { job: job.id, instance }
    }

    fn may_reserve(&self, job: &QueuedJob) -> bool {
        !self.is_limited(job) && self.could_go(job, None)
    }

    fn stood_long(&self, job: &QueuedJob, now: Timestamp) -> bool {
        let since = self.contenders.iter().find(|(known, _)| *known == job.id).map(|&(_, since)| since);
        since.is_some_and(|since| now.since(since) >= self.config.reserve_after)
    }

    fn contend(&mut self, now: Timestamp) {
        if self.kept.iter().any(|kept| !kept.oldest) {
            return;
        }
        let mut first =
            self.served(self.heads(now).into_iter().filter(|job| self.may_reserve(job)).collect());
        first.truncate(8);
        let since = |job: &QueuedJob| {
            self.contenders.iter().find(|(known, _)| *known == job.id).map_or(now, |&(_, since)| since)
        };
        self.contenders = first.iter().map(|job| (job.id, since(job))).collect();
    }

    fn reserve(&mut self, job: &QueuedJob, oldest: bool) {
        let mut best = None;
        for host in &self.hosts {
            let candidate = self.candidate(host);
            let missing = job.request.resources.saturating_sub(&candidate.free);
            let capacity = candidate.capacity;
            let taken = self.kept.iter().any(|kept| kept.instance == candidate.id);
            let score =
                (taken, missing.dominant_share(&capacity), share_sum(&missing, &capacity), candidate.id);
            if could_take(&job.request, &candidate) && best.is_none_or(|best| score < best) {
                best = Some(score);
            }
        }
        self.kept.extend(best.map(|(.., instance)| Kept { job: job.id, instance, oldest }));
    }
}
