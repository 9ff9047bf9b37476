//! `cargo xtask release`: puts load on an agent that was built to count what it does. What is asked is in `training`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use lb_tests::training;

/// Has an agent serve what agents serve, so that the compiler knows which of its code that takes.
#[derive(Debug, Parser)]
struct Args {
    /// The agent
    program: PathBuf,
    /// Where it leaves what it counted (`*.profraw`)
    counts: PathBuf,
}

fn main() -> Result<()> {
    let Args { program, counts } = Args::parse();
    training::run(&program, &counts)
}
