//! How well GPUs are packed: the Alibaba 2023 GPU trace, as the paper of FGD measures it.
//!
//! 1,213 machines with 6,212 cards are filled with jobs drawn from a list of the trace in random order until what has
//! arrived asks for 130 % of the cards; a job that fits nowhere is gone. What counts is the share of the cards that is
//! not given out when 100 % and when 130 % have arrived, as the mean of ten seeds. The baselines run in the same run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use telecine_domain::packing::{Cost, Machine, Mix, Models, Need, WHOLE, Way};

use crate::random::Random;

const SEEDS: std::ops::Range<u64> = 42..52;
const LISTS: [&str; 5] = ["default", "cpu100", "gpushare60", "gpuspec20", "multigpu30"];

/// How a machine is chosen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chooser {
    /// Ours: what strands and starves least.
    Stranding,
    /// The least of cards left over.
    BestFit,
    /// Whichever comes.
    Random,
}

/// A list of jobs and what is known of them beforehand.
struct Workload {
    jobs: Vec<Need>,
    kinds: Vec<Need>,
    mix: Mix,
    machines: Vec<Machine>,
}

/// Prints the rows about packing, or why there are none.
pub(crate) fn measure(out: &mut impl Write) -> io::Result<()> {
    let Some(traces) = std::env::var_os("TRACES") else {
        return writeln!(out, "skipped: packing: TRACES does not name the folder of the traces");
    };
    let folder = Path::new(&traces).join("openb_gpu2023");
    writeln!(out, "| unallocated GPU %, 10 seeds | ours at 100 % / 130 % | best fit | random |")?;
    writeln!(out, "| --- | --- | --- | --- |")?;
    for list in LISTS {
        match Workload::read(&folder, list) {
            Ok(workload) => row(out, list, &workload)?,
            Err(error) => writeln!(out, "skipped: packing of {list}: {error}")?,
        }
        out.flush()?;
    }
    Ok(())
}

fn row(out: &mut impl Write, list: &str, workload: &Workload) -> io::Result<()> {
    write!(out, "| {list} |")?;
    for chooser in [Chooser::Stranding, Chooser::BestFit, Chooser::Random] {
        let (mut full, mut over) = (0, 0);
        for seed in SEEDS {
            let (at_100, at_130) = Filling::new(workload, chooser, seed).run();
            (full, over) = (full + at_100, over + at_130);
        }
        let seeds = SEEDS.end - SEEDS.start;
        write!(out, " {} / {} |", percent(full / seeds), percent(over / seeds))?;
    }
    writeln!(out)
}

/// From hundred-thousandths.
fn percent(part: u64) -> String {
    format!("{}.{:02}", part / 1000, part % 1000 / 10)
}

impl Workload {
    fn read(folder: &Path, list: &str) -> io::Result<Self> {
        let mut models = BTreeMap::new();
        let nodes = Table::read(&folder.join("openb_node_list_gpu_node.csv"))?;
        let machines =
            nodes.rows.iter().map(|row| nodes.machine(row, &mut models)).collect::<io::Result<_>>()?;
        let pods = Table::read(&folder.join(format!("openb_pod_list_{list}.csv")))?;
        let jobs: Vec<Need> =
            pods.rows.iter().map(|row| pods.need(row, &mut models)).collect::<io::Result<_>>()?;
        let mut counts = BTreeMap::<Need, u32>::new();
        jobs.iter().for_each(|&job| *counts.entry(job).or_insert(0) += 1);
        let kinds = counts.keys().copied().collect();
        Ok(Self { kinds, mix: Mix::new(counts.into_iter().collect()), jobs, machines })
    }
}

/// A table of text with a line of names.
struct Table {
    columns: BTreeMap<String, usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let names = lines.next().unwrap_or_default();
        let columns = names.into_iter().enumerate().map(|(index, name)| (name, index)).collect();
        Ok(Self { columns, rows: lines.collect() })
    }

    fn text<'a>(&self, row: &'a [String], column: &str) -> &'a str {
        self.columns.get(column).and_then(|&index| row.get(index)).map_or("", String::as_str)
    }

    fn number(&self, row: &[String], column: &str) -> io::Result<u64> {
        let text = self.text(row, column);
        text.parse().map_err(|_| io::Error::other(format!("`{text}` in column {column} is not a number")))
    }

    fn machine(&self, row: &[String], models: &mut BTreeMap<String, u32>) -> io::Result<Machine> {
        let cards = usize::try_from(self.number(row, "gpu")?).unwrap_or(0);
        Ok(Machine {
            cpu_milli: self.number(row, "cpu_milli")?,
            memory_bytes: self.number(row, "memory_mib")? << 20,
            model: model(self.text(row, "model"), models),
            cards: vec![WHOLE; cards],
        })
    }

    fn need(&self, row: &[String], models: &mut BTreeMap<String, u32>) -> io::Result<Need> {
        let asked = self.text(row, "gpu_spec").split('|').filter(|name| !name.is_empty());
        let asked: Vec<Models> = asked.map(|name| model(name, models)).collect();
        let share = u32::try_from(self.number(row, "gpu_milli")?).unwrap_or(WHOLE);
        let cards = u32::try_from(self.number(row, "num_gpu")?).unwrap_or(u32::MAX);
        Ok(Need {
            cpu_milli: self.number(row, "cpu_milli")?,
            memory_bytes: self.number(row, "memory_mib")? << 20,
            cards,
            share: if cards == 0 { 0 } else { share },
            models: asked.into_iter().reduce(Models::or).unwrap_or(Models::ANY),
        })
    }
}

