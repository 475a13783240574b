//! Actions and reasons in words, for people; and their codes, for programs.

use std::fmt;

use super::{Amounts, Cap, Keep, Life, PoolProblem, Reason, ScaleAction};
use crate::resources::{ResourceKind, display_bytes};

const MIB: u64 = 1 << 20;

impl ScaleAction {
    /// The word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Launch { .. } => "launch",
            Self::Cordon { .. } => "cordon",
            Self::Uncordon { .. } => "uncordon",
            Self::Terminate { .. } => "terminate",
        }
    }
}

impl Reason {
    /// The word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Demand { .. } => "demand",
            Self::Minimum { .. } => "minimum",
            Self::Headroom => "headroom",
            Self::AboveHighMark { .. } => "above_high_mark",
            Self::Replaces { .. } => "replaces",
            Self::Idle { .. } => "idle",
            Self::Consolidation { .. } => "consolidation",
            Self::Rebalance => "rebalance",
            Self::Notice { .. } => "notice",
            Self::Acknowledged => "acknowledged",
            Self::WantedAgain => "wanted_again",
            Self::Stale { .. } => "stale",
            Self::Expected { .. } => "expected",
            Self::Settling { .. } => "settling",
            Self::NothingFits { .. } => "nothing_fits",
            Self::NoPoolOpen { .. } => "no_pool_open",
            Self::CapReached { .. } => "cap_reached",
            Self::PoolRefused { .. } => "pool_refused",
            Self::PoolBroken { .. } => "pool_broken",
            Self::PoolInvalid { .. } => "pool_invalid",
            Self::Kept { .. } => "kept",
        }
    }
}

/// A sentence without its full stop.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand { jobs, cost_milli, next } => {
                let times = Thousandths(*cost_milli);
                write!(f, "for {}, at {times} times what each alone would cost", Jobs(*jobs))?;
                next.as_ref().map_or(Ok(()), |next| write!(f, "; the next best pool is {next}"))
            }
            Self::Minimum { min } => write!(f, "the pool has at least {min} now"),
            Self::Headroom => f.write_str("room is kept free for jobs to come"),
            Self::AboveHighMark { occupancy, high } => {
                write!(
                    f,
                    "the fleet is {} full, above the high mark of {}",
                    Percent(*occupancy),
                    Percent(*high)
                )
            }
            Self::Replaces { instance } => write!(f, "takes the place of {instance}, which is taken away"),
            Self::Idle { idle_ms } => write!(f, "idle for {}", Seconds(*idle_ms)),
            Self::Consolidation { saved_micros_per_hour } => {
                write!(f, "its work fits elsewhere; that saves {} an hour", Dollars(*saved_micros_per_hour))
            }
            Self::Rebalance => f.write_str("the market may take it away soon"),
            Self::Notice { at } => write!(f, "the market takes it away at {at}"),
            Self::Acknowledged => f.write_str("cordoned, and its agent has said that nothing runs there"),
            Self::WantedAgain => f.write_str("jobs have come that run there"),
            Self::Stale { observed_at } => {
                write!(
                    f,
                    "nothing is done: the queue was last seen at {observed_at}, which is too far from now"
                )
            }
            Self::Expected { jobs } => {
                write!(f, "instances that are ready, booting or asked for take {}", Jobs(*jobs))
            }
            Self::Settling { jobs } => {
                write!(f, "nothing is bought yet for {}: what runs may end first", Jobs(*jobs))
            }
            Self::NothingFits { need, jobs } => {
                write!(f, "no pool has instances for {} with a need of {need} each", Jobs(*jobs))
            }
            Self::NoPoolOpen { need, jobs } => {
                write!(
                    f,
                    "every pool for {} with a need of {need} each is full, refused or closed",
                    Jobs(*jobs)
                )
            }
            Self::CapReached { cap, jobs } => write!(f, "{cap} keeps {} waiting", Jobs(*jobs)),
            Self::PoolRefused { pool, until } => {
                write!(f, "pool {pool} had no capacity and is not asked before {until}")
            }
            Self::PoolBroken { pool, until } => {
                write!(f, "instances of pool {pool} do not boot; none is bought before {until}")
            }
            Self::PoolInvalid { pool, problem } => write!(f, "pool {pool} is not used: {problem}"),
            Self::Kept { because, .. } => write!(f, "stays: {because}"),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demand => f.write_str("queued jobs go there"),
            Self::Headroom => f.write_str("it is room for jobs to come"),
            Self::Minimum => f.write_str("the pool would have fewer than its minimum"),
            Self::Standby => f.write_str("the pool would have fewer idle ones than it is to have"),
            Self::Hold { until } => write!(f, "it may be idle until {until}"),
            Self::MiddleMark => f.write_str("without it the fleet would be fuller than the middle mark"),
            Self::LowMark => f.write_str("the fleet is fuller than the low mark"),
            Self::Pace => f.write_str("enough are retired at once"),
            Self::NotAcknowledged => f.write_str("its agent has not acknowledged the cordon yet"),
            Self::StillBusy => f.write_str("it is cordoned and still has work"),
            Self::Operator => f.write_str("a person has cordoned it"),
            Self::UnknownPool => f.write_str("its pool is not known"),
            Self::Life { life: Life::Booting } => f.write_str("it boots"),
            Self::Life { life: Life::Ready } => f.write_str("it is ready"),
            Self::Life { life: Life::Away } => f.write_str("it does not answer, or is not healthy"),
            Self::Life { life: Life::Terminating } => f.write_str("its end is under way"),
        }
    }
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instances => "the cap on instances",
            Self::MoneyPerHour => "the cap on money per hour",
            Self::MoneyPerMonth => "the cap on money per month",
            Self::LaunchesAtOnce => "the cap on launches in one decision",
        })
    }
}

