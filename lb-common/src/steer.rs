//! Just enough state: the backend of a packet, by the slot's owner alone where the slot is settled,
//! by the flow table where it is not. One function for the kernel program, `explain` and the
//! simulation; ARCHITECTURE.md draws the state machine.

use crate::backend::{self, Identity};
use crate::flows::{self, Entry, FlowWords, Noted};
use crate::vip::Rules;
use crate::{BackendId, Lines, Record, Slot};

/// What steering reads and writes.
pub trait Memory: FlowWords {
    /// The backends' lines.
    type Backends<'a>: Lines
    where
        Self: 'a;
    /// The backends' lines.
    fn backends(&self) -> Self::Backends<'_>;
    /// Slot `index` of the pool.
    fn slot(&self, index: u32) -> Slot;
    /// Marks slot `index` of a previous owners' table as [`Slot::is_used`].
    fn mark_used(&self, index: u32);
}

/// What a packet tells about its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// TCP SYN: the flow begins here, or its SYN was lost.
    Syn,
    /// Any other TCP segment: the flow began before.
    Segment,
    /// TCP RST: the flow ends here.
    Reset,
    /// UDP: nothing.
    Datagram,
}

impl Kind {
    /// Whether a packet that is not remembered may begin a flow.
    #[inline(always)]
    const fn may_begin(self) -> bool {
        matches!(self, Self::Syn | Self::Datagram)
    }
}

/// Why this backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum How {
    /// Owner of a settled slot.
    Settled,
    /// The flow table says so.
    Remembered,
    /// The flow begins: current owner, or what its source has by affinity.
    Began,
    /// Not remembered, so older than the change: previous owner.
    Kept,
    /// Not remembered, and no other owner is known: current owner.
    Moved,
    /// The slot has no owner.
    Nobody,
}

/// Which backend a packet goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The backend; id 0 where nobody takes it.
    pub backend: BackendId,
    /// The slot's other owner, who may know the flow if `backend` does not; id 0: none.
    pub other: BackendId,
    /// Why.
    pub how: How,
    /// What was written into the flow table for it.
    pub noted: Noted,
}

impl Choice {
    /// In one word, as a function returns it; but for [`Choice::noted`], which only costs whoever
    /// unpacks it another branch.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        let Self { backend, other, how, noted: _ } = self;
        backend.0 as u64 | (other.0 as u64) << 16 | (how as u64) << 32
    }

    /// [`Choice::pack`] undone.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        let how = match (word >> 32) as u8 {
            0 => How::Settled,
            1 => How::Remembered,
            2 => How::Began,
            3 => How::Kept,
            4 => How::Moved,
            _ => How::Nobody,
        };
        let (backend, other) = (BackendId(word as u16), BackendId((word >> 16) as u16));
        Self { backend, other, how, noted: Noted::NOTHING }
    }

    /// The owner of a settled slot.
    pub const fn settled(backend: BackendId) -> Self {
        let how = if backend.0 == 0 { How::Nobody } else { How::Settled };
        Self { backend, other: BackendId(0), how, noted: Noted::NOTHING }
    }
}

/// Hashes of a packet: of its flow, and of its source in the pool (see [`flows::source_hash`]),
/// which is read for [`Rules::AFFINITY`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// Of the five-tuple.
    pub flow: u64,
    /// Of the source.
    pub source: u64,
}

/// Whether the flow table has to be asked for the packets of this slot.
#[inline(always)]
pub const fn is_settled(rules: Rules, slot: Slot) -> bool {
    !slot.is_contested() && !rules.any(Rules::AFFINITY | Rules::CONSERVATIVE)
}

/// The slot of a packet; `None` without a table.
#[inline(always)]
pub fn slot(memory: &impl Memory, record: &Record, hashes: Hashes) -> Option<Slot> {
    if record.descriptor.is_none() {
        return None;
    }
    let by = if record.rules.any(Rules::AFFINITY) { hashes.source } else { hashes.flow };
    Some(memory.slot(record.descriptor.pool_index(by)))
}

/// Owners of a slot; id 0: nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owners {
    /// Who has it.
    pub current: BackendId,
    /// Who had it before, and lives, where that may still have flows.
    pub previous: BackendId,
    /// Where the previous owner stands, for [`Memory::mark_used`].
    pub place: u32,
}

/// Owners of the slot of a packet.
#[inline(always)]
pub fn owners(memory: &impl Memory, record: &Record, hashes: Hashes) -> Owners {
    let nobody = BackendId(0);
    let Record { descriptor, rules, ranges: _ } = *record;
    let Some(slot) = slot(memory, record, hashes) else {
        return Owners { current: nobody, previous: nobody, place: 0 };
    };
    let current = slot.backend();
    match descriptor.previous() {
        Some(base) if slot.is_contested() => {
            let by = if rules.any(Rules::AFFINITY) { hashes.source } else { hashes.flow };
            let place = base + descriptor.slot(by);
            Owners { current, previous: member(memory, rules, memory.slot(place).backend()), place }
        }
        _ => Owners { current, previous: nobody, place: 0 },
    }
}

/// Chooses the backend of a packet. `now`: see [`flows::clock`].
pub fn choose(memory: &impl Memory, record: &Record, hashes: Hashes, kind: Kind, now: u32) -> Choice {
    let Some(slot) = slot(memory, record, hashes) else { return Choice::settled(BackendId(0)) };
    if is_settled(record.rules, slot) {
        return Choice::settled(slot.backend());
    }
    remembered(memory, record, slot, hashes, kind, now)
}

