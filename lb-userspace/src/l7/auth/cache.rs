//! What is remembered for a while: a bounded number of values by what nobody can guess or read back.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::{hmac, rand};

/// Stands for what was asked.
pub(super) type CacheKey = [u8; 32];

/// Makes keys, by a secret of its own: what is remembered tells nothing of what was asked.
pub(super) struct CacheKeys(hmac::Key);

impl CacheKeys {
    pub(super) fn new() -> Self {
        let mut secret = [0; 32];
        // Without randomness there would be no TLS either; the starting points are random, too.
        if rand::fill(&mut secret).is_err() {
            secret.chunks_mut(8).for_each(|part| part.copy_from_slice(&super::super::random().to_ne_bytes()));
        }
        Self(hmac::Key::new(hmac::HMAC_SHA256, &secret))
    }

    /// The key of these parts in this order.
    pub(super) fn of(&self, parts: &[&[u8]]) -> CacheKey {
        let mut context = hmac::Context::with_key(&self.0);
        each_apart(parts, |bytes| context.update(bytes));
        let mut key = [0; 32];
        let tag = context.sign();
        key.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        key
    }
}

/// The bytes of all parts for a hash, in which none runs into the next.
pub(super) fn each_apart(parts: &[&[u8]], mut update: impl FnMut(&[u8])) {
    for part in parts {
        update(&(part.len() as u64).to_le_bytes());
        update(part);
    }
}

/// Values by their keys; the oldest makes room.
struct Cache<V> {
    most: usize,
    values: HashMap<CacheKey, (V, Instant)>,
    order: VecDeque<CacheKey>,
}

impl<V: Clone> Cache<V> {
    /// For so many values at most.
    fn new(most: usize) -> Self {
        Self { most, values: HashMap::new(), order: VecDeque::new() }
    }

    /// What is remembered and has not passed.
    fn get(&self, key: &CacheKey, now: Instant) -> Option<V> {
        self.values.get(key).filter(|(_, until)| now < *until).map(|(value, _)| value.clone())
    }

    /// The same; what is remembered is so until then, at least.
    fn renew(&mut self, key: &CacheKey, now: Instant, until: Instant) -> Option<V> {
        let (value, end) = self.values.get_mut(key).filter(|(_, end)| now < *end)?;
        *end = until.max(*end);
        Some(value.clone())
    }

    /// Remembers a value until then.
    fn put(&mut self, key: CacheKey, value: V, until: Instant) {
        if self.values.insert(key, (value, until)).is_some() {
            return;
        }
        self.order.push_back(key);
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.values.remove(&oldest);
            }
        }
    }
}

/// Parts of a [`Shared`], each with a lock of its own.
const SHARDS: usize = 16;

/// What is remembered for all workers.
pub(super) struct Shared<V> {
    keys: CacheKeys,
    shards: [Mutex<Cache<V>>; SHARDS],
}

impl<V: Clone> Shared<V> {
    /// For about so many values.
    pub(super) fn new(most: usize) -> Self {
        let shards = std::array::from_fn(|_| Mutex::new(Cache::new(most.div_ceil(SHARDS))));
        Self { keys: CacheKeys::new(), shards }
    }

    /// Makes its keys.
    pub(super) fn keys(&self) -> &CacheKeys {
        &self.keys
    }

    pub(super) fn get(&self, key: &CacheKey, now: Instant) -> Option<V> {
        self.shard(key, |values| values.get(key, now))
    }

    pub(super) fn put(&self, key: CacheKey, value: V, until: Instant) {
        self.shard(&key, |values| values.put(key, value, until));
    }

    fn shard<T>(&self, [first, ..]: &CacheKey, act: impl FnOnce(&mut Cache<V>) -> T) -> T {
        let [shard, ..] = &self.shards;
        let shard = self.shards.get(usize::from(*first) % SHARDS).unwrap_or(shard);
        act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What all workers know to be so, for a while after it was last asked for.
pub(super) struct Known {
    facts: Shared<()>,
    time: Duration,
}

impl Known {
    /// For about so many facts, each for this time.
    pub(super) fn new(most: usize, time: Duration) -> Self {
        Self { facts: Shared::new(most), time }
    }

    /// Stands for these parts.
    pub(super) fn key(&self, parts: &[&[u8]]) -> CacheKey {
        self.facts.keys.of(parts)
    }

    pub(super) fn has(&self, key: &CacheKey, now: Instant) -> bool {
        self.facts.shard(key, |facts| facts.renew(key, now, now + self.time).is_some())
    }

    pub(super) fn learn(&self, key: CacheKey, now: Instant) {
        self.facts.put(key, (), now + self.time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_passed_is_forgotten_and_the_oldest_makes_room() {
        let (keys, mut cache, now) = (CacheKeys::new(), Cache::new(2), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(|text| keys.of(&[text.as_bytes()]));
        let later = now + Duration::from_secs(1);

        cache.put(a, 1, later);
        cache.put(b, 2, now);
        assert_eq!((cache.get(&a, now), cache.get(&b, now)), (Some(1), None));
        cache.put(b, 3, later);
        cache.put(c, 4, later);

        assert_eq!([a, b, c].map(|key| cache.get(&key, now)), [None, Some(3), Some(4)]);
    }

    #[test]
    fn what_is_known_stays_known_while_it_is_asked_for() {
        let (known, start) = (Known::new(64, Duration::from_secs(60)), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let key = known.key(&[b"a"]);

        assert!(!known.has(&key, start));
        known.learn(key, start);

        assert!(known.has(&key, after(59)));
        assert!(known.has(&key, after(118)));
        assert!(!known.has(&key, after(178)));
    }

    #[test]
    fn parts_do_not_run_into_each_other_and_nobody_else_makes_the_same_marks() {
        let keys = CacheKeys::new();

        assert_eq!(keys.of(&[b"a", b"b"]), keys.of(&[b"a", b"b"]));
        assert_ne!(keys.of(&[b"a", b"b"]), keys.of(&[b"ab", b""]));
        assert_ne!(keys.of(&[b"a"]), CacheKeys::new().of(&[b"a"]));
    }
}
