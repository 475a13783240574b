//! What can be bought: the published catalogue, or pools of one's own.

use serde::{Deserialize, Serialize};

use crate::workload::Job;

/// The published catalogue: name, vCPU, GiB, GPUs, dollars per hour, spot's share of that, interruptions per hour.
/// List prices as remembered of us-east-1 in 2024; the relations count, not the amounts.
const PUBLISHED: &str = include_str!("../data/catalog.csv");
/// What of an instance's memory jobs may use.
const USABLE_MEMORY: f64 = 0.95;

/// A type of instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// Its name, which is a pool's name too.
    pub name: String,
    /// Thousandths of a core.
    pub cpu: u32,
    /// MiB that jobs may use.
    pub memory: u32,
    /// Thousandths of a GPU.
    pub gpu: u32,
    /// Dollars per second, on demand.
    pub on_demand: f64,
    /// Dollars per second, on spot.
    pub spot: f64,
    /// Interruptions per second, on spot.
    pub interruptions: f64,
    /// Most of them, if not as many as wanted.
    pub max: u32,
}

impl Kind {
    /// Whether an empty one may take the job. GPUs are not bought for jobs that need none.
    pub fn suits(&self, job: &Job) -> bool {
        self.cpu >= job.cpu
            && self.memory >= job.memory
            && self.gpu >= job.gpu
            && (job.gpu > 0 || self.gpu == 0)
    }

    /// Dollars per second in a market.
    pub const fn price(&self, is_spot: bool) -> f64 {
        if is_spot { self.spot } else { self.on_demand }
    }
}

/// Pools as a person writes them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolsFile {
    /// Each pool.
    pub pool: Vec<PoolEntry>,
}

/// One pool as a person writes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolEntry {
    /// Its name.
    pub name: String,
    /// Cores.
    pub cpu: f64,
    /// GiB of memory that jobs may use.
    pub memory_gib: f64,
    /// GPUs.
    #[serde(default)]
    pub gpus: f64,
    /// Dollars per hour, on demand.
    pub price_per_hour: f64,
    /// Dollars per hour, on spot; 0 when it is not offered there.
    #[serde(default)]
    pub spot_price_per_hour: f64,
    /// Interruptions per hour, on spot.
    #[serde(default)]
    pub interruptions_per_hour: f64,
    /// Most of them.
    #[serde(default = "as_many_as_wanted")]
    pub max: u32,
}

const fn as_many_as_wanted() -> u32 {
    1_000_000
}

/// Pools make no sense.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    /// There is none.
    #[error("there is no [[pool]]")]
    Empty,
    /// A name is taken, or is none.
    #[error("pool `{name}`: the name must be 1 to 40 characters of a-z, 0-9, - and _, and used once")]
    Name {
        /// Which.
        name: String,
    },
    /// A number cannot be.
    #[error("pool `{name}`: {field} must be {expected}")]
    Number {
        /// Which pool.
        name: String,
        /// Which field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
    },
}

/// The published catalogue.
pub fn published() -> Vec<Kind> {
    let lines = PUBLISHED.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    lines.map(published_line).collect()
}

fn published_line(line: &str) -> Kind {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let number = |index: usize| fields[index].parse::<f64>().expect("the catalogue is part of the program");
    let on_demand = number(4) / 3600.0;
    Kind {
        name: fields[0].to_owned(),
        cpu: (number(1) * 1000.0) as u32,
        memory: (number(2) * 1024.0 * USABLE_MEMORY) as u32,
        gpu: (number(3) * 1000.0) as u32,
        on_demand,
        spot: on_demand * number(5),
        interruptions: number(6) / 3600.0,
        max: as_many_as_wanted(),
    }
}

impl PoolsFile {
    /// The types of instance that it describes.
    ///
    /// # Errors
    /// The first pool that makes no sense, and which of its fields.
    pub fn kinds(&self) -> Result<Vec<Kind>, PoolError> {
        if self.pool.is_empty() {
            return Err(PoolError::Empty);
        }
        let mut kinds: Vec<Kind> = Vec::new();
        for entry in &self.pool {
            let is_taken = kinds.iter().any(|kind| kind.name == entry.name);
            let is_name = entry.name.parse::<telecine_domain::id::PoolName>().is_ok();
            if is_taken || !is_name {
                return Err(PoolError::Name { name: entry.name.chars().take(60).collect() });
            }
            kinds.push(entry.kind()?);
        }
        Ok(kinds)
    }
}

impl PoolEntry {
    fn kind(&self) -> Result<Kind, PoolError> {
        let within = |field, value: f64, least: f64, most: f64, expected| {
            let fine = value >= least && value <= most;
            if fine { Ok(value) } else { Err(PoolError::Number { name: self.name.clone(), field, expected }) }
        };
        let per_hour = "from 0 to 100000, and above 0 for price_per_hour";
        let price = within("price_per_hour", self.price_per_hour, f64::MIN_POSITIVE, 1e5, per_hour)?;
        let spot = within("spot_price_per_hour", self.spot_price_per_hour, 0.0, 1e5, per_hour)?;
        let hazard = within("interruptions_per_hour", self.interruptions_per_hour, 0.0, 1e5, per_hour)?;
        Ok(Kind {
            name: self.name.clone(),
            cpu: (within("cpu", self.cpu, 0.001, 1e5, "from 0.001 to 100000 cores")? * 1000.0) as u32,
            memory: (within("memory_gib", self.memory_gib, 0.001, 1e5, "from 0.001 to 100000")? * 1024.0)
                as u32,
            gpu: (within("gpus", self.gpus, 0.0, 1e3, "from 0 to 1000")? * 1000.0) as u32,
            on_demand: price / 3600.0,
            spot: if spot > 0.0 { spot } else { price } / 3600.0,
            interruptions: hazard / 3600.0,
            max: self.max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> PoolEntry {
        PoolEntry {
            name: name.to_owned(),
            cpu: 4.0,
            memory_gib: 8.0,
            gpus: 0.0,
            price_per_hour: 0.17,
            spot_price_per_hour: 0.0,
            interruptions_per_hour: 0.0,
            max: 5,
        }
    }

    #[test]
    fn the_published_catalogue_is_complete() {
        let kinds = published();
        assert_eq!(kinds.len(), 21);
        assert_eq!((kinds[0].cpu, kinds[0].memory), (4000, 7782));
        assert!(kinds.iter().all(|kind| kind.name.parse::<telecine_domain::id::PoolName>().is_ok()));
    }

    #[test]
    fn pools_that_make_no_sense_are_named() {
        let kinds = |pool: Vec<PoolEntry>| PoolsFile { pool }.kinds().map(|kinds| kinds.len());
        assert_eq!(kinds(vec![entry("a"), entry("b")]), Ok(2));
        assert_eq!(kinds(vec![]), Err(PoolError::Empty));
        assert_eq!(kinds(vec![entry("a"), entry("a")]), Err(PoolError::Name { name: "a".to_owned() }));
        assert!(kinds(vec![entry("A b")]).is_err());
        let free = PoolEntry { price_per_hour: 0.0, ..entry("a") };
        assert!(kinds(vec![free]).unwrap_err().to_string().contains("`a`: price_per_hour"));
        let nan = PoolEntry { cpu: f64::NAN, ..entry("a") };
        assert!(kinds(vec![nan]).unwrap_err().to_string().contains("`a`: cpu"));
    }
}
