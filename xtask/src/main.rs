//! `cargo xtask`: the one entry point for setting up, building, testing, showing and measuring
//! Penstock. CI runs the same commands.
//!
//! It depends on nothing but an argument parser, so that it builds in seconds on a machine that
//! can build nothing else yet; what needs the agent's own code lives in the crate `lb-tests`.

mod assets;
mod bench;
mod demo;
mod ebpf;
mod fuzz;
mod kernels;
mod layers;
mod process;
mod release;
mod setup;
mod test;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, test, show and measure Penstock")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make this Debian or Ubuntu machine able to build, test and bench (does nothing where all is there)
    Setup {
        /// What for; everything if left out
        #[arg(value_enum)]
        purposes: Vec<setup::Purpose>,
    },
    /// Build the kernel object `target/ebpf/penstock.bpf.o`
    BuildEbpf,
    /// Build the agent as it is released, `target/trained/penstock`: twice, the second time by what the first did under load
    Release(release::Args),
    /// Check which room imports which, and that no file grew beyond one idea
    Layers,
    /// Run the checks and test tiers named, or all of them
    Test {
        /// fmt, clippy, layers, unit, prog, wire, proxy, cluster, deploy
        tiers: Vec<test::Tier>,
    },
    /// Show Penstock at work: client, edge host and three backends in network namespaces
    Demo(demo::Args),
    /// Feed the parsers with what reaches ever more of their code, until one breaks
    Fuzz(fuzz::Args),
    /// Load and run the kernel program on other kernels, in virtual machines (qemu)
    Kernels {
        /// Their packages, e.g. by `apt-get download linux-image-6.1.0-37-amd64`
        #[arg(required = true)]
        packages: Vec<std::path::PathBuf>,
    },
    /// Measure; what is left over goes to the measuring program
    Bench {
        /// Which half
        #[arg(value_enum)]
        half: bench::Half,
        /// e.g. `--json FILE`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::as_compiler() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Setup { purposes } => {
            let purposes = if purposes.is_empty() { setup::Purpose::ALL } else { &purposes };
            setup::run(purposes)?;
            if purposes.contains(&setup::Purpose::Test) {
                assets::offer();
            }
            Ok(())
        }
        Command::BuildEbpf => {
            let object = ebpf::build()?;
            println!("{}", object.display());
            Ok(())
        }
        Command::Release(args) => release::run(&args),
        Command::Layers => layers::run(),
        Command::Test { tiers } => test::run(&tiers),
        Command::Demo(args) => demo::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Kernels { packages } => kernels::run(&packages),
        Command::Bench { half, args } => bench::run(half, &args),
    }
}

/// Top of the workspace, wherever the command was started from. Cargo says which one that is; what this program
/// was compiled with is another one where the target folder was copied, and cargo takes it for fresh.
fn workspace() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Where cargo puts what it builds.
fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}
