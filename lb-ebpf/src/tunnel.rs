//! What other balancers send: unwraps the client's packet, finds the backend here that it is for,
//! and hands it to `nat`, as if the client's packet had come by itself.
//!
//! The packet names the backend that its sender chose, and the slot's other owner. A flow that
//! nobody here knows, and that did not begin just now, is more likely than not the other owner's, or
//! that of an owner of whom the tables here alone tell: it gets it as a second chance (lb-common, `tunnel`).
//! If nobody knows the flow, the packet stays. Its round grows each time, so none runs in circles.

use core::hint::cold_path;

use aya_ebpf::{helpers::bpf_xdp_adjust_head, macros::xdp, programs::XdpContext};
use lb_common::{
    AddrEntry, BackendId, Flow, Mode, Record, Verdict, VipEntry, backend, config,
    flows::Noted,
    maps::Program,
    steer::{Choice, How, Kind, Memory},
    tunnel::{self, Head, Onward, Question, Round},
};

use crate::{
    carry::{Carry, Tunnelled},
    finish,
    forward::{self, Outcome},
    maps::{self, Tables},
    nat,
    packet::Packet,
    parse::{self, ETHERNET, ETHERTYPE_V4, ETHERTYPE_V6, Family, V4, V6, kind},
    steer, tags,
};

/// ECN field of a TOS or traffic class: congestion was met (RFC 3168 5).
const CONGESTED: u8 = 3;
/// UDP header and the tunnel's.
const HEADERS: usize = 8 + tunnel::HEADER;

/// What the headers in front of the client's packet say.
struct Opened {
    head: Head,
    /// Tag of the backend that the sender chose.
    backend: u32,
    /// Tag of the slot's other owner; 0: none.
    other: u32,
    overhead: u16,
    /// A router on the way marked the outer header.
    is_congested: bool,
}

/// A packet to one of the host's addresses on the tunnel's port.
#[xdp(frags)]
pub fn penstock_tunnel(ctx: XdpContext) -> u32 {
    let Outcome { verdict, action } = receive(&ctx).unwrap_or_else(Outcome::from);
    finish(&ctx, verdict, action)
}

#[inline(always)]
fn receive(ctx: &XdpContext) -> Result<Outcome, Verdict> {
    let tables = maps::tables();
    let Some(scratch) = maps::scratch() else {
        return Err(Verdict::Corrupt);
    };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &mut (*scratch).carry };
    let opened = if carry.flow.src.is_v4() {
        open::<V4>(ctx, &tables, carry)?
    } else {
        open::<V6>(ctx, &tables, carry)?
    };
    if opened.head.inner() == V4::INNER {
        deliver::<V4>(ctx, &tables, carry, &opened)
    } else {
        deliver::<V6>(ctx, &tables, carry, &opened)
    }
}

/// Checks who sent the packet and takes the outer headers off.
#[inline(always)]
fn open<F: Family>(ctx: &XdpContext, tables: &Tables, carry: &Carry) -> Result<Opened, Verdict> {
    let (packet, l4) = (carry.packet(ctx), carry.l4 as usize);
    let (Some(ether), Some(view)) = (packet.view::<ETHERNET>(), packet.view_at::<HEADERS>(l4)) else {
        return Err(Verdict::TunnelForeign);
    };
    let outer = F::head(&packet, carry.at()).ok_or(Verdict::TunnelForeign)?;
    let opened = Opened {
        head: Head(view.read(8)),
        backend: view.read(16),
        other: view.read(20),
        overhead: (F::PLAIN.l4 - ETHERNET + HEADERS) as u16,
        is_congested: F::tos(&outer) & CONGESTED == CONGESTED,
    };
    let cluster = config::cluster(&tables.config());
    // No balancer puts options in front. Tags are taken off, and pushed where the packet goes on or back.
    let plain = carry.l4 == carry.l3 + (F::PLAIN.l4 - F::PLAIN.l3) as u32;
    let ours = plain && opened.head.is_known() && view.read::<u32>(12) == cluster;
    if !ours || !maps::hear_peer(&carry.flow.src) {
        return Err(Verdict::TunnelForeign);
    }
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    // SAFETY: `ctx` is the program's own context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, (l4 + HEADERS - ETHERNET) as i32) } != 0 {
        return Err(Verdict::TunnelStray);
    }
    let ether = Packet::of(ctx).view::<ETHERNET>().ok_or(Verdict::TunnelStray)?;
    ether.write(0, first);
    ether.write(8, second);
    ether.write(12, if opened.head.inner() == V4::INNER { ETHERTYPE_V4 } else { ETHERTYPE_V6 });
    Ok(opened)
}

