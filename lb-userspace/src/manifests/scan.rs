//! Walks a directory and reads every manifest in it.
//!
//! Follows symbolic links, because a ConfigMap mount consists of them (`file.yaml` ->
//! `..data/file.yaml`, `..data` -> `..2026_01_01/`), but enters a directory once only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// All files together, standard input among them; bounds memory on a directory that is not one of manifests.
pub(super) const MAX_TOTAL_BYTES: u64 = 512 << 20;
/// A larger file is not read by itself when it changes: only the walk knows what all take together.
const MAX_ALONE_BYTES: u64 = 8 << 20;
const MAX_DEPTH: usize = 16;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What the walk found, by path relative to the root.
#[derive(Debug, Clone, Default)]
pub(super) struct Scan {
    /// Contents, or why there are none.
    pub files: BTreeMap<String, Content>,
    /// Sub-directories that could not be listed, relative, with the reason. What was below them
    /// is unknown, not gone.
    pub unlistable: BTreeMap<String, String>,
}

/// One file.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Read whole.
    Bytes(Vec<u8>),
    /// It is there but could not be read now.
    Unreadable(String),
    /// Somebody is writing it: what was last read stands.
    Busy,
}

impl Scan {
    /// A scan of one text.
    pub(super) fn of_one(name: &str, bytes: Vec<u8>) -> Self {
        Self { files: BTreeMap::from([(name.to_owned(), Content::Bytes(bytes))]), ..Self::default() }
    }

    /// A scan of one text, which may be so many bytes at most.
    pub(super) fn of_one_within(name: &str, bytes: Vec<u8>, most: u64) -> Self {
        let content = if bytes.len() as u64 > most { too_large() } else { Content::Bytes(bytes) };
        Self { files: BTreeMap::from([(name.to_owned(), content)]), ..Self::default() }
    }

    /// What was read, all of it.
    pub(super) fn bytes(&self) -> u64 {
        let read = self.files.values().map(|content| match content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Unreadable(_) | Content::Busy => 0,
        });
        read.sum()
    }

    /// Names everything from where the caller stands; `root` is what was scanned.
    pub(super) fn below(self, root: &Path) -> Self {
        let is_file = root.is_file();
        let name = |relative: String| match (is_file, relative.is_empty()) {
            (true, _) | (false, true) => root.to_string_lossy().into_owned(),
            (false, false) => root.join(relative).to_string_lossy().into_owned(),
        };
        Self {
            files: self.files.into_iter().map(|(path, content)| (name(path), content)).collect(),
            unlistable: self.unlistable.into_iter().map(|(path, reason)| (name(path), reason)).collect(),
        }
    }

    /// Takes in what another scan found.
    pub(super) fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.unlistable.extend(other.unlistable);
    }
}

/// Told about every directory before it is listed, and about every file that lies outside of them
/// before it is read, so that a change in between is seen as an event.
pub(super) trait Watch {
    /// The walk is about to list this directory.
    fn directory(&mut self, path: &Path);
    /// The walk is about to read this file through a symbolic link, or as the root itself.
    fn linked_file(&mut self, path: &Path);
    /// There is a symbolic link: what it leads to may change without a word about any file here.
    fn link(&mut self);
    /// Somebody has this file open for writing.
    fn is_busy(&self, path: &Path) -> bool;
}

/// For reading once.
pub(super) struct NoWatch;

impl Watch for NoWatch {
    fn directory(&mut self, _: &Path) {}
    fn linked_file(&mut self, _: &Path) {}
    fn link(&mut self) {}
    fn is_busy(&self, _: &Path) -> bool {
        false
    }
}

/// Reads all manifests below `root`, or `root` itself where it is a file.
pub(super) fn scan(root: &Path, watch: &mut dyn Watch) -> io::Result<Scan> {
    scan_within(root, watch, MAX_TOTAL_BYTES)
}

/// [`scan`], so many bytes at most.
pub(super) fn scan_within(root: &Path, watch: &mut dyn Watch, most: u64) -> io::Result<Scan> {
    let mut walk = Walk { watch, entered: BTreeSet::new(), left: most, scan: Scan::default() };
    let metadata = fs::metadata(root)?;
    if metadata.is_file() {
        // No directory of its own to watch it by.
        walk.watch.linked_file(root);
        let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        walk.file(root, name);
        return Ok(walk.scan);
    }
    walk.watch.directory(root);
    let entries = fs::read_dir(root)?;
    walk.entered.insert((metadata.dev(), metadata.ino()));
    walk.directory(entries, "", 0);
    Ok(walk.scan)
}

