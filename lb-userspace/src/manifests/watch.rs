//! Follows a directory by inotify and publishes what is in force after every change.
//!
//! Events decide *when* to look and never *what* there is: the kernel may merge, reorder or drop them. Where
//! all of them are about plain files in directories that are known, those files are read again; anything
//! else leads to a whole rescan, in which unchanged bytes are not parsed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventOwned, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::scan::{self, Scan, Watch};
use super::store::Store;
use super::{Error, Loaded};
use crate::model::{ObjectId, Problem, Severity};
use crate::objects::{Admission, Former};

/// Quiet time after the last event before the directory is read: a `kubectl`-like writer, an
/// editor's rename dance or a symlink swap take a few milliseconds.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The same where all that happened is that files were replaced, and each is there and whole: enough for
/// the next of several.
const DEBOUNCE_WHOLE: Duration = Duration::from_millis(4);
/// Under a steady stream of events the directory is read at least this often.
const DEBOUNCE_CAP: Duration = Duration::from_millis(500);
/// A file that stays open for writing longer than this is read as it is.
const BUSY_CAP: Duration = Duration::from_secs(2);
/// How often to look where inotify cannot tell (out of watches, root missing).
const POLL: Duration = Duration::from_secs(5);

/// The task behind [`watch()`]; run it to follow changes.
pub struct Watcher {
    root: PathBuf,
    store: Store,
    events: EventStream<[u8; 4096]>,
    watched: Watched,
    stream_broken: bool,
    sender: watch::Sender<Arc<Loaded>>,
}

/// Reads a directory and prepares to follow it; must be called within a tokio runtime.
///
/// The receiver starts with what is there now. Changes arrive while [`Watcher::run`] runs; it ends
/// when the last receiver is dropped.
pub fn watch(root: &Path, admission: Admission) -> Result<(watch::Receiver<Arc<Loaded>>, Watcher), Error> {
    let no_inotify = |source| Error::Inotify { path: root.to_owned(), source };
    let inotify = Inotify::init().map_err(no_inotify)?;
    let mut watched = Watched::new(inotify.watches(), root);
    let events = inotify.into_event_stream([0; 4096]).map_err(no_inotify)?;
    let mut store = Store::new(admission);
    let scan = watched.scan(root).map_err(|source| Error::Root { path: root.to_owned(), source })?;
    let mut loaded = store.apply(scan);
    loaded.problems.extend(watched.problem());
    let (sender, receiver) = watch::channel(Arc::new(loaded));
    Ok((receiver, Watcher { root: root.to_owned(), store, events, watched, stream_broken: false, sender }))
}

impl Watcher {
    /// Files and directories (with a `/` behind them) of which something cannot be read.
    pub fn troubled(&self) -> Vec<String> {
        self.store.troubled()
    }

    /// Has these stay in force where what is written now cannot be read. To be called before [`Watcher::run`].
    pub fn adopt(&mut self, former: Vec<Former>) {
        self.store.adopt(former);
        // Gone meanwhile: then `run` will say so.
        let Ok(scan) = self.watched.scan(&self.root) else { return };
        let mut loaded = self.store.apply(scan);
        loaded.problems.extend(self.watched.problem());
        self.sender.send_replace(Arc::new(loaded));
    }

    /// Publishes after every change until nobody listens any more.
    pub async fn run(mut self) {
        loop {
            let closed = self.sender.clone();
            tokio::select! {
                () = closed.closed() => return,
                () = self.wait_for_change() => {}
            }
            let root = self.root.clone();
            let (mut store, mut watched) = (self.store, self.watched);
            // Reading thousands of files must not hold up the runtime it shares.
            let read = tokio::task::spawn_blocking(move || {
                let changed = watched.changed(&root);
                let loaded = match changed.and_then(|changed| store.apply_changed(&changed)) {
                    Some(loaded) => Ok(loaded),
                    None => watched.scan(&root).map(|scan| store.apply(scan)),
                };
                let loaded = loaded.map(|mut loaded| {
                    loaded.problems.extend(watched.problem());
                    loaded
                });
                (store, watched, loaded)
            });
            let Ok((store, watched, loaded)) = read.await else { return };
            (self.store, self.watched) = (store, watched);
            match loaded {
                Ok(loaded) => publish(&self.sender, loaded),
                Err(error) => publish(&self.sender, self.root_gone(&error)),
            }
        }
    }

    /// Returns after an event and the quiet that follows it, or when it is time to look anyway.
    async fn wait_for_change(&mut self) {
        if self.stream_broken {
            return tokio::time::sleep(POLL).await;
        }
        let look_at = self.watched.next_look().map(|after| Instant::now() + after);
        while !self.watched.pending {
            let event = match look_at {
                Some(at) => match tokio::time::timeout_at(at, self.events.next()).await {
                    Ok(event) => event,
                    Err(_) => return,
                },
                None => self.events.next().await,
            };
            self.note(event);
        }
        let cap = Instant::now() + DEBOUNCE_CAP;
        while Instant::now() < cap && !self.stream_broken {
            let pause = if self.watched.are_whole() { DEBOUNCE_WHOLE } else { DEBOUNCE };
            let quiet = (Instant::now() + pause).min(cap);
            match tokio::time::timeout_at(quiet, self.events.next()).await {
                Ok(event) => self.note(event),
                Err(_) => return,
            }
        }
    }

