//! Where the kernel part outlives the agent: names on the BPF file system, a directory for each
//! network namespace. Only names and files; what stands behind them is the kernel room's.
//!
//! ```text
//! <bpffs>/penstock/<namespace>/links/native-3    an attachment; the next agent swaps its program
//!                                    lookup
//!                              v6/7/TABLES ...   maps, by the version of their layout
//! ```
//!
//! Each start pins a set of maps under a new number, the inherited ones under both, and removes the
//! older sets when every attachment has a program that uses the new one. Whenever the agent is
//! killed, a complete set is there.

use std::fs::{self, DirEntry};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use lb_common::ABI_VERSION;
use rustix::fs::FlockOperation;

use super::Error;
use super::mmap;

/// `f_type` of a BPF file system.
const MAGIC: u64 = 0xcafe_4a11;

/// The directory of our network namespace, ours alone while this lives.
#[derive(Debug)]
pub struct Pins {
    root: PathBuf,
    /// Held for as long as the agent runs; the kernel lets go of it however it ends.
    _lock: UnixListener,
}

impl Pins {
    /// Opens the directory on the BPF file system at `bpffs`, which is mounted there if it is not.
    pub fn open(bpffs: &Path) -> Result<Self, Error> {
        let lock = lock()?;
        mount(bpffs)?;
        let root = directory(bpffs)?;
        create(&root.join("links"))?;
        Ok(Self { root, _lock: lock })
    }

    /// For people.
    pub fn directory(&self) -> &Path {
        &self.root
    }

    /// Path of an attachment. Names on this file system have no dots.
    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("links").join(name)
    }

    /// Names of the attachments that are pinned.
    pub fn links(&self) -> Vec<String> {
        names(&self.root.join("links"))
    }

    /// Puts one attachment's name in place of another's; what that one stood for goes.
    pub fn rename_link(&self, from: &str, to: &str) -> Result<(), Error> {
        let path = self.link(from);
        fs::rename(&path, self.link(to)).map_err(|source| failed("rename", &path, source))
    }

    /// Removes the name of an attachment, which ends unless somebody holds it.
    pub fn remove_link(&self, name: &str) {
        // One that is not there is as good as removed.
        let _ = fs::remove_file(self.link(name));
    }

    /// Sets of maps of our layout, the newest first.
    pub fn sets(&self) -> Vec<PathBuf> {
        let dir = self.version();
        let mut numbers: Vec<u32> = names(&dir).iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.into_iter().map(|number| dir.join(number.to_string())).collect()
    }

    /// Versions of other layouts that are there.
    pub fn other_versions(&self) -> Vec<String> {
        let own = format!("v{ABI_VERSION}");
        names(&self.root).into_iter().filter(|name| name.starts_with('v') && *name != own).collect()
    }

    /// A new, empty set.
    pub fn new_set(&self) -> Result<PathBuf, Error> {
        let last = self.sets().first().and_then(|dir| dir.file_name()?.to_str()?.parse::<u32>().ok());
        let dir = self.version().join(last.unwrap_or(0).wrapping_add(1).to_string());
        create(&dir)?;
        Ok(dir)
    }

    /// Removes every other set, of whatever layout.
    pub fn keep_only(&self, set: &Path) {
        let others = self.sets().into_iter().filter(|dir| dir != set);
        let versions = self.other_versions().into_iter().map(|name| self.root.join(name));
        others.chain(versions).for_each(|dir| remove(&dir));
    }

    /// Removes everything of this namespace; attachments that nobody holds end.
    pub fn remove(&self) {
        // Attachments first: no packet may meet a program that has lost its maps.
        remove(&self.root.join("links"));
        remove(&self.root);
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{ABI_VERSION}"))
    }
}

/// Removes what is pinned of the network namespace of this thread, whoever uses it: for tests.
pub fn remove_all(bpffs: &Path) -> Result<(), Error> {
    let root = directory(bpffs)?;
    remove(&root.join("links"));
    remove(&root);
    Ok(())
}

/// Where agents of the network namespace of this thread pin. The inode number of a namespace is used
/// again; its cookie never is.
pub fn directory(bpffs: &Path) -> Result<PathBuf, Error> {
    let cookie = mmap::namespace_cookie().map_err(|source| Error::System {
        call: "getsockopt SO_NETNS_COOKIE of",
        object: "a socket".to_owned(),
        source,
        hint: "needs Linux 5.14 or newer; --pin off does without",
    })?;
    Ok(bpffs.join("penstock").join(cookie.to_string()))
}

/// One agent for each network namespace: abstract socket names are its own.
fn lock() -> Result<UnixListener, Error> {
    let bound =
        SocketAddr::from_abstract_name("penstock datapath").and_then(|addr| UnixListener::bind_addr(&addr));
    bound.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::Running,
        _ => Error::System { call: "bind", object: "@penstock datapath".to_owned(), source, hint: "" },
    })
}

fn mount(bpffs: &Path) -> Result<(), Error> {
    if is_mounted(bpffs) {
        return Ok(());
    }
    create(bpffs)?;
    // Two agents that start at once must not mount one file system over the other's.
    let below = fs::File::open(bpffs).map_err(|source| failed("open", bpffs, source))?;
    rustix::fs::flock(&below, FlockOperation::LockExclusive)
        .map_err(|errno| failed("lock", bpffs, errno.into()))?;
    if is_mounted(bpffs) {
        return Ok(());
    }
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("bpf", bpffs, "bpf", flags, c"mode=0700").map_err(|errno| Error::System {
        call: "mount a BPF file system on",
        object: bpffs.display().to_string(),
        source: errno.into(),
        hint: "mount -t bpf bpf PATH beforehand",
    })
}

fn is_mounted(bpffs: &Path) -> bool {
    rustix::fs::statfs(bpffs).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == MAGIC)
}

fn create(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|source| failed("create", dir, source))
}

fn failed(call: &'static str, path: &Path, source: io::Error) -> Error {
    Error::System { call, object: path.display().to_string(), source, hint: "" }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry: DirEntry| entry.file_name().into_string().ok()).collect()
}

fn remove(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %dir.display(), %error, "cannot remove");
    }
}
