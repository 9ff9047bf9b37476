//! What is in force: the newest scan, falling back object by object to the last good version.
//!
//! Rules, in this order:
//! - a document that reads and is admitted is in force; of two with the same identity the first
//!   by path and position wins;
//! - a broken document keeps the previous version of its object where its identity is known;
//! - where a broken document's identity is unknown, or a file cannot be read, nothing that came
//!   from that file before is taken away (unless another file now holds it);
//! - everything else that is no longer written is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::document::{self, Entry, Outcome};
use super::scan::{Content, MAX_TOTAL_BYTES, Scan};
use super::{Kept, Loaded};
use crate::model::{ObjectId, Problem, Severity};
use crate::objects::{Admission, Former, Key, Map, Object, Objects, Sourced, file_of};

/// Files as last read and the objects they put in force.
pub(super) struct Store {
    admission: Admission,
    files: BTreeMap<String, File>,
    in_force: BTreeMap<Key, InForce>,
    /// A file that was never read is being written.
    unseen: bool,
    /// Directories that could not be listed.
    unlistable: BTreeSet<String>,
    /// What was last said, where each document is in force as it is written: then a file can be
    /// changed by itself.
    plain: Option<Loaded>,
}

struct File {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Why the newest content could not be used; `entries` are of the last that could.
    unreadable: Option<String>,
}

#[derive(Clone)]
struct InForce {
    object: Object,
    file: String,
    origin: Arc<str>,
    /// Since when its file says something else, which could not be used.
    kept: Option<SystemTime>,
}

impl InForce {
    fn keep(&self, now: SystemTime) -> Self {
        Self { kept: Some(self.kept.unwrap_or(now)), ..self.clone() }
    }
}

impl Store {
    pub(super) fn new(admission: Admission) -> Self {
        Self {
            admission,
            files: BTreeMap::new(),
            in_force: BTreeMap::new(),
            unseen: false,
            unlistable: BTreeSet::new(),
            plain: None,
        }
    }

    /// Files of which something cannot be read, and directories (with a `/` behind them).
    pub(super) fn troubled(&self) -> Vec<String> {
        let is_broken = |entry: &Entry| matches!(entry.outcome, Outcome::Broken(_));
        let files = self.files.iter();
        let files = files.filter(|(_, file)| file.unreadable.is_some() || file.entries.iter().any(is_broken));
        let files = files.map(|(path, _)| path.clone());
        files.chain(self.unlistable.iter().map(|dir| format!("{dir}/"))).collect()
    }

    /// What was in force before our time: last good versions for the next look at the files.
    pub(super) fn adopt(&mut self, former: Vec<Former>) {
        for Former { object, origin, since } in former {
            let file = file_of(&origin).to_owned();
            let before = InForce { object, file, origin, kept: since };
            self.in_force.entry(before.object.key()).or_insert(before);
        }
        self.plain = None;
    }

    /// Takes in a scan and says what is in force now.
    pub(super) fn apply(&mut self, scan: Scan) -> Loaded {
        self.apply_at(scan, SystemTime::now())
    }

    /// [`Store::apply`] at a time of the caller's.
    pub(super) fn apply_at(&mut self, scan: Scan, now: SystemTime) -> Loaded {
        self.read(scan.files, &scan.unlistable);
        self.unlistable = scan.unlistable.keys().cloned().collect();
        let mut problems: Vec<Problem> = scan
            .unlistable
            .iter()
            .map(|(path, reason)| {
                let stays = self.in_force.values().any(|one| Path::new(&one.file).starts_with(path));
                file_problem(path, "unreadable-directory", reason, stays)
            })
            .collect();
        let mut in_force = self.merge(now, &mut problems);
        let refused = self.judge(&mut in_force, now, &mut problems);
        let mut objects = Objects { unread: self.unread(&in_force, &scan.unlistable), ..Objects::default() };
        objects.unread.extend(refused.into_iter().map(Some));
        self.in_force = in_force;
        let mut kept = Vec::new();
        for (key, InForce { object, file: _, origin, kept: since }) in &self.in_force {
            objects.insert(object.clone(), origin.clone());
            kept.extend(since.map(|since| Kept { object: key.id(origin), since }));
        }
        problems.sort();
        let loaded = Loaded { objects, problems, kept };
        self.plain = (self.is_plain() && scan.unlistable.is_empty()).then(|| loaded.clone());
        loaded
    }