impl fmt::Display for PoolProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ImpossibleShape => "its instances have no CPU or no memory",
            Self::PriceMissing => "it has no price, and is not paid for in advance",
            Self::MinAboveMax => "its minimum is above its maximum",
            Self::SpeedZero => "its speed is zero",
            Self::Duplicate => "there are two of this name",
        })
    }
}

/// `4 cores, 8.00 GiB memory`; `nothing` when it is nothing.
impl fmt::Display for Amounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |mib: u64| display_bytes(mib.saturating_mul(MIB));
        let gpus = || match self.gpu_milli {
            1000 => "1 GPU".to_owned(),
            milli => format!("{} GPUs", Thousandths(milli)),
        };
        let mut parts = Vec::new();
        if self.cpu_milli > 0 {
            parts.push(ResourceKind::CpuMilli.display(self.cpu_milli));
        }
        if self.memory_mib > 0 {
            parts.push(format!("{} memory", bytes(self.memory_mib)));
        }
        if self.scratch_mib > 0 {
            parts.push(format!("{} scratch space", bytes(self.scratch_mib)));
        }
        if self.gpu_milli > 0 {
            parts.push(gpus());
        }
        f.write_str(if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }.as_str())
    }
}

struct Jobs(u32);

impl fmt::Display for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 1 { f.write_str("1 job") } else { write!(f, "{} jobs", self.0) }
    }
}

/// With no more digits than there are.
struct Thousandths(u64);

impl fmt::Display for Thousandths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

struct Percent(u64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 10, self.0 % 10)
    }
}

struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, seconds) => write!(f, "{seconds} s"),
            (0, minutes, seconds) => write!(f, "{minutes} min {seconds} s"),
            (hours, minutes, _) => write!(f, "{hours} h {minutes} min"),
        }
    }
}

