//! What is remembered for a while: a bounded number of values by what nobody can guess or read back.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use aws_lc_rs::{hmac, rand};

/// Stands for what was asked.
pub(super) type Mark = [u8; 32];

/// Makes marks, by a key of its own: what is remembered tells nothing of what was asked.
pub(super) struct Marks(hmac::Key);

impl Marks {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        // Without randomness there would be no TLS either; the starting points are random, too.
        if rand::fill(&mut key).is_err() {
            key.chunks_mut(8).for_each(|part| part.copy_from_slice(&super::super::random().to_ne_bytes()));
        }
        Self(hmac::Key::new(hmac::HMAC_SHA256, &key))
    }

    /// The mark of these parts in this order.
    pub(super) fn of(&self, parts: &[&[u8]]) -> Mark {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut mark = [0; 32];
        let tag = context.sign();
        mark.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        mark
    }
}

/// Values by their marks; the oldest makes room.
pub(super) struct Memory<V> {
    most: usize,
    kept: RefCell<Kept<V>>,
}

struct Kept<V> {
    values: HashMap<Mark, (V, Instant)>,
    order: VecDeque<Mark>,
}

impl<V: Clone> Memory<V> {
    /// For so many values at most.
    pub(super) fn new(most: usize) -> Self {
        Self { most, kept: RefCell::new(Kept { values: HashMap::new(), order: VecDeque::new() }) }
    }

    /// What is remembered and has not passed.
    pub(super) fn get(&self, mark: &Mark, now: Instant) -> Option<V> {
        let kept = self.kept.borrow();
        kept.values.get(mark).filter(|(_, until)| now < *until).map(|(value, _)| value.clone())
    }

    /// Remembers a value until then.
    pub(super) fn put(&self, mark: Mark, value: V, until: Instant) {
        let Kept { values, order } = &mut *self.kept.borrow_mut();
        if values.insert(mark, (value, until)).is_some() {
            return;
        }
        order.push_back(mark);
        while order.len() > self.most {
            if let Some(oldest) = order.pop_front() {
                values.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_passed_is_forgotten_and_the_oldest_makes_room() {
        let (marks, memory, now) = (Marks::new(), Memory::new(2), Instant::now());
        let [a, b, c] = ["a", "b", "c"].map(|text| marks.of(&[text.as_bytes()]));
        let later = now + Duration::from_secs(1);

        memory.put(a, 1, later);
        memory.put(b, 2, now);
        assert_eq!((memory.get(&a, now), memory.get(&b, now)), (Some(1), None));
        memory.put(b, 3, later);
        memory.put(c, 4, later);

        assert_eq!([a, b, c].map(|mark| memory.get(&mark, now)), [None, Some(3), Some(4)]);
    }

    #[test]
    fn parts_do_not_run_into_each_other_and_nobody_else_makes_the_same_marks() {
        let marks = Marks::new();

        assert_eq!(marks.of(&[b"a", b"b"]), marks.of(&[b"a", b"b"]));
        assert_ne!(marks.of(&[b"a", b"b"]), marks.of(&[b"ab", b""]));
        assert_ne!(marks.of(&[b"a"]), Marks::new().of(&[b"a"]));
    }
}
