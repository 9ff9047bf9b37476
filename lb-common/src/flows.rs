//! The flow table: which backend a remembered flow has.
//!
//! One word per flow, eight to a bucket of one cache line, so that asking costs one line whatever
//! the number of flows. A full bucket forgets what is spare, or else the flow that was silent longest. Two CPUs
//! that write one bucket at once may choose one place: the later one finds there what it has not seen, and puts
//! that elsewhere.

use crate::{BackendId, Flow, HashKey};

/// What holds the entries: shared memory in the kernel, the same memory or our own in user space.
pub trait FlowWords {
    /// Entry `index`, below [`crate::maps::FLOWS`].
    fn flow(&self, index: u32) -> u64;
    /// Writes entry `index` and returns what stood there, in one step.
    fn swap_flow(&self, index: u32, word: u64) -> u64;
    /// log2 of the entries in use.
    fn flow_bits(&self) -> u32;
    /// The grace time, in units of [`clock`].
    fn grace(&self) -> u32;
    /// Entry `way` of the bucket that begins at `first`.
    #[inline(always)]
    fn way(&self, first: u32, way: u32) -> u64 {
        self.flow(first + way)
    }
    /// All ones for a negative number, else 0; in such a way that the compiler does not make a branch
    /// of what is done with it.
    #[inline(always)]
    fn sign(word: u64) -> u64 {
        (word as i64 >> 63) as u64
    }
    /// [`insert`], as a function of its own where whoever verifies the program would follow every path
    /// through it from every place that it is called from.
    #[inline(always)]
    fn remember(&self, entry: Entry, hash: u64, now: u32) -> Noted
    where
        Self: Sized,
    {
        insert(self, entry, hash, now)
    }
}

/// One remembered flow: backend in bits 0 to 14, time it was last seen in bits 15 to 31, in bit 32 whether it is
/// spare, tag in bits 33 to 63. 0: none.
///
/// *Spare* is what need not be remembered as slots stand: without it the flow would have the same backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Entry(pub u64);

/// Entries of a bucket.
pub const WAYS: u32 = 8;

/// Times are kept modulo this many units: 39 hours, more than the longest affinity timeout.
const CLOCK: u32 = 1 << 17;

/// What was written into the table for a packet: any of the constants together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Noted(pub u64);

impl Noted {
    /// Nothing, or that its flow was seen again.
    pub const NOTHING: Self = Self(0);
    /// Its flow.
    pub const FLOW: Self = Self(1);
    /// A spare flow that was seen within the grace time had to be forgotten for it.
    pub const SPARE: Self = Self(2);
    /// Another flow that was seen within the grace time had to.
    pub const NEEDED: Self = Self(4);

    /// Both together.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `what` is part of it.
    #[inline(always)]
    pub const fn has(self, what: Self) -> bool {
        self.0 & what.0 != 0
    }

    /// What it cost alone.
    #[inline(always)]
    pub(crate) const fn cost(self) -> Self {
        Self(self.0 & !Self::FLOW.0)
    }
}

/// Unit of time in tables and entries: 2^30 ns, so that a shift converts.
#[inline(always)]
pub const fn clock(nanoseconds: u64) -> u32 {
    (nanoseconds >> 30) as u32
}

impl Entry {
    /// Entry of a flow.
    #[inline(always)]
    pub const fn new(hash: u64, backend: BackendId, now: u32) -> Self {
        Self(backend.0 as u64 & 0x7fff | ((now % CLOCK) as u64) << 15 | hash << 33)
    }

    /// The same, spare or not.
    #[inline(always)]
    pub const fn spare(self, is_spare: bool) -> Self {
        Self(self.0 & !(1 << 32) | (is_spare as u64) << 32)
    }

    /// Whether it is spare.
    #[inline(always)]
    pub const fn is_spare(self) -> bool {
        self.0 >> 32 & 1 != 0
    }

    /// Its backend; id 0: no entry.
    #[inline(always)]
    pub const fn backend(self) -> BackendId {
        BackendId(self.0 as u16 & 0x7fff)
    }

