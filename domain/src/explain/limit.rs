//! A limit of concurrency that keeps a job back.

use serde::{Deserialize, Serialize};

use super::{Explanation, ReasonCode};
use crate::id::{AccountId, FactoryId};
use crate::region::{LimitedBy, Limits};

/// How many attempts there are now, of the job's account and of its factory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of its account.
    pub account: u32,
    /// Of its factory.
    pub factory: u32,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachedLimit {
    /// What it is about.
    pub by: LimitedBy,
    /// Whose it is.
    pub account: AccountId,
    /// The factory, where it is the factory's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factory: Option<FactoryId>,
    /// How many attempts it allows.
    pub limit: u32,
    /// How many there are.
    pub running: u32,
}

impl ReachedLimit {
    /// The limit that keeps one more attempt from beginning, with so many there; the factory's first.
    pub fn of(
        limits: &Limits,
        account: AccountId,
        factory: Option<FactoryId>,
        there: Counts,
    ) -> Option<Self> {
        let by_factory = factory.and_then(|factory| Some((factory, *limits.factories.get(&factory)?)));
        if let Some((factory, limit)) = by_factory.filter(|(_, limit)| there.factory >= *limit) {
            let (by, running) = (LimitedBy::Factory, there.factory);
            return Some(Self { by, account, factory: Some(factory), limit, running });
        }
        let limit = limits.accounts.get(&account).copied().or(limits.every_account)?;
        let (by, running) = (LimitedBy::Account, there.account);
        (running >= limit).then_some(Self { by, account, factory: None, limit, running })
    }
}

pub(super) fn explain(explanation: &mut Explanation, reached: ReachedLimit) {
    let ReachedLimit { by, account, limit, running, .. } = reached;
    let (whose, setting) = match (by, reached.factory) {
        (LimitedBy::Factory, Some(factory)) => {
            (format!("factory {factory}"), format!("`scheduling.factory_limits` of {factory}"))
        }
        (LimitedBy::Factory, None) | (LimitedBy::Account, _) => {
            (format!("account {account}"), format!("`scheduling.account_limits` of {account}"))
        }
    };
    explanation.code = ReasonCode::LimitReached;
    explanation.summary = format!("{whose} may have {limit} attempts at the same time, and has {running}");
    explanation.next_step =
        format!("wait until one of them ends, or raise {setting} in the manager's settings");
}
