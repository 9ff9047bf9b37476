//! Feeds the parsers with what reaches ever more of their code, by libFuzzer.
//!
//! Only our own crates are built with its counters: this program stands between cargo and the compiler for them
//! (`RUSTC_WORKSPACE_WRAPPER`) and adds the flags. The options are LLVM's and stable, so no nightly compiler is needed.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

use crate::setup::{self, Purpose};
use crate::{process, target_dir, workspace};

/// Tells the started program that it is to act as the compiler.
const WRAPS: &str = "PENSTOCK_COVERAGE";

/// Counters for each edge of the control flow, and what is compared with what.
const COVERAGE: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Copt-level=1",
];

/// What is fed, and for how long.
#[derive(clap::Args)]
pub struct Args {
    /// Targets by the names of their folders in `tests/fuzz/corpus`; all if left out
    targets: Vec<String>,
    /// How long each is fed
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    seconds: u32,
}

/// The compiler with our flags, where cargo asks for it.
pub fn as_compiler() -> Option<ExitCode> {
    std::env::var_os(WRAPS)?;
    let mut args = std::env::args_os().skip(1);
    let mut rustc = Command::new(args.next()?);
    let args: Vec<_> = args.collect();
    // What runs while building has nothing that counts, and neither has what cargo asks the compiler itself.
    let is_ours =
        args.iter().any(|arg| arg == "--crate-name") && !args.iter().any(|arg| arg == "build_script_build");
    rustc.args(&args);
    if is_ours {
        rustc.args(COVERAGE);
    }
    let status = rustc.status().ok()?;
    Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the targets and feeds each. New inputs are kept in `target/fuzz`, from where the next run goes on; one that
/// breaks a target is told with the file that it is in.
pub fn run(args: &Args) -> Result<()> {
    let corpora = workspace().join("tests/fuzz/corpus");
    let targets = if args.targets.is_empty() { names(&corpora)? } else { args.targets.clone() };
    for target in &targets {
        ensure!(
            corpora.join(target).is_dir(),
            "no target {target}: the folders in {} name them",
            corpora.display()
        );
    }
    setup::run(&[Purpose::Build])?;
    let mut build = process::cargo();
    build.args(["build", "--package", "lb-tests", "--features", "guided", "--bin", "fuzz-guided"]);
    build
        .env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe().context("find this program")?)
        .env(WRAPS, "1");
    // Apart from what is built without counters.
    build.env("CARGO_TARGET_DIR", target_dir());
    process::run(&mut build)?;
    let mut broken = Vec::new();
    for target in &targets {
        if let Err(error) = feed(target, &corpora, args.seconds) {
            eprintln!("{target}: {error:#}");
            broken.push(target.as_str());
        }
    }
    if !broken.is_empty() {
        bail!("broken: {}; what broke it belongs into tests/fuzz/corpus", broken.join(", "));
    }
    Ok(())
}

/// What libFuzzer says goes into a file beside the inputs; it has much to say.
fn feed(target: &str, corpora: &Path, seconds: u32) -> Result<()> {
    let top = target_dir().join("fuzz");
    let kept = top.join(target);
    fs::create_dir_all(&kept).with_context(|| format!("make {}", kept.display()))?;
    let log = top.join(format!("{target}.log"));
    let said = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut fuzzer = Command::new(target_dir().join("debug/fuzz-guided"));
    fuzzer.env("PENSTOCK_FUZZ_TARGET", target).arg(&kept).arg(corpora.join(target));
    fuzzer.arg(format!("-max_total_time={seconds}"));
    fuzzer.arg(format!("-artifact_prefix={}", top.join(format!("{target}-")).display()));
    fuzzer.args(["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"]).stderr(said);
    process::run(&mut fuzzer).with_context(|| format!("{} tells what and where", log.display()))?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().rfind(|line| line.contains("cov:")).unwrap_or_default();
    println!("{target}: {}", last.split_once("cov:").map_or(last, |(_, counts)| counts.trim()));
    Ok(())
}

fn names(corpora: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(corpora).with_context(|| format!("list {}", corpora.display()))?;
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}