struct Dollars(u64);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04} USD", self.0 / 1_000_000, self.0 % 1_000_000 / 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{InstanceId, PoolName};
    use crate::time::Timestamp;

    const GOLDEN: &str = include_str!("words.golden.txt");

    fn keeps() -> Vec<Keep> {
        let lives = [Life::Booting, Life::Ready, Life::Away, Life::Terminating];
        let mut keeps = vec![
            Keep::Demand,
            Keep::Headroom,
            Keep::Minimum,
            Keep::Standby,
            Keep::Hold { until: noon() },
            Keep::MiddleMark,
            Keep::LowMark,
            Keep::Pace,
            Keep::NotAcknowledged,
            Keep::StillBusy,
            Keep::Operator,
            Keep::UnknownPool,
        ];
        keeps.extend(lives.map(|life| Keep::Life { life }));
        keeps
    }

    fn noon() -> Timestamp {
        Timestamp::parse("2026-11-22T12:00:00Z").unwrap()
    }

    fn reasons() -> Vec<Reason> {
        let pool: PoolName = "large".parse().unwrap();
        let instance = InstanceId::new(noon(), 1);
        let need = Amounts { cpu_milli: 4000, memory_mib: 8192, scratch_mib: 1, gpu_milli: 1500 };
        let caps = [Cap::Instances, Cap::MoneyPerHour, Cap::MoneyPerMonth, Cap::LaunchesAtOnce];
        let problems = [
            PoolProblem::ImpossibleShape,
            PoolProblem::PriceMissing,
            PoolProblem::MinAboveMax,
            PoolProblem::SpeedZero,
            PoolProblem::Duplicate,
        ];
        let mut reasons = vec![
            Reason::Demand { jobs: 3, cost_milli: 1050, next: Some(pool.clone()) },
            Reason::Demand { jobs: 1, cost_milli: 2000, next: None },
            Reason::Minimum { min: 2 },
            Reason::Headroom,
            Reason::AboveHighMark { occupancy: 955, high: 900 },
            Reason::Replaces { instance },
            Reason::Idle { idle_ms: 12_345 },
            Reason::Idle { idle_ms: 75_000 },
            Reason::Idle { idle_ms: 7_260_000 },
            Reason::Consolidation { saved_micros_per_hour: 1_040_000 },
            Reason::Rebalance,
            Reason::Notice { at: noon() },
            Reason::Acknowledged,
            Reason::WantedAgain,
            Reason::Stale { observed_at: noon() },
            Reason::Expected { jobs: 5 },
            Reason::Settling { jobs: 1 },
            Reason::NothingFits { need, jobs: 2 },
            Reason::NoPoolOpen { need: Amounts { gpu_milli: 1000, ..Amounts::ZERO }, jobs: 1 },
            Reason::PoolRefused { pool: pool.clone(), until: noon() },
            Reason::PoolBroken { pool: pool.clone(), until: noon() },
        ];
        reasons.extend(caps.map(|cap| Reason::CapReached { cap, jobs: 4 }));
        reasons.extend(problems.map(|problem| Reason::PoolInvalid { pool: pool.clone(), problem }));
        reasons.extend(keeps().into_iter().map(|because| Reason::Kept { instance, because }));
        reasons
    }

    #[test]
    fn every_reason_is_a_sentence() {
        let told: Vec<String> =
            reasons().iter().map(|reason| format!("{}: {reason}", reason.code())).collect();
        assert_eq!(told.join("\n"), GOLDEN.trim_end());
    }

    #[test]
    fn codes_are_those_of_the_json() {
        for reason in reasons() {
            let json = serde_json::to_value(&reason).unwrap();
            let code = json.as_str().or_else(|| json.as_object()?.keys().next().map(String::as_str));
            assert_eq!(code, Some(reason.code()));
        }
        let instance = InstanceId::new(noon(), 1);
        let pool: PoolName = "large".parse().unwrap();
        for action in [
            ScaleAction::Launch { pool, count: 1, expected_end: noon() },
            ScaleAction::Cordon { instance, cordon: 1, cause: super::super::CordonCause::Idle },
            ScaleAction::Uncordon { instance, cordon: 1 },
            ScaleAction::Terminate { instance, cordon: 1 },
        ] {
            let json = serde_json::to_value(&action).unwrap();
            assert_eq!(json.as_object().unwrap().keys().next().unwrap(), action.code());
        }
        assert_eq!(Amounts::ZERO.to_string(), "nothing");
    }
}
