//! An ordered map whose copies share what they have in common, so that a snapshot costs what it changes
//! and not what it holds.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// Values by key. A copy shares every value with its original and costs nothing; what differs between the two is
/// found without a look at what they share.
#[derive(Clone, PartialEq, Eq)]
pub struct Shared<K: Ord, V: Eq>(OrdMap<K, Arc<V>>);

/// One key whose value is another than before, or came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// `None`: it came.
    pub before: Option<&'a Arc<V>>,
    /// `None`: it went.
    pub now: Option<&'a Arc<V>>,
}

impl<K: Ord + Clone, V: Eq> Shared<K, V> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(|value| &**value)
    }

    /// The same, to be kept.
    pub fn share<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&Arc<V>>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// Whether the key has a value.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(key)
    }

    /// Gives a key a value, instead of the one it has. An equal one stays as it is, and everything that
    /// shares it.
    pub fn insert(&mut self, key: K, value: impl Into<Arc<V>>) {
        let value = value.into();
        if self.0.get(&key).is_none_or(|known| *known != value) {
            self.0.insert(key, value);
        }
    }

    /// Makes these all there is. What is equal stays as it is.
    pub fn set(&mut self, entries: BTreeMap<K, V>) {
        let gone: Vec<K> = self.0.keys().filter(|key| !entries.contains_key(key)).cloned().collect();
        gone.iter().for_each(|key| drop(self.0.remove(key)));
        entries.into_iter().for_each(|(key, value)| self.insert(key, value));
    }

    /// The value of a key, to be changed; a copy of it where others share it.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        self.0.get_mut(key).map(Arc::make_mut)
    }

    /// Takes a key's value away.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.0.remove(key);
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, &**value))
    }

    /// Keys in their order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// Values in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|value| &**value)
    }

    /// The first key and its value.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// What is another than in `before`.
    pub fn changes<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = Change<'a, K, V>> {
        before.0.diff(&self.0).map(|item| match item {
            DiffItem::Add(key, now) => Change { key, before: None, now: Some(now) },
            DiffItem::Update { old: (_, before), new: (key, now) } => {
                Change { key, before: Some(before), now: Some(now) }
            }
            DiffItem::Remove(key, before) => Change { key, before: Some(before), now: None },
        })
    }
}

impl<K: Ord + Clone, V: Eq + Clone> Shared<K, V> {
    /// Changes every value; for tests and small maps.
    pub fn edit(&mut self, mut change: impl FnMut(&K, &mut V)) {
        let keys: Vec<K> = self.0.keys().cloned().collect();
        for key in keys {
            if let Some(value) = self.0.get_mut(&key) {
                change(&key, Arc::make_mut(value));
            }
        }
    }
}

impl<K: Ord, V: Eq> Default for Shared<K, V> {
    fn default() -> Self {
        Self(OrdMap::default())
    }
}

impl<K: Ord + fmt::Debug, V: Eq + fmt::Debug> fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<K: Ord + Clone, V: Eq, W: Into<Arc<V>>> FromIterator<(K, W)> for Shared<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, W)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (key, value.into())).collect())
    }
}

impl<K: Ord + Clone, V: Eq, W: Into<Arc<V>>, const N: usize> From<[(K, W); N]> for Shared<K, V> {
    fn from(entries: [(K, W); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<'a, K: Ord + Clone, V: Eq> IntoIterator for &'a Shared<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Box<dyn Iterator<Item = (&'a K, &'a V)> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_equal_value_leaves_the_one_that_others_share() {
        let before = Shared::from([(1, "a".to_owned()), (2, "b".to_owned())]);
        let mut now = before.clone();

        now.insert(1, "a".to_owned());
        now.insert(2, "c".to_owned());
        now.insert(3, "d".to_owned());
        now.set([(1, "a"), (2, "c"), (3, "d")].map(|(key, value)| (key, value.to_owned())).into());
        let changes: Vec<_> =
            now.changes(&before).map(|change| (*change.key, change.before.is_some())).collect();

        assert!(Arc::ptr_eq(&before.0[&1], &now.0[&1]));
        assert_eq!(changes, [(2, true), (3, false)]);
        assert_eq!(before.get(&2).map(String::as_str), Some("b"));
    }

    proptest! {
        /// Everything that follows changes relies on none being missed.
        #[test]
        fn changes_are_what_a_walk_over_both_would_find(
            first in prop::collection::btree_map(0..400u16, 0..3u8, 0..300),
            steps in prop::collection::vec((0..400u16, prop::option::of(0..3u8)), 1..60),
        ) {
            let before: Shared<u16, u8> = first.iter().map(|(key, value)| (*key, *value)).collect();
            let (mut now, mut plain) = (before.clone(), first.clone());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        now.insert(key, value);
                        plain.insert(key, value);
                    }
                    None => {
                        now.remove(&key);
                        plain.remove(&key);
                    }
                }
            }

            let changes: Vec<_> =
                now.changes(&before).map(|c| (*c.key, c.before.map(|v| **v), c.now.map(|v| **v))).collect();

            let keys: std::collections::BTreeSet<_> = first.keys().chain(plain.keys()).copied().collect();
            let both = keys.into_iter().map(|key| (key, first.get(&key).copied(), plain.get(&key).copied()));
            prop_assert_eq!(changes, both.filter(|(_, before, now)| before != now).collect::<Vec<_>>());
            prop_assert_eq!(now == before, first == plain);
        }
    }
}
