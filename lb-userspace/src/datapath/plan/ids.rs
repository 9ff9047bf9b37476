//! Small numbers that name things in the tables.

use std::collections::{BTreeSet, VecDeque};

use lb_common::maps;
use lb_common::shortcut::{self, Key};

/// Hands out numbers; a freed one comes back as late as possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ids {
    next: u16,
    end: u16,
    free: VecDeque<u16>,
}

impl Ids {
    /// Numbers from `first` to the one before `end`.
    pub(super) fn new(first: u16, end: u16) -> Self {
        Self { next: first, end, free: VecDeque::new() }
    }

    /// The same with some of them taken.
    pub(super) fn without(first: u16, end: u16, taken: &BTreeSet<u16>) -> Self {
        let next = taken.range(first..end).next_back().map_or(first, |last| last + 1);
        Self { next, end, free: (first..next).filter(|id| !taken.contains(id)).collect() }
    }

    pub(super) fn take(&mut self) -> Option<u16> {
        if self.next < self.end {
            self.next += 1;
            return Some(self.next - 1);
        }
        self.free.pop_front()
    }

    pub(super) fn give_back(&mut self, id: u16) {
        self.free.push_back(id);
    }
}

/// Numbers of records: the lines that they stand in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RecordIds {
    taken: BTreeSet<u16>,
}

impl RecordIds {
    /// All of them but these.
    pub(super) fn without(taken: BTreeSet<u16>) -> Self {
        Self { taken }
    }

    /// A line for the record of a VIP: one that the fast path finds it in, or else any.
    pub(super) fn take(&mut self, key: Key) -> Option<u16> {
        let lines = shortcut::ways(key.line()).chain(0..maps::RECORDS);
        let free = lines.map(|line| line as u16).find(|line| !self.taken.contains(line))?;
        self.taken.insert(free);
        Some(free)
    }

    pub(super) fn give_back(&mut self, id: u16) {
        self.taken.remove(&id);
    }
}
