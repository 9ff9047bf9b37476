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

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirEntry};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use lb_common::{ABI_READABLE, ABI_VERSION};
use rustix::fs::FlockOperation;

use super::Error;
use super::mmap;

/// `f_type` of a BPF file system.
const MAGIC: u64 = 0xcafe_4a11;

/// The directory of our network namespace, ours alone while this lives.
#[derive(Debug)]
pub struct Pins {
    bpffs: PathBuf,
    root: PathBuf,
    /// Held for as long as the agent runs; the kernel lets go of it however it ends.
    _lock: UnixListener,
}

impl Pins {
    /// Opens the directory on the BPF file system at `bpffs`, which is mounted there if it is not.
    pub fn open(bpffs: &Path) -> Result<Self, Error> {
        let lock = lock()?;
        let pins = Self { bpffs: bpffs.to_owned(), root: directory(bpffs)?, _lock: lock };
        pins.make()?;
        Ok(pins)
    }

    /// Makes it what it was when it was opened, but empty, as far as somebody removed it.
    pub fn make(&self) -> Result<(), Error> {
        mount(&self.bpffs)?;
        create(&self.root.join("links"))
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

    /// Sets of maps whose layout we read, the newest first.
    pub fn sets(&self) -> Vec<PathBuf> {
        (ABI_READABLE..=ABI_VERSION).rev().flat_map(|version| self.sets_of(version)).collect()
    }

    /// Whether a set is of our own layout.
    pub fn is_own(&self, set: &Path) -> bool {
        set.parent() == Some(&self.version(ABI_VERSION))
    }

    fn sets_of(&self, version: u32) -> Vec<PathBuf> {
        let dir = self.version(version);
        let mut numbers: Vec<u32> = names(&dir).iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.into_iter().map(|number| dir.join(number.to_string())).collect()
    }

    /// Versions of layouts that we do not read that are there.
    pub fn other_versions(&self) -> Vec<String> {
        let is_read =
            |name: &String| (ABI_READABLE..=ABI_VERSION).any(|version| *name == format!("v{version}"));
        self.versions().filter(|name| !is_read(name)).collect()
    }

    fn versions(&self) -> impl Iterator<Item = String> {
        names(&self.root).into_iter().filter(|name| name.starts_with('v'))
    }

    /// A new, empty set.
    pub fn new_set(&self) -> Result<PathBuf, Error> {
        let last =
            self.sets_of(ABI_VERSION).first().and_then(|dir| dir.file_name()?.to_str()?.parse::<u32>().ok());
        let dir = self.version(ABI_VERSION).join(last.unwrap_or(0).wrapping_add(1).to_string());
        create(&dir)?;
        Ok(dir)
    }

    /// Removes every other set, of whatever layout.
    pub fn keep_only(&self, set: &Path) {
        let others = self.sets_of(ABI_VERSION).into_iter().filter(|dir| dir != set);
        let own = format!("v{ABI_VERSION}");
        let versions = self.versions().filter(|name| *name != own).map(|name| self.root.join(name));
        others.chain(versions).for_each(|dir| remove(&dir));
    }

    /// Removes everything of this namespace; attachments that nobody holds end.
    pub fn remove(&self) {
        // Attachments first: no packet may meet a program that has lost its maps.
        remove(&self.root.join("links"));
        remove(&self.root);
    }

    fn version(&self, version: u32) -> PathBuf {
        self.root.join(format!("v{version}"))
    }
}

/// Removes what is pinned of the network namespace of this thread on one BPF file system, whoever uses it. Returns
/// where it was, if it was there.
pub fn remove_from(bpffs: &Path) -> Result<Option<PathBuf>, Error> {
    let root = directory(bpffs)?;
    // As in `Pins::remove`.
    for dir in [&root.join("links"), &root] {
        match fs::remove_dir_all(dir) {
            Err(source) if source.kind() == io::ErrorKind::NotFound && dir == &root => return Ok(None),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", dir, source));
            }
            _ => {}
        }
    }
    Ok(Some(root))
}

/// Where BPF file systems are mounted, as far as this process sees.
pub fn file_systems() -> Result<BTreeSet<PathBuf>, Error> {
    let mounts = Path::new("/proc/self/mounts");
    let table = fs::read(mounts).map_err(|source| failed("read", mounts, source))?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(bpf_mount).collect())
}

/// The place of a line's mount, if that is a BPF file system.
fn bpf_mount(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let place = fields.nth(1)?;
    (fields.next()? == b"bpf").then(|| PathBuf::from(OsString::from_vec(unescaped(place))))
}

/// The table writes a blank, a tab, a line feed and a backslash as a backslash and three octal digits.
fn unescaped(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let [first, rest @ ..] = text {
        let (byte, behind) = match (first, rest) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), behind)
            }
            _ => (*first, rest),
        };
        plain.push(byte);
        text = behind;
    }
    plain
}

/// Where agents of the network namespace of this thread pin. The inode number of a namespace is used
/// again; its cookie never is.
pub fn directory(bpffs: &Path) -> Result<PathBuf, Error> {
    let cookie = mmap::namespace_cookie().map_err(|source| Error::System {
        call: "getsockopt SO_NETNS_COOKIE of",
        object: "a socket".to_owned(),
        source,
        // Linux 5.14 has it.
        hint: "the kernel part needs Linux 6.1 or newer; --datapath off serves HTTP and TLS on any",
    })?;
    Ok(bpffs.join("penstock").join(cookie.to_string()))
}

/// One agent for each network namespace: abstract socket names are its own.
pub(super) fn lock() -> Result<UnixListener, Error> {
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
    let is_empty = fs::read_dir(bpffs).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        return Err(Error::System {
            call: "mount a BPF file system on",
            object: bpffs.display().to_string(),
            source: io::ErrorKind::DirectoryNotEmpty.into(),
            hint: "it would hide what is there; name an empty directory with --bpffs",
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpf_file_systems_are_found_in_the_table_of_mounts() {
        let table = [
            ("proc /proc proc rw 0 0", None),
            ("none /sys/fs/bpf bpf rw,mode=700 0 0", Some("/sys/fs/bpf")),
            ("bpf /run/a\\040b\\134c bpf rw 0 0", Some("/run/a b\\c")),
            ("bpf /tmp/bpf tmpfs rw 0 0", None),
            ("", None),
        ];
        for (line, place) in table {
            assert_eq!(bpf_mount(line.as_bytes()), place.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn a_directory_that_is_no_bpf_file_system_stays_what_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let (full, missing) = (dir.path().join("manifests"), dir.path().join("missing"));
        fs::create_dir(&full).expect("created");
        fs::write(full.join("a.yaml"), "").expect("written");

        let removed = remove_from(&missing).expect("nothing to remove");
        let refused = mount(&full).expect_err("not to be hidden").to_string();

        assert_eq!(removed, None);
        assert!(refused.contains("it would hide what is there"), "{refused}");
        assert!(full.join("a.yaml").exists() && !missing.exists());
    }
}
