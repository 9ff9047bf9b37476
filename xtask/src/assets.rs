//! `etcd` and `kube-apiserver` for the tier `cluster`: found where envtest's users have them.

use std::path::{Path, PathBuf};

use crate::process;

/// Names the folder with both, by the custom of envtest.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
const PROGRAMS: [&str; 2] = ["etcd", "kube-apiserver"];

/// Where both programs are.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os(ASSETS).map(PathBuf::from);
    let customary = PathBuf::from("/usr/local/kubebuilder/bin");
    let on_path = process::find(PROGRAMS[1]).and_then(|program| program.parent().map(Path::to_owned));
    named.into_iter().chain([customary]).chain(on_path).find(|dir| has_both(dir))
}

fn has_both(dir: &Path) -> bool {
    PROGRAMS.iter().all(|program| dir.join(program).is_file())
}
