//! What waits because of its namespace: a refusal there says nothing of Events elsewhere, and takes little of the time
//! that is theirs.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Of one namespace at most; the oldest go.
const LINE: usize = 100;
/// Of all namespaces, but for one of each.
const MOST: usize = 10_000;
/// Pauses between tries in one namespace: rights come when somebody gives them.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Between tries in any two, however many there are.
const REST: Duration = Duration::from_secs(1);

pub(super) struct Parked<T> {
    /// By namespace.
    lines: BTreeMap<String, Line<T>>,
    /// None is tried before.
    rests: Option<Instant>,
}

/// What became of one that was to be told.
#[derive(Debug, PartialEq)]
pub(super) enum Joined<T> {
    /// Nothing waits in its namespace.
    Free(T),
    /// It waits behind the others of its namespace.
    Waits,
    /// So it does, and the oldest there does no more.
    Instead(T),
}

struct Line<T> {
    waiting: VecDeque<T>,
    /// When one of them is tried again.
    again: Instant,
    backoff: Backoff,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self { lines: BTreeMap::new(), rests: None }
    }
}

impl<T: PartialEq> Parked<T> {
    /// Whether something of that namespace has to wait.
    pub(super) fn has(&self, namespace: &str) -> bool {
        self.lines.contains_key(namespace)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether that waits there already.
    pub(super) fn contains(&self, namespace: &str, one: &T) -> bool {
        self.lines.get(namespace).is_some_and(|line| line.waiting.contains(one))
    }

    fn len(&self) -> usize {
        self.lines.values().map(|line| line.waiting.len()).sum()
    }

    /// It was refused: it is the first that is tried again, later each time.
    pub(super) fn refused(&mut self, namespace: &str, one: T, now: Instant) {
        let fresh =
            || Line { waiting: VecDeque::new(), again: now, backoff: Backoff::between(PAUSES.0, PAUSES.1) };
        let line = self.lines.entry(namespace.to_owned()).or_insert_with(fresh);
        line.waiting.push_front(one);
        line.again = now + line.backoff.next();
        self.rests = Some(now + REST);
    }

    /// Waits where others of its namespace do.
    pub(super) fn join(&mut self, namespace: &str, one: T) -> Joined<T> {
        let are_many = self.len() >= MOST;
        let Some(line) = self.lines.get_mut(namespace) else { return Joined::Free(one) };
        line.waiting.push_back(one);
        let goes = are_many || line.waiting.len() > LINE;
        goes.then(|| line.waiting.pop_front()).flatten().map_or(Joined::Waits, Joined::Instead)
    }

    /// When one may be tried again; `None`: nothing waits.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.lines.values().map(|line| line.again).min();
        first.map(|first| self.rests.map_or(first, |rests| rests.max(first)))
    }

    /// One that may be tried again by now, of the namespace whose turn it has been for the longest.
    pub(super) fn next(&mut self, now: Instant) -> Option<T> {
        if self.rests.is_some_and(|rests| now < rests) {
            return None;
        }
        let due = self.lines.values_mut().filter(|line| line.again <= now && !line.waiting.is_empty());
        due.min_by_key(|line| line.again)?.waiting.pop_front()
    }

    /// That namespace takes them again: all that waited there.
    pub(super) fn release(&mut self, namespace: &str) -> VecDeque<T> {
        self.lines.remove(namespace).map(|line| line.waiting).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_in_a_namespace_waits_there_in_its_order_and_is_tried_one_at_a_time() {
        let (mut parked, begun) = (Parked::default(), Instant::now());

        parked.refused("shop", "one", begun);
        assert_eq!(parked.join("shop", "two"), Joined::Waits);
        assert_eq!(parked.join("edge", "other"), Joined::Free("other"));
        assert_eq!((parked.next(begun), parked.len()), (None, 2));
        let due = parked.due().expect("something waits");
        assert!(due > begun);
        assert_eq!(parked.next(due), Some("one"));
        parked.refused("shop", "one", due);
        assert_eq!(parked.next(due), None);
        assert_eq!(parked.next(due + Duration::from_secs(600)), Some("one"));

        assert_eq!(parked.release("shop"), ["two"]);
        assert!(parked.is_empty());
    }

    #[test]
    fn a_line_has_an_end_and_says_what_it_loses() {
        let (mut parked, now) = (Parked::default(), Instant::now());
        parked.refused("shop", 0, now);
        for one in 1..LINE {
            assert_eq!(parked.join("shop", one), Joined::Waits);
        }
        assert!(parked.contains("shop", &0) && !parked.contains("edge", &0));

        assert_eq!(parked.join("shop", LINE), Joined::Instead(0));

        assert!(!parked.contains("shop", &0) && parked.contains("shop", &LINE));
        assert_eq!(parked.len(), LINE);
    }

    #[test]
    fn all_lines_together_have_an_end_too() {
        let (mut parked, now) = (Parked::default(), Instant::now());
        for one in 0..MOST {
            parked.refused(&one.to_string(), one, now);
        }

        assert_eq!(parked.join("7", MOST), Joined::Instead(7));
    }

    #[test]
    fn many_namespaces_that_refuse_are_tried_in_turns_and_seldom() {
        let (mut parked, begun) = (Parked::default(), Instant::now());
        for namespace in 0..1000 {
            parked.refused(&namespace.to_string(), namespace, begun);
        }
        let (mut now, mut tried) = (begun, vec![0; 1000]);

        let mut tries = 0;
        while let Some(due) = parked.due().filter(|due| *due <= begun + Duration::from_secs(3600)) {
            now = now.max(due);
            let namespace = parked.next(now).expect("one that is due");
            tried[namespace] += 1;
            tries += 1;
            parked.refused(&namespace.to_string(), namespace, now);
        }

        assert!(tries <= 3600, "{tries}");
        assert!(tried.iter().all(|tries| *tries >= 2), "{tried:?}");
    }
}
