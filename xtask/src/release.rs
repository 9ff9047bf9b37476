//! Builds the agent as it is released: once with counters in its code, which a load sets, and once more with what runs
//! often side by side, and what runs seldom out of its way (profile-guided optimisation).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::{self, Purpose};
use crate::toolchain::{self, Toolchain};
use crate::{ebpf, process, target_dir};

/// What `cargo xtask release` takes.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Count nothing: build by the profile that another build left beside its agent. The same source, compiler and
    /// profile make the same agent
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

/// Builds the agent, and says where it is.
pub fn run(args: &Args) -> Result<()> {
    let built = build(args, &[])?;
    let (agent, dir) = (built.join("penstock"), dir());
    let released = dir.join("penstock");
    fs::copy(&agent, &released).with_context(|| format!("copy {}", agent.display()))?;
    println!("{}\nby {}", released.display(), profile().display());
    Ok(())
}

/// Builds the agent and more programs of the crate `lb-tests`; the directory that they are in.
pub fn build(args: &Args, more: &[&str]) -> Result<PathBuf> {
    setup::run(&[Purpose::Build, Purpose::Release])?;
    ebpf::build()?;
    let compiler = toolchain::in_use()?;
    fs::create_dir_all(dir()).with_context(|| format!("create {}", dir().display()))?;
    match &args.profile {
        Some(given) => {
            let found = fs::canonicalize(given).with_context(|| format!("find {}", given.display()))?;
            if fs::canonicalize(profile()).ok() != Some(found) {
                fs::copy(given, profile()).with_context(|| format!("copy {}", given.display()))?;
            }
        }
        None => train(&compiler)?,
    }
    let mut flags = vec![
        format!("-Cprofile-use={}", profile().display()),
        // One place for what runs often, and one for what seldom does.
        "-Clink-arg=-Wl,-z,keep-text-section-prefix".to_owned(),
    ];
    if cfg!(target_arch = "x86_64") {
        flags.push("-Cllvm-args=-enable-split-machine-functions".to_owned());
    }
    compile(&compiler, "trained", &flags, &[&["penstock"], more].concat())
}

/// Counts what an agent does under load, into [`profile`].
fn train(compiler: &Toolchain) -> Result<()> {
    let merge = setup::profile_tool(compiler)?;
    let counts = dir().join("counts");
    if counts.exists() {
        fs::remove_dir_all(&counts).with_context(|| format!("remove {}", counts.display()))?;
    }
    fs::create_dir_all(&counts).with_context(|| format!("create {}", counts.display()))?;
    let flags = [format!("-Cprofile-generate={}", counts.display())];
    let counting = compile(compiler, "counting", &flags, &["penstock", "train"])?;
    eprintln!("release: half a minute of load on an agent that counts");
    let mut load = Command::new(counting.join("train"));
    // The load is built as the agent is; what it counts is nobody's business.
    load.arg(counting.join("penstock")).arg(&counts).env("LLVM_PROFILE_FILE", "/dev/null");
    process::run(&mut load)?;
    // Without what never ran, which would be taken for what never does.
    let mut command = Command::new(merge);
    process::run(command.args(["merge", "--sparse", "--output"]).arg(profile()).arg(&counts))
}

/// Builds in release with more flags for the compiler, in a target directory of that name.
fn compile(compiler: &Toolchain, name: &str, flags: &[String], bins: &[&str]) -> Result<PathBuf> {
    let target = target_dir().join(name);
    let mut build = process::build();
    // With the target named, build scripts and macros are left out of it.
    build.args(["--release", "--locked", "--target", &compiler.host, "--target-dir"]).arg(&target);
    for bin in bins {
        build.args(["--bin", bin]);
    }
    let own = std::env::var("RUSTFLAGS").unwrap_or_default();
    let all: Vec<_> = own.split_whitespace().chain(flags.iter().map(String::as_str)).collect();
    // A path may have blanks.
    build.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", all.join("\x1f"));
    process::run(&mut build)?;
    Ok(target.join(&compiler.host).join("release"))
}

fn dir() -> PathBuf {
    target_dir().join("trained")
}

/// What was counted, as the compiler reads it.
fn profile() -> PathBuf {
    dir().join("penstock.profdata")
}
