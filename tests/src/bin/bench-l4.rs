//! Prints what a packet costs: `bench-l4 [--json FILE]`.

use anyhow::{Context, Result, bail};
use lb_tests::bench_l4;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let json = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => None,
        ["--json", file] => Some(file.to_owned()),
        _ => bail!("usage: bench-l4 [--json FILE]"),
    };
    let measured = bench_l4::run().context("measure (needs root or CAP_BPF and CAP_NET_ADMIN)")?;
    println!("{:<14} {:>7} {:>7} {:>7} {:>7}", "case", "min ns", "p25", "median", "ratio");
    for bench_l4::Measured { case, min_ns, p25_ns, median_ns, ratio } in &measured {
        println!("{case:<14} {min_ns:>7} {p25_ns:>7} {median_ns:>7} {ratio:>7.2}");
    }
    println!("ratio: fastest round in units of mac-swap's; restore is part of nat's rows");
    if let Some(file) = json {
        let rows: Vec<_> = measured.iter().map(bench_l4::Measured::json).collect();
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(&file, text + "\n").with_context(|| format!("write {file}"))?;
    }
    Ok(())
}
