//! The outside-policy protocol: a foreign simulator tells the state of its cloud on our standard input, line by line,
//! and the platform's autoscaler answers what to do. docs/autoscaling.md has the protocol.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, Write};
use std::str::FromStr;

use telecine_domain::autoscale::Policy as ScalePolicy;

use crate::catalog::Kind;
use crate::cloud::{Act, Cloud, Life, Node, Policy, Rank};
use crate::telecine::Telecine;
use crate::workload::Job;

/// The other side said something that is not in the protocol.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// The line cannot be read or written.
    #[error("the other side cannot be spoken to")]
    Pipe(#[from] std::io::Error),
    /// A line is not what the protocol has.
    #[error("line {line}: `{text}` is not {expected}")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What it says.
        text: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// What is remembered of an instance between two looks.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    expected_end: f64,
    draining: bool,
}

#[derive(Debug, Default)]
struct Seen {
    now: f64,
    nodes: Vec<(usize, Node)>,
    jobs: Vec<(usize, Job)>,
}

struct Outside {
    telecine: Telecine,
    kinds: Vec<Kind>,
    known: BTreeMap<usize, Known>,
    /// By kind: the expected ends of what was launched and has not shown yet.
    launched: BTreeMap<usize, VecDeque<f64>>,
}

/// Speaks the protocol until the other side closes it.
///
/// # Errors
/// When the pipe breaks, or a line is not what the protocol has.
pub fn serve(
    input: impl BufRead,
    mut output: impl Write,
    policy: &ScalePolicy,
    is_spot: bool,
) -> Result<(), OutsideError> {
    let (mut kinds, mut seen, mut outside) = (Vec::new(), Seen::default(), None);
    for (index, text) in input.lines().enumerate() {
        let text = text?;
        let mut words = Words::of(&text, index + 1);
        match (words.next_word(), outside.as_mut()) {
            (None, _) => {}
            (Some("type"), None) => kinds.push(kind(&mut words)?),
            (Some("go"), None) => outside = Some(Outside::new(policy, std::mem::take(&mut kinds), is_spot)),
            (Some("tick"), Some(_)) => seen = Seen { now: words.seconds()?, ..Seen::default() },
            (Some("node"), Some(outside)) => seen.nodes.push(node(&mut words, outside.kinds.len())?),
            (Some("job"), Some(_)) => seen.jobs.push(job(&mut words)?),
            (Some("end"), Some(outside)) => {
                for answer in outside.answer(std::mem::take(&mut seen)) {
                    writeln!(output, "{answer}")?;
                }
                writeln!(output, "end")?;
                output.flush()?;
            }
            (Some(_), None) => return Err(words.error("`type` or `go`")),
            (Some(_), Some(_)) => return Err(words.error("`tick`, `node`, `job` or `end`")),
        }
    }
    Ok(())
}

struct Words<'t> {
    text: &'t str,
    words: std::str::SplitWhitespace<'t>,
    line: usize,
}

impl<'t> Words<'t> {
    fn of(text: &'t str, line: usize) -> Self {
        Self { text, words: text.split_whitespace(), line }
    }

    fn next_word(&mut self) -> Option<&'t str> {
        self.words.next()
    }

    fn number<T: FromStr>(&mut self, expected: &'static str) -> Result<T, OutsideError> {
        let parsed = self.words.next().and_then(|word| word.parse().ok());
        parsed.ok_or_else(|| self.error(expected))
    }

    fn seconds(&mut self) -> Result<f64, OutsideError> {
        let value: f64 = self.number("a number of seconds")?;
        if value.is_finite() { Ok(value.clamp(0.0, 1e10)) } else { Err(self.error("a number of seconds")) }
    }

    fn error(&self, expected: &'static str) -> OutsideError {
        OutsideError::Line { line: self.line, text: self.text.chars().take(80).collect(), expected }
    }
}