    /// Every document says what is in force, or nothing.
    fn is_plain(&self) -> bool {
        let mut objects = 0;
        let reads = self.files.values().all(|file| {
            file.unreadable.is_none()
                && file.entries.iter().all(|entry| match entry.outcome {
                    Outcome::Object(_) => {
                        objects += 1;
                        true
                    }
                    Outcome::Ignored => true,
                    Outcome::Broken(_) => false,
                })
        });
        let is_kept = |one: &InForce| one.kept.is_some();
        reads && !self.unseen && objects == self.in_force.len() && !self.in_force.values().any(is_kept)
    }

    /// Takes in that these files alone are others than before, or gone; `None`: everything has to be looked
    /// at, because somebody else's documents have to do with it. The rules above are then not needed.
    pub(super) fn apply_changed(&mut self, changed: &BTreeMap<String, Option<Vec<u8>>>) -> Option<Loaded> {
        let mut loaded = self.plain.take()?;
        let known: usize = self.files.values().map(|file| file.bytes.len()).sum();
        let more: usize = changed.values().flatten().map(Vec::len).sum();
        if (known + more) as u64 > MAX_TOTAL_BYTES {
            return None;
        }
        let mut read = Vec::new();
        for (path, bytes) in changed {
            let known = self.files.get(path);
            if known.map(|file| &file.bytes) == bytes.as_ref() {
                continue;
            }
            let entries = match bytes {
                Some(bytes) => document::read_file(path, bytes).ok()?,
                None => Vec::new(),
            };
            read.push((path, bytes, entries));
        }
        let paths: BTreeSet<&String> = read.iter().map(|(path, ..)| *path).collect();
        let is_config = |entry: &Entry| matches!(&entry.outcome, Outcome::Object(Object::ConfigMap(_)));
        let judge = self.admission.among(&loaded.objects.config_maps);
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        for (_, _, entries) in &mut read {
            for entry in entries {
                admit(&self.admission, entry);
                let object = match &entry.outcome {
                    Outcome::Object(object) => object,
                    Outcome::Ignored => continue,
                    Outcome::Broken(_) => return None,
                };
                let key = object.key();
                let is_of_others = self.in_force.get(&key).is_some_and(|known| !paths.contains(&known.file));
                // What ConfigMaps demand, all objects have to be asked for.
                if is_of_others || is_config(entry) || !judge(object, &key.id(&entry.origin)).is_empty() {
                    return None;
                }
                if !keys.insert(key) {
                    return None;
                }
            }
        }
        let before = read.iter().filter_map(|(path, ..)| self.files.get(*path));
        if before.flat_map(|file| &file.entries).any(is_config) {
            return None;
        }
        for (path, bytes, entries) in read {
            let file = match bytes {
                Some(bytes) => {
                    self.files.insert(path.clone(), File { bytes: bytes.clone(), entries, unreadable: None })
                }
                None => self.files.remove(path),
            };
            for entry in file.into_iter().flat_map(|file| file.entries) {
                if !entry.problems.is_empty() {
                    loaded.problems.retain(|problem| !entry.problems.contains(problem));
                }
                if let Outcome::Object(object) = entry.outcome {
                    let key = object.key();
                    if !keys.contains(&key) {
                        loaded.objects.remove(&key);
                        self.in_force.remove(&key);
                    }
                }
            }
        }
        for path in paths {
            for entry in self.files.get(path).into_iter().flat_map(|file| &file.entries) {
                loaded.problems.extend(entry.problems.iter().cloned());
                if let Outcome::Object(object) = &entry.outcome {
                    let (object, file, origin) = (object.clone(), path.clone(), Arc::clone(&entry.origin));
                    loaded.objects.insert(object.clone(), Arc::clone(&origin));
                    self.in_force.insert(object.key(), InForce { object, file, origin, kept: None });
                }
            }
        }
        loaded.problems.sort();
        loaded.problems.dedup();
        self.plain = Some(loaded.clone());
        Some(loaded)
    }

