//! `cargo xtask bench control`: from objects to routes, in time. What is measured is in
//! `bench_control`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use lb_tests::apiserver::ASSETS;
use lb_tests::bench_control::live::{self, Figure, Plan};
use lb_tests::bench_control::served::{self, Served};
use lb_tests::bench_control::{self, HEADING};
use lb_tests::netns;
use serde_json::json;

/// Measures reading, translating, indexing and routing of many Ingresses, and a change of one; then an agent beside a
/// real API server.
#[derive(Debug, Parser)]
struct Args {
    /// Also write the figures as a JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// One half of it alone
    #[arg(long, value_enum)]
    only: Option<Half>,
    /// How many Ingresses, each size by itself
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [100, 1000, 10_000])]
    ingresses: Vec<usize>,
    /// Times that each is measured; the best counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Ingresses in the API server; to each belong two Services and twenty endpoints
    #[arg(long, value_name = "N", default_value_t = 1000)]
    cluster_ingresses: usize,
    /// Starts of the agent beside it; the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    starts: usize,
    /// Without the kernel part
    #[arg(long)]
    no_kernel: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Half {
    /// From files, in this process
    Files,
    /// The agent beside an API server
    Cluster,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        println!("built for debugging: the numbers mean nothing");
    }
    let rows = if args.only == Some(Half::Cluster) { Vec::new() } else { files(&args)? };
    let figures = if args.only == Some(Half::Files) { Vec::new() } else { cluster(&args)? };
    if let Some(path) = &args.json {
        let figures: Vec<_> = figures.iter().map(Figure::json).collect();
        let all = json!({"files": bench_control::json(&rows), "cluster": figures});
        let text = serde_json::to_string_pretty(&all)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn files(args: &Args) -> Result<Vec<(bench_control::Row, Served)>> {
    println!("{HEADING}");
    let mut rows = Vec::new();
    for ingresses in &args.ingresses {
        let row = bench_control::measure((*ingresses).max(1), args.rounds.max(1));
        println!("{}", bench_control::line(&row));
        let Served { ingress, slice } = served::measure((*ingresses).max(4), args.rounds.max(1))?;
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        println!("          from file to answer: Ingress {:.1} ms, slice {:.1} ms", ms(ingress), ms(slice));
        rows.push((row, Served { ingress, slice }));
    }
    Ok(rows)
}

/// Nothing, and a line that says why, where there is no API server or no namespace to have it in.
fn cluster(args: &Args) -> Result<Vec<Figure>> {
    let assets = std::env::var_os(ASSETS).map_or_else(|| "/usr/local/kubebuilder/bin".into(), PathBuf::from);
    if !assets.join("kube-apiserver").is_file() {
        println!("no kube-apiserver in {}: {ASSETS} names its folder", assets.display());
        return Ok(Vec::new());
    }
    if let Err(reason) = netns::possible() {
        println!("nothing beside an API server: {reason}");
        return Ok(Vec::new());
    }
    let plan = Plan {
        assets: &assets,
        ingresses: args.cluster_ingresses.max(20),
        starts: args.starts,
        kernel: !args.no_kernel,
    };
    live::measure(plan, &|figure| println!("{}", figure.line()))
}
