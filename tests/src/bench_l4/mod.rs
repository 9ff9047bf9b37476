//! What the data path costs: nanoseconds per packet of the XDP program by BPF_PROG_TEST_RUN, the
//! same by size, and what a change costs user space.
//!
//! All cases run interleaved in one process on one core, and the smallest and the lower quartile
//! of many rounds are compared: on a shared machine one case alone swings by half over seconds.
//! The kernel reports whole nanoseconds per packet, rounded down. Repeats do not reset the packet:
//! what changes it runs behind a wrapper that puts the headers back (`lb-ebpf/src/bench.rs`),
//! whose own cost has a row of its own and is also subtracted, as `net`.

pub mod cases;
pub mod connections;
pub mod control;
pub mod wire;
mod worlds;

use anyhow::{Context, Result, ensure};
use lb_common::bench::{FRAME, Generator};
use serde_json::json;

use cases::{Case, Wrapper};
use worlds::{Which, Worlds};

/// Packets of one case in one round.
const REPEAT: u32 = 200_000;
/// The floor that ratios refer to.
const FLOOR: &str = "mac-swap";

/// One case and what was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Name of the case.
    pub case: &'static str,
    /// Fastest round.
    pub min_ns: u64,
    /// Lower quartile of the rounds.
    pub p25_ns: u64,
    /// Median of the rounds.
    pub median_ns: u64,
    /// `min_ns` in units of the MAC swap's.
    pub ratio: f64,
    /// The same without what the wrapper costs.
    pub net_ratio: f64,
    /// Most that the ratio may be.
    pub goal: Option<f64>,
}

impl Measured {
    /// Whether the ratio is within the goal, wrapper included; `None` where there is no goal.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| self.ratio <= goal)
    }

    /// Whether the ratio is within the goal without the wrapper.
    pub fn met_net(&self) -> Option<bool> {
        self.goal.map(|goal| self.net_ratio <= goal)
    }

    /// As the JSON report has it.
    pub fn json(&self) -> serde_json::Value {
        let Self { case, min_ns, p25_ns, median_ns, ratio, net_ratio, goal } = self;
        json!({
            "case": case, "min_ns": min_ns, "p25_ns": p25_ns, "median_ns": median_ns,
            "ratio": hundredths(*ratio), "net_ratio": hundredths(*net_ratio),
            "goal": goal, "met": self.met(), "met_net": self.met_net(),
        })
    }
}

/// What a row costs in units of the row that it should equal: `(row, other, ratio)`.
pub fn compared(measured: &[Measured]) -> Vec<(&'static str, &'static str, f64)> {
    let net = |name: &str| measured.iter().find(|row| row.case == name).map(|row| row.net_ratio);
    let pairs = cases::COMPARED.iter().copied().chain(cases::families());
    pairs.filter_map(|(row, other)| Some((row, other, net(row)? / net(other)?))).collect()
}

/// Measures the cases whose name holds one of the words `only` (all, without words) and the floors in
/// that many rounds, in the order they are to be printed.
pub fn run(rounds: usize, only: &[&str]) -> Result<Vec<Measured>> {
    pin()?;
    let wanted = |case: &Case| {
        let is_floor = case.goal.is_none() && case.verdict.is_none();
        is_floor || only.is_empty() || only.iter().any(|word| case.name.contains(word))
    };
    let mut runs: Vec<Run> = cases::all().into_iter().filter(wanted).map(Run::new).collect();
    let needed = |which: Which| runs.iter().any(|run| run.case.world == which);
    let mut worlds = worlds::load(needed)?;
    for run in &mut runs {
        run.prepare(&mut worlds).with_context(|| run.case.name)?;
    }
    for _ in 0..rounds {
        for run in &mut runs {
            run.wake(&mut worlds).with_context(|| run.case.name)?;
            let nanoseconds = run.packets(&mut worlds, REPEAT).with_context(|| run.case.name)?;
            run.nanoseconds.push(nanoseconds);
        }
    }
    for run in &mut runs {
        run.nanoseconds.sort_unstable();
        run.verify(&mut worlds).with_context(|| run.case.name)?;
    }
    let floors = Floors::of(&runs)?;
    Ok(runs.iter().map(|run| run.measured(&floors)).collect())
}

/// A case while it is measured.
struct Run {
    case: Case,
    generator: Generator,
    nanoseconds: Vec<u64>,
}

impl Run {
    fn new(case: Case) -> Self {
        let mut frame = [0; FRAME];
        frame.iter_mut().zip(&case.frame).for_each(|(to, from)| *to = *from);
        let generator = Generator {
            frame,
            next: 0,
            flow_mask: case.flows.wrapping_sub(1),
            vips: case.vips,
            run: u32::from(case.wrapper != Some(Wrapper::Alone)),
            grow: case.grow,
            grown: 0,
        };
        Self { case, generator, nanoseconds: Vec::new() }
    }

    /// Makes flows known and caches as warm as they can be.
    fn prepare(&mut self, worlds: &mut Worlds) -> Result<()> {
        if let Some(first) = self.case.first.clone() {
            self.send(worlds, &first, self.case.flows)?;
            let engine = worlds.get_mut(&self.case.world).context("no such world")?;
            engine.kernel.answer_translated()?;
        }
        self.packets(worlds, self.case.flows.max(1))?;
        self.verify(worlds)
    }

