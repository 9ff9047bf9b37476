//! Counters of hosts whose CPUs are too many for one map.

use lb_tests::packet::{OURS, tcp};
use lb_tests::tier;
use lb_tests::world::{CONFIG, LOOPBACK, World, can_run_programs, pool_id};
use penstock::datapath::Banks;
use penstock::datapath::engine::Engine;
use penstock::model::l4::{ForwardingMode, Protocol};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::run::{Send, count, run};
use crate::verifier::is_cheap;

const VIP: &str = "203.0.113.1:80";

fn loaded(banks: Banks) -> Engine {
    let world = World::new().service(Protocol::Tcp, VIP, ForwardingMode::L2, &["10.0.0.1:80"]);
    let mut engine = Engine::load_for(CONFIG, banks).expect("the program loads");
    assert_eq!(engine.apply(world.want), vec![]);
    engine.set_interface(LOOPBACK, OURS);
    engine
}

/// How many CPUs this host may have, as the kernel names them: `0-1`.
fn possible() -> usize {
    let range = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("the kernel says so");
    let last = range.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<usize>().ok());
    last.expect("a number") + 1
}

/// Whether the counters of 1,024 CPUs leave the others something.
fn enough_memory() -> Result<(), String> {
    const NEEDED_KIB: u64 = 4 << 20;
    let memory = std::fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
    if available >= NEEDED_KIB {
        Ok(())
    } else {
        Err(format!("{available} KiB are available, wanted {NEEDED_KIB}"))
    }
}

/// Sends a packet on each CPU that this thread may run on; returns on how many.
fn a_packet_on_each_cpu(engine: &mut Engine) -> u64 {
    let all = sched_getaffinity(None).expect("the CPUs of this thread");
    let mut sent = 0;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("it may run there");
        assert!(matches!(run(engine, &tcp("198.51.100.7:40000", VIP).bytes()), Send(_)));
        sent += 1;
    }
    sched_setaffinity(None, &all).expect("as it was");
    sent
}

fn counted(engine: &Engine) -> [u64; 2] {
    let pool = pool_id(VIP.parse().expect("an address"), Protocol::Tcp);
    let backends = engine.totals(&pool);
    [count(engine, "forwarded-l2"), backends.values().map(|totals| totals.packets).sum()]
}

#[test]
fn each_cpu_counts_in_its_own_row_whatever_map_that_is_in() {
    if !tier::require("prog", can_run_programs) {
        return;
    }
    let cpus = possible();

    let mut engine = loaded(Banks::with(cpus, (cpus + 1).div_ceil(4)).expect("four maps at most"));

    let sent = a_packet_on_each_cpu(&mut engine);
    assert_eq!(counted(&engine), [sent; 2]);
}

#[test]
fn the_program_loads_for_hosts_of_400_and_of_1024_cpus() {
    if !tier::require("prog", can_run_programs) || !tier::require_by_name("memory", enough_memory) {
        return;
    }
    for cpus in [400, 1024] {
        let mut engine = loaded(Banks::of(cpus).expect("so many are counted on"));

        let sent = a_packet_on_each_cpu(&mut engine);
        assert_eq!(counted(&engine), [sent; 2], "{cpus}");
        is_cheap(&engine);
    }
}
