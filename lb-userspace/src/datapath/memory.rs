//! The flat tables as words, wherever they live: mapped from the kernel, or in our own memory for
//! tests and `explain` without an agent. Both sides read them with the same code from lb-common.

use std::collections::BTreeSet;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lb_common::config::{self, Past};
use lb_common::flows::{Entry, FlowWords};
use lb_common::lease::{Lease, LeaseWords};
use lb_common::maps::{self, LINE, at, count, row};
use lb_common::steer::Memory;
use lb_common::verdict::Event;
use lb_common::{ABI_VERSION, BackendId, Lines, Slot, Verdict, backend};

use super::mmap::Mapping;

/// Words of one table.
#[derive(Debug)]
pub enum Cells {
    /// Our own memory.
    Owned(Box<[AtomicU64]>),
    /// A part of what is shared with the kernel.
    Mapped(Arc<Mapping>, Range<usize>),
}

impl Cells {
    fn owned(words: usize) -> Self {
        Self::Owned((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    /// Stores a word; one past the end is ignored.
    pub(super) fn store(&self, index: usize, word: u64) {
        if let Some(cell) = self.get(index) {
            cell.store(word, Ordering::Release);
        }
    }

    pub(super) fn load(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |cell| cell.load(Ordering::Acquire))
    }

    fn store_line(&self, line: u32, words: &[u64; LINE]) {
        for (word, value) in words.iter().enumerate() {
            self.store(line as usize * LINE + word, *value);
        }
    }

    /// Reads a line.
    pub fn line(&self, line: u32) -> [u64; LINE] {
        std::array::from_fn(|word| self.word(line, word))
    }
}

impl Deref for Cells {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        match self {
            Self::Owned(cells) => cells,
            Self::Mapped(mapping, part) => mapping.words().get(part.clone()).unwrap_or_default(),
        }
    }
}

impl Lines for Cells {
    fn word(&self, line: u32, word: usize) -> u64 {
        self.load(line as usize * LINE + word)
    }
}

/// All tables that user space lays out and a packet reads.
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
    /// Remembered flows. The program writes them, too.
    pub flows: Cells,
    /// Leases of translated flows. The program writes them; we end them.
    pub leases: Cells,
    /// What may be ours, eight bytes to a word.
    pub filter: Cells,
}

impl Tables {
    /// Empty tables in our own memory.
    pub fn owned() -> Self {
        Self::of(|part| Cells::owned(part.len()))
    }

    /// The tables within the whole map, of which `map` maps parts: the flow table is one of its own.
    pub(super) fn mapped<E>(map: impl Fn(Range<usize>) -> Result<Mapping, E>) -> Result<Self, E> {
        let parts = [0..at::FLOWS, at::FLOWS..at::LEASES, at::LEASES..at::END];
        let mut mapped = Vec::new();
        for part in parts {
            mapped.push((Arc::new(map(part.clone())?), part));
        }
        Ok(Self::of(|cells| {
            let part = mapped.iter().find(|(_, part)| part.contains(&cells.start));
            part.map_or(Cells::Owned(Box::default()), |(mapping, part)| {
                Cells::Mapped(Arc::clone(mapping), cells.start - part.start..cells.end - part.start)
            })
        }))
    }

    /// Has no more of the flow table mapped than is in use, as the settings say.
    pub(super) fn leave_unused_flows(&mut self) {
        let used = 1usize << self.flow_bits();
        if let Cells::Mapped(mapping, part) = &mut self.flows
            && let Some(mapping) = Arc::get_mut(mapping)
        {
            mapping.truncate(used);
            part.end = part.end.min(used);
        }
    }

    fn of(cells: impl Fn(Range<usize>) -> Cells) -> Self {
        Self {
            config: cells(at::CONFIG..at::INTERFACES),
            interfaces: cells(at::INTERFACES..at::ADDRS),
            addrs: cells(at::ADDRS..at::VIPS),
            vips: cells(at::VIPS..at::RECORDS),
            records: cells(at::RECORDS..at::BACKENDS),
            backends: cells(at::BACKENDS..at::POOL),
            pool: cells(at::POOL..at::FLOWS),
            flows: cells(at::FLOWS..at::LEASES),
            leases: cells(at::LEASES..at::FILTER),
            filter: cells(at::FILTER..at::END),
        }
    }

    pub(super) fn store_settings(&self, settings: &lb_common::config::Settings) {
        for (index, word) in settings.words().into_iter().enumerate() {
            self.config.store(index + 1, word);
        }
        for index in 0..maps::INTERFACES as usize {
            self.store_interface(index, self.interfaces.load(index));
        }
    }

