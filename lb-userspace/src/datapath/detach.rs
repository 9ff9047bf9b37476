//! Takes out of the kernel what agents left there for this network namespace, wherever it is pinned: the BPF file
//! system is a setting of theirs, and whoever detaches need not know it. What is pinned where this process does not
//! see it (in another mount namespace) stays; that is told by the programs that interfaces have afterwards.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::network::Netlink;
use super::{Error, kernel, pins};

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detached {
    /// Directories that were there and are gone.
    pub removed: Vec<PathBuf>,
    /// BPF file systems that were searched.
    pub searched: BTreeSet<PathBuf>,
    /// Interfaces that our program is still attached to.
    pub left: Vec<String>,
}

impl fmt::Display for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { removed, searched, left } = self;
        for dir in removed {
            writeln!(f, "removed {}", dir.display())?;
        }
        if removed.is_empty() {
            let searched: Vec<_> = searched.iter().map(|path| path.display().to_string()).collect();
            let searched =
                if searched.is_empty() { "none is mounted".to_owned() } else { searched.join(", ") };
            writeln!(f, "nothing of this network namespace is pinned on a BPF file system ({searched})")?;
        }
        for interface in left {
            writeln!(
                f,
                "{interface} still has the program: it is pinned where this process does not see it; run detach in \
                 the mount namespace of the agent that did so"
            )?;
        }
        Ok(())
    }
}

/// The kernel lets go of an attachment by a task of its own, after the last name is gone.
const RELEASE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

/// Removes attachments, maps and local routes, pinned on any BPF file system that is mounted or on the one at `also`.
/// Refused while an agent runs. Needs a tokio runtime.
pub async fn detach(also: Option<&Path>) -> Result<Detached, Error> {
    let _lock = pins::lock()?;
    let mut searched = pins::file_systems()?;
    searched.extend(also.map(Path::to_owned));
    let mut removed = Vec::new();
    for bpffs in &searched {
        removed.extend(pins::remove_from(bpffs)?);
    }
    let mut netlink = Netlink::open()?;
    let interfaces = netlink.interface_names().await?;
    kernel::remove_filters(interfaces.iter().map(String::as_str));
    netlink.adopt_local_routes().await?;
    netlink.set_local_routes(&BTreeSet::new()).await;
    let left = left(&netlink).await?;
    Ok(Detached { removed, searched, left })
}

async fn left(netlink: &Netlink) -> Result<Vec<String>, Error> {
    let deadline = Instant::now() + RELEASE;
    loop {
        let ours = kernel::loaded();
        let attached = netlink.xdp_programs().await?.into_iter();
        let left: Vec<String> = attached.filter(|(_, id)| ours.contains(id)).map(|(name, _)| name).collect();
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(AGAIN).await;
    }
}
