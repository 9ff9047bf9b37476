//! Starts the measuring programs of the crate `lb-tests`, and what they measure built as it is released.

use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::setup::{self, Purpose};
use crate::{assets, ebpf, process, release, target_dir};

/// What of Penstock is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Half {
    /// Nanoseconds per packet of the XDP program; with `--wire` between namespaces, beside nftables
    L4,
    /// Requests per second of the proxy, beside nginx and haproxy
    L7,
    /// Time from objects to routes, and of one change, with many Ingresses; then an agent beside a real API server
    Control,
}

/// Builds everything in release and runs the program of that half with `args`.
pub fn run(half: Half, args: &[String]) -> Result<()> {
    let (bin, purposes): (_, &[Purpose]) = match half {
        // Namespaces are what the tests need, too.
        Half::L4 if args.iter().any(|arg| arg == "--wire") => ("bench-l4", Purpose::ALL),
        Half::L4 => ("bench-l4", &[Purpose::Build]),
        Half::L7 => ("bench-l7", &[Purpose::Build, Purpose::Bench]),
        Half::Control => ("bench-control", &[Purpose::Build, Purpose::Test]),
    };
    setup::run(purposes)?;
    if half == Half::Control {
        assets::offer();
    }
    let dir = match half {
        // The kernel's half has no code of ours outside it.
        Half::L4 => {
            ebpf::build()?;
            process::run(process::build().args(["--release", "--bin", "penstock", "--bin", bin]))?;
            target_dir().join("release")
        }
        Half::L7 | Half::Control => release::build(&release::Args::default(), &[bin])?,
    };
    // Not through cargo: `--json FILE` is meant from where the caller stands.
    let mut program = Command::new(dir.join(bin));
    if let Some(assets) = assets::find() {
        program.env(assets::ASSETS, assets);
    }
    process::run(program.args(args))
}
