//! `cargo xtask bench l7`: requests per second and per second of CPU time beside other proxies.
//! What is compared and how is in `bench_l7`; the configurations are in `tests/bench`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use lb_tests::bench_l7::load::{self, Case};
use lb_tests::bench_l7::proxy::{self, Certificate, Kind, Proxy};
use lb_tests::bench_l7::summary::{self, Round};
use lb_tests::bench_l7::{LOAD_CPU, OTHER_HOSTS, PROXY_CPU, plot};

/// Measures Penstock beside other proxies under the same load.
#[derive(Debug, Parser)]
struct Args {
    /// Also write the medians as a list of JSON objects
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the ratios to nginx
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure these cases alone
    #[arg(long, value_name = "CASE", value_delimiter = ',', value_parser = Case::ALL.map(|case| case.name))]
    only: Vec<String>,
    /// Turns of each proxy in each case
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Length of a turn
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(200..))]
    slice_ms: u64,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    for program in ["wrk", "h2load", "taskset", "setpriv"] {
        if proxy::find(program).is_none() {
            bail!("no {program} on this machine; `cargo xtask setup bench` brings it");
        }
    }
    let dir = tempfile::tempdir().context("make a directory for the run")?;
    std::fs::write(dir.path().join("report.lua"), include_str!("../../bench/report.lua"))?;
    let certificate = Certificate::new(dir.path())?;
    let (_backend, backends) = proxy::start_backends(dir.path()).context("start the backends")?;

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
        "proxies on CPU {PROXY_CPU} with one worker; load (wrk, h2load) and backends (nginx, gRPC) on CPU {LOAD_CPU}\n\
         {} hosts, metrics and access logs on everywhere; upstream connections kept; TLS 1.3, ECDSA P-256\n\
         {} rounds in turns of {length:?}; medians, ratio of req/CPU-s within each round; CPU below 100%: the load or \
         other work on the machine was the limit\n",
        OTHER_HOSTS + 1,
        args.rounds
    );

    let mut rows = Vec::new();
    let wanted = |case: &Case| args.only.is_empty() || args.only.iter().any(|name| name == case.name);
    for case in Case::ALL.into_iter().filter(wanted) {
        let mut rounds = Vec::new();
        for number in 1..=args.rounds {
            let mut round = Round::new();
            for proxy in &proxies {
                let Proxy { kind, process, http, https, .. } = proxy;
                let slice = load::slice(case, *http, *https, process, dir.path(), length);
                proxy.forget_log();
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
    if let Some(file) = args.json {
        let text = serde_json::to_string_pretty(&summary::json(&rows))?;
        std::fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
    }
    if let Some(file) = args.svg {
        std::fs::write(&file, plot::svg(&rows)).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