/// [`choose`] where the flow table is asked: the flow keeps what it has; a new one gets the current
/// owner; one that is older than the change keeps the previous owner while that lives.
///
/// Remembered is only what could not be told again. A TCP flow that keeps the previous owner is
/// told again by not being remembered, and leaves a mark on the slot, which then does not settle. So does a
/// UDP flow that finds no room; else it is remembered, because later it could not be told any more.
#[inline(always)]
pub fn remembered(
    memory: &impl Memory,
    record: &Record,
    slot: Slot,
    hashes: Hashes,
    kind: Kind,
    now: u32,
) -> Choice {
    let Record { descriptor, rules, ranges: _ } = *record;
    let affinity = rules.any(Rules::AFFINITY);
    let all = rules.any(Rules::AFFINITY | Rules::CONSERVATIVE);
    let by = if affinity { hashes.source } else { hashes.flow };
    let current = slot.backend();
    let (before_at, before) = match descriptor.previous() {
        Some(base) if slot.is_contested() => {
            let index = base + descriptor.slot(by);
            (index, memory.slot(index))
        }
        _ => (0, Slot::default()),
    };
    let previous = member(memory, rules, before.backend());
    // Nobody but the current owner takes flows that are not remembered.
    let agreed = previous.0 == 0 || previous.0 == current.0;
    let untold = if agreed { current } else { previous };

    let (entry, place) = flows::find(memory, hashes.flow);
    let known = member(memory, rules, entry.backend());
    let keeps = known.0 != 0 && (kind != Kind::Syn || !identity(memory, known).is_draining());
    // All flows of a source are remembered, from the first on: one that is not begins now, or was pushed out. Of
    // TCP, one that is older than a change may be older than what its source is bound to.
    let bound = if affinity && !keeps && (agreed || kind.may_begin()) {
        of_source(memory, rules, hashes.source, now)
    } else {
        BackendId(0)
    };
    let (backend, how) = if keeps {
        (known, How::Remembered)
    } else if bound.0 != 0 {
        (bound, if kind.may_begin() { How::Began } else { How::Moved })
    } else if kind.may_begin() && (agreed || matches!(kind, Kind::Syn)) {
        (current, How::Began)
    } else {
        (untold, if agreed { How::Moved } else { How::Kept })
    };
    if backend.0 == 0 {
        return Choice::settled(backend);
    }
    let other = if backend.0 == current.0 { previous } else { current };
    let other = if other.0 == backend.0 { BackendId(0) } else { other };

    let is_spare = !all && backend.0 == untold.0;
    let seen_at = |time: u32| Entry::new(hashes.flow, backend, time).spare(is_spare);
    let mut noted = Noted::NOTHING;
    if !entry.is_none() {
        // Written once per unit of time, so that a busy flow does not dirty its line.
        if seen_at(now) != entry {
            noted = flows::renew(memory, place, entry, seen_at(now), hashes.flow, now);
        }
    } else if kind == Kind::Reset {
        // It ends: nothing is to be kept of it.
    } else {
        if all || !agreed && (kind == Kind::Datagram || matches!(how, How::Began)) {
            // A SYN alone is worth little: noted as nearly silent for the grace time, so that a flood of them
            // pushes out itself and not the flows that live. The next packet notes the true time.
            let ago = if kind == Kind::Syn { memory.grace().saturating_sub(8) } else { 0 };
            noted = memory.remember(seen_at(now.wrapping_sub(ago)), hashes.flow, now);
        }
        if noted.0 == Noted::NOTHING.0 && !agreed && !before.is_used() {
            memory.mark_used(before_at);
        }
    }
    if affinity && kind.may_begin() && !matches!(how, How::Remembered) {
        noted = noted.and(bind_source(memory, hashes.source, backend, now));
    }
    Choice { backend, other, how, noted }
}

/// The part of [`remembered`] that nearly every packet of a contested slot is done with, for pools
/// without affinity: the flow is remembered, was noted as seen now, and its backend lives. Id 0: ask
/// [`remembered`], which also knows the other owner.
#[inline(always)]
pub fn recalled(memory: &impl Memory, rules: Rules, hash: u64, kind: Kind, now: u32) -> BackendId {
    let entry = flows::peek(memory, hash);
    if kind == Kind::Syn || entry.age(now) != 0 {
        return BackendId(0);
    }
    member(memory, rules, entry.backend())
}

/// `id`, if it is a living backend of the pool; else 0. A tag that matches by accident thus never
/// leads to another Service.
#[inline(always)]
fn member(memory: &impl Memory, rules: Rules, id: BackendId) -> BackendId {
    let alive = id.0 != 0
        && identity(memory, id).is_alive()
        && backend::pool_tag(&memory.backends(), id) == rules.pool_tag();
    if alive { id } else { BackendId(0) }
}

/// The backend that a source is bound to, if it takes new flows.
#[inline(always)]
pub fn of_source(memory: &impl Memory, rules: Rules, source: u64, now: u32) -> BackendId {
    let (entry, _) = flows::find(memory, source);
    let bound = member(memory, rules, entry.backend());
    let eligible =
        bound.0 != 0 && entry.age(now) <= rules.affinity_timeout() && !identity(memory, bound).is_draining();
    if eligible { bound } else { BackendId(0) }
}

#[inline(always)]
fn bind_source(memory: &impl Memory, source: u64, backend: BackendId, now: u32) -> Noted {
    let (entry, place) = flows::find(memory, source);
    let seen = Entry::new(source, backend, now);
    if entry.is_none() {
        memory.remember(seen, source, now).cost()
    } else {
        flows::renew(memory, place, entry, seen, source, now)
    }
}

#[inline(always)]
fn identity(memory: &impl Memory, id: BackendId) -> Identity {
    backend::identity(&memory.backends(), id)
}
