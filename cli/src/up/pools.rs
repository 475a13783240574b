//! The pools of this machine: what `telecine.toml` declares under `[[pools]]`, or one for each region.
//!
//! An instance of a declared pool claims the slice of the machine that is the pool's shape; the autoscaler launches and
//! retires them. Without any, each region has a pool named after it whose `instances` share the machine.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use telecine_agent::config::CapacityConfig;
use telecine_agent::inventory;
use telecine_domain::autoscale::Market;
use telecine_domain::id::{PoolName, RegionName};
use telecine_domain::pool::Pool;
use telecine_domain::resources::{ResourceKind, Resources};

/// Most pools of one machine.
const MAX_POOLS: usize = 32;
/// Most instances of one pool on one machine.
const MAX_LOCAL: u32 = 64;

/// A pool, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PoolConfig {
    /// Its name.
    pub name: PoolName,
    /// Its region; the first one when absent.
    pub region: Option<RegionName>,
    /// Thousandths of a core of one instance.
    pub cpu_milli: u64,
    /// Bytes of memory of one instance.
    pub memory_bytes: u64,
    /// Bytes of scratch space of one instance.
    #[serde(default)]
    pub scratch_bytes: u64,
    /// Whole GPUs of one instance.
    #[serde(default)]
    pub gpus: u64,
    /// `on_demand`, `reserved` or `spot`.
    #[serde(default = "on_demand")]
    pub market: Market,
    /// The price of one instance and hour, in US dollars.
    pub price_usd_per_hour: f64,
    /// How long an instance is made to take to boot, in seconds.
    #[serde(default)]
    pub boot_seconds: u32,
    /// Fewest instances.
    #[serde(default)]
    pub min: u32,
    /// Most instances.
    pub max: u32,
    /// How many there are to be had, as a provider may have fewer than are wanted; `max` unless given.
    pub capacity: Option<u32>,
    /// The program that is started as an instance, as a machine's image is; this one unless given.
    pub agent: Option<PathBuf>,
}

fn on_demand() -> Market {
    Market::OnDemand
}

impl PoolConfig {
    /// The pool, in the first of `regions` when it names none.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn pool(&self, regions: &[RegionName]) -> Result<Pool, String> {
        let region = self.region.clone().or_else(|| regions.first().cloned());
        let region = region.filter(|region| regions.contains(region)).ok_or_else(|| {
            let known: Vec<&str> = regions.iter().map(RegionName::as_str).collect();
            format!("its region is none of `regions`: {}", known.join(", "))
        })?;
        let pool = Pool {
            name: self.name.clone(),
            region,
            shape: Resources {
                cpu_milli: self.cpu_milli,
                memory_bytes: self.memory_bytes,
                scratch_bytes: self.scratch_bytes,
                gpus: self.gpus,
            },
            market: self.market,
            price_micros_per_hour: micros(self.price_usd_per_hour)?,
            boot_seconds: self.boot_seconds,
            min: self.min,
            max: self.max,
        };
        if pool.max > MAX_LOCAL {
            return Err(format!("`max` is {}; at most {MAX_LOCAL} local instances are possible", pool.max));
        }
        match pool.problems().first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(pool),
        }
    }

    /// The program of its instances.
    ///
    /// # Errors
    /// When it is none, for people.
    fn agent(&self) -> Result<Option<PathBuf>, String> {
        use std::os::unix::fs::PermissionsExt as _;
        let Some(program) = &self.agent else { return Ok(None) };
        let named = |problem: &str| format!("`agent` is {}: {problem}", program.display());
        if !program.is_absolute() {
            return Err(named("an absolute path is needed"));
        }
        let found = std::fs::metadata(program).map_err(|problem| named(&problem.to_string()))?;
        if !found.is_file() || found.permissions().mode() & 0o111 == 0 {
            return Err(named("that is no program"));
        }
        Ok(Some(program.clone()))
    }
}

/// A pool of this machine, and how its agents are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    /// As the platform knows it.
    pub pool: Pool,
    /// The slice of the machine that each of its agents claims; what is unset is detected.
    pub slice: CapacityConfig,
    /// Instances at start, of a pool that is not scaled.
    pub start: u32,
    /// How many there are to be had.
    pub capacity: u32,
    /// The program of its instances; this one when absent.
    pub agent: Option<PathBuf>,
}

