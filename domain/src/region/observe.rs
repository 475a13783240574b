//! What waits, as the autoscaler looks at it: jobs that are alike in one line, and only as many as may begin now.

use std::collections::BTreeMap;

use super::{QueuedJob, Region};
use crate::autoscale::{Amounts, Waiting};
use crate::time::Timestamp;

impl Region {
    /// The waiting jobs that may be placed now, alike ones in one line, ordered by what they need. Left out are those in
    /// a pause, those past a deadline, and those that a limit of concurrency would keep from beginning however much room
    /// there were: nothing is bought for them. The cost grows with the number of lines, not with that of jobs.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut running = self.running.clone();
        let mut lines = BTreeMap::<(Amounts, u64), Waiting>::new();
        for head in self.queue.order.heads() {
            let Some(first) = self.queue.job(head.job) else { continue };
            let in_line = u32::try_from(self.queue.in_line(head.line)).unwrap_or(u32::MAX);
            let limits = &self.config.limits;
            let count = running.begin_within(limits, first.account, first.factory, in_line);
            if count > 0 {
                let waiting = self.line(&first, count);
                lines
                    .entry((waiting.need, waiting.expected_ms))
                    .and_modify(|line| join(line, &waiting))
                    .or_insert(waiting);
            }
        }
        lines.into_values().collect()
    }

    /// A line of `count` jobs like its first one.
    fn line(&self, first: &QueuedJob, count: u32) -> Waiting {
        let expected_ms = u64::try_from(self.config.expected_run.as_millis()).unwrap_or(u64::MAX);
        let in_time = |end: Timestamp| Timestamp::from_millis(end.as_millis().saturating_sub(expected_ms));
        let start_by = first.queue_deadline.into_iter().chain(first.total_deadline.map(in_time)).min();
        Waiting {
            need: Amounts::needed(&first.request.resources),
            interruptible: true,
            count,
            expected_ms,
            oldest: first.queued_at,
            start_by,
        }
    }
}

/// `other` stands in the same line.
fn join(line: &mut Waiting, other: &Waiting) {
    line.count = line.count.saturating_add(other.count);
    line.oldest = line.oldest.min(other.oldest);
    line.start_by = line.start_by.into_iter().chain(other.start_by).min();
}
