//! How much memory the bodies take that are held, all of them together. A little each may have in any case, so that
//! short ones count nothing and every message gets on; what is beyond is taken from a total, and where that is used
//! up, a file has to do, or the client has to wait. No connection takes all of it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a message holds without asking.
const FREE: usize = 16 * 1024;
/// What is taken at once.
const GRAIN: usize = 64 * 1024;
/// What the others have left is divided by this, and one connection has no more. However many come, each finds
/// something, and those that were greedy while there was much give way as they end.
const PART: u64 = 4;

/// The total.
#[derive(Debug)]
pub(super) struct BodyMemory {
    limit: u64,
    used: AtomicU64,
}

impl BodyMemory {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0) }
    }

    /// Bytes that were taken.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// So many `bytes` more for whoever has taken `own` of those that are used.
    fn take(&self, bytes: u64, own: u64) -> bool {
        let more = |used: u64| {
            let left = self.limit.saturating_sub(used.saturating_sub(own));
            let fits = own.saturating_add(bytes) <= left / PART;
            fits.then(|| used.saturating_add(bytes))
        };
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// What the messages of one connection have taken together.
#[derive(Debug, Clone, Default)]
pub(super) struct Together(Rc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// Of the memory.
    bytes: Cell<usize>,
    /// Connections to endpoints that each is alone on.
    connections: Cell<usize>,
}

/// One of the connections to endpoints, until it is dropped.
pub(super) struct Claim(Rc<Taken>);

impl Together {
    /// One connection to an endpoint more.
    pub(super) fn claim(&self) -> Claim {
        let Self(taken) = self;
        taken.connections.set(taken.connections.get() + 1);
        Claim(Rc::clone(taken))
    }

    /// How many connections to endpoints there are.
    pub(super) fn claimed(&self) -> usize {
        self.0.connections.get()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Self(taken) = self;
        taken.connections.set(taken.connections.get().saturating_sub(1));
    }
}

/// A message's part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<BodyMemory>,
    taken: usize,
    /// With the others of its connection, where that has many at once.
    together: Option<Together>,
}

impl Share {
    /// Nothing yet.
    pub(super) fn new(of: &Arc<BodyMemory>, together: Option<Together>) -> Self {
        Self { of: Arc::clone(of), taken: 0, together }
    }

    /// So many bytes more, all of them or none.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let own = self.together.as_ref().map_or(self.taken, |Together(taken)| taken.bytes.get());
        let is_taken = self.of.take(bytes as u64, own as u64);
        if is_taken {
            self.taken += bytes;
            if let Some(Together(taken)) = &self.together {
                taken.bytes.set(own + bytes);
            }
        }
        is_taken
    }

    /// How many of `more` bytes may be held beside the `held` there are.
    pub(super) fn room(&mut self, held: usize, more: usize) -> usize {
        let missing = (held + more).saturating_sub(FREE + self.taken).next_multiple_of(GRAIN);
        if missing > 0 {
            self.take(missing);
        }
        (FREE + self.taken).saturating_sub(held).min(more)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.used.fetch_sub(self.taken as u64, Ordering::Relaxed);
        if let Some(Together(taken)) = &self.together {
            taken.bytes.set(taken.bytes.get().saturating_sub(self.taken));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_bodies_count_nothing_and_long_ones_have_a_total() {
        let memory = Arc::new(BodyMemory::new(8 * GRAIN as u64));
        let [mut short, mut first, mut second] = [(); 3].map(|()| Share::new(&memory, None));

        assert_eq!(short.room(0, FREE), FREE);
        assert_eq!(memory.used(), 0);
        assert_eq!(first.room(0, FREE + 1), FREE + 1);
        assert_eq!(memory.used(), GRAIN as u64);
        assert_eq!(first.room(FREE + 1, 10), 10);
        assert_eq!(first.room(FREE, 2 * GRAIN), 2 * GRAIN);
        assert_eq!(first.room(FREE + 2 * GRAIN, 1), 0, "a quarter of all");
        assert_eq!(second.room(FREE, GRAIN), GRAIN);
        assert_eq!(second.room(FREE + GRAIN, 1), 0, "a quarter of what was left");
        assert_eq!(short.room(FREE - 10, 100), 100);
        drop([first, short]);
        assert_eq!(second.room(FREE + GRAIN, 1), 1);
        drop(second);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn the_messages_of_a_connection_have_a_quarter_together() {
        let memory = Arc::new(BodyMemory::new(16 * GRAIN as u64));
        let together = Together::default();
        let mut shares: Vec<_> = (0..9).map(|_| Share::new(&memory, Some(together.clone()))).collect();

        let taken = shares.iter_mut().filter_map(|share| share.take(GRAIN).then_some(())).count();

        assert_eq!(taken, 4);
        shares.remove(0);
        assert!(shares.iter_mut().any(|share| share.take(GRAIN)), "what was given back");
        assert!(Share::new(&memory, None).take(3 * GRAIN), "a quarter of what is left");
        drop(shares);
        assert_eq!((memory.used(), together.0.bytes.get()), (0, 0));
    }

    #[test]
    fn those_who_come_late_find_something() {
        let memory = Arc::new(BodyMemory::new(256 << 20));
        let mut greedy: Vec<_> = (0..10).map(|_| Share::new(&memory, None)).collect();
        greedy.iter_mut().for_each(|share| while share.take(GRAIN) {});

        let mut last = Share::new(&memory, None);

        assert_eq!(last.room(0, 3 << 20), 3 << 20);
    }
}
