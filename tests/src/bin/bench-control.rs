//! `cargo xtask bench control`: from objects to routes, in time. What is measured is in
//! `bench_control`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use lb_tests::bench_control::served::{self, Served};
use lb_tests::bench_control::{self, HEADING};

/// Measures reading, translating, indexing and routing of many Ingresses, and a change of one.
#[derive(Debug, Parser)]
struct Args {
    /// Also write the figures as a list of JSON objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many Ingresses, each size by itself
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    ingresses: Vec<usize>,
    /// Times that each is measured; the best counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        println!("built for debugging: the numbers mean nothing");
    }
    println!("{HEADING}");
    let mut rows = Vec::new();
    for ingresses in args.ingresses {
        let row = bench_control::measure(ingresses.max(1), args.rounds.max(1));
        println!("{}", bench_control::line(&row));
        let Served { ingress, slice } = served::measure(ingresses.max(4), args.rounds.max(1))?;
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        println!("          from file to answer: Ingress {:.1} ms, slice {:.1} ms", ms(ingress), ms(slice));
        rows.push((row, Served { ingress, slice }));
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&bench_control::json(&rows))? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
