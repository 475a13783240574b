//! What of the instance is promised to which attempt: amounts, and which GPU.
//!
//! Pure. Invariant: the sum of what is granted never exceeds the capacity, and no GPU has two owners. A grant that is
//! asked for twice is the same grant.

use std::collections::BTreeMap;

use telecine_domain::attempt::AttemptId;
use telecine_domain::resources::{ResourceKind, Resources};

/// What an attempt was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The amounts.
    pub resources: Resources,
    /// Ids of its GPUs.
    pub gpus: Vec<String>,
}

/// There is not enough left.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not enough {} is free: {} asked for, {} left", kind.name(), kind.display(*asked), kind.display(*free))]
pub struct Shortage {
    /// Of what.
    pub kind: ResourceKind,
    /// What was asked for.
    pub asked: u64,
    /// What is left.
    pub free: u64,
}

/// The book of an instance.
#[derive(Debug)]
pub struct Ledger {
    capacity: Resources,
    gpus: Vec<String>,
    holdings: BTreeMap<AttemptId, Holding>,
}

impl Ledger {
    /// An empty book over `capacity` and the GPUs with these ids. As many GPUs can be granted as there are ids.
    pub fn new(capacity: Resources, gpus: Vec<String>) -> Self {
        let capacity = Resources { gpus: capacity.gpus.min(gpus.len() as u64), ..capacity };
        Self { capacity, gpus, holdings: BTreeMap::new() }
    }

    /// All there is.
    pub fn capacity(&self) -> Resources {
        self.capacity
    }

    /// The sum of what is granted.
    pub fn allocated(&self) -> Resources {
        self.holdings.values().fold(Resources::ZERO, |sum, holding| sum.saturating_add(&holding.resources))
    }

    /// What is left.
    pub fn free(&self) -> Resources {
        self.capacity.saturating_sub(&self.allocated())
    }

    /// Grants `resources` to `attempt`, or repeats the grant it has.
    ///
    /// # Errors
    /// When there is not enough left; nothing changes then.
    pub fn grant(&mut self, attempt: AttemptId, resources: Resources) -> Result<Holding, Shortage> {
        if let Some(holding) = self.holdings.get(&attempt) {
            return Ok(holding.clone());
        }
        let free = self.free();
        if let Some(kind) = resources.first_shortage(&free) {
            return Err(Shortage { kind, asked: resources.amount(kind), free: free.amount(kind) });
        }
        let gpus = self.free_gpus().take(usize::try_from(resources.gpus).unwrap_or(usize::MAX)).collect();
        Ok(self.holdings.entry(attempt).or_insert(Holding { resources, gpus }).clone())
    }

    /// Enters what an attempt of a former life of the agent holds, even where that is more than the capacity is now.
    pub fn restore(&mut self, attempt: AttemptId, holding: Holding) {
        self.holdings.insert(attempt, holding);
    }

    /// Gives back what `attempt` held; nothing when it held nothing.
    pub fn release(&mut self, attempt: &AttemptId) {
        self.holdings.remove(attempt);
    }

    fn free_gpus(&self) -> impl Iterator<Item = String> + '_ {
        let taken = |id: &String| self.holdings.values().any(|holding| holding.gpus.contains(id));
        self.gpus.iter().filter(move |id| !taken(id)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use telecine_domain::id::{AttemptNumber, Epoch, JobId};
    use telecine_domain::time::Timestamp;

    use super::*;

    fn attempt(number: u128) -> AttemptId {
        let job = JobId::new(Timestamp::from_millis(1), number);
        AttemptId { job, attempt: AttemptNumber(1), epoch: Epoch(1) }
    }

    fn cpus(cpu_milli: u64, gpus: u64) -> Resources {
        Resources { cpu_milli, gpus, ..Resources::ZERO }
    }

    #[test]
    fn a_grant_is_given_once_and_taken_back_once() {
        let mut ledger = Ledger::new(cpus(1000, 2), vec!["a".into(), "b".into()]);
        let first = ledger.grant(attempt(1), cpus(600, 1)).unwrap();
        assert_eq!(ledger.grant(attempt(1), cpus(600, 1)), Ok(first.clone()));
        assert_eq!(first.gpus, ["a"]);
        let shortage = ledger.grant(attempt(2), cpus(600, 1)).unwrap_err();
        assert_eq!(shortage.to_string(), "not enough CPU is free: 0.600 cores asked for, 0.400 cores left");
        assert_eq!(ledger.grant(attempt(3), cpus(400, 1)).unwrap().gpus, ["b"]);
        ledger.release(&attempt(1));
        ledger.release(&attempt(1));
        assert_eq!(ledger.grant(attempt(2), cpus(600, 1)).unwrap().gpus, ["a"]);
    }

    #[test]
    fn gpus_without_an_id_are_not_capacity() {
        assert_eq!(Ledger::new(cpus(1, 8), vec!["a".into()]).capacity().gpus, 1);
    }

    proptest! {
        #[test]
        fn never_over_capacity(steps in prop::collection::vec((0u128..8, 0u64..700, 0u64..3, any::<bool>()), 0..60)) {
            let ids = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
            let mut ledger = Ledger::new(cpus(1000, 3), ids);
            for (who, cpu, gpus, give_back) in steps {
                if give_back { ledger.release(&attempt(who)) } else { let _ = ledger.grant(attempt(who), cpus(cpu, gpus)); }
                prop_assert!(ledger.allocated().fits_in(&ledger.capacity()));
                let mut owned: Vec<_> = ledger.holdings.values().flat_map(|h| h.gpus.clone()).collect();
                prop_assert_eq!(owned.len() as u64, ledger.allocated().gpus);
                owned.sort();
                owned.dedup();
                prop_assert_eq!(owned.len() as u64, ledger.allocated().gpus);
            }
        }
    }
}
