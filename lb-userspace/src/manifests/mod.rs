//! A directory of Kubernetes YAML and JSON, read into [`Objects`] and followed as it changes.
//!
//! What is wrong costs the document that holds it: the last good version of its object stays in
//! force and a [`Problem`] says file, document, field and reason. This room knows how objects are
//! written, not what they mean: whether one may enter is asked of the [`Admission`] that the
//! caller brings (the translation's).

mod bystanders;
mod document;
mod scan;
mod split;
mod store;
mod watch;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use crate::objects::{Admission, Bystander, Object};

pub use crate::objects::{Kept, Loaded};
pub use watch::{Watcher, watch};

/// Most bytes that are read, of all files together; who reads standard input for us needs no more than one beyond.
pub const MAX_BYTES: u64 = scan::MAX_TOTAL_BYTES;

/// Why nothing at all could be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path given does not exist or cannot be read.
    #[error("read manifests from {}: {source}", .path.display())]
    Root {
        /// As given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The kernel gave us no way to follow changes.
    #[error("inotify for {}: {source}", .path.display())]
    Inotify {
        /// As given.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

/// Reads a directory, or one file, once.
pub fn load(path: &Path, admission: Admission) -> Result<Loaded, Error> {
    let mut store = store::Store::new(admission);
    let scan = scan::scan(path, &mut scan::NoWatch)
        .map_err(|source| Error::Root { path: path.to_owned(), source })?;
    Ok(store.apply(scan))
}

/// Files as they were read, before anybody looked into them.
pub struct Files(scan::Scan);

/// Reads several directories and files once, as if they were one; `stdin` stands for a path `-`.
/// Origins then begin with the path as given.
pub fn read_all(paths: &[PathBuf], stdin: Option<Vec<u8>>) -> Result<Files, Error> {
    let mut whole = scan::Scan::default();
    let mut stdin = stdin;
    for path in paths {
        let left = MAX_BYTES.saturating_sub(whole.bytes());
        if path == Path::new("-") {
            whole.add(scan::Scan::of_one_within("-", stdin.take().unwrap_or_default(), left));
            continue;
        }
        let scan = scan::scan_within(path, &mut scan::NoWatch, left)
            .map_err(|source| Error::Root { path: path.to_owned(), source })?;
        whole.add(if paths.len() == 1 { scan } else { scan.below(path) });
    }
    Ok(Files(whole))
}

impl Files {
    /// One text as if it were a file of that name, as with [`load_text`].
    pub fn of_text(name: &str, text: &[u8]) -> Self {
        Self(scan::Scan::of_one(name, text.to_vec()))
    }

    /// Objects that nothing is made of.
    pub fn bystanders(&self) -> Vec<Bystander> {
        let files = self.0.files.iter();
        let read = files.filter_map(|(file, content)| match content {
            scan::Content::Bytes(bytes) => Some(bystanders::of_file(file, bytes)),
            scan::Content::Unreadable(_) | scan::Content::Busy => None,
        });
        read.flatten().collect()
    }

    /// All others.
    pub fn load(self, admission: Admission) -> Loaded {
        store::Store::new(admission).apply(self.0)
    }
}

/// The object that [`Object::to_value`] made this of; `None`: it is of no kind that is read here.
pub fn object_of(value: serde_json::Value) -> Option<Object> {
    let mut entries = Vec::new();
    document::read_value(String::new(), value, &mut entries);
    entries.into_iter().find_map(|entry| match entry.outcome {
        document::Outcome::Object(object) => Some(object),
        document::Outcome::Broken(_) | document::Outcome::Ignored => None,
    })
}

/// Reads one text as if it were a file of that name (`-` for standard input); the extension
/// `.json` makes it JSON, anything else YAML.
pub fn load_text(name: &str, text: &[u8], admission: Admission) -> Loaded {
    let mut store = store::Store::new(admission);
    store.apply(scan::Scan::of_one(name, text.to_vec()))
}
