//! Amounts of compute: what a job needs, what an instance has, what is free.
//!
//! Unsigned integers only, `Copy`, and no subtraction that can wrap. GPUs are counted here; which card a job gets is
//! the ledger's matter on the instance.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An amount of each resource. Unset fields are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Resources {
    /// Processor time, in thousandths of a core.
    pub cpu_milli: u64,
    /// Main memory, in bytes.
    pub memory_bytes: u64,
    /// Scratch space on the instance's disk, in bytes.
    pub scratch_bytes: u64,
    /// Whole GPUs.
    pub gpus: u64,
}

/// One of the kinds of resource, in the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceKind {
    /// Thousandths of a core.
    CpuMilli,
    /// Bytes of main memory.
    MemoryBytes,
    /// Bytes of scratch space.
    ScratchBytes,
    /// Whole GPUs.
    Gpus,
}

impl ResourceKind {
    /// Every kind, in reporting order.
    pub const ALL: [Self; 4] = [Self::CpuMilli, Self::MemoryBytes, Self::ScratchBytes, Self::Gpus];

    /// What a person calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CpuMilli => "CPU",
            Self::MemoryBytes => "memory",
            Self::ScratchBytes => "scratch space",
            Self::Gpus => "GPUs",
        }
    }

    /// An amount of this kind as a person reads it, for example `1.50 GiB` or `2 cores`.
    pub fn display(self, amount: u64) -> String {
        match self {
            Self::CpuMilli if amount == 1000 => "1 core".to_owned(),
            Self::CpuMilli if amount.is_multiple_of(1000) => format!("{} cores", amount / 1000),
            Self::CpuMilli => format!("{}.{:03} cores", amount / 1000, amount % 1000),
            Self::MemoryBytes | Self::ScratchBytes => display_bytes(amount),
            Self::Gpus if amount == 1 => "1 GPU".to_owned(),
            Self::Gpus => format!("{amount} GPUs"),
        }
    }
}

/// Bytes as a person reads them, in binary units with two decimals: `1.50 GiB`.
pub fn display_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = (bytes.max(1).ilog2() / 10).checked_sub(1) else { return format!("{bytes} bytes") };
    let unit = 1u128 << (10 * (power + 1));
    let hundredths = u128::from(bytes) * 100 / unit;
    format!("{}.{:02} {}", hundredths / 100, hundredths % 100, UNITS[power as usize])
}

impl Resources {
    /// Nothing.
    pub const ZERO: Self = Self { cpu_milli: 0, memory_bytes: 0, scratch_bytes: 0, gpus: 0 };

    /// The amount of one kind.
    pub const fn amount(&self, kind: ResourceKind) -> u64 {
        match kind {
            ResourceKind::CpuMilli => self.cpu_milli,
            ResourceKind::MemoryBytes => self.memory_bytes,
            ResourceKind::ScratchBytes => self.scratch_bytes,
            ResourceKind::Gpus => self.gpus,
        }
    }

    fn zip(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: combine(self.cpu_milli, other.cpu_milli),
            memory_bytes: combine(self.memory_bytes, other.memory_bytes),
            scratch_bytes: combine(self.scratch_bytes, other.scratch_bytes),
            gpus: combine(self.gpus, other.gpus),
        }
    }

    /// Whether all of `self` is within `free`.
    pub fn fits_in(&self, free: &Self) -> bool {
        self.cpu_milli <= free.cpu_milli
            && self.memory_bytes <= free.memory_bytes
            && self.scratch_bytes <= free.scratch_bytes
            && self.gpus <= free.gpus
    }

    /// The first kind of which `free` has too little.
    pub fn first_shortage(&self, free: &Self) -> Option<ResourceKind> {
        ResourceKind::ALL.into_iter().find(|&kind| self.amount(kind) > free.amount(kind))
    }

    /// `self - other`, or `None` when any kind would go below zero.
    pub fn checked_sub(&self, other: &Self) -> Option<Self> {
        other.fits_in(self).then(|| self.saturating_sub(other))
    }

    /// `self - other`, held at zero in each kind.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_sub)
    }

    /// `self + other`, held at the largest number.
    #[must_use]
    pub fn saturating_add(&self, other: &Self) -> Self {
        self.zip(other, u64::saturating_add)
    }

    /// In each kind the larger of the two.
    #[must_use]
    pub fn max_each(&self, other: &Self) -> Self {
        self.zip(other, u64::max)
    }

    /// The largest share of `capacity` that `self` takes in any kind, in thousandths (rounded up). A kind that
    /// `capacity` lacks and `self` needs counts as `u32::MAX`.
    pub fn dominant_share(&self, capacity: &Self) -> u32 {
        ResourceKind::ALL
            .iter()
            .map(|&kind| share(self.amount(kind), capacity.amount(kind)))
            .max()
            .unwrap_or(0)
    }
}

/// What `used` is of `capacity`, in thousandths (rounded up); `u32::MAX` when there is none and some is used.
pub(crate) fn share(used: u64, capacity: u64) -> u32 {
    match (used, capacity) {
        (0, _) => 0,
        (_, 0) => u32::MAX,
        (used, capacity) => {
            // A division of 128 bits takes many times longer, and amounts that need it are absurd.
            let share = match used.checked_mul(1000) {
                Some(thousandfold) => thousandfold.div_ceil(capacity),
                None => u64::try_from((u128::from(used) * 1000).div_ceil(u128::from(capacity)))
                    .unwrap_or(u64::MAX),
            };
            u32::try_from(share).unwrap_or(u32::MAX)
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = ResourceKind::ALL
            .into_iter()
            .filter(|&kind| self.amount(kind) > 0)
            .map(|kind| match kind {
                ResourceKind::Gpus => kind.display(self.amount(kind)),
                _ => format!("{} {}", kind.display(self.amount(kind)), kind.name()),
            })
            .collect();
        if parts.is_empty() { f.write_str("nothing") } else { f.write_str(&parts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn fits_only_when_every_kind_fits() {
        let free = Resources { cpu_milli: 2000, memory_bytes: 4 * GIB, ..Resources::ZERO };
        let need = Resources { cpu_milli: 500, memory_bytes: 5 * GIB, ..Resources::ZERO };
        assert!(!need.fits_in(&free));
        assert_eq!(need.first_shortage(&free), Some(ResourceKind::MemoryBytes));
        assert_eq!(free.checked_sub(&need), None);
        assert_eq!(free.checked_sub(&free), Some(Resources::ZERO));
    }

    #[test]
    fn dominant_share_is_of_the_scarcest() {
        let capacity = Resources { cpu_milli: 4000, memory_bytes: 8 * GIB, ..Resources::ZERO };
        let need = Resources { cpu_milli: 1000, memory_bytes: 4 * GIB, ..Resources::ZERO };
        assert_eq!(need.dominant_share(&capacity), 500);
        assert_eq!(Resources { gpus: 1, ..Resources::ZERO }.dominant_share(&capacity), u32::MAX);
        assert_eq!(Resources::ZERO.dominant_share(&Resources::ZERO), 0);
    }

    #[test]
    fn amounts_read_well() {
        assert_eq!(display_bytes(1023), "1023 bytes");
        assert_eq!(display_bytes(3 * GIB / 2), "1.50 GiB");
        assert_eq!(display_bytes(u64::MAX), "15.99 EiB");
        assert_eq!(ResourceKind::CpuMilli.display(1500), "1.500 cores");
    }
}
