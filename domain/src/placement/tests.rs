//! Placement case by case, and against a slow reference that is written from the rule and not from the code.

use proptest::prelude::*;

use super::*;
use crate::fixture::{GIB, cores, image, instance, instance_id, spec};

fn request(resources: Resources) -> Request {
    Request { resources, ..Request::of(&spec()) }
}

fn placed(request: &Request, instances: &[Instance]) -> Result<InstanceId, Unplaceable> {
    place(request, instances.iter().map(Candidate::from), &Policy::default())
}

fn holding(number: u128, capacity: Resources, allocated: Resources) -> Instance {
    Instance { allocated, ..instance(number, capacity) }
}

#[test]
fn the_tightest_fit_wins_and_ids_break_ties() {
    let instances = [
        holding(1, cores(16, 64), Resources::ZERO),
        holding(2, cores(4, 8), cores(1, 2)),
        holding(3, cores(4, 8), cores(2, 4)),
        holding(4, cores(4, 8), cores(2, 4)),
    ];
    assert_eq!(placed(&request(cores(2, 4)), &instances), Ok(instance_id(3)));
    assert_eq!(placed(&request(cores(3, 4)), &instances), Ok(instance_id(2)));
    assert_eq!(placed(&request(cores(4, 4)), &instances), Ok(instance_id(1)));
}

#[test]
fn a_job_without_gpu_leaves_gpus_to_others() {
    let with_gpu = Resources { gpus: 1, ..cores(4, 8) };
    let instances = [instance(1, with_gpu), instance(2, cores(32, 64))];
    assert_eq!(placed(&request(cores(2, 4)), &instances), Ok(instance_id(2)));
    let gpu_job = Resources { gpus: 1, ..cores(2, 4) };
    assert_eq!(placed(&request(gpu_job), &instances), Ok(instance_id(1)));
}

#[test]
fn the_image_draws_a_job_unless_the_policy_says_otherwise() {
    let mut instances = [holding(1, cores(4, 8), cores(2, 4)), instance(2, cores(4, 8))];
    instances[1].profile.cached_images.insert(image().digest().to_owned());
    let request = request(cores(2, 4));
    assert_eq!(placed(&request, &instances), Ok(instance_id(2)));
    let policy = Policy { prefer_cached_image: false };
    assert_eq!(place(&request, instances.iter().map(Candidate::from), &policy), Ok(instance_id(1)));
    instances[1].allocated = cores(3, 4);
    assert_eq!(placed(&request, &instances), Ok(instance_id(1)), "an image does not make room");
}

#[test]
fn refusals_name_each_instance_the_nearest_first() {
    let mut instances = vec![
        instance(1, cores(1, 1)),
        instance(2, cores(8, 8)),
        instance(3, cores(8, 8)),
        instance(4, cores(8, 8)),
        holding(5, cores(8, 8), cores(7, 0)),
        holding(6, cores(8, 8), cores(8, 0)),
        instance(7, cores(2, 1)),
        instance(8, cores(8, 8)),
    ];
    instances[1].profile.runtimes.clear();
    instances[2].state = InstanceState::Draining;
    instances[3].state = InstanceState::Unhealthy;
    instances[7].state = InstanceState::Cordoned;
    let refused = placed(&request(cores(4, 4)), &instances).unwrap_err();
    let order: Vec<InstanceId> = refused.refusals.iter().map(|refusal| refusal.instance).collect();
    assert_eq!(order, [5, 6, 4, 8, 3, 7, 1, 2].map(instance_id));
    let cpu = ResourceKind::CpuMilli;
    assert_eq!(refused.refusals[0].reason, RefusalReason::Busy { resource: cpu, need: 4000, free: 1000 });
    assert_eq!(
        refused.refusals[5].reason,
        RefusalReason::TooSmall { resource: cpu, need: 4000, capacity: 2000 }
    );
    assert_eq!(refused.refusals[7].reason, RefusalReason::RuntimeMissing { runtime: RuntimeKind::Docker });
    assert_eq!(
        refused.to_string(),
        "none of 8 instances takes it; nearest is host-5: CPU needed: 4 cores, free now: 1 core"
    );
    assert_eq!(placed(&request(cores(1, 1)), &[]).unwrap_err().to_string(), "there is no instance");
}

#[test]
fn every_refusal_is_data_and_text() {
    let reasons = [
        (RefusalReason::RuntimeMissing { runtime: RuntimeKind::Docker }, "it has no Docker"),
        (RefusalReason::NotReady { state: InstanceState::Lost }, "it is lost"),
        (RefusalReason::NotReady { state: InstanceState::Disconnected }, "it is not connected"),
        (RefusalReason::Draining, "it is draining and takes no more work"),
        (RefusalReason::Cordoned, "it is cordoned and takes no new work"),
        (RefusalReason::Unhealthy { gates: vec![] }, "it is unhealthy"),
        (
            RefusalReason::Unhealthy { gates: vec!["disk".to_owned(), "fuse".to_owned()] },
            "it is unhealthy (disk, fuse)",
        ),
        (
            RefusalReason::TooSmall { resource: ResourceKind::MemoryBytes, need: 2 * GIB, capacity: GIB },
            "memory needed: 2.00 GiB, it has 1.00 GiB",
        ),
    ];
    for (reason, text) in reasons {
        assert_eq!(reason.to_string(), text);
        let json = serde_json::to_string(&reason).unwrap();
        assert_eq!(serde_json::from_str::<RefusalReason>(&json).unwrap(), reason);
    }
}