    /// Has what the ConfigMaps in force demand kept: who does not keep to it stays what it was. Returns
    /// those that are nothing then.
    fn judge(
        &self,
        in_force: &mut BTreeMap<Key, InForce>,
        now: SystemTime,
        problems: &mut Vec<Problem>,
    ) -> Vec<Key> {
        let config_maps = in_force.iter().filter_map(|(key, in_force)| match &in_force.object {
            Object::ConfigMap(object) => {
                let object = Arc::clone(object);
                Some((key.name.clone(), Sourced { object, origin: in_force.origin.clone() }))
            }
            _ => None,
        });
        let judge = self.admission.among(&config_maps.collect::<Map<_, _>>());
        let mut refused = Vec::new();
        // What is kept was let in once.
        for (key, InForce { object, origin, .. }) in in_force.iter().filter(|(_, one)| one.kept.is_none()) {
            let found = judge(object, &key.id(origin));
            if found.iter().any(|problem| problem.severity == Severity::Error) {
                refused.push(key.clone());
            }
            problems.extend(found);
        }
        refused.retain(|key| match self.in_force.get(key) {
            Some(before) => {
                in_force.insert(key.clone(), before.keep(now));
                false
            }
            None => in_force.remove(key).is_some(),
        });
        refused
    }

    /// What is written and neither readable nor in force by an earlier version; `None`: nobody knows
    /// what it is.
    fn unread(
        &self,
        in_force: &BTreeMap<Key, InForce>,
        unlistable: &BTreeMap<String, String>,
    ) -> BTreeSet<Option<Key>> {
        let mut unread = BTreeSet::new();
        let was_read = |path: &str| self.in_force.values().any(|object| object.file == path);
        let below =
            |dir: &str| self.files.keys().any(|path| dir.is_empty() || path.starts_with(&format!("{dir}/")));
        if self.unseen || unlistable.keys().any(|dir| !below(dir)) {
            unread.insert(None);
        }
        for (path, file) in &self.files {
            if file.unreadable.is_some() && file.entries.is_empty() {
                unread.insert(None);
            }
            for entry in &file.entries {
                match &entry.outcome {
                    Outcome::Broken(Some(key)) if !in_force.contains_key(key) => {
                        unread.insert(Some(key.clone()));
                    }
                    Outcome::Broken(None) if !was_read(path) => {
                        unread.insert(None);
                    }
                    Outcome::Broken(_) | Outcome::Object(_) | Outcome::Ignored => {}
                }
            }
        }
        unread
    }

    fn read(&mut self, found: BTreeMap<String, Content>, unlistable: &BTreeMap<String, String>) {
        self.files.retain(|path, _| found.contains_key(path) || is_below(unlistable.keys(), path));
        self.unseen = false;
        for (path, content) in found {
            match content {
                Content::Busy => self.unseen |= !self.files.contains_key(&path),
                Content::Unreadable(reason) => self.unreadable(path, reason),
                Content::Bytes(bytes) => {
                    if self
                        .files
                        .get(&path)
                        .is_some_and(|file| file.unreadable.is_none() && file.bytes == bytes)
                    {
                        continue;
                    }
                    match document::read_file(&path, &bytes) {
                        Ok(mut entries) => {
                            entries.iter_mut().for_each(|entry| admit(&self.admission, entry));
                            self.files.insert(path, File { bytes, entries, unreadable: None });
                        }
                        Err(reason) => self.unreadable(path, reason),
                    }
                }
            }
        }
    }

