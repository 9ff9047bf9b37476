//! Chooses the backend of a packet: lb-common's arithmetic over the kernel's tables and clock.

use lb_common::{
    BackendId, Flow, HashKey, Mode, Record, Rules, backend,
    flows::{self, Noted},
    steer::{self, Choice, Hashes, How, Kind},
    verdict::Event,
};

use crate::counts::Row;
use crate::maps::{self, Tables};

/// Hashes of a flow; that of its source only where affinity wants it.
#[inline(always)]
pub fn hashes(flow: &Flow, hash: u64, rules: Rules, key: HashKey) -> Hashes {
    let source = if rules.any(Rules::AFFINITY) { flows::source_hash(flow, rules.pool_tag(), key) } else { 0 };
    Hashes { flow: hash, source }
}

/// The backend of a packet to the VIP of record `index`.
#[inline(always)]
pub fn choose(tables: &Tables, index: u32, record: &Record, hashes: Hashes, kind: Kind) -> Choice {
    let Some(slot) = steer::slot(tables, record, hashes) else { return Choice::settled(BackendId(0)) };
    if steer::is_settled(record.rules, slot) {
        return Choice::settled(slot.backend());
    }
    Choice::unpack(penstock_remembered(index, hashes.flow, hashes.source, kind as u32))
}

/// [`steer::recalled`], unless the other owner has to be known, too.
#[inline(always)]
pub fn recalled(tables: &Tables, rules: Rules, hash: u64, kind: Kind, row: Row) -> BackendId {
    let known = steer::recalled(tables, rules, hash, kind, row.clock());
    if backend::identity(&tables.backend(known), known).mode() == Mode::Tunnel as u8 {
        return BackendId(0);
    }
    row.event_if(known.0 != 0, Event::FlowHit);
    known
}

/// [`choose`] where the slot is known to be contested.
#[inline(always)]
pub fn choose_contested(index: u32, hash: u64, kind: Kind) -> Choice {
    Choice::unpack(penstock_remembered(index, hash, 0, kind as u32))
}

/// The backend of a packet whose slot is contested, or whose VIP remembers every flow; and what
/// that counts. A global function: the verifier looks at it once, not with every path that leads
/// here, which is why it takes numbers only.
#[unsafe(no_mangle)]
#[inline(never)]
#[cold]
pub extern "C" fn penstock_remembered(index: u32, flow: u64, source: u64, kind: u32) -> u64 {
    let tables = maps::tables_nearby();
    let record = Record::read(&tables.records(), index);
    let kind = match kind {
        0 => Kind::Syn,
        1 => Kind::Segment,
        2 => Kind::Reset,
        _ => Kind::Datagram,
    };
    let hashes = Hashes { flow, source };
    // Read again: it may have changed since, and then settled or gone is what it is.
    let Some(slot) = steer::slot(&tables, &record, hashes) else { return 0 };
    let choice = steer::remembered(&tables, &record, slot, hashes, kind, now());
    // Looked up last, and for the time a second time: what is kept meanwhile is stack that the
    // program in front of this has not.
    let Some(row) = maps::counts() else { return 0 };
    match choice.how {
        How::Remembered => row.event(Event::FlowHit),
        How::Kept => row.event(Event::Kept),
        How::Settled | How::Began | How::Moved | How::Nobody => {}
    }
    if choice.noted.0 != Noted::NOTHING.0 {
        row.event_if(choice.noted.has(Noted::FLOW), Event::Remembered);
        row.event_if(choice.noted.has(Noted::NEEDED), Event::Forgot);
        row.event_if(choice.noted.has(Noted::SPARE), Event::Spared);
    }
    choice.pack()
}

/// Whether this packet begins a flow, as far as it can be told.
#[inline(always)]
pub fn begins(kind: Kind, how: How) -> bool {
    kind == Kind::Syn || kind == Kind::Datagram && how == How::Began
}

/// Time in units of [`flows::clock`], by the coarse monotonic clock: user space reads the same one.
#[inline(always)]
pub fn now() -> u32 {
    maps::counts().map_or(0, Row::clock)
}
