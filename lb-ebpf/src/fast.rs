//! The packets that nearly all are: plain TCP or UDP to a VIP, a backend that needs no translation
//! and whose next hop is known. Whatever else a packet turns out to be, the ladder begins with it
//! from the start; nothing is changed or counted before that is sure.
//!
//! Kept short on purpose: here an instruction costs more than a line of comment. What is decided is
//! decided as the ladder does it: the test that compares the program with `explain` on random
//! flows goes through both.

use core::hint::cold_path;

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    Addr, BackendId, Flow, Lines, Mode, Record, Rules, Slot, Tags, Verdict,
    backend::{self, Wrap},
    config, lease,
    maps::{NO_XDP_TX, Program},
    shortcut::{self, ADDR_WORDS, Folded, KEY_WORD, Key, SEED_WORD},
    steer::{How, Kind},
    tunnel::Round,
};

use crate::{
    forward::{self, Outcome, To},
    maps::{self, Pair, Tables},
    packet::{Headers, Packet, View},
    parse::{
        self, ETHERNET, ETHERTYPE_QINQ, ETHERTYPE_V4, ETHERTYPE_V6, ETHERTYPE_VLAN, Family, V4, V6, tcp_flag,
    },
    steer,
};

/// One packet.
#[inline(always)]
pub fn balance(ctx: &XdpContext) -> u32 {
    let tables = maps::tables_nearby();
    let packet = Packet::of(ctx);
    // One check of the bounds: a frame on a wire is not shorter, and the ladder takes what is.
    let Some(start) = packet.view() else { return the_ladders(ctx) };
    if start.read::<u16>(12) == ETHERTYPE_V4 {
        return of_family::<V4>(ctx, &tables, &packet, start);
    }
    // Read again: the compiler would ask for the middle of all four before any.
    let kind: u16 = start.read_again(12);
    if kind == ETHERTYPE_V6 {
        return of_family::<V6>(ctx, &tables, &packet, start);
    }
    if kind == ETHERTYPE_VLAN || kind == ETHERTYPE_QINQ {
        return the_ladders(ctx);
    }
    xdp_action::XDP_PASS
}

/// As much of a frame as both families have: Ethernet, IPv4 and TCP, or up to the end of IPv6's addresses.
type Start = View<54>;

/// What the fast path asks of an IP version beside [`Family`].
trait Fast: Family {
    /// Ethernet, IP and TCP header.
    type Frame: Headers;
    /// Bytes of it.
    const BYTES: usize;
    /// Those headers, if they are there.
    fn frame(packet: &Packet, start: Start) -> Option<Self::Frame>;
    /// The IP header of it.
    fn ip(frame: &Self::Frame) -> Self::Head;
    /// The destination.
    fn folded(start: &Start) -> Folded;
    /// The protocol, if nothing stands between the headers and the packet is no piece of one.
    fn plain(frame: &Self::Frame) -> Option<u8>;
    /// The protocol once more: seldom asked for, so nobody keeps it.
    fn proto(frame: &Self::Frame) -> u8;
    /// Whether a record that has the destination's key is of that address.
    fn is_of(record: &Pair, frame: &Self::Frame) -> bool;
    /// [`Family::hash`] of a packet to the VIP of a record.
    fn hash_of(frame: &Self::Frame, record: &Pair, multipliers: [u64; 2]) -> u64;
}

impl Fast for V4 {
    type Frame = Start;
    const BYTES: usize = 54;

    #[inline(always)]
    fn frame(_: &Packet, start: Start) -> Option<Self::Frame> {
        Some(start)
    }

    #[inline(always)]
    fn ip(frame: &Self::Frame) -> Self::Head {
        frame.part(ETHERNET)
    }

    #[inline(always)]
    fn folded(start: &Start) -> Folded {
        Folded::v4(start.read(30))
    }

    #[inline(always)]
    fn plain(frame: &Self::Frame) -> Option<u8> {
        // Version and length of the header; more fragments, or an offset.
        if frame.read::<u8>(14) != 0x45 || frame.read::<u16>(20) & 0xff3f != 0 {
            return None;
        }
        Some(frame.read(23))
    }

