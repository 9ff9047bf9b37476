//! Runs checks and test tiers, one line of result each. A tier that this machine cannot run is
//! skipped loudly, and fails where `PENSTOCK_REQUIRE` names it (`all`, or a list with commas).

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::setup::{self, Purpose};
use crate::{assets, ebpf, layers, process, target_dir, workspace};

/// A check or a tier, by what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Formatting
    Fmt,
    /// Lints, warnings denied
    Clippy,
    /// Room rules
    Layers,
    /// Needs nothing
    Unit,
    /// One packet through the real program: needs CAP_BPF
    Prog,
    /// Real connections across network namespaces: needs root
    Wire,
    /// The agent on loopback
    Proxy,
    /// The agent beside a real kube-apiserver, with and without its kernel part
    Cluster,
    /// Chart, kustomize base, alerts and dashboard: needs helm and kubectl, which setup installs
    Deploy,
}

/// How a tier ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Runs the tiers, all if none is named.
pub fn run(tiers: &[Tier]) -> Result<()> {
    let tiers = if tiers.is_empty() { Tier::value_variants() } else { tiers };
    setup::run(&[Purpose::Build, Purpose::Test])?;
    ebpf::build()?;
    if tiers.contains(&Tier::Cluster) {
        assets::offer();
    }
    let logs = target_dir().join("xtask");
    fs::create_dir_all(&logs)?;

    let mut failed = Vec::new();
    for tier in tiers {
        let name = tier.name();
        let begun = Instant::now();
        let outcome = tier.run(&logs.join(format!("{name}.log")))?;
        let seconds = begun.elapsed().as_secs_f32();
        match outcome {
            Outcome::Passed => println!("ok    {name:<7} {seconds:6.1} s"),
            Outcome::Skipped(why) if !required(&name) => println!("SKIP  {name:<7} {why}"),
            Outcome::Skipped(why) => {
                println!("FAIL  {name:<7} required, but {why}");
                failed.push(name);
            }
            Outcome::Failed(output) => {
                println!("{output}\nFAIL  {name:<7} {seconds:6.1} s");
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Whether `PENSTOCK_REQUIRE` names the tier.
fn required(name: &str) -> bool {
    std::env::var("PENSTOCK_REQUIRE")
        .is_ok_and(|list| list.split(',').any(|word| [name, "all"].contains(&word.trim())))
}

impl Tier {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self, log: &PathBuf) -> Result<Outcome> {
        if let Some(why) = self.obstacle() {
            return Ok(Outcome::Skipped(why));
        }
        if self == Self::Layers {
            return Ok(layers::run()
                .map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Passed));
        }
        for mut command in self.commands()? {
            let file = File::create(log).with_context(|| format!("create {}", log.display()))?;
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
            let status = command.status().with_context(|| format!("start {}", process::line(&command)))?;
            if !status.success() {
                let output = String::from_utf8_lossy(&fs::read(log)?).into_owned();
                return Ok(Outcome::Failed(format!(
                    "{output}{} ended with {status}",
                    process::line(&command)
                )));
            }
        }
        Ok(Outcome::Passed)
    }

    /// Why the tier cannot run here.
    fn obstacle(self) -> Option<String> {
        let name = self.name();
        match self {
            Self::Prog if !privileged() => {
                Some("it loads programs into the kernel: run as root or let sudo work".into())
            }
            Self::Wire if !privileged() => {
                Some("it creates network namespaces: run as root or let sudo work".into())
            }
            Self::Wire if !as_root_succeeds("unshare", &["--net", "true"]) => {
                Some("the kernel refuses network namespaces here (unshare --net)".into())
            }
            Self::Cluster if assets::find().is_none() => Some(format!(
                "there is no kube-apiserver with its etcd: name their folder by {}, or let `cargo xtask setup test` \
                 build them",
                assets::ASSETS
            )),
            Self::Prog | Self::Wire | Self::Proxy if !workspace().join("tests").join(&name).is_dir() => {
                Some(format!("there is no tests/{name}"))
            }
            _ => None,
        }
    }

    fn commands(self) -> Result<Vec<Command>> {
        let cargo = |args: &[&str]| {
            let mut command = process::cargo();
            command.args(args);
            command
        };
        // The tiers beyond `unit` drive the real binary; cargo builds it only when asked to.
        let agent = || {
            let mut command = process::build();
            command.args(["--bin", "penstock"]);
            command
        };
        let tier = |name: &str| cargo(&["test", "--package", "lb-tests", "--test", name]);
        Ok(match self {
            Self::Fmt => vec![cargo(&["fmt", "--all", "--check"])],
            Self::Clippy => {
                vec![cargo(&["clippy", "--all-targets", "--", "--deny", "warnings"]), clippy_kernel()]
            }
            Self::Layers => vec![],
            Self::Unit => {
                let mut commands = vec![cargo(&[
                    "test",
                    "--package",
                    "lb-common",
                    "--package",
                    "lb-userspace",
                    "--package",
                    "xtask",
                ])];
                commands.push(cargo(&["test", "--package", "lb-tests", "--lib"]));
                if workspace().join("tests/cases").is_dir() {
                    commands.push(tier("cases"));
                    commands.push(tier("fuzz"));
                    commands.push(tier("cost"));
                }
                commands
            }
            Self::Prog | Self::Wire => {
                let mut test = tier(&self.name());
                if !process::is_root() {
                    test.env(format!("CARGO_TARGET_{}_RUNNER", host_triple()?), "sudo --preserve-env --");
                }
                vec![agent(), test]
            }
            Self::Proxy | Self::Deploy => vec![agent(), tier(&self.name())],
            Self::Cluster => vec![agent(), beside_apiserver(&tier("cluster"))?],
        })
    }
}

/// The command, with one API server for all its tests. Those with a kernel part need root; where nobody is, they
/// are skipped.
fn beside_apiserver(test: &Command) -> Result<Command> {
    let mut command = process::cargo();
    command.args(["run", "--quiet", "--package", "lb-tests", "--bin", "with-apiserver", "--"]);
    if !process::is_root() && privileged() {
        // In there: the API server itself needs no privileges.
        command.arg("env").arg(format!("CARGO_TARGET_{}_RUNNER=sudo --preserve-env --", host_triple()?));
    }
    command.arg(test.get_program()).args(test.get_args());
    if let Some(assets) = assets::find() {
        command.env(assets::ASSETS, assets);
    }
    Ok(command)
}

/// Lints for the kernel program, compiled for this host: clippy seldom comes with the toolchain
/// that has the BPF target, and the lints are the same.
fn clippy_kernel() -> Command {
    let mut command = process::cargo();
    command
        .args(["clippy", "--package", "lb-ebpf", "--release", "--target-dir"])
        .arg(target_dir().join("ebpf-clippy"))
        .args(["--", "--deny", "warnings"])
        // There is nothing that could unwind in the kernel, nor a library that could.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    command
}

/// Root, or sudo that does not ask.
fn privileged() -> bool {
    process::is_root()
        || process::find("sudo")
            .is_some_and(|sudo| process::succeeds(Command::new(sudo).args(["-n", "true"])))
}

fn as_root_succeeds(program: &str, args: &[&str]) -> bool {
    process::as_root(program).is_ok_and(|mut command| process::succeeds(command.args(args)))
}

/// `x86_64-unknown-linux-gnu` as cargo's environment spells it.
fn host_triple() -> Result<String> {
    let version = process::output(process::cargo().arg("-vV"))?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("cargo -vV has no host")?;
    Ok(host.to_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_but_layers_runs_something() {
        for tier in Tier::value_variants().iter().filter(|tier| **tier != Tier::Layers) {
            assert!(!tier.commands().unwrap().is_empty(), "{tier:?}");
        }
    }
}