fn model(name: &str, models: &mut BTreeMap<String, u32>) -> Models {
    let next = u32::try_from(models.len()).unwrap_or(u32::MAX);
    Models::one(*models.entry(name.to_owned()).or_insert(next))
}

/// What a kind of job would cost on each machine, worked out again only where the machine has changed.
struct Costs {
    of: Vec<Option<(Cost, Way)>>,
    known_for: Vec<u32>,
}

/// One seed.
struct Filling<'a> {
    workload: &'a Workload,
    chooser: Chooser,
    random: Random,
    machines: Vec<Machine>,
    /// How often each machine has changed.
    changes: Vec<u32>,
    costs: BTreeMap<Need, Costs>,
    given: u64,
}

impl<'a> Filling<'a> {
    fn new(workload: &'a Workload, chooser: Chooser, seed: u64) -> Self {
        let machines = workload.machines.clone();
        let count = machines.len();
        let unknown = || Costs { of: vec![None; count], known_for: vec![u32::MAX; count] };
        let costs = workload.kinds.iter().map(|&kind| (kind, unknown())).collect();
        let changes = vec![0; count];
        Self { workload, chooser, random: Random::new(seed), machines, changes, costs, given: 0 }
    }

    /// What is not given out when 100 % and when 130 % have arrived, in hundred-thousandths of the cards.
    fn run(mut self) -> (u64, u64) {
        let all: u64 = self.machines.iter().map(Machine::free).sum();
        let left = |given: u64| (all - given) * 100_000 / all;
        let (mut arrived, mut at_100) = (0, None);
        for job in self.arrivals(all) {
            self.place(&job);
            arrived += u64::from(job.cards) * u64::from(job.share);
            if arrived >= all && at_100.is_none() {
                at_100 = Some(left(self.given));
            }
        }
        (at_100.unwrap_or_else(|| left(self.given)), left(self.given))
    }

    /// The list in random order, with more of it drawn at random until it asks for 130 %.
    fn arrivals(&mut self, all: u64) -> Vec<Need> {
        let mut jobs = self.workload.jobs.clone();
        let asks = |job: &Need| u64::from(job.cards) * u64::from(job.share);
        let mut asked: u64 = jobs.iter().map(asks).sum();
        while asked * 10 < all * 13 {
            let job = self.workload.jobs[self.below(self.workload.jobs.len())];
            asked += asks(&job);
            jobs.push(job);
        }
        for index in (1..jobs.len()).rev() {
            let other = self.below(index + 1);
            jobs.swap(index, other);
        }
        jobs
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap_or(0)
    }

    fn place(&mut self, job: &Need) {
        let chosen = match self.chooser {
            Chooser::Stranding => self.least_stranding(job),
            Chooser::BestFit => self.best_fit(job),
            Chooser::Random => self.whichever(job),
        };
        if let Some((index, way)) = chosen {
            self.machines[index].take(job, way);
            self.changes[index] += 1;
            self.given += u64::from(job.cards) * u64::from(job.share);
        }
    }

    fn least_stranding(&mut self, job: &Need) -> Option<(usize, Way)> {
        let costs = self.costs.get_mut(job)?;
        for (index, machine) in self.machines.iter().enumerate() {
            if costs.known_for[index] != self.changes[index] {
                costs.of[index] = self.workload.mix.best_way(job, machine);
                costs.known_for[index] = self.changes[index];
            }
        }
        let fitting = costs.of.iter().enumerate().filter_map(|(index, cost)| Some((index, (*cost)?)));
        let best = fitting.min_by_key(|(index, (cost, _))| (*cost, self.machines[*index].cpu_milli, *index));
        best.map(|(index, (_, way))| (index, way))
    }

    /// The least left over: cards first, then processor.
    fn best_fit(&self, job: &Need) -> Option<(usize, Way)> {
        let ways = |(index, machine): (usize, &'_ Machine)| {
            let card = |way: &Way| if let Way::Share(card) = way { machine.cards[*card] } else { 0 };
            let way = machine.ways(job).into_iter().min_by_key(card)?;
            Some((machine.free(), machine.cpu_milli, index, way))
        };
        let fitting = self.machines.iter().enumerate().filter_map(ways);
        fitting.min_by_key(|(free, cpu, index, _)| (*free, *cpu, *index)).map(|(.., index, way)| (index, way))
    }

    fn whichever(&mut self, job: &Need) -> Option<(usize, Way)> {
        let first = self.below(self.machines.len());
        let order = (first..self.machines.len()).chain(0..first);
        order.into_iter().find_map(|index| Some((index, *self.machines[index].ways(job).first()?)))
    }
}
