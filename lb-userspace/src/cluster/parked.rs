//! What waits because of its namespace: a refusal there says nothing of Events elsewhere.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use crate::backoff::Backoff;

/// By namespace.
pub(super) struct Parked<T>(BTreeMap<String, Line<T>>);

struct Line<T> {
    waiting: VecDeque<T>,
    /// When one of them is tried again.
    again: Instant,
    backoff: Backoff,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Parked<T> {
    /// Whether something of that namespace has to wait.
    pub(super) fn has(&self, namespace: &str) -> bool {
        self.0.contains_key(namespace)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|line| line.waiting.len()).sum()
    }

    /// It was refused: it is the first that is tried again, later each time.
    pub(super) fn refused(&mut self, namespace: &str, one: T, now: Instant) {
        let fresh = || Line { waiting: VecDeque::new(), again: now, backoff: super::pauses() };
        let line = self.0.entry(namespace.to_owned()).or_insert_with(fresh);
        line.waiting.push_front(one);
        line.again = now + line.backoff.next();
    }

    /// Waits behind the others of its namespace; handed back where nothing waits there.
    pub(super) fn join(&mut self, namespace: &str, one: T) -> Option<T> {
        match self.0.get_mut(namespace) {
            Some(line) => {
                line.waiting.push_back(one);
                None
            }
            None => Some(one),
        }
    }

    /// When one may be tried again; `None`: nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.values().map(|line| line.again).min()
    }

    /// One that may be tried again by now.
    pub(super) fn next(&mut self, now: Instant) -> Option<T> {
        let mut due = self.0.values_mut().filter(|line| line.again <= now);
        due.find_map(|line| line.waiting.pop_front())
    }

    /// That namespace takes them again: all that waited there.
    pub(super) fn release(&mut self, namespace: &str) -> VecDeque<T> {
        self.0.remove(namespace).map(|line| line.waiting).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Duration;

    use super::*;

    #[test]
    fn what_is_refused_in_a_namespace_waits_there_in_its_order_and_is_tried_one_at_a_time() {
        let (mut parked, begun) = (Parked::default(), Instant::now());

        parked.refused("shop", "one", begun);
        assert_eq!(parked.join("shop", "two"), None);
        assert_eq!(parked.join("edge", "other"), Some("other"));
        assert_eq!((parked.next(begun), parked.len()), (None, 2));
        let due = parked.due().expect("something waits");
        assert!(due > begun);
        assert_eq!(parked.next(due), Some("one"));
        parked.refused("shop", "one", due);
        assert_eq!(parked.next(due), None);
        assert_eq!(parked.next(due + Duration::from_secs(60)), Some("one"));

        assert_eq!(parked.release("shop"), ["two"]);
        assert!(parked.is_empty());
    }
}