    /// Flows that are remembered send a packet each, as flows do that live: they are noted once a second
    /// or in a few, which is longer ago the more else is measured in a round.
    fn wake(&mut self, worlds: &mut Worlds) -> Result<()> {
        if self.case.first.is_some() {
            self.packets(worlds, self.case.flows)?;
        }
        Ok(())
    }

    /// Every packet must meet the fate that the case is about: one that measures refusals measures
    /// nothing.
    fn verify(&mut self, worlds: &mut Worlds) -> Result<()> {
        const PACKETS: u32 = 10_000;
        let (verdicts, events) = self.count(worlds)?;
        self.packets(worlds, PACKETS)?;
        let (verdicts, events) = {
            let (now, then) = (self.count(worlds)?, (verdicts, events));
            (now.0 - then.0, now.1 - then.1)
        };
        let Case { verdict, event, .. } = self.case;
        let all = verdict.is_none() || verdicts == u64::from(PACKETS);
        ensure!(all, "{verdicts} of {PACKETS} packets were {verdict:?}");
        // Some flows share a full bucket and are forgotten again and again.
        let nearly_all = event.is_none() || events >= u64::from(PACKETS) * 9 / 10;
        ensure!(nearly_all, "{events} of {PACKETS} packets were {event:?}");
        Ok(())
    }

    fn packets(&mut self, worlds: &mut Worlds, repeat: u32) -> Result<u64> {
        let frame = self.case.frame.clone();
        self.send(worlds, &frame, repeat)
    }

    fn send(&mut self, worlds: &mut Worlds, frame: &[u8], repeat: u32) -> Result<u64> {
        let Self { case, generator, .. } = self;
        let engine = worlds.get_mut(&case.world).context("no such world")?;
        if case.wrapper.is_some() {
            engine.kernel.set_generator(generator)?;
        }
        let run = engine.kernel.test_run(case.program, frame, repeat)?;
        ensure!(run.action == case.action, "action {}, not {}", run.action, case.action);
        generator.next = generator.next.wrapping_add(repeat);
        Ok(run.nanoseconds)
    }

    /// What the case's verdict and event count.
    fn count(&self, worlds: &Worlds) -> Result<(u64, u64)> {
        let Case { verdict, event, world, .. } = self.case;
        let engine = worlds.get(&world).context("no such world")?;
        let verdicts = engine.verdicts().into_iter().find(|(one, _)| Some(*one) == verdict);
        let events = engine.events().into_iter().find(|(one, _)| Some(*one) == event);
        Ok((verdicts.map_or(0, |(_, count)| count), events.map_or(0, |(_, count)| count)))
    }

    fn fastest(&self) -> f64 {
        self.nanoseconds.first().copied().unwrap_or_default() as f64
    }

    fn measured(&self, floors: &Floors) -> Measured {
        let at = |index: usize| self.nanoseconds.get(index).copied().unwrap_or_default();
        let rounds = self.nanoseconds.len();
        Measured {
            case: self.case.name,
            min_ns: at(0),
            p25_ns: at(rounds / 4),
            median_ns: at(rounds / 2),
            ratio: self.fastest() / floors.swap,
            net_ratio: (self.fastest() - floors.wrapper(&self.case)) / floors.swap,
            goal: self.case.goal,
        }
    }
}

/// What is no work of the program.
struct Floors {
    pass: f64,
    swap: f64,
    /// One move of the packet's start.
    adjust: f64,
    wrappers: Vec<(&'static str, f64)>,
}

impl Floors {
    fn of(runs: &[Run]) -> Result<Self> {
        let row = |name: &str| runs.iter().find(|run| run.case.name == name).map(Run::fastest);
        let row = |name: &str| row(name).with_context(|| format!("no row {name}"));
        let pass = row("pass")?;
        Ok(Self {
            pass,
            swap: row(FLOOR)?.max(1.0),
            adjust: (row("adjust-head-twice")? - pass) / 2.0,
            wrappers: runs.iter().map(|run| (run.case.name, run.fastest())).collect(),
        })
    }

    /// Where the wrapper alone had to lengthen or shorten the frame in the program's place, that was one move
    /// of the packet's start too many.
    fn wrapper(&self, case: &Case) -> f64 {
        let Some(Wrapper::Around { alone }) = case.wrapper else { return 0.0 };
        let alone = self.wrappers.iter().find(|(name, _)| *name == alone).map_or(0.0, |(_, ns)| *ns);
        let moved = if case.grow != 0 { self.adjust } else { 0.0 };
        (alone - self.pass - moved).max(0.0)
    }
}

/// Two digits behind the point: whole nanoseconds carry no more.
pub fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Keeps this thread, and what it runs in the kernel, on one core.
pub fn pin() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(1.min(std::thread::available_parallelism().map_or(0, |count| count.get() - 1)));
    rustix::thread::sched_setaffinity(None, &cpus).context("pin to one core")
}
