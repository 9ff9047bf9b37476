//! `cargo xtask bench l7`: requests per second and per second of CPU time beside other proxies.
//! What is compared and how is in `bench_l7`; the configurations are in `tests/bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use lb_tests::bench_l7::load::{self, Case};
use lb_tests::bench_l7::proxy::{self, Backends, Certificate, Kind, Proxy};
use lb_tests::bench_l7::resident::{self, Waiting};
use lb_tests::bench_l7::summary::{self, Round};
use lb_tests::bench_l7::{LOAD_CPU, OTHER_HOSTS, PROXY_CPU, grpc, plot};
use serde_json::Value;

/// Measures Penstock beside other proxies under the same load.
#[derive(Debug, Parser)]
struct Args {
    /// Also write the medians as a list of JSON objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the ratios to nginx
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure nothing: draw what --json wrote before
    #[arg(long, value_name = "FILE", requires = "svg", conflicts_with = "json")]
    from: Option<PathBuf>,
    /// Measure these cases alone
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = names())]
    only: Vec<String>,
    /// Turns of each proxy in each case
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a turn
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(200..))]
    slice_ms: u64,
}

/// Of all cases.
fn names() -> Vec<&'static str> {
    let loads = Case::ALL.map(|case| case.name);
    loads.into_iter().chain(Waiting::ALL.map(Waiting::name)).collect()
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    if let Some(file) = &args.from {
        let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let rows: Vec<Value> = serde_json::from_slice(&text).context("read the list of medians")?;
        keep(&args, &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    for program in ["wrk", "h2load", "taskset", "setpriv"] {
        if proxy::find(program).is_none() {
            bail!("no {program} on this machine; `cargo xtask setup bench` brings it");
        }
    }
    resident::make_room()?;
    let dir = tempfile::tempdir().context("make a directory for the run")?;
    std::fs::write(dir.path().join("report.lua"), include_str!("../../bench/report.lua"))?;
    let certificate = Certificate::new(dir.path())?;
    std::fs::write(dir.path().join("grpc-message"), grpc::MESSAGE)?;
    let backends = Backends::start().context("start the backends")?;

    let mut complete = true;
    let mut proxies = Vec::new();
    for kind in Kind::ALL {
        let Some(program) = kind.program() else {
            println!("{}: not found, left out", kind.name());
            complete &= kind != Kind::Penstock;
            continue;
        };
        match Proxy::start(kind, &program, backends, &certificate, dir.path()) {
            Ok(proxy) => {
                println!("{}: {} ({})", kind.name(), kind.version(&program), program.display());
                proxies.push(proxy);
            }
            Err(error) => {
                println!("{}: left out: {error:#}", kind.name());
                complete = false;
            }
        }
    }

    if cfg!(debug_assertions) {
        println!("built for debugging: the numbers of penstock mean nothing");
    }

    let length = Duration::from_millis(args.slice_ms);
    println!(
        "proxies on CPU {PROXY_CPU} with one worker; load (wrk, h2load) and backends (ours) on CPU {LOAD_CPU}\n\
         {} hosts, metrics and access logs on everywhere; upstream connections kept; TLS 1.3, ECDSA P-256\n\
         {} rounds in turns of {length:?}; medians, ratio of req/CPU-s within each round; CPU below 100%: the load or \
         other work on the machine was the limit\n",
        OTHER_HOSTS + 1,
        args.rounds
    );

    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut memory = Vec::new();
    for waiting in Waiting::ALL.into_iter().filter(|waiting| wanted(waiting.name())) {
        let mut all = Vec::new();
        for Proxy { kind, .. } in &proxies {
            let Some(program) = kind.program() else { continue };
            match resident::measure(*kind, &program, backends, &certificate, waiting) {
                Ok(resident) => all.push(resident),
                Err(error) => println!("{} {}: void: {error:#}", waiting.name(), kind.name()),
            }
        }
        complete &= all.len() == proxies.len();
        println!("{}", resident::table(waiting, &all));
        memory.extend(resident::json(waiting, &all));
    }

    let slice = |case: Case, proxy: &Proxy, rate: f64| {
        let Proxy { process, http, https, .. } = proxy;
        let slice = load::slice(case, *http, *https, process, dir.path(), (length, rate));
        proxy.forget_log();
        slice
    };
    let mut rows = Vec::new();
    let mut rate = None;
    for case in Case::ALL.into_iter().filter(|case| wanted(case.name)) {
        if case.is_paced() && rate.is_none() {
            // Half of what the slowest does of those that are in the same league.
            let lean = proxies.iter().filter(|proxy| proxy.kind.is_lean());
            let full = lean.filter_map(|proxy| slice(Case::FULL_RATE, proxy, 0.0).ok());
            rate = full.map(|slice| slice.rps / 2.0).min_by(f64::total_cmp);
            println!("{}: {:.0} requests a second\n", case.name, rate.unwrap_or_default());
        }
        let mut rounds = Vec::new();
        for number in 1..=args.rounds {
            let mut round = Round::new();
            for proxy in &proxies {
                let kind = &proxy.kind;
                let slice = slice(case, proxy, rate.unwrap_or(1000.0));
                match slice {
                    Ok(slice) => round.push((*kind, slice)),
                    Err(error) => {
                        println!("{} {} round {number}: void: {error:#}", case.name, kind.name());
                    }
                }
            }
            rounds.push(round);
        }
        let of_case = summary::rows(case, &rounds);
        complete &= of_case.len() == proxies.len();
        rows.extend(of_case);
    }

    print!("{}", summary::table(&rows));
    if !summary::quiet(&rows) {
        println!("\nothers had more than 15% of CPU {PROXY_CPU}: measure again on a quiet machine");
    }
    keep(&args, &[summary::json(&rows), memory].concat())?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the files that are asked for.
fn keep(args: &Args, rows: &[Value]) -> Result<()> {
    let text = serde_json::to_string_pretty(rows)? + "\n";
    for (file, text) in [(&args.json, text), (&args.svg, plot::svg(rows))] {
        if let Some(file) = file {
            std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}