/// `type <i> <name> <cpu> <memory> <gpu> <dollars per second> <on spot> <interruptions per second>`
fn kind(words: &mut Words<'_>) -> Result<Kind, OutsideError> {
    let index: usize = words.number("the number of a type")?;
    words.next_word();
    Ok(Kind {
        // Foreign names need not be names of pools.
        name: format!("type-{index}"),
        cpu: words.number("thousandths of a core")?,
        memory: words.number("MiB")?,
        gpu: words.number("thousandths of a GPU")?,
        on_demand: words.seconds()?,
        spot: words.seconds()?,
        interruptions: words.seconds()?,
        max: u32::MAX,
    })
}

/// `node <id> <type> <spot> <boot|ready> <free cpu> <free memory> <free gpu> <idle since> <jobs>`
fn node(words: &mut Words<'_>, kinds: usize) -> Result<(usize, Node), OutsideError> {
    let id = words.number("the number of a node")?;
    let kind: usize = words.number("the number of a type")?;
    if kind >= kinds {
        return Err(words.error("a node of a known type"));
    }
    let is_spot = words.number::<u8>("0 or 1")? == 1;
    let life = match words.next_word() {
        Some("boot") => Life::Booting,
        Some("ready") => Life::Ready,
        _ => return Err(words.error("a node that is `boot` or `ready`")),
    };
    let mut free = [0; 3];
    for free in &mut free {
        *free = words.number("what is free")?;
    }
    let idle_since = words.seconds()?;
    let jobs: usize = words.number("how many jobs it has")?;
    let mut node = Node::observed(kind, is_spot, life, free, idle_since);
    node.jobs = vec![(usize::MAX, 0.0); jobs.min(1_000_000)];
    Ok((id, node))
}

/// `job <id> <arrival> <cpu> <memory> <gpu> <estimate> <slack>`
fn job(words: &mut Words<'_>) -> Result<(usize, Job), OutsideError> {
    let id = words.number("the number of a job")?;
    let arrival = words.seconds()?;
    let cpu = words.number("thousandths of a core")?;
    let memory = words.number("MiB")?;
    let gpu = words.number("thousandths of a GPU")?;
    let (estimate, slack) = (words.seconds()?, words.seconds()?);
    Ok((id, Job { arrival, cpu, memory, gpu, duration: estimate, estimate, slack }))
}

impl Outside {
    fn new(policy: &ScalePolicy, kinds: Vec<Kind>, is_spot: bool) -> Self {
        let telecine = Telecine::new("telecine", policy.clone(), &kinds, &[], is_spot);
        Self { telecine, kinds, known: BTreeMap::new(), launched: BTreeMap::new() }
    }

    /// Places what waits, then decides.
    fn answer(&mut self, seen: Seen) -> Vec<String> {
        let (ids, nodes): (Vec<usize>, Vec<Node>) = seen.nodes.into_iter().unzip();
        let nodes = self.recall(&ids, nodes);
        let (names, jobs): (Vec<usize>, Vec<Job>) = seen.jobs.into_iter().unzip();
        let kinds = self.kinds.clone();
        let mut cloud = Cloud::observed(seen.now, &jobs, &kinds, nodes);
        self.telecine.expect(&jobs);
        let mut answers = Vec::new();
        for (job, name) in names.into_iter().enumerate() {
            if let Some(node) = self.best(&cloud, job) {
                cloud.place(node, job);
                self.known.entry(ids[node]).or_default().expected_end = cloud.nodes[node].expected_end;
                answers.push(format!("place {name} {}", ids[node]));
            }
        }
        for act in self.telecine.tick(&cloud) {
            answers.extend(self.told(&act, &ids));
        }
        answers
    }

