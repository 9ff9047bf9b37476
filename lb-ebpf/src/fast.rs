//! The packets that nearly all are: plain TCP or UDP to a VIP, a backend that needs no translation
//! and whose next hop is known. Whatever else a packet turns out to be, the ladder begins with it
//! from the start; nothing is changed or counted before that is sure.
//!
//! Kept short on purpose: here an instruction costs more than a line of comment. What is decided is
//! decided as the ladder does it: the test that compares the program with `explain` on random
//! flows goes through both.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    Addr, BackendId, Flow, HashKey, Lines, Mode, Record, Rules, Slot, Tags, Verdict, backend, config, lease,
    maps::{NO_XDP_TX, Program},
    shortcut::{self, ADDR_WORDS, Folded, KEY_WORD, Key},
    steer::{How, Kind},
    tunnel::Round,
};

use crate::{
    counts::Row,
    forward::{self, Outcome, To, Way},
    maps::{self, Pair, Tables},
    packet::{Headers, Packet, View},
    parse::{self, ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Family, V4, V6, tcp_flag},
    steer,
};

/// One packet.
#[inline(always)]
pub fn balance(ctx: &XdpContext) -> u32 {
    let tables = maps::tables_nearby();
    let packet = Packet::of(ctx);
    // One check of the bounds: a frame on a wire is not shorter, and the ladder takes what is.
    let Some(frame) = V4::frame(&packet) else { return the_ladders(ctx) };
    match frame.read::<u16>(12) {
        ETHERTYPE_V4 => of_family::<V4>(ctx, &tables, &packet),
        ETHERTYPE_V6 => of_family::<V6>(ctx, &tables, &packet),
        crate::parse::ETHERTYPE_VLAN | crate::parse::ETHERTYPE_QINQ => the_ladders(ctx),
        _ => xdp_action::XDP_PASS,
    }
}

/// What the fast path asks of an IP version beside [`Family`].
trait Fast: Family {
    /// Ethernet, IP and TCP header.
    type Frame: Headers;
    /// Those headers, if they are there.
    fn frame(packet: &Packet) -> Option<Self::Frame>;
    /// The IP header of it.
    fn ip(frame: &Self::Frame) -> Self::Head;
    /// The destination.
    fn folded(frame: &Self::Frame) -> Folded;
    /// Protocol and length of the IP packet, if nothing stands between the headers and it is no piece of one.
    fn plain(frame: &Self::Frame) -> Option<(u8, u32)>;
    /// Whether a record that has the destination's key is of that address.
    fn is_of(record: &Pair, frame: &Self::Frame) -> bool;
    /// [`Family::hash`] of what stands in the frame.
    fn hash_of(frame: &Self::Frame, proto: u8, key: HashKey) -> u64;
}

impl Fast for V4 {
    type Frame = View<54>;

    #[inline(always)]
    fn frame(packet: &Packet) -> Option<Self::Frame> {
        packet.view::<54>()
    }

    #[inline(always)]
    fn ip(frame: &Self::Frame) -> Self::Head {
        frame.part(ETHERNET)
    }

    #[inline(always)]
    fn folded(frame: &Self::Frame) -> Folded {
        Folded::v4(frame.read(30))
    }

    #[inline(always)]
    fn plain(frame: &Self::Frame) -> Option<(u8, u32)> {
        let first: u64 = frame.read(ETHERNET);
        // Version and length of the header; more fragments, or an offset.
        let plain = first & 0xff3f_0000_0000_00ff == 0x45;
        plain.then_some((frame.read(23), ((first >> 16) as u16).swap_bytes() as u32))
    }

    #[inline(always)]
    fn is_of(_: &Pair, _: &Self::Frame) -> bool {
        true
    }

    #[inline(always)]
    fn hash_of(frame: &Self::Frame, proto: u8, key: HashKey) -> u64 {
        Flow::hash_of_v4(frame.read(26), frame.read(34), proto as u32, key)
    }
}

impl Fast for V6 {
    type Frame = View<74>;

    #[inline(always)]
    fn frame(packet: &Packet) -> Option<Self::Frame> {
        packet.view::<74>()
    }

    #[inline(always)]
    fn ip(frame: &Self::Frame) -> Self::Head {
        frame.part(ETHERNET)
    }