    /// Line 1 of the configuration; see [`lb_common::capture`].
    pub(super) fn store_filter(&self, filter: &lb_common::capture::Filter) {
        self.config.store_line(1, &filter.words());
    }

    /// Marks tables as complete, and as made at `now`: they serve the next agent.
    pub(super) fn store_version(&self, now: u32) {
        self.config.store(config::BORN_WORD, now.into());
        self.keep_version();
    }

    /// Marks tables that were taken over as our own: they may have been of a layout before ours.
    pub(super) fn keep_version(&self) {
        self.config.store(config::ABI_WORD, ABI_VERSION.into());
    }

    /// Notes what they do not know of the past.
    pub(super) fn store_past(&self, past: Past) {
        self.config.store(config::PAST_WORD, past.0);
    }

    /// Notes what they know by now, with so many slots contested: none that was guessed, and, as after the grace time every flow
    /// was seen that was not silent for longer, those too.
    pub(super) fn review_past(&self, contested: usize, now: u32, grace: u32) {
        let before = config::past(&self.config);
        let mut past = before;
        if contested == 0 {
            past = past.without_guesses();
        }
        if now.wrapping_sub(past.began()) > grace.saturating_add(1) {
            past = past.remembered();
        }
        if past != before {
            self.store_past(past);
        }
    }

    /// When the tables were made.
    pub(super) fn born(&self) -> u32 {
        self.config.load(config::BORN_WORD) as u32
    }

    pub(super) fn store_epoch(&self, epoch: lb_common::Epoch) {
        self.config.store(0, epoch.0);
        self.open_shortcuts();
    }

    /// Says of an interface what [`maps::interface`] tells, and whether packets are shown.
    pub(super) fn store_interface(&self, index: usize, word: u64) {
        let shown = if word != 0 && config::capturing(&self.config) { maps::SHOWN } else { 0 };
        self.interfaces.store(index % maps::INTERFACES as usize, word & !maps::SHOWN | shown);
    }

    pub(super) fn store_backend(&self, id: BackendId, lines: &[[u64; LINE]; 2]) {
        let [first, second] = lines;
        // The second first: it means nothing until the first says that the backend lives.
        self.backends.store_line(2 * u32::from(id.0) + 1, second);
        // Its last word, the pool's tag, before the identity: who is killed in between leaves no
        // living backend behind that seems to be another pool's.
        let first_word = 2 * id.0 as usize * LINE;
        for word in [0, 1, 2, 3, 4, 5, 7, 6] {
            self.backends.store(first_word + word, first[word]);
        }
    }

    /// Clears the word that says a backend lives: remembered flows notice.
    pub(super) fn forget_backend(&self, id: BackendId) {
        self.backends.store(2 * id.0 as usize * LINE + 6, 0);
    }

    pub(super) fn store_record(&self, index: u16, line: &[u64; LINE]) {
        let [descriptor, rules, ranges, rest @ ..] = *line;
        let [a, b, c, d, e] = rest;
        let ranges = ranges | u64::from(index) << 32;
        self.records.store_line(index.into(), &[descriptor, rules, ranges, a, b, c, d, e]);
    }

    pub(super) fn switch(&self, index: u16, descriptor: lb_common::Descriptor) {
        self.records.store(index as usize * LINE, descriptor.0);
    }

    pub(super) fn store_rules(&self, index: u16, rules: lb_common::Rules) {
        self.records.store(index as usize * LINE + 1, rules.0);
    }

    /// Writes a Maglev table; `base` is a multiple of four.
    pub(super) fn store_slots(&self, base: u32, slots: &[Slot]) {
        for (index, four) in slots.chunks(4).enumerate() {
            let word = four.iter().rev().fold(0u64, |word, slot| word << 16 | u64::from(slot.0));
            self.pool.store(base as usize / 4 + index, word);
        }
    }

    /// Writes one slot; packets may mark its neighbours meanwhile.
    pub(super) fn store_slot(&self, index: u32, slot: Slot) {
        let shift = 16 * (index % 4);
        if let Some(word) = self.pool.get(index as usize / 4) {
            word.update(Ordering::AcqRel, Ordering::Acquire, |word| {
                word & !(0xffff << shift) | u64::from(slot.0) << shift
            });
        }
    }

    /// Clears the mark of a slot.
    pub(super) fn unmark_slot(&self, index: u32) {
        if let Some(word) = self.pool.get(index as usize / 4) {
            word.fetch_and(!(u64::from(Slot::MARK) << (16 * (index % 4))), Ordering::AcqRel);
        }
    }

