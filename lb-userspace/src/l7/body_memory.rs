//! How much memory the bodies take that are held, all of them together. A little each may have in any case, so that
//! short ones count nothing and every message gets on; what is beyond is taken from a total, and where that is used
//! up, a file has to do, or the client has to wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a message holds without asking.
const FREE: usize = 16 * 1024;
/// What is taken at once.
const GRAIN: usize = 64 * 1024;

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

    fn take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// A message's part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<BodyMemory>,
    taken: usize,
}

impl Share {
    /// Nothing yet.
    pub(super) fn new(of: &Arc<BodyMemory>) -> Self {
        Self { of: Arc::clone(of), taken: 0 }
    }

    /// So many bytes more, all of them or none.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let is_taken = self.of.take(bytes as u64);
        self.taken += if is_taken { bytes } else { 0 };
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_bodies_count_nothing_and_long_ones_have_a_total() {
        let memory = Arc::new(BodyMemory::new(2 * GRAIN as u64));
        let [mut short, mut first, mut second] = [(); 3].map(|()| Share::new(&memory));

        assert_eq!(short.room(0, FREE), FREE);
        assert_eq!(memory.used(), 0);
        assert_eq!(first.room(0, FREE + 1), FREE + 1);
        assert_eq!(memory.used(), GRAIN as u64);
        assert_eq!(first.room(FREE + 1, 10), 10);
        assert_eq!(second.room(FREE, GRAIN), GRAIN);
        assert_eq!(first.room(FREE + GRAIN, 1), 0, "all is taken");
        assert_eq!(short.room(FREE - 10, 100), 10, "but not what is free");
        drop(second);
        assert_eq!(first.room(FREE + GRAIN, 1), 1);
        drop(first);
        assert_eq!(memory.used(), 0);
    }
}
