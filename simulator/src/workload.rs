//! Jobs: read from a trace, or made by the generator of a media factory's weeks.

use std::str::FromStr;

use crate::rng::Rng;

/// How far off estimates of run times are: sigma of a lognormal error.
const ESTIMATE_SIGMA: f64 = 0.35;

/// One job. Times are in seconds from the beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// When it is queued.
    pub arrival: f64,
    /// Thousandths of a core.
    pub cpu: u32,
    /// MiB of memory.
    pub memory: u32,
    /// Thousandths of a GPU.
    pub gpu: u32,
    /// How long it runs.
    pub duration: f64,
    /// How long history says that it runs.
    pub estimate: f64,
    /// Longest wait that is still in time.
    pub slack: f64,
}

/// A wait is in time up to three minutes, or half of the run when that is longer, and never above half an hour.
pub fn usual_slack(duration: f64) -> f64 {
    (0.5 * duration).clamp(180.0, 1800.0)
}

/// A trace cannot be read.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TraceError {
    /// A line has too few fields.
    #[error(
        "line {line}: {found} fields, at least 5 are needed: arrival_s, cpu_milli, mem_mib, gpu_milli, duration_s"
    )]
    TooFewFields {
        /// Which line, from 1.
        line: usize,
        /// How many it has.
        found: usize,
    },
    /// A field is not what it should be.
    #[error("line {line}, {field}: `{text}` is not {expected}")]
    Field {
        /// Which line, from 1.
        line: usize,
        /// Which field.
        field: &'static str,
        /// What it says.
        text: String,
        /// What it should be.
        expected: &'static str,
    },
    /// There is no job in it.
    #[error("the trace has no job")]
    Empty,
    /// A generated workload is not described as it should be.
    #[error(
        "`{text}` is not a workload: media:SEED:DAYS:JOBS_PER_HOUR, with at most 3650 days and 1000000 jobs per hour"
    )]
    Workload {
        /// What was given.
        text: String,
    },
}

/// Reads a trace: `arrival_s,cpu_milli,mem_mib,gpu_milli,duration_s[,slo_s]`; lines with `#` and the header are passed
/// over. Estimates are the durations with an error that the seed gives.
///
/// # Errors
/// The first broken line and its field.
pub fn read_trace(text: &str, seed: u64) -> Result<Vec<Job>, TraceError> {
    let mut rng = Rng::new(seed ^ 0xE57);
    let mut jobs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line_text = line.trim();
        if line_text.is_empty() || line_text.starts_with('#') || line_text.starts_with("arrival") {
            continue;
        }
        jobs.push(read_line(line_text, index + 1, &mut rng)?);
    }
    if jobs.is_empty() {
        return Err(TraceError::Empty);
    }
    jobs.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
    Ok(jobs)
}

fn read_line(text: &str, line: usize, rng: &mut Rng) -> Result<Job, TraceError> {
    let fields: Vec<&str> = text.split(',').map(str::trim).collect();
    if fields.len() < 5 {
        return Err(TraceError::TooFewFields { line, found: fields.len() });
    }
    let arrival = seconds(fields[0], line, "arrival_s")?;
    let cpu = amount(fields[1], line, "cpu_milli")?;
    let memory = amount(fields[2], line, "mem_mib")?;
    let gpu = amount(fields[3], line, "gpu_milli")?;
    let duration = seconds(fields[4], line, "duration_s")?.max(1.0);
    let slack = match fields.get(5) {
        Some(text) if !text.is_empty() => Some(seconds(text, line, "slo_s")?).filter(|&slack| slack > 0.0),
        _ => None,
    };
    let estimate = rng.lognormal(duration, ESTIMATE_SIGMA);
    let slack = slack.unwrap_or_else(|| usual_slack(duration));
    Ok(Job { arrival, cpu, memory, gpu, duration, estimate, slack })
}

fn seconds(text: &str, line: usize, field: &'static str) -> Result<f64, TraceError> {
    let parsed = text.parse::<f64>().ok().filter(|value| (0.0..=1e10).contains(value));
    let expected = "a number of seconds from 0 to 10000000000";
    parsed.ok_or_else(|| TraceError::Field { line, field, text: clip(text), expected })
}

fn amount(text: &str, line: usize, field: &'static str) -> Result<u32, TraceError> {
    let parsed = text.parse::<f64>().ok().filter(|value| (0.0..=4e9).contains(value));
    let expected = "an amount from 0 to 4000000000";
    parsed.map(|value| value as u32).ok_or_else(|| TraceError::Field {
        line,
        field,
        text: clip(text),
        expected,
    })
}

fn clip(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A media factory: six classes of jobs, day and night, weekends, and about three bursts a day when a customer drops a
/// library.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Media {
    /// Seed of the generator.
    pub seed: u64,
    /// Days.
    pub days: f64,
    /// Jobs per hour at the busiest time of a working day, bursts not counted.
    pub per_hour: f64,
}

impl FromStr for Media {
    type Err = TraceError;

    fn from_str(text: &str) -> Result<Self, TraceError> {
        let error = || TraceError::Workload { text: clip(text) };
        let fields: Vec<&str> = text.strip_prefix("media:").ok_or_else(error)?.split(':').collect();
        let [seed, days, per_hour] = fields[..] else { return Err(error()) };
        let media = Self {
            seed: seed.parse().map_err(|_| error())?,
            days: days.parse().map_err(|_| error())?,
            per_hour: per_hour.parse().map_err(|_| error())?,
        };
        let sane = media.days > 0.0 && media.days <= 3650.0 && media.per_hour > 0.0 && media.per_hour <= 1e6;
        if sane { Ok(media) } else { Err(error()) }
    }
}