    /// Units since it was last seen.
    #[inline(always)]
    pub const fn age(self, now: u32) -> u32 {
        now.wrapping_sub((self.0 >> 15) as u32) % CLOCK
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether nothing is lost where `other` takes its place in a bucket: it is none, or of the same flow.
    #[inline(always)]
    const fn makes_way_for(self, other: Self) -> bool {
        self.is_none() || self.tag() == other.tag()
    }

    #[inline(always)]
    const fn tag(self) -> u64 {
        self.0 >> 33
    }

    /// What it costs to forget it.
    #[inline(always)]
    const fn loss(self, now: u32, grace: u32) -> Noted {
        if self.is_none() || self.age(now) > grace {
            Noted::NOTHING
        } else if self.is_spare() {
            Noted::SPARE
        } else {
            Noted::NEEDED
        }
    }

    /// Slot of its flow in a table of `1 << bits` slots, at most 31 bits: the tag is the end of the
    /// hash that slots are made from.
    pub const fn slot(self, bits: u32) -> u32 {
        self.tag() as u32 & ((1u32 << bits) - 1)
    }
}

/// Hash under which a source is remembered, for affinity. No five-tuple hashes like it: its
/// protocol is above 255.
#[inline(always)]
pub const fn source_hash(flow: &Flow, pool_tag: u16, key: HashKey) -> u64 {
    let source = Flow { dst: flow.src, ports: 0, proto: 0x1_0000 | pool_tag as u32, ..*flow };
    source.hash(key)
}

/// Index of the first entry of a hash's bucket.
#[inline(always)]
fn bucket(table: &impl FlowWords, hash: u64) -> u32 {
    ((hash >> 32) as u32) << 3 & ((1 << table.flow_bits()) - 1)
}

/// Tag of a hash's entry.
#[inline(always)]
const fn tag(hash: u64) -> u64 {
    hash & 0x7fff_ffff
}

/// The entry of a hash, and its place; an empty one without a place of its own.
#[inline(always)]
pub fn find(table: &impl FlowWords, hash: u64) -> (Entry, u32) {
    let first = bucket(table, hash);
    let (mut found, mut place) = (0, first as u64);
    for way in 0..WAYS {
        let word = table.way(first, way);
        let it = ones_if_zero(Entry(word).tag() ^ tag(hash));
        found = select(it, word, found);
        place = select(it, (first + way) as u64, place);
    }
    (Entry(found), place as u32)
}

/// The entry of a hash alone, for a packet that has no time: really without branches, one of which
/// would be mispredicted for nearly every flow.
#[inline(always)]
pub fn peek<T: FlowWords>(table: &T, hash: u64) -> Entry {
    let first = bucket(table, hash);
    let mut found = 0;
    for way in 0..WAYS {
        let word = table.way(first, way);
        let it = T::sign((Entry(word).tag() ^ tag(hash)).wrapping_sub(1));
        found = select(it, word, found);
    }
    Entry(found)
}

/// Remembers a flow of this bucket (`hash`: its own, or that of any flow there) that has no entry. What is spare
/// goes first for it, then what was silent longest; for what is spare itself goes only what was silent for longer
/// than the grace time, or else it is not remembered.
///
/// What another CPU has put into the place since we looked gets another one.
#[inline(always)]
pub fn insert(table: &impl FlowWords, entry: Entry, hash: u64, now: u32) -> Noted {
    let first = bucket(table, hash);
    let (mut entry, mut noted) = (entry, Noted::NOTHING);
    for _ in 0..TRIES {
        // Older than any: first an empty place, then what is spare.
        let (empty, spare) = (2 * CLOCK as u64, if entry.is_spare() { 0 } else { CLOCK as u64 });
        let (mut place, mut oldest, mut there) = (first as u64, 0, 0);
        for way in 0..WAYS {
            let word = table.way(first, way);
            let age = Entry(word).age(now) as u64
                | ones_if_zero(word) & empty
                | (word >> 32 & 1).wrapping_neg() & spare;
            let younger = ones_if_less(age, oldest);
            oldest = select(younger, oldest, age);
            there = select(younger, there, word);
            place = select(younger, place, (first + way) as u64);
        }
        let loss = Entry(there).loss(now, table.grace());
        if entry.is_spare() && loss.0 != Noted::NOTHING.0 {
            // Of no use in the first place, or lost to a flow of another CPU.
            return if noted.0 == Noted::NOTHING.0 { noted } else { noted.and(Noted::SPARE) };
        }
        noted = Noted::FLOW;
        let was = Entry(table.swap_flow(place as u32, entry.0));
        if was.0 == there {
            return noted.and(loss);
        }
        if was.makes_way_for(entry) {
            return noted;
        }
        entry = was;
    }
    noted.and(entry.loss(now, table.grace()))
}

/// Who finds another CPU's flow so often within nanoseconds gives in.
const TRIES: u32 = 4;

/// Writes a flow's `entry` anew, which stood at `place` as `was`. What another CPU has put there since gets
/// another place. Returns what that costs.
#[inline(always)]
pub fn renew(table: &impl FlowWords, place: u32, was: Entry, entry: Entry, hash: u64, now: u32) -> Noted {
    let there = Entry(table.swap_flow(place, entry.0));
    if there.0 == was.0 || there.makes_way_for(entry) {
        return Noted::NOTHING;
    }
    let noted = table.remember(there, hash, now);
    if noted.0 == Noted::NOTHING.0 { Noted::SPARE } else { noted.cost() }
}

// Without branches: which way it is cannot be predicted, and the verifier would follow each of
// two to the power of eight paths.

#[inline(always)]
const fn ones_if_zero(x: u64) -> u64 {
    ((x | x.wrapping_neg()) >> 63).wrapping_sub(1)
}

/// Both below 2^63.
#[inline(always)]
const fn ones_if_less(a: u64, b: u64) -> u64 {
    (a.wrapping_sub(b) as i64 >> 63) as u64
}

#[inline(always)]
const fn select(ones: u64, then: u64, otherwise: u64) -> u64 {
    otherwise ^ (ones & (then ^ otherwise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::vec::Vec;

    struct Table(RefCell<Vec<u64>>, u32);

    impl Table {
        fn new(bits: u32) -> Self {
            Self(RefCell::new(std::vec![0; 1 << bits]), bits)
        }
    }

    impl FlowWords for Table {
        fn flow(&self, index: u32) -> u64 {
            self.0.borrow()[index as usize]
        }

        fn swap_flow(&self, index: u32, word: u64) -> u64 {
            core::mem::replace(&mut self.0.borrow_mut()[index as usize], word)
        }

        fn flow_bits(&self) -> u32 {
            self.1
        }

        fn grace(&self) -> u32 {
            6_000
        }
    }

    fn hash(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number << 7
    }

    #[test]
    fn what_is_remembered_is_found_with_its_backend_and_age() {
        let table = Table::new(12);
        for number in 1..400u64 {
            insert(&table, Entry::new(hash(number), BackendId(number as u16), 100), hash(number), 100);
        }

        for number in 1..400u64 {
            let (entry, place) = find(&table, hash(number));
            assert_eq!(entry.backend(), BackendId(number as u16));
            assert_eq!(entry.age(107), 7);
            assert_eq!(table.flow(place), entry.0);
            assert_eq!(entry.slot(10), hash(number) as u32 & 1023);
        }
        assert!(find(&table, hash(400)).0.is_none());
    }

    #[test]
    fn a_full_bucket_forgets_the_flow_that_was_silent_longest() {
        let table = Table::new(3);
        for number in 1..=8u32 {
            let (hash, seen) = (hash(number.into()), 130_000 + number * 500);
            assert_eq!(insert(&table, Entry::new(hash, BackendId(1), seen), hash, seen), Noted::FLOW);
        }

        let noted = insert(&table, Entry::new(hash(9), BackendId(2), 136_000), hash(9), 136_000);

        assert_eq!(noted, Noted::FLOW.and(Noted::NEEDED));
        assert!(find(&table, hash(1)).0.is_none());
        assert!((2..=9).all(|number| !find(&table, hash(number)).0.is_none()));
    }

    #[test]
    fn what_is_spare_makes_way_for_what_is_not_and_never_pushes_out_who_speaks() {
        let (now, grace) = (20_000, 6_000);
        let full = |spare: u32, seen: u32| {
            let table = Table::new(3);
            for number in 0..8u32 {
                let hash = hash(number.into());
                insert(&table, Entry::new(hash, BackendId(1), seen).spare(number == spare), hash, seen);
            }
            table
        };
        let found = |table: &Table, number: u64| !find(table, hash(number)).0.is_none();
        let newcomer = |spare: bool| Entry::new(hash(9), BackendId(2), now).spare(spare);

        let table = full(5, now - 10);
        assert_eq!(insert(&table, newcomer(false), hash(9), now), Noted::FLOW.and(Noted::SPARE));
        assert!(!found(&table, 5) && (0..8).filter(|number| found(&table, *number)).count() == 7);

        let table = full(5, now - grace);
        assert_eq!(insert(&table, newcomer(true), hash(9), now), Noted::NOTHING, "all of them may speak");
        assert!(!found(&table, 9));

        let table = full(5, now - grace - 1);
        assert_eq!(insert(&table, newcomer(true), hash(9), now), Noted::FLOW);
        assert!(found(&table, 9));
    }

    /// A bucket that another CPU writes each time between our look and our write.
    struct Raced(Table, RefCell<Vec<u64>>);

    impl Raced {
        fn new(others: &[Entry]) -> Self {
            Self(Table::new(3), RefCell::new(others.iter().rev().map(|entry| entry.0).collect()))
        }

        fn backends(&self, numbers: impl Iterator<Item = u64>) -> Vec<u16> {
            numbers.map(|number| find(self, hash(number)).0.backend().0).collect()
        }
    }

    impl FlowWords for Raced {
        fn flow(&self, index: u32) -> u64 {
            self.0.flow(index)
        }

        fn swap_flow(&self, index: u32, word: u64) -> u64 {
            if let Some(other) = self.1.borrow_mut().pop() {
                self.0.swap_flow(index, other);
            }
            self.0.swap_flow(index, word)
        }

        fn flow_bits(&self) -> u32 {
            self.0.flow_bits()
        }

        fn grace(&self) -> u32 {
            self.0.grace()
        }
    }

    fn entry(number: u64, backend: u16, seen: u32) -> Entry {
        Entry::new(hash(number), BackendId(backend), seen)
    }

    #[test]
    fn flows_that_begin_at_once_on_two_cpus_in_one_bucket_are_both_remembered() {
        let table = Raced::new(&[entry(2, 7, 9), entry(3, 8, 9)]);

        let noted = insert(&table, entry(1, 1, 9), hash(1), 9);

        assert_eq!(noted, Noted::FLOW);
        assert_eq!(table.backends(1..4), [1, 7, 8]);
    }

    #[test]
    fn a_flow_that_two_cpus_see_begin_is_remembered_once() {
        let table = Raced::new(&[entry(1, 1, 9)]);

        let noted = insert(&table, entry(1, 1, 9), hash(1), 9);

        assert_eq!(noted, Noted::FLOW);
        assert_eq!((0..WAYS).filter(|way| table.flow(*way) != 0).count(), 1);
    }

    #[test]
    fn a_flow_that_takes_the_place_of_one_that_is_seen_again_is_remembered_beside_it() {
        let table = Raced::new(&[]);
        insert(&table, entry(1, 1, 5), hash(1), 5);
        let (was, place) = find(&table, hash(1));
        table.1.borrow_mut().push(entry(2, 7, 9).0);

        renew(&table, place, was, entry(1, 1, 9), hash(1), 9);

        assert_eq!(table.backends(1..3), [1, 7]);
        assert_eq!(find(&table, hash(1)).0.age(9), 0);
    }
}
