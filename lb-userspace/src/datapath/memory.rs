//! The flat tables as words, wherever they live: mapped from the kernel, or in our own memory for
//! tests and `explain` without an agent. Both sides read them with the same code from lb-common.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::maps::{self, LINE};
use lb_common::{BackendId, Lines, Slot};

use super::mmap::Mapping;

/// Words of one table.
#[derive(Debug)]
pub enum Cells {
    /// Our own memory.
    Owned(Box<[AtomicU64]>),
    /// Shared with the kernel.
    Mapped(Mapping),
}

impl Cells {
    fn owned(words: usize) -> Self {
        Self::Owned((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Stores a word; one past the end is ignored.
    fn store(&self, index: usize, word: u64) {
        if let Some(cell) = self.get(index) {
            cell.store(word, Ordering::Release);
        }
    }

    fn load(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    fn store_line(&self, line: u32, words: &[u64; LINE]) {
        for (word, value) in words.iter().enumerate() {
            self.store(line as usize * LINE + word, *value);
        }
    }
}

impl Deref for Cells {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Self::Owned(cells) => cells,
            Self::Mapped(mapping) => mapping.words(),
        }
    }
}

impl Lines for Cells {
    fn word(&self, line: u32, word: usize) -> u64 {
        self.load(line as usize * LINE + word)
    }
}

/// All tables that user space writes and a packet reads.
#[derive(Debug)]
pub struct Tables {
    /// Epoch and settings.
    pub config: Cells,
    /// Our addresses, both halves.
    pub addrs: Cells,
    /// VIPs, both halves.
    pub vips: Cells,
    /// Records of balanced VIPs.
    pub records: Cells,
    /// Maglev slots, four to a word.
    pub pool: Cells,
    /// Backends.
    pub backends: Cells,
    /// MACs of our interfaces.
    pub interfaces: Cells,
}

impl Tables {
    /// Empty tables in our own memory.
    pub fn owned() -> Self {
        Self {
            config: Cells::owned(LINE),
            addrs: Cells::owned(2 * maps::ADDR_LINES as usize * LINE),
            vips: Cells::owned(2 * maps::VIP_LINES as usize * LINE),
            records: Cells::owned(maps::RECORDS as usize * LINE),
            pool: Cells::owned(maps::POOL_SLOTS as usize / 4),
            backends: Cells::owned(maps::BACKENDS as usize * LINE),
            interfaces: Cells::owned(maps::INTERFACES as usize),
        }
    }

    /// Reads one Maglev slot.
    pub fn slot(&self, index: u32) -> Slot {
        let word = self.pool.load(index as usize / 4);
        Slot((word >> (16 * (index % 4))) as u16)
    }

    pub(super) fn store_settings(&self, settings: &lb_common::config::Settings) {
        for (index, word) in settings.words().into_iter().enumerate() {
            self.config.store(index + 1, word);
        }
    }

    pub(super) fn store_epoch(&self, epoch: lb_common::Epoch) {
        self.config.store(0, epoch.0);
    }

    pub(super) fn store_interface(&self, index: usize, mac: u64) {
        self.interfaces.store(index % maps::INTERFACES as usize, mac);
    }

    pub(super) fn store_backend(&self, id: BackendId, line: &[u64; LINE]) {
        self.backends.store_line(id.0.into(), line);
    }

    /// Clears the word that says a backend lives: remembered flows notice.
    pub(super) fn forget_backend(&self, id: BackendId) {
        self.backends.store(id.0 as usize * LINE + 6, 0);
    }

    pub(super) fn store_record(&self, index: u16, line: &[u64; LINE]) {
        self.records.store_line(index.into(), line);
    }

    pub(super) fn switch(&self, index: u16, descriptor: lb_common::Descriptor) {
        self.records.store(index as usize * LINE, descriptor.0);
    }

    /// Writes a Maglev table; `base` is a multiple of four.
    pub(super) fn store_slots(&self, base: u32, slots: &[BackendId]) {
        for (index, four) in slots.chunks(4).enumerate() {
            let word = four.iter().rev().fold(0u64, |word, id| word << 16 | u64::from(id.0));
            self.pool.store(base as usize / 4 + index, word);
        }
    }

    pub(super) fn store_lookup(&self, half: u32, addrs: &[[u64; LINE]], vips: &[[u64; LINE]]) {
        for (line, words) in (half * maps::ADDR_LINES..).zip(addrs) {
            self.addrs.store_line(line, words);
        }
        for (line, words) in (half * maps::VIP_LINES..).zip(vips) {
            self.vips.store_line(line, words);
        }
    }
}

/// Per-CPU counters: rows of words, written by the kernel only.
#[derive(Debug)]
pub struct Rows {
    cells: Cells,
    width: usize,
}

impl Rows {
    /// Rows of `width` words.
    pub(super) fn new(cells: Cells, width: usize) -> Self {
        Self { cells, width }
    }

    /// Sum of word `index` over all rows.
    pub fn sum(&self, index: usize) -> u64 {
        self.cells
            .chunks(self.width)
            .filter_map(|row| row.get(index))
            .map(|cell| cell.load(Ordering::Relaxed))
            .fold(0, u64::wrapping_add)
    }
}