    fn note(&mut self, event: Option<io::Result<EventOwned>>) {
        match event {
            Some(Ok(event)) => self.watched.note(&event),
            Some(Err(error)) => {
                warn!(%error, "inotify failed; looking at intervals from now on");
                self.stream_broken = true;
                self.watched.pending = true;
            }
            None => {
                self.stream_broken = true;
                self.watched.pending = true;
            }
        }
    }

    /// The root cannot be read: everything stays in force, and the reason is told.
    fn root_gone(&self, error: &io::Error) -> Loaded {
        let mut loaded = Loaded::clone(&self.sender.borrow());
        loaded.problems.retain(|problem| problem.reason != "unreadable-root");
        loaded.problems.push(Problem {
            object: ObjectId { origin: self.root.display().to_string(), ..ObjectId::default() },
            severity: Severity::Error,
            reason: "unreadable-root",
            field: String::new(),
            message: format!("{error}; what was last read from it stays in force"),
            fix: "restore the directory".to_owned(),
        });
        loaded
    }
}

fn publish(sender: &watch::Sender<Arc<Loaded>>, loaded: Loaded) {
    sender.send_if_modified(|current| {
        if **current == loaded {
            debug!("manifests read again, nothing changed");
            return false;
        }
        info!(problems = loaded.problems.len(), "manifests changed");
        *current = Arc::new(loaded);
        true
    });
}

/// What the kernel tells us about.
struct Watched {
    watches: Watches,
    /// Directories and linked files by path, as of the newest scan.
    paths: BTreeMap<PathBuf, WatchDescriptor>,
    /// Paths of the scan under way.
    seen: BTreeMap<PathBuf, WatchDescriptor>,
    /// The directory that holds the root, to see the root itself replaced.
    parent: Option<(WatchDescriptor, OsString)>,
    /// Files that somebody writes, since when.
    busy: BTreeMap<PathBuf, Instant>,
    /// Something happened that a scan has not seen.
    pending: bool,
    /// The files that it happened to; `None`: more than that.
    files: Option<BTreeSet<PathBuf>>,
    root_missing: bool,
    /// The newest scan met a symbolic link.
    linked: bool,
    degraded: Option<String>,
}

impl Watched {
    fn new(mut watches: Watches, root: &Path) -> Self {
        // Only a plain last component can be told apart among the parent's events.
        let parent = root.file_name().and_then(|name| {
            let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
            let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::ONLYDIR;
            let descriptor = watches.add(parent.unwrap_or(Path::new(".")), mask).ok()?;
            Some((descriptor, name.to_owned()))
        });
        Self {
            watches,
            paths: BTreeMap::new(),
            seen: BTreeMap::new(),
            parent,
            busy: BTreeMap::new(),
            pending: false,
            files: None,
            root_missing: false,
            linked: false,
            degraded: None,
        }
    }

    /// The files that have changed, by their names below the root, if nothing else has.
    fn changed(&mut self, root: &Path) -> Option<BTreeMap<String, Option<Vec<u8>>>> {
        let files = self.files.replace(BTreeSet::new())?;
        if files.is_empty() || !self.busy.is_empty() || self.root_missing || self.degraded.is_some() {
            return None;
        }
        self.pending = false;
        let mut changed = BTreeMap::new();
        for path in files {
            let name = path.strip_prefix(root).ok()?.to_str()?.to_owned();
            changed.insert(name, scan::read_one(&path).ok()?);
        }
        Some(changed)
    }

    fn scan(&mut self, root: &Path) -> io::Result<Scan> {
        self.pending = false;
        self.files = Some(BTreeSet::new());
        self.degraded = None;
        self.linked = false;
        let now = Instant::now();
        self.busy.retain(|_, since| now.duration_since(*since) < BUSY_CAP);
        self.seen.clear();
        let scanned = scan::scan(root, self);
        self.root_missing = scanned.is_err();
        let seen = std::mem::take(&mut self.seen);
        for (path, descriptor) in std::mem::replace(&mut self.paths, seen) {
            let reused = self.paths.values().any(|known| *known == descriptor)
                || self.parent.as_ref().is_some_and(|(known, _)| *known == descriptor);
            if !self.paths.contains_key(&path) && !reused {
                // Fails where the kernel dropped it with its directory: nothing to do then.
                let _ = self.watches.remove(descriptor);
            }
        }
        scanned
    }