    #[inline(always)]
    fn proto(frame: &Self::Frame) -> u8 {
        frame.read_again(23)
    }

    #[inline(always)]
    fn is_of(_: &Pair, _: &Self::Frame) -> bool {
        true
    }

    #[inline(always)]
    fn hash_of(frame: &Self::Frame, record: &Pair, multipliers: [u64; 2]) -> u64 {
        Flow::hash_of_v4(frame.read(26), ports::<Self>(frame), record.word(0, SEED_WORD), multipliers)
    }
}

impl Fast for V6 {
    type Frame = View<74>;
    const BYTES: usize = 74;

    #[inline(always)]
    fn frame(packet: &Packet, _: Start) -> Option<Self::Frame> {
        packet.view::<74>()
    }

    #[inline(always)]
    fn ip(frame: &Self::Frame) -> Self::Head {
        frame.part(ETHERNET)
    }

    #[inline(always)]
    fn folded(start: &Start) -> Folded {
        Folded::v6(Addr { hi: start.read(38), lo: start.read(46) })
    }

    #[inline(always)]
    fn plain(frame: &Self::Frame) -> Option<u8> {
        if frame.read::<u8>(14) & 0xf0 != 0x60 {
            return None;
        }
        Some(frame.read(20))
    }

    #[inline(always)]
    fn proto(frame: &Self::Frame) -> u8 {
        frame.read_again(20)
    }

    #[inline(always)]
    fn is_of(record: &Pair, frame: &Self::Frame) -> bool {
        let [hi, lo] = ADDR_WORDS;
        record.word(0, hi) == frame.read::<u64>(38) && record.word(0, lo) == frame.read::<u64>(46)
    }

    #[inline(always)]
    fn hash_of(frame: &Self::Frame, record: &Pair, multipliers: [u64; 2]) -> u64 {
        let src = Self::src(&Self::ip(frame));
        Flow::hash_of_v6(src, ports::<Self>(frame), record.word(0, SEED_WORD), multipliers)
    }
}

/// Destination MAC and the first two bytes of the source's.
#[inline(always)]
fn macs<F: Fast>(frame: &F::Frame) -> u64 {
    frame.read(0)
}

/// The last three bytes of the source MAC.
#[inline(always)]
fn sender<F: Fast>(frame: &F::Frame) -> u32 {
    frame.read::<u32>(8) >> 8
}

/// The ports word.
#[inline(always)]
fn ports<F: Fast>(frame: &F::Frame) -> u32 {
    frame.read(F::PLAIN.l4)
}

/// Where that is in TCP's header.
const TCP_FLAGS: usize = 13;

/// TCP's flag byte.
#[inline(always)]
fn tcp_flags<F: Fast>(frame: &F::Frame) -> u8 {
    frame.read(F::PLAIN.l4 + TCP_FLAGS)
}

#[inline(always)]
fn the_ladders(ctx: &XdpContext) -> u32 {
    maps::call(ctx, Program::Ladder);
    xdp_action::XDP_ABORTED
}

/// Asks first whether the packet is ours, and reads no further if it is not. (Before anything is
/// published the tables are empty: nothing is ours.)
#[inline(always)]
fn of_family<F: Fast>(ctx: &XdpContext, tables: &Tables, packet: &Packet, start: Start) -> u32 {
    let dst = F::folded(&start);
    if !tables.may_be_ours(dst) {
        return xdp_action::XDP_PASS;
    }
    let Some(frame) = F::frame(packet, start) else { return the_ladders(ctx) };
    let way = match straight::<F, true>(ctx, tables, packet, &frame, dst) {
        Err(Turn::Otherwise) => straight::<F, false>(ctx, tables, packet, &frame, dst),
        way => way,
    };
    let taken = match way {
        Ok(action) => return action,
        Err(Turn::Contested(ours, hash)) => contested::<F>(ctx, tables, &ours, hash),
        Err(Turn::Leased(ours)) => leased::<F>(ctx, tables, &ours),
        Err(Turn::Otherwise | Turn::Ladder) => None,
    };
    match taken {
        Some(action) => action,
        None => the_ladders(ctx),
    }
}

