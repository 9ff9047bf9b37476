//! What is in force: of each object the newest version, or the last one that was let in.
//!
//! An object is judged by itself when it arrives, and by what the ConfigMaps demand when the next
//! state is taken; who does not pass stays what it was, or does not enter.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;

use crate::model::{ObjectName, Problem, Severity};
use crate::objects::{Admission, Former, Kept, Key, Kind, Loaded, Object, Objects};

/// The objects of the cluster that concern us.
pub(super) struct Store {
    admission: Admission,
    in_force: Objects,
    refused: Refused,
    /// Objects of which an earlier version is in force, since when.
    kept: BTreeMap<Key, SystemTime>,
    /// What is to be said about objects that were let in.
    notes: BTreeMap<Key, Vec<Problem>>,
    /// Ingresses that came in since the last state was taken, and what they were before.
    fresh: BTreeMap<Key, Option<Object>>,
    /// The ConfigMaps are not those of the last state.
    rules_changed: bool,
}

/// Newest versions that were not let in, and why.
pub(super) type Refused = OrdMap<Key, Arc<(Object, Vec<Problem>)>>;

impl Store {
    pub(super) fn new(admission: Admission) -> Self {
        Self {
            admission,
            in_force: Objects::default(),
            refused: Refused::new(),
            kept: BTreeMap::new(),
            notes: BTreeMap::new(),
            fresh: BTreeMap::new(),
            rules_changed: true,
        }
    }

    pub(super) fn objects(&self) -> &Objects {
        &self.in_force
    }

    /// The newest version, whether or not it is in force.
    pub(super) fn newest(&self, key: &Key) -> Option<Object> {
        let refused = self.refused.get(key).map(|refused| refused.0.clone());
        refused.or_else(|| self.in_force.get(key))
    }

    /// Newest versions that were not let in.
    pub(super) fn refused(&self) -> &Refused {
        &self.refused
    }

    /// Takes a version in; false if it says nothing new.
    pub(super) fn apply(&mut self, object: Object) -> bool {
        let object = self.admission.enter(object);
        let key = object.key();
        if self.newest(&key).is_some_and(|known| known == object) {
            return false;
        }
        let found = self.admission.alone(&object, &key.id(""));
        if found.iter().any(|problem| problem.severity == Severity::Error) {
            self.refuse(key, Arc::new((object, found)));
            return true;
        }
        self.let_in(key, object, found);
        true
    }

    fn let_in(&mut self, key: Key, object: Object, found: Vec<Problem>) {
        let before = self.in_force.get(&key);
        self.in_force.unread.remove(&Some(key.clone()));
        self.in_force.insert(object, "");
        self.refuse_no_more(&key);
        self.kept.remove(&key);
        if found.is_empty() {
            self.notes.remove(&key);
        } else {
            self.notes.insert(key.clone(), found);
        }
        match key.kind {
            Kind::Ingress => drop(self.fresh.entry(key).or_insert(before)),
            Kind::ConfigMap => self.rules_changed = true,
            _ => {}
        }
    }

    fn refuse(&mut self, key: Key, refused: Arc<(Object, Vec<Problem>)>) {
        if self.in_force.get(&key).is_some() {
            self.kept.entry(key.clone()).or_insert_with(SystemTime::now);
        } else {
            self.in_force.unread.insert(Some(key.clone()));
        }
        self.refused.insert(key, refused);
    }

    /// The map stays the same one where it has no such object: others compare it by that.
    fn refuse_no_more(&mut self, key: &Key) {
        if self.refused.contains_key(key) {
            self.refused.remove(key);
        }
    }

    /// These of a kind, and no others, exist and could not be read yet; false if that is nothing new.
    pub(super) fn lack(&mut self, kind: Kind, names: &BTreeSet<ObjectName>) -> bool {
        let Objects { unread, .. } = &mut self.in_force;
        let before = unread.clone();
        let refused = &self.refused;
        unread.retain(|key| key.as_ref().is_none_or(|key| key.kind != kind || refused.contains_key(key)));
        let keys = names.iter().map(|name| Key { kind, name: name.clone() });
        let keys: Vec<Key> = keys.filter(|key| self.in_force.get(key).is_none()).collect();
        self.in_force.unread.extend(keys.into_iter().map(Some));
        self.in_force.unread != before
    }

    /// Has an earlier version stay in force whose newest one is refused; false where that is not so.
    pub(super) fn adopt(&mut self, Former { object, origin: _, since }: Former) -> bool {
        let key = object.key();
        if !self.refused.contains_key(&key) || self.in_force.get(&key).is_some() {
            return false;
        }
        self.rules_changed |= key.kind == Kind::ConfigMap;
        self.in_force.unread.remove(&Some(key.clone()));
        self.in_force.insert(object, "");
        self.kept.insert(key, since.unwrap_or_else(SystemTime::now));
        true
    }

