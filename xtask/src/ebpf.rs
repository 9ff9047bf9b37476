//! Builds the kernel program into one object with BTF, the same bytes wherever it is built.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::toolchain::{self, Toolchain};
use crate::{process, target_dir, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// Builds `target/ebpf/penstock.bpf.o` and returns its path. The file is only touched when its
/// bytes change, so that an unchanged kernel program does not rebuild the agent that embeds it.
pub fn build() -> Result<PathBuf> {
    let toolchain = toolchain::find().context(
        "no rustc with the source of its standard library here; `cargo xtask setup build` installs one",
    )?;
    let linker = process::find("bpf-linker")
        .context("bpf-linker is not installed; `cargo xtask setup build` installs it")?;
    let scratch = target_dir().join("ebpf-build");
    if !scratch.is_dir() {
        eprintln!("xtask: building the kernel program for the first time, with {}", toolchain.name);
    }

    let mut cargo = toolchain.cargo();
    for setting in profile_settings(std::env::vars_os().map(|(name, _)| name)) {
        cargo.env_remove(setting);
    }
    process::run(
        cargo
            .args(["build", "--quiet", "--package", "lb-ebpf", "--bin", "penstock-ebpf", "--release"])
            .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
            .arg(&scratch)
            // BTF is made from the debug information of the types that the maps hold; the rest, the
            // library above all, builds faster without.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .args(["lb-ebpf", "lb-common", "aya-ebpf"].map(full_debug).concat())
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain, &linker)),
    )
    .with_context(|| format!("build the kernel program with {}", toolchain.name))?;

    let built = scratch.join(TARGET).join("release/penstock-ebpf");
    let bytes = std::fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not an ELF object", built.display());
    }
    // Always in the workspace's own target folder: the agent's build script looks for it there.
    let object = workspace().join("target/ebpf/penstock.bpf.o");
    if std::fs::read(&object).is_ok_and(|old| old == bytes) {
        return Ok(object);
    }
    std::fs::create_dir_all(workspace().join("target/ebpf"))?;
    std::fs::write(&object, bytes).with_context(|| format!("write {}", object.display()))?;
    Ok(object)
}

/// What would have the caller's release build differ from the manifest's: made for the agent, and without optimisation
/// the kernel takes no program.
fn profile_settings(names: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    names.filter(|name| name.to_string_lossy().starts_with("CARGO_PROFILE_RELEASE_"))
}

/// Full debug information for one package.
fn full_debug(package: &str) -> [String; 2] {
    ["--config".to_owned(), format!("profile.release.package.{package}.debug=2")]
}

/// Flags, separated as cargo wants them. Paths of this machine are replaced by fixed words: they
/// would otherwise reach the debug information and from there the object.
fn rustflags(toolchain: &Toolchain, linker: &std::path::Path) -> String {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"));
    let source = toolchain.sysroot.join("lib/rustlib/src/rust");
    let real_source = source.canonicalize().unwrap_or_else(|_| source.clone());
    let remap = |from: PathBuf, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    [
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        // Later ones win where two match.
        remap(cargo_home, "cargo"),
        remap(source, "rust"),
        remap(real_source, "rust"),
        remap(workspace(), "penstock"),
    ]
    .join("\x1f")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_release_profile_are_not_for_the_kernel_program() {
        let names = ["CARGO_PROFILE_RELEASE_OPT_LEVEL", "CARGO_PROFILE_DEV_DEBUG", "CARGO_HOME", "PATH"];

        let settings: Vec<_> = profile_settings(names.into_iter().map(OsString::from)).collect();

        assert_eq!(settings, ["CARGO_PROFILE_RELEASE_OPT_LEVEL"]);
    }
}
