//! Nanoseconds per packet of the XDP program, by BPF_PROG_TEST_RUN.
//!
//! All cases run interleaved in one process on one core, and the smallest and the lower quartile
//! of many rounds are compared: on a shared machine one case alone swings by half over seconds.
//! The kernel reports whole nanoseconds per packet. Repeats do not reset the packet: `l2` rewrites
//! MACs to what they are already; `nat` runs behind a wrapper that restores the headers, whose own
//! cost is the case `restore`.

use anyhow::{Context, Result};
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode, Protocol};
use serde_json::json;

use crate::packet::{Packet, tcp};
use crate::world::{LOOPBACK, World, backend_mac};

const ROUNDS: usize = 41;
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
}

impl Measured {
    /// As the JSON report has it.
    pub fn json(&self) -> serde_json::Value {
        let Self { case, min_ns, p25_ns, median_ns, ratio } = self;
        json!({
            "case": case, "min_ns": min_ns, "p25_ns": p25_ns, "median_ns": median_ns,
            "ratio": (ratio * 100.0).round() / 100.0,
        })
    }
}

struct Case {
    name: &'static str,
    program: &'static str,
    engine: usize,
    packet: Vec<u8>,
    action: u32,
    nanoseconds: Vec<u64>,
}

/// Measures every case.
pub fn run() -> Result<Vec<Measured>> {
    pin()?;
    // The wrappers restore one packet per loaded program: each family has a program of its own.
    let mut engines = [load(false)?, load(true)?];
    let mut cases = cases();
    for case in &mut cases {
        let engine = engines.get_mut(case.engine).context("a case names a loaded program")?;
        let run = engine.kernel.test_run(case.program, &case.packet, 1)?;
        anyhow::ensure!(
            run.action == case.action,
            "{}: action {}, not {}",
            case.name,
            run.action,
            case.action
        );
    }
    for _ in 0..ROUNDS {
        for case in &mut cases {
            let engine = engines.get_mut(case.engine).context("a case names a loaded program")?;
            let run = engine.kernel.test_run(case.program, &case.packet, REPEAT)?;
            anyhow::ensure!(run.action == case.action, "{}: action {} at the end", case.name, run.action);
            case.nanoseconds.push(run.nanoseconds);
        }
    }
    for case in &mut cases {
        case.nanoseconds.sort_unstable();
    }
    let floor = cases.iter().find(|case| case.name == FLOOR).and_then(|case| case.nanoseconds.first());
    let floor = *floor.context("the floor was measured")? as f64;
    Ok(cases.iter().map(|case| measured(case, floor)).collect())
}

fn measured(case: &Case, floor: f64) -> Measured {
    let at = |index: usize| case.nanoseconds.get(index).copied().unwrap_or_default();
    Measured {
        case: case.name,
        min_ns: at(0),
        p25_ns: at(ROUNDS / 4),
        median_ns: at(ROUNDS / 2),
        ratio: at(0) as f64 / floor.max(1.0),
    }
}

const PASS: u32 = 2;
const TX: u32 = 3;

fn cases() -> Vec<Case> {
    let v4 = |vip: &str| frame("198.51.100.7:40000", vip);
    let v6 = |vip: &str| frame("[2001:db8:2::7]:40000", vip);
    let case = |name, program, engine, packet, action| Case {
        name,
        program,
        engine,
        packet,
        action,
        nanoseconds: Vec::with_capacity(ROUNDS),
    };
    vec![
        case("pass", "bench_pass", 0, v4("192.0.2.1:80"), PASS),
        case(FLOOR, "bench_swap", 0, v4("192.0.2.1:80"), TX),
        case("restore-v4", "bench_restore_v4", 0, v4(NAT_V4), TX),
        case("restore-v6", "bench_restore_v6", 1, v6(NAT_V6), TX),
        case("not-ours-v4", "penstock", 0, v4("192.0.2.1:80"), PASS),
        case("not-ours-v6", "penstock", 1, v6("[2001:db8:9::1]:80"), PASS),
        case("l2-v4", "penstock", 0, v4(L2_V4), TX),
        case("l2-v6", "penstock", 1, v6(L2_V6), TX),
        case("nat-v4", "bench_v4", 0, v4(NAT_V4), TX),
        case("nat-v6", "bench_v6", 1, v6(NAT_V6), TX),
    ]
}

const NAT_V4: &str = "203.0.113.1:80";
const NAT_V6: &str = "[2001:db8:1::1]:80";
const L2_V4: &str = "203.0.113.2:80";
const L2_V6: &str = "[2001:db8:1::2]:80";

fn load(v6: bool) -> Result<Engine> {
    use {ForwardingMode::*, Protocol::Tcp};
    let world = World::new()
        .service(Tcp, NAT_V4, Nat, &["10.0.0.1:8080"])
        .service(Tcp, NAT_V6, Nat, &["[fd00::1]:8080"])
        .service(Tcp, L2_V4, L2, &["10.0.0.1:80"])
        .service(Tcp, L2_V6, L2, &["[fd00::1]:80"]);
    let mut engine = world.load();
    engine.set_interface(LOOPBACK, backend_mac(1));
    for program in
        ["bench_pass", "bench_swap", "bench_v4", "bench_v6", "bench_restore_v4", "bench_restore_v6"]
    {
        engine.kernel.load_bench(program)?;
    }
    let restored =
        if v6 { frame("[2001:db8:2::7]:40000", NAT_V6) } else { frame("198.51.100.7:40000", NAT_V4) };
    engine.kernel.set_bench_packet(&restored)?;
    Ok(engine)
}

/// A TCP segment whose destination MAC is the backend's already: rewriting it again changes
/// nothing, and the program's check of the MAC passes every time.
fn frame(src: &str, dst: &str) -> Vec<u8> {
    let payload = vec![0; 26];
    Packet { dst_mac: backend_mac(1), payload, ..tcp(src, dst) }.bytes()
}

fn pin() -> Result<()> {
    let mut cpus = rustix::thread::CpuSet::new();
    cpus.set(1.min(std::thread::available_parallelism().map_or(0, |count| count.get() - 1)));
    rustix::thread::sched_setaffinity(None, &cpus).context("pin to one core")
}