#[test]
fn a_command_needs_no_image() {
    let mut spec = spec();
    spec.engine.launch =
        crate::engine::Launch::Command { program: "/bin/true".to_owned(), arguments: vec![] };
    let request = Request::of(&spec);
    assert_eq!((request.runtime, request.image), (RuntimeKind::Process, None));
}

fn amounts(most: u64) -> impl Strategy<Value = Resources> {
    (0..=most, 0..=most, 0..=most, 0..=2u64).prop_map(|(cpu, memory, scratch, gpus)| Resources {
        cpu_milli: cpu * 500,
        memory_bytes: memory * GIB,
        scratch_bytes: scratch * GIB,
        gpus,
    })
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let state = prop_oneof![
        6 => Just(InstanceState::Ready),
        1 => Just(InstanceState::Unhealthy),
        1 => Just(InstanceState::Draining),
        1 => Just(InstanceState::Cordoned),
        1 => Just(InstanceState::Disconnected),
    ];
    (amounts(8), amounts(8), state, any::<bool>(), 0..4u8).prop_map(
        |(capacity, allocated, state, cached, runtimes)| {
            let mut made = instance(0, capacity);
            (made.allocated, made.state) = (allocated, state);
            if cached {
                made.profile.cached_images.insert(image().digest().to_owned());
            }
            if runtimes == 0 {
                made.profile.runtimes = [RuntimeKind::Process].into();
            }
            made
        },
    )
}

fn numbered(mut instances: Vec<Instance>) -> Vec<Instance> {
    for (number, instance) in instances.iter_mut().enumerate() {
        instance.profile.id = instance_id(number as u128);
    }
    instances
}

fn parts(resources: &Resources) -> [u64; 4] {
    [resources.cpu_milli, resources.memory_bytes, resources.scratch_bytes, resources.gpus]
}

/// What of each resource would be left, in thousandths of the capacity, or `None` when it does not fit.
fn left_over(need: &Resources, instance: &Instance) -> Option<Vec<u64>> {
    let mut left = Vec::new();
    for ((need, capacity), allocated) in
        parts(need).into_iter().zip(parts(&instance.profile.capacity)).zip(parts(&instance.allocated))
    {
        if allocated + need > capacity && need > capacity.saturating_sub(allocated) {
            return None;
        }
        let rest = u128::from(capacity.saturating_sub(allocated) - need) * 1000;
        left.push(if rest == 0 { 0 } else { u64::try_from(rest.div_ceil(u128::from(capacity))).unwrap() });
    }
    Some(left)
}

fn reference(request: &Request, instances: &[Instance]) -> Option<InstanceId> {
    let mut best: Option<(bool, u64, u64, InstanceId)> = None;
    for instance in instances {
        let able = instance.state == InstanceState::Ready
            && instance.profile.runtimes.iter().any(|runtime| *runtime == request.runtime);
        let Some(left) = left_over(&request.resources, instance).filter(|_| able) else { continue };
        let away =
            request.image.as_deref().is_some_and(|image| !instance.profile.cached_images.contains(image));
        let score = (away, *left.iter().max().unwrap(), left.iter().sum(), instance.profile.id);
        if best.is_none_or(|best| score < best) {
            best = Some(score);
        }
    }
    best.map(|(.., id)| id)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn places_as_the_reference_does_in_any_order(
        need in amounts(8),
        instances in prop::collection::vec(any_instance(), 0..7).prop_map(numbered),
        turn in 0..7usize,
    ) {
        let request = request(need);
        let expected = reference(&request, &instances);
        let outcome = placed(&request, &instances);
        prop_assert_eq!(outcome.as_ref().ok().copied(), expected);
        let mut turned = instances.clone();
        turned.rotate_left(turn.min(instances.len()));
        prop_assert_eq!(placed(&request, &turned), outcome, "the order in which instances are told decides");
    }

    #[test]
    fn an_instance_takes_or_says_why_not(need in amounts(8), one in any_instance()) {
        let request = request(need);
        let candidate = Candidate::from(&one);
        let fits = need.fits_in(&candidate.free) && one.state == InstanceState::Ready;
        match refusal(&request, &candidate) {
            None => prop_assert!(fits && one.profile.runtimes.contains(&RuntimeKind::Docker)),
            Some(RefusalReason::Busy { resource, need: asked, free }) => {
                prop_assert!(asked > free && asked <= one.profile.capacity.amount(resource));
            }
            Some(RefusalReason::TooSmall { resource, need: asked, capacity }) => {
                prop_assert!(asked > capacity && capacity == one.profile.capacity.amount(resource));
            }
            Some(RefusalReason::RuntimeMissing { runtime }) => {
                prop_assert!(!one.profile.runtimes.contains(&runtime));
            }
            Some(RefusalReason::NotReady { state }) => prop_assert_eq!(state, one.state),
            Some(RefusalReason::Draining) => prop_assert_eq!(one.state, InstanceState::Draining),
            Some(RefusalReason::Cordoned) => prop_assert_eq!(one.state, InstanceState::Cordoned),
            Some(RefusalReason::Unhealthy { .. }) => prop_assert_eq!(one.state, InstanceState::Unhealthy),
        }
        let refused = placed(&request, std::slice::from_ref(&one)).err().map(|refused| refused.refusals.len());
        prop_assert_eq!(refused, (!takes(&request, &candidate)).then_some(1));
    }
}
