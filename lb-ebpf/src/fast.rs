//! The packets that nearly all are: plain TCP or UDP to a VIP, a backend that needs no translation
//! and whose next hop is known. Whatever else a packet turns out to be, the ladder begins with it
//! from the start; nothing is changed or counted before that is sure.
//!
//! Kept short on purpose: here an instruction costs more than a line of comment. What is decided is
//! decided as the ladder does it: the test that compares the program with `explain` on random
//! flows goes through both.

use aya_ebpf::{bindings::xdp_action, programs::XdpContext};
use lb_common::{
    AddrEntry, BackendId, Epoch, Flow, Mode, Record, Rules, Tags, Verdict, VipEntry, backend, config,
    csum::Delta,
    lease,
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
    /// The last three bytes of the source MAC.
    fn sender(frame: &Self::Frame) -> u32;
    /// Rewrites the ports, and lets the checksum follow.
    fn rewrite_transport(frame: &Self::Frame, new: &Flow, delta: Delta);
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

    #[inline(always)]
    fn sender(frame: &Self::Frame) -> u32 {
        frame.read::<u32>(8) >> 8
    }

    #[inline(always)]
    fn rewrite_transport(frame: &Self::Frame, new: &Flow, delta: Delta) {
        parse::rewrite_plain(frame.part(34), new, delta);
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

    #[inline(always)]
    fn sender(frame: &Self::Frame) -> u32 {
        frame.read::<u32>(8) >> 8
    }

    #[inline(always)]
    fn rewrite_transport(frame: &Self::Frame, new: &Flow, delta: Delta) {
        parse::rewrite_plain(frame.part(54), new, delta);
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
    let odd = odd | (missing | (length as u64).wrapping_sub(least)) & 1 << 63;
    let packet = packet.leaving_by(if interface & NO_XDP_TX == 0 { ifindex } else { 0 });
    let ours = Ours {
        head,
        flow: Flow { src: F::src(&head), dst: F::dst(&head), ports, proto: proto as u32 },
        vip,
        rules,
    };
    if odd != 0 || descriptor.is_none() {
        // Flows are known before slots are asked, whatever else the rules say.
        let translated = odd & !(Rules::AFFINITY | Rules::CONSERVATIVE) == Rules::TRANSLATED;
        return if translated { leased::<F>(ctx, tables, row, &packet, frame, &ours) } else { None };
    }

    let hash = F::hash(&ours.flow, config::hash_key(&tables.settings()));
    let slot = tables.slot(descriptor.pool_index(hash));
    // UDP has no such byte; what stands there says nothing.
    let is_tcp = proto == lb_common::TCP;
    let flags = if is_tcp { F::tcp_flags(frame) } else { 0 };
    let (mut id, mut other) = (BackendId(slot.0), BackendId(0));
    let mut begins = flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) == tcp_flag::SYN;
    if slot.is_contested() {
        let kind = parse::kind(proto, flags);
        let known = steer::recalled(tables, rules, hash, kind, row);
        if known.0 != 0 {
            id = known;
        } else {
            let choice = steer::choose_contested(vip.record(), hash, kind);
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
    let to = To { id, lines, other, round: Round::First, way, l3: ETHERNET };
    let outcome = forward::along::<F>(ctx, &packet, &head, tables, &to, hash).ok()?;
    row.backend(id.0, length as u64, begins);
    if rules.any(Rules::COUNTED) {
        row.vip(vip.record(), length as u64, begins);
    }
    Some(outcome)
}

/// What is known of a packet to a VIP of ours.
struct Ours<F: Family> {
    head: F::Head,
    flow: Flow,
    vip: VipEntry,
    rules: Rules,
}

/// A packet of a translated flow that holds a lease; `None`: the ladder's, which may grant one.
#[inline(always)]
fn leased<F: Fast>(
    ctx: &XdpContext,
    tables: &Tables,
    row: Row,
    packet: &Packet,
    frame: &F::Frame,
    ours: &Ours<F>,
) -> Option<Outcome> {
    let Ours { head, flow, vip, rules } = ours;
    // What begins or ends a flow is noted with it, and the last hop is told.
    let noted = flow.proto == lb_common::TCP as u32 && F::tcp_flags(frame) & tcp_flag::BEGIN_OR_END != 0;
    if noted || F::ttl(head) <= 1 {
        return None;
    }
    let lease = lease::find(tables, F::hash(flow, config::hash_key(&tables.settings())));
    if !lease.holds(maps::stamp(), F::sender(frame)) {
        return None;
    }
    let id = lease.backend();
    let lines = tables.backend(id);
    let (identity, next_hop) = (backend::identity(&lines, id), backend::next_hop(&lines, id));
    let length = F::length(head);
    let local = identity.mode() == Mode::Local as u8;
    let nat = identity.mode() == Mode::Nat as u8 && next_hop.ifindex != 0;
    if length > identity.mtu() as u32 || !local && !nat {
        return None;
    }
    let src = if local { flow.src } else { backend::source(&lines, id) };
    let ports = Flow::ports(lease.wire_port(), identity.wire_port());
    let new = Flow { src, dst: backend::addr(&lines, id), ports, proto: flow.proto };
    // The stack takes the hop of what it forwards.
    let delta = F::rewrite(head, flow, &new, if local { 0 } else { 1 });
    F::rewrite_transport(frame, &new, delta);
    row.backend(id.0, length as u64, false);
    if rules.any(Rules::COUNTED) {
        row.vip(vip.record(), length as u64, false);
    }
    Some(if local {
        Verdict::ForwardedLocal.into()
    } else {
        forward::send::<F>(ctx, packet, ETHERNET, next_hop, Tags::NONE, Verdict::ForwardedNat)
    })
}
