//! What the machine has: CPU, memory, scratch space and GPUs.

use std::path::Path;
use std::sync::LazyLock;

use nvml_wrapper::Nvml;
use telecine_domain::resources::Resources;

use crate::config::CapacityConfig;

/// What was found, held to the slice the operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Name of the host.
    pub host: String,
    /// What jobs may use.
    pub capacity: Resources,
    /// Ids of the GPUs among it, as the driver names them.
    pub gpus: Vec<String>,
}

/// Why the machine cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The data folder's file system does not answer.
    #[error("data folder {folder}: its free space cannot be read")]
    Scratch {
        /// The folder.
        folder: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Measures the machine; scratch space is what the file system of `data_folder` can take now.
///
/// # Errors
/// When the file system does not answer.
pub fn measure(data_folder: &Path, slice: &CapacityConfig) -> Result<Inventory, InventoryError> {
    let mut gpus = gpu_ids();
    let detected = Resources {
        cpu_milli: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64) * 1000,
        memory_bytes: memory_bytes(),
        scratch_bytes: free_bytes(data_folder).map_err(|source| InventoryError::Scratch {
            folder: data_folder.display().to_string(),
            source,
        })?,
        gpus: gpus.len() as u64,
    };
    let capacity = slice.slice(detected);
    gpus.truncate(usize::try_from(capacity.gpus).unwrap_or(usize::MAX));
    Ok(Inventory { host: host_name(), capacity, gpus })
}

/// Bytes an ordinary user may still write to the file system of `folder`.
///
/// # Errors
/// When the file system does not answer.
pub fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The driver's library, loaded once: it takes tens of milliseconds, and memory that is not given back. That it is not
/// there is remembered too; a driver that is installed later is found by the next start of the agent.
static NVML: LazyLock<Option<Nvml>> = LazyLock::new(|| Nvml::init().ok());

/// Ids of the GPUs the driver shows now; none without a driver.
pub fn gpu_ids() -> Vec<String> {
    let Some(nvml) = NVML.as_ref() else { return Vec::new() };
    let count = nvml.device_count().unwrap_or(0);
    (0..count).filter_map(|index| nvml.device_by_index(index).and_then(|gpu| gpu.uuid()).ok()).collect()
}

fn memory_bytes() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else { return 0 };
    system.refresh_memory();
    let total = system.total_memory();
    system.cgroup_limits().map_or(total, |limits| limits.total_memory.min(total))
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cpu_memory_and_space() {
        let folder = tempfile::tempdir().unwrap();
        let inventory = measure(folder.path(), &CapacityConfig::default()).unwrap();
        assert!(inventory.capacity.cpu_milli >= 1000);
        assert!(inventory.capacity.memory_bytes > 1 << 26);
        assert!(inventory.capacity.scratch_bytes > 0);
        assert_eq!(inventory.capacity.gpus, inventory.gpus.len() as u64);
        assert!(!inventory.host.is_empty());
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = measure(Path::new("/nowhere/at/all"), &CapacityConfig::default()).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"));
    }
}