    /// Clears an entry of the flow table, unless the program wrote it meanwhile.
    pub(super) fn clear_flow(&self, index: u32, entry: Entry) {
        if let Some(cell) = self.flows.get(index as usize) {
            let _ = cell.compare_exchange(entry.0, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Says of an entry that it is not spare, unless the program wrote it meanwhile.
    pub(super) fn need_flow(&self, index: u32, entry: Entry) {
        if let Some(cell) = self.flows.get(index as usize) {
            let needed = entry.spare(false).0;
            let _ = cell.compare_exchange(entry.0, needed, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Clears the flows of backends that are gone. A flow that the program writes at the same
    /// moment stays: it is another one.
    pub(super) fn purge_flows(&self, gone: &BTreeSet<BackendId>) {
        for cell in self.flows.iter().take(1 << self.flow_bits()) {
            let word = cell.load(Ordering::Relaxed);
            if word != 0 && gone.contains(&Entry(word).backend()) {
                let _ = cell.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Ends the leases of backends that are gone. What is granted at the same moment is another's.
    pub(super) fn end_leases(&self, gone: &BTreeSet<BackendId>) {
        // The second word of a pair is the lease; without it the first belongs to nobody.
        for cell in self.leases.iter().skip(1).step_by(2) {
            let word = cell.load(Ordering::Relaxed);
            if word != 0 && gone.contains(&Lease(word).backend()) {
                let _ = cell.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }

    /// Ends every lease: the flows may be remembered otherwise than they were.
    pub(super) fn end_all_leases(&self) {
        self.leases.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
    }

    /// Clears the flows of ids that no backend has: an agent that was killed between forgetting a
    /// backend and its flows left them, and the next backend of that id must not get them.
    pub fn purge_flows_of_nobody(&self) {
        let named: BTreeSet<BackendId> = self.flow_words().map(|word| Entry(word).backend()).collect();
        let alive = |id: BackendId| backend::identity(&self.backends, id).is_alive();
        let gone: BTreeSet<BackendId> = named.into_iter().filter(|id| id.0 != 0 && !alive(*id)).collect();
        if !gone.is_empty() {
            self.purge_flows(&gone);
        }
    }

    /// Forgets every flow.
    pub(super) fn clear_flows(&self) {
        let used = self.flows.iter().take(1 << self.flow_bits());
        used.for_each(|cell| cell.store(0, Ordering::Relaxed));
    }

    /// The words of the flow table in use.
    pub fn flow_words(&self) -> impl Iterator<Item = u64> {
        let used = 1usize << self.flow_bits();
        self.flows.iter().take(used).map(|cell| cell.load(Ordering::Relaxed))
    }

    pub(super) fn store_lookup(&self, half: u32, addrs: &[[u64; LINE]], vips: &[[u64; LINE]]) {
        self.narrow_shortcuts(addrs, vips);
        for (line, words) in (half * maps::ADDR_LINES..).zip(addrs) {
            self.addrs.store_line(line, words);
        }
        for (line, words) in (half * maps::VIP_LINES..).zip(vips) {
            self.vips.store_line(line, words);
        }
    }
}

impl FlowWords for Tables {
    fn flow(&self, index: u32) -> u64 {
        self.flows.load(index as usize)
    }

    fn swap_flow(&self, index: u32, word: u64) -> u64 {
        self.flows.get(index as usize).map_or(0, |cell| cell.swap(word, Ordering::AcqRel))
    }

    fn flow_bits(&self) -> u32 {
        lb_common::config::flow_bits(&self.config)
    }

    fn grace(&self) -> u32 {
        lb_common::config::grace(&self.config)
    }
}

impl LeaseWords for Tables {
    fn lease_word(&self, first: u32, word: u32) -> u64 {
        self.leases.load(2 * first as usize + word as usize)
    }

    fn set_lease_word(&self, first: u32, word: u32, value: u64) {
        self.leases.store(2 * first as usize + word as usize, value);
    }
}

impl Lines for &Cells {
    fn word(&self, line: u32, word: usize) -> u64 {
        (**self).word(line, word)
    }
}

impl Memory for Tables {
    type Backends<'a> = &'a Cells;

    fn backends(&self) -> &Cells {
        &self.backends
    }

    fn slot(&self, index: u32) -> Slot {
        let word = self.pool.load(index as usize / 4);
        Slot((word >> (16 * (index % 4))) as u16)
    }

    fn mark_used(&self, index: u32) {
        if let Some(word) = self.pool.get(index as usize / 4) {
            word.fetch_or(u64::from(Slot::MARK) << (16 * (index % 4)), Ordering::AcqRel);
        }
    }
}

/// Tables that are read and not written: asking where a flow goes must not make it go there.
#[derive(Debug, Clone, Copy)]
pub struct ReadOnly<'a>(pub &'a Tables);

impl FlowWords for ReadOnly<'_> {
    fn flow(&self, index: u32) -> u64 {
        self.0.flow(index)
    }

    /// Tells what would have been pushed out.
    fn swap_flow(&self, index: u32, _: u64) -> u64 {
        self.0.flow(index)
    }

    fn flow_bits(&self) -> u32 {
        self.0.flow_bits()
    }

    fn grace(&self) -> u32 {
        self.0.grace()
    }
}

impl Memory for ReadOnly<'_> {
    type Backends<'a>
        = &'a Cells
    where
        Self: 'a;

    fn backends(&self) -> &Cells {
        &self.0.backends
    }

    fn slot(&self, index: u32) -> Slot {
        Memory::slot(self.0, index)
    }

    fn mark_used(&self, _: u32) {}
}

/// Counters: a row for each CPU, which only the kernel writes, and the last one, which only we do; in one map or several.
/// What one counts is the sum of all rows.
#[derive(Debug)]
pub struct Counters(Vec<Cells>);

impl Counters {
    /// So many `rows` in each of these maps.
    pub(super) fn mapped(maps: Vec<Mapping>, rows: usize) -> Self {
        Self(maps.into_iter().map(|map| Cells::Mapped(Arc::new(map), 0..rows * row::END)).collect())
    }

    /// One CPU's and ours, in our own memory.
    #[cfg(test)]
    pub(super) fn owned() -> Self {
        Self(vec![Cells::owned(2 * row::END)])
    }

    /// Packets with a verdict.
    pub fn verdict(&self, verdict: Verdict) -> u64 {
        self.sum(row::VERDICTS + verdict as usize)
    }

    /// How often an event happened.
    pub fn event(&self, event: Event) -> u64 {
        self.sum(row::VERDICTS + event as usize)
    }

    /// What is counted of a backend or VIP.
    pub(super) fn totals(&self, of: Counted) -> Totals {
        let first = of.first();
        Totals {
            packets: self.sum(first + count::PACKETS),
            bytes: self.sum(first + count::BYTES),
            flows: self.sum(first + count::FLOWS),
        }
    }

    fn sum(&self, index: usize) -> u64 {
        let rows = self.0.iter().flat_map(|bank| bank.chunks(row::END));
        let cells = rows.filter_map(|row| row.get(index)).map(|cell| cell.load(Ordering::Relaxed));
        cells.fold(0, u64::wrapping_add)
    }

    /// Counts more of it in our own row.
    pub(super) fn add(&self, of: Counted, more: Totals) {
        let Some(own) = self.0.last().and_then(|bank| bank.chunks(row::END).last()) else { return };
        self.add_to(own, of, more);
    }

    /// Counts as the kernel does.
    #[cfg(test)]
    pub(super) fn count(&self, of: Counted, more: Totals) {
        let Some(first) = self.0.first().and_then(|bank| bank.chunks(row::END).next()) else { return };
        self.add_to(first, of, more);
    }

    fn add_to(&self, row: &[AtomicU64], of: Counted, Totals { packets, bytes, flows }: Totals) {
        let words = [(count::PACKETS, packets), (count::BYTES, bytes), (count::FLOWS, flows)];
        for (word, more) in words {
            if let Some(cell) = row.get(of.first() + word) {
                // One that wraps is less than nothing, which the other rows make up for.
                cell.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

/// What packets, bytes and flows are counted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// A backend.
    Backend(BackendId),
    /// The VIP of a record, where several share a pool.
    Vip(u16),
}

impl Counted {
    /// Its first word within a row.
    fn first(self) -> usize {
        match self {
            Self::Backend(id) => row::BACKENDS + usize::from(id.0) * count::WORDS,
            Self::Vip(record) => row::VIPS + usize::from(record) * count::WORDS,
        }
    }
}

/// Packets, bytes and flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Totals {
    /// Packets sent to backends.
    pub packets: u64,
    /// Bytes of their IP packets.
    pub bytes: u64,
    /// Flows begun, as far as they can be told: TCP by its SYN, UDP where flows are remembered.
    pub flows: u64,
}

impl Totals {
    /// What was added since.
    pub fn since(self, then: Self) -> Self {
        let Self { packets, bytes, flows } = then;
        Self {
            packets: self.packets.wrapping_sub(packets),
            bytes: self.bytes.wrapping_sub(bytes),
            flows: self.flows.wrapping_sub(flows),
        }
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, Self { packets, bytes, flows }: Self) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes);
        self.flows = self.flows.wrapping_add(flows);
    }
}