    #[inline(always)]
    fn folded(frame: &Self::Frame) -> Folded {
        Folded::v6(Addr { hi: frame.read(38), lo: frame.read(46) })
    }

    #[inline(always)]
    fn plain(frame: &Self::Frame) -> Option<(u8, u32)> {
        let first: u64 = frame.read(ETHERNET);
        let plain = first & 0xf0 == 0x60;
        plain.then_some(((first >> 48) as u8, ((first >> 32) as u16).swap_bytes() as u32 + 40))
    }

    #[inline(always)]
    fn is_of(record: &Pair, frame: &Self::Frame) -> bool {
        let [hi, lo] = ADDR_WORDS;
        record.word(0, hi) == frame.read::<u64>(38) && record.word(0, lo) == frame.read::<u64>(46)
    }

    /// The destination as it stands there: a mapped one has no record.
    #[inline(always)]
    fn hash_of(frame: &Self::Frame, proto: u8, key: HashKey) -> u64 {
        let head = Self::ip(frame);
        let dst = Addr { hi: frame.read(38), lo: frame.read(46) };
        Flow { src: Self::src(&head), dst, ports: ports::<Self>(frame), proto: proto as u32 }.hash_v6(key)
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

/// The destination port.
#[inline(always)]
fn dst_port<F: Fast>(frame: &F::Frame) -> u16 {
    frame.read(F::PLAIN.l4 + 2)
}

/// TCP's flag byte.
#[inline(always)]
fn tcp_flags<F: Fast>(frame: &F::Frame) -> u8 {
    frame.read(F::PLAIN.l4 + 13)
}

#[inline(always)]
fn the_ladders(ctx: &XdpContext) -> u32 {
    maps::call(ctx, Program::Ladder);
    xdp_action::XDP_ABORTED
}

/// Asks first whether the packet is ours, and reads no further if it is not. (Before anything is
/// published the tables are empty: nothing is ours.)
#[inline(always)]
fn of_family<F: Fast>(ctx: &XdpContext, tables: &Tables, packet: &Packet) -> u32 {
    let Some(frame) = F::frame(packet) else { return the_ladders(ctx) };
    let dst = F::folded(&frame);
    if !tables.may_be_ours(dst) {
        return xdp_action::XDP_PASS;
    }
    if let Some((proto, length)) = F::plain(&frame)
        && let Some((record, index)) = shortcut::find(
            Key::new(dst, dst_port::<F>(&frame), proto),
            |line| tables.record(line),
            |record| record.word(0, KEY_WORD),
            |record| F::is_of(&record, &frame),
        )
        && let Some(row) = maps::counts()
    {
        let ours = Ours { frame, proto, length, record, index };
        if let Some(Outcome { verdict, action }) = forwarded::<F>(ctx, tables, row, packet, &ours) {
            row.verdict(verdict);
            return action;
        }
    }
    the_ladders(ctx)
}

/// What is known of a packet to a VIP of ours.
struct Ours<F: Fast> {
    frame: F::Frame,
    proto: u8,
    /// Of the IP packet, as it says.
    length: u32,
    record: Pair,
    /// Index of the record.
    index: u32,
}

/// A packet to one of our VIPs; `None`: the ladder's.
#[inline(always)]
fn forwarded<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    row: Row,
    packet: &Packet,
    ours: &Ours<F>,
) -> Option<Outcome> {
    let Ours { frame, proto, length, record, index } = ours;
    let Record { descriptor, rules, .. } = Record::read(record, 0);
    let ifindex = ctx.ingress_ifindex() as u32;
    // Another host's frame, an interface that we do not know, or somebody who captures.
    let interface = tables.interface(ifindex) ^ macs::<F>(frame) << 16;
    if interface > NO_XDP_TX {
        return None;
    }
    // Longer than its frame (cut short, or in several pieces) or shorter than its headers.
    if packet.bytes() < ETHERNET + *length as usize || *length < (F::PLAIN.l4 - ETHERNET) as u32 + 20 {
        return None;
    }
    let packet = packet.leaving_by(if interface == 0 { ifindex } else { 0 });
    // Rules that ask more than the slot.
    if rules.odd() != 0 {
        // Flows are known before slots are asked, whatever else the rules say.
        return if rules.odd() & !(Rules::AFFINITY | Rules::CONSERVATIVE) == Rules::TRANSLATED {
            leased::<F>(ctx, tables, row, &packet, rules, ours)
        } else {
            None
        };
    }
    if descriptor.is_none() {
        return None;
    }

    let hash = F::hash_of(frame, *proto, config::hash_key(&tables.settings()));
    let slot = tables.slot_at(descriptor.pool_offset(hash));
    // UDP has no such byte; what stands there says nothing.
    let is_tcp = *proto == lb_common::TCP;
    let flags = if is_tcp { tcp_flags::<F>(frame) } else { 0 };
    let (mut id, mut other) = (BackendId(slot as u16), BackendId(0));
    let mut begins = flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) == tcp_flag::SYN;
    if slot & Slot::MARK as u64 != 0 {
        let kind = parse::kind(*proto, flags);
        let known = steer::recalled(tables, rules, hash, kind, row);
        if known.0 != 0 {
            id = known;
        } else {
            let choice = steer::choose_contested(*index, hash, kind);
            (id, other) = (choice.backend, choice.other);
            begins |= kind == Kind::Datagram && choice.how == How::Began;
        }
    }
    let lines = tables.backend(id);
    let (next_hop, identity) = (backend::next_hop(&lines, id), backend::identity(&lines, id));
    let way = Way { next_hop, identity, tags: Tags::NONE };
    // Nobody's line is empty: backend 0 has no next hop. Nor has one behind tags, for us.
    if way.next_hop.ifindex == 0 {
        return None;
    }
    let outcome = if identity.mode() == Mode::L2 as u8 {
        if *length > identity.mtu() as u32 {
            return None;
        }
        let ether: View<ETHERNET> = frame.part(0);
        ether.write(0, next_hop.head);
        ether.write(8, next_hop.tail);
        forward::leave(&packet, next_hop, Tags::NONE, Verdict::ForwardedL2)
    } else {
        let to = To { id, lines, other, round: Round::First, way, l3: ETHERNET };
        forward::along::<F>(ctx, &packet, &F::ip(frame), tables, &to, hash).ok()?
    };
    row.packet_to(id, *index, rules, *length as u64, begins);
    Some(outcome)
}