/// What a class of jobs needs: CPU, memory, GPU, median run time in seconds and its spread.
const CLASSES: [(u32, u32, u32, f64, f64); 6] = [
    (1000, 1024, 0, 12.0, 0.6),      // probe, thumbnails, audio
    (4000, 6144, 0, 150.0, 0.9),     // proxy
    (8000, 14336, 0, 480.0, 0.9),    // HD ladder
    (16000, 40960, 0, 1800.0, 0.8),  // UHD, HDR
    (2000, 24576, 0, 900.0, 0.7),    // quality control: memory
    (3000, 12288, 1000, 240.0, 0.8), // GPU transcode
];
/// Which share of the jobs is of this class or one before it.
const SHARES: [f64; 6] = [0.38, 0.66, 0.82, 0.87, 0.92, 1.0];
const DAY: f64 = 86_400.0;

impl Media {
    /// The jobs, by arrival.
    pub fn jobs(&self) -> Vec<Job> {
        let mut rng = Rng::new(self.seed);
        let mut jobs = Vec::new();
        self.steady(&mut rng, &mut jobs);
        self.bursts(&mut rng, &mut jobs);
        jobs.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        jobs
    }

    fn steady(&self, rng: &mut Rng, jobs: &mut Vec<Job>) {
        let mut time = 0.0;
        while time < self.days * DAY {
            time += rng.exponential(self.rate_at(time));
            let class = class(rng);
            jobs.push(job_of(rng, time, class));
        }
    }

    fn rate_at(&self, time: f64) -> f64 {
        let hour = (time / 3600.0) % 24.0;
        let is_weekend = (time / DAY) as u64 % 7 >= 5;
        let phase = (hour - 3.0) / 24.0 * 2.0 * std::f64::consts::PI;
        let of_day = 0.35 + 0.65 * (0.5 - 0.5 * phase.cos());
        self.per_hour / 3600.0 * of_day * if is_weekend { 0.45 } else { 1.0 }
    }

    fn bursts(&self, rng: &mut Rng, jobs: &mut Vec<Job>) {
        let mut time = rng.exponential(3.0 / DAY);
        while time <= self.days * DAY {
            let count = (50.0 * (rng.uniform() * 3.4).exp()) as usize;
            let class = class(rng);
            for _ in 0..count {
                let offset = rng.uniform() * 60.0;
                jobs.push(job_of(rng, time + offset, class));
            }
            time += rng.exponential(3.0 / DAY);
        }
    }
}

fn class(rng: &mut Rng) -> usize {
    let drawn = rng.uniform();
    SHARES.iter().position(|&share| drawn < share).unwrap_or(SHARES.len() - 1)
}

fn job_of(rng: &mut Rng, arrival: f64, class: usize) -> Job {
    let (cpu, memory, gpu, median, sigma) = CLASSES[class];
    let duration = rng.lognormal(median, sigma).clamp(2.0, 21_600.0);
    let estimate = rng.lognormal(duration, ESTIMATE_SIGMA);
    Job { arrival, cpu, memory, gpu, duration, estimate, slack: usual_slack(duration) }
}

/// Makes time run `compress` times as fast between arrivals and bounds run times, so that a quiet trace becomes a busy
/// region.
pub fn squeeze(jobs: &mut [Job], compress: f64, longest: f64) {
    let first = jobs.first().map_or(0.0, |job| job.arrival);
    for job in jobs {
        job.arrival = (job.arrival - first) / compress;
        job.duration = job.duration.min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_with_its_comments() {
        let text = "# made by hand\narrival_s,cpu_milli,mem_mib,gpu_milli,duration_s,slo_s\n5,4000,6144,0,100,\n1, 2000, 10, 500, 900, 60\n";
        let jobs = read_trace(text, 1).unwrap();
        assert_eq!((jobs[0].arrival, jobs[0].gpu, jobs[0].slack), (1.0, 500, 60.0));
        assert_eq!((jobs[1].duration, jobs[1].slack), (100.0, 180.0));
        assert!(jobs[1].estimate > 20.0 && jobs[1].estimate < 500.0);
    }

    #[test]
    fn a_broken_line_is_named_with_its_field() {
        let wrong = |text: &str| read_trace(text, 1).unwrap_err().to_string();
        assert!(wrong("1,2,3,4,5\n1,2,3\n").starts_with("line 2: 3 fields, at least 5"));
        assert_eq!(
            wrong("# x\n1,2,lots,4,5\n"),
            "line 2, mem_mib: `lots` is not an amount from 0 to 4000000000"
        );
        assert!(wrong("-1,2,3,4,5").starts_with("line 1, arrival_s: `-1`"));
        assert!(wrong("1,2,3,4,NaN").starts_with("line 1, duration_s: `NaN`"));
        assert!(wrong("1,2,3,4,inf").starts_with("line 1, duration_s"));
        assert_eq!(wrong("# nothing\n"), "the trace has no job");
    }

    #[test]
    fn a_workload_is_described_in_one_word() {
        let media: Media = "media:101:7:240".parse().unwrap();
        assert_eq!(media, Media { seed: 101, days: 7.0, per_hour: 240.0 });
        for text in ["media", "media:1:2", "media:1:0:5", "media:1:2:NaN", "media:1:99999:5", "other:1:2:3"] {
            assert!(text.parse::<Media>().is_err(), "{text}");
        }
        assert_eq!(media.jobs().len(), 27_197, "the published generator makes as many");
    }

    #[test]
    fn a_squeezed_trace_is_busier() {
        let mut jobs = read_trace("100,1,1,0,50\n300,1,1,0,500\n", 1).unwrap();
        squeeze(&mut jobs, 20.0, 86.0);
        assert_eq!((jobs[0].arrival, jobs[1].arrival, jobs[1].duration), (0.0, 10.0, 86.0));
    }
}