    /// Adds what the protocol does not say: until when the work of an instance is expected to last.
    fn recall(&mut self, ids: &[usize], mut nodes: Vec<Node>) -> Vec<Node> {
        let live: BTreeSet<usize> = ids.iter().copied().collect();
        self.known.retain(|id, _| live.contains(id));
        for (id, node) in ids.iter().zip(&mut nodes) {
            let launched = &mut self.launched;
            let new = || {
                let planned = launched.get_mut(&node.kind).and_then(VecDeque::pop_front);
                Known { expected_end: planned.unwrap_or(0.0), draining: false }
            };
            let known = self.known.entry(*id).or_insert_with(new);
            if node.life == Life::Ready && node.jobs.is_empty() {
                known.expected_end = node.idle_since;
            }
            node.expected_end = known.expected_end;
            node.draining = known.draining;
        }
        nodes
    }

    fn best(&self, cloud: &Cloud<'_>, job: usize) -> Option<usize> {
        let mut best: Option<(Rank, usize)> = None;
        for (node, here) in cloud.nodes.iter().enumerate() {
            if here.life == Life::Ready && !here.draining && cloud.fits(node, job) {
                let rank = self.telecine.rank(cloud, node, job).map(|rank| (rank, node));
                best = match (best, rank) {
                    (Some(best), Some(rank)) => Some(best.min(rank)),
                    (best, rank) => best.or(rank),
                };
            }
        }
        best.map(|(_, node)| node)
    }

    fn told(&mut self, act: &Act, ids: &[usize]) -> Option<String> {
        match *act {
            Act::Launch { kind, is_spot, count, expected_end } => {
                let ends = self.launched.entry(kind).or_default();
                ends.extend(std::iter::repeat_n(expected_end, count));
                Some(format!("launch {kind} {} {count}", if is_spot { "spot" } else { "od" }))
            }
            Act::Kill(node) => Some(format!("kill {}", ids[node])),
            Act::Drain(node) => {
                self.known.entry(ids[node]).or_default().draining = true;
                Some(format!("drain {}", ids[node]))
            }
            // The protocol has no way back from a drain, and its other side places nothing itself.
            Act::Undrain(_) | Act::Place { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(input: &str) -> Result<String, OutsideError> {
        let mut output = Vec::new();
        serve(input.as_bytes(), &mut output, &ScalePolicy::thrift(), false)?;
        Ok(String::from_utf8(output).unwrap())
    }

    const TYPES: &str = "type 0 a.small 4000 8000 0 0.00005 0.00002 0\ngo\n";

    #[test]
    fn jobs_are_bought_for_placed_and_the_idle_ended() {
        let job = "job 7 0 4000 6000 0 300 180\n";
        let first = format!("{TYPES}tick 5\n{job}end\n");
        assert_eq!(answer(&first).unwrap(), "launch 0 od 1\nend\n");
        let booting = format!("{first}tick 10\nnode 3 0 0 boot 4000 8000 0 95 0\n{job}end\n");
        assert_eq!(answer(&booting).unwrap(), "launch 0 od 1\nend\nend\n");
        let ready = format!("{booting}tick 100\nnode 3 0 0 ready 4000 8000 0 95 0\n{job}end\n");
        assert_eq!(answer(&ready).unwrap(), "launch 0 od 1\nend\nend\nplace 7 3\nend\n");
        let idle = format!("{ready}tick 400\nnode 3 0 0 ready 4000 8000 0 400 0\nend\n");
        assert!(answer(&idle).unwrap().ends_with("end\nkill 3\nend\n"));
    }

    #[test]
    fn what_is_not_in_the_protocol_is_named() {
        for (input, message) in [
            ("tick 5\n", "line 1: `tick 5` is not `type` or `go`"),
            ("type 0 a many\n", "line 1: `type 0 a many` is not thousandths of a core"),
            ("go\nnode 1 0 0 ready 1 1 1 0 0\n", "is not a node of a known type"),
            ("go\ntick soon\n", "line 2: `tick soon` is not a number of seconds"),
            ("go\nlater\n", "is not `tick`, `node`, `job` or `end`"),
        ] {
            let error = answer(input).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
