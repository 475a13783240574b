//! What would become of a request, before it is accepted (SPEC 2.5): everything is looked up and checked as for a
//! submission, and nothing is written.

use serde_json::Value;
use telecine_domain::estimate::{Cost, cost};
use telecine_domain::explain::Explanation;
use telecine_domain::id::{AccountId, JobId};
use telecine_domain::job::{Job, JobSpec};
use telecine_domain::learn::{Expected, Work};
use telecine_domain::time::Timestamp;

use super::catalog::Catalog;
use super::draft;
use super::resolve::resolve;
use super::submit::SubmitError;
use crate::backend::Backend;
use crate::{durations, explain};

/// What is expected of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// What would be accepted, everything resolved and pinned.
    pub spec: JobSpec,
    /// How long its engine works.
    pub expected: Expected,
    /// What that costs; absent where no pool that would run it has a price.
    pub cost: Option<Cost>,
    /// What it would wait for if it were queued now, and when it would start.
    pub explanation: Explanation,
}

/// Estimates one job; `body` is what [`super::submit`] takes. One that is to be held is taken to be released at once.
///
/// # Errors
/// `Invalid` with everything that is wrong, `Lookup`.
pub async fn estimate(
    backend: &Backend,
    account: AccountId,
    body: &Value,
    now: Timestamp,
) -> Result<Estimate, SubmitError> {
    let catalog = Catalog::new(backend, account, now);
    let mut problems = Vec::new();
    let draft = draft::read(&catalog, body, &mut problems).await?;
    let resolved = resolve(&catalog, draft, problems).await?.map_err(SubmitError::Invalid)?;
    let job = Job::accepted(JobId::new(now, u128::MAX), account, resolved.spec, None, now);
    let explanation = explain::of(backend, &job, now).await?;
    let work = Work::of(&job);
    let expected = durations::about(backend, &job.spec.region, [&work]).await?.expected(&work);
    let cost = cost(&explanation.pools, &expected);
    Ok(Estimate { spec: job.spec, expected, cost, explanation })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use telecine_domain::autoscale::Market;
    use telecine_domain::explain::ReasonCode;
    use telecine_domain::learn::{Basis, Learned};
    use telecine_domain::pool::Pool;
    use telecine_domain::resources::Resources;

    use super::*;
    use crate::durations::Batch;
    use crate::fixture::{World, region};
    use crate::{jobs, pools};

    async fn estimated(world: &World, body: &Value) -> Estimate {
        estimate(&world.backend, world.account, body, world.now()).await.unwrap()
    }

    #[tokio::test]
    async fn what_would_be_accepted_is_told_and_nothing_is_written() {
        let world = World::new().await;
        world.write("clip.mov", "media");
        let before = format!("{:?}", world.table.rows());
        let mut body = world.request("clip.mov");
        body["hold"] = json!(true);
        let told = estimated(&world, &body).await;
        assert_eq!(
            (told.spec.engine.version.to_string(), &told.spec.region),
            ("1.2.0".to_owned(), &region())
        );
        assert_eq!(told.spec.resources.cpu_milli, 500);
        assert_eq!((told.expected, &told.cost), (Expected::UNKNOWN, &None));
        assert_eq!(told.explanation.code, ReasonCode::NoInstance);
        assert_eq!(format!("{:?}", world.table.rows()), before);
        body["hold"] = json!(false);
        let job = jobs::submit(&world.backend, world.account, &body, None, world.now()).await.unwrap().job;
        assert_eq!(told.spec, job.spec, "and it is what is accepted");
    }

    #[tokio::test]
    async fn what_was_learned_and_the_cheapest_pool_say_how_long_and_how_much() {
        let world = World::new().await;
        world.write("clip.mov", "media");
        let pool = |name: &str, price_micros_per_hour| Pool {
            name: name.parse().unwrap(),
            region: region(),
            shape: Resources { cpu_milli: 1000, memory_bytes: 1 << 30, ..Resources::ZERO },
            market: Market::OnDemand,
            price_micros_per_hour,
            boot_seconds: 20,
            min: 0,
            max: 3,
        };
        pools::declare(&world.backend, &[pool("dear", 72_000), pool("cheap", 36_000)]).await.unwrap();
        let body = world.request("clip.mov");
        let work = Work::of_spec(world.account, &estimated(&world, &body).await.spec);
        let mut learned = Learned::default();
        (0..6).for_each(|_| learned.learn(&work, Duration::from_secs(100), world.now()));
        let batch = Batch { term: Default::default(), number: 1 };
        durations::add(&world.backend, &region(), batch, &learned, world.now()).await.unwrap();
        let told = estimated(&world, &body).await;
        assert_eq!((told.expected.basis, told.expected.samples), (Basis::Length, 6));
        let cost = told.cost.unwrap();
        assert_eq!((cost.pool.as_str(), cost.p50_micros), ("cheap", told.expected.p50_ms.div_ceil(100)));
        assert_eq!(told.explanation.code, ReasonCode::InstanceWanted);
        let start = telecine_domain::forecast::Start::Expected {
            p50: world.now().after(Duration::from_secs(20)),
            p90: Some(world.now().after(Duration::from_secs(40))),
        };
        assert_eq!(told.explanation.start, Some(start));
    }

    #[tokio::test]
    async fn everything_that_is_wrong_is_said_at_once() {
        let world = World::new().await;
        let mut body = world.request("missing.mov");
        body["priority"] = json!(2000);
        body["colour"] = json!(1);
        body["composition"]["processing"] = json!({"crf": 99});
        body["resources"] = json!({"gpus": -1});
        let told = estimate(&world.backend, world.account, &body, world.now()).await.unwrap_err();
        let SubmitError::Invalid(problems) = told else { panic!("{told:?}") };
        let mut pointers: Vec<&str> = problems.iter().map(|problem| problem.pointer.as_str()).collect();
        pointers.sort_unstable();
        let expected = ["/colour", "/composition/inputs/source", "/composition/processing/crf", "/priority"];
        assert_eq!(pointers, [&expected[..], &["/resources/gpus"]].concat());
    }
}