/// The declared pools; `scaled` ones begin with nothing, others with their fewest.
///
/// # Errors
/// The first pool that cannot be, by its number or name.
pub(super) fn declared(
    pools: &[PoolConfig],
    regions: &[RegionName],
    scaled: bool,
    data: &Path,
) -> Result<Vec<Planned>, String> {
    if pools.len() > MAX_POOLS {
        return Err(format!("{} pools; at most {MAX_POOLS} are possible", pools.len()));
    }
    let machine = measured(data, &CapacityConfig::default());
    let mut planned = Vec::<Planned>::with_capacity(pools.len());
    for config in pools {
        let named = |problem: String| format!("pool `{}`: {problem}", config.name);
        let pool = config.pool(regions).map_err(named)?;
        if planned.iter().any(|other| other.pool.name == pool.name) {
            return Err(named("it is there twice".to_owned()));
        }
        if let Some(machine) = machine {
            fits(&pool.shape, &machine).map_err(named)?;
        }
        let shape = pool.shape;
        let slice = CapacityConfig {
            cpu_milli: Some(shape.cpu_milli),
            memory_bytes: Some(shape.memory_bytes),
            scratch_bytes: (shape.scratch_bytes > 0).then_some(shape.scratch_bytes),
            gpus: Some(shape.gpus),
        };
        let agent = config.agent().map_err(named)?;
        let capacity = config.capacity.unwrap_or(pool.max);
        let start = if scaled { 0 } else { pool.min };
        planned.push(Planned { start, pool, slice, capacity, agent });
    }
    Ok(planned)
}

/// One pool for each region, named after it, of `count` instances that share the machine.
pub(super) fn shared(regions: &[RegionName], count: u32, given: CapacityConfig, data: &Path) -> Vec<Planned> {
    let agents = count.saturating_mul(u32::try_from(regions.len()).unwrap_or(u32::MAX));
    let slice = share(given, agents, data);
    let shape = measured(data, &slice).unwrap_or(Resources::ZERO);
    let planned = |region: &RegionName| {
        let pool = Pool {
            name: region.as_str().parse().expect("a region's name can be a pool's"),
            region: region.clone(),
            shape,
            market: Market::OnDemand,
            price_micros_per_hour: 0,
            boot_seconds: 0,
            min: count,
            max: count,
        };
        Planned { pool, slice, start: count, capacity: count, agent: None }
    };
    regions.iter().map(planned).collect()
}

/// The slice of this machine that one of `count` agents offers: what is set, else an equal share of what there is.
/// Without it each of them would offer all of it.
fn share(given: CapacityConfig, count: u32, data: &Path) -> CapacityConfig {
    let (Some(all), 2..) = (measured(data, &CapacityConfig::default()), count) else {
        // One agent measures for itself, and says why when it cannot.
        return given;
    };
    let count = u64::from(count);
    CapacityConfig {
        cpu_milli: given.cpu_milli.or(Some((all.cpu_milli / count).max(1))),
        memory_bytes: given.memory_bytes.or(Some(all.memory_bytes / count)),
        scratch_bytes: given.scratch_bytes.or(Some(all.scratch_bytes / count)),
        gpus: given.gpus.or(Some(all.gpus / count)),
    }
}

/// What this machine has, when it can be measured.
fn measured(data: &Path, slice: &CapacityConfig) -> Option<Resources> {
    let existing = data.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    inventory::measure(existing, slice).ok().map(|inventory| inventory.capacity)
}

/// One instance must fit on the machine. Several together need not: what they claim is what jobs are placed by.
fn fits(shape: &Resources, machine: &Resources) -> Result<(), String> {
    let amounts = [
        (ResourceKind::CpuMilli, shape.cpu_milli, machine.cpu_milli),
        (ResourceKind::MemoryBytes, shape.memory_bytes, machine.memory_bytes),
        (ResourceKind::ScratchBytes, shape.scratch_bytes, machine.scratch_bytes),
        (ResourceKind::Gpus, shape.gpus, machine.gpus),
    ];
    match amounts.into_iter().find(|(_, wanted, there)| wanted > there) {
        Some((kind, wanted, there)) => Err(format!(
            "one instance has {} of {}, and this machine has {}",
            kind.display(wanted),
            kind.name(),
            kind.display(there)
        )),
        None => Ok(()),
    }
}

