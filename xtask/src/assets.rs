//! `etcd` and `kube-apiserver` for the tier `cluster`: found where envtest's users have them, else
//! built once from Debian's packages and kept outside `target`, since it takes minutes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// Names the folder with both, by the custom of envtest.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
const PROGRAMS: [&str; 2] = ["etcd", "kube-apiserver"];
/// Grows when what is built changes.
const BUILT: &str = ".cache/penstock-envtest/1";

/// Sees to it that there is such a folder if there can be one; without, a tier is skipped.
pub fn offer() {
    if find().is_none()
        && let Err(error) = build()
    {
        eprintln!("setup: no kube-apiserver can be had here: {error:#}");
    }
}

fn build() -> Result<()> {
    let dir = built().context("$HOME is not set")?;
    eprintln!("setup: building kube-apiserver and etcd in {} (a few minutes)", dir.display());
    let work = dir.with_extension("work");
    let made =
        process::run(Command::new(workspace().join("tests/cluster-assets/build")).arg(&work).arg(&dir));
    // Gigabytes of Go's, of which nothing is needed any more; its module folders are read-only.
    process::succeeds(Command::new("chmod").args(["-R", "u+w"]).arg(&work));
    let _ = std::fs::remove_dir_all(&work);
    made?;
    if !has_both(&dir) {
        bail!("{} were not built", PROGRAMS.join(" and "));
    }
    Ok(())
}

/// Where both programs are already.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os(ASSETS).map(PathBuf::from);
    let customary = PathBuf::from("/usr/local/kubebuilder/bin");
    let on_path = process::find(PROGRAMS[1]).and_then(|program| program.parent().map(Path::to_owned));
    named.into_iter().chain([customary]).chain(on_path).chain(built()).find(|dir| has_both(dir))
}

fn built() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("HOME")?).join(BUILT))
}

fn has_both(dir: &Path) -> bool {
    PROGRAMS.iter().all(|program| dir.join(program).is_file())
}