/// Finds the VIP and the backend of the client's packet, and goes on in `nat`.
#[inline(always)]
fn deliver<F: Family>(
    ctx: &XdpContext,
    tables: &Tables,
    carry: &mut Carry,
    opened: &Opened,
) -> Result<Outcome, Verdict> {
    let packet = Packet::of(ctx).leaving_by(carry.tx_ifindex);
    let head = F::head(&packet, F::PLAIN).ok_or(Verdict::TunnelStray)?;
    if opened.is_congested {
        cold_path();
        tell_congestion::<F>(&head)?;
    }
    let Some(proto) = F::plain_proto(&head) else { return uncommon::<F>(ctx, carry, &head) };
    let transport = parse::transport(&packet, F::PLAIN, proto).ok_or(Verdict::TunnelStray)?;
    let flow = Flow { src: F::src(&head), dst: F::dst(&head), ports: transport.ports, proto: proto as u32 };

    let epoch = config::epoch(&tables.config());
    let mut addr = AddrEntry::find(&tables.addrs(), epoch, flow.dst);
    // A node port has the same backends on every node, and here it stands on our address.
    let is_node_port = addr.is_none() && carry.flow.dst.is_v4() == flow.dst.is_v4();
    if is_node_port {
        addr = carry.addr;
    }
    let vip = VipEntry::find(&tables.vips(), epoch, VipEntry::key(addr, flow.dst_port(), proto));
    if addr.is_none() || vip.is_none() || vip.is_punted() {
        return Err(Verdict::TunnelStray);
    }
    let record = Record::read(&tables.records(), vip.record());
    let backends = tables.backends();
    let pool = record.rules.pool_tag();
    let chosen = maps::tagged(pool, opened.backend);
    if is_node_port && chosen.0 == 0 {
        // Or of a VIP that is not known here, whose port another Service has on our address.
        return Err(Verdict::TunnelStray);
    }
    let mode = |id| backend::identity(&backends, id).mode();
    let is_here = mode(chosen) == Mode::Local as u8;
    let key = config::hash_key(&tables.config());
    let hash = F::hash(&flow, key);
    let hashes = steer::hashes(&flow, hash, record.rules, key);
    let kind = kind(proto, transport.flags);
    let round = opened.head.round();

    let is_changing = opened.other != 0 || record.descriptor.previous().is_some();
    if is_changing && round != Round::Last && kind != Kind::Syn {
        // The slot first, and what is remembered last: that costs the most.
        let own = lb_common::steer::owners(tables, &record, hashes);
        let is_asked = opened.other != 0 || own.previous.0 != 0 && kind != Kind::Datagram;
        if is_asked && !nat::is_known(hash, &flow, &backends) {
            let other = if opened.other == 0 { BackendId(0) } else { maps::tagged(pool, opened.other) };
            let past = config::past(&tables.config());
            let question = Question { round, kind, chosen, other, own, past };
            let node = |id| (mode(id) == Mode::Tunnel as u8).then(|| backend::addr(&backends, id));
            if let Some(Onward { chosen, other, round, is_told_here }) = question.onward(node) {
                if is_told_here && !tables.slot(own.place).is_used() {
                    tables.mark_used(own.place);
                }
                let choice = Choice { backend: chosen, other, how: How::Kept, noted: Noted::NOTHING };
                let sent =
                    forward::sent_on::<F>(ctx, &packet, &head, tables, addr, &choice, hash, F::PLAIN, round);
                return sent.map_err(|(verdict, _)| verdict);
            }
        }
    }

    carry.flow = flow;
    carry.hashes = hashes;
    carry.record = record;
    carry.record_index = vip.record();
    carry.addr = addr;
    carry.l3 = F::PLAIN.l3 as u32;
    carry.l4 = F::PLAIN.l4 as u32;
    carry.tcp_flags = transport.flags as u32;
    carry.tunnelled =
        Tunnelled { backend: if is_here { chosen } else { BackendId(0) }, overhead: opened.overhead };
    maps::call(ctx, Program::Translate);
    Err(Verdict::TunnelStray)
}

/// Has the client's packet say that a router on the way would have dropped it, as RFC 6040 4.2 wants: its receiver tells the
/// sender. One whose ends do not understand that is dropped in the router's stead.
#[inline(always)]
fn tell_congestion<F: Family>(head: &F::Head) -> Result<(), Verdict> {
    match F::tos(head) & CONGESTED {
        0 => return Err(Verdict::TunnelStray),
        CONGESTED => {}
        _ => F::mark_congested(head),
    }
    Ok(())
}

/// Fragments, options, ICMP: as if they had come by themselves. The slot may have another owner
/// here than at the sender, so the packet may be sent on again; every round costs a hop, of few.
#[inline(always)]
fn uncommon<F: Family>(ctx: &XdpContext, carry: &Carry, head: &F::Head) -> Result<Outcome, Verdict> {
    if F::ttl(head) <= 1 {
        return Err(Verdict::TunnelStray);
    }
    parse::leave_few_hops::<F>(head);
    // In the VLAN that the outer headers came by.
    if !carry.tags.is_none() {
        tags::begin_anew(ctx, carry.tags);
    }
    maps::call(ctx, Program::Slow);
    Err(Verdict::TunnelStray)
}
