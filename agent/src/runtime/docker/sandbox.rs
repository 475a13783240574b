//! What a container of ours is allowed (SPEC 9.2): next to nothing.
//!
//! No network, read-only root, no capabilities, no new privileges, Docker's own seccomp filter, not root, its share of
//! CPU and memory and no swap, a bounded number of processes, no shared memory with others. It sees its attempt's folder
//! and a small `/tmp` from which nothing can be run.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType, RestartPolicy, RestartPolicyNameEnum,
};

use crate::runtime::{ContainerSpec, Program};

/// Label: the instance a container belongs to.
pub const LABEL_INSTANCE: &str = "telecine.instance";
/// Label: the attempt it runs.
pub const LABEL_ATTEMPT: &str = "telecine.attempt";

const TMP_BYTES: u64 = 64 << 20;
/// Docker refuses less.
const LEAST_MEMORY: u64 = 6 << 20;
const LEAST_CPU_MILLI: u64 = 10;
/// More than any machine has.
const MOST_CPU_MILLI: u64 = 1 << 30;
const SHORTEST_PERIOD: u64 = 100_000;
const LONGEST_PERIOD: u64 = 500_000;

/// The whole of what Docker is asked for.
pub(super) fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let image = match &spec.program {
        Program::Image(image) => image.to_string(),
        Program::Path(path) => path.display().to_string(),
    };
    ContainerCreateBody {
        image: Some(image),
        user: Some(format!("{}:{}", spec.user.0, spec.user.1)),
        cmd: (!spec.arguments.is_empty()).then(|| spec.arguments.clone()),
        env: Some(vec!["TELECINE_JOB=/telecine/job.json".to_owned()]),
        labels: Some(labels(spec)),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host_config(spec)),
        ..Default::default()
    }
}

fn labels(spec: &ContainerSpec) -> HashMap<String, String> {
    HashMap::from([
        (LABEL_INSTANCE.to_owned(), spec.instance.to_string()),
        (LABEL_ATTEMPT.to_owned(), spec.name.clone()),
    ])
}

/// Whether a container with these labels was made for `spec`.
pub(super) fn is_of(labels: &HashMap<String, String>, spec: &ContainerSpec) -> bool {
    self::labels(spec).iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let memory = signed(spec.resources.memory_bytes.max(LEAST_MEMORY));
    let (period, quota) = processor_time(spec.resources.cpu_milli);
    HostConfig {
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("none".to_owned()),
        readonly_rootfs: Some(true),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        // Reaps what the engine leaves behind and lets SIGTERM reach a program that set no handler.
        init: Some(true),
        pids_limit: Some(i64::from(spec.pids_limit)),
        cpu_period: Some(period),
        cpu_quota: Some(quota),
        memory: Some(memory),
        memory_swap: Some(memory),
        mounts: Some(vec![attempt_mount(spec)]),
        tmpfs: Some(HashMap::from([(
            "/tmp".to_owned(),
            format!("rw,noexec,nosuid,nodev,size={TMP_BYTES},mode=1777"),
        )])),
        device_requests: gpus(spec),
        log_config: Some(HostConfigLogConfig {
            typ: Some("local".to_owned()),
            config: Some(HashMap::from([
                ("max-size".to_owned(), "1m".to_owned()),
                ("max-file".to_owned(), "1".to_owned()),
                ("compress".to_owned(), "false".to_owned()),
            ])),
        }),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        auto_remove: Some(false),
        ..Default::default()
    }
}

/// The container's share of CPU as a period and what it may use in it, in microseconds (Linux allows periods of 1 ms to
/// 1 s). Small shares get longer periods: what starts a container runs under its limit and needs some tens of
/// milliseconds, and a tenth of a core in Docker's own 100 ms would stop it three times on the way. Not the longest:
/// an engine that has used up its share notices a signal only in the next period.
fn processor_time(cpu_milli: u64) -> (i64, i64) {
    let cpu_milli = cpu_milli.clamp(LEAST_CPU_MILLI, MOST_CPU_MILLI);
    let period = (SHORTEST_PERIOD * 1000 / cpu_milli).clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    (signed(period), signed(period * cpu_milli / 1000))
}

fn attempt_mount(spec: &ContainerSpec) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(spec.folder.display().to_string()),
        target: Some("/telecine".to_owned()),
        bind_options: Some(MountBindOptions {
            // A mount that is made anew on the machine appears in the running container.
            propagation: Some(MountBindOptionsPropagationEnum::RSLAVE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn gpus(spec: &ContainerSpec) -> Option<Vec<DeviceRequest>> {
    (!spec.gpus.is_empty()).then(|| {
        vec![DeviceRequest {
            driver: Some("nvidia".to_owned()),
            device_ids: Some(spec.gpus.clone()),
            capabilities: Some(vec![["gpu", "compute", "video", "utility"].map(str::to_owned).to_vec()]),
            ..Default::default()
        }]
    })
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_cpu_is_kept_and_never_too_little_for_a_start() {
        assert_eq!(processor_time(2000), (100_000, 200_000));
        assert_eq!(processor_time(1000), (100_000, 100_000));
        assert_eq!(processor_time(500), (200_000, 100_000));
        assert_eq!(processor_time(100), (500_000, 50_000));
        assert_eq!(processor_time(1), (500_000, 5_000));
        for cpu_milli in [15, 150, 333, 999, 1001, 64_000] {
            let (period, quota) = processor_time(cpu_milli);
            let share = u64::try_from(quota * 1000 / period).unwrap();
            assert!(share.abs_diff(cpu_milli) <= 1, "{cpu_milli}: {quota} in {period}");
        }
        assert!(processor_time(u64::MAX).1 > 0);
    }
}