/// Where a packet leaves the straight way.
enum Turn<F: Fast> {
    /// What it takes is not looked at there.
    Otherwise,
    /// The slot is contested. With the flow's hash.
    Contested(Ours<F>, u64),
    /// Of a translated flow.
    Leased(Ours<F>),
    /// The ladder's.
    Ladder,
}

/// What is known of a packet to a VIP of ours.
struct Ours<F: Fast> {
    frame: F::Frame,
    /// Of the IP packet, as it says.
    length: u32,
    record: Pair,
    /// Interface that it can leave by with `XDP_TX`: the one that it came by, or [`NO_INTERFACE`].
    tx_ifindex: u32,
    /// What it counts beside what all do, see [`rare`].
    rare: u64,
}

/// No interface has this number, nor stands it for one that is not known.
const NO_INTERFACE: u32 = u32::MAX;

/// What a packet counts beside what all do.
mod rare {
    /// For its VIP, too: not 0 if it does.
    pub const COUNTED: u64 = lb_common::Rules::COUNTED;
    /// Of a new flow, whatever the other bit says.
    pub const BEGINS: u64 = 2;
}

/// Both bits of [`rare`] if this is the first packet of a TCP connection, else 0; without a branch, which a flood of both
/// kinds would have mispredicted.
#[inline(always)]
fn begins<F: Fast>(frame: &F::Frame, proto: u8) -> u64 {
    const LOOKED_AT: u64 = (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) as u64;
    let flags = tcp_flags::<F>(frame) as u64 & LOOKED_AT;
    // UDP has no such byte; what stands there says nothing.
    let differs = flags ^ tcp_flag::SYN as u64 | proto as u64 ^ lb_common::TCP as u64;
    differs.wrapping_sub(1) >> 62
}

/// A packet to one of our VIPs, as far as it goes straight on. `PLAIN`: nothing but what is plainest is looked at.
#[inline(always)]
fn straight<F: Fast, const PLAIN: bool>(
    ctx: &XdpContext,
    tables: &Tables,
    packet: &Packet,
    frame: &F::Frame,
    dst: Folded,
) -> Result<u32, Turn<F>> {
    let Some(proto) = F::plain(frame) else { return Err(Turn::Ladder) };
    let key = Key::new(dst, frame.read(F::PLAIN.l4 + 2), proto);
    let record = if PLAIN {
        let record = tables.record(key.line());
        if record.word(0, KEY_WORD) != key.0 || !F::is_of(&record, frame) {
            return Err(Turn::Otherwise);
        }
        record
    } else {
        let word = |record: Pair, word| record.word(0, word);
        let is_of = |record| F::is_of(&record, frame);
        shortcut::find(key, |line| tables.record(line), word, is_of).ok_or(Turn::Ladder)?
    };
    let ifindex = ctx.ingress_ifindex() as u32;
    // Another host's frame, an interface that we do not know, or somebody who captures.
    let differs = tables.interface(ifindex) ^ macs::<F>(frame) << 16;
    if PLAIN && differs != 0 {
        return Err(Turn::Otherwise);
    }
    if differs > NO_XDP_TX {
        return Err(Turn::Ladder);
    }
    let tx_ifindex = if differs == 0 { ifindex } else { NO_INTERFACE };
    let length = F::length(&F::ip(frame));
    // Shorter than its headers (then there are less than no bytes behind them), or longer than its frame: cut short,
    // or in several pieces.
    let behind = (length as u64).wrapping_sub((F::BYTES - ETHERNET) as u64);
    if behind > (packet.bytes() - F::BYTES) as u64 {
        return Err(Turn::Ladder);
    }
    let ours = |rare| Ours { frame: *frame, length, record, tx_ifindex, rare };
    let plainly = record.byte(0, 1, 0) as u64;
    if plainly > Rules::COUNTED {
        // Flows are known before slots are asked, whatever else the rules say.
        let rest = plainly & !(Rules::COUNTED | Rules::AFFINITY | Rules::CONSERVATIVE);
        return Err(if rest == Rules::TRANSLATED {
            Turn::Leased(ours(plainly & rare::COUNTED))
        } else {
            Turn::Ladder
        });
    }
    let ours = ours(maps::or(plainly, begins::<F>(frame, proto)));
    let descriptor = lb_common::Descriptor(record.word(0, 0));
    if descriptor.is_none() {
        return Err(Turn::Ladder);
    }
    let hash = F::hash_of(frame, &record, config::multipliers(&tables.settings()));
    let slot = tables.slot_at(descriptor.pool_offset(hash));
    if slot >= Slot::MARK as u64 {
        return Err(Turn::Contested(ours, hash));
    }
    to_backend::<F>(ctx, tables, &ours, slot, hash).ok_or(Turn::Ladder)
}