/// A packet of a translated flow that holds a lease; `None`: the ladder's, which may grant one.
#[inline(always)]
fn leased<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    row: Row,
    packet: &Packet,
    rules: Rules,
    ours: &Ours<F>,
) -> Option<Outcome> {
    let Ours { frame, proto, length, index, .. } = ours;
    let (head, length) = (&F::ip(frame), *length);
    // What begins or ends a flow is noted with it, and the last hop is told.
    let noted = *proto == lb_common::TCP && tcp_flags::<F>(frame) & tcp_flag::BEGIN_OR_END != 0;
    if noted || F::ttl(head) <= 1 {
        return None;
    }
    let hash = F::hash_of(frame, *proto, config::hash_key(&tables.settings()));
    let lease = lease::find(tables, hash);
    if !lease.holds(maps::stamp(), sender::<F>(frame)) {
        return None;
    }
    let id = lease.backend();
    let lines = tables.backend(id);
    let (identity, next_hop) = (backend::identity(&lines, id), backend::next_hop(&lines, id));
    let local = identity.mode() == Mode::Local as u8;
    let nat = identity.mode() == Mode::Nat as u8 && next_hop.ifindex != 0;
    if length > identity.mtu() as u32 || !local && !nat {
        return None;
    }
    let flow = &Flow { src: F::src(head), dst: F::dst(head), ports: ports::<F>(frame), proto: *proto as u32 };
    let src = if local { flow.src } else { backend::source(&lines, id) };
    let ports = Flow::ports(lease.wire_port(), identity.wire_port());
    let new = Flow { src, dst: backend::addr(&lines, id), ports, proto: flow.proto };
    // The stack takes the hop of what it forwards.
    let delta = F::rewrite(head, flow, &new, if local { 0 } else { 1 });
    parse::rewrite_plain(frame.part(F::PLAIN.l4), &new, delta);
    row.packet_to(id, *index, rules, length as u64, false);
    Some(if local {
        Verdict::ForwardedLocal.into()
    } else {
        forward::send::<F>(ctx, packet, ETHERNET, next_hop, Tags::NONE, Verdict::ForwardedNat)
    })
}
