//! Prepares the demo, then becomes it: the program `demo` of the crate `lb-tests`, which shares
//! its namespaces and backends with the tests.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::{ebpf, process, target_dir};

#[derive(clap::Args)]
pub struct Args {
    /// Leave everything up afterwards and print the commands to play with
    #[arg(long)]
    keep: bool,
    /// Take down what an earlier `--keep` left up, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

/// Sets up, builds and shows. Only returns when something failed.
pub fn run(args: &Args) -> Result<()> {
    if !args.down {
        setup::run(&[Purpose::Build, Purpose::Test])?;
        ebpf::build()?;
    }
    process::run(process::build().args(["--bin", "penstock", "--bin", "demo"]))?;

    // Replaces this process: a signal to it then reaches the one that can clean up.
    let mut demo = process::as_root(target_dir().join("debug/demo"))?;
    if args.keep {
        demo.arg("--keep");
    }
    if args.down {
        demo.arg("--down");
    }
    Err(demo.exec()).context("start the demo")
}