    fn unreadable(&mut self, path: String, reason: String) {
        let file = self.files.entry(path).or_insert_with(|| File {
            bytes: Vec::new(),
            entries: Vec::new(),
            unreadable: None,
        });
        file.unreadable = Some(reason);
    }

    fn merge(&self, now: SystemTime, problems: &mut Vec<Problem>) -> BTreeMap<Key, InForce> {
        let mut merged: BTreeMap<Key, InForce> = BTreeMap::new();
        let mut broken: Vec<&Key> = Vec::new();
        let mut keep_all_of: BTreeSet<&str> = BTreeSet::new();
        for (path, file) in &self.files {
            if let Some(reason) = &file.unreadable {
                let stays = self.in_force.values().any(|one| one.file == *path);
                problems.push(file_problem(path, "unreadable-file", reason, stays));
                keep_all_of.insert(path);
            }
            for entry in &file.entries {
                problems.extend(entry.problems.iter().cloned());
                match &entry.outcome {
                    Outcome::Ignored => {}
                    Outcome::Broken(Some(key)) => broken.push(key),
                    Outcome::Broken(None) => {
                        keep_all_of.insert(path);
                    }
                    Outcome::Object(object) => {
                        let key = object.key();
                        match merged.get(&key) {
                            Some(first) => problems.push(duplicate(&key, &entry.origin, &first.origin)),
                            None => {
                                let in_force = InForce {
                                    object: object.clone(),
                                    file: path.clone(),
                                    origin: entry.origin.clone(),
                                    kept: None,
                                };
                                merged.insert(key, in_force);
                            }
                        }
                    }
                }
            }
        }
        for key in broken {
            if let (false, Some(previous)) = (merged.contains_key(key), self.in_force.get(key)) {
                merged.insert(key.clone(), previous.keep(now));
            }
        }
        for (key, previous) in &self.in_force {
            let file = previous.file.as_str();
            let stays = keep_all_of.contains(file)
                || !self.files.contains_key(file) && is_below(&self.unlistable, file);
            if stays && !merged.contains_key(key) {
                merged.insert(key.clone(), previous.keep(now));
            }
        }
        merged
    }
}

/// Whether a file is in one of these directories.
fn is_below<'d>(dirs: impl IntoIterator<Item = &'d String>, file: &str) -> bool {
    let is_in =
        |dir: &str| dir.is_empty() || file.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
    dirs.into_iter().any(|dir| is_in(dir))
}

/// Asks whether the entry's object may enter; refused, it counts as broken.
fn admit(admission: &Admission, entry: &mut Entry) {
    let Outcome::Object(object) = &mut entry.outcome else { return };
    *object = admission.enter(object.clone());
    let key = object.key();
    let problems = admission.alone(object, &key.id(&entry.origin));
    let refused = problems.iter().any(|problem| problem.severity == Severity::Error);
    entry.problems.extend(problems);
    if refused {
        entry.outcome = Outcome::Broken(Some(key));
    }
}

/// `stays`: something that was read from there earlier does.
fn file_problem(path: &str, reason: &'static str, message: &str, stays: bool) -> Problem {
    let stays = if stays { "; what was last read from it stays in force" } else { "" };
    Problem {
        object: ObjectId { origin: path.to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason,
        field: String::new(),
        message: format!("{message}{stays}"),
        fix: String::new(),
    }
}

fn duplicate(key: &Key, origin: &str, first: &str) -> Problem {
    Problem {
        object: key.id(origin),
        severity: Severity::Error,
        reason: "duplicate-object",
        field: "metadata.name".to_owned(),
        message: format!("{} {} is already defined by {first}; this one is ignored", key.kind, key.name),
        fix: "remove one of the two".to_owned(),
    }
}
