//! The packets that nearly all are: plain TCP or UDP to a VIP, a backend that needs no translation
//! and whose next hop is known. Whatever else a packet turns out to be, the ladder begins with it
//! from the start; nothing is changed or counted before that is sure.
//!
//! Kept short on purpose: here an instruction costs more than a line of comment. What is decided is
//! decided as the ladder does it: the test that compares the program with `explain` on random
//! flows goes through both.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    AddrEntry, BackendId, Epoch, Flow, Record, Rules, Tags, VipEntry, backend, config,
    maps::{NO_XDP_TX, Program},
    steer::{How, Kind, Memory},
    tunnel::Round,
};

use crate::{
    forward::{self, Outcome, To, Way},
    maps::{self, Row, Tables},
    packet::{Packet, View},
    parse::{self, ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Family, V4, V6, tcp_flag},
    steer,
};

/// One packet.
#[inline(always)]
pub fn balance(ctx: &XdpContext) -> u32 {
    // Before anything else is known that would have to be kept over the call.
    let Some(tables) = maps::tables() else { return xdp_action::XDP_PASS };
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
    type Frame: Copy;
    /// Those headers, if they are there.
    fn frame(packet: &Packet) -> Option<Self::Frame>;
    /// The IP header of it.
    fn ip(frame: &Self::Frame) -> Self::Head;
    /// Destination MAC and the first two bytes of the source's.
    fn macs(frame: &Self::Frame) -> u64;
    /// The ports word.
    fn ports(frame: &Self::Frame) -> u32;
    /// TCP's flag byte.
    fn tcp_flags(frame: &Self::Frame) -> u8;
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
    fn macs(frame: &Self::Frame) -> u64 {
        frame.read(0)
    }

    #[inline(always)]
    fn ports(frame: &Self::Frame) -> u32 {
        frame.read(34)
    }

    #[inline(always)]
    fn tcp_flags(frame: &Self::Frame) -> u8 {
        frame.read(47)
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
    fn macs(frame: &Self::Frame) -> u64 {
        frame.read(0)
    }

    #[inline(always)]
    fn ports(frame: &Self::Frame) -> u32 {
        frame.read(54)
    }

    #[inline(always)]
    fn tcp_flags(frame: &Self::Frame) -> u8 {
        frame.read(67)
    }
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
    let epoch = config::epoch(&tables.settings());
    let addr = AddrEntry::find(&tables.addrs(), epoch, F::dst(&F::ip(&frame)));
    if addr.is_none() {
        return xdp_action::XDP_PASS;
    }
    if let Some(row) = maps::counts()
        && let Some(Outcome { verdict, action }) = ours::<F>(ctx, tables, row, packet, &frame, epoch, addr)
    {
        row.verdict(verdict);
        return action;
    }
    the_ladders(ctx)
}

/// A packet to one of our addresses; `None`: the ladder's. Everything is read first, whatever it
/// may be good for, and judged together: a branch costs more than a load that was in vain.
#[inline(always)]
fn ours<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    row: Row,
    packet: &Packet,
    frame: &F::Frame,
    epoch: Epoch,
    addr: AddrEntry,
) -> Option<Outcome> {
    let head = F::ip(frame);
    let proto = F::plain_proto(&head)?;
    let ifindex = ctx.ingress_ifindex() as u32;
    let interface = tables.interface(ifindex);
    let ports = F::ports(frame);
    let vip = VipEntry::find(&tables.vips(), epoch, VipEntry::key(addr, (ports >> 16) as u16, proto));
    let Record { descriptor, rules, .. } = Record::read(&tables.records(), vip.record());
    // Another host's frame, shifted so that its source is not looked at; an interface that we do
    // not know; an address of the host; a VIP that is not simply balanced; rules that ask more;
    // somebody who captures.
    let odd = (interface ^ F::macs(frame)) << 16 | addr.odd() | vip.odd() | rules.odd();
    let odd = odd | config::capture_word(&tables.settings());
    // A packet longer than its frame (cut short, or in several pieces) or shorter than its headers.
    let length = F::length(&head);
    let least = (F::PLAIN.l4 - ETHERNET) as u64 + 20;
    let missing = (packet.bytes() as u64).wrapping_sub(ETHERNET as u64 + length as u64);
    let odd = odd | (missing | (length as u64).wrapping_sub(least)) >> 63;
    if odd != 0 || descriptor.is_none() {
        return None;
    }

    let flow = Flow { src: F::src(&head), dst: F::dst(&head), ports, proto: proto as u32 };
    let hash = F::hash(&flow, config::hash_key(&tables.settings()));
    let slot = tables.slot(descriptor.pool_index(hash));
    // UDP has no such byte; what stands there says nothing.
    let is_tcp = proto == lb_common::TCP;
    let flags = if is_tcp { F::tcp_flags(frame) } else { 0 };
    let (mut id, mut other) = (BackendId(slot.0), BackendId(0));
    let mut begins = flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) == tcp_flag::SYN;
    if slot.is_contested() {
        let kind = parse::kind(proto, flags);
        let choice = steer::choose_contested(vip.record(), hash, kind);
        (id, other) = (choice.backend, choice.other);
        begins |= kind == Kind::Datagram && choice.how == How::Began;
    }
    let lines = tables.backend(id);
    let (next_hop, identity) = (backend::next_hop(&lines, id), backend::identity(&lines, id));
    let way = Way { next_hop, identity, tags: Tags::NONE };
    // Nobody's line is empty: backend 0 has no next hop. Nor has one behind tags, for us.
    if way.next_hop.ifindex == 0 {
        return None;
    }
    let packet = packet.leaving_by(if interface & NO_XDP_TX == 0 { ifindex } else { 0 });
    let to = To { id, lines, other, round: Round::First, way, l3: ETHERNET };
    let outcome = forward::along::<F>(ctx, &packet, &head, tables, &to, hash).ok()?;
    row.backend(id.0, length as u64, begins);
    if rules.any(Rules::COUNTED) {
        row.vip(vip.record(), length as u64, begins);
    }
    Some(outcome)
}
