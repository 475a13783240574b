//! The checks, each of one thing of this machine.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use telecine_agent::runtime::{ContainerRuntime as _, Docker, RuntimeError};
use telecine_domain::resources::display_bytes;
use telecine_domain::time::Timestamp;
use tokio::net::TcpListener;

use super::Finding;

const GIB: u64 = 1 << 30;
/// Kernels from this version on pass reads of cached blocks through, and resend requests to a restarted worker.
const FUSE_KERNEL: (u32, u32) = (6, 9);
/// The oldest kernel on which workers are found again by a restarted coordinator without a race (SO_PEERPIDFD).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Docker answers, as the agent asks it.
pub(super) async fn docker() -> Finding {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    docker_at(host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock")).await
}

async fn docker_at(socket: &str) -> Finding {
    match tokio::time::timeout(Duration::from_secs(5), ask_docker(socket)).await {
        Ok(Ok(version)) => Finding::fine("Docker", format!("answers at {socket} (API {version})")),
        Ok(Err(_)) if !may_connect(socket) => Finding::broken(
            "Docker",
            format!("{socket}: permission denied"),
            "run with sudo, or add this user to the group `docker` and log in again",
        ),
        Ok(Err(error)) => Finding::broken(
            "Docker",
            format!("{socket}: {error}"),
            "install Docker and start it (`systemctl start docker`); without it only engines published as a command run",
        ),
        Err(_) => Finding::broken("Docker", format!("{socket} does not answer within 5 s"), "restart Docker"),
    }
}

/// Agrees on a version, then does what the agent's health gate and its first look at the images do.
async fn ask_docker(socket: &str) -> Result<String, RuntimeError> {
    let docker = Docker::connect(Path::new(socket)).await?;
    docker.check().await?;
    docker.images().await?;
    let (major, minor) = docker.version();
    Ok(format!("{major}.{minor}"))
}

fn may_connect(socket: &str) -> bool {
    !std::os::unix::net::UnixStream::connect(socket)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// A file system can be mounted, found out by mounting one, as the agent's health gate does.
pub(super) async fn fuse() -> Finding {
    let folder = std::env::temp_dir();
    let tried =
        tokio::task::spawn_blocking(move || telecine_mount::try_mount(&folder, Duration::from_secs(5)));
    match tried.await {
        Ok(Ok(())) => Finding::fine("FUSE", "a file system was mounted and looked at"),
        Ok(Err(error)) => Finding::broken("FUSE", error.to_string(), error.mend()),
        Err(error) => Finding::broken("FUSE", format!("the trial failed: {error}"), "run this again"),
    }
}

/// The agent may mount.
pub(super) fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::fine("user", "root");
    }
    Finding::broken(
        "user",
        "not root",
        "run `telecine up` and `telecine agent` as root (with sudo): the coordinator mounts FUSE for each attempt with \
         allow_other, which the kernel allows only to root; the engines themselves run as an ordinary user",
    )
}

/// The kernel has what the mount can use.
pub(super) fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let Some(version) = kernel_version(&release) else {
        return Finding::warning("kernel", format!("{release} is no version"), "use a Linux of 6.9 or later");
    };
    if version < OLDEST_KERNEL {
        let mend = format!("use Linux {}.{} or later", FUSE_KERNEL.0, FUSE_KERNEL.1);
        Finding::broken("kernel", format!("Linux {release} is too old"), mend)
    } else if version < FUSE_KERNEL {
        Finding::warning(
            "kernel",
            format!("Linux {release} has no FUSE passthrough and no resend"),
            "everything works; Linux 6.9 or later reads faster and lets a restarted worker answer what was lost",
        )
    } else {
        Finding::fine("kernel", format!("Linux {release}, with FUSE passthrough and resend"))
    }
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// There is memory for a job.
pub(super) fn memory() -> Finding {
    let information = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(available) = available_memory(&information) else {
        return Finding::warning("memory", "/proc/meminfo does not say", "mount /proc");
    };
    let found = format!("{} available", display_bytes(available));
    if available < GIB / 2 {
        Finding::broken(
            "memory",
            found,
            "free memory or use a larger machine: an engine needs half a GiB at least",
        )
    } else if available < 2 * GIB {
        Finding::warning("memory", found, "few engines fit into less than 2 GiB")
    } else {
        Finding::fine("memory", found)
    }
}