    /// Forgets an object; false if it was not known.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let known = self.newest(key).is_some();
        self.in_force.remove(key);
        self.in_force.unread.remove(&Some(key.clone()));
        self.refuse_no_more(key);
        self.kept.remove(key);
        self.notes.remove(key);
        self.fresh.remove(key);
        self.rules_changed |= known && key.kind == Kind::ConfigMap;
        known
    }

    /// Names of all objects of a kind, in force or not.
    pub(super) fn keys(&self, kind: Kind) -> Vec<Key> {
        let mut keys = self.in_force.keys(kind);
        keys.extend(self.refused.keys().filter(|key| key.kind == kind).cloned());
        keys
    }

    /// The state as of now.
    pub(super) fn take(&mut self) -> Loaded {
        self.judge();
        let refused = self.refused.values().flat_map(|refused| &refused.1);
        let mut problems: Vec<Problem> = self.notes.values().flatten().chain(refused).cloned().collect();
        problems.sort();
        let kept = self.kept.iter().map(|(key, since)| Kept { object: key.id(""), since: *since });
        Loaded { objects: self.in_force.clone(), problems, kept: kept.collect() }
    }

    /// Has kept what the ConfigMaps demand: of those that came in, and of all if the ConfigMaps did.
    fn judge(&mut self) {
        let mut fresh = std::mem::take(&mut self.fresh);
        let rules_changed = std::mem::take(&mut self.rules_changed);
        if fresh.is_empty() && !rules_changed {
            return;
        }
        let judge = self.admission.among(&self.in_force.config_maps);
        let among: Vec<Key> =
            if rules_changed { self.in_force.keys(Kind::Ingress) } else { fresh.keys().cloned().collect() };
        for key in among {
            // What is kept was let in once, unless it came in just now.
            let was_asked = self.kept.contains_key(&key) && !fresh.contains_key(&key);
            let Some(object) = self.in_force.get(&key).filter(|_| !was_asked) else { continue };
            let found = judge(&object, &key.id(""));
            if !found.iter().any(|problem| problem.severity == Severity::Error) {
                continue;
            }
            match fresh.remove(&key) {
                Some(Some(before)) => self.in_force.insert(before, ""),
                Some(None) => {
                    self.in_force.remove(&key);
                    self.kept.remove(&key);
                }
                None => {}
            }
            // A newer version that is refused says why by itself.
            let refused = self.refused.get(&key).cloned();
            let refused = refused.unwrap_or_else(|| Arc::new((object, found)));
            self.refuse(key, refused);
        }
        if !rules_changed {
            return;
        }
        // The ConfigMaps may have become milder.
        let refused = self.refused.iter().filter(|(key, _)| key.kind == Kind::Ingress);
        let refused: Vec<(Key, Object)> =
            refused.map(|(key, refused)| (key.clone(), refused.0.clone())).collect();
        for (key, object) in refused {
            let id = key.id("");
            let alone = self.admission.alone(&object, &id);
            let problems: Vec<Problem> = alone.iter().cloned().chain(judge(&object, &id)).collect();
            if problems.iter().any(|problem| problem.severity == Severity::Error) {
                self.refused.insert(key, Arc::new((object, problems)));
            } else {
                self.let_in(key, object, alone);
            }
        }
        self.fresh.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectId;

    fn odd(object: &Object, id: &ObjectId, _: Option<&ObjectName>) -> Vec<Problem> {
        let (field, message, fix) = Default::default();
        let problem =
            Problem { object: id.clone(), severity: Severity::Error, reason: "odd", field, message, fix };
        object
            .metadata()
            .name
            .iter()
            .filter(|name| name.starts_with("odd"))
            .map(|_| problem.clone())
            .collect()
    }

    fn ingress(name: &str) -> Object {
        let value = serde_json::json!({"metadata": {"namespace": "shop", "name": name}});
        Object::Ingress(Arc::new(serde_json::from_value(value).expect("an Ingress")))
    }

    #[test]
    fn what_is_refused_is_the_same_map_until_it_says_something_else() {
        let admission = Admission {
            alone: odd,
            among: |_, _| Box::new(|_, _| Vec::new()),
            config_map: None,
            address_pools: None,
            renamed: None,
        };
        let mut store = Store::new(admission);
        store.apply(ingress("odd"));
        store.take();
        let before = store.refused().clone();

        store.apply(ingress("fine"));
        store.take();
        store.remove(&ingress("fine").key());
        store.apply(ingress("odd"));
        assert!(store.refused().ptr_eq(&before));

        store.apply(ingress("odd-too"));
        assert_eq!((before.len(), store.refused().len()), (1, 2));
        assert!(!store.refused().ptr_eq(&before));
    }
}