    fn note(&mut self, event: &EventOwned) {
        if self
            .parent
            .as_ref()
            .is_some_and(|(parent, name)| *parent == event.wd && event.name.as_ref() != Some(name))
            && !self.paths.values().any(|known| *known == event.wd)
        {
            return;
        }
        if event.mask.contains(EventMask::IGNORED) {
            return;
        }
        let path = self.path_of(event);
        let is_file = event.name.is_some() && !event.mask.contains(EventMask::ISDIR);
        if let Some(path) = path.as_ref().filter(|_| is_file)
            && !self.linked
            && !scan::is_manifest(path)
            && scan::is_plain_or_gone(path)
        {
            // What an editor has beside a manifest while it replaces it; nothing leads there.
            return;
        }
        self.pending = true;
        let Some(path) = path else {
            self.files = None;
            return;
        };
        let is_file = is_file && scan::is_manifest(&path);
        match &mut self.files {
            Some(files) if is_file => drop(files.insert(path.clone())),
            _ => self.files = None,
        }
        if event.mask.contains(EventMask::MODIFY) {
            self.busy.entry(path).or_insert_with(Instant::now);
        } else {
            self.busy.remove(&path);
        }
    }

    fn path_of(&self, event: &EventOwned) -> Option<PathBuf> {
        let (path, _) = self.paths.iter().find(|(_, descriptor)| **descriptor == event.wd)?;
        Some(match &event.name {
            Some(name) => path.join(name),
            None => path.clone(),
        })
    }

    /// All that happened is that files were replaced, and nobody writes any.
    fn are_whole(&self) -> bool {
        // One that has just been made is empty.
        let there = |path: &PathBuf| path.symlink_metadata().is_ok_and(|file| file.len() > 0);
        self.busy.is_empty() && self.files.as_ref().is_some_and(|files| files.iter().all(there))
    }

    /// When to look without an event; `None`: never.
    fn next_look(&self) -> Option<Duration> {
        if !self.busy.is_empty() {
            return Some(BUSY_CAP);
        }
        (self.root_missing || self.degraded.is_some()).then_some(POLL)
    }

    fn problem(&self) -> Option<Problem> {
        let reason = self.degraded.as_ref()?;
        Some(Problem {
            object: ObjectId { origin: "inotify".to_owned(), ..ObjectId::default() },
            severity: Severity::Warning,
            reason: "watch-degraded",
            field: String::new(),
            message: format!("changes are found by looking every {} s: {reason}", POLL.as_secs()),
            fix: "raise fs.inotify.max_user_watches".to_owned(),
        })
    }
}

impl Watch for Watched {
    fn directory(&mut self, path: &Path) {
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::MASK_ADD;
        match self.watches.add(path, mask) {
            Ok(descriptor) => {
                self.seen.insert(path.to_owned(), descriptor);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.degraded = Some(format!("watch {}: {error}", path.display())),
        }
    }

    fn linked_file(&mut self, path: &Path) {
        let mask = WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        match self.watches.add(path, mask) {
            Ok(descriptor) => {
                self.seen.insert(path.to_owned(), descriptor);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.degraded = Some(format!("watch {}: {error}", path.display())),
        }
    }

    fn link(&mut self) {
        self.linked = true;
    }

    fn is_busy(&self, path: &Path) -> bool {
        self.busy.contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::objects::Admission;

    const NAMESPACE: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: a}}";

    /// What is read after this was done beside a hundred files; `None`: all of them.
    async fn read_after(change: impl FnOnce(&Path)) -> Option<Vec<String>> {
        let dir = tempfile::tempdir().expect("a directory");
        for number in 0..100 {
            fs::write(dir.path().join(format!("{number}.yaml")), NAMESPACE).expect("a file");
        }
        let admission = Admission {
            alone: |_, _, _| Vec::new(),
            among: |_, _| Box::new(|_, _| Vec::new()),
            config_map: None,
            address_pools: None,
            renamed: None,
        };
        let (_loaded, mut watcher) = watch(dir.path(), admission).expect("watched");
        change(dir.path());
        watcher.wait_for_change().await;
        let changed = watcher.watched.changed(dir.path());
        changed.map(|changed| changed.into_keys().collect())
    }

    #[tokio::test]
    async fn a_file_that_is_replaced_is_the_only_one_that_is_read() {
        let renamed = read_after(|dir| {
            fs::write(dir.join(".7.yaml.new"), NAMESPACE).expect("a file");
            fs::rename(dir.join(".7.yaml.new"), dir.join("7.yaml")).expect("renamed");
        });
        let kept_beside = read_after(|dir| {
            fs::rename(dir.join("7.yaml"), dir.join("7.yaml~")).expect("renamed");
            fs::write(dir.join("7.yaml"), NAMESPACE).expect("a file");
            fs::remove_file(dir.join("7.yaml~")).expect("removed");
        });

        assert_eq!(renamed.await, Some(vec!["7.yaml".to_owned()]));
        assert_eq!(kept_beside.await, Some(vec!["7.yaml".to_owned()]));
    }

    #[tokio::test]
    async fn a_link_may_lead_to_what_is_hidden_so_everything_is_read() {
        let linked = read_after(|dir| {
            fs::write(dir.join(".hidden"), NAMESPACE).expect("a file");
            std::os::unix::fs::symlink(".hidden", dir.join("linked.yaml")).expect("a link");
        });

        assert_eq!(linked.await, None);
    }
}