/// Dollars as millionths of one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the range was checked, and a price has few digits"
)]
fn micros(dollars: f64) -> Result<u64, String> {
    if !(0.0..=10_000.0).contains(&dollars) {
        return Err(format!("`price_usd_per_hour` is {dollars}; 0 to 10,000 are possible"));
    }
    Ok((dollars * 1_000_000.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "name = \"small\"\ncpu_milli = 100\nmemory_bytes = 1000\nprice_usd_per_hour = 0.04\nmax = 4\n";

    fn regions() -> Vec<RegionName> {
        vec!["south".parse().unwrap(), "north".parse().unwrap()]
    }

    fn planned(texts: &[&str]) -> Result<Vec<Planned>, String> {
        let pools: Vec<PoolConfig> = texts
            .iter()
            .map(|text| toml::from_str(text).map_err(|error| error.to_string()))
            .collect::<Result<_, _>>()?;
        declared(&pools, &regions(), false, Path::new("/tmp"))
    }

    #[test]
    fn a_declared_pool_begins_with_its_fewest_and_claims_its_shape() {
        let more = "region = \"north\"\nmarket = \"spot\"\nboot_seconds = 9\nmin = 2\n";
        let found = planned(&[&format!("{GOOD}{more}"), &GOOD.replace("small", "other")]).unwrap();
        let pool = &found[0].pool;
        assert_eq!((pool.price_micros_per_hour, pool.market, pool.boot_seconds), (40_000, Market::Spot, 9));
        assert_eq!((pool.region.as_str(), found[0].start, found[1].start), ("north", 2, 0));
        assert_eq!((found[0].slice.cpu_milli, found[0].slice.gpus), (Some(100), Some(0)));
        assert_eq!(found[1].pool.region.as_str(), "south", "the first one");
        assert_eq!((found[1].capacity, &found[1].agent), (4, &None));
        let scarce = planned(&[&format!("{GOOD}capacity = 0\nagent = \"/bin/sh\"\n")]).unwrap();
        assert_eq!((scarce[0].capacity, scarce[0].agent.as_deref()), (0, Some(Path::new("/bin/sh"))));
        let pool: PoolConfig = toml::from_str(&format!("{GOOD}min = 2\n")).unwrap();
        let scaled = declared(&[pool], &regions(), true, Path::new("/tmp")).unwrap();
        assert_eq!((scaled[0].start, scaled[0].pool.min), (0, 2), "the autoscaler launches them");
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, named) in [
            (GOOD.replace("100\n", "0\n"), "CPU"),
            (GOOD.replace("max = 4", "max = 4\nmin = 5"), "`min` is 5"),
            (GOOD.replace("max = 4", "max = 0"), "`max` is 0"),
            (GOOD.replace("max = 4", "max = 1000"), "at most 64"),
            (GOOD.replace("price_usd_per_hour = 0.04\n", ""), "price_usd_per_hour"),
            (GOOD.replace("0.04", "-1.0"), "price_usd_per_hour"),
            (GOOD.replace("0.04", "nan"), "price_usd_per_hour"),
            (GOOD.replace("cpu_milli = 100", "cpu_milli = 100000000"), "this machine has"),
            (GOOD.replace("cpu_milli = 100", "cpu_milli = -1"), "cpu_milli"),
            (format!("{GOOD}region = \"west\"\n"), "south, north"),
            (format!("{GOOD}market = \"flea\"\n"), "flea"),
            (format!("{GOOD}colour = 1\n"), "colour"),
            (format!("{GOOD}gpus = 999\n"), "GPUs"),
            (format!("{GOOD}capacity = -1\n"), "capacity"),
            (format!("{GOOD}agent = \"agent\"\n"), "absolute"),
            (format!("{GOOD}agent = \"/nonexistent\"\n"), "/nonexistent"),
            (format!("{GOOD}agent = \"/tmp\"\n"), "no program"),
            (format!("{GOOD}agent = \"/etc/passwd\"\n"), "no program"),
        ] {
            let problem = planned(&[&text]).unwrap_err();
            assert!(problem.contains(named), "{named} is not named in: {problem}");
        }
        let twice = planned(&[GOOD, GOOD]).unwrap_err();
        assert!(twice.contains("`small`") && twice.contains("twice"), "{twice}");
    }

    #[test]
    fn agents_of_one_machine_share_it() {
        let data = Path::new("/tmp/not/there/yet");
        let given = CapacityConfig { cpu_milli: Some(700), ..CapacityConfig::default() };
        assert_eq!(share(given, 1, data), given);
        let all = measured(Path::new("/tmp"), &CapacityConfig::default()).unwrap();
        let both = shared(&regions(), 2, given, data);
        assert_eq!(both.len(), 2);
        let slice = both[0].slice;
        assert_eq!((slice.cpu_milli, slice.memory_bytes), (Some(700), Some(all.memory_bytes / 4)));
        assert_eq!((both[0].pool.shape.cpu_milli, both[0].start, both[0].pool.max), (700, 2, 2));
    }
}
