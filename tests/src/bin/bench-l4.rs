//! Prints what a packet costs: `bench-l4 [--wire] [--json FILE] [--rounds N] [--only WORD,WORD]`; `--only control`: what a
//! change of the tables does; `--wire --only frames` or `connections`: that half.

use anyhow::{Context, Result, bail};
use lb_tests::bench_l4::connections::Rate;
use lb_tests::bench_l4::control::{self, Control, Publish};
use lb_tests::bench_l4::wire::{self, Connections, Frames};
use lb_tests::bench_l4::{self, Measured};

const ROUNDS: usize = 41;

fn main() -> Result<()> {
    let (mut json, mut rounds, mut on_wire, mut only) = (None, ROUNDS, false, String::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} takes a value"));
        match arg.as_str() {
            "--wire" => on_wire = true,
            "--json" => json = Some(value()?),
            "--rounds" => rounds = value()?.parse().context("--rounds takes a number")?,
            "--only" => only = value()?,
            _ => bail!("usage: bench-l4 [--wire] [--json FILE] [--rounds N] [--only WORD,WORD]"),
        }
    }
    let rows = if on_wire { wire(&only)? } else { packets(rounds, &only)? };
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(&file, text + "\n").with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

fn packets(rounds: usize, only: &str) -> Result<Vec<serde_json::Value>> {
    if only == "control" {
        let control = control::run().context("measure a change of the tables")?;
        print_control(&control);
        return Ok(control.json());
    }
    let only: Vec<&str> = only.split(',').filter(|word| !word.is_empty()).collect();
    let measured =
        bench_l4::run(rounds, &only).context("measure (needs root or CAP_BPF and CAP_NET_ADMIN)")?;
    print(&measured);
    print_compared(&measured);
    if !only.is_empty() {
        return Ok(measured.iter().map(Measured::json).collect());
    }
    let control = control::run().context("measure a change of the tables")?;
    print_control(&control);
    Ok(measured.iter().map(Measured::json).chain(control.json()).collect())
}

fn wire(only: &str) -> Result<Vec<serde_json::Value>> {
    let wire = wire::run(only).context("measure on the wire (needs root)")?;
    if !wire.frames.is_empty() {
        print_frames(&wire.frames);
    }
    if !wire.connections.is_empty() {
        print_connections(&wire.connections);
    }
    Ok(wire.json())
}

fn print_frames(frames: &[Frames]) {
    println!("{:<20} {:>7} {:>5} {:>7} {:>6}", "case", "min ns", "p25", "median", "ratio");
    for Frames { case, nanoseconds: [min, p25, median], ratio } in frames {
        println!("{case:<20} {min:>7} {p25:>5} {median:>7} {ratio:>6.2}");
    }
    println!(
        "ratio: fastest round beside that of wire-mac-swap, or of wire-udp-nftables for UDP; each row is\n\
         generator, balancer and sink on one core, and every frame arrived\n"
    );
}

fn print_connections(connections: &[Connections]) {
    println!("{:<22} {:>10} {:>14} {:>6}", "case", "per second", "per CPU second", "ratio");
    for row in connections {
        let Rate { per_second, per_cpu_second } = row.best();
        println!("{:<22} {per_second:>10.0} {per_cpu_second:>14.0} {:>6.2}", row.case, row.ratio);
    }
    println!(
        "new TCP connections, best rounds; ratio: per CPU second of client, balancer and server beside\n\
         connections-nftables in the same rounds, the median"
    );
}

fn print(measured: &[Measured]) {
    println!(
        "{:<18} {:>7} {:>5} {:>7} {:>6} {:>6} {:>6}",
        "case", "min ns", "p25", "median", "ratio", "net", "goal"
    );
    for row in measured {
        let Measured { case, min_ns, p25_ns, median_ns, ratio, net_ratio, goal } = row;
        print!("{case:<18} {min_ns:>7} {p25_ns:>5} {median_ns:>7} {ratio:>6.2} {net_ratio:>6.2}");
        match goal {
            Some(goal) => println!(" {goal:>6.1}  {}", judged(row)),
            None => println!(),
        }
    }
    println!(
        "ratio: fastest round in units of mac-swap's; net: without the wrapper that puts the packet back\n\
         (rows undo, vary, restore, rewrap: the wrapper alone, an encapsulation's move of the start included)"
    );
}

/// Rows beside the rows that they should equal: sizes, and IPv6 beside IPv4.
fn print_compared(measured: &[Measured]) {
    println!("\n{:<18} {:<18} {:>6}", "case", "beside", "ratio");
    for (row, other, ratio) in bench_l4::compared(measured) {
        println!("{row:<18} {other:<18} {ratio:>6.2}");
    }
}

fn print_control(control: &Control) {
    let Control { publish: Publish { planned, switched }, from_empty, maps } = control;
    println!(
        "\na table of 65,536 slots, from plan to switched: {:.1?}, median {:.1?} (goal {:.0?}); \
         the plan: {:.1?}, median {:.1?}\n\
         1,000 VIPs with 10,000 backends from empty: {:.0?}, {:.0?} of them on a CPU (goal {:.0?})\n\
         memory of all maps: {:.1} MB (goal {:.0} MB)",
        switched[0],
        switched[1],
        control::PUBLISH,
        planned[0],
        planned[1],
        from_empty[0],
        from_empty[1],
        control::FROM_EMPTY,
        megabytes(control.memory()),
        megabytes(control::MEMORY),
    );
    for (name, bytes) in maps.iter().filter(|(_, bytes)| *bytes >= 1_000_000) {
        println!("  {name:<16} {:>6.1} MB", megabytes(*bytes));
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn judged(row: &Measured) -> &'static str {
    match (row.met(), row.met_net()) {
        (Some(true), _) => "met",
        (_, Some(true)) => "met net",
        _ => "missed",
    }
}
