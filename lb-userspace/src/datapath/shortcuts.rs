//! Lays the fast path's shortcuts out (see [`lb_common::shortcut`]), as the address and VIP tables say: before a
//! switch what either half says is left to the tables, after it the shortcuts say what the tables do.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::maps::{self, LINE};
use lb_common::shortcut::{self, ADDR_WORDS, Folded, KEY_WORD, Key, MORE_WORD, SEED_WORD, ways};
use lb_common::{Addr, Epoch, Lines, VipEntry, config, flow};

use super::layout;
use super::memory::Tables;
use super::mmap;

/// What the fast path may decide by one half of the address and VIP tables.
#[derive(Debug, Default)]
struct Shortcuts {
    /// Bytes of the filter that are set.
    ours: BTreeSet<u32>,
    /// The VIP of each record that decides alone: balanced for everybody, at an address that is not the host's.
    records: BTreeMap<u16, (Key, Addr)>,
}

impl Shortcuts {
    /// By the lines of both tables.
    fn of(addrs: impl IntoIterator<Item = [u64; LINE]>, vips: impl IntoIterator<Item = [u64; LINE]>) -> Self {
        let (mut all, mut by_id) = (Self::default(), BTreeMap::new());
        for (addr, entry) in addrs.into_iter().flat_map(layout::addrs_of) {
            all.ours.insert(Folded::of(addr).byte());
            if entry.odd() == 0 {
                by_id.insert(entry.id(), addr);
            }
        }
        for entry in vips.into_iter().flatten().map(VipEntry) {
            let (id, wire_port, protocol) = entry.place();
            if let (0, Some(addr)) = (entry.odd(), by_id.get(&id)) {
                let key = Key::new(Folded::of(*addr), wire_port, protocol);
                if ways(key.line()).any(|line| line == entry.record()) {
                    all.records.insert(entry.record() as u16, (key, *addr));
                }
            }
        }
        all
    }
}

impl Tables {
    /// Has the tables decide wherever another half, with these lines, would say otherwise.
    pub(super) fn narrow_shortcuts(&self, addrs: &[[u64; LINE]], vips: &[[u64; LINE]]) {
        let next = Shortcuts::of(addrs.iter().copied(), vips.iter().copied());
        for byte in next.ours {
            let (word, bit) = (byte as usize / 8, 1 << (8 * (byte % 8)));
            self.filter.store(word, self.filter.load(word) | bit);
        }
        for record in 0..maps::RECORDS as u16 {
            let word = self.records.word(record.into(), KEY_WORD);
            let stays = next
                .records
                .get(&record)
                .is_some_and(|(key, addr)| key.0 == word && self.named(record) == *addr);
            if !stays && word != 0 {
                self.store_word(record, KEY_WORD, 0);
            }
        }
    }

    /// Has the shortcuts say what the half in force does.
    pub fn open_shortcuts(&self) {
        let Shortcuts { ours, records } = self.in_force();
        let mut filter = vec![0; shortcut::FILTER as usize / 8];
        for byte in ours {
            if let Some(word) = filter.get_mut(byte as usize / 8) {
                *word |= 1 << (8 * (byte % 8));
            }
        }
        filter.into_iter().enumerate().for_each(|(at, word)| self.filter.store(at, word));
        let mut moved: BTreeSet<u16> = BTreeSet::new();
        for (record, (key, addr)) in &records {
            self.store_word(*record, ADDR_WORDS[0], addr.hi);
            self.store_word(*record, ADDR_WORDS[1], addr.lo);
            let seed = flow::seed(*addr, key.wire_port(), key.proto().into(), config::hash_key(&self.config));
            self.store_word(*record, SEED_WORD, seed);
            if u32::from(*record) != key.line() {
                moved.insert(key.line() as u16);
            }
        }
        if !cfg!(target_arch = "x86_64") {
            // Other processors may load what stands behind a key before the key: no packet that is under way may find one.
            mmap::wait_for_readers();
        }
        for record in 0..maps::RECORDS as u16 {
            self.store_word(record, KEY_WORD, records.get(&record).map_or(0, |(key, _)| key.0));
            self.store_word(record, MORE_WORD, moved.contains(&record).into());
        }
    }

    fn in_force(&self) -> Shortcuts {
        let epoch: Epoch = config::epoch(&self.config);
        if epoch.is_empty() {
            return Shortcuts::default();
        }
        let lines = |bits: u32, most: u32| (epoch.half() * most..).take(1 << bits.min(most.trailing_zeros()));
        Shortcuts::of(
            lines(epoch.addr_bits(), maps::ADDR_LINES).map(|line| self.addrs.line(line)),
            lines(epoch.vip_bits(), maps::VIP_LINES).map(|line| self.vips.line(line)),
        )
    }

    /// The record that the fast path finds for a VIP.
    #[cfg(test)]
    pub(super) fn shortcut(&self, addr: Addr, key: Key) -> Option<u32> {
        let word = |line, word| self.records.word(line, word);
        let is_of = |line| addr.is_v4() || self.named(line as u16) == addr;
        shortcut::find(key, |line| line, word, is_of)
    }

    /// Whether the fast path looks for it at all.
    #[cfg(test)]
    pub(super) fn may_be_ours(&self, addr: Addr) -> bool {
        let byte = Folded::of(addr).byte();
        self.filter.load(byte as usize / 8) >> (8 * (byte % 8)) & 1 != 0
    }

    fn store_word(&self, record: u16, at: usize, word: u64) {
        self.records.store(usize::from(record) * LINE + at, word);
    }

    /// The address that a record says it is for.
    fn named(&self, record: u16) -> Addr {
        let [hi, lo] = ADDR_WORDS.map(|word| self.records.word(record.into(), word));
        Addr { hi, lo }
    }
}