/// Sends a packet to a backend. `choice`: its id in bits 0 to 14, the slot's other owner from bit 16 on.
#[inline(always)]
fn to_backend<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    ours: &Ours<F>,
    choice: u64,
    hash: u64,
) -> Option<u32> {
    let Ours { frame, length, .. } = ours;
    let lines = tables.backend_at(choice);
    let id = BackendId(choice as u16);
    // Nobody's line has room for nothing.
    if *length > backend::room(&lines, id) as u32 {
        return None;
    }
    if backend::wrap(&lines, id) == Wrap::ETHERNET {
        let next_hop = backend::next_hop(&lines, id);
        // A backend behind tags has none, for us.
        if next_hop.ifindex == 0 {
            return None;
        }
        let ether: View<ETHERNET> = frame.part(0);
        ether.write(0, next_hop.head);
        ether.write(8, next_hop.tail);
        return Some(leave(ours, id, next_hop.ifindex, Verdict::ForwardedL2));
    }
    // Once: what is checked is what it leaves by.
    let ifindex = backend::ifindex(&lines, id);
    if ifindex == 0 {
        return None;
    }
    let other = BackendId((choice >> 16) as u16);
    let to = To { id, lines, other, round: Round::First, l3: ETHERNET };
    // Each by itself: where they met, the compiler would keep what differs.
    let wrap = backend::wrap(&lines, id);
    match wrap {
        Wrap::IPIP_V4 => wrapped(ctx, tables, ours, &to, Wrap::IPIP_V4, ifindex, hash),
        Wrap::IPIP_V6 => wrapped(ctx, tables, ours, &to, Wrap::IPIP_V6, ifindex, hash),
        Wrap::TUNNEL_V4 => wrapped(ctx, tables, ours, &to, Wrap::TUNNEL_V4, ifindex, hash),
        _ => wrapped(ctx, tables, ours, &to, wrap, ifindex, hash),
    }
}

/// Wraps a packet, and sends it.
#[inline(always)]
fn wrapped<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    ours: &Ours<F>,
    to: &To,
    wrap: Wrap,
    ifindex: u32,
    hash: u64,
) -> Option<u32> {
    let next_hop = || backend::next_hop(&to.lines, to.id);
    let verdict = forward::wrapped::<F>(ctx, &F::ip(&ours.frame), tables, to, wrap, hash, next_hop).ok()?;
    Some(leave(ours, to.id, ifindex, verdict))
}

/// Leaves by an interface.
#[inline(always)]
fn leave<F: Fast>(ours: &Ours<F>, id: BackendId, ifindex: u32, verdict: Verdict) -> u32 {
    if ifindex == ours.tx_ifindex {
        return count(Outcome { verdict, action: xdp_action::XDP_TX }, ours, id);
    }
    cold_path();
    count(forward::redirected(ifindex, verdict), ours, id)
}