fn available_memory(information: &str) -> Option<u64> {
    let line = information.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// There is space for the database and for scratch, and it can be written.
pub(super) async fn disk(data: &Path) -> Finding {
    let Some(existing) = data.ancestors().find(|folder| folder.is_dir()) else {
        return Finding::broken(
            "disk",
            format!("{} has no parent", data.display()),
            "give another --data DIR",
        );
    };
    let space = match telecine_agent::health::try_disk(existing.to_owned()).await {
        Ok(space) => space,
        Err(error) => {
            return Finding::broken(
                "disk",
                format!("{} cannot be written: {error}", existing.display()),
                "give another --data DIR, or the right to write there",
            );
        }
    };
    let found = format!("{} free at {}", display_bytes(space), existing.display());
    if space < GIB {
        Finding::broken("disk", found, "free some space or put --data on another disk")
    } else if space < 10 * GIB {
        Finding::warning("disk", found, "images and scratch space soon need more than 10 GiB")
    } else {
        Finding::fine("disk", found)
    }
}

/// Enough files may be open.
pub(super) fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let found = format!("{limit} may be open");
    if limit < 4096 {
        Finding::warning(
            "open files",
            found,
            "raise the limit with `ulimit -n 65536` (systemd: LimitNOFILE=65536)",
        )
    } else {
        Finding::fine("open files", found)
    }
}

/// The clock is synchronised: leases do not depend on it, certificates and signatures do.
pub(super) fn clock() -> Finding {
    let now = crate::process::now();
    let shown = crate::output::time(now);
    let released = Timestamp::from_millis(RELEASED_MILLIS);
    if now < released {
        let mend = "set the clock; certificates and signatures to stores depend on it";
        return Finding::broken("clock", format!("{shown} is before this version was made"), mend);
    }
    let synchronised = Path::new("/run/systemd/timesync/synchronized").exists()
        || Path::new("/run/chrony").exists()
        || Path::new("/var/run/ntpd.pid").exists();
    if synchronised {
        Finding::fine("clock", format!("{shown} UTC, synchronised"))
    } else {
        let mend = "run systemd-timesyncd or chrony (a container or virtual machine may take its host's clock: then this is fine)";
        Finding::warning("clock", format!("{shown} UTC, nothing here keeps it"), mend)
    }
}

/// 2026-11-22: no clock that is right shows less.
const RELEASED_MILLIS: u64 = 1_795_305_600_000;

/// Something may listen there.
pub(super) async fn port(check: &'static str, option: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address).await {
        Ok(_) => Finding::fine(check, format!("{address} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Finding::warning(
            check,
            format!("{address} is in use"),
            format!(
                "fine if that is `telecine up`; else end the other program or choose another address with {option}"
            ),
        ),
        Err(error) => Finding::broken(
            check,
            format!("{address}: {error}"),
            format!("choose another address with {option}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn kernels_and_memory_are_read() {
        assert_eq!(kernel_version("6.18.5-cloud-amd64"), Some((6, 18)));
        assert_eq!(kernel_version("6.9"), Some((6, 9)));
        assert_eq!(kernel_version("unknown"), None);
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
    }

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let finding = port("API port", "--listen", listener.local_addr().unwrap()).await;
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.found.contains("in use") && finding.mend.contains("--listen"));
    }

    #[tokio::test]
    async fn a_socket_that_is_not_dockers_is_no_panic() {
        let finding = docker_at("/dev/null").await;
        assert_eq!(finding.verdict, Verdict::Broken);
        assert!(finding.found.contains("/dev/null") && !finding.mend.is_empty());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_broken() {
        let finding = disk(Path::new("/proc/sys/telecine")).await;
        assert_eq!(finding.verdict, Verdict::Broken, "{finding:?}");
        assert!(finding.found.contains("/proc/sys"), "{finding:?}");
    }

    #[tokio::test]
    async fn a_mount_is_tried_and_a_refusal_says_what_to_do() {
        let finding = fuse().await;
        assert!(finding.verdict == Verdict::Fine || !finding.mend.is_empty(), "{finding:?}");
    }
}