struct Walk<'a> {
    watch: &'a mut dyn Watch,
    entered: BTreeSet<(u64, u64)>,
    left: u64,
    scan: Scan,
}

impl Walk<'_> {
    fn directory(&mut self, entries: fs::ReadDir, relative: &str, depth: usize) {
        // Sorted, so that the order of a directory never decides anything.
        let mut paths = Vec::new();
        for entry in entries {
            match entry {
                Ok(entry) => {
                    if entry.file_type().is_ok_and(|kind| kind.is_symlink())
                        && !is_hidden_or_temporary(&entry.file_name().to_string_lossy())
                    {
                        self.watch.link();
                    }
                    paths.push(entry.path());
                }
                Err(error) => {
                    self.scan.unlistable.insert(relative.to_owned(), error.to_string());
                }
            }
        }
        paths.sort();
        for path in paths {
            self.entry(path, relative, depth);
        }
    }

    fn entry(&mut self, path: PathBuf, parent: &str, depth: usize) {
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return };
        if is_hidden_or_temporary(&name) {
            return;
        }
        let relative = if parent.is_empty() { name.clone() } else { format!("{parent}/{name}") };
        let is_manifest = has_manifest_extension(&path);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Gone between listing and looking, or a link into nowhere.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return,
            Err(error) => {
                if is_manifest {
                    self.scan.files.insert(relative, Content::Unreadable(error.to_string()));
                } else if path.is_dir() {
                    self.scan.unlistable.insert(relative, error.to_string());
                }
                return;
            }
        };
        if metadata.is_dir() {
            if !self.entered.insert((metadata.dev(), metadata.ino())) {
                return;
            }
            if depth >= MAX_DEPTH {
                self.scan.unlistable.insert(relative, format!("deeper than {MAX_DEPTH} directories"));
                return;
            }
            self.watch.directory(&path);
            match fs::read_dir(&path) {
                Ok(entries) => self.directory(entries, &relative, depth + 1),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.scan.unlistable.insert(relative, error.to_string());
                }
            }
        } else if is_manifest && metadata.is_file() {
            // A FIFO or device named `x.yaml` is neither read nor reported: reading it could block.
            self.file(&path, relative);
        }
    }

    fn file(&mut self, path: &Path, relative: String) {
        if path.is_symlink() {
            self.watch.linked_file(path);
        }
        if self.watch.is_busy(path) {
            self.scan.files.insert(relative, Content::Busy);
            return;
        }
        match read_limited(path, self.left) {
            Ok(Some(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                self.scan.files.insert(relative, Content::Bytes(bytes));
            }
            Ok(None) => {
                self.scan.files.insert(relative, too_large());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.scan.files.insert(relative, Content::Unreadable(error.to_string()));
            }
        }
    }
}

/// One file that may have changed by itself, `None` where it is gone; an error where the whole has to be
/// looked at: it is no plain file, or cannot be read.
pub(super) fn read_one(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.is_file() => return Err(io::ErrorKind::Other.into()),
        Ok(_) => {}
    }
    match read_limited(path, MAX_ALONE_BYTES) {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        Ok(None) => Err(io::ErrorKind::FileTooLarge.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a file of this path, if there is one, is nothing but that: no link, no directory.
pub(super) fn is_plain_or_gone(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether the walk reads files that are called so.
pub(super) fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    !is_hidden_or_temporary(&name) && has_manifest_extension(path)
}

/// `None`: larger than that.
fn read_limited(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = fs::File::open(path)?;
    if file.metadata()?.len() > most {
        return Ok(None);
    }
    // It may grow meanwhile.
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

fn too_large() -> Content {
    Content::Unreadable(format!(
        "with it all manifests together exceed {} MiB, the most that is read",
        MAX_TOTAL_BYTES >> 20
    ))
}

fn has_manifest_extension(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// `.x.yaml.swp`, `..data`, `#x.yaml#`, `x.yaml~`: what editors and mounts keep beside the files.
fn is_hidden_or_temporary(name: &str) -> bool {
    name.starts_with(['.', '#']) || name.ends_with('~')
}
