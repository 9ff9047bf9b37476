//! Finds a compiler for the kernel program: the BPF target has no prebuilt `core`, so it takes a
//! rustc with the source of its standard library beside it. rustup's `rust-src` component and
//! Debian's `rust-src` packages both put it below the sysroot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Oldest rustc that builds the workspace; `rust-version` in Cargo.toml says the same.
pub const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// A rustc, the cargo beside it and the LLVM inside it.
#[derive(Debug, Clone)]
pub struct Toolchain {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    pub sysroot: PathBuf,
    /// What it builds for, and runs on.
    pub host: String,
    /// Major version of rustc's LLVM: bpf-linker must be built with this one or a newer one.
    pub llvm: u32,
    /// What to call it in messages.
    pub name: String,
}

impl Toolchain {
    /// A cargo that uses this rustc, with unstable options allowed (`-Z build-std`).
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            // Left over from the cargo and rustup that started us; they would choose another rustc.
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS")
            .current_dir(crate::workspace());
        command
    }
}

/// The rustc that the cargo which started us uses.
pub fn in_use() -> Result<Toolchain> {
    let cargo = driver().context("no cargo here")?;
    let beside = cargo.parent().map(|dir| dir.join("rustc")).filter(|rustc| rustc.is_file());
    let rustc = std::env::var_os("RUSTC").map(PathBuf::from).or(beside);
    let rustc = rustc.or_else(|| process::find("rustc")).context("no rustc here")?;
    let (major, minor) = OLDEST_RUSTC;
    inspect(rustc, cargo, "in use".to_owned())?
        .with_context(|| format!("rustc is older than {major}.{minor}"))
}

/// The first usable toolchain: rustup's (nightly first), then the system's.
pub fn find() -> Option<Toolchain> {
    rustup().into_iter().chain(system()).find(Toolchain::has_source)
}

/// Every rustup toolchain that is new enough, nightly first.
fn rustup() -> Vec<Toolchain> {
    let Some(rustup) = process::find("rustup") else { return Vec::new() };
    let list =
        process::output(Command::new(&rustup).args(["toolchain", "list", "--quiet"])).unwrap_or_default();
    let mut names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    names.sort_by_key(|name| !name.starts_with("nightly"));
    let which = |tool: &str, name: &str| {
        process::output(Command::new(&rustup).args(["which", tool, "--toolchain", name])).map(PathBuf::from)
    };
    names
        .into_iter()
        .filter_map(|name| {
            inspect(which("rustc", name).ok()?, which("cargo", name).ok()?, format!("rustup {name}")).ok()?
        })
        .collect()
}

/// The distribution's rustc, which a rustup proxy earlier in `PATH` may hide. Its cargo may be
/// missing where rustup's cargo is in use; that one drives any rustc, and `CARGO` says where it is to whom it started.
fn system() -> Option<Toolchain> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let own = Path::new("/usr/bin/cargo");
    let cargo = if own.is_file() { own.to_owned() } else { driver()? };
    inspect(rustc, cargo, "system".to_owned()).ok()?
}

/// The cargo that started us, or that would.
fn driver() -> Option<PathBuf> {
    std::env::var_os("CARGO").map(PathBuf::from).or_else(|| process::find("cargo"))
}

/// What a rustc says of itself; `None` if it is too old.
fn inspect(rustc: PathBuf, cargo: PathBuf, origin: String) -> Result<Option<Toolchain>> {
    let version = process::output(Command::new(&rustc).arg("-vV").env_remove("RUSTUP_TOOLCHAIN"))?;
    let field = |name: &str| {
        version
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("{} -vV has no line `{name}`", rustc.display()))
    };
    let release = field("release: ")?;
    if numbers(release).is_none_or(|number| number < OLDEST_RUSTC) {
        return Ok(None);
    }
    let host = field("host: ")?.to_owned();
    let llvm = field("LLVM version: ")?.split('.').next().and_then(|major| major.parse().ok());
    let sysroot =
        process::output(Command::new(&rustc).args(["--print", "sysroot"]).env_remove("RUSTUP_TOOLCHAIN"))?;
    Ok(Some(Toolchain {
        name: format!("{origin} (rustc {release})"),
        llvm: llvm.context("LLVM version is not a number")?,
        sysroot: sysroot.into(),
        host,
        rustc,
        cargo,
    }))
}

impl Toolchain {
    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    }
}

/// Major and minor of a version such as `1.96.0+dfsg1` or `1.97.0-nightly`.
pub fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_rustc_is_the_one_that_the_manifest_names() {
        let manifest = std::fs::read_to_string(crate::workspace().join("Cargo.toml")).unwrap();

        let (major, minor) = OLDEST_RUSTC;

        assert!(manifest.contains(&format!("rust-version = \"{major}.{minor}\"")));
    }

    #[test]
    fn versions_of_every_distribution_are_read() {
        for (version, expected) in [
            ("1.96.0", Some((1, 96))),
            ("1.97.0-nightly", Some((1, 97))),
            ("1.96.0+dfsg1-1~deb12u2", Some((1, 96))),
            ("", None),
            ("nightly", None),
        ] {
            assert_eq!(numbers(version), expected, "{version}");
        }
    }
}