/// Counts a packet that is on its way.
#[inline(always)]
fn count<F: Fast>(outcome: Outcome, ours: &Ours<F>, id: BackendId) -> u32 {
    let Outcome { verdict, action } = outcome;
    let Some(row) = maps::counts() else { return action };
    row.backend(id.0, ours.length as u64, false);
    row.verdict(verdict);
    if ours.rare == 0 {
        return action;
    }
    cold_path();
    let begins = ours.rare & rare::BEGINS != 0;
    if begins {
        row.begun(id);
    }
    if Rules(ours.record.word(0, 1)).any(Rules::COUNTED) {
        row.vip(Record::index(&ours.record, 0), ours.length as u64, begins);
    }
    action
}

/// A packet whose slot is contested.
#[inline(always)]
fn contested<F: Fast>(ctx: &XdpContext, tables: &Tables, ours: &Ours<F>, hash: u64) -> Option<u32> {
    let Ours { frame, record, .. } = ours;
    let kind = parse::kind(F::proto(frame), frame.read_again(F::PLAIN.l4 + TCP_FLAGS));
    let known = steer::recalled(tables, Rules(record.word(0, 1)), hash, kind, maps::counts()?);
    if known.0 != 0 {
        return to_backend::<F>(ctx, tables, ours, known.0 as u64, hash);
    }
    let choice = steer::choose_contested(Record::index(record, 0), hash, kind);
    let begins = kind == Kind::Datagram && choice.how == How::Began;
    let rare = ours.rare | if begins { rare::BEGINS } else { 0 };
    let owners = choice.backend.0 as u64 & (Slot::MARK as u64 - 1) | (choice.other.0 as u64) << 16;
    to_backend::<F>(ctx, tables, &Ours { rare, ..*ours }, owners, hash)
}

/// A packet of a translated flow that holds a lease; `None`: the ladder's, which may grant one.
#[inline(always)]
fn leased<F: Fast>(ctx: &XdpContext, tables: &Tables, ours: &Ours<F>) -> Option<u32> {
    let Ours { frame, length, record, tx_ifindex, .. } = ours;
    let (head, length, proto) = (&F::ip(frame), *length, F::proto(frame));
    // What begins or ends a flow is noted with it, and the last hop is told.
    let noted = proto == lb_common::TCP && tcp_flags::<F>(frame) & tcp_flag::BEGIN_OR_END != 0;
    if noted || F::ttl(head) <= 1 {
        return None;
    }
    let hash = F::hash_of(frame, record, config::multipliers(&tables.settings()));
    let lease = lease::find(tables, hash);
    if !lease.holds(maps::stamp(), sender::<F>(frame) ^ ctx.ingress_ifindex() as u32) {
        return None;
    }
    let id = lease.backend();
    let lines = tables.backend(id);
    let (identity, next_hop) = (backend::identity(&lines, id), backend::next_hop(&lines, id));
    let local = identity.mode() == Mode::Local as u8;
    let nat = identity.mode() == Mode::Nat as u8 && next_hop.ifindex != 0;
    if length > identity.room() as u32 || !local && !nat {
        return None;
    }
    let flow = &Flow { src: F::src(head), dst: F::dst(head), ports: ports::<F>(frame), proto: proto as u32 };
    let src = if local { flow.src } else { backend::source(&lines, id) };
    let ports = Flow::ports(lease.wire_port(), identity.wire_port());
    let new = Flow { src, dst: backend::addr(&lines, id), ports, proto: flow.proto };
    // The stack takes the hop of what it forwards.
    let delta = F::rewrite(head, flow, &new, if local { 0 } else { 1 });
    parse::rewrite_plain(frame.part(F::PLAIN.l4), &new, delta);
    let outcome = if local {
        Verdict::ForwardedLocal.into()
    } else {
        forward::send::<F>(
            ctx,
            &Packet::of(ctx).leaving_by(if *tx_ifindex == NO_INTERFACE { 0 } else { *tx_ifindex }),
            ETHERNET,
            next_hop,
            Tags::NONE,
            Verdict::ForwardedNat,
        )
    };
    Some(count(outcome, ours, id))
}
