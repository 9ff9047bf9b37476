//! Starts the measuring programs of the crate `lb-tests`, built as released.

use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::setup::{self, Purpose};
use crate::{ebpf, process, target_dir};

/// What of Penstock is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Half {
    /// Nanoseconds per packet of the XDP program; with `--wire` between namespaces, beside nftables
    L4,
    /// Requests per second of the proxy, beside nginx and haproxy
    L7,
    /// Time from objects to routes, and of one change, with many Ingresses
    Control,
}

/// Builds everything in release and runs the program of that half with `args`.
pub fn run(half: Half, args: &[String]) -> Result<()> {
    let (bin, purposes): (_, &[Purpose]) = match half {
        // Namespaces are what the tests need, too.
        Half::L4 if args.iter().any(|arg| arg == "--wire") => ("bench-l4", Purpose::ALL),
        Half::L4 => ("bench-l4", &[Purpose::Build]),
        Half::L7 => ("bench-l7", &[Purpose::Build, Purpose::Bench]),
        Half::Control => ("bench-control", &[Purpose::Build]),
    };
    setup::run(purposes)?;
    ebpf::build()?;
    // What is measured of the control is a library.
    let agent = (half != Half::Control).then_some(("lb-userspace", "penstock"));
    for (package, bin) in agent.into_iter().chain([("lb-tests", bin)]) {
        process::run(process::cargo().args(["build", "--release", "--package", package, "--bin", bin]))?;
    }
    // Not through cargo: `--json FILE` is meant from where the caller stands.
    process::run(Command::new(target_dir().join("release").join(bin)).args(args))
}
