//! What a change costs: from a wish to the store that puts it in force, and the memory all of it
//! takes.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use penstock::datapath::engine::Engine;
use penstock::datapath::plan::{Book, Op};
use penstock::model::l4::{ForwardingMode::L2, Protocol::Tcp};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::world::{CONFIG, World, backend};

/// Repeats of what takes milliseconds; the fastest counts.
const REPEATS: usize = 21;

/// Starts from empty.
const STARTS: usize = 3;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// A table of 65,536 slots gains or loses a backend.
    pub publish: Publish,
    /// 1,000 VIPs over 10,000 backends, nothing installed before: the fastest of a few times, and what a CPU worked for the
    /// one that it worked least for. The longer the rest of the time, the busier the machine was.
    pub from_empty: [Duration; 2],
    /// Kernel memory of every map at its default size, largest first.
    pub maps: Vec<(String, u64)>,
}

/// One change of a large table, the fastest and the median of many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// From the wish to a plan: who owns each slot.
    pub planned: [Duration; 2],
    /// From the plan to the store after which packets see the new table.
    pub switched: [Duration; 2],
}

impl Control {
    /// Rows of the JSON report: a value, its goal and whether it is met.
    pub fn json(&self) -> Vec<serde_json::Value> {
        let Self { publish: Publish { planned, switched }, from_empty, maps: _ } = self;
        let memory = self.memory();
        vec![
            json!({
                "case": "publish-65536-slots",
                "min_us": switched[0].as_micros(), "median_us": switched[1].as_micros(),
                "plan_min_us": planned[0].as_micros(), "plan_median_us": planned[1].as_micros(),
                "goal": PUBLISH.as_micros(), "met": switched[0] <= PUBLISH,
            }),
            json!({
                "case": "1000-vips-10000-backends", "ms": from_empty[0].as_millis(), "cpu_ms": from_empty[1].as_millis(),
                "goal": FROM_EMPTY.as_millis(), "met": from_empty[0] <= FROM_EMPTY,
            }),
            json!({ "case": "map-memory", "bytes": memory, "goal": MEMORY, "met": memory <= MEMORY }),
        ]
    }

    /// All maps together.
    pub fn memory(&self) -> u64 {
        self.maps.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Most that publishing may take, once it is planned.
pub const PUBLISH: Duration = Duration::from_millis(1);
/// Most that a start from empty may take.
pub const FROM_EMPTY: Duration = Duration::from_secs(2);
/// Most that all maps may take.
pub const MEMORY: u64 = 100_000_000;

/// Measures all of it. The time to build the wish is not part of it: that is `translate`'s.
pub fn run() -> Result<Control> {
    let maps = Engine::load(CONFIG)?.kernel.memory();
    ensure!(!maps.is_empty(), "the kernel does not tell the memory of maps");

    let many = (0..1000).fold(World::new(), |world, vip| world_with(world, vip, 10));
    let mut from_empty = [Duration::MAX; 2];
    for _ in 0..STARTS {
        let times = apply(&mut Engine::load(CONFIG)?, &many)?;
        from_empty = [0, 1].map(|which| from_empty[which].min(times[which]));
    }

    Ok(Control { publish: publish()?, from_empty, maps })
}

/// How long it took, and how long this thread ran for it.
fn apply(engine: &mut Engine, world: &World) -> Result<[Duration; 2]> {
    let want = world.want.clone();
    let (start, ran) = (Instant::now(), cpu_time());
    let problems = engine.apply(want);
    let times = [start.elapsed(), cpu_time().saturating_sub(ran)];
    ensure!(problems.is_empty(), "{problems:?}");
    Ok(times)
}

/// Of this thread, since it began.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Drives plan and tables as [`Engine::apply`] does, so as to look at the clock in between.
fn publish() -> Result<Publish> {
    let engine = Engine::load(CONFIG)?;
    let mut book = Book::default();
    // A hundred slots each: the largest table begins at 656 backends.
    let worlds = [656, 657].map(|backends| world_with(World::new(), 0, backends));
    let (mut planned, mut switched) = (Vec::new(), Vec::new());
    for round in 0..=REPEATS {
        let start = Instant::now();
        let plan = book.plan(&worlds[round % 2].want, 0);
        let known = start.elapsed();
        ensure!(plan.problems.is_empty(), "{:?}", plan.problems);
        // What comes after the switch waits for packets on their way, and frees what they used.
        let (before, after) = plan.ops.split_at(switch(&plan.ops)?);
        let start = Instant::now();
        before.iter().for_each(|op| op.apply(&engine.tables, &mut ()));
        // The first round is an installation.
        if round > 0 {
            planned.push(known);
            switched.push(start.elapsed());
        }
        after.iter().for_each(|op| op.apply(&engine.tables, &mut ()));
    }
    Ok(Publish { planned: fastest_and_median(planned), switched: fastest_and_median(switched) })
}

/// How many steps it takes until packets see the new table.
fn switch(ops: &[Op]) -> Result<usize> {
    let last = ops.iter().rposition(|op| matches!(op, Op::Switch(..) | Op::Epoch(_)));
    last.map(|last| last + 1).context("a plan that switches nothing")
}

fn fastest_and_median(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort_unstable();
    [0, times.len() / 2].map(|at| times.get(at).copied().unwrap_or_default())
}

fn world_with(world: World, vip: u32, backends: u32) -> World {
    let vip = format!("{}:80", Ipv4Addr::from(0xcb00_0000 + vip));
    let first = 0x0a40_0000 + vip_backends(&world);
    let mut world = world.service(Tcp, &vip, L2, &[]);
    let all = world.backends_mut(&vip, Tcp);
    for number in first..first + backends {
        let addr = Ipv4Addr::from(number);
        all.insert((addr, 80).into(), backend(addr.into()));
    }
    world
}

/// Backends so far: each VIP has its own.
fn vip_backends(world: &World) -> u32 {
    world.want.pools.values().map(|pool| pool.backends.len() as u32).sum()
}
